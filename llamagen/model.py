"""Which backbone, head, tree and loss make a model: decided here and nowhere else."""

import numpy as np
import torch
from torch import Tensor, nn

from llamagen.backbones.base import Backbone, DataShape, build_backbone
from llamagen.backbones.config import BackboneConfig
from llamagen.backbones.embeddings import TokenEmbedding
from masc.heads.base import Head
from masc.heads.config import HeadConfig
from masc.heads.registry import build_head
from masc.heads.shared import TreeSharedHead
from masc.losses.base import Given, Loss, Parts
from masc.losses.config import LossConfig
from masc.losses.registry import build_loss
from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, torch_seed
from masc.tree import Clustering


class ARModel(nn.Module):
    """A backbone and a head: the log-probability of an image's tokens. In training a loss may stand beside them."""

    def __init__(self, backbone: Backbone, head: Head, loss: Loss | None = None):
        super().__init__()
        self.backbone, self.head, self.loss = backbone, head, loss

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        mask: Tensor | None = None,
        dropped: Tensor | None = None,
        given: Given | None = None,
    ) -> Tensor:
        """(B, T), condition -> log-probabilities of all decisions (B, T, L); see `Backbone.hidden` and
        `Head.log_probs`. The images that `dropped` (B,) bool marks lose their condition.

        With what is `given` to a loss it returns the terms of that loss, whose sum training maximises."""
        if dropped is not None:
            condition = self.backbone.drop_condition(condition, dropped)
        hidden = self.backbone.hidden(tokens if given is None else given["context"], condition, mask)
        return self.head.log_probs(hidden, tokens) if given is None else self.loss(self.head, hidden, tokens, given)

    def tables(self) -> list[nn.Parameter]:
        """The matrices with a row for each token, cluster or node, of backbone and head."""
        shared = [embedding.shared for embedding in self._embeddings() if embedding.shared is not None]
        return [*self.backbone.tables(), *shared, *self.head.tables()]

    def _embeddings(self) -> list[TokenEmbedding]:
        return [module for module in self.backbone.modules() if isinstance(module, TokenEmbedding)]

    def fold(self) -> None:
        """Turn a model that shares rows along a tree into the flat model of the same distribution; others stay."""
        if isinstance(self.head, TreeSharedHead):
            self.head = self.head.folded()
        for embedding in self._embeddings():
            embedding.fold()


def build_model(
    model: BackboneConfig,
    head: HeadConfig,
    shape: DataShape,
    tree: Clustering | None,
    seed: int,
    counts: np.ndarray | None = None,
    loss: LossConfig | None = None,
    vectors: np.ndarray | None = None,
) -> ARModel:
    """The model of a run, initialised from `seed`; the backbone's first weights do not depend on the head, nor those of
    both on the loss.

    `tree` is the whole tree, `counts` (N,) how often each token occurs in training; heads that read none take None.
    `loss` trains the model, and reads `vectors` (N, d), the codebook; without it the head's likelihood does. Raises
    InputError for a class that is not a backbone, or that cannot drop conditions as its config asks, and for a head or
    a backbone that the loss cannot train."""
    built = build_head(head, model.dim, shape.num_tokens, tree, counts)
    context = tree.cut(head.cuts(shape.num_tokens)[-1]) if head.shows_clusters else None
    embedding = TokenEmbedding(shape.num_tokens, model.dim, context)
    backbone = build_backbone(model, embedding, shape)
    if model.class_dropout and not backbone.has_null:
        raise InputError(
            f"{model.name} has no null condition, so model.class_dropout={model.class_dropout} cannot drop conditions; "
            "set model.class_dropout=0"
        )
    generator = torch.Generator().manual_seed(seed)
    backbone.initialise(generator)
    built.initialise(generator)
    if head.shares_rows:
        embedding.share([tree.cut(k) for k in head.cuts(shape.num_tokens)])
    beside = None
    if loss is not None:
        beside = build_loss(loss, Parts(built, model.dim, vectors, tree, backbone.blocks()))
    if beside is not None:
        beside.initialise(torch.Generator().manual_seed(torch_seed(seed, Purpose.LOSS)))
    return ARModel(backbone, built, beside)


def count_parameters(model: ARModel) -> int:
    """Numbers learned, embeddings and head included. What a loss learns for itself is left out: nothing reads it after
    training."""
    return sum(parameter.numel() for part in (model.backbone, model.head) for parameter in part.parameters())
