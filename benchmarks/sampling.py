"""Images per second of our sampler against the released decoding loop, in one run (`make bench-sample`).

    make bench-sample                                                        # GPT-B, batch 8, fp32, 2 threads
    make bench-sample ARGS="--model llamagen-xl --batch 64 --precision bf16 --compile"   # on a GPU

Rounds alternate between the variants; the ratio of each round is taken, and the median is printed. Weights are
random: speed does not depend on them. Greedy draws (top-k 1) of both must agree before anything is timed.

On a GPU the fraction of the bandwidth bound is printed as well: the least bytes a step must read, all weights of body
and head once and the keys and values so far, over the bandwidth measured by a copy in the same run. Writes
benchmarks/sampling-<device>.json."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from released_loop import ReleasedLoop
from stage import load_config

from llamagen.backbones.base import DataShape
from llamagen.model import ARModel, build_model
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.training.config import TrainConfig
from masc.heads.config import FlatConfig
from masc.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def build(name: str, grid: int, precision: str, device: torch.device) -> ARModel:
    """A model with random weights, output matrix included, so that greedy draws tell positions apart."""
    config = load_config("train", TrainConfig, [f"model={name}"]).model
    model = build_model(config, FlatConfig(name="flat"), DataShape(16384, 1000, grid**2), None, seed=0)
    torch.nn.init.normal_(model.head.output.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()


def least_bytes(model: ARModel, batch: int) -> float:
    """Bytes that drawing one batch must read: weights a step, and keys and values so far. `batch` counts halves."""
    backbone, config = model.backbone, model.backbone.config
    weights = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "embedding" not in n)
    width = model.head.output.weight.element_size()
    per_position = 2 * config.num_layers * config.kv_heads * config.head_dim * width * batch
    steps = backbone.num_positions
    return steps * weights + per_position * steps * (steps + 1) / 2


def bandwidth(device: torch.device, num_bytes: int = 2**30) -> float:
    """Bytes a second that a copy reads and writes, best of ten."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        best = min(best, seconds_of(lambda: target.copy_(source), device))
    return 2 * num_bytes / best


def seconds_of(work, device: torch.device) -> float:
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llamagen-b")
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="time our compiled step as well")
    parser.add_argument("--out", type=Path, help="where the results go")
    arguments = parser.parse_args()
    if arguments.guidance <= 1:
        parser.error("--guidance must be above 1: the released loop is stated with it")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(arguments.model, arguments.grid, arguments.precision, device)
    labels = torch.arange(arguments.batch, device=device) * 37 % 1000
    uniforms = image_uniforms(0, range(arguments.batch), model.backbone.num_positions, 1)
    released = ReleasedLoop(model, 2 * arguments.batch)
    greedy = SamplingConfig(guidance=arguments.guidance, top_k=1)
    settings = SamplingConfig(guidance=arguments.guidance, top_k=arguments.top_k)
    generator = torch.Generator(device).manual_seed(0)

    ours = generate(model, labels, uniforms, greedy)  # also the warm-up
    agreement = (ours == released(labels, arguments.guidance, 1, generator)).float().mean().item()
    print(f"greedy tokens that agree with the released loop: {agreement:.1%}")
    if arguments.precision == "fp32" and agreement < 1:
        sys.exit("error: the two samplers disagree in float32; their times say nothing")
    variants = {
        "released loop": lambda: released(labels, arguments.guidance, arguments.top_k, generator),
        "ours": lambda: generate(model, labels, uniforms, settings),
    }
    if arguments.compile:
        variants["ours, compiled"] = lambda: generate(model, labels, uniforms, settings, compiled=True)
        variants["ours, compiled"]()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, work in variants.items():
            times[name].append(seconds_of(work, device))
    bound = least_bytes(model, 2 * arguments.batch) / bandwidth(device) if device.type == "cuda" else None
    results = []
    for name, values in times.items():
        ratio = statistics.median(base / value for base, value in zip(times["released loop"], values, strict=True))
        row = {
            "variant": name,
            "images_per_second": arguments.batch / statistics.median(values),
            "speed_to_released": ratio,
        }
        if bound is not None:
            row["fraction_of_bandwidth_bound"] = bound / statistics.median(values)
        results.append(row)
        print(
            "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{value:16}" for key, value in row.items())
        )
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    machine = {"device": name, "torch": torch.__version__, "greedy_agreement": agreement, **vars(arguments)}
    out = machine.pop("out") or ROOT / "benchmarks" / f"sampling-{device.type}.json"
    write_json(out, {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
