"""Decoding with a key-value cache, one token a step in raster order.

Shapes: B images, T positions of tokens, D width."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from llamagen.backbones.base import Decoding
from llamagen.backbones.layers import KVCache
from masc.runtime.reading import reason

logger = logging.getLogger(__name__)
Step = Callable[[Tensor, int, list[KVCache], Tensor | None], Tensor]


class CachedDecoding(Decoding):
    """Images drawn one position a step: T steps of `Transformer.step`."""

    def __init__(self, first: Tensor, step: Step, caches: list[KVCache], mask: Tensor | None):
        """`first` (B, D) predicts the first token; `step` gives the state that predicts the next position from the
        token before it. `mask` (B, 1, S, S) is what each position may see; None: all before it."""
        self._hidden, self._step, self._caches, self._mask = first, step, caches, mask
        self._tokens: list[Tensor] = []

    def predict(self) -> Tensor:
        if self._tokens:
            self._hidden = self._step(self._tokens[-1], len(self._tokens), self._caches, self._mask)
        return self._hidden[:, None]

    def place(self, tokens: Tensor) -> None:
        self._tokens.append(tokens[:, 0])

    def tokens(self) -> Tensor:
        return torch.stack(self._tokens, dim=1)


class CompiledStep:
    """A step compiled by torch.compile, over caches of fixed length that are kept from batch to batch.

    Where torch cannot compile, the plain step runs over the same caches, and one warning says so."""

    fails = False  # whether torch.compile has failed in this process

    def __init__(self, step: Callable[..., Tensor], caches: list[KVCache]):
        self.caches, self._step = caches, step
        self._compiled: Callable[..., Tensor] | None = None
        keys = caches[0].keys
        size = keys.shape[2]
        self._causal = torch.ones(size, size, dtype=torch.bool, device=keys.device).tril()[None, None]

    def _compile(self) -> Callable[..., Tensor]:
        for cache in self.caches:  # CUDA graphs write to fixed addresses only
            torch._dynamo.mark_static_address(cache.keys)
            torch._dynamo.mark_static_address(cache.values)
        mode = "reduce-overhead" if self.caches[0].keys.is_cuda else "default"
        return torch.compile(self._step, mode=mode, fullgraph=True, dynamic=False)

    def __call__(self, tokens: Tensor, position: int, caches: list[KVCache], mask: Tensor | None) -> Tensor:
        inputs = tokens, torch.tensor([position], device=tokens.device), caches, self._causal if mask is None else mask
        if not CompiledStep.fails:
            try:
                self._compiled = self._compiled or self._compile()
                torch.compiler.cudagraph_mark_step_begin()
                return self._compiled(*inputs).clone()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of a compiler, its cache, or a driver: any type
                CompiledStep.fails = True
                logger.warning(
                    "torch.compile failed (%s); drawing goes on without it, more slowly. It needs a C++ compiler such "
                    "as g++, and a place for its files, which TORCHINDUCTOR_CACHE_DIR can name",
                    reason(error),
                )
        return self._step(*inputs)
