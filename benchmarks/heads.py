"""What a head costs: memory and time of its loss, and milliseconds of a sampling step (`make bench-heads`).

    make bench-heads                                          # both tables at LlamaGen-B, L and XL, N = 16,384
    make bench-heads ARGS="--part loss --heads flat masc-8192"     # one table, some heads
    make bench-heads ARGS="--precision bf16"                  # on a GPU

The tree is MASC's over the `manifold` codebook of benchmarks/tree.py, whose clusters are uneven. Tokens are uniform, so
large clusters are met often, as they are in a trained model. Each measurement is a process of its own; rounds alternate
between the heads, ratios are taken within a round, and the median is printed.

loss: forward and backward pass at 64 images x 256 positions and XL's width, without the backbone. Extra memory is the
peak above what hidden states, weights and their gradients take. `flat-unchunked` keeps all logits; `flat-torch` is
torch's `linear_cross_entropy`. CPU seconds of one thread, or seconds of a GPU.

step: one position of a batch in milliseconds, by one thread of a CPU, guidance on, so that twice as many hidden states
come in. A tree-shared head is folded, as `make sample` does. The backbone's step is timed in
the middle of an image (128 keys). Images a second are composed: batch / (256 x (backbone + head)); whole images at XL
take minutes on a CPU. Heads of two stages add their pass over the finished images, shared among the 256 positions, to
the step.

`spread` in the results is the slowest round over the fastest. ARGS="--out benchmarks/heads-cpu.json" writes them."""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from stage import load_config
from torch import Tensor
from tree import codebook
from words import override

from llamagen.backbones.base import DataShape
from llamagen.backbones.embeddings import TokenEmbedding
from llamagen.backbones.gpt import Transformer
from llamagen.backbones.layers import KVCache
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import SamplingPick
from llamagen.training.config import TrainConfig
from masc.heads.base import Head, ImageHead
from masc.heads.masc import MascTwoLevelHead
from masc.heads.registry import build_head
from masc.heads.shared import TreeSharedHead
from masc.heads.tree import MascTreeHead
from masc.linkage import average_linkage
from masc.runtime.files import write_json
from masc.tree import Tree

NUM_TOKENS, GRID, IMAGES = 16384, 16, 64
POSITIONS = GRID * GRID
UNCHUNKED, TORCH = "flat-unchunked", "flat-torch"
HEADS: dict[str, list[str]] = {  # overrides of configs; ctf's second network is a model of LlamaGen-L's size: no head
    "flat": ["head=flat"],
    "masc-8192": ["head=masc"],
    "masc-4096": ["head=masc", "head.num_clusters=4096"],
    "masc-2048": ["head=masc", "head.num_clusters=2048"],
    "masc-two-level": ["head=masc-two-level"],
    **{f"masc-tree-{depth}": ["head=masc-tree", f"head.depth={depth}"] for depth in (2, 3, 4, 14)},
    "masc-binary": ["head=masc-binary"],
    "bits": ["head=bits"],
    "bits-chain": ["head=bits-chain"],
    "adaptive": ["head=adaptive"],
    "tree-shared": ["head=tree-shared"],
    "subtoken": ["head=subtoken"],
    "masc-refine": ["head=masc-refine"],
}


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def config_of(name: str, model: str) -> TrainConfig:
    return load_config("train", TrainConfig, [override("model", model), *HEADS[name]])


def head_of(name: str, model: str, tree: Tree, device: torch.device) -> Head:
    """The head of a width, with random weights, in float32."""
    config = config_of(name, model)
    counts = np.random.default_rng(0).integers(0, 1000, NUM_TOKENS)
    head = build_head(config.head, config.model.dim, NUM_TOKENS, tree, counts)
    head.initialise(torch.Generator().manual_seed(0))
    for table in head.tables():
        torch.nn.init.normal_(table, std=0.02)
    return head.to(device)


def clock(device: torch.device) -> float:
    """Seconds of a GPU, or CPU seconds of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def memory_mib(device: torch.device) -> float:
    """Memory in use; from here on `peak_mib` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # else the peak before, and that of the parent, would count
    return _status("VmRSS")


def peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> float:
    """A size in /proc/self/status in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def measure_loss(name: str, model: str, precision: str, tree: Tree) -> dict[str, float]:
    """Time and extra memory of one forward and backward pass of a head's loss."""
    device = device_here()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = head_of("flat" if name in (UNCHUNKED, TORCH) else name, model, tree, device).train()
    dim = config_of("flat", model).model.dim
    hidden = torch.randn(IMAGES, POSITIONS, dim, device=device, requires_grad=True)
    tokens = torch.randint(NUM_TOKENS, (IMAGES, POSITIONS), device=device)
    for parameter in (hidden, *head.parameters()):
        parameter.grad = torch.zeros_like(parameter)

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            flat = hidden.flatten(0, 1)
            if name == UNCHUNKED:
                loss = F.cross_entropy(head.output(flat).float(), tokens.flatten(), reduction="none").mean()
            elif name == TORCH:
                options = torch.nn.LinearCrossEntropyOptions()
                given = flat, head.output.weight, tokens.flatten()
                loss = F.linear_cross_entropy(*given, reduction="none", options=options).float().mean()
            else:
                loss = -head.log_probs(hidden, tokens).sum(-1).mean()
        loss.backward()

    if device.type == "cuda":
        work()  # compiles kernels
    before, start = memory_mib(device), clock(device)
    work()
    return {"seconds": clock(device) - start, "extra_mib": peak_mib(device) - before}


