"""The weights that a run starts from, and whether they fit it.

From a flat model any head starts. From another head its parameters are copied, so they must mean the same there: the
head is of the same kind with the same settings, or it adds a second network to the clusters of `masc`."""

import contextlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from llamagen.backbones.config import BackboneConfig
from llamagen.backbones.embeddings import LabelEmbedding, TokenEmbedding
from llamagen.model import ARModel
from llamagen.release import Release
from llamagen.training.checkpoint import RESTORE, hash_weights, weights_file, without_loss
from llamagen.training.config import TrainConfig, load_config
from llamagen.training.inputs import RunInputs
from masc.heads.config import FlatConfig, HeadConfig
from masc.runtime.codes import CodesMeta, read_meta
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.reading import advising
from masc.runtime.run import differences, flatten, plain, read_provenance, run_facts
from masc.runtime.targets import NAMED
from vq.checkpoint import read_checkpoint
from vq.readers.imagenet import wnids

logger = logging.getLogger(__name__)
INITIAL = "initial weights"  # kind of a parent of a run
OUTPUT = "head.output.weight"  # of a flat model
# Settings of a backbone that neither its shapes nor its function at the end of a training depend on.
FREE = (
    *("model.name", "model.class_dropout", "model.token_dropout", "model.residual_dropout", "model.ffn_dropout"),
    "model.drop_path",
)
# Settings of a head that its parameters do not depend on. The numbers of clusters are compared as cuts.
FREE_OF_HEAD = {"name", "kind", "dropout", "members", "num_clusters", "levels", "depth"}
EXTENDED = {("masc", "masc-refine"), ("masc", "ctf")}  # there, now: kinds whose common settings must be equal


@dataclass(frozen=True)
class Initial:
    """The weights that a run starts from: a release's or a run's."""

    name: str  # as the config names it
    file: Path
    model: BackboneConfig
    head: HeadConfig
    release: Release | None  # None: a run
    resolution: int  # pixels a side of the images of a run; 0: a release
    parents: dict[str, str]  # of a run, kind -> SHA-256
    codes: CodesMeta | None  # of a run; None: they are not there, or were made again

    @property
    def is_flat(self) -> bool:
        return self.head.kind == "flat"

    @property
    def class_names(self) -> list[str] | None:
        """The class of each label; None if they are not known."""
        if self.release:
            return list(wnids()) if self.release.num_classes == len(wnids()) else None
        return self.codes.class_names if self.codes else None

    @cached_property
    def sha256(self) -> str:
        return self.release.weights_sha256 if self.release else hash_weights(self.file.parent)

    def load(self) -> dict[str, Tensor]:
        """The weights under our names, memory-mapped; InputError for a damaged file."""
        if self.release:
            return self.release.load_model().state_dict()
        return without_loss(read_checkpoint(self.file, RESTORE))

    def facts(self) -> dict[str, Any]:
        """What must be equal in a run that starts from these weights, but for the head."""
        found = _model_facts(self.model)
        if self.release:
            shape, tokenizer = self.release.config.shape, self.release.config.tokenizer.name
            return found | {"tokenizer": tokenizer, "tokens": shape.num_tokens, "tokens an image": shape.num_positions}
        found |= {"sha256 of the codebook": self.parents.get("codebook", "unknown")[:12]}
        # One tokenizer gives as many tokens for as many pixels.
        return found | (
            {"tokens an image": self.codes.shape[2]} if self.codes else {"data.resolution": self.resolution}
        )


def _model_facts(model: BackboneConfig) -> dict[str, Any]:
    return flatten({"model": plain(model)}) | {"model has a null condition": model.class_dropout > 0}


def _head_facts(head: HeadConfig, num_tokens: int, parents: dict[str, str]) -> dict[str, Any]:
    """What decides the meaning of the parameters of a head over N tokens, beside its kind."""
    found = {f"head.{key}": value for key, value in plain(head).items() if key not in FREE_OF_HEAD}
    if head.uses_tree:
        tree = parents.get("tree", "unknown")[:12]
        found |= {"sha256 of the tree": tree, "head's cuts": head.cuts(num_tokens)}
    if head.kind == "adaptive":  # orders its rows by how often tokens occur
        found |= {"sha256 of the train codes": parents.get("train codes", "unknown")[:12]}
    return found


