"""Speed of reading codes for training: ours against one .npy file an image (`make bench-data`).

    make bench-data                                        # the released layout, read as LlamaGen's loader reads it
    make bench-data ARGS="--llamagen /path/to/LlamaGen"    # by the loader of a checkout of FoundationVision/LlamaGen

The same random ten-crop codes lie in both layouts: one int64 (1, 10, 256) file and one label file an image, and one
codes.npy. Each is read in shuffled batches through one epoch, with one view of an image drawn, in turn, round after
round: warm (just read before), and cold (the page cache of these files dropped; names and inodes stay cached, which
favours many files). Prints samples a second and the ratio (median over rounds); writes benchmarks/data.json."""

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from llamagen.training.stream import CodeStream
from masc.runtime.codes import load_codes, save_codes
from masc.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
NUM_TOKENS, NUM_VIEWS, NUM_POSITIONS, NUM_CLASSES = 16384, 10, 256, 1000


class OneFileAnImage(Dataset):
    """The released layout as FoundationVision/LlamaGen (ce98ec4), dataset/imagenet.py reads it: two files a sample,
    all views read, one of them kept."""

    def __init__(self, codes: Path, labels: Path):
        self.codes, self.labels = codes, labels

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        views = np.load(self.codes / f"{index}.npy")
        view = torch.randint(0, views.shape[1], (1,)).item()
        return torch.from_numpy(views[:, view]), torch.from_numpy(np.load(self.labels / f"{index}.npy"))


def write_both(root: Path, num_images: int, codebook: str = "bench") -> tuple[Path, Path, Path]:
    """The same codes in both layouts; their folders: released codes, released labels, ours. `codebook` is the SHA-256
    that ours names."""
    rng = np.random.default_rng(0)
    codes, labels, ours = root / "flip" / "imagenet256_codes", root / "flip" / "imagenet256_labels", root / "ours"
    codes.mkdir(parents=True)
    labels.mkdir()
    tokens = rng.integers(0, NUM_TOKENS, (num_images, NUM_VIEWS, NUM_POSITIONS))
    label = rng.integers(0, NUM_CLASSES, num_images)
    for index in tqdm(range(num_images), desc="writing the released layout"):
        np.save(codes / f"{index}.npy", tokens[index : index + 1])
        np.save(labels / f"{index}.npy", label[index : index + 1])
    names = [str(number) for number in range(NUM_CLASSES)]
    save_codes(ours, tokens, label, np.arange(num_images), names, [], NUM_TOKENS, codebook, {})
    return codes, labels, ours


def forget(folders: list[Path]) -> None:
    """Drop the page cache of all files in some folders; RuntimeError if more than one in a hundred stays in it.

    A few do: the kernel has them in hand at that moment."""
    gc.collect()  # pages that are still mapped are not dropped
    files = [entry.path for folder in folders for entry in os.scandir(folder)]
    kept = 0
    for path in files:
        with open(path, "rb") as file:  # noqa: PTH123 - forty thousand Paths are slow
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            kept += is_cached(file.fileno())
            if path.endswith("codes.npy"):
                drop_patiently(path, file.fileno())
    if kept > len(files) / 100:
        raise RuntimeError(f"{kept} files stay in the page cache; choose a folder on a disk with --folder")


def drop_patiently(path: str, descriptor: int) -> None:
    """Drop the file that all depends on; RuntimeError if it stays for ten tries."""
    for _ in range(10):
        if not is_cached(descriptor):
            return
        time.sleep(0.5)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    raise RuntimeError(f"{path} stays in the page cache; choose a folder on a disk with --folder")


def is_cached(descriptor: int) -> bool:
    """Whether the first page of a file is in the page cache."""
    try:
        return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False


def timed(epoch: Callable[[], int]) -> float:
    """Samples a second of wall clock."""
    start = time.perf_counter()
    return epoch() / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamagen", type=Path, help="a checkout of FoundationVision/LlamaGen")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)  # LlamaGen's
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the released layout's DataLoader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made (and removed)")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-data-", dir=arguments.folder))
    try:
        results = compare(root, arguments)
    finally:
        shutil.rmtree(root)
    machine = {"cores": os.cpu_count(), "images": arguments.images, "batch_size": arguments.batch_size}
    machine |= {"workers": arguments.workers, "rounds": arguments.rounds, "torch": torch.__version__}
    machine |= {"loader": "LlamaGen's own" if arguments.llamagen else "as LlamaGen's"}
    write_json(ROOT / "benchmarks" / "data.json", {"machine": machine, "results": results})
    print(f"\n{'':6s}{'one .npy an image':>20s}{'packed codes':>16s}{'ratio':>8s}   samples a second, {machine}")
    for row in results:
        print(f"{row['cache']:6s}{row['one_npy_an_image']:20,.0f}{row['packed_codes']:16,.0f}{row['ratio']:8.1f}")


def compare(root: Path, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """Samples a second of both layouts, warm and cold."""
    codes, labels, ours = write_both(root, arguments.images)
    if arguments.llamagen:
        sys.path.insert(0, str(arguments.llamagen))
        from dataset.imagenet import CustomDataset

        dataset = Subset(CustomDataset(str(codes), str(labels)), range(arguments.images))
    else:
        dataset = Subset(OneFileAnImage(codes, labels), range(arguments.images))
    loader = DataLoader(
        dataset,
        batch_size=arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        drop_last=True,
    )

    def released() -> int:
        return sum(len(y) for _, y in loader)

    def packed() -> int:
        stream = CodeStream(load_codes(ours, "bench"), 0, arguments.batch_size)  # maps the file anew
        return sum(len(stream.tokens(step)) for step in range(arguments.images // arguments.batch_size))

    speeds: dict[str, dict[str, list[float]]] = {"warm": {}, "cold": {}}
    released()  # starts the workers
    packed()
    for _ in tqdm(range(arguments.rounds), desc="rounds"):
        for cache, rows in speeds.items():
            for name, epoch in (("one_npy_an_image", released), ("packed_codes", packed)):
                if cache == "cold":
                    forget([codes, labels, ours])
                rows.setdefault(name, []).append(timed(epoch))
    results = []
    for cache, rows in speeds.items():
        ratios = [b / a for a, b in zip(rows["one_npy_an_image"], rows["packed_codes"], strict=True)]
        medians = {name: statistics.median(values) for name, values in rows.items()}
        results.append({"cache": cache, **medians, "ratio": statistics.median(ratios)})
    return results


if __name__ == "__main__":
    main()
