"""The layers import downwards only, and `tokenizers` stays Hugging Face's."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# Each layer may import those before it.
LAYERS = ["masc", "vq", "metrics", "llamagen", "scripts"]
FOLDERS = {
    "masc": "masc",
    "vq": "tokenizers/vq",
    "metrics": "eval/metrics",
    "llamagen": "llamagen",
    "scripts": "scripts",
}


def imported(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_from_those_before_it(root, layer):
    later = set(LAYERS[LAYERS.index(layer) + 1 :])
    files = sorted((root / FOLDERS[layer]).rglob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & later, file


def test_only_scripts_import_hydra(root):
    for layer in LAYERS[:-1]:
        for file in (root / FOLDERS[layer]).rglob("*.py"):
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
