"""Paths of the artefacts of a tokenizer, and the artefacts themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masc.build import TreeConfig, Usage, make_tree
from masc.runtime.artifacts import Codebook, Meta, require_parent
from masc.runtime.codes import Codes, load_codes, used_tokens
from masc.runtime.errors import InputError, MissingArtifact, naming
from masc.runtime.files import hash_file, recover
from masc.runtime.run import differences
from masc.runtime.verify import verify_once
from masc.tree import Clustering, Partition, Tree, check_cuts, load_tree


@dataclass(frozen=True)
class Layout:
    """The artefacts of one tokenizer below `root`."""

    root: Path
    tokenizer: str

    @property
    def folder(self) -> Path:
        """The folder of everything that is made for the tokenizer."""
        return Path(self.root) / self.tokenizer

    @property
    def weights(self) -> Path:
        """The file of weights of a tokenizer that was trained here."""
        return self.folder / "tokenizer.safetensors"

    @property
    def codebook(self) -> Path:
        """The file of the codebook."""
        return self.folder / "codebook.npz"

    def tree(self, tree: TreeConfig, num_clusters: int) -> Path:
        """The file of a tree, or of a partition in K clusters."""
        return self.folder / "trees" / tree.file_name(num_clusters)

    @property
    def evaluation(self) -> Path:
        """The folder of the tokenizer's own results."""
        return self.folder / "eval"

    @property
    def tree_report(self) -> Path:
        """The folder of the page that shows the trees."""
        return self.folder / "tree-report"

    def codes(self, data: str, split: str) -> Path:
        """The folder of the codes of a split: `train` or `val`."""
        return recover(self.folder / "codes" / data / split)

    def missing_codebook(self) -> MissingArtifact:
        """The error for a codebook that has not been made."""
        return MissingArtifact("codebook", self.codebook, tokenizer=self.tokenizer)

    def missing_codes(self, data: str, split: str) -> MissingArtifact:
        """The error for codes that have not been made."""
        return MissingArtifact("codes", self.codes(data, split), data=data, tokenizer=self.tokenizer)

    def missing_tree(self, tree: TreeConfig, num_clusters: int | None) -> MissingArtifact:
        """The error for a tree, or a partition in K clusters, that has not been made; K is None if it is not known."""
        path = self.folder / "trees" if num_clusters is None else self.tree(tree, num_clusters)
        return MissingArtifact("tree", path, **self._tree_facts(tree, num_clusters))

    def _tree_facts(self, tree: TreeConfig, num_clusters: int | None) -> dict[str, Any]:
        """The facts and overrides of the command that makes a tree."""
        mapping = tree.mapping or ("PATH" if tree.method == "mapping" else None)
        given = {"tree.separate_dead": tree.separate_dead, "tree.mapping": mapping}
        return {
            "tree": tree.name,
            "tokenizer": self.tokenizer,
            "k": num_clusters if tree.needs_k else None,
            "overrides": {key: value for key, value in given.items() if value},
        }

    def make_tree(self, tree: TreeConfig, num_clusters: int, codebook: Codebook) -> tuple[Tree | Partition, Meta]:
        """The tree, or the partition in K clusters, built and written unless it is there; InputError for a bad K."""
        self._check_k(num_clusters, codebook)
        usage = None if tree.separate_dead is None else self.usage(tree.separate_dead, codebook)
        return make_tree(tree, codebook, num_clusters, self.tree(tree, num_clusters), usage)

    def usage(self, data: str, codebook: Codebook) -> Usage:
        """The tokens that the training codes of `data` use; MissingArtifact if there are no codes."""
        codes = self.load_codes(data, "train", codebook)
        return Usage(used_tokens(codes), codes.sha256)

    def dead_tokens(self, codebook: Codebook) -> dict[str, np.ndarray]:
        """Tokens that no training image uses, by the name of the data, for all codes of this codebook."""
        dead = {}
        for data in sorted(folder.name for folder in self.folder.glob("codes/*")):
            try:
                dead[data] = np.flatnonzero(~self.usage(data, codebook).is_used)
            except InputError:
                continue  # there are none, or they are broken or belong to another codebook
        return dead

    def load_codebook(self) -> Codebook:
        """The codebook; MissingArtifact if there is none that can be read."""
        with naming(tokenizer=self.tokenizer):
            return Codebook.load(self.codebook)

    def load_codes(self, data: str, split: str, codebook: Codebook) -> Codes:
        """The codes of a split, verified; MissingArtifact if they are missing, broken, or of another codebook."""
        path = self.codes(data, split)
        with naming(data=data, tokenizer=self.tokenizer):
            codes = load_codes(path, codebook.meta.sha256)
            verify_once(path)
        return codes

    def load_tree(self, tree: TreeConfig, cuts: list[int], codebook: Codebook) -> tuple[Clustering, str]:
        """The clustering that has all `cuts` (numbers of clusters), and its SHA-256.

        Raises InputError for a bad K, MissingArtifact if the clustering is missing or broken, was made of another
        codebook or by another config, or lacks a cut."""
        self.check_cuts(tree, cuts, codebook)
        num_clusters = cuts[-1]
        path = self.tree(tree, num_clusters)
        with naming(**self._tree_facts(tree, num_clusters)):
            made, meta = load_tree(path, codebook)
            check_cuts(made, cuts, path)
            lines = differences(meta.config, tree.settings(num_clusters))
            if lines:
                raise MissingArtifact("tree", path, f"{path} was built by another config:\n{lines}", remove=True)
            if tree.separate_dead:
                codes = self.load_codes(tree.separate_dead, "train", codebook)
                require_parent(meta, "codes", codes.sha256, path)
            if tree.mapping and Path(tree.mapping).is_file():
                require_parent(meta, "mapping", hash_file(Path(tree.mapping)), path)
        return made, meta.sha256

    def load_partition(self, tree: TreeConfig, num_clusters: int, codebook: Codebook) -> tuple[Partition, str]:
        """The partition in K clusters, and the SHA-256 of the tree that it was cut from; errors as `load_tree`."""
        made, sha256 = self.load_tree(tree, [num_clusters], codebook)
        return made.cut(num_clusters), sha256

    def check_cuts(self, tree: TreeConfig, cuts: list[int], codebook: Codebook) -> None:
        """Raise InputError for cuts (numbers of clusters) that no clustering of this config and codebook has."""
        for num_clusters in cuts:
            self._check_k(num_clusters, codebook)
        if tree.needs_k and len(cuts) > 1:
            raise InputError(f"{tree.name} makes one partition, but the run cuts at {cuts}; choose another TREE")

    def _check_k(self, num_clusters: int, codebook: Codebook) -> None:
        if not 1 <= num_clusters <= codebook.num_tokens:
            raise InputError(
                f"K must lie between 1 and the {codebook.num_tokens} tokens of {self.tokenizer}, found "
                f"{num_clusters}; try K={codebook.num_tokens // 2}"
            )


def reference_file(root: Path, name: str) -> Path:
    """The file of a reference of the metrics that was made here."""
    return Path(root) / "references" / f"{name}.npz"


def captions_file(root: Path, name: str) -> Path:
    """The file of a list of captions that was made here; `name` has a suffix."""
    return Path(root) / "coco" / name


def text_features_folder(root: Path, captions: Path) -> Path:
    """The folder of the text features of a file of captions."""
    return Path(root) / "text" / Path(captions).stem
