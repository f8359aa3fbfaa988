"""The stages of an experiment in order: each is skipped if it is done, and the first that fails ends the experiment."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiment_plan import ExperimentConfig, has_codes, missing_weights
from pipeline import script
from words import override
from worker import CONTINUES

from llamagen.evaluation.images import EvalFidConfig
from llamagen.evaluation.lite import unmeasured
from llamagen.evaluation.saved import holds
from llamagen.runs import Run
from llamagen.sampling.draw import is_sampled
from llamagen.sampling.sets import SampleSet
from llamagen.training.config import TrainConfig
from masc.layout import reference_file
from metrics.results import Results
from vq.hub.fetch import fetch


@dataclass(frozen=True)
class Stage:
    """A part of an experiment."""

    name: str
    is_done: Callable[[], bool]
    run: Callable[[], None]


def run_stages(stages: list[Stage]) -> None:
    """Run the stages that are not done, in order, and say which are."""
    for number, stage in enumerate(stages, 1):
        is_done = stage.is_done()
        print(f"[{number}/{len(stages)}] {stage.name}{': done' if is_done else ''}", flush=True)
        if not is_done:
            stage.run()


def call(command: list[str]) -> None:
    """Run a command to its end. If it fails, it has printed why, and this process ends with its status."""
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    finally:
        if process.poll() is None:  # interrupted: a training saves before it ends
            process.terminate()
            process.wait()
    if status:
        print(f"the experiment ends here; {CONTINUES}", file=sys.stderr)
        sys.exit(status if status > 0 else 1)


def stages_of(config: ExperimentConfig) -> list[Stage]:
    """The stages of an experiment."""
    train = config.train_config()
    folders = {"artifacts": config.artifacts}
    tokenizer = [override("tokenizer", config.tokenizer)]
    images = [override("data", config.data), override("data.path", config.data_path)]
    stages = [
        Stage("weights", lambda: not missing_weights(config), lambda: _fetch_all(config)),
        _stage(config, "codebook", train.layout.codebook.exists, [*tokenizer, *_given(folders)]),
        _stage(config, "codes", lambda: has_codes(train), [*images, *tokenizer, *_given(folders)], True),
        *([_tree_stage(config, train)] if train.uses_tree else []),
        _stage(config, "train", lambda: Run(config.directory).is_trained(train), config.train_overrides, True),
    ]
    for name in config.sets:
        is_drawn = lambda name=name: is_sampled(config.sample_config(name))  # noqa: E731
        stages.append(_stage(config, "sample", is_drawn, config.sample_overrides(name), True, f"sample {name}"))
    return stages + (_lite_stages(config) if config.is_lite else _fid_stages(config))


def _given(values: dict[str, object]) -> list[str]:
    return [override(key, value) for key, value in values.items()]


def _stage(
    config: ExperimentConfig,
    name: str,
    is_done: Callable[[], bool],
    overrides: list[str],
    is_launched: bool = False,
    title: str = "",
) -> Stage:
    """The stage of a script; several processes start it if `is_launched`."""
    command = script(name, *overrides)
    if is_launched:
        places = str(config.gpus), "1", "0", "127.0.0.1", config.main_port, config.launch_device
        command = [*script("launch", *places), *command[1:]]
    return Stage(title or name, is_done, lambda: call(command))


def _fetch_all(config: ExperimentConfig) -> None:
    for name in config.weights:
        print(fetch(name, Path(config.folder)), flush=True)


def _tree_stage(config: ExperimentConfig, train: TrainConfig) -> Stage:
    """The tree at the finest cut of the training."""

    def finest() -> int:
        return train.cuts(train.layout.load_codebook().num_tokens)[-1]

    def make() -> None:
        chosen = {"tree": config.tree, "tokenizer_name": config.tokenizer, "head.num_clusters": finest()}
        call(script("tree", *_given(chosen | {"artifacts": config.artifacts})))

    return Stage(f"tree {config.tree}", lambda: train.layout.tree(train.tree, finest()).exists(), make)


def _lite_stages(config: ExperimentConfig) -> list[Stage]:
    return [_stage(config, "eval_lite", lambda: not unmeasured(config.lite_config()), config.lite_overrides)]


def _fid_stages(config: ExperimentConfig) -> list[Stage]:
    stages = []
    if config.reference is not None:
        made = reference_file(Path(config.artifacts), config.reference)
        places = {"extractor.folder": config.folder, "extractor.artifacts": config.artifacts}
        chosen = {"data": config.data, "data.path": config.data_path, "name": config.reference}
        stages.append(_stage(config, "reference", made.exists, _given(chosen | places), True))
    for name in config.sets:
        is_measured = lambda name=name: _is_measured(config, name)  # noqa: E731
        title = f"eval-fid {name}"
        stages.append(_stage(config, "eval_fid", is_measured, config.fid_overrides(name), True, title))
    return stages


def _is_measured(config: ExperimentConfig, name: str) -> bool:
    """Whether there are results of the present samples under every protocol."""
    settings: EvalFidConfig = config.fid_config(name)
    about = SampleSet(Run(config.directory), name).protocol()
    return all(holds(path, about, settings.bootstrap) for path in result_files(config, name).values())


def result_files(config: ExperimentConfig, name: str) -> dict[str, Path]:
    """The files of results of a sample set, by protocol."""
    folder = config.directory / "eval"
    if config.is_lite:
        return {"eval-lite": folder / f"{name}.json"}
    return {protocol: folder / f"{name}-{protocol}.json" for protocol in config.protocols}


def read_curves(config: ExperimentConfig) -> dict[str, dict[float, Results]]:
    """The results by protocol and guidance. Raises InputError if one is missing or damaged."""
    files = {name: result_files(config, name) for name in config.sets}
    protocols = next(iter(files.values()))
    return {
        protocol: {config.sets[name]: Results.load(paths[protocol]) for name, paths in files.items()}
        for protocol in protocols
    }