def open_initial(init: str | None) -> Initial | None:
    """What a config's `init` names, its file not yet read; None for None.

    Raises InputError if there is neither a release nor a run of that name, or the weights are missing."""
    if init is None:
        return None
    find = NAMED.get("release")
    if find and (release := find(init)) is not None:
        head, source = FlatConfig(name="flat"), Release(release, Path())
        return Initial(init, release.find_weights(), release.model, head, source, 0, {}, None)
    path = Path(init)
    if not (path / "config.yaml").exists():
        problem = f"init={init} names neither a release of configs/release nor a run (no config.yaml in {path})"
        if facts := run_facts(path):
            raise MissingArtifact("run", path, problem, **facts)
        raise InputError(f"{problem}; set INIT to a release, such as c2i_B_256, or to the directory of a run")
    config = load_config(path / "config.yaml")
    with advising("copy it back from where the run was trained"):
        parents = read_provenance(path).parents
    codes, data = _codes_of(config, parents), config.data.resolution
    return Initial(init, weights_file(path), config.model, config.head, None, data, parents, codes)


def _codes_of(config: TrainConfig, parents: dict[str, str]) -> CodesMeta | None:
    """What the training codes of a run say of themselves; None if they are not there, or were made again."""
    with contextlib.suppress(MissingArtifact):
        meta = read_meta(config.layout.codes(config.data.name, "train"))
        return meta if meta.sha256 == parents.get("train codes") else None
    return None


def initial_parents(config: TrainConfig, is_resumed: bool) -> dict[str, str]:
    """The SHA-256 of the initial weights, as a parent of the run; empty for a run without.

    A run that `is_resumed` does not read them: if `init` is left out or not there, they are those that it names."""
    recorded = None
    if is_resumed and (config.directory / "provenance.json").exists():  # else `check_directory` says what is missing
        with advising("copy it back, or choose another directory with RUN_DIR=..."):
            recorded = read_provenance(config.directory).parents.get(INITIAL)
    try:
        initial = open_initial(config.init)
    except InputError as error:
        if recorded is None:
            raise
        logger.info("%s is resumed without its initial weights: %s", config.directory, error)
        initial = None
    if initial is None:
        return {} if recorded is None else {INITIAL: recorded}
    return {INITIAL: initial.sha256}


def check_facts(initial: Initial, config: TrainConfig, inputs: RunInputs) -> None:
    """Raise InputError for initial weights of another backbone, vocabulary, number of tokens an image, or head."""
    shape, there, now = inputs.shape, initial.facts(), _model_facts(config.model)
    now |= {"tokenizer": config.tokenizer_name, "tokens": shape.num_tokens, "tokens an image": shape.num_positions}
    now |= {"sha256 of the codebook": inputs.parents["codebook"][:12], "data.resolution": config.data.resolution}
    now = {key: value for key, value in now.items() if key in there or key.startswith("model.")}
    kinds = initial.head.kind, config.head.kind
    if not initial.is_flat and kinds[0] != kinds[1] and kinds not in EXTENDED:
        there["head"], now["head"] = kinds
    elif not initial.is_flat:
        old = _head_facts(initial.head, shape.num_tokens, initial.parents)
        new = _head_facts(config.head, shape.num_tokens, inputs.parents)
        there |= {key: value for key, value in old.items() if key in new}
        now |= {key: value for key, value in new.items() if key in old}
    if lines := differences(there, now, FREE):
        raise InputError(
            f"the weights of {initial.name} (there) do not fit the run {config.directory} (now):\n{lines}\nChoose "
            "another INIT, or a MODEL, HEAD and DATA that it fits"
        )


def check_shapes(initial: Initial, model: ARModel, config: TrainConfig) -> None:
    """Raise InputError for initial weights with other parameters than `model`, which may be on the meta device."""
    state = initial.load()
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
