"""Tokenizers by name: where their weights are and how they load."""

import json
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from masc.artifacts import Codebook, InputError, hash_file, require_parent
from vq.autoencoder import ConvVQ, ConvVQConfig

SHIPPED = resources.files("vq") / "weights"


def tokenizer_path(name: str, artifacts: Path) -> Path:
    """The weights of a tokenizer: the user's own if trained, else those shipped with the project."""
    trained = Path(artifacts) / name / "tokenizer.safetensors"
    shipped = Path(str(SHIPPED)) / f"{name}.safetensors"
    if trained.exists():
        return trained
    if shipped.exists():
        return shipped
    raise InputError(
        f"no weights of the tokenizer {name} at {trained}; make them with `make tokenizer TOKENIZER={name}`"
    )


def load_tokenizer(path: Path, config: ConvVQConfig) -> ConvVQ:
    """The tokenizer stored at `path`, in evaluation mode, float32. Raises InputError if it has other sizes
    than `config` or the file is no safetensors file."""
    stored = _header(path, "config")
    wanted = vars(config)
    differing = {key: (stored.get(key), wanted[key]) for key in wanted if stored.get(key) != wanted[key]}
    if differing:
        listed = ", ".join(f"{key} is {there!r} there, {here!r} here" for key, (there, here) in differing.items())
        raise InputError(
            f"{path} holds a tokenizer of other sizes than the config {config.name}: {listed}; "
            f"train one with `make tokenizer TOKENIZER={config.name}`"
        )
    model = config.build()
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return model.eval()


def load_decoder(codebook: Codebook, name: str, artifacts: Path) -> ConvVQ:
    """The tokenizer whose codebook this is, in evaluation mode, with the sizes stored beside its weights.

    Raises InputError if the weights in use are not those the codebook was read from."""
    path = tokenizer_path(name, artifacts)
    require_parent(codebook.meta, "tokenizer", hash_file(path), path, f"make codebook TOKENIZER={name}")
    return load_tokenizer(path, ConvVQConfig(**_header(path, "config")))


def _header(path: Path, key: str) -> dict:
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[key])
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} is not a tokenizer of this project, or is truncated ({error})") from error


def load_extra(path: Path) -> dict:
    """How a stored tokenizer was trained and what it reached."""
    return _header(path, "extra")
