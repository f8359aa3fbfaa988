"""Speed and memory of training against the released recipe, stated again, on this machine (`make bench-train`).

    make bench-train                                # flat and masc: LlamaGen-B, L and XL on a GPU, B on a CPU
    make bench-train ARGS="--layers 3"              # on a CPU: B's width in minutes

The same random ten-crop codes lie in both layouts, on disk. Ours is `make train` itself, its validation left out; the
released recipe is benchmarks/released_training.py. Every case is a process of its own, and rounds go through all
cases; ratios are taken within a round, and the median is printed. The first steps of a case are not counted. Memory is
the peak of the GPU's tensors, or of the process on a CPU less what it holds after its imports. MFU is three forward
passes' matrix products a second over the fastest of some large products, measured before.

The share of a step that dropout takes is measured on the whole first model: by image, as in our training, and torch's
own in its place, each against a step without dropout. On a CPU these are its seconds of work, for steps of two images.

Prints a table, and writes it to benchmarks/training-<device>.md and .json."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from data import NUM_CLASSES, NUM_TOKENS, OneFileAnImage, write_both
from heads import device_here, memory_mib, peak_mib
from released_training import ReleasedModel, released_optimizer, released_step
from stage import load_config
from torch import nn
from torch.utils.data import DataLoader, Subset
from words import override

import llamagen.train
from llamagen.backbones.base import DataShape
from llamagen.backbones.dropout import ImageDropout, key_dropouts
from llamagen.model import build_model
from llamagen.training.config import TrainConfig
from llamagen.training.footprint import measure_evaluation
from llamagen.training.optim import build_optimizers
from llamagen.training.parallel import compile_blocks
from llamagen.training.plan import balanced_tree
from masc.build import TreeConfig, make_tree
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import save_codes
from masc.runtime.device import resolve_precision
from masc.runtime.files import write_json, write_text
from masc.runtime.run import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RELEASED = "released"
POSITIONS = 256
SPAN = 8 * 60  # seconds after which no case begins
DROPOUT_ROUNDS = 12
# What stands in for dropout by image; None: itself.
DROPOUTS = {"by_image": None, "torch": nn.Dropout, "none": lambda _rate: nn.Identity()}


def write_data(root: Path, num_images: int) -> None:
    """Codes in both layouts below `root`, a codebook, and random clusters, which train as fast as any."""
    layout = Layout(root / "artifacts", "vq16")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((NUM_TOKENS, 8)).astype(np.float32)
    codebook = Codebook.save(layout.codebook, vectors, {}, {"tokenizer": "0" * 64})
    *_, ours = write_both(root, num_images, codebook.meta.sha256)
    there = layout.codes("imagenet256", "train")
    there.parent.mkdir(parents=True)
    ours.rename(there)
    held_out = rng.integers(0, NUM_TOKENS, (1, 1, POSITIONS)), np.zeros(1), np.zeros(1)
    names = [str(number) for number in range(NUM_CLASSES)]
    where = layout.codes("imagenet256", "val")
    save_codes(where, *held_out, names, [], NUM_TOKENS, codebook.meta.sha256, {})
    tree = TreeConfig(name="random", method="random")
    make_tree(tree, codebook, NUM_TOKENS // 2, layout.tree(tree, NUM_TOKENS // 2))


def config_of(arguments: argparse.Namespace, run_dir: str) -> TrainConfig:
    """The config of a case: MASC's recipe with as many images as the device takes at once, and no files on the way."""
    layers = [] if arguments.layers is None else [f"model.num_layers={arguments.layers}"]
    steps = arguments.warm + arguments.steps
    compiles = ["compute.compile=on"] if device_here().type == "cuda" else []  # `auto` does not, for so few steps
    return load_config(
        "train",
        TrainConfig,
        [
            *(override("model", arguments.model), f"head={arguments.head}", "tree=random", "data=imagenet256"),
            *("data.crop_ranges=[1.1]", f"steps={steps}", f"batch_size={arguments.images}", *layers),
            *(f"log_every={arguments.warm}", f"evaluate_every={steps}", f"checkpoint_every={steps}"),
            *("tracking.mode=disabled", "diagnostics=false", f"precision={arguments.precision}"),
            *(override("artifacts", str(arguments.root / "artifacts")), override("run_dir", run_dir)),
            *compiles,
            *(arguments.overrides or []),
        ],
    )


