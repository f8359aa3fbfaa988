"""Log-probabilities of choices by a matrix of rows, in little memory.

Small products are computed whole. Large ones are computed in chunks of positions, and their gradients at once with
the values, so that no tensor of positions x rows is kept. torch's own `linear_cross_entropy` does the same; in
float32 on a CPU it takes longer (`make bench-heads` prints both).

Shapes: M positions, D width, V choices, R rows, P parents met, C children."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

WHOLE = 2**24  # numbers of a tensor that is computed whole: 64 MiB of float32
CHUNK = 2**23  # numbers of a chunk


def log_softmax_at(logits: Tensor, chosen: Tensor) -> Tensor:
    """log softmax(logits)[chosen] in float32: (*, V), (*) -> (*)."""
    flat = F.cross_entropy(logits.flatten(0, -2).float(), chosen.flatten(), reduction="none")
    return -flat.view(chosen.shape)


def linear_log_prob(hidden: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    """log softmax(hidden weight^T)[chosen] in float32: (*, D), (V, D), (*) -> (*)."""
    if chosen.numel() * len(weight) <= WHOLE:
        return log_softmax_at(F.linear(hidden, weight), chosen)
    return _LinearLogProb.of(hidden.flatten(0, -2), weight, chosen.flatten()).view(chosen.shape)


def in_chunks(function: Callable[[Tensor, Tensor], Tensor], numbers: int, hidden: Tensor, tokens: Tensor) -> Tensor:
    """function(hidden, tokens), which keeps about `numbers` numbers a row: (M, ...), (M, ...) -> (M, ...).

    Beyond WHOLE numbers it runs on chunks of rows, and runs again in the backward pass instead of keeping them."""
    if len(tokens) * numbers <= WHOLE:
        return function(hidden, tokens)
    size = max(1, CHUNK // numbers)
    parts = zip(hidden.split(size), tokens.split(size), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


class _LogProb(torch.autograd.Function):
    """Base of functions of (type, hidden, weight, ...) whose forward pass computes the gradients too, for ones.

    The backward pass scales them if the gradient is one number at all positions, as that of a mean is; otherwise, or
    the second time, it computes them again. `run` computes in `type` and adds up in float32."""

    @staticmethod
    def run(
        hidden: Tensor,
        weight: Tensor,
        indices: tuple[Tensor, ...],
        values: Tensor,
        gradients: tuple[Tensor, Tensor] | None,
        scale: Tensor | None,
    ) -> None:
        """Fill log-probabilities (M,), and the gradients of hidden states and weight for a gradient `scale` (M,)."""
        raise NotImplementedError

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, *indices: Tensor) -> Tensor:
        """Log-probabilities (M,) float32, in the type of autocast if it is on."""
        kind = hidden.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            return cls.apply(low, hidden, weight, *indices)
        return cls._both(low, (hidden, weight, *indices), None, False)[0]

    @classmethod
    @torch.no_grad()
    def _both(
        cls, low: torch.dtype, inputs: tuple[Tensor, ...], scale: Tensor | None, wanted: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        hidden, weight, *indices = inputs
        values = hidden.new_zeros(len(hidden), dtype=torch.float32)
        gradients = None
        if wanted:
            gradients = torch.zeros_like(hidden, dtype=low), torch.zeros_like(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            cls.run(hidden.to(low), weight.to(low), tuple(indices), values, gradients, scale)
        return values, gradients

    @classmethod
    def forward(cls, ctx, low: torch.dtype, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.low = low
        values, ctx.gradients = cls._both(low, inputs, None, True)
        return values

    @classmethod
    def backward(cls, ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        kept, ctx.gradients = ctx.gradients, None
        if kept is not None and not any(gradient.stride()):
            for part in kept:
                part.mul_(gradient.reshape(-1)[0])
        else:
            kept = cls._both(ctx.low, inputs, gradient.contiguous(), True)[1]
        return None, kept[0].to(inputs[0].dtype), kept[1], *[None] * (len(inputs) - 2)


def _judge(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax at the choices (*), and the gradient of it in place of the logits: (*, V) float32, (*) -> (*)."""
    at = chosen[..., None]
    own = logits.gather(-1, at)[..., 0]
    total = logits.logsumexp(-1)
    gradient = logits.sub_(total[..., None]).exp_().neg_()
    return own - total, gradient.scatter_add_(-1, at, torch.ones_like(at, dtype=gradient.dtype))


