"""Warm start: the first weights of a run from a released model, or from another run (docs/warm-start.md).

From a flat model every tensor of the same name and shape is copied. A token embedding of K clusters takes the mean of
its tokens' rows, classes of other data take the row of the null class, and the head makes its own rows
(`Head.start_from`). From another head all of its tensors must fit.

Shapes: B images, T positions, M positions of all images, D width, N tokens, K clusters."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamagen.backbones.config import BackboneConfig
from llamagen.backbones.embeddings import LabelEmbedding, TokenEmbedding
from llamagen.model import ARModel, build_model
from llamagen.release import Release
from llamagen.training.checkpoint import RESTORE, hash_weights, weights_file
from llamagen.training.config import TrainConfig, load_config
from llamagen.training.inputs import RunInputs
from llamagen.training.stream import CodeStream, caption_choices
from masc.heads.config import FlatConfig, HeadConfig
from masc.heads.warm import COPIED, FlatStart
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import write_json
from masc.runtime.run import differences, flatten, plain, read_provenance, run_facts
from masc.runtime.targets import NAMED
from vq.checkpoint import load_state, read_checkpoint

logger = logging.getLogger(__name__)
INITIAL = "initial weights"  # kind of a parent of a run
STATES = 8192  # M: training positions that rows are fitted on
BATCH = 16  # images whose hidden states are computed together
NEW, MEAN, NULL = "new", "mean of members", "row of the null class"
OUTPUT = "head.output.weight"  # of a flat model
# Settings of a backbone that neither its shapes nor its function at the end of a training depend on.
FREE = (
    *("model.name", "model.class_dropout", "model.token_dropout", "model.residual_dropout", "model.ffn_dropout"),
    "model.drop_path",
)


@dataclass(frozen=True)
class Initial:
    """The weights that a run starts from: a release's or a run's."""

    name: str  # as the config names it
    file: Path
    model: BackboneConfig
    head: HeadConfig
    release: Release | None  # None: a run
    parents: dict[str, str]  # of a run, kind -> SHA-256

    @property
    def is_flat(self) -> bool:
        return self.head.kind == "flat"

    @cached_property
    def sha256(self) -> str:
        return self.release.weights_sha256 if self.release else hash_weights(Path(self.name))

    def load(self) -> dict[str, Tensor]:
        """The weights under our names; InputError for a damaged file."""
        return self.release.load_model().state_dict() if self.release else read_checkpoint(self.file, RESTORE)

    def facts(self, num_tokens: int) -> dict[str, Any]:
        """What must be equal in a run over N tokens that starts from these weights."""
        found = _model_facts(self.model)
        if self.release:
            return found | {"tokenizer": self.release.config.tokenizer.name, "tokens": self.release.config.num_tokens}
        found |= {"sha256 of the codebook": self.parents.get("codebook", "unknown")[:12]}
        return found if self.is_flat else found | _tree_facts(self.head, num_tokens, self.parents)


def _model_facts(model: BackboneConfig) -> dict[str, Any]:
    return flatten({"model": plain(model)}) | {"model has a null condition": model.class_dropout > 0}


def _tree_facts(head: HeadConfig, num_tokens: int, parents: dict[str, str]) -> dict[str, Any]:
    """What two heads over one tree share."""
    if not head.uses_tree:
        return {"head": head.kind}
    return {
        "sha256 of the tree": parents.get("tree", "unknown")[:12],
        "head's cuts": head.cuts(num_tokens),
        "context holds clusters": head.shows_clusters,
    }


def open_initial(init: str | None) -> Initial | None:
    """What a config's `init` names, its file not yet read; None for None.

    Raises InputError if there is neither a release nor a run of that name, or the weights are missing."""
    if init is None:
        return None
    find = NAMED.get("release")
    if find and (release := find(init)) is not None:
        head, source = FlatConfig(name="flat"), Release(release, Path())
        return Initial(init, release.find_weights(), release.model, head, source, {})
    path = Path(init)
    if not (path / "config.yaml").exists():
        problem = f"init={init} names neither a release of configs/release nor a run (no config.yaml in {path})"
        if facts := run_facts(path):
            raise MissingArtifact("run", path, problem, **facts)
        raise InputError(f"{problem}; set INIT to a release, such as c2i_B_256, or to the directory of a run")
    config, parents = load_config(path / "config.yaml"), read_provenance(path).parents
    return Initial(init, weights_file(path), config.model, config.head, None, parents)


def initial_parents(init: str | None) -> dict[str, str]:
    """The SHA-256 of the initial weights, as a parent of the run; empty for None."""
    initial = open_initial(init)
    return {} if initial is None else {INITIAL: initial.sha256}


def check_start(config: TrainConfig, inputs: RunInputs, is_resumed: bool) -> None:
    """Raise InputError for `frozen` parameters that the model does not have, and for initial weights of another
    backbone, vocabulary or head. Nothing is allocated or written. A run that `is_resumed` reads no initial weights."""
    initial = None if is_resumed else open_initial(config.init)
    if initial is None and not config.frozen:
        return
    if initial is not None:
        _check_facts(initial, config, inputs)
    with torch.device("meta"):
        model = build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts)
    freeze(model, config.frozen)
    if initial is not None:
        _check_shapes(initial, initial.load(), model, config)


def _check_facts(initial: Initial, config: TrainConfig, inputs: RunInputs) -> None:
    now = _model_facts(config.model) | _tree_facts(config.head, inputs.shape.num_tokens, inputs.parents)
    now |= {"head": config.head.kind, "tokenizer": config.tokenizer_name, "tokens": inputs.shape.num_tokens}
    now |= {"sha256 of the codebook": inputs.parents["codebook"][:12]}
    there = initial.facts(inputs.shape.num_tokens)
    keys = [key for key in now if key in there or key.startswith("model.")]
    if lines := differences(there, {key: now[key] for key in keys}, FREE):
        raise InputError(
            f"the weights of {initial.name} (there) do not fit the run {config.directory} (now):\n{lines}\nChoose "
            "another INIT, or a MODEL, HEAD and DATA that it fits"
        )


def _check_shapes(initial: Initial, state: dict[str, Tensor], model: ARModel, config: TrainConfig) -> None:
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wanted = {name: shape for name, shape in own.items() if name.startswith("backbone.")}
    rows = model.head.num_tokens, config.model.dim
    wanted |= {OUTPUT: rows} if initial.is_flat else {name: own.get(name) for name in state}
    for name, module in model.named_modules():
        if isinstance(module, LabelEmbedding):
            table = f"{name}.embedding_table.weight"
            classes = len(state[table]) if table in state else own[table][0]  # may be others
            wanted[table] = (classes, config.model.dim)
        elif isinstance(module, TokenEmbedding) and initial.is_flat:
            wanted[f"{name}.weight"] = rows
            wanted.pop(f"{name}.shared", None)
    for name, shape in wanted.items():
        found = tuple(state[name].shape) if name in state else None
        if found != shape:
            advice = "use a flat run, or one whose head has the same parameters" if not initial.is_flat else "copy it"
            raise InputError(
                f"{initial.file} has {name} {found or '(missing)'}, and a run of {config.head.name} needs "
                f"{shape or 'none'}; {advice}"
            )


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

    Returns the record of what was copied, made and left out, by parameter."""
    initial = open_initial(config.init)
    state, own = initial.load(), model.state_dict()
    taken = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    if initial.is_flat:
        taken = {name: value for name, value in taken.items() if not name.startswith("head.")}
    made = dict.fromkeys(own, NEW) | dict.fromkeys(taken, COPIED)
    for name, module in model.named_modules():
        table = f"{name}.weight"
        if isinstance(module, TokenEmbedding) and made[table] == NEW:
            taken[table], made[table] = cluster_means(state[table].to(own[table]), module, inputs), MEAN
        table = f"{name}.embedding_table.weight"
        if isinstance(module, LabelEmbedding) and made[table] == NEW and module.has_null:
            taken[table], made[table] = state[table][-1:].expand_as(own[table]), NULL
    load_state(model, own | taken, initial.file)
    left = set(state) - set(taken)
    if initial.is_flat:
        rows = state[OUTPUT].to(next(model.parameters()))
        flat = FlatStart(rows, lambda: _hidden_states(config, model, state, inputs))
        by_head = model.head.start_from(flat)
        made |= {f"head.{name}": how for name, how in by_head.items()}
        left -= {OUTPUT} if by_head else set()
    return {"init": initial.name, "sha256": initial.sha256, "parameters": made, "left out": sorted(left)}


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
    stream = CodeStream(inputs.train, config.seed, count)
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


def _part(name: str) -> str:
    """The part of the model that a parameter belongs to, as `backbone.layers`."""
    return ".".join(name.split(".")[:2])
