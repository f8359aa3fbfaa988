"""Partitions from files of others: IAR's permutation of the codebook, and plain mappings token -> cluster."""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np

from masc.runtime.errors import InputError
from masc.runtime.reading import advising, open_array, reason
from masc.tree import Partition

TORCH_SUFFIXES = (".pt", ".pth")


def import_partition(path: Path, num_tokens: int, cluster_size: int = 128) -> Partition:
    """The partition of N tokens in a file. The suffix decides what the file holds:

    .pt, .pth  IAR's permutation, a bare integer tensor (N,): mapping[token] is the token's place in the reordered
               codebook, and every `cluster_size` consecutive places are a cluster (IAR: 128)
    .npy       the cluster of each token, integers (N,), with all of 0..K-1 present

    Only tensors are unpickled. Raises InputError naming the file if it holds anything else."""
    path = Path(path)
    if path.suffix not in (*TORCH_SUFFIXES, ".npy"):
        raise InputError(f"a mapping is a .pt, .pth (IAR's permutation) or .npy file (token -> cluster), found {path}")
    if not path.is_file():
        raise InputError(f"no mapping at {path}; give the file with `tree.mapping=PATH`")
    is_permutation = path.suffix in TORCH_SUFFIXES
    mapping = _load_tensor(path) if is_permutation else _load_array(path, num_tokens)
    if mapping.dtype.kind not in "iu" or mapping.shape != (num_tokens,):
        raise InputError(
            f"expected integers ({num_tokens},), one for each token of the codebook, found {mapping.dtype} "
            f"{mapping.shape} in {path}; it was made for another tokenizer, or is no mapping"
        )
    if mapping.min() < 0:
        raise InputError(
            f"{path} holds {mapping.min()} for token {mapping.argmin()}; a mapping has no negative numbers"
        )
    if is_permutation:
        return Partition(_places_to_clusters(mapping, cluster_size, path))
    missing = np.setdiff1d(np.arange(min(int(mapping.max()) + 1, num_tokens)), mapping)
    if len(missing):
        raise InputError(
            f"{path} names clusters up to {mapping.max()}, but {missing[:5].tolist()} have no token "
            f"({len(missing)} in all); number the clusters 0..K-1 without gaps"
        )
    return Partition(mapping.astype(np.int64))


def _places_to_clusters(mapping: np.ndarray, cluster_size: int, path: Path) -> np.ndarray:
    """The cluster of each token from its place: (N,) -> (N,) int64; InputError unless places are a permutation."""
    num_tokens = len(mapping)
    if cluster_size < 1 or num_tokens % cluster_size:
        raise InputError(
            f"tree.cluster_size must divide the {num_tokens} tokens of {path}, found {cluster_size}; IAR's is 128"
        )
    missing = np.setdiff1d(np.arange(num_tokens), mapping)
    if len(missing):
        places, counts = np.unique(mapping, return_counts=True)
        raise InputError(
            f"{path} is not a permutation of 0..{num_tokens - 1}: places {missing[:5].tolist()} are missing "
            f"({len(missing)} in all), {places[counts > 1][:5].tolist()} occur more than once, the highest is "
            f"{mapping.max()}; a plain mapping token -> cluster must be a .npy file"
        )
    return mapping.astype(np.int64) // cluster_size


def _load_tensor(path: Path) -> np.ndarray:
    """The bare tensor in a torch file; InputError if it holds something else or is broken."""
    import torch

    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled code, which was not run, or is no torch file; save the bare integer tensor with "
            "torch.save"
        ) from error
    except Exception as error:  # for damaged bytes torch raises errors of many types, AssertionError too
        raise InputError(f"{path} is truncated or is no torch file ({reason(error)}); copy it again") from error
    if not isinstance(loaded, torch.Tensor) or loaded.layout != torch.strided or loaded.dtype.is_floating_point:
        found = f"{loaded.layout} {loaded.dtype}" if isinstance(loaded, torch.Tensor) else type(loaded).__name__
        raise InputError(f"expected a bare integer tensor in {path}, found {found}; IAR's mapping file is one")
    return loaded.numpy()


def _load_array(path: Path, num_tokens: int) -> np.ndarray:
    """The array (N,) of whole numbers in a .npy file; InputError if it holds something else or is damaged."""
    with advising(f"save the {num_tokens} whole numbers of this codebook's tokens with numpy.save"):
        return open_array(path, "iu", (num_tokens,))