def measure_ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Images a second and MiB of our training."""
    device, peaks = device_here(), []

    def validate(*_: object) -> dict[str, float]:
        peaks.append(peak_mib(device))
        return {}

    llamagen.train._validate = validate
    with tempfile.TemporaryDirectory(dir=arguments.root) as run_dir:
        config = config_of(arguments, run_dir)
        before = memory_mib(device)
        llamagen.train.train(config)
        rows = [row for row in read_metrics(Path(run_dir) / "metrics.jsonl") if row["step"] > arguments.warm]
    seconds = sum(1 / row["speed/images_per_second"] for row in rows) / len(rows)
    return {"images_per_second": 1 / seconds, "mib": peaks[-1] - before}


def measure_released(arguments: argparse.Namespace) -> dict[str, float]:
    """The same of the released recipe."""
    device = device_here()
    config = config_of(arguments, str(arguments.root / "none")).model
    before = memory_mib(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = ReleasedModel(config, NUM_TOKENS, NUM_CLASSES, POSITIONS).to(device).train()
    optimizer = released_optimizer(model)
    codes = arguments.root / "flip"
    dataset = OneFileAnImage(codes / "imagenet256_codes", codes / "imagenet256_labels")
    workers = min(24, os.cpu_count() - 1) if device.type == "cuda" else 0  # on a CPU they would take its cores
    loader = DataLoader(
        Subset(dataset, range(arguments.stored)),
        batch_size=arguments.images,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    is_bf16, step, start = resolve_precision(arguments.precision) == "bf16", 0, 0.0
    while True:
        for tokens, labels in loader:
            if step == arguments.warm:
                start = time.perf_counter()
            released_step(model, optimizer, tokens, labels, is_bf16)
            step += 1
            if step == arguments.warm + arguments.steps:
                seconds = time.perf_counter() - start
                return {
                    "images_per_second": arguments.steps * arguments.images / seconds,
                    "mib": peak_mib(device) - before,
                }


def measure_ceiling(arguments: argparse.Namespace) -> dict[str, float]:
    """FLOPs a second of the fastest of some large matrix products."""
    device, best = device_here(), 0.0
    kind = torch.bfloat16 if resolve_precision(arguments.precision) == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = True
    for size in (2048, 4096, 8192, 16384) if device.type == "cuda" else (1024, 2048):
        left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        for _ in range(2):
            repeats = 20 if device.type == "cuda" else 3
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                left @ right
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 * repeats / (time.perf_counter() - start))
    return {"flops": best, "threads": torch.get_num_threads()}


def measure_dropout(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step with the flat head by its kind of dropout, medians of DROPOUT_ROUNDS, and shares of dropout."""
    images = arguments.images if device_here().type == "cuda" else 2
    whole = argparse.Namespace(**vars(arguments) | {"layers": None, "images": images})
    steps = {name: dropout_step(whole, kind) for name, kind in DROPOUTS.items()}
    for step in steps.values():
        step()  # compiles on a GPU
    rounds = [{name: step() for name, step in steps.items()} for _ in range(DROPOUT_ROUNDS)]
    seconds = {name: statistics.median(each[name] for each in rounds) for name in steps}
    shares = {f"{name}_share": 1 - seconds["none"] / seconds[name] for name in ("by_image", "torch")}
    return seconds | shares | {"images": images}


