"""How a run is computed: none of it changes a result beyond rounding."""

from dataclasses import dataclass

PARALLEL = ("ddp", "fsdp")
SWITCH = ("auto", "on", "off")


@dataclass(kw_only=True)
class ComputeConfig:
    """Switches of a training's computation. `auto` is on where it pays."""

    parallel: str = "ddp"  # ddp: a whole model on every process; fsdp: a share of it (FSDP2), for XXL, 3B and larger
    recompute: bool = False  # activations of a block are computed again for its gradient, to save memory
    other_shares: bool = False  # resume with other dropout masks, where those depend on processes and micro-batches
    background_save: str = "auto"  # write a checkpoint while training goes on; auto: if it has 256 MiB or more

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise ValueError(f"compute.parallel must be one of {', '.join(PARALLEL)}, found {self.parallel!r}")
        if self.background_save not in SWITCH:
            raise ValueError(
                f"compute.background_save must be one of {', '.join(SWITCH)}, found {self.background_save!r}"
            )
