"""Where each artefact of a tokenizer lies, and the command that makes it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masc.build import TreeConfig, Usage, make_tree
from masc.runtime.artifacts import Codebook, InputError, Meta, hash_file, require_parent
from masc.runtime.codes import load_codes, used_tokens
from masc.tree import Clustering, Partition, Tree, check_cuts, load_tree


@dataclass(frozen=True)
class Layout:
    """The artefacts of one tokenizer below `root`."""

    root: Path
    tokenizer: str

    @property
    def codebook(self) -> Path:
        return Path(self.root) / self.tokenizer / "codebook.npz"

    def tree(self, tree: TreeConfig, num_clusters: int) -> Path:
        return Path(self.root) / self.tokenizer / "trees" / tree.file_name(num_clusters)

    @property
    def evaluation(self) -> Path:
        """Where the tokenizer's own results are."""
        return Path(self.root) / self.tokenizer / "eval"

    def codes(self, data: str, split: str) -> Path:
        return Path(self.root) / self.tokenizer / "codes" / data / split

    def how_to_make(self, tree: TreeConfig, num_clusters: int) -> str:
        """The command that makes the tree."""
        wanted = f" K={num_clusters}" if tree.needs_k else ""
        mapping = tree.mapping or ("PATH" if tree.method == "mapping" else None)
        given = {"separate_dead": tree.separate_dead, "mapping": mapping}
        words = " ".join(f"tree.{key}={value}" for key, value in given.items() if value)
        return f"make tree TREE={tree.name} TOKENIZER={self.tokenizer}{wanted}" + (f' ARGS="{words}"' if words else "")

    def make_tree(self, tree: TreeConfig, num_clusters: int, codebook: Codebook) -> tuple[Tree | Partition, Meta]:
        """The tree, or the partition in K clusters, built and written unless it is there; InputError for a bad K."""
        self._check_k(num_clusters, codebook)
        usage = None if tree.separate_dead is None else self.usage(tree.separate_dead, codebook)
        return make_tree(tree, codebook, num_clusters, self.tree(tree, num_clusters), usage)

    def usage(self, data: str, codebook: Codebook) -> Usage:
        """Which tokens the training codes of `data` use; InputError if there are none."""
        make = f"make codes DATA={data} TOKENIZER={self.tokenizer}"
        codes = load_codes(self.codes(data, "train"), codebook.meta.sha256, make)
        return Usage(used_tokens(codes), codes.sha256)

    def dead_tokens(self, codebook: Codebook) -> dict[str, np.ndarray]:
        """The tokens never used, by data, for all training codes of this codebook that are there."""
        folder, dead = Path(self.root) / self.tokenizer / "codes", {}
        for file in sorted(folder.glob("*/train/meta.json")):
            data = file.parent.parent.name
            try:
                dead[data] = np.flatnonzero(~self.usage(data, codebook).is_used)
            except InputError:
                continue  # of another codebook, or broken: they say nothing of this one
        return dead

    def load_codebook(self) -> Codebook:
        return Codebook.load(self.codebook, f"make codebook TOKENIZER={self.tokenizer}")

    def load_tree(self, tree: TreeConfig, cuts: list[int], codebook: Codebook) -> tuple[Clustering, str]:
        """The clustering that has all `cuts` (numbers of clusters), and its SHA-256.

        Raises InputError if it is not there, was made of another codebook or by another config, or lacks a cut."""
        for num_clusters in cuts:
            self._check_k(num_clusters, codebook)
        num_clusters = cuts[-1]
        path, make = self.tree(tree, num_clusters), self.how_to_make(tree, num_clusters)
        if tree.needs_k and len(cuts) > 1:
            raise InputError(f"{tree.name} is a partition at one K, and cuts at {cuts} were asked for; choose a tree")
        made, meta = load_tree(path, codebook, make)
        check_cuts(made, cuts, path, make)
        wanted = tree.settings(num_clusters)
        differing = [key for key in wanted if meta.config.get(key) != wanted[key]]
        if differing:
            listed = ", ".join(f"{key} is {meta.config.get(key)!r} there, {wanted[key]!r} here" for key in differing)
            raise InputError(f"{path} was built by another config: {listed}; remake it with `rm {path} && {make}`")
        if tree.separate_dead:
            codes = load_codes(self.codes(tree.separate_dead, "train"), codebook.meta.sha256, "make codes")
            require_parent(meta, "codes", codes.sha256, path, make)
        if tree.mapping and Path(tree.mapping).is_file():
            require_parent(meta, "mapping", hash_file(Path(tree.mapping)), path, make)
        return made, meta.sha256

    def load_partition(self, tree: TreeConfig, num_clusters: int, codebook: Codebook) -> tuple[Partition, str]:
        """The partition in K clusters and the SHA-256 of the tree it was cut from; InputError as `load_tree`."""
        made, sha256 = self.load_tree(tree, [num_clusters], codebook)
        return made.cut(num_clusters), sha256

    def _check_k(self, num_clusters: int, codebook: Codebook) -> None:
        if not 1 <= num_clusters <= codebook.num_tokens:
            raise InputError(
                f"k must lie between 1 and the {codebook.num_tokens} tokens of {self.tokenizer}, found "
                f"{num_clusters}; try K={codebook.num_tokens // 2}"
            )
