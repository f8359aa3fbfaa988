"""Diagnostics of a training beside its likelihood: entropy, accuracy, used choices, spread of gradients.

They change nothing in the training: `diagnostics=false` leaves them out and gives the same weights. Every validation
logs, under these names (i counts the decisions of the head from 0; a decision that is not learned, or that has one
possible choice, does not count):

| name | meaning |
|---|---|
| `val/level_{i}_nats` | share of decision i in `val/nats_per_token`; of heads with several decisions, on all images |
| `val/level_{i}_accuracy` | share of positions at which the most probable choice is the right one |
| `val/level_{i}_entropy` | entropy of the distribution over ln(possible choices): 1 if uniform, 0 if certain |
| `val/accuracy`, `val/entropy` | those of decision 0, which every head has: such as a token, cluster or bit |
| `val/used_choices` | share of the choices of decision 0 that are the most probable one at some position |
| `val/gradient_variance`, `val/gradient_noise` | of micro-batches of training images: see `gradient_spread` |

HISTOGRAM in the run's directory holds how often each choice of decision 0 is the most probable one, and is right.
They are choices, not codes, if the head makes several decisions.

All but the first come from at most INSPECTED held-out images, spread over all, along the right path.

Shapes: I images, T positions, M positions of all images, D width, L decisions, V choices."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.func import functional_call

from llamagen.training.inputs import RunInputs
from llamagen.training.likelihood import evaluate, on_device
from masc.heads.base import Follow, Head
from masc.runtime.files import replacing
from masc.runtime.npy import save_npy
from masc.runtime.run import HISTOGRAM
from masc.runtime.streams import Purpose, random_stream

INSPECTED = 256  # held-out images
MICRO_BATCHES, MICRO_BATCH = 4, 4  # gradients that are compared, and images of each


class Inspect(Follow):
    """A pick that keeps four numbers of each decision: possible choices, entropy (0..1), likeliest and given choice.

    A decision that is not learned has no choices."""

    def __call__(self, logits: Tensor) -> Tensor:
        choices = (logits > torch.finfo(logits.dtype).min).sum(-1)
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1) / choices.clamp(min=2).log()
        return self.take(lambda given: torch.stack([choices, entropy, logits.argmax(-1), given], dim=-1))

    def uniform(self, sizes: Tensor) -> Tensor:
        return self.take(lambda given: torch.zeros(len(given), 4, device=given.device))

    def fixed(self, logits: Tensor) -> Tensor:
        return self.uniform(logits[:, 0])


class Inspection:
    """Watches a validation: what `Inspect` keeps of every decision at every position of some images."""

    def __init__(self, num_images: int):
        """At most INSPECTED of `num_images` images, spread evenly."""
        count = min(INSPECTED, num_images)
        self.rows = np.arange(count) * num_images // count  # (I,)
        self.parts: list[tuple[Tensor, Tensor]] = []  # places in `rows` and (B, T, L, 4) of this process
        self.histogram: np.ndarray | None = None  # (2, V): of decision 0, after `metrics`

    def __call__(self, head: Head, rows: np.ndarray, hidden: Tensor, tokens: Tensor) -> None:
        (places,) = np.nonzero((self.rows >= rows[0]) & (self.rows <= rows[-1]))
        if len(places):
            own = torch.from_numpy(self.rows[places] - rows[0]).to(hidden.device)
            self.parts.append((torch.from_numpy(places).to(own), head.follow(hidden[own], tokens[own], Inspect)))

    def metrics(self, accelerator: Accelerator, num_positions: int, num_decisions: int) -> dict[str, float]:
        """Metrics of the decisions; every process calls this and gets those of all images."""
        total = torch.zeros(len(self.rows), num_positions, num_decisions, 4, device=accelerator.device)
        for places, part in self.parts:
            total[places] = part
        row = {}
        for level, decision in enumerate(accelerator.reduce(total, "sum").double().flatten(0, 1).unbind(1)):
            choices, entropy, likeliest, given = decision[decision[:, 0] > 1].unbind(1)
            if not len(choices):
                continue
            found = {"accuracy": (likeliest == given).double().mean().item(), "entropy": entropy.mean().item()}
            row |= {f"val/level_{level}_{name}": value for name, value in found.items()}
            if level == 0:
                row |= {f"val/{name}": value for name, value in found.items()}
                most = int(choices.max())
                counts = [each.long().bincount(minlength=most) for each in (likeliest, given)]
                self.histogram = torch.stack(counts).cpu().numpy().astype(np.uint32)
                row["val/used_choices"] = float((self.histogram[0] > 0).mean())
        return row


def gradient_spread(accelerator: Accelerator, model: torch.nn.Module, inputs: RunInputs, seed: int) -> dict[str, float]:
    """How far the gradients g_i of G = MICRO_BATCHES micro-batches lie from their mean g.

    `val/gradient_variance` is sum_i |g_i - g|^2 / (G - 1): the trace of their covariance. `val/gradient_noise` is
    mean_i |g_i - g|^2 / |g|^2, left out if g is zero: scale-free, but where noise prevails it is G - 1 for every model.
    Both definitions are ours. MASC shows a gradient variance; the texts of the paper that we have do not define it.

    g_i is the gradient of the mean nats per token of MICRO_BATCH training images (first view, first caption, dropout
    off) with respect to all trained parameters. The images depend on the seed only.

    The gradients belong to aliases of the parameters, so that those of the optimizer, and the hooks of a model that
    several processes train, see nothing. Norms are enough: sum_i |g_i - g|^2 = sum_i |g_i|^2 - G |g|^2."""
    own = accelerator.unwrap_model(model)
    codes, was_training = inputs.train, own.training
    own.eval()
    aliases = {name: each.detach().requires_grad_() for name, each in own.named_parameters() if each.requires_grad}
    norms: list[Tensor] = []
    for alias in aliases.values():
        alias.register_hook(lambda gradient: norms.append(torch.linalg.vector_norm(gradient)))
    seen = inputs.seen
    images = seen[random_stream(seed, Purpose.GRADIENTS).integers(len(seen), size=(MICRO_BATCHES, MICRO_BATCH))]
    for rows in images:
        tokens = torch.from_numpy(codes.read(rows, 0))
        batch = on_device(accelerator, tokens, *inputs.conditions["train"].batch(rows))
        with torch.enable_grad(), accelerator.autocast():
            loss = -functional_call(own, aliases, tuple(batch)).sum(-1).mean()
        loss.backward()
    own.train(was_training)
    sums = [torch.linalg.vector_norm(alias.grad) for alias in aliases.values() if alias.grad is not None]
    mean = torch.stack(sums).double().square().sum().item() / MICRO_BATCHES**2
    apart = max(0.0, torch.stack(norms).double().square().sum().item() - MICRO_BATCHES * mean)
    noise = {"val/gradient_noise": apart / MICRO_BATCHES / mean} if mean > 0 else {}
    return {"val/gradient_variance": apart / (MICRO_BATCHES - 1), **noise}


def diagnose(
    accelerator: Accelerator, model: torch.nn.Module, inputs: RunInputs, seed: int, directory: Path
) -> dict[str, float]:
    """`evaluate` and the diagnostics; the main process adds those of gradients and writes HISTOGRAM to `directory`."""
    inspection = Inspection(inputs.held_out.num_images)
    row = evaluate(accelerator, model, inputs, inspection)
    row |= inspection.metrics(
        accelerator, inputs.held_out.num_positions, accelerator.unwrap_model(model).head.num_decisions
    )
    if not accelerator.is_main_process:
        return row
    if inspection.histogram is not None:
        with replacing(directory / HISTOGRAM) as temporary:
            save_npy(temporary, inspection.histogram)
    return row | gradient_spread(accelerator, model, inputs, seed)
