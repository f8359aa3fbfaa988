"""All losses by kind, and the one way to build one."""

from masc.losses.base import Loss, Parts
from masc.losses.cluster import ClusterLoss
from masc.losses.config import LossConfig
from masc.losses.plain import LikelihoodLoss
from masc.losses.rear import RearLoss
from masc.losses.soft import SoftCodesLoss, SoftEncoderLoss, SoftTreeLoss

LOSSES: dict[str, type[Loss]] = {  # by kind, as their configs in masc.losses.config.CONFIGS; cross-entropy has none
    "label-smoothing": SoftTreeLoss,
    "soft-codes": SoftCodesLoss,
    "soft-tree": SoftTreeLoss,
    "soft-encoder": SoftEncoderLoss,
    "cluster": ClusterLoss,
    "context-noise": LikelihoodLoss,
    "rear": RearLoss,
}


def build_loss(config: LossConfig, parts: Parts) -> Loss | None:
    """The loss of a config; None for cross-entropy, which is the head's own likelihood.

    Raises InputError for a head or a model that it cannot train, or a cut that the tree does not have."""
    return None if config.kind == "ce" else LOSSES[config.kind].build(config, parts)
