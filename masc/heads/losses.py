"""Log-probabilities of choices by a matrix of rows, in little memory.

Small products are computed whole. Large ones are computed in chunks of positions, and their gradients at once with
the values, so that no tensor of positions x rows is kept. torch's own `linear_cross_entropy` does the same; in
float32 on a CPU it takes longer (`make bench-heads` prints both).

Shapes: M positions, D width, V choices, R rows, P parents met, C children."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
    return path_log_probs(hidden.flatten(0, -2), [(weight, Among(chosen.flatten()))]).view(chosen.shape)


def in_chunks(function: Callable[[Tensor, Tensor], Tensor], numbers: int, hidden: Tensor, tokens: Tensor) -> Tensor:
    """function(hidden, tokens), which keeps about `numbers` numbers a row: (M, ...), (M, ...) -> (M, ...).

    Beyond WHOLE numbers it runs on chunks of rows, and runs again in the backward pass instead of keeping them."""
    if len(tokens) * numbers <= WHOLE:
        return function(hidden, tokens)
    size = max(1, CHUNK // numbers)
    parts = zip(hidden.split(size), tokens.split(size), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


@dataclass(frozen=True, eq=False)
class Among:
    """A choice among all rows of a matrix."""

    chosen: Tensor  # (M,)

    def run(
        self,
        hidden: Tensor,
        weight: Tensor,
        values: Tensor,
        gradients: tuple[Tensor, Tensor] | None,
        scale: Tensor | None,
    ) -> None:
        """Fill log-probabilities (M,), and add the gradients of hidden states and weight for a gradient `scale` (M,);
        None: ones."""
        size = max(1, CHUNK // len(weight))
        for start in range(0, len(hidden), size):
            here = slice(start, start + size)
            values[here], logits = _judge((hidden[here] @ weight.T).float(), self.chosen[here])
            if gradients is None:
                continue
            if scale is not None:
                logits.mul_(scale[here, None])
            low = logits.to(hidden.dtype)
            _add_product(gradients[0][here], low, weight)
            _add_product(gradients[1], low.T, hidden[here])


@dataclass(frozen=True, eq=False)
class AmongChildren:
    """A choice among the children of a node, which are rows of a matrix.

    Positions are grouped by parent, so that the rows of a parent are read once for all its positions; the cost is that
    of the children met, up to rounding of group sizes to powers of two. The sizes are read on the host, once a call."""

    table: "Children"
    parent: Tensor  # (M,)
    place: Tensor  # (M,): of the child among its siblings

    def run(
        self,
        hidden: Tensor,
        weight: Tensor,
        values: Tensor,
        gradients: tuple[Tensor, Tensor] | None,
        scale: Tensor | None,
    ) -> None:
        """As `Among.run`."""
        for positions, is_there, children, is_child in self.table.groups(self.parent, hidden.shape[-1]):
            states, nodes = hidden[positions], weight[children]  # (P, M', D), (P, C, D)
            logits = torch.bmm(states, nodes.mT).float().masked_fill_(~is_child[:, None], -torch.inf)
            found, logits = _judge(logits, self.place[positions])
            where = positions[is_there]
            values[where] = found[is_there]
            if gradients is None:
                continue
            logits.mul_(is_there[..., None] if scale is None else (scale[positions] * is_there)[..., None])
            low = logits.to(hidden.dtype)
            # Each position and each row is in one group only, so nothing is added in an open order.
            gradients[0][where] += torch.bmm(low, nodes)[is_there].to(gradients[0].dtype)
            gradients[1][children[is_child]] = torch.bmm(low.mT, states)[is_child].to(gradients[1].dtype)


def path_log_probs(hidden: Tensor, decisions: Sequence[tuple[Tensor, Among | AmongChildren]]) -> Tensor:
    """Log-probability of each decision among the rows of its matrix (R, D): (M, D) -> (M, L) float32.

    It computes in the type of autocast if that is on."""
    kind = hidden.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    weights, choices = zip(*decisions, strict=True)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, *weights)):
        return _PathLogProbs.apply(low, choices, hidden, *weights)
    return _run(low, choices, hidden, weights, None, False)[0]


@torch.no_grad()
def _run(
    low: torch.dtype,
    choices: Sequence[Among | AmongChildren],
    hidden: Tensor,
    weights: Sequence[Tensor],
    scale: Tensor | None,
    wanted: bool,
) -> tuple[Tensor, list[Tensor] | None]:
    """Values (M, L), and the gradients of hidden states and weights, if wanted, for a gradient `scale` (M, L)."""
    values = hidden.new_zeros(len(choices), len(hidden), dtype=torch.float32)
    gradients = [torch.zeros_like(tensor) for tensor in (hidden, *weights)] if wanted else None
    states = hidden.to(low)
    with torch.autocast(hidden.device.type, enabled=False):
        for index, (choice, weight) in enumerate(zip(choices, weights, strict=True)):
            both = (gradients[0], gradients[index + 1]) if gradients else None
            choice.run(states, weight.to(low), values[index], both, None if scale is None else scale[:, index])
    return values.T, gradients


class _PathLogProbs(torch.autograd.Function):
    """The forward pass computes the gradients too, for ones.

    The backward pass scales them if the gradient is one number everywhere, as that of a mean is (a GPU waits for this
    comparison once a call); otherwise, or the second time, it computes them again."""

    @staticmethod
    def forward(ctx, low: torch.dtype, choices: Sequence[Among | AmongChildren], hidden: Tensor, *weights: Tensor):
        ctx.save_for_backward(hidden, *weights)
        ctx.low, ctx.choices = low, choices
        values, ctx.gradients = _run(low, choices, hidden, weights, None, True)
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.gradients = ctx.gradients, None
        if kept is not None and bool((gradient == gradient[0, 0]).all()):
            for part in kept:
                part.mul_(gradient[0, 0])
        else:
            hidden, *weights = ctx.saved_tensors
            kept = _run(ctx.low, ctx.choices, hidden, weights, gradient, True)[1]
        return None, None, *kept


def _judge(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax at the choices (*), and the gradient of it in place of the logits: (*, V) float32, (*) -> (*)."""
    at = chosen[..., None]
    own = logits.gather(-1, at)[..., 0]
    total = logits.logsumexp(-1)
    gradient = logits.sub_(total[..., None]).exp_().neg_()
    return own - total, gradient.scatter_add_(-1, at, torch.ones_like(at, dtype=gradient.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, in the type of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


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
        does not make NaN of them. Has no gradient: `AmongChildren` has."""
        most = int(self.counts[parent].max())
        found = hidden.new_full((len(parent), most), torch.finfo(torch.float32).min, dtype=torch.float32)
        found[:, 0] = 0  # of an only child, which no group holds
        for positions, is_there, children, is_child in self.groups(parent, hidden.shape[-1]):
            logits = torch.bmm(hidden[positions], weight[children].to(hidden.dtype).mT).float()
            logits.masked_fill_(~is_child[:, None], torch.finfo(torch.float32).min)
            found[positions[is_there], : logits.shape[-1]] = logits[is_there]
        return found

    def groups(self, parent: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Positions (P, M') with which of them are there, and rows of children (P, C) with which of them are there.

        Groups of about equal sizes come together, at most CHUNK numbers at once. Parents of one child are left out:
        their child is certain."""
        order = parent.argsort(stable=True)
        parents, sizes = parent[order].unique_consecutive(return_counts=True)
        starts, children = sizes.cumsum(0) - sizes, self.counts[parents]
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
                yield (
                    positions,
                    is_there,
                    self.rows[self.first[parents[here], None] + along.where(is_child, 0)],
                    is_child,
                )
