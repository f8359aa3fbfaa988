"""The machine at hand: numeric precision, and processes that wait for one another."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = ("auto", "fp32", "bf16")


def check_precision(precision: str) -> None:
    """Raise ValueError unless `precision` is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")


def resolve_precision(precision: str) -> str:
    """`fp32` or `bf16`; `auto` takes bf16 where the hardware multiplies it natively.

    On a CPU without such instructions bf16 autocast is slower than float32."""
    import torch

    check_precision(precision)
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def patient_accelerator() -> "Accelerator":
    """An Accelerator whose processes wait a day for one another.

    Work that is shared in pieces ends minutes apart on different devices; NCCL's barriers give up after ten."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
