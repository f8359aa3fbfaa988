"""Warm start: the first weights of a run from a released model, or from another run (docs/warm-start.md).

From a flat model every tensor of the same name and shape is copied. A token embedding of K clusters takes the mean of
its tokens' rows, classes of other data take the row of the null class, and the head makes its own rows
(`Head.start_from`). From another head all tensors are copied. What may start from what stands in `initial.py`.

Shapes: B images, T positions, M positions of all images, D width, N tokens, K clusters."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamagen.backbones.embeddings import LabelEmbedding, TokenEmbedding
from llamagen.model import ARModel, build_model
from llamagen.training.config import TrainConfig
from llamagen.training.initial import OUTPUT, Initial, check_facts, check_shapes, open_initial
from llamagen.training.inputs import RunInputs
from llamagen.training.stream import CodeStream, caption_choices
from masc.heads.warm import COPIED, FlatStart
from masc.runtime.errors import InputError
from masc.runtime.files import write_json
from vq.checkpoint import load_state

logger = logging.getLogger(__name__)
STATES = 8192  # M: training positions that rows are fitted on
BATCH = 16  # images whose hidden states are computed together
NEW, MEAN, NULL = "new", "mean of members", "row of the null class"


def check_start(config: TrainConfig, inputs: RunInputs, is_resumed: bool) -> None:
    """Raise InputError for `frozen` parameters that the model does not have, and for initial weights of another
    backbone, vocabulary, grid or head.

    Nothing is written. Weights are memory-mapped, and their shapes and a few values looked at. A run that `is_resumed`
    reads no initial weights."""
    initial = None if is_resumed else open_initial(config.init)
    if initial is None and not config.frozen:
        return
    if initial is not None:
        check_facts(initial, config, inputs)
    with torch.device("meta"):
        model = build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts)
    freeze(model, config.frozen)
    if initial is not None:
        check_shapes(initial, model, config)


def freeze(model: ARModel, frozen: list[str]) -> None:
    """Do not train the parameters below each name in `frozen`, as `backbone.layers.0` or `head.output.weight`.

    Raises InputError for a name that no parameter has, and if nothing would be trained."""
    for prefix in frozen:
        below = [value for name, value in model.named_parameters() if f"{name}.".startswith(f"{prefix}.")]
        if not below:
            parts = dict.fromkeys(_part(name) for name, _ in model.named_parameters())
            raise InputError(f"frozen={prefix} is the name of no parameter; the names begin with {', '.join(parts)}")
        for value in below:
            value.requires_grad_(False)
    if not any(value.requires_grad for value in model.parameters()):
        raise InputError(f"frozen={frozen} leaves nothing to train; leave out the part that is to be trained")


def start_warm(config: TrainConfig, model: ARModel, inputs: RunInputs) -> dict[str, Any]:
    """Give a new model, on the device where rows are fitted, the weights that `config.init` names.

    Returns the record of what was copied, made and left out, by parameter, and a remark on classes copied by number."""
    initial = open_initial(config.init)
    state, own = initial.load(), model.state_dict()
    taken = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    if initial.is_flat:
        taken = {name: value for name, value in taken.items() if not name.startswith("head.")}
    made, classes = dict.fromkeys(own, NEW) | dict.fromkeys(taken, COPIED), None
    for name, module in model.named_modules():
        table = f"{name}.weight"
        if isinstance(module, TokenEmbedding) and made[table] == NEW:
            taken[table], made[table] = cluster_means(state[table].to(own[table]), module, inputs), MEAN
        table = f"{name}.embedding_table.weight"
        if isinstance(module, LabelEmbedding) and made[table] == COPIED:
            classes = _other_classes(initial, inputs.train.class_names)
        elif isinstance(module, LabelEmbedding) and module.has_null:
            taken[table], made[table] = state[table][-1:].expand_as(own[table]), NULL
    load_state(model, own | taken, initial.file)
    left = set(state) - set(taken)
    if initial.is_flat:
        rows = state[OUTPUT].to(next(model.parameters()))
        flat = FlatStart(rows, lambda: _hidden_states(config, model, state, inputs))
        by_head = model.head.start_from(flat)
        made |= {f"head.{name}": how for name, how in by_head.items()}
        left -= {OUTPUT} if by_head else set()
    source = {"init": initial.name, "sha256": initial.sha256}
    return source | {"parameters": made, "left out": sorted(left), "classes": classes}


def _other_classes(initial: Initial, names: list[str]) -> str | None:
    """What is to be said of classes that are copied by number; None if those of the run have the same names."""
    there = initial.class_names
    if there is None or len(there) != len(names):
        return f"copied by number; the names of the classes of {initial.name} are not known"
    if there == names:
        return None
    pairs = [(old, new) for old, new in zip(there, names, strict=True) if old != new]
    (old, new), count = pairs[0], len(pairs)
    return f"copied by number; {count} of {len(names)} have other names, as {old!r:.80} there and {new!r:.80} now"


def cluster_means(rows: Tensor, embedding: TokenEmbedding, inputs: RunInputs) -> Tensor:
    """The mean row of each cluster's tokens, weighted by how often they occur if that is known: (N, D) -> (K, D)."""
    weights = torch.ones(len(rows)) if inputs.counts is None else torch.from_numpy(inputs.counts + 1.0).float()
    weights = weights.to(rows)[:, None]
    cluster_of, zeros = embedding.cluster_of, rows.new_zeros(len(embedding.weight), rows.shape[1])
    return zeros.index_add(0, cluster_of, rows * weights) / zeros[:, :1].index_add(0, cluster_of, weights)


