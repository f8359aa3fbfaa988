"""Speed of VQ-16 on this machine against LlamaGen's own class, in one run.

    .venv/bin/python benchmarks/vq16.py --llamagen /path/to/LlamaGen    # a checkout of FoundationVision/LlamaGen

Both have the same random weights and the same 256 x 256 images and are timed in turn: in seconds of a GPU, or in CPU
seconds summed over the threads, which other work on the machine disturbs least. Printed are the median over the rounds
and the median of the ratios to LlamaGen's, and how many tokens differ. Writes benchmarks/vq16.json."""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from masc.runtime.files import write_json
from vq.llamagen import LlamaGenVQ

ROOT = Path(__file__).resolve().parents[1]
ENCODE, DECODE = "encode", "decode"


def official_class(checkout: Path) -> Callable:
    """LlamaGen's `VQ_16`, loaded from its file alone."""
    path = checkout / "tokenizer" / "tokenizer_image" / "vq_model.py"
    spec = importlib.util.spec_from_file_location("llamagen_vq_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VQ_16


def seconds_of(run: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamagen", type=Path, required=True, help="a checkout of FoundationVision/LlamaGen")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, batch = torch.device(arguments.device), arguments.batch
    official, ours = official_class(arguments.llamagen)().eval().to(device), LlamaGenVQ().eval().to(device)
    ours.load_state_dict(official.state_dict())

    images = (torch.rand(batch, 3, 256, 256) * 2 - 1).to(device)
    tokens = ours.encode(images)
    expected = official.encode(images)[2][2].view(batch, -1)
    shape = (batch, 8, 16, 16)
    differing = (tokens != expected).sum().item()
    gap = (ours.decode(expected) - official.decode_code(expected.flatten(), shape)).abs().max().item()
    tasks = {
        ENCODE: {"LlamaGen": lambda: official.encode(images)[2][2], "ours": lambda: ours.encode(images)},
        DECODE: {
            "LlamaGen": lambda: official.decode_code(expected.flatten(), shape),
            "ours": lambda: ours.decode(expected),
        },
    }
    results = []
    for task, variants in tasks.items():
        times: dict[str, list[float]] = {name: [] for name in variants}
        for run in variants.values():
            run()  # warm-up
        for _ in range(arguments.rounds):
            for name, run in variants.items():
                times[name].append(seconds_of(run, device) / batch)
        for name, values in times.items():
            ratio = statistics.median(value / base for value, base in zip(values, times["LlamaGen"], strict=True))
            median = statistics.median(values)
            results.append({"task": task, "variant": name, "seconds_per_image": median, "ratio": ratio})
            print(f"{task}  {name:10s} {median:8.3f} s an image  {ratio:5.2f}")
    machine = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {arguments.threads} threads",
        "batch": batch,
        "rounds": arguments.rounds,
    }
    agreement = {"tokens": batch * 256, "differing_tokens": differing, "largest_difference_of_decoded_images": gap}
    write_json(ROOT / "benchmarks" / "vq16.json", {"machine": machine, "agreement": agreement, "results": results})
    print(json.dumps({**machine, **agreement}))


if __name__ == "__main__":
    main()
