"""What a loss costs beside the flat head's cross-entropy: memory and time (`make bench-losses`).

    make bench-losses                                        # LlamaGen-B's width, N = 16,384, 8 images of 256 positions
    make bench-losses ARGS="--losses soft-codes cluster --model llamagen-xl --images 64 --precision bf16"

Forward and backward pass without the backbone, on MASC's tree over the `manifold` codebook of benchmarks/tree.py.
Each measurement is a process of its own; rounds alternate between the losses, ratios to `ce` are taken within a round,
and the median is printed. Extra memory is the peak above hidden states, weights and their gradients. CPU seconds of one
thread, or seconds of a GPU. `rear` is left out: its cost is that of two MLPs."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from heads import NUM_TOKENS, POSITIONS, clock, device_here, memory_mib, peak_mib
from stage import load_config
from tree import codebook
from words import override

from llamagen.training.config import TrainConfig
from masc.heads.registry import build_head
from masc.linkage import average_linkage
from masc.losses.base import Parts
from masc.losses.registry import build_loss
from masc.runtime.files import write_json
from masc.tree import Tree

LOSSES = ("ce", "label-smoothing", "soft-codes", "soft-tree", "soft-encoder", "cluster")
NEAR = 8


def measure(name: str, model: str, images: int, precision: str, tree: Tree) -> dict[str, float]:
    """Time and extra memory of one forward and backward pass of a loss over the flat head."""
    device = device_here()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config("train", TrainConfig, [override("model", model), "head=flat", override("loss", name)])
    dim, vectors = config.model.dim, codebook("manifold", NUM_TOKENS)
    head = build_head(config.head, dim, NUM_TOKENS, None).to(device)
    torch.nn.init.normal_(head.output.weight, std=0.02)
    loss = build_loss(config.loss, Parts(head, dim, vectors, tree, []))
    loss = None if loss is None else loss.to(device)
    hidden = torch.randn(images, POSITIONS, dim, device=device, requires_grad=True)
    tokens = torch.randint(NUM_TOKENS, (images, POSITIONS), device=device)
    near = (tokens[..., None] + torch.arange(NEAR, device=device)) % NUM_TOKENS
    given = {"progress": torch.tensor(0.5, device=device), "context": tokens}
    given |= {"near": near, "near_distances": torch.rand(near.shape, device=device)}
    for parameter in (hidden, *head.parameters()):
        parameter.grad = torch.zeros_like(parameter)

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            terms = head.log_probs(hidden, tokens) if loss is None else loss(head, hidden, tokens, given)
        (-terms.sum() / tokens.numel()).backward()

    if device.type == "cuda":
        work()  # compiles kernels
    before, start = memory_mib(device), clock(device)
    work()
    return {"seconds": clock(device) - start, "extra_mib": peak_mib(device) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--model", default="llamagen-b")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the results go")
    for key in ("case", "tree"):
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    given = arguments.model, arguments.images, arguments.precision
    if arguments.case:
        print(json.dumps(measure(arguments.case, *given, Tree(np.load(arguments.tree)))))
        return
    names = list(dict.fromkeys(["ce", *arguments.losses]))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "merges.npy"
        np.save(tree, average_linkage(codebook("manifold", NUM_TOKENS)).merges)
        words = [f"--{key}={value}" for key, value in zip(("model", "images", "precision"), given, strict=True)]
        for name in names * arguments.rounds:
            command = [sys.executable, __file__, f"--tree={tree}", f"--case={name}", *words]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    print(f"{given[0]}, {given[1]} images, {given[2]}")
    print(f"{'loss':<18}{'seconds':>9}{'ratio':>7}{'extra MiB':>11}{'ratio':>7}")
    for name, values in found.items():
        row = {"loss": name, "model": given[0], "images": given[1], "precision": given[2]}
        for key in ("seconds", "extra_mib"):
            row[key] = statistics.median(value[key] for value in values)
            pairs = zip(values, found["ce"], strict=True)
            row[f"{key}_ratio"] = statistics.median(value[key] / base[key] for value, base in pairs)
        rows.append(row)
        seconds, extra = row["seconds"], row["extra_mib"]
        print(f"{name:<18}{seconds:>9.2f}{row['seconds_ratio']:>7.2f}{extra:>11.0f}{row['extra_mib_ratio']:>7.2f}")
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
