"""Packages import downwards only, without circles, and `tokenizers` stays Hugging Face's."""

import ast
import graphlib
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from codebook import CodebookStage
from stage import load_config
from tree import TreeStage

from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.files import hash_file
from masc.runtime.run import plain
from vq.interface import tokenizer_path

# Each package may import these and itself. `llamagen` and `reports` are siblings: what a report must know of a run
# stands in the run's files.
ALLOWED = {
    "masc": set(),
    "vq": {"masc"},
    "metrics": {"masc", "vq"},
    "llamagen": {"masc", "vq", "metrics"},
    "reports": {"masc", "vq", "metrics"},
    "scripts": {"masc", "vq", "metrics", "llamagen", "reports"},
}
FOLDERS = {
    "masc": "masc",
    "vq": "tokenizers/vq",
    "metrics": "eval/metrics",
    "llamagen": "llamagen",
    "reports": "eval/reports",
    "scripts": "scripts",
}


def imports_of(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    return {name.partition(".")[0] for name in imports_of(file)}


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_imports_only_from_those_below_it(root, package):
    forbidden = set(FOLDERS) - ALLOWED[package] - {package}
    files = sorted((root / FOLDERS[package]).rglob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & forbidden, file


def import_graph(root: Path) -> dict[str, set[str]]:
    """The modules of the project, and those that each imports anywhere in its file."""
    files = {}
    for package, folder in FOLDERS.items():
        for file in (root / folder).rglob("*.py"):
            parts = file.relative_to(root / folder).with_suffix("").parts
            # Scripts import one another by their bare names.
            name = ".".join(parts if package == "scripts" else (package, *parts))
            files[name.removesuffix(".__init__")] = file
    return {name: (imports_of(file) & set(files)) - {name} for name, file in files.items()}


def test_no_module_imports_itself_through_others(root):
    sorter = graphlib.TopologicalSorter(import_graph(root))
    sorter.prepare()  # raises CycleError, which names the circle


def test_the_test_of_circles_sees_one(tmp_path):
    for folder in FOLDERS.values():
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "masc" / "a.py").write_text("from masc import b\n")
    (tmp_path / "masc" / "b.py").write_text("def f():\n    from masc.a import g\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(tmp_path)).prepare()


def test_text_is_utf_8_in_any_locale(root):
    """Python reads and writes text files in the encoding of the locale unless the call names another."""
    for package in FOLDERS:
        for file in (root / FOLDERS[package]).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if ast.unparse(node.func.value) in ("Image", "tarfile"):
                    continue
                modes = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
                is_text = node.func.attr in ("read_text", "write_text") or (
                    node.func.attr == "open" and (not node.args or (modes and modes[0] in ("r", "w", "a", "x", "r+")))
                )
                names = {keyword.arg for keyword in node.keywords}
                assert not is_text or "encoding" in names, f"{file}:{node.lineno}"


def test_only_scripts_import_hydra(root):
    for package in set(FOLDERS) - {"scripts"}:
        for file in (root / FOLDERS[package]).rglob("*.py"):
            assert "hydra" not in imported(file), file


def test_import_masc_loads_no_torch(root):
    code = "import sys, masc, masc.runtime.codes, masc.layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


# Packages that take a second or more of CPU to load.
HEAVY = (
    "torch",
    "accelerate",
    "transformers",
    "matplotlib",
    "scipy.stats",
    "sklearn",
    "faiss",
    "numba",
    "plotly",
    "wandb",
)


def loaded_by(root: Path, script: str, *overrides: str) -> set[str]:
    """The heavy packages that a script has loaded when it ends without an error."""
    code = (
        "import json, runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, 'scripts')\n"
        "runpy.run_path(f'scripts/{sys.argv[0]}.py', run_name='__main__')\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))\n"
    )
    command = [sys.executable, "-c", code, script, *overrides]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("script", "may_load"),
    [
        ("weights", set()),
        ("coco_captions", {"torch", "accelerate", "scipy.stats"}),
        ("train", {"torch", "accelerate"}),
        ("doctor", {"scipy.stats"}),
    ],
)
def test_a_stage_loads_no_package_for_the_schemas_of_others(root, script, may_load):
    assert loaded_by(root, script, "--help") <= may_load


def test_a_tree_and_a_codebook_that_are_there_are_found_without_torch(root, tmp_path):
    tokenizer = load_config("codebook", CodebookStage, [f"artifacts={tmp_path}"]).tokenizer
    layout = Layout(tmp_path, tokenizer.name)
    parents = {"tokenizer": hash_file(tokenizer_path(tokenizer, tmp_path))}
    vectors = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    codebook = Codebook.save(layout.codebook, vectors, plain(tokenizer), parents)
    tree = load_config("tree", TreeStage, []).tree
    layout.make_tree(tree, 16, codebook)
    before = [file.read_bytes() for file in (layout.codebook, layout.tree(tree, 16))]
    assert loaded_by(root, "codebook", f"artifacts={tmp_path}") == set()
    assert loaded_by(root, "tree", f"artifacts={tmp_path}") == set()
    assert [file.read_bytes() for file in (layout.codebook, layout.tree(tree, 16))] == before


def test_the_source_roots_are_no_packages(root):
    assert not (root / "tokenizers" / "__init__.py").exists()
    assert not (root / "eval" / "__init__.py").exists()


@pytest.mark.parametrize("arguments", [["-c"], ["-P", "-c"]])
def test_our_folder_does_not_shadow_hugging_faces_tokenizers(root, arguments):
    # From the repository root, where a package `tokenizers/` would come first on the path. Hugging Face's
    # package may be absent: then nothing of that name may be importable as a real module.
    code = (
        "import importlib.util, vq\n"
        "spec = importlib.util.find_spec('tokenizers')\n"
        "assert spec is None or spec.origin is None or 'site-packages' in spec.origin, spec\n"
        "assert 'tokenizers/vq' in vq.__file__, vq.__file__\n"
    )
    done = subprocess.run([sys.executable, *arguments, code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_real_tokenizers_package_wins_over_our_folder(root, tmp_path):
    # The same with a regular package of that name later on the path than the repository.
    package = tmp_path / "tokenizers"
    package.mkdir()
    (package / "__init__.py").write_text("class Tokenizer: pass\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from tokenizers import Tokenizer; import vq"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_script_bears_the_name_of_another_module(root):
    names = {file.stem for folder in ("scripts", "benchmarks") for file in (root / folder).glob("*.py")}
    installed = set(packages_distributions())
    assert {"torch", "numpy", "transformers"} <= installed
    assert not names & (sys.stdlib_module_names | installed | set(FOLDERS) | {"tokenizers"})


def test_no_file_names_a_registry_or_index(root):
    for name in ("requirements.txt", "requirements-cpu.txt", "pyproject.toml", "environment.yml", "Makefile"):
        text = (root / name).read_text()
        assert "--index-url" not in text and "--extra-index-url" not in text and "--find-links" not in text, name
