"""From a tokenizer to its codebook."""

from pathlib import Path

from masc.runtime.artifacts import Codebook, hash_file, reuse_npz
from masc.runtime.run import plain
from vq.interface import Tokenizer, TokenizerConfig


def save_codebook(model: Tokenizer, config: TokenizerConfig, weights: Path, path: Path) -> Codebook:
    """The effective codebook of the tokenizer stored at `weights`, written to `path` unless it is there.

    The config travels with it: whoever holds a codebook can load the tokenizer it belongs to."""
    described, parents = plain(config), {"tokenizer": hash_file(weights)}
    found = reuse_npz(path, "codebook", Codebook.VERSION, described, parents)
    if found is not None:
        return Codebook(found[0]["vectors"], found[1])
    return Codebook.save(path, model.codebook.detach().float().cpu().numpy(), described, parents)
