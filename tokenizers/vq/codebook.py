"""The codebook of a tokenizer."""

from pathlib import Path

from masc.runtime.artifacts import Codebook, reuse_npz
from masc.runtime.files import hash_file
from masc.runtime.run import plain
from vq.interface import Tokenizer, TokenizerConfig


def make_codebook(config: TokenizerConfig, weights: Path, path: Path, model: Tokenizer | None = None) -> Codebook:
    """The effective codebook of the tokenizer stored at `weights`, written to `path` unless it is there.

    Its header holds the config, so the codebook names its tokenizer. `model` is the loaded tokenizer; without it, the
    weights are read only if the codebook must be written."""
    described, parents = plain(config), {"tokenizer": hash_file(weights)}
    found = reuse_npz(path, "codebook", Codebook.VERSION, described, parents, Codebook.SCHEMA)
    if found is not None:
        return Codebook(found[0]["vectors"], found[1])
    if model is None:
        from vq.pretrained import load_tokenizer  # loads torch, which a stored codebook does not need

        model = load_tokenizer(weights, config)
    return Codebook.save(path, model.codebook.detach().float().cpu().numpy(), described, parents)
