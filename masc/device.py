"""Numeric precision of a run on the machine at hand."""

from pathlib import Path

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
