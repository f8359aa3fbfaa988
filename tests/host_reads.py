"""A mode in which the host reads no number of a tensor: on a GPU it would wait for it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class NoHostReads(TorchDispatchMode):
    """Inside, `.item()`, `bool(tensor)`, `.tolist()` and indices by a mask raise AssertionError."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        assert function not in READS, f"the host reads a tensor: {function}"
        return function(*arguments, **(named or {}))
