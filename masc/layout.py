"""Where each artefact of a tokenizer lies, and the command that makes it."""

from dataclasses import dataclass
from pathlib import Path

from masc.artifacts import Codebook, InputError
from masc.build import TreeConfig
from masc.tree import Partition, load_partition


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

    def make_tree(self, tree: TreeConfig, num_clusters: int) -> str:
        """The command that makes the tree."""
        wanted = f" K={num_clusters}" if tree.needs_k else ""
        return f"make tree TREE={tree.name} TOKENIZER={self.tokenizer}{wanted}"

    def load_codebook(self) -> Codebook:
        return Codebook.load(self.codebook, f"make codebook TOKENIZER={self.tokenizer}")

    def load_partition(self, tree: TreeConfig, num_clusters: int, codebook: Codebook) -> tuple[Partition, str]:
        """The partition in K clusters and the SHA-256 of the tree it was cut from."""
        if not 1 <= num_clusters <= codebook.num_tokens:
            raise InputError(
                f"k must lie between 1 and the {codebook.num_tokens} tokens of {self.tokenizer}, found "
                f"{num_clusters}; try K={codebook.num_tokens // 2}"
            )
        path, make = self.tree(tree, num_clusters), self.make_tree(tree, num_clusters)
        partition, meta = load_partition(path, num_clusters, codebook, make)
        wanted = tree.settings(num_clusters)
        differing = [key for key in wanted if meta.config.get(key) != wanted[key]]
        if differing:
            listed = ", ".join(f"{key} is {meta.config.get(key)!r} there, {wanted[key]!r} here" for key in differing)
            raise InputError(f"{path} was built by another config: {listed}; remake it with `{make}`")
        return partition, meta.sha256
