"""Inputs of a run: codes, conditions and the tree, checked to belong together."""

from dataclasses import dataclass
from pathlib import Path

from llamagen.backbones.base import DataShape
from llamagen.conditions.images import Conditions, Labels, check_features, check_text_model, open_captions
from llamagen.training.config import TrainConfig
from masc.runtime.artifacts import InputError
from masc.runtime.codes import Codes, load_codes
from masc.tree import Clustering


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, checked to belong together."""

    train: Codes
    held_out: Codes
    conditions: dict[str, Conditions]  # by split: train, val
    tree: Clustering | None
    parents: dict[str, str]  # kind -> SHA-256

    @property
    def shape(self) -> DataShape:
        return DataShape(self.train.num_tokens, len(self.train.class_names), self.train.num_positions)


def load_inputs(config: TrainConfig) -> RunInputs:
    """Codes, tree and their hashes. Raises InputError naming what is missing, in the order to make it."""
    check_text_model(config.model, config.captions)
    layout, missing = config.layout, []
    make_codes = f"make codes DATA={config.data.name} TOKENIZER={config.tokenizer_name}"
    codebook = layout.load_codebook() if layout.codebook.exists() else None
    if codebook is None:
        missing.append((layout.codebook, f"make codebook TOKENIZER={config.tokenizer_name}"))
    for split in ("train", "val"):
        if not (layout.codes(config.data.name, split) / "meta.json").exists():
            missing.append((layout.codes(config.data.name, split), make_codes))
    if config.head.uses_tree and codebook is not None:
        num_clusters = config.head.cuts(codebook.num_tokens)[-1]
        path = layout.tree(config.tree, num_clusters)
        if not path.exists():
            missing.append((path, layout.how_to_make(config.tree, num_clusters)))
    elif config.head.uses_tree:
        make_tree = f"make tree TREE={config.tree.name} TOKENIZER={config.tokenizer_name}"
        missing.append((layout.codebook.parent / "trees", make_tree))
    if codebook is None or missing:
        files = ", ".join(str(path) for path, _ in missing)
        commands = dict.fromkeys(command for _, command in missing)
        raise InputError(f"training needs {files}, which are missing; make them with " + " && ".join(commands))
    train, held_out = (
        load_codes(layout.codes(config.data.name, split), codebook.meta.sha256, make_codes)
        for split in ("train", "val")
    )
    for codes, split in ((train, "train"), (held_out, "val")):
        views = config.data.views(split).names
        if codes.tokens.shape[1] != len(views):
            raise InputError(
                f"data.crops is {config.data.crops}, {len(views)} view(s) of an image, but "
                f"{layout.codes(config.data.name, split)} holds {codes.tokens.shape[1]}; remake it with `{make_codes}`"
            )
    parents = {"codebook": codebook.meta.sha256, "train codes": train.sha256, "val codes": held_out.sha256}
    conditions: dict[str, Conditions] = {"train": Labels(train.labels), "val": Labels(held_out.labels)}
    if config.captions is not None:
        for split, codes in (("train", train), ("val", held_out)):
            path = layout.codes(config.data.name, split)
            conditions[split] = open_captions(path, codes, Path(config.captions) / split)
            check_features(config.model, conditions[split].features, Path(config.captions) / split)
            parents[f"{split} captions"] = conditions[split].features.sha256
    tree = None
    if config.head.uses_tree:
        tree, parents["tree"] = layout.load_tree(config.tree, config.head.cuts(codebook.num_tokens), codebook)
    return RunInputs(train, held_out, conditions, tree, parents)
