"""Which head a run has."""

from dataclasses import dataclass

KINDS = ("flat", "masc", "masc-two-level")


@dataclass(kw_only=True)
class HeadConfig:
    """A head by kind, its number of clusters K, and what the context shows to the model."""

    name: str
    kind: str  # one of KINDS
    num_clusters: int | None = None  # K; None: N // 2, the paper's default (8,192 of 16,384)
    context: str = "token"  # what the context holds: `token` ids or `cluster` ids

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"head.kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.context not in ("token", "cluster"):
            raise ValueError(f"head.context must be token or cluster, not {self.context!r}")
        if self.kind == "flat" and self.context == "cluster":
            raise ValueError("head.context=cluster needs a head with clusters; the flat head has none")
        if self.kind == "flat" and self.num_clusters is not None:
            raise ValueError(f"the flat head has no clusters, found head.num_clusters={self.num_clusters}; leave out K")

    @property
    def uses_tree(self) -> bool:
        return self.kind != "flat"

    def clusters(self, num_tokens: int) -> int:
        """K for a codebook of N tokens."""
        return num_tokens // 2 if self.num_clusters is None else self.num_clusters
