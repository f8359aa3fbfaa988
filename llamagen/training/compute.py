"""How a run is computed: none of it changes a result beyond rounding."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

PARALLEL = ("ddp", "fsdp")
SWITCH = ("auto", "on", "off")
WORTH_COMPILING = 1000  # steps; compiling takes a minute or so, and saves some hundredths of a second a step


@dataclass(kw_only=True)
class ComputeConfig:
    """Switches of a training's computation. `auto` is on where it pays."""

    parallel: str = "ddp"  # ddp: a whole model on every process; fsdp: a share of it (FSDP2), for XXL, 3B and larger
    recompute: bool = False  # activations of a block are computed again for its gradient, to save memory
    compile: str = "auto"  # torch.compile of the blocks in training; auto: on a GPU, for 1,000 steps and more
    tf32: str = "auto"  # products of float32 numbers on a GPU in TF32; auto: in a bf16 run
    read_ahead: str = "auto"  # a thread reads the next batches; auto: on a GPU, as a CPU's cores have work already
    other_shares: bool = False  # resume with other dropout masks, where those depend on processes and micro-batches
    background_save: str = "auto"  # write a checkpoint while training goes on; auto: if it has 256 MiB or more

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise ValueError(f"compute.parallel must be one of {', '.join(PARALLEL)}, found {self.parallel!r}")
        for name in ("compile", "tf32", "read_ahead", "background_save"):
            if getattr(self, name) not in SWITCH:
                raise ValueError(f"compute.{name} must be one of {', '.join(SWITCH)}, found {getattr(self, name)!r}")

    def compiles(self, device: str, steps: int) -> bool:
        """Whether blocks are compiled on a kind of device (`cpu`, `cuda`) for a run of as many steps."""
        return is_on(self.compile, device == "cuda" and steps >= WORTH_COMPILING)

    def reads_ahead(self, device: str) -> bool:
        """Whether a thread reads the next batches for a kind of device."""
        return is_on(self.read_ahead, device == "cuda")


def is_on(switch: str, pays: bool) -> bool:
    return switch == "on" or (switch == "auto" and pays)


@contextlib.contextmanager
def float32_products(switch: str, precision: str) -> Iterator[None]:
    """Inside, a GPU multiplies float32 numbers in TF32 if the switch `compute.tf32` says so for a precision."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_on(switch, precision == "bf16")
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
