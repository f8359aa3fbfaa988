"""LlamaGen's own checkpoints, and ours: in by name, out in their layout.

Our parameters have the released names below `backbone.`, except that the output matrix belongs to the head. Released
files hold them below `model` (DDP) or bare (FSDP); those of a user's own LlamaGen training also hold an optimizer, an
`ema` copy and the command line (FoundationVision/LlamaGen ce98ec4, train_c2i.py, train_c2i_fsdp.py)."""

import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor

from llamagen.backbones.gpt import Transformer
from llamagen.model import ARModel
from masc.heads.flat import FlatHead
from masc.heads.masc import MascHead
from masc.runtime.errors import InputError
from masc.runtime.files import replacing, save_torch
from vq.checkpoint import CONTAINERS, find_state, load_state, read_checkpoint

EXPORTED = (FlatHead, MascHead)  # a subclass may have other parameters
LAYER = re.compile(r"backbone\.layers\.(\d{1,4})\.")
RELEASED = re.compile(r"(?:c2i|t2i)_\w+_(\d+)\.pt")  # the resolution in a released file's name


def our_name(official: str) -> str:
    """`layers.0.attention.wo.weight` -> `backbone.layers.0...`; `output.weight` -> `head.output.weight`."""
    return f"head.{official}" if official == "output.weight" else f"backbone.{official}"


def official_name(ours: str) -> str:
    """The inverse of `our_name`."""
    return ours.removeprefix("backbone.").removeprefix("head.")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names.

    KV caches are buffers of the released class: a state dict saved after sampling has them, and these are skipped."""
    return {our_name(name): value for name, value in state.items() if ".kv_cache." not in name}


def official_state(model: ARModel) -> dict[str, Tensor]:
    """The weights under the released names; InputError for a backbone or head that LlamaGen's layout cannot hold.

    A `masc` model is a LlamaGen whose vocabulary are the K clusters. A `tree-shared` model must be folded."""
    _check_backbone(model)
    if type(model.head) not in EXPORTED:
        raise InputError(
            "LlamaGen's layout holds one output matrix as a head, and this model has a "
            f"{type(model.head).__name__}; export a run of the head flat, masc or tree-shared"
        )
    state = {official_name(name): value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    rows, predicted = len(state["tok_embeddings.weight"]), len(state["output.weight"])
    if rows != predicted:
        raise InputError(
            f"LlamaGen's layout has one vocabulary; this model embeds {rows} tokens, and its "
            f"{type(model.head).__name__} predicts {predicted} clusters. Export a run with head.context=cluster"
        )
    return state


def _check_backbone(model: ARModel) -> None:
    if not isinstance(model.backbone, Transformer):
        raise InputError(
            "LlamaGen's layout holds LlamaGen's transformer only, and this model is a "
            f"{type(model.backbone).__name__}; choose a run of a LlamaGen model"
        )


def save_official(model: ARModel, path: Path) -> None:
    """Write `{"model": state dict}`, what LlamaGen's samplers load."""
    state = official_state(model)
    with replacing(path) as temporary:
        save_torch(temporary, {"model": state})


def load_official(model: ARModel, path: Path, use_ema: bool = False) -> None:
    """Load a checkpoint of LlamaGen from `path`, DDP or FSDP layout, whole.

    `use_ema` takes the averaged copy that a user's own training may hold; released files have none. Raises InputError
    for a file that is missing, truncated, holds code, or belongs to another size, vocabulary, condition or grid."""
    path = Path(path)
    _check_backbone(model)
    checkpoint = read_checkpoint(path)
    if use_ema and "ema" not in checkpoint:
        raise InputError(f"{path} holds no averaged weights (`ema`); leave out use_ema")
    state = find_state(checkpoint, path, ("ema",) if use_ema else CONTAINERS)
    grid, why = claimed_grid(checkpoint, state, path, model.backbone.num_condition)
    if grid is not None and grid != model.backbone.grid:
        here = model.backbone.grid
        raise InputError(
            f"{path} was trained on {grid} x {grid} tokens ({why}), the model here has {here} x {here}. The weights "
            "would load, since no shape depends on the grid, and draw nonsense; choose the grid they are for"
        )
    load_state(model, rename(state), path, lambda found: _cause(found, model))


def claimed_grid(
    checkpoint: dict[str, Any], state: dict[str, Tensor], path: Path, num_condition: int
) -> tuple[int | None, str]:
    """Tokens a side that a checkpoint was trained on, and where it says so; None if it does not."""
    arguments = vars(found) if isinstance(found := checkpoint.get("args"), Namespace) else {}
    pixels, downsample = arguments.get("image_size"), arguments.get("downsample_size", 16)
    if isinstance(pixels, int) and isinstance(downsample, int) and downsample > 0:
        return pixels // downsample, "its own arguments"
    for name, cache in state.items():
        # (B, H, P + T rounded up to a multiple of 8, E)
        if name.endswith("kv_cache.k_cache") and cache.ndim == 4 and cache.shape[2] >= num_condition:
            return math.isqrt(cache.shape[2] - num_condition), "the length of its key-value cache"
    named = RELEASED.fullmatch(path.name)
    return (int(named[1]) // 16, "its name") if named else (None, "")


def _cause(found: dict[str, Tensor], model: ARModel) -> str | None:
    """Why a state dict under our names does not fit, in words; None if nothing plain is wrong."""
    config, own = model.backbone.config, model.state_dict()
    is_text = any(".cap_proj." in name for name in found)
    if is_text != (config.condition == "text"):
        kinds = {True: "text", False: "class"}
        return f"It is {kinds[is_text]}-conditional, the model here {config.condition}-conditional: set model.condition"
    table = "backbone.tok_embeddings.weight"
    if table not in found or found[table].ndim != 2:
        return "It is no LlamaGen transformer (a tokenizer's weights?)"
    layers = 1 + max((int(place[1]) for place in map(LAYER.match, found) if place), default=-1)
    if (layers, found[table].shape[1]) != (config.num_layers, config.dim):
        return (
            f"It has {layers} layers of width {found[table].shape[1]}, {config.name} has {config.num_layers} of "
            f"{config.dim}: choose another MODEL"
        )
    if len(found[table]) != len(own[table]):
        return f"Its vocabulary has {len(found[table])} tokens, the tokenizer or clusters here {len(own[table])}"
    classes = "backbone.cls_embedding.embedding_table.weight"
    if classes in found and found[classes].ndim == 2 and found[classes].shape != own[classes].shape:
        return f"It knows {len(found[classes])} classes, the null class included, the data here {len(own[classes])}"
    return None
