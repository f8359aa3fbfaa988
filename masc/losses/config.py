"""Configs of the losses: a class a loss, registered by kind. They need no torch, as those of the heads."""

from dataclasses import dataclass, field

from masc.runtime.files import check_name

ENTROPY_OR_TEMPERATURE = "give loss.entropy or loss.temperature, the other one null"


@dataclass(kw_only=True)
class LossConfig:
    """A loss by name and kind. The kind chooses the class of the config (CONFIGS) and of the loss (LOSSES)."""

    name: str
    kind: str

    def __post_init__(self) -> None:
        check_name(self.name, "loss.name")

    def cuts(self, num_tokens: int) -> list[int]:
        """The numbers of clusters at which the loss cuts the tree of N tokens, coarsest first; none: it reads no
        tree."""
        return []

    @property
    def uses_tree(self) -> bool:
        return bool(self.cuts(2))

    @property
    def near(self) -> int:
        """How many near codes of the encoder's output the loss reads for each token."""
        return 0

    @property
    def noise(self) -> str | None:
        """What replaces some context tokens: `any` token, a member of the `cluster`, a `near` code, or nothing."""
        return None

    @property
    def depends_on_length(self) -> bool:
        """Whether a step of the training depends on the number of all steps."""
        return False


@dataclass(kw_only=True)
class CeConfig(LossConfig):
    """The negative log-likelihood of the fine tokens: cross-entropy."""

    name: str = "ce"
    kind: str = "ce"


@dataclass(kw_only=True)
class _WeightedConfig(LossConfig):
    """A term with a weight."""

    weight: float = 0.5  # at the first step
    until: float | None = 1.0  # the share of training at which the weight has fallen to 0, linearly; null: it stays

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self, "until")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"loss.weight must be 0 or more, found {self.weight}")

    @property
    def depends_on_length(self) -> bool:
        return self.until is not None


def _check_share(config: LossConfig, name: str) -> None:
    value = getattr(config, name)
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"loss.{name} is a share of training in (0, 1], or null, found {value}")


