"""The main job: eight stages from images to the report.

A stage is skipped if its output is there and was made from the same inputs, so the same command continues after an
interruption. Runs share the CPU, with one process and one thread each."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from jobs import Job, default_workers, run_jobs
from tqdm import tqdm
from words import override

from llamagen.evaluation.lite import EvalLiteConfig, unmeasured
from llamagen.runs import Run
from llamagen.sampling.draw import is_sampled
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig
from llamagen.training.config import TrainConfig
from masc.build import TreeConfig
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import has_codes
from masc.runtime.errors import InputError, naming
from masc.runtime.run import read_metrics
from masc.tree import Partition, Tree
from metrics.tokenizer import TokenizerTest
from reports.reproduction import ReportInputs, write_report
from reports.runs import RunRecord
from vq.codebook import make_codebook
from vq.codes.extract import extract_codes
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pretrained import load_tokenizer
from vq.readers import load_images

STAGES = ("images", "codebook", "codes", "trees", "train", "sample", "measure", "report")


@dataclass(kw_only=True)
class RunsConfig:
    """The runs of a job: heads by seeds, on one model and one data set."""

    tokenizer: TokenizerConfig
    model: str = "llamagen-tiny"
    data: str = "twemoji"
    heads: list[str] = field(default_factory=list)  # HEAD[-on-TREE][-with-LOSS]
    num_clusters: int | None = None  # K of every head that has clusters; None: N // 2
    seeds: list[int] = field(default_factory=lambda: [0])
    num_workers: int | None = None  # None: one for each GPU, without one for each core
    train_overrides: list[str] = field(default_factory=list)  # KEY=VALUE for every run
    artifacts: str = "artifacts"
    runs: str = "runs"
    report: str = "report"


@dataclass(kw_only=True)
class ReproduceConfig(RunsConfig):
    """The config of `make reproduce`."""

    trees: dict[str, TreeConfig] = field(default_factory=dict)
    guidance: list[float] = field(default_factory=lambda: [2.0])  # a sample set each; the first is the headline
    num_samples: int = 1000
    records: str = "records"  # of races; the report shows the newest one


@dataclass(frozen=True)
class PlannedRun:
    """A run to train: its config, and the overrides that give this config."""

    config: TrainConfig
    overrides: list[str]


def reproduce(config: ReproduceConfig, planned: list[PlannedRun]) -> Path:
    """Run all stages that are not done; return the path of the report's page.

    Raises InputError if nothing is planned, or if a stage does."""
    if not planned:
        raise InputError("nothing to run: name at least one head and one seed, as in SEEDS=0")
    data, layout = planned[0].config.data, planned[0].config.layout
    sources = {}
    for split in _stage(1, ["train", "val"], "split"):
        sources[split] = load_images(data.source, split, data.resolution, data.path)

    weights = tokenizer_path(config.tokenizer, layout.root)
    for _ in _stage(2, [config.tokenizer.name], "tokenizer"):
        model = load_tokenizer(weights, config.tokenizer)
        codebook = make_codebook(config.tokenizer, weights, layout.codebook, model)
    for split in _stage(3, list(sources), "split"):
        with naming(data=data.name, tokenizer=config.tokenizer.name):
            extract_codes(model, sources[split], data.views(split), codebook, layout.codes(data.name, split))

    default_k = config.num_clusters or codebook.num_tokens // 2
    ks = [k for k in (default_k, default_k // 2, default_k // 4) if k]
    partitions, average = _make_trees(config, layout, codebook, ks)

    num_workers = config.num_workers or default_workers()
    sets = {f"guidance-{guidance:g}": guidance for guidance in config.guidance}
    # The tokenizer is measured during training, because a core is idle when the last runs end.
    jobs = [train_job(run.config, run.overrides) for run in planned]
    test = TokenizerTest(
        config.tokenizer.name, weights, sources["train"], sources["val"], partitions, config.num_samples
    )
    run_jobs([*jobs, _tokenizer_job(config, layout, ks, test)], num_workers, _name(5), "step")
    places, count = [run.config.directory for run in planned], config.num_samples
    samples = [sample_job(place, name, scale, count) for place in places for name, scale in sets.items()]
    run_jobs(samples, num_workers, _name(6), "image")
    run_jobs([evaluate_job(place, list(sets), count) for place in places], num_workers, _name(7), "image")

    for _ in _stage(8, ["page"], "page"):
        inputs = ReportInputs(
            runs=[RunRecord.load(run.config.directory) for run in planned],
            sample_sets=list(sets),
            attribution=sources["train"].attribution,
            tokenizer=model,
            tokenizer_results=layout.evaluation,
            codes=layout.load_codes(data.name, "train", codebook),
            tree=average,
            partitions={name: cuts[default_k] for name, cuts in partitions.items()},
            records=Path(config.records),
        )
        page = write_report(inputs, Path(config.report))
    return page


def _name(stage: int) -> str:
    return f"[{stage}/{len(STAGES)}] {STAGES[stage - 1]}"


def _stage(stage: int, items: list[str], unit: str) -> tqdm:
    return tqdm(items, desc=_name(stage), unit=unit)


def _make_trees(
    config: ReproduceConfig, layout: Layout, codebook: Codebook, ks: list[int]
) -> tuple[dict[str, dict[int, Partition]], Tree | None]:
    """Partitions by tree and K, and the average-linkage tree itself."""
    partitions: dict[str, dict[int, Partition]] = {}
    average = None
    for name in _stage(4, list(config.trees), "tree"):
        tree = config.trees[name]
        for k in ks:
            made, _ = layout.make_tree(tree, k, codebook)
            partitions.setdefault(name, {})[k] = made.cut(k) if isinstance(made, Tree) else made
            if tree.is_masc:
                average = made
    return partitions, average


def script(name: str, *overrides: str) -> list[str]:
    """The command that runs a script with overrides."""
    return [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *overrides]


def make_inputs(tokenizer: str, data: str, artifacts: str, log: Path, near: int = 0) -> None:
    """Make the codebook and the codes that runs read, if they are not there, or hold fewer near codes than `near`."""
    layout = Layout(Path(artifacts), tokenizer)
    choices = [override("tokenizer", tokenizer), override("artifacts", artifacts)]
    codes = [layout.codes(data, split) for split in ("train", "val")]

    def is_made() -> bool:
        return all(has_codes(path, near) for path in codes)

    for job in (
        Job("making the codebook", script("codebook", *choices), log, layout.codebook.exists),
        Job("making codes", script("codes", *choices, override("data", data), override("near", near)), log, is_made),
    ):
        if not job.is_done():
            run_jobs([job], 1, job.name, "job")


def make_tree(config: TrainConfig) -> None:
    """Make the tree that a run reads, if it reads one that is not there."""
    if config.uses_tree:
        codebook = config.layout.load_codebook()
        config.layout.make_tree(config.tree, config.cuts(codebook.num_tokens)[-1], codebook)


def _tokenizer_job(config: ReproduceConfig, layout: Layout, ks: list[int], test: TokenizerTest) -> Job:
    command = script(
        "eval_tokenizer",
        override("tokenizer", config.tokenizer.name),
        override("data", config.data),
        override("num_clusters", ks),
        override("num_images", config.num_samples),
        override("artifacts", config.artifacts),
    )
    log = layout.evaluation / "eval_tokenizer.log"
    return Job("measuring the tokenizer", command, log, lambda: test.is_done(layout.evaluation), total=0)


def train_job(config: TrainConfig, overrides: list[str]) -> Job:
    """The training of a run as a job; its progress is read from its metrics."""
    directory = config.directory

    def progress() -> int:
        rows = read_metrics(directory / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0

    return Job(
        name=f"training {directory}",
        command=script("train", *overrides),
        log=directory / "train.log",
        is_done=lambda: Run(directory).is_trained(config),
        total=config.steps,
        progress=progress,
    )


def sample_job(directory: Path, name: str, guidance: float, num_images: int, captions: Path | None = None) -> Job:
    """The drawing of a run's sample set as a job; a text model shows `captions`, a folder of text features."""
    shown = {} if captions is None else {"captions": str(captions)}
    settings = SampleConfig(
        run=str(directory), name=name, num_images=num_images, sampling=SamplingConfig(guidance=guidance), **shown
    )
    command = script(
        "sample",
        override("run", str(directory)),
        override("name", name),
        override("num_images", num_images),
        override("sampling.guidance", guidance),
        *(override(key, value) for key, value in shown.items()),
    )
    return Job(f"sampling {directory}", command, directory / "sample.log", lambda: is_sampled(settings), num_images)


def evaluate_job(directory: Path, sets: list[str], num_images: int) -> Job:
    """The measuring of a run and its sample sets, of as many images each, as a job."""
    settings = EvalLiteConfig(run=str(directory), samples=sets)
    command = script("eval_lite", override("run", str(directory)), override("samples", sets))
    log, total = directory / "eval_lite.log", num_images * len(sets)
    return Job(f"measuring {directory}", command, log, lambda: not unmeasured(settings), total)
