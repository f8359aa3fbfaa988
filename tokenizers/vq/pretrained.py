"""Tokenizers by name: where their weights are and how they load."""

import json
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError, safe_open

from masc.artifacts import InputError
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
    raise InputError(f"no weights of the tokenizer {name} at {trained}; make them with `make tokenizer TOKENIZER={name}`")


def load_tokenizer(path: Path, config: ConvVQConfig) -> ConvVQ:
    """The tokenizer stored at `path`, in evaluation mode, float32. Raises InputError if it has other sizes
    than `config` or the file is no safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {}).get("config", "{}"))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated ({error})") from error
    wanted = vars(config)
    differing = {key: (stored.get(key), wanted[key]) for key in wanted if stored.get(key) != wanted[key]}
    if differing:
        raise InputError(
            f"{path} holds a tokenizer of other sizes than configs/tokenizer/{config.name}.yaml: "
            + ", ".join(f"{key} is {there!r} there, {here!r} here" for key, (there, here) in differing.items())
            + f"; train one with `make tokenizer TOKENIZER={config.name}`"
        )
    model = config.build()
    model.load_state_dict(state)
    return model.eval()


def load_extra(path: Path) -> dict:
    """How a stored tokenizer was trained and what it reached."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("extra", "{}"))
