"""Mappings made elsewhere are read as what they are, and every other file is refused by name."""

import io

import numpy as np
import pytest
import torch

from masc.importers import import_partition
from masc.runtime.errors import InputError

N = 1024
SIZE = 128


@pytest.fixture
def places():
    """A permutation in the form of IAR's file: int64 (N,), place of each token in the reordered codebook."""
    return torch.from_numpy(np.random.default_rng(0).permutation(N))


def refused(path, words, num_tokens=N, cluster_size=SIZE):
    with pytest.raises(InputError, match=words) as error:
        import_partition(path, num_tokens, cluster_size)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_iars_permutation_becomes_clusters_of_equal_size(tmp_path, places, suffix, is_archive):
    path = tmp_path / f"mapping-kmeans+nearest-cluster_size=128{suffix}"
    torch.save(places, path, _use_new_zipfile_serialization=is_archive)
    partition = import_partition(path, N)
    assert partition.sizes.tolist() == [SIZE] * (N // SIZE)
    together = places.numpy()[:, None] // SIZE == places.numpy() // SIZE
    assert np.array_equal(partition.cluster_of[:, None] == partition.cluster_of, together)
    assert import_partition(path, N, cluster_size=2).num_clusters == N // 2


@pytest.mark.parametrize("dtype", ["int64", "uint16", ">i4"])
def test_a_plain_mapping_becomes_its_clusters(tmp_path, dtype):
    np.save(tmp_path / "mapping.npy", np.array([2, 2, 0, 1, 0], dtype))
    assert import_partition(tmp_path / "mapping.npy", 5).cluster_of.tolist() == [0, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.arange(N).float(), "bare integer tensor"),
        (torch.ones(N, dtype=torch.bool), r"expected integers \(1024,\).*bool"),
        (torch.arange(N).to_sparse(), "sparse"),
        (torch.arange(N)[None], r"expected integers \(1024,\).*\(1, 1024\)"),
        (torch.arange(N - 1), r"found int64 \(1023,\).*another tokenizer"),
        (torch.tensor(3), r"found int64 \(\)"),
        ({"mapping": torch.arange(N)}, "found dict"),
        (list(range(N)), "found list"),
        (torch.arange(N) // SIZE, r"not a permutation.*\[8, 9, 10, 11, 12\] are missing.*\.npy"),
        (torch.arange(N) + 1, r"not a permutation.*\[0\] are missing.*highest is 1024"),
        (torch.arange(N).clamp(min=5), r"not a permutation.*\[0, 1, 2, 3, 4\].*\[5\] occur more than once"),
        (torch.arange(N) - 1, "holds -1 for token 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_torch_file_of_anything_else_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "mapping.pt")
    refused(tmp_path / "mapping.pt", words)


def test_clusters_that_do_not_divide_the_codebook_are_refused(tmp_path, places):
    torch.save(places, tmp_path / "mapping.pt")
    for size in (0, -1, 100):
        refused(tmp_path / "mapping.pt", f"must divide the 1024 tokens.*found {size}", cluster_size=size)


class Loud:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_pickled_code_is_not_run(tmp_path):
    torch.save({"mapping": Loud()}, tmp_path / "mapping.pt")
    refused(tmp_path / "mapping.pt", "pickled code.*was not run")
    np.save(tmp_path / "mapping.npy", np.array([Loud()], object), allow_pickle=True)
    refused(tmp_path / "mapping.npy", "Python objects")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros(N, np.float32), r"expected whole numbers of shape \(1024\) .*float32"),
        (np.zeros(N, bool), "bool"),
        (np.zeros((N, 1), np.int64), r"\(1024, 1\)"),
        (np.zeros(5, np.int64), r"found int64 \(5,\).*of this codebook's tokens"),
        (np.zeros(0, np.int64), r"found int64 \(0,\)"),
        (np.r_[np.zeros(N - 2, int), 2, 5], r"up to 5, but \[1, 3, 4\] have no token \(3 in all\)"),
        (np.r_[np.zeros(N - 1, int), 2**62], r"\[1, 2, 3, 4, 5\] have no token \(1023 in all\)"),
        (np.r_[np.zeros(N - 1, int), -3], "holds -3 for token 1023"),
    ],
)
def test_a_numpy_file_of_anything_else_is_refused(tmp_path, content, words):
    np.save(tmp_path / "mapping.npy", content)
    refused(tmp_path / "mapping.npy", words)


def test_missing_files_folders_archives_and_other_suffixes_are_refused(tmp_path):
    for name in ("mapping.pt", "mapping.npy"):
        refused(tmp_path / name, "no mapping at.*tree.mapping=PATH")
        (tmp_path / name).mkdir()
        refused(tmp_path / name, "no mapping at")
    refused(tmp_path / "mapping.json", r"\.pt, \.pth .*or \.npy")
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, mapping=np.zeros(N, int))
    refused(tmp_path / "archive.npy", "the magic string is not correct")


@pytest.mark.parametrize("kind", ["archive.pt", "legacy.pt", "mapping.npy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_refused_or_read_never_anything_else(tmp_path, places, kind):
    whole = io.BytesIO()
    if kind == "mapping.npy":
        np.save(whole, places.numpy() // SIZE)
    else:
        torch.save(places, whole, _use_new_zipfile_serialization=kind == "archive.pt")
    whole, path, rng = whole.getvalue(), tmp_path / kind, np.random.default_rng(0)
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        refused(path, ".")
    for position in rng.integers(0, 700, 200):
        damaged = bytearray(whole)
        damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            import_partition(path, N)  # where the byte means nothing
        except InputError as error:
            assert str(path) in str(error)
