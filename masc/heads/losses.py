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
from torch.autograd.function import once_differentiable
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


def linear_mean_log_prob(hidden: Tensor, weight: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """Sum of log softmax(hidden weight^T) at several choices, times their shares, which have no gradient, float32:
    (*, D), (V, D), (*, S), (*, S) -> (*)."""
    shape = chosen.shape[:-1]
    if shape.numel() * len(weight) <= WHOLE:
        logits = F.linear(hidden, weight).float()
        return ((logits.gather(-1, chosen) - logits.logsumexp(-1, keepdim=True)) * shares).sum(-1)
    choice = AmongMany(chosen.flatten(0, -2), shares.flatten(0, -2))
    return path_log_probs(hidden.flatten(0, -2), [(weight, choice)]).view(shape)


def segment_logsumexp(logits: Tensor, segment_of: Tensor, num_segments: int) -> Tensor:
    """log-sum-exp of the logits of each segment: (M, V), (V,) -> (M, segments), in the type of the logits.

    Each segment is scaled by its own maximum, so none vanishes beside another."""
    index = segment_of.expand_as(logits)
    shape = len(logits), num_segments
    most = logits.new_full(shape, -torch.inf).scatter_reduce(1, index, logits.detach(), "amax")
    sums = logits.new_zeros(shape).index_add(1, segment_of, (logits - most.gather(1, index)).exp())
    return sums.log() + most


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
            values[here], logits = self.judge((hidden[here] @ weight.T).float(), here)
            if gradients is None:
                continue
            if scale is not None:
                logits.mul_(scale[here, None])
            low = logits.to(hidden.dtype)
            _add_product(gradients[0][here], low, weight)
            _add_product(gradients[1], low.T, hidden[here])

    def judge(self, logits: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """`_judge` at the choices of some positions."""
        return _judge(logits, self.chosen[here])


@dataclass(frozen=True, eq=False)
class AmongMany(Among):
    """Several choices among all rows of a matrix, whose log-probabilities are summed by their shares."""

    chosen: Tensor  # (M, S)
    shares: Tensor  # (M, S)

    def judge(self, logits: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """The sums (M,), and the gradient of them in place of the logits: (M, V) float32."""
        chosen, shares = self.chosen[here], self.shares[here]
        own = (logits.gather(-1, chosen) * shares).sum(-1)
        total, weight = logits.logsumexp(-1), shares.sum(-1)
        gradient = logits.sub_(total[:, None]).exp_().mul_(-weight[:, None])
        return own - weight * total, gradient.scatter_add_(-1, chosen, shares)


@dataclass(frozen=True, eq=False)
class AmongChildren:
    """A choice among the children of a node, which are rows of a matrix.

    Positions are grouped by parent, so that the rows of a parent are read once for all its positions; the cost is that
    of the children met, up to rounding of group sizes to powers of two."""

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
        for group in self.table.groups(self.parent, hidden.shape[-1]):
            states, nodes = hidden[group.positions], weight[group.rows]  # (P, M', D), (P, C, D)
            logits = torch.bmm(states, nodes.mT).float().masked_fill_(~group.is_child[:, None], -torch.inf)
            found, logits = _judge(logits, self.place[group.positions])
            values[group.where] = found.flatten()[group.there]
            if gradients is None:
                continue
            ones = group.is_there if scale is None else scale[group.positions] * group.is_there
            low = logits.mul_(ones[..., None]).to(hidden.dtype)
            # Each position and each row stands once in a group, so nothing is added in an open order.
            for gradient, index, product, kept in (
                (gradients[0], group.where, torch.bmm(low, nodes), group.there),
                (gradients[1], group.rows.flatten()[group.child], torch.bmm(low.mT, states), group.child),
            ):
                gradient[index] += product.flatten(0, 1)[kept].to(gradient.dtype)


def path_log_probs(hidden: Tensor, decisions: Sequence[tuple[Tensor, Among | AmongChildren]]) -> Tensor:
    """Log-probability of each decision among the rows of its matrix (R, D): (M, D) -> (M, L) float32.

    It computes in the type of autocast if that is on."""
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
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

    The backward pass scales them if the gradient is one number everywhere, as that of a mean is; otherwise, or the
    second time, it computes them again."""

    @staticmethod
    def forward(ctx, low: torch.dtype, choices: Sequence[Among | AmongChildren], hidden: Tensor, *weights: Tensor):
        ctx.save_for_backward(hidden, *weights)
        ctx.low, ctx.choices = low, choices
        values, ctx.gradients = _run(low, choices, hidden, weights, None, True)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.gradients = ctx.gradients, None
        if kept is not None and _is_uniform(gradient):
            for part in kept:
                part.mul_(gradient[0, 0])
        else:
            hidden, *weights = ctx.saved_tensors
            kept = _run(ctx.low, ctx.choices, hidden, weights, gradient, True)[1]
        return None, None, *kept


def _is_uniform(gradient: Tensor) -> bool:
    """Whether a gradient (M, L) is one number everywhere.

    That of `log_probs.sum()` is one number in memory; for others, as that of `log_probs.mean()`, a GPU waits."""
    strides = zip(gradient.stride(), gradient.shape, strict=True)
    return all(stride == 0 or size == 1 for stride, size in strides) or bool((gradient == gradient[0, 0]).all())


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

    def logits(self, hidden: Tensor, weight: Tensor, parent: Tensor) -> Tensor:
        """Logits of the children of each parent: (M, D), (R, D), (M,) -> (M, V) float32, V the most children.

        Places beyond a parent's children hold the least number: finite, so that guidance, which subtracts logits,
        does not make NaN of them. It has no gradient, and RuntimeError says so where one is wanted: a head whose draws
        use it takes the log-probabilities of `AmongChildren`."""
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            raise RuntimeError(
                "Children.logits has no gradient; override log_probs by path_log_probs and AmongChildren"
            )
        most = int(self.counts[parent].max())
        found = hidden.new_full((len(parent), most), torch.finfo(torch.float32).min, dtype=torch.float32)
        found[:, 0] = 0  # of an only child, which no group holds
        for group in self.groups(parent, hidden.shape[-1]):
            logits = torch.bmm(hidden[group.positions], weight[group.rows].to(hidden.dtype).mT).float()
            logits.masked_fill_(~group.is_child[:, None], torch.finfo(torch.float32).min)
            found[group.where, : logits.shape[-1]] = logits.flatten(0, 1)[group.there]
        return found

    def groups(self, parent: Tensor, width: int) -> Iterator["Group"]:
        """The positions of each parent (M,) with its children. Groups of about equal sizes come together.

        A group takes at most CHUNK numbers, or one position. Parents of one child are left out: their child is certain.
        The groups are made on the host, so a GPU waits once a call."""
        device = parent.device
        parent, counts, firsts = torch.stack([parent, self.counts[parent], self.first[parent]]).cpu()
        order = parent.argsort(stable=True)
        sizes = parent[order].unique_consecutive(return_counts=True)[1]
        starts = sizes.cumsum(0) - sizes
        parents = zip(
            *(each.tolist() for each in (starts, sizes, firsts[order[starts]], counts[order[starts]])), strict=True
        )
        buckets: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        for start, size, first, count in parents:
            most = max(1, CHUNK // (count + width))  # pieces of one parent never come together
            for begin in range(start, start + size if count > 1 else start, most):
                length = min(most, start + size - begin)
                bucket = math.ceil(math.log2(length)), math.ceil(math.log2(count))
                buckets.setdefault(bucket, []).append((begin, length, first, count))
        for pieces in buckets.values():
            longest, most = max(piece[1] for piece in pieces), max(piece[3] for piece in pieces)
            together = max(1, CHUNK // ((longest + most) * width + longest * most))
            for at in range(0, len(pieces), together):
                begin, length, first, count = torch.tensor(pieces[at : at + together]).T[..., None]
                is_there, is_child = torch.arange(longest) < length, torch.arange(most) < count
                positions = order[begin + torch.arange(longest).where(is_there, 0)]
                children = first + torch.arange(most).where(is_child, 0)
                there, child = (mask.flatten().nonzero()[:, 0] for mask in (is_there, is_child))
                parts = positions, is_there, there, positions.flatten()[there], is_child, child
                moved = (part.to(device) for part in parts)
                yield Group(*moved, self.rows[children.to(device)])


@dataclass(frozen=True, eq=False)
class Group:
    """Parents of about equal numbers of positions and children, padded to the largest."""

    positions: Tensor  # (P, M')
    is_there: Tensor  # (P, M'): false where padded
    there: Tensor  # the places of P x M' that are not padded
    where: Tensor  # the positions at those places
    is_child: Tensor  # (P, C): false where padded
    child: Tensor  # the places of P x C that are not padded
    rows: Tensor  # (P, C): the rows of the children