class Along(SamplingPick):
    """A pick that does the work of sampling and then follows the paths of given tokens."""

    def __init__(self, config: SamplingConfig, path: Tensor, decision: int = 0):
        uniforms = torch.rand(path.shape[1] // 2, len(path), dtype=torch.float64, device=path.device)
        super().__init__(config, uniforms, config.guidance, decision)
        self.path = path

    def __call__(self, logits: Tensor) -> Tensor:
        super().__call__(logits)
        return self.path[self.decision - 1]

    def uniform(self, sizes: Tensor) -> Tensor:
        super().uniform(sizes)
        return self.path[self.decision - 1]


def numbers_read(head: Head, tokens: Tensor) -> int:
    """Numbers of the weights that a step reads which draws `tokens` (B,): the rows of the nodes met, each once.

    The second network of a head of two stages is read once a batch of images, which is not counted."""
    if isinstance(head, MascTreeHead):
        rows = head.sizes[0]
        for table, parents in zip(head.below, head.node_of[:-1, tokens], strict=True):
            rows += int(table.counts[parents.unique()].sum())
        return rows * head.output.in_features
    if isinstance(head, MascTwoLevelHead):
        rows = head.num_clusters + int(head.members.counts[head.cluster_of[tokens].unique()].sum())
        return rows * head.output.in_features
    if isinstance(head, ImageHead):
        return head.output.weight.numel()
    return sum(parameter.numel() for parameter in head.parameters())


@torch.inference_mode()
def measure_step(name: str, model: str, precision: str, batch: int, tree: Tree) -> dict[str, float]:
    """Milliseconds of a head's step, its parameters, and bytes of the weights that it reads."""
    device = device_here()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = head_of(name, model, tree, device).eval()
    if isinstance(head, TreeSharedHead):
        head = head.folded()
    dim = config_of(name, model).model.dim
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    head = head.to(kind)
    hidden = torch.randn(2 * batch, dim, device=device, dtype=kind)
    config = SamplingConfig(guidance=2.0)
    repeats = max(5, 200 // batch)
    drawn = [torch.randint(NUM_TOKENS, (batch,), device=device) for _ in range(repeats + 1)]
    paths = [head.path(tokens.repeat(2)) for tokens in drawn]

    def step(path: Tensor) -> None:
        head.sample(hidden, Along(config, path))

    before = memory_mib(device)
    step(paths[0])
    start = clock(device)
    for path in paths[1:]:
        step(path)
    seconds = (clock(device) - start) / repeats
    row = {"head_ms": 1000 * seconds, "parameters": sum(parameter.numel() for parameter in head.parameters())}
    width = head.tables()[0].element_size()
    row["mib_read"] = statistics.mean(numbers_read(head, tokens) for tokens in drawn) * width / 2**20
    if isinstance(head, ImageHead):
        images = torch.randn(2 * batch, POSITIONS, dim, device=device, dtype=kind)
        tokens = torch.randint(NUM_TOKENS, (batch, POSITIONS), device=device).repeat(2, 1)
        start = clock(device)
        head.finish(images, tokens, Along(config, head.path(tokens).flatten(1), decision=1))
        row["finish_ms_a_position"] = 1000 * (clock(device) - start) / POSITIONS
    return row | {"extra_mib": peak_mib(device) - before}


@torch.inference_mode()
def measure_backbone(model: str, precision: str, batch: int) -> dict[str, float]:
    """Milliseconds of the backbone's step in the middle of an image, guidance on."""
    device = device_here()
    torch.set_num_threads(1)
    config = config_of("flat", model).model
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = TokenEmbedding(NUM_TOKENS, config.dim, None)
    backbone = Transformer(config, tokens, DataShape(NUM_TOKENS, 1000, POSITIONS)).to(device, kind).eval()
    # One cache serves all layers: the same work, and a thirty-sixth of 12 GB at XL.
    shape = 2 * batch, config.kv_heads, POSITIONS, config.head_dim
    keys, values = (torch.zeros(shape, device=device, dtype=kind) for _ in range(2))
    caches = [KVCache(keys, values)] * config.num_layers
    drawn = torch.randint(NUM_TOKENS, (2 * batch,), device=device)
    middle, repeats = POSITIONS // 2, 3
    backbone.step(drawn, middle, caches)
    start = clock(device)
    for _ in range(repeats):
        backbone.step(drawn, middle, caches)
    return {"backbone_ms": 1000 * (clock(device) - start) / repeats}


def in_a_process(tree: Path, **case: str | int) -> dict[str, float]:
    words = [f"--{key}={value}" for key, value in case.items()]
    command = [sys.executable, __file__, f"--tree={tree}", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_case(arguments: argparse.Namespace) -> dict[str, float]:
    """What one process measures."""
    merges = np.load(arguments.tree)
    tree, given = Tree(merges), (arguments.model, arguments.precision)
    if arguments.case == "loss":
        return measure_loss(arguments.head, *given, tree)
    if arguments.case == "backbone":
        return measure_backbone(*given, arguments.batch)
    return measure_step(arguments.head, *given, arguments.batch, tree)


def bench_loss(tree: Path, heads: list[str], arguments: argparse.Namespace) -> list[dict]:
    """The table of the loss; ratios to `flat-unchunked`."""
    found: dict[str, list[dict]] = {}
    for _ in range(arguments.rounds):
        for name in (UNCHUNKED, TORCH, *heads):
            case = {"case": "loss", "head": name, "model": "llamagen-xl", "precision": arguments.precision}
            found.setdefault(name, []).append(in_a_process(tree, **case))
    rows = []
    print(f"{'loss at XL width':<24}{'seconds':>9}{'ratio':>7}{'extra MiB':>11}{'ratio':>7}")
    for name, values in found.items():
        row = {"head": name, "seconds": statistics.median(value["seconds"] for value in values)}
        row["extra_mib"] = statistics.median(value["extra_mib"] for value in values)
        for key in ("seconds", "extra_mib"):
            pairs = zip(values, found[UNCHUNKED], strict=True)
            row[f"{key}_ratio"] = statistics.median(value[key] / base[key] for value, base in pairs)
        rows.append(row)
        print(
            f"{name:<24}{row['seconds']:>9.2f}{row['seconds_ratio']:>7.2f}"
            f"{row['extra_mib']:>11.0f}{row['extra_mib_ratio']:>7.2f}"
        )
    return rows


def bench_step(tree: Path, heads: list[str], model: str, batch: int, arguments: argparse.Namespace) -> list[dict]:
    """The table of a sampling step; ratios to the flat head's step."""
    given = {"model": model, "precision": arguments.precision, "batch": batch}
    backbone = in_a_process(tree, case="backbone", **given)
    names = list(dict.fromkeys(["flat", *heads]))
    found: dict[str, list[dict]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            found.setdefault(name, []).append(in_a_process(tree, case="step", head=name, **given))
    rows = []
    print(f"\n{model}, batch {batch}: backbone {backbone['backbone_ms']:.1f} ms a step")
    print(f"{'head':<24}{'ms a step':>10}{'ratio':>7}{'parameters':>13}{'MiB read':>10}{'images/s':>10}{'to flat':>9}")
    for name, values in found.items():
        total = [value["head_ms"] + value.get("finish_ms_a_position", 0.0) for value in values]
        flat = [value["head_ms"] for value in found["flat"]]
        rate = [1000 * batch / (POSITIONS * (backbone["backbone_ms"] + ms)) for ms in total]
        row = {
            "model": model,
            "batch": batch,
            "head": name,
            "backbone_ms": backbone["backbone_ms"],
            "head_ms": statistics.median(value["head_ms"] for value in values),
            "finish_ms_a_position": statistics.median(value.get("finish_ms_a_position", 0.0) for value in values),
            "ratio": statistics.median(ms / base for ms, base in zip(total, flat, strict=True)),
            "spread": max(total) / min(total),
            "parameters": values[0]["parameters"],
            "mib_read": values[0]["mib_read"],
            "extra_mib": statistics.median(value["extra_mib"] for value in values),
            "images_per_second": statistics.median(rate),
        }
        rows.append(row)
        row["images_to_flat"] = row["images_per_second"] / rows[0]["images_per_second"]
        print(
            f"{name:<24}{statistics.median(total):>10.2f}{row['ratio']:>7.2f}{row['parameters']:>13,}{row['mib_read']:>10.2f}"
            f"{row['images_per_second']:>10.3f}{row['images_to_flat']:>9.3f}"
        )
    return rows


def break_even(dim: int) -> str:
    """The arithmetic of a head's step against the flat head's, in words."""
    flat = NUM_TOKENS * dim
    levels = math.ceil(math.log2(NUM_TOKENS))
    return (
        f"width {dim}: flat multiplies {flat:,} numbers a state; k = 8192 multiplies {flat // 2:,}; a binary walk "
        f"{levels * dim:,} in {levels} steps that wait for one another"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "loss", "step"), default="all")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--models", nargs="+", default=["llamagen-b", "llamagen-l", "llamagen-xl"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the results go")
    for key in ("case", "head", "model", "tree"):
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "merges.npy"
        np.save(tree, average_linkage(codebook("manifold", NUM_TOKENS)).merges)
        results: dict[str, list[dict]] = {"loss": [], "step": []}
        if arguments.part in ("all", "loss"):
            results["loss"] = bench_loss(tree, arguments.heads, arguments)
        if arguments.part in ("all", "step"):
            for model in arguments.models:
                print(f"\n{break_even(config_of('flat', model).model.dim)}")
                for batch in arguments.batches:
                    results["step"] += bench_step(tree, arguments.heads, model, batch, arguments)
    if arguments.out:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
