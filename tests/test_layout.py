"""Packages import downwards only, without circles, and `tokenizers` stays Hugging Face's."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_only_scripts_import_hydra(root):
    for package in set(FOLDERS) - {"scripts"}:
        for file in (root / FOLDERS[package]).rglob("*.py"):
            assert "hydra" not in imported(file), file


def test_import_masc_loads_no_torch(root):
    code = "import sys, masc, masc.runtime.codes, masc.layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


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
    assert not names & (sys.stdlib_module_names | {"tokenizers", "torch", "numpy", "masc", "llamagen"})


def test_no_file_names_a_registry_or_index(root):
    for name in ("requirements.txt", "requirements-cpu.txt", "pyproject.toml", "environment.yml", "Makefile"):
        text = (root / name).read_text()
        assert "--index-url" not in text and "--extra-index-url" not in text and "--find-links" not in text, name
