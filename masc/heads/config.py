"""Configs of the heads: a class a head, registered by kind.

They stand apart from the heads because a config is read where no torch is needed, as by `make tree`."""

from dataclasses import dataclass, field

from masc.runtime.errors import InputError
from masc.runtime.files import check_name

CONTEXTS = ("token", "cluster")
MEMBERS = ("uniform", "frequency")


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

    @property
    def uses_counts(self) -> bool:
        """Whether the head reads how often each token occurs in training."""
        return False

    def cuts(self, num_tokens: int) -> list[int]:
        """The numbers of clusters at which the head cuts a tree of N tokens, coarsest first; the last is its K."""
        return []

    @property
    def shows_clusters(self) -> bool:
        """Whether the model's context holds cluster ids of the finest cut instead of token ids."""
        return False

    @property
    def shares_rows(self) -> bool:
        """Whether the model's token embedding shares rows along the cuts, as the head does."""
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
class _ClusterConfig(_ContextConfig):
    """Settings shared by all heads over one cut."""

    num_clusters: int | None = None  # K; None: N // 2, the paper's default (8,192 of 16,384)

    def cuts(self, num_tokens: int) -> list[int]:
        return [num_tokens // 2 if self.num_clusters is None else self.num_clusters]


@dataclass(kw_only=True)
class MascConfig(_ClusterConfig):
    """A cluster of one cut, then a member that is not learned (MASC, Sec. 3.3)."""

    kind: str = "masc"
    members: str = "uniform"  # or `frequency`: as often as in the training codes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members not in MEMBERS:
            raise ValueError(f"head.members must be {' or '.join(MEMBERS)}, not {self.members!r}")

    @property
    def uses_counts(self) -> bool:
        return self.members == "frequency"


@dataclass(kw_only=True)
class MascTwoLevelConfig(_ClusterConfig):
    """A cluster of one cut, then a learned choice among its members."""

    kind: str = "masc-two-level"


@dataclass(kw_only=True)
class _LevelsConfig(_ContextConfig):
    """Settings shared by all heads over nested cuts."""

    levels: list[int] = field(default_factory=list)  # numbers of clusters, coarsest first; none: sqrt(N), N // 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels != sorted(set(self.levels)):
            raise ValueError(f"head.levels must rise from the coarsest cut to the finest, found {self.levels}")

    def cuts(self, num_tokens: int) -> list[int]:
        return list(self.levels) or sorted({round(num_tokens**0.5), num_tokens // 2})


@dataclass(kw_only=True)
class MascTreeConfig(_LevelsConfig):
    """A path through several nested cuts of one tree, down to the token."""

    kind: str = "masc-tree"
    depth: int | None = None  # number of decisions: cuts at N^(i / depth) clusters, in place of `levels`
    balanced: bool = False  # halve the tokens along the tree's order instead of cutting it: log2(N) decisions of two

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and (self.depth < 2 or self.levels):
            raise ValueError(
                f"head.depth must be 2 or more, and stands for head.levels; found depth {self.depth}, levels "
                f"{self.levels}"
            )
        if self.balanced and (self.depth is not None or self.levels):
            raise ValueError("head.balanced has log2(N) decisions; leave out head.depth and head.levels")

    def cuts(self, num_tokens: int) -> list[int]:
        if self.balanced:
            return [num_tokens // 2]
        if self.depth is None:
            return super().cuts(num_tokens)
        if 2**self.depth > num_tokens:
            most = num_tokens.bit_length() - 1
            raise InputError(f"head.depth must be at most {most}, log2 of the {num_tokens} tokens; found {self.depth}")
        return [round(num_tokens ** (level / self.depth)) for level in range(1, self.depth)]


@dataclass(kw_only=True)
class TreeSharedConfig(_LevelsConfig):
    """One softmax over all N tokens, whose rows are sums along the path in nested cuts; so are the embedding's."""

    kind: str = "tree-shared"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context != "token":
            raise ValueError("the head tree-shared predicts tokens from tokens: leave head.context=token")

    @property
    def shares_rows(self) -> bool:
        return True


@dataclass(kw_only=True)
class _StageConfig(_ClusterConfig):
    """Settings shared by heads whose second network sees all clusters of an image."""

    context: str = "cluster"
    width: int
    num_heads: int
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context != "cluster":
            raise ValueError(f"the head {self.kind} draws members after the last cluster: set head.context=cluster")
        _check_width(self.width, self.num_heads)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head.dropout must lie in [0, 1), found {self.dropout}")


def _check_width(width: int, num_heads: int) -> None:
    if num_heads < 1 or width < 1 or width % num_heads:
        raise ValueError(f"head.width {width} must be a positive multiple of head.num_heads {num_heads}")


@dataclass(kw_only=True)
class MascRefineConfig(_StageConfig):
    """A cluster, then a member by a small decoder over hidden states and clusters (MASC, G_refine)."""

    kind: str = "masc-refine"
    width: int = 512
    num_heads: int = 4


@dataclass(kw_only=True)
class CtfConfig(_StageConfig):
    """A cluster, then all members at once by a bidirectional network over the clusters (CTF)."""

    kind: str = "ctf"
    num_clusters: int | None = None  # K; None: 512, or N // 2 if that is less
    width: int = 1024
    num_heads: int = 16
    num_layers: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers < 1 or self.width % 4:
            raise ValueError(
                f"head.num_layers must be positive and head.width a multiple of 4, found {self.num_layers} and "
                f"{self.width}"
            )

    def cuts(self, num_tokens: int) -> list[int]:
        return [min(512, num_tokens // 2) if self.num_clusters is None else self.num_clusters]


@dataclass(kw_only=True)
class SubtokenConfig(_ClusterConfig):
    """A cluster, then the rank of a member, by a small transformer over these two sub-tokens (Open-MAGVIT2)."""

    kind: str = "subtoken"
    num_clusters: int | None = None  # K; None: sqrt(N)
    width: int = 512  # Open-MAGVIT2's is the model's
    num_heads: int = 8
    num_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_width(self.width, self.num_heads)
        if self.num_layers < 1:
            raise ValueError(f"head.num_layers must be positive, found {self.num_layers}")

    def cuts(self, num_tokens: int) -> list[int]:
        return [round(num_tokens**0.5) if self.num_clusters is None else self.num_clusters]


@dataclass(kw_only=True)
class BitsConfig(_ClusterConfig):
    """The path in a balanced binary tree, bit by bit. `num_clusters` chooses a clustering that has no tree."""

    kind: str = "bits"
    chain: bool = False  # a bit depends on the bits before it; else the bits are independent (Infinity)


@dataclass(kw_only=True)
class AdaptiveConfig(HeadConfig):
    """torch's adaptive softmax: frequent tokens first. It knows frequency and no geometry: a control."""

    kind: str = "adaptive"
    cutoffs: list[int] = field(default_factory=list)  # ranks at which tails begin; none: N // 4, N // 2
    div_value: float = 4.0  # each tail is narrower than the one before it by this factor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cutoffs != sorted(set(self.cutoffs)) or any(cutoff < 1 for cutoff in self.cutoffs):
            raise ValueError(f"head.cutoffs must be positive and rise, found {self.cutoffs}")
        if self.div_value < 1:
            raise ValueError(f"head.div_value must be 1 or more, found {self.div_value}")

    @property
    def uses_counts(self) -> bool:
        return True


CONFIGS: dict[str, type[HeadConfig]] = {
    "flat": FlatConfig,
    "masc": MascConfig,
    "masc-two-level": MascTwoLevelConfig,
    "masc-tree": MascTreeConfig,
    "masc-refine": MascRefineConfig,
    "tree-shared": TreeSharedConfig,
    "subtoken": SubtokenConfig,
    "bits": BitsConfig,
    "ctf": CtfConfig,
    "adaptive": AdaptiveConfig,
}
