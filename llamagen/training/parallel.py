"""A model on several processes: a whole copy on each (DDP), or a share of it on each (FSDP2).

FSDP2 is torch's `fully_shard`, called here because accelerate offers it on GPUs only, and the tests run on a CPU. Every
block of the backbone is a unit; the rest of the model is one more. Parameters, gradients, the optimizer's state and the
average are sharded. They stay float32, and autocast computes as with DDP, so that the losses are the same."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from llamagen.model import ARModel
from llamagen.training.compute import ComputeConfig


class ParallelModel:
    """A model as the processes train it together. `own` is the model whose parameters the optimizer gets."""

    def __init__(self, model: ARModel, accelerator: Accelerator, compute: ComputeConfig, steps: int):
        """`model` holds the same numbers on every process; it is moved to the process's device, and changed. `steps`
        are those of the run."""
        self.own, self._accelerator = model.to(accelerator.device), accelerator
        is_sharded = compute.parallel == "fsdp" and accelerator.num_processes > 1
        self._skeleton = _without_parameters(model) if is_sharded else None
        if compute.compiles(accelerator.device.type, steps):
            compile_blocks(model.backbone.blocks())
        if compute.recompute:
            for block in model.backbone.blocks():
                recompute(block)
        if is_sharded:
            mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
            # Heads return views, and torch warns of one: a change of it in place would lose FSDP's hooks.
            model.register_forward_hook(lambda _module, _given, log_probs: log_probs.clone())
            for block in model.backbone.blocks():
                fully_shard(block, mesh=mesh)
            self._wrapped: nn.Module = fully_shard(model, mesh=mesh)
        else:
            with warnings.catch_warnings():  # accelerate gives torch the argument by its older name
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._wrapped = accelerator.prepare(model)

    @property
    def is_sharded(self) -> bool:
        return self._skeleton is not None

    def __call__(self, *arguments: Any) -> Tensor:
        """The forward pass of `ARModel`."""
        return self._wrapped(*arguments)

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        """Inside, backward passes add to the gradients; the processes exchange them in the last one of a step.

        A sharded model exchanges them in every one: until then a process holds the whole gradients, unsharded."""
        with contextlib.nullcontext() if is_last or self.is_sharded else self._accelerator.no_sync(self._wrapped):
            yield

    @contextlib.contextmanager
    def whole(self, parameters: dict[str, Tensor] | None = None) -> Iterator[ARModel]:
        """The whole model on every process, in evaluation mode, with its own or other `parameters` by name.

        All processes must enter together. If the model is sharded, the whole one takes its memory until the end;
        otherwise it is the model itself."""
        model = self.own if self._skeleton is None else self._skeleton
        given = dict(self.own.named_parameters()) if parameters is None else parameters
        if model is self.own and parameters is None:
            was_training = model.training
            try:
                yield model.eval()
            finally:
                model.train(was_training)
            return
        kept = {name: value.data for name, value in model.named_parameters()}
        was_training = model.training
        try:
            _set_data(model, {name: whole_tensor(value.detach()) for name, value in given.items()})
            if self.is_sharded:
                for name, buffer in model.named_buffers():
                    buffer.copy_(self.own.get_buffer(name))
            yield model.eval()
        finally:
            _set_data(model, kept)
            model.train(was_training)


def _set_data(model: nn.Module, data: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = data[name]


def _without_parameters(model: ARModel) -> ARModel:
    """A copy of a model whose parameters hold no numbers yet; its buffers do."""
    empty = {id(each): nn.Parameter(each.new_empty(0), requires_grad=each.requires_grad) for each in model.parameters()}
    return copy.deepcopy(model, empty)


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile the forward pass of blocks for training; the code is compiled once for all blocks of a kind.

    Blocks that differ in a constant, as in their rate of `drop_path`, are of different kinds. Parameters keep their
    names. Validation computes as before, whatever the sizes of its batches."""
    limit = torch._dynamo.config.recompile_limit * len(blocks)  # torch counts the kinds of all blocks together
    for block in blocks:
        _compile(block, limit)


def _compile(block: nn.Module, limit: int) -> None:
    plain = block.forward
    compiled = torch.compile(plain, dynamic=False, recompile_limit=limit)

    def forward(*arguments: Any, **named: Any) -> Tensor:
        trains = block.training and torch.is_grad_enabled()
        return (compiled if trains else plain)(*arguments, **named)

    block.forward = forward


def recompute(block: nn.Module) -> None:
    """Let a block keep its inputs only, and compute the rest again for its gradient."""
    forward: Callable[..., Tensor] = block.forward

    def recomputed(*arguments: Any, **named: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    block.forward = recomputed


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded; another tensor as it is. All processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(own: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(own, DTensor):
        there = whole.to(own.device, own.dtype)
        own.copy_(distribute_tensor(there, own.device_mesh, own.placements, src_data_rank=None))
    else:
        own.copy_(whole)
