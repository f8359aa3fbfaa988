"""Memory and arithmetic of a training step, found by a step on tensors that hold no numbers.

torch's FakeTensorMode runs the code itself (backbone, head, loss, optimizer) on shapes and types, so that a model of
any size takes seconds. Each storage is counted from its first tensor to its last one. Matrix products are counted by
torch's FlopCounterMode: for a LlamaGen transformer 6 FLOPs for each weight of a matrix and position, and 12 L D S^2 an
image for attention (PaLM, Chowdhery et al. 2022, App. B; all S x S scores count, as there).

The attention is torch's fused one, as on a GPU. Compiled blocks keep less than what is counted here."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from llamagen.backbones.dropout import key_dropouts, place_table
from llamagen.backbones.layers import rope_table
from llamagen.model import ARModel
from llamagen.training.optim import OptimConfig, build_optimizers
from masc.heads.flat import FlatHead


@dataclass(frozen=True)
class StepCost:
    """Bytes of a step of some images on one device, without an average and other processes."""

    weights: int  # parameters
    gradients: int  # of the parameters that are trained
    state: int  # of the optimizer
    work: int  # most beyond weights and state: activations, gradients as they come, temporaries
    activations: int  # most beyond weights, state and gradients


class Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that operations return, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._gradients: set[int] = set()
        self.now = self.peak = 0
        self.others = self.peak_of_others = 0  # without gradients

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        out = function(*arguments, **(named or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes()
        weakref.finalize(storage, self._drop, key)
        self.now, self.others = self.now + size, self.others + size
        self.peak, self.peak_of_others = max(self.peak, self.now), max(self.peak_of_others, self.others)

    def _drop(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.now -= size
        if key in self._gradients:
            self._gradients.discard(key)
        else:
            self.others -= size

    def count_as_gradient(self, parameter: nn.Parameter) -> None:
        key = parameter.grad.untyped_storage()._cdata
        if key not in self._gradients:
            self._gradients.add(key)
            self.others -= self._sizes[key]

    def restart(self) -> None:
        """Forget the peaks before."""
        self.peak, self.peak_of_others = self.now, self.others


@contextlib.contextmanager
def without_numbers() -> Iterator[Ledger]:
    """Inside, tensors have shapes only, and their bytes are counted."""
    ledger = Ledger()
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), ledger:
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # when a module is copied
            yield ledger
    finally:
        for table in (rope_table, place_table):
            table.cache_clear()  # it holds tables without numbers


def inputs_of(model: ARModel, images: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, condition and mask of as many images, without meaning."""
    config = model.backbone.config
    tokens = torch.zeros(images, model.backbone.num_positions, dtype=torch.int64)
    if config.condition == "class":
        return tokens, torch.zeros(images, dtype=torch.int64), None
    mask = torch.ones(images, config.caption_tokens, dtype=torch.bool)
    return tokens, torch.zeros(images, config.caption_tokens, config.caption_dim), mask


def measure_step(
    build: Callable[[], ARModel],
    optim: OptimConfig,
    images: int,
    precision: str,
    attention: SDPBackend = SDPBackend.FLASH_ATTENTION,
) -> StepCost:
    """The cost of a step of the model that `build` makes, in `precision` fp32 or bf16."""
    with without_numbers() as ledger:
        model = build().train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(ledger.count_as_gradient)
        weights, gradients = bytes_of(model.parameters()), bytes_of(trained)
        optimizers = build_optimizers(model, optim, fused=True)
        for _ in range(2):  # the first step makes the state of the optimizer
            ledger.restart()
            held = ledger.now
            step_of(model, optimizers, optim, images, precision, attention)
        state = _state_of(optimizers)
    return StepCost(weights, gradients, state, ledger.peak - held, ledger.peak_of_others - held)


def measure_state(build: Callable[[], ARModel], optim: OptimConfig) -> tuple[int, int]:
    """Bytes of the weights of the model that `build` makes, and of the state of its optimizer."""
    with without_numbers():
        model = build().train()
        optimizers = build_optimizers(model, optim, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        for optimizer in optimizers:
            optimizer.step()
        return bytes_of(model.parameters()), _state_of(optimizers)


def _state_of(optimizers: list[torch.optim.Optimizer]) -> int:
    return bytes_of(value for each in optimizers for kept in each.state.values() for value in kept.values())


def step_of(
    model: ARModel,
    optimizers: list[torch.optim.Optimizer],
    optim: OptimConfig,
    images: int,
    precision: str,
    attention: SDPBackend,
) -> None:
    tokens, condition, mask = inputs_of(model, images)
    key_dropouts(model, np.zeros(images, np.uint64), tokens.device)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), sdpa_kernel(attention):
        log_probs = model(tokens, condition, mask)
    (-log_probs.sum() / tokens.numel()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def measure_evaluation(build: Callable[[], ARModel], images: int, precision: str) -> tuple[int, int]:
    """Bytes beyond the weights, and FLOPs, of the likelihood of some images."""
    with without_numbers() as ledger:
        model = build().eval()
        ledger.restart()
        held = ledger.now
        with FlopCounterMode(display=False) as counter:
            given = inputs_of(model, images)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                model(*given)
    return ledger.peak - held, counter.get_total_flops()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def is_measurable(build: Callable[[], ARModel], images: int) -> bool:
    """Whether the loss of as many images depends on shapes alone; that of some heads, as of `masc-two-level`, depends
    on which tokens there are."""
    try:
        measure_evaluation(build, images, "fp32")
    except (DataDependentOutputException, DynamicOutputShapeException):
        return False
    return True


def with_flat_head(build: Callable[[], ARModel]) -> ARModel:
    """The model with a flat head of as many weights in place of its own.

    It takes more memory and arithmetic than a head that reads only the rows that it needs."""
    model = build()
    weights = sum(parameter.numel() for parameter in model.head.parameters())
    width = model.backbone.config.dim
    model.head = FlatHead(width, max(-(-weights // width), model.head.num_tokens))
    return model
