"""Variables of the environment that would change a result: what the config decides is not left to the shell."""

import logging
import os
from fnmatch import fnmatchcase

logger = logging.getLogger(__name__)
# Variables of accelerate that say where a process runs. Its others say how to compute.
PLACE = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE")
COMPUTE = (
    "ACCELERATE_*",  # precision, accumulation, compilation, sharding
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_EMULAT*"),  # precision of matrix products
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "XLA_USE_BF16", "XLA_DOWNCAST_BF16"),
    *("PYTORCH_TUNABLEOP_*", "TORCH_BLAS_PREFER_*", "TORCH_LINALG_PREFER_*", "TORCH_CUDNN_*"),  # choice of a kernel
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",  # lets a file of weights run code
)
UNSET = ("", "0", "1", "no", "none", "false", "default")  # values of accelerate's variables that ask for nothing


def pin_environment() -> None:
    """Remove from this process's environment what libraries would compute by, and warn of what asked for something.

    Some libraries read these variables when they are imported, some when they start, some later; accelerate prefers
    them to its arguments. Processes that are started later inherit the same environment."""
    names = [name for name in os.environ if any(fnmatchcase(name, pattern) for pattern in COMPUTE)]
    values = {name: os.environ.pop(name) for name in names if name not in PLACE}
    asked = {name for name, value in values.items() if not (_is_accelerates(name) and value.lower() in UNSET)}
    if asked:
        logger.warning("ignoring %s of the environment: the config decides how to compute", ", ".join(sorted(asked)))


def _is_accelerates(name: str) -> bool:
    return name.startswith("ACCELERATE_")  # its launcher sets many to what they are without it
