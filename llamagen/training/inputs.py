"""Inputs of a run: codes, conditions and the tree, checked to belong together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llamagen.backbones.base import DataShape
from llamagen.conditions.images import (
    Conditions,
    Labels,
    check_features,
    check_text_model,
    encoder_override,
    open_captions,
)
from llamagen.training.config import TrainConfig
from llamagen.training.subset import PartOfConditions, divide_groups, part_of
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import Codes, has_codes, token_counts
from masc.runtime.errors import MissingArtifact, naming
from masc.runtime.groups import Groups
from masc.tree import Clustering


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, checked to belong together."""

    train: Codes
    held_out: Codes
    conditions: dict[str, Conditions | PartOfConditions]  # by split: train, val
    tree: Clustering | None
    parents: dict[str, str]  # kind -> SHA-256
    counts: np.ndarray | None = None  # (N,): how often each token occurs in training, for heads that read it
    groups: np.ndarray | None = None  # of the training codes, that the run sees; None: all
    vectors: np.ndarray | None = None  # (N, d) of the codebook

    @property
    def shape(self) -> DataShape:
        return DataShape(self.train.num_tokens, len(self.train.class_names), self.train.num_positions)

    @property
    def seen(self) -> np.ndarray:
        """The rows of the training codes that the run sees."""
        return np.arange(self.train.num_images) if self.groups is None else rows_of(self.train, self.groups)


def rows_of(codes: Codes, groups: np.ndarray) -> np.ndarray:
    """The rows of all images of some groups."""
    return np.flatnonzero(np.isin(codes.groups, groups))


def load_inputs(config: TrainConfig, codebook: Codebook | None = None) -> RunInputs:
    """Codes, tree and their hashes; `codebook` is the run's if it is loaded already.

    Raises MissingArtifact with everything that is missing, in the order to make it."""
    check_text_model(config.model, config.captions)
    layout, missing = config.layout, []
    if codebook is None and layout.codebook.exists():
        codebook = layout.load_codebook()
    if codebook is None:
        missing.append(layout.missing_codebook())
    for split in ("train", "val"):
        if not has_codes(layout.codes(config.data.name, split)):
            missing.append(layout.missing_codes(config.data.name, split))
    if config.uses_tree and codebook is not None:
        cuts = config.cuts(codebook.num_tokens)
        layout.check_cuts(config.tree, cuts, codebook)
        num_clusters = cuts[-1]
        if not layout.tree(config.tree, num_clusters).exists():
            missing.append(layout.missing_tree(config.tree, num_clusters))
    elif config.uses_tree:
        owner = config.head if config.head.uses_tree else config.loss
        missing.append(layout.missing_tree(config.tree, getattr(owner, "num_clusters", None)))
    if codebook is None or missing:
        problem = f"training needs what is missing: {', '.join(str(error.path) for error in missing)}"
        raise MissingArtifact.all_of(problem, missing)
    train, held_out = (layout.load_codes(config.data.name, split, codebook) for split in ("train", "val"))
    for codes, split in ((train, "train"), (held_out, "val")):
        views = config.data.views(split).names
        if codes.tokens.shape[1] != len(views):
            path = layout.codes(config.data.name, split)
            raise MissingArtifact(
                "codes",
                path,
                f"data.crops is {config.data.crops}, {len(views)} view(s) of an image, but {path} holds "
                f"{codes.tokens.shape[1]}",
                data=config.data.name,
                tokenizer=config.tokenizer_name,
            )
    if config.loss.near:
        with naming(data=config.data.name, tokenizer=config.tokenizer_name):
            train.require_near(config.loss.near)
    parents = {"codebook": codebook.meta.sha256, "train codes": train.sha256, "val codes": held_out.sha256}
    if config.loss.near:
        parents["near codes"] = train.near_sha256
    conditions: dict[str, Conditions | PartOfConditions] = {
        "train": Labels(train.labels),
        "val": Labels(held_out.labels),
    }
    if config.captions is not None:
        for split, codes in (("train", train), ("val", held_out)):
            path = layout.codes(config.data.name, split)
            with naming(overrides=encoder_override(config.model)):
                conditions[split] = open_captions(path, codes, Path(config.captions) / split)
            check_features(config.model, conditions[split].features, Path(config.captions) / split)
            parents[f"{split} captions"] = conditions[split].features.sha256
    tree = None
    if config.uses_tree:
        tree, parents["tree"] = layout.load_tree(config.tree, cuts, codebook)
    groups = None
    if config.train_share < 1 or config.tuning_share:
        of_groups = Groups(train.groups)
        groups, tuning = divide_groups(len(of_groups), config.train_share, config.tuning_share)
        if config.tuning_share:
            images = of_groups.first()[tuning]
            held_out, conditions["val"] = part_of(train, images), PartOfConditions(conditions["train"], images)
    seen = None if groups is None else rows_of(train, groups)
    counts = token_counts(train, seen) if config.head.uses_counts else None
    return RunInputs(train, held_out, conditions, tree, parents, counts, groups, codebook.vectors)