@dataclass(kw_only=True)
class _SoftConfig(_WeightedConfig):
    """Targets of which the true token has 1 - weight, and other tokens the weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight > 1:
            raise ValueError(f"loss.weight is a share of the target, at most 1, found {self.weight}")


@dataclass(kw_only=True)
class LabelSmoothingConfig(_SoftConfig):
    """The weight is spread over all tokens alike (Szegedy et al. 2016). It knows no geometry: a control."""

    kind: str = "label-smoothing"
    weight: float = 0.1
    until: float | None = None


@dataclass(kw_only=True)
class SoftCodesConfig(_SoftConfig):
    """The weight is spread over the nearest other codes of the true one, by softmax of minus squared distance over a
    temperature (DIST2Loss; RQ-Transformer's and SNCE's targets with the code in the place of the encoder's output)."""

    kind: str = "soft-codes"
    neighbours: int = 16  # m
    temperature: float | None = 0.1  # in squared distances of the codebook
    entropy: float | None = None  # nats, mean over tokens, in the place of a temperature
    shuffled: bool = False  # permute the codes, with the same entropies: a control

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise ValueError(f"loss.neighbours must be positive, found {self.neighbours}")
        if (self.temperature is None) == (self.entropy is None):
            raise ValueError(f"{ENTROPY_OR_TEMPERATURE}; found {self.entropy} and {self.temperature}")
        for name in ("temperature", "entropy"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"loss.{name} must be positive, found {value}")


@dataclass(kw_only=True)
class SoftTreeConfig(_SoftConfig):
    """The weight is spread over the true token's clusters at several cuts of the tree, uniformly within each."""

    kind: str = "soft-tree"
    levels: list[int] = field(default_factory=list)  # numbers of clusters, coarsest first; none: N/16, N/8, N/4, N/2
    entropy: float | None = None  # nats, mean over tokens: decides the shares of the cuts; null: equal shares

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels != sorted(set(self.levels)):
            raise ValueError(f"loss.levels must rise from the coarsest cut to the finest, found {self.levels}")

    def cuts(self, num_tokens: int) -> list[int]:
        return list(self.levels) or sorted({max(1, num_tokens // share) for share in (16, 8, 4, 2)})


@dataclass(kw_only=True)
class SoftEncoderConfig(_SoftConfig):
    """The target is a softmax of minus squared distances between the encoder's output before quantisation and its
    nearest codes, over a temperature (RQ-Transformer, all codes; SNCE, the nearest ones). It reads the near codes."""

    kind: str = "soft-encoder"
    weight: float = 1.0
    until: float | None = None
    neighbours: int = 8  # m, at most those of the codes
    temperature: float = 0.5  # RQ-Transformer's, in the units of its codebook
    draw_context: bool = False  # draw the context's tokens from these targets too (`stochastic_codes`)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1 or not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"loss.neighbours and loss.temperature must be positive, found {self.neighbours}, {self.temperature}"
            )

    @property
    def near(self) -> int:
        return self.neighbours

    @property
    def noise(self) -> str | None:
        return "near" if self.draw_context else None


@dataclass(kw_only=True)
class ClusterConfig(_WeightedConfig):
    """Cross-entropy of the token, plus weight times that of its cluster, by the log-sum-exp of its members' logits
    (IAR)."""

    kind: str = "cluster"
    weight: float = 1.0  # lambda
    until: float | None = None
    num_clusters: int | None = None  # K; null: sqrt(N), as IAR's 128 of 16,384

    def cuts(self, num_tokens: int) -> list[int]:
        return [round(num_tokens**0.5) if self.num_clusters is None else self.num_clusters]


@dataclass(kw_only=True)
class _NoisyConfig(LossConfig):
    """Settings of losses whose context is noisy: a context token is replaced with some probability."""

    noise_rate: float = 0.3  # at the first step
    noise_until: float | None = None  # the share of training at which the rate has fallen to 0; null: it stays
    noise_by_image: bool = False  # each image's rate is that times a number in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self, "noise_until")
        if not 0 <= self.noise_rate <= 1:
            raise ValueError(f"loss.noise_rate must lie in [0, 1], found {self.noise_rate}")

    @property
    def depends_on_length(self) -> bool:
        return self.noise_until is not None


@dataclass(kw_only=True)
class ContextNoiseConfig(_NoisyConfig):
    """Cross-entropy under a context in which some tokens are replaced by members of their cluster, or by any token."""

    kind: str = "context-noise"
    within: str = "cluster"  # or `any`: a control
    num_clusters: int | None = None  # K; null: N // 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within not in ("any", "cluster"):
            raise ValueError(f"loss.within must be any or cluster, not {self.within!r}")
        if self.within == "any" and self.num_clusters is not None:
            raise ValueError(
                f"loss.num_clusters is not read with loss.within=any, found {self.num_clusters}; leave it out"
            )

    def cuts(self, num_tokens: int) -> list[int]:
        if self.within == "any":
            return []
        return [num_tokens // 2 if self.num_clusters is None else self.num_clusters]

    @property
    def noise(self) -> str | None:
        return self.within


@dataclass(kw_only=True)
class RearConfig(_NoisyConfig):
    """Cross-entropy plus weight times two regressions onto codebook vectors, under a noisy context (reAR)."""

    kind: str = "rear"
    weight: float = 1.0  # lambda
    width: int = 2048  # of the two MLPs
    encode_block: int = 0  # after this block a state predicts the vector of its own token
    decode_block: int | None = None  # after this one that of the next; null: 3/4 of the depth
    noise_rate: float = 1.0
    noise_until: float | None = 0.75
    noise_by_image: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = self.encode_block, 0 if self.decode_block is None else self.decode_block
        if not 0 <= self.weight < float("inf") or self.width < 1 or min(blocks) < 0:
            raise ValueError(
                "loss.weight, loss.encode_block and loss.decode_block must be 0 or more and loss.width positive, found "
                f"{self.weight}, {self.encode_block}, {self.decode_block}, {self.width}"
            )

    @property
    def noise(self) -> str | None:
        return "any"


CONFIGS: dict[str, type[LossConfig]] = {
    "ce": CeConfig,
    "label-smoothing": LabelSmoothingConfig,
    "soft-codes": SoftCodesConfig,
    "soft-tree": SoftTreeConfig,
    "soft-encoder": SoftEncoderConfig,
    "cluster": ClusterConfig,
    "context-noise": ContextNoiseConfig,
    "rear": RearConfig,
}