@torch.no_grad()
def _hidden_states(
    config: TrainConfig, model: ARModel, state: dict[str, Tensor], inputs: RunInputs
) -> tuple[Tensor, Tensor]:
    """Hidden states at M training positions with token ids in the context, as the flat model has, and with the model's
    own context: (M, D) each. Dropout is off."""
    was_training = model.training
    model.eval()
    with _flat_context(model, state):
        flat = _states(config, model, inputs)
    own = _states(config, model, inputs)
    model.train(was_training)
    return flat, own


def _states(config: TrainConfig, model: ARModel, inputs: RunInputs) -> Tensor:
    count = -(-STATES // inputs.shape.num_positions)
    stream = CodeStream(inputs.train, config.seed, count, inputs.groups)
    device, found = next(model.parameters()).device, []
    for start in range(0, count, BATCH):
        part = slice(start, start + BATCH)
        choices = caption_choices(config.seed, 0, part, count)
        condition, mask = inputs.conditions["train"].batch(stream.images(0, part), choices)
        mask = None if mask is None else mask.to(device)
        tokens = stream.tokens(0, part).to(device)
        found.append(model.backbone.hidden(tokens, condition.to(device), mask).float().flatten(0, 1))
    return torch.cat(found)


@contextlib.contextmanager
def _flat_context(model: ARModel, state: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the context of the model holds token ids, embedded as in the flat model."""
    tables = {name: module for name, module in model.named_modules() if isinstance(module, TokenEmbedding)}
    kept = [(module, module.weight, module.cluster_of) for module in tables.values()]
    for name, module in tables.items():
        module.weight, module.cluster_of = nn.Parameter(state[f"{name}.weight"].to(module.weight)), None
    try:
        yield
    finally:
        for module, weight, cluster_of in kept:
            module.weight, module.cluster_of = weight, cluster_of


def record_start(record: dict[str, Any], directory: Path) -> None:
    """Write init.json to a run's directory, and log it as a short table: parts of the model, or single parameters."""
    write_json(directory / "init.json", record)
    parts: dict[str, set[str]] = {}
    for name, how in record["parameters"].items():
        parts.setdefault(_part(name), set()).add(how)
    rows: dict[str, dict[str, None]] = {}
    for name, how in record["parameters"].items():
        rows.setdefault(how, {})[_part(name) if len(parts[_part(name)]) == 1 else name] = None
    rows |= {"left out": dict.fromkeys(record["left out"])} if record["left out"] else {}
    width = max(map(len, rows))
    lines = "".join(f"\n  {how:{width}}  {', '.join(names)}" for how, names in rows.items())
    logger.info("%s starts from %s (%s):%s", directory, record["init"], record["sha256"][:12], lines)
    if record["classes"]:
        logger.warning("%s: classes are %s", directory, record["classes"])


def _part(name: str) -> str:
    """The part of the model that a parameter belongs to, as `backbone.layers`."""
    return ".".join(name.split(".")[:2])