class _LinearLogProb(_LogProb):
    @staticmethod
    def run(hidden, weight, indices, values, gradients, scale) -> None:
        (chosen,) = indices
        size = max(1, CHUNK // len(weight))
        for start in range(0, len(hidden), size):
            here = slice(start, start + size)
            values[here], logits = _judge((hidden[here] @ weight.T).float(), chosen[here])
            if gradients is None:
                continue
            if scale is not None:
                logits.mul_(scale[here, None])
            low = logits.to(hidden.dtype)
            torch.mm(low, weight, out=gradients[0][here])
            _add_product(gradients[1], low, hidden[here])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, in the type of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def children_log_prob(hidden: Tensor, weight: Tensor, parent: Tensor, place: Tensor, table: "Children") -> Tensor:
    """log p(child | parent) among the children of each parent, float32: (M, D), (R, D), (M,), (M,) -> (M,).

    `place` is the child's place among its siblings. Positions are grouped by parent, so that the rows of a parent are
    read once for all its positions; the cost is that of the children met, up to rounding of group sizes to powers of
    two. The sizes are read on the host, once a call."""
    return _ChildrenLogProb.of(hidden, weight, parent, place, table.first, table.counts, table.rows)


class Children(torch.nn.Module):
    """The children of nodes as rows of a matrix: those of node p are rows[first[p] : first[p] + counts[p]]."""

    def __init__(self, first: Tensor, counts: Tensor, rows: Tensor):
        super().__init__()
        for name, values in (("first", first), ("counts", counts), ("rows", rows)):
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def logits(self, hidden: Tensor, weight: Tensor, parent: Tensor) -> Tensor:
        """Logits of the children of each parent: (M, D), (R, D), (M,) -> (M, V) float32, V the most children.

        Places beyond a parent's children hold the least number: finite, so that guidance, which subtracts logits,
        does not make NaN of them. Has no gradient: `children_log_prob` has."""
        most = int(self.counts[parent].max())
        found = hidden.new_full((len(parent), most), torch.finfo(torch.float32).min, dtype=torch.float32)
        found[:, 0] = 0  # of an only child, which no group holds
        tables = self.first, self.counts, self.rows
        for positions, is_there, children, is_child in _groups(parent, *tables, hidden.shape[-1]):
            logits = torch.bmm(hidden[positions], weight[children].to(hidden.dtype).mT).float()
            logits.masked_fill_(~is_child[:, None], torch.finfo(torch.float32).min)
            found[positions[is_there], : logits.shape[-1]] = logits[is_there]
        return found


class _ChildrenLogProb(_LogProb):
    @staticmethod
    def run(hidden, weight, indices, values, gradients, scale) -> None:
        parent, place, first, counts, rows = indices
        for positions, is_there, children, is_child in _groups(parent, first, counts, rows, hidden.shape[-1]):
            states, nodes = hidden[positions], weight[children]  # (P, M', D), (P, C, D)
            logits = torch.bmm(states, nodes.mT).float()
            logits.masked_fill_(~is_child[:, None], -torch.inf)
            found, logits = _judge(logits, place[positions])
            where = positions[is_there]
            values[where] = found[is_there]
            if gradients is None:
                continue
            logits.mul_(is_there[..., None] if scale is None else (scale[positions] * is_there)[..., None])
            low = logits.to(hidden.dtype)
            # Each position and each row is in one group only, so nothing is added in an open order.
            gradients[0][where] = torch.bmm(low, nodes)[is_there]
            gradients[1][children[is_child]] = torch.bmm(low.mT, states)[is_child].to(weight.dtype)


def _groups(
    parent: Tensor, first: Tensor, counts: Tensor, rows: Tensor, width: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Positions (P, M') with which of them are there, and rows of children (P, C) with which of them are there.

    Groups of about equal sizes come together, at most CHUNK numbers at once. Parents of one child are left out: their
    child is certain."""
    order = parent.argsort(stable=True)
    parents, sizes = parent[order].unique_consecutive(return_counts=True)
    starts, children = sizes.cumsum(0) - sizes, counts[parents]
    sizes_here, children_here = sizes.tolist(), children.tolist()
    buckets: dict[tuple[int, int], list[int]] = {}
    for index, pair in enumerate(zip(sizes_here, children_here, strict=True)):
        if pair[1] > 1:
            buckets.setdefault(tuple(math.ceil(math.log2(number)) for number in pair), []).append(index)
    for members in buckets.values():
        longest = max(sizes_here[index] for index in members), max(children_here[index] for index in members)
        together = max(1, CHUNK // (sum(longest) * width + longest[0] * longest[1]))
        for start in range(0, len(members), together):
            here = torch.tensor(members[start : start + together], device=parent.device)
            along = torch.arange(longest[0], device=parent.device)
            is_there = along < sizes[here, None]
            positions = order[starts[here, None] + along.where(is_there, 0)]
            along = torch.arange(longest[1], device=parent.device)
            is_child = along < children[here, None]
            yield positions, is_there, rows[first[parents[here], None] + along.where(is_child, 0)], is_child
