"""Speed of the embedded model against LlamaGen's own code, on this machine, in one run (`make bench`).

    make bench                                        # ours, with and without the choices made for the CPU
    make bench ARGS="--llamagen /path/to/LlamaGen"    # beside a checkout of FoundationVision/LlamaGen

Every variant is timed in turn, round after round, in CPU seconds of one thread; the ratio of each round to the
baseline's is taken, and the median is printed. Writes benchmarks/speed.json."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from stage import load_config

from llamagen.backbones.base import DataShape
from llamagen.model import build_model
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.train import attention_kernel
from llamagen.training.config import TrainConfig
from llamagen.training.optim import build_optimizers
from masc.linkage import average_linkage
from masc.runtime.device import resolve_precision
from masc.runtime.files import write_json
from masc.tree import Tree

ROOT = Path(__file__).resolve().parents[1]
BATCH, SHAPE = 32, DataShape(num_tokens=1024, num_classes=9, num_positions=64)
TRAIN, SAMPLE = "train step, 32 images", "sample 50 images, guidance 2"


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def ours(head: str, plain_attention: bool) -> dict[str, Callable[[], None]]:
    """A training step and a batch of samples of our model with a head."""
    config = load_config("train", TrainConfig, ["model=llamagen-tiny", "data=twemoji", f"head={head}"])
    vectors = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0)).numpy()
    partition = None if head == "flat" else Tree(average_linkage(vectors).merges).cut(512)
    model = build_model(config.model, config.head, SHAPE, partition, seed=0)
    (optimizer,) = build_optimizers(model, config.optim, fused=True)
    tokens, labels = torch.randint(1024, (BATCH, 64)), torch.randint(9, (BATCH,))
    precision = resolve_precision("auto")
    kernel = attention_kernel(torch.device("cpu" if plain_attention else "meta"), SHAPE.num_positions)

    def step() -> None:
        model.train()
        with autocast(precision), kernel():
            loss = -model(tokens, labels).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def sample() -> None:
        uniforms = image_uniforms(0, range(50), 64, model.head.num_decisions)
        generate(model.eval(), torch.randint(9, (50,)), uniforms, SamplingConfig(guidance=2.0))

    return {TRAIN: step, SAMPLE: sample}


def official(path: Path) -> dict[str, Callable[[], None]]:
    """The same of LlamaGen's own classes, at the same sizes, with its optimizer settings."""
    sys.path.insert(0, str(path))
    from autoregressive.models.generate import generate as official_generate
    from autoregressive.models.gpt import ModelArgs, Transformer

    arguments = ModelArgs(
        dim=192, n_layer=4, n_head=3, vocab_size=1024, block_size=64, num_classes=9, cls_token_num=1, model_type="c2i"
    )
    model = Transformer(arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    tokens, labels = torch.randint(1024, (BATCH, 64)), torch.randint(9, (BATCH,))
    precision = resolve_precision("auto")
    sampler = Transformer(arguments).eval()  # generate() leaves caches in a model that training cannot use

    def step() -> None:
        model.train()
        with autocast(precision):
            _, loss = model(cond_idx=labels, idx=tokens[:, :-1], targets=tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def sample() -> None:
        official_generate(sampler, torch.randint(9, (50,)), 64, cfg_scale=2.0, top_k=0, top_p=1.0, temperature=1.0)

    return {TRAIN: step, SAMPLE: sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamagen", type=Path, help="a checkout of FoundationVision/LlamaGen")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    variants = {
        "flat": ours("flat", plain_attention=True),
        "flat, torch's choice of attention": ours("flat", plain_attention=False),
        "masc": ours("masc", plain_attention=True),
        "masc-two-level": ours("masc-two-level", plain_attention=True),
    }
    baseline = "flat"
    if arguments.llamagen:
        baseline = "LlamaGen's own code"
        variants = {baseline: official(arguments.llamagen), **variants}
    seconds: dict[str, dict[str, list[float]]] = {}
    for task in (TRAIN, SAMPLE):
        for run in [variant[task] for variant in variants.values()]:
            run()  # warm-up
        for _ in range(arguments.rounds):
            for name, variant in variants.items():
                start = time.process_time()
                variant[task]()
                seconds.setdefault(task, {}).setdefault(name, []).append(time.process_time() - start)
    results = []
    for task, times in seconds.items():
        print(f"\n{task}: CPU seconds of one thread (median), ratio to {baseline}")
        for name, values in times.items():
            ratio = statistics.median(value / base for value, base in zip(values, times[baseline], strict=True))
            results.append(
                {
                    "task": task,
                    "variant": name,
                    "cpu_seconds": statistics.median(values),
                    "ratio": ratio,
                    "to": baseline,
                }
            )
            print(f"  {name:36s} {statistics.median(values):7.3f}  {ratio:5.2f}")
    machine = {"torch": torch.__version__, "precision": resolve_precision("auto"), "rounds": arguments.rounds}
    write_json(ROOT / "benchmarks" / "speed.json", {"machine": machine, "results": results})
    print("\n" + json.dumps(machine))


if __name__ == "__main__":
    main()
