"""Configs of the heads: a class a head, registered by kind.

They stand apart from the heads because a config is read where no torch is needed, as by `make tree`."""

from dataclasses import dataclass, field

from masc.runtime.files import check_name

CONTEXTS = ("token", "cluster")


@dataclass(kw_only=True)
class HeadConfig:
    """A head by name and kind. The kind chooses the class of the config (CONFIGS) and of the head (HEADS)."""

    name: str
    kind: str

    def __post_init__(self) -> None:
        check_name(self.name, "head.name")

    @property
    def uses_tree(self) -> bool:
        """Whether the head reads a tree."""
        return False

    def cuts(self, num_tokens: int) -> list[int]:
        """The numbers of clusters at which the head cuts a tree of N tokens, coarsest first; the last is its K."""
        return []

    @property
    def shows_clusters(self) -> bool:
        """Whether the model's context holds cluster ids of the finest cut instead of token ids."""
        return False


@dataclass(kw_only=True)
class FlatConfig(HeadConfig):
    """One softmax over all N tokens: LlamaGen's own head."""

    kind: str = "flat"


@dataclass(kw_only=True)
class _ContextConfig(HeadConfig):
    """Settings shared by all heads over a tree."""

    context: str = "token"  # what the context holds: `token` ids or `cluster` ids

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context not in CONTEXTS:
            raise ValueError(f"head.context must be {' or '.join(CONTEXTS)}, not {self.context!r}")

    @property
    def uses_tree(self) -> bool:
        return True

    @property
    def shows_clusters(self) -> bool:
        return self.context == "cluster"


@dataclass(kw_only=True)
class MascConfig(_ContextConfig):
    """A cluster of one cut, then a uniform member (MASC, Sec. 3.3)."""

    kind: str = "masc"
    num_clusters: int | None = None  # K; None: N // 2, the paper's default (8,192 of 16,384)

    def cuts(self, num_tokens: int) -> list[int]:
        return [num_tokens // 2 if self.num_clusters is None else self.num_clusters]


@dataclass(kw_only=True)
class MascTwoLevelConfig(MascConfig):
    """A cluster of one cut, then a learned choice among its members."""

    kind: str = "masc-two-level"


@dataclass(kw_only=True)
class MascTreeConfig(_ContextConfig):
    """A path through several nested cuts of one tree, down to the token."""

    kind: str = "masc-tree"
    levels: list[int] = field(default_factory=list)  # numbers of clusters, coarsest first; none: sqrt(N), N // 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels != sorted(set(self.levels)):
            raise ValueError(f"head.levels must rise from the coarsest cut to the finest, found {self.levels}")

    def cuts(self, num_tokens: int) -> list[int]:
        return list(self.levels) or sorted({round(num_tokens**0.5), num_tokens // 2})


CONFIGS: dict[str, type[HeadConfig]] = {
    "flat": FlatConfig,
    "masc": MascConfig,
    "masc-two-level": MascTwoLevelConfig,
    "masc-tree": MascTreeConfig,
}