def dropout_step(arguments: argparse.Namespace, kind: Callable[[float], nn.Module] | None) -> Callable[[], float]:
    """A function that takes a step with dropout of this kind and returns its seconds."""
    device, config = device_here(), config_of(arguments, str(arguments.root / "none"))
    on_gpu = device.type == "cuda"
    shape = DataShape(NUM_TOKENS, NUM_CLASSES, POSITIONS)
    model = build_model(config.model, config.head, shape, None, 0).to(device).train()
    if kind is not None:
        for name, module in [*model.named_modules()]:
            if isinstance(module, ImageDropout):
                model.set_submodule(name, kind(module.rate))
    if on_gpu:
        compile_blocks(model.backbone.blocks())
    optimizers = build_optimizers(model, config.optim, fused=True)
    images = arguments.images
    tokens = torch.randint(NUM_TOKENS, (images, POSITIONS), device=device)
    labels = torch.randint(NUM_CLASSES, (images,), device=device)
    is_bf16 = resolve_precision(arguments.precision) == "bf16"

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() if on_gpu else time.process_time()

    def step() -> float:
        start = now()
        key_dropouts(model, np.arange(images, dtype=np.uint64), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            loss = -model(tokens, labels).sum() / tokens.numel()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return now() - start

    return step


MEASURES = {
    "ours": measure_ours,
    RELEASED: measure_released,
    "ceiling": measure_ceiling,
    "dropout": measure_dropout,
}


def in_a_process(arguments: argparse.Namespace, root: Path, case: str, **more: str) -> dict[str, float]:
    given = {"root": root, "case": case, **more}
    kept = ("images", "steps", "warm", "stored", "precision", "layers")
    given |= {key: value for key in kept if (value := getattr(arguments, key)) is not None}
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in given.items())]
    if case == "ours" and arguments.overrides:
        command += ["--overrides", *arguments.overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def image_flops(arguments: argparse.Namespace, model: str, head: str) -> float:
    """Of a step, for an image."""
    given = argparse.Namespace(**vars(arguments) | {"model": model, "head": head, "root": Path()})
    config = config_of(given, "none")
    tree = balanced_tree(NUM_TOKENS) if config.head.uses_tree else None
    shape = DataShape(NUM_TOKENS, NUM_CLASSES, POSITIONS)
    build = partial(build_model, config.model, config.head, shape, tree, 0)
    return 3 * measure_evaluation(build, 8, "fp32")[1] / 8


def compare(arguments: argparse.Namespace, root: Path, ends: float) -> tuple[list[dict], dict[str, float]]:
    """A row for each model and head, and the ceiling. After `ends` of the monotonic clock no case begins."""
    write_data(root, arguments.stored)
    ceiling, rows = in_a_process(arguments, root, "ceiling"), []
    for model in arguments.models:
        cases = {RELEASED: "flat", **{head: head for head in arguments.heads}}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
        for name in [*cases] * arguments.rounds:
            if time.monotonic() > ends:
                print(f"no time is left for {name} of {model}", file=sys.stderr)
                continue
            case = RELEASED if name == RELEASED else "ours"
            found[name].append(in_a_process(arguments, root, case, model=model, head=cases[name]))
        for name in (name for name in cases if found[name]):
            rows.append({"model": model, "case": name, **_summary(found[name], found[RELEASED])})
            flops = image_flops(arguments, model, cases[name])
            rows[-1]["mfu"] = flops * rows[-1]["images_per_second"] / ceiling["flops"]
    return rows, ceiling


def _summary(values: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, float]:
    row = {}
    for key in ("images_per_second", "mib"):
        row[key] = statistics.median(value[key] for value in values)
        row[f"{key}_ratio"] = statistics.median(
            value[key] / other[key]
            for value, other in zip(values, base, strict=False)  # the last round may lack cases
        )
    return row


def table(rows: list[dict]) -> str:
    lines = [
        "| model | case | tokens/s | to the released recipe | peak MiB | to the released recipe | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['case']} | {POSITIONS * row['images_per_second']:,.0f} | "
            f"{row['images_per_second_ratio']:.2f} | {row['mib']:,.0f} | {row['mib_ratio']:.2f} | {row['mfu']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    started, device = time.monotonic(), device_here()
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ("b", "l", "xl") if on_gpu else ("b",)
    parser.add_argument("--models", nargs="+", default=[f"llamagen-{size}" for size in sizes])
    parser.add_argument("--heads", nargs="+", default=["flat", "masc"])
    parser.add_argument("--layers", type=int, help="of each model, instead of its own number")
    parser.add_argument("--images", type=int, default=64 if on_gpu else 8, help="of a step")
    parser.add_argument("--warm", type=int, default=10 if on_gpu else 2, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=30 if on_gpu else 4, help="steps that are; a multiple of --warm")
    parser.add_argument("--rounds", type=int, default=1 if on_gpu else 3)
    parser.add_argument("--stored", type=int, default=4000, help="images on disk")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--overrides", nargs="+", help="of ours, as compute.compile=off")
    parser.add_argument("--out", type=Path, help="where the results go; default: benchmarks/training-<device>")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    for key in ("case", "model", "head"):
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(MEASURES[arguments.case](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        dropout = in_a_process(arguments, Path(folder), "dropout", model=arguments.models[0], head="flat")
        rows, ceiling = compare(arguments, Path(folder), started + SPAN)
    name = torch.cuda.get_device_name() if on_gpu else f"cpu ({platform.processor() or platform.machine()})"
    keys = ("images", "layers", "warm", "steps", "rounds", "overrides")
    machine = {key: getattr(arguments, key) for key in keys} | {"device": name, "torch": torch.__version__}
    machine |= {"precision": resolve_precision(arguments.precision), "ceiling_tflops": ceiling["flops"] / 1e12}
    machine["threads"] = ceiling["threads"]
    slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if on_gpu else "cpu"
    out = arguments.out or ROOT / "benchmarks" / f"training-{slug}"
    shares = f"{dropout['by_image_share']:.1%} by image, {dropout['torch_share']:.1%} by torch's own"
    shares = f"Dropout takes of a step of the whole {arguments.models[0]} with flat: {shares}"
    text = f"{table(rows)}\n\n{shares}\n\n{', '.join(f'{key} {value}' for key, value in machine.items())}\n"
    write_json(out.with_suffix(".json"), {"machine": machine, "results": rows, "dropout": dropout})
    write_text(out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
