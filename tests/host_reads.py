"""A mode in which the host reads no number of a tensor: on a GPU it would wait for it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operations whose result, or its shape, the host needs: it waits for the numbers.
READS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount),
}
BY_MASK = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class NoHostReads(TorchDispatchMode):
    """Inside, an operation raises AssertionError if on a GPU the host would wait for its numbers.

    These are `.item()`, `bool(tensor)`, `nonzero`, `unique`, `bincount`, `masked_select`, `torch.equal`, indices by a
    mask, and `repeat_interleave` without `output_size`. `.tolist()`, `.numpy()` and copies to a CPU leave no trace on a
    CPU, where tensors are read in place: only a test on a GPU sees them."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        packet = function.overloadpacket
        reads = packet in READS
        if packet in BY_MASK:
            reads = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in arguments[1])
        if packet is aten.repeat_interleave:
            reads = named.get("output_size") is None
        assert not reads, f"the host reads a tensor: {function}"
        return function(*arguments, **named)
