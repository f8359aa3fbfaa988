"""Tokenizers with their stored weights, read by torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from masc.layout import Layout
from masc.runtime.artifacts import Codebook, require_parent
from masc.runtime.errors import MissingArtifact, naming
from masc.runtime.files import hash_file
from masc.runtime.reading import Damaged, advising, parse_json, reason
from masc.runtime.targets import config_named
from vq.checkpoint import find_state, load_state, read_checkpoint
from vq.interface import Tokenizer, TokenizerConfig, tokenizer_path


def load_tokenizer(path: Path, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer stored at `path`, in evaluation mode, float32.

    A class whose published files have another layout has a method `from_release(checkpoint, path)` that returns the
    state dict. Raises InputError if the sizes in the file differ from `config`."""
    model = config.build()
    if config.weights is None:
        _check_sizes(path, config, model)
    checkpoint = read_checkpoint(path)
    release = getattr(model, "from_release", None)
    state = release(checkpoint, path) if release else find_state(checkpoint, path, own=model.state_dict())
    load_state(model, state, path)
    return model.float().eval().requires_grad_(False)


def _check_sizes(path: Path, config: TokenizerConfig, model: Any) -> None:
    stored, wanted = _config_in(path), {"name": config.name, **model.options}
    differing = {key: (stored.get(key), wanted[key]) for key in wanted if stored.get(key) != wanted[key]}
    if differing:
        listed = ", ".join(f"{key} is {there!r} there, {here!r} here" for key, (there, here) in differing.items())
        problem = f"{path} holds a tokenizer of other sizes than the config {config.name}: {listed}"
        raise MissingArtifact("tokenizer", path, problem, tokenizer=config.name)


def load_decoder(codebook: Codebook, layout: Layout, config: TokenizerConfig | None = None) -> Tokenizer:
    """The tokenizer of the codebook of `layout`, in evaluation mode.

    Its class and options come from `config`, never from the codebook. Without it they come from the config of this
    machine that the codebook names, and only the file of weights is the codebook's. Raises InputError if the codebook
    names another class, has other options, or was made from other weights."""
    described = codebook.meta.config
    if config is None:
        config = config_named("tokenizer", described.get("name"), layout.codebook)
        if isinstance(weights := described.get("weights"), str):
            config = replace(config, weights=weights)
    config.check_described(described, layout.codebook)
    weights = tokenizer_path(config, layout.root)
    with naming(tokenizer=config.name):
        require_parent(codebook.meta, "tokenizer", hash_file(weights), weights)
    return load_tokenizer(weights, config)


def _config_in(path: Path) -> dict[str, Any]:
    with advising("train it again"):
        try:
            with safe_open(path, "pt") as file:
                stored = (file.metadata() or {}).get("config", "")
        except Exception as error:  # safetensors raises errors of several types for damaged files
            raise Damaged(
                f"{path} is not a tokenizer of this project, or it is truncated ({reason(error, path)})"
            ) from error
        return parse_json(stored, dict[str, Any], path)
