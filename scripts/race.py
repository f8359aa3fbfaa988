"""The race: contenders on equal terms, judged by fixed rules (`make race`, docs/race.md)."""

import itertools
from pathlib import Path

from jobs import THREADS, default_workers, run_jobs
from pipeline import evaluate_job, make_inputs, make_tree, sample_job, train_job
from race_plan import (
    RaceConfig,
    check_contenders,
    check_parameters,
    equal_seconds,
    parameters_of,
    plan_run,
    plan_tuning,
)
from stage import named_config, run_stage
from tuning import Point, best_point, next_points

from llamagen.evaluation.lite import reference_path
from llamagen.training.config import TrainConfig
from masc.runtime.run import plain
from masc.tree import Partition
from metrics.results import TOKENIZER_FILES
from metrics.tokenizer import TokenizerTest, evaluate_tokenizer
from reports.race.page import judgement_text, record_pages, tuning_text
from reports.race.records import Tuned, new_record, read_record, write_record
from reports.race.rows import Cell, read_run
from reports.runs import BASELINE, RunRecord
from reports.tokenizer_tables import read_tokenizer_results
from vq.interface import tokenizer_path
from vq.pretrained import load_decoder
from vq.readers import load_images

Entry = tuple[Cell, str]  # a contender in a cell


def tune(config: RaceConfig, num_workers: int) -> dict[Entry, Tuned]:
    """Try values for every contender in every cell, by the rule of tuning.py; runs that are there are not repeated."""
    grids = {name: config.grid(name) for name in config.contenders}
    found: dict[Entry, dict[Point, float]] = {entry: {} for entry in config.entries}
    for turn in itertools.count(1):
        runs = {
            (entry, point): plan_tuning(config, *entry, dict(zip(grids[entry[1]], point, strict=True)))
            for entry, results in found.items()
            for point in next_points(grids[entry[1]], results, config.tuning_budget)
        }
        if not runs:
            break
        run_jobs(
            [train_job(run.config, run.overrides) for run in runs.values()],
            num_workers,
            f"[1/4] tuning, round {turn}",
            "step",
        )
        for (entry, point), run in runs.items():
            found[entry][point] = RunRecord.load(run.config.directory).final_nats
    return {
        (cell, name): Tuned(
            contender=name,
            share=cell.share,
            length=cell.length,
            points=[dict(zip(grids[name], point, strict=True)) for point in results],
            nats=[round(value, 5) for value in results.values()],
            chosen=list(results).index(best_point(results)),
        )
        for (cell, name), results in found.items()
    }


def steps_of(config: RaceConfig, tuned: dict[Entry, Tuned]) -> dict[Entry, int]:
    """Steps of each contender's runs: flat's, or as many as take flat's time at the rates of the chosen tuning runs."""
    if config.equal != "seconds":
        return {(cell, name): cell.length for cell, name in tuned}
    seconds: dict[Cell, dict[str, float]] = {}
    for (cell, name), each in tuned.items():
        run = plan_tuning(config, cell, name, each.values)
        taken = float(RunRecord.load(run.config.directory).curve["seconds"][-1])
        seconds.setdefault(cell, {})[name] = taken / cell.length
    return {
        (cell, name): steps for cell, own in seconds.items() for name, steps in equal_seconds(cell.length, own).items()
    }


def measure_replacement(runs: dict[str, TrainConfig], config: RaceConfig) -> dict[str, float]:
    """PSNR in dB, by contender, after every token is replaced within its cluster of the contender's tree; the trees of
    contenders that read none are left out."""
    if not config.replacement:
        return {}
    tokenizer, data = named_config("tokenizer", config.tokenizer_name), runs[BASELINE].data
    layout = runs[BASELINE].layout
    codebook = layout.load_codebook()
    cuts = {name: (run.tree.name, run.cuts(codebook.num_tokens)[-1]) for name, run in runs.items() if run.uses_tree}
    partitions: dict[str, dict[int, Partition]] = {}
    for name, (tree, k) in cuts.items():
        partitions.setdefault(tree, {})[k] = layout.load_partition(runs[name].tree, k, codebook)[0]
    test = TokenizerTest(
        name=tokenizer.name,
        weights=tokenizer_path(tokenizer, layout.root),
        train=None,
        held_out=load_images(data.source, "val", data.resolution, data.path),
        partitions=partitions,
        reconstruction=False,
    )
    model, place = load_decoder(codebook, layout, tokenizer), config.directory / "replacement"
    evaluate_tokenizer(model, test, place, data.name, reference_path(config.artifacts, data.name))
    cases = read_tokenizer_results(place / TOKENIZER_FILES["replacement"], "replacement")["replacement"]
    rows = ((case["tree"], case["K"], row) for case in cases for row in case["metrics"])
    psnr = {(tree, k): row["value"] for tree, k, row in rows if row["metric"] == "PSNR (dB)"}
    return {name: round(psnr[cut], 3) for name, cut in cuts.items()}


def race(config: RaceConfig) -> Path:
    """Run what is missing of a race and write its record; return the record's directory."""
    num_workers = config.num_workers or default_workers()
    for cell in config.cells:
        starts = {
            name: plan_tuning(config, cell, name, {key: values[0] for key, values in config.grid(name).items()}).config
            for name in config.contenders
        }
        check_contenders(starts)
    near, log = max(run.loss.near for run in starts.values()), config.directory / "inputs.log"
    make_inputs(config.tokenizer_name, config.data_name, config.artifacts, log, near)
    for run in starts.values():
        make_tree(run)
    if config.equal == "parameters":  # before the tuning takes its time
        check_parameters({name: parameters_of(run) for name, run in starts.items()})

    tuned = tune(config, num_workers)
    print(tuning_text(tuned.values()))
    steps = steps_of(config, tuned)
    runs = {
        (entry, seed): plan_run(config, *entry, each.values, seed, steps[entry])
        for seed in config.seeds
        for entry, each in tuned.items()
    }
    parameters = {entry: parameters_of(runs[entry, config.seeds[0]].config) for entry in tuned}
    if config.equal == "parameters":  # tuned values can change them
        for cell in config.cells:
            check_parameters({name: parameters[cell, name] for name in config.contenders})
    run_jobs([train_job(run.config, run.overrides) for run in runs.values()], num_workers, "[2/4] runs", "step")
    samples = f"guidance-{config.guidance:g}"
    places, count = [run.config.directory for run in runs.values()], config.num_samples
    if count:
        jobs = [sample_job(place, samples, config.guidance, count) for place in places]
        run_jobs(jobs, num_workers, "[3/4] samples", "image")
    jobs = [evaluate_job(place, [samples] if count else [], max(1, count)) for place in places]
    run_jobs(jobs, num_workers, "[4/4] measuring", "image")
    replacement = measure_replacement(starts, config)

    found = [
        read_run(run.config.directory, name, cell, tuned[cell, name].values, parameters[cell, name], THREADS, samples)
        for ((cell, name), _), run in runs.items()
    ]
    rows, curves = zip(*found, strict=True)
    record = new_record(plain(config), rows, curves, list(tuned.values()), replacement)
    return write_record(record, Path(config.records), record_pages(record))


def main(config: RaceConfig) -> None:
    """Tune every contender, train it at every seed, judge it beside flat, and write records/<date>-<race>/."""
    directory = race(config)
    print(f"\n{judgement_text(read_record(directory))}\nThe record: {directory.resolve()}")


if __name__ == "__main__":
    run_stage("race", RaceConfig, main)
