"""Semantic Replacement Test (MASC, Sec. 4): does swapping tokens within their clusters change the picture?"""

import numpy as np

from masc.tree import Partition
from vq.measure import MAX_PSNR, peak_signal_to_noise


def replace_tokens(tokens: np.ndarray, partition: Partition, seed: int) -> np.ndarray:
    """Every token replaced by a uniformly drawn member of its cluster, itself included: (M, T) -> (M, T)."""
    cluster = partition.cluster_of[tokens]
    draw = np.random.default_rng([seed, 1003]).random(tokens.shape)
    return partition.members[partition.offsets[cluster] + (draw * partition.sizes[cluster]).astype(np.int64)]


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Mean SSIM of pairs of uint8 pictures (M, H, W, 3), Gaussian window (Wang et al. 2004)."""
    from skimage.metrics import structural_similarity as ssim

    options = {
        "channel_axis": -1,
        "data_range": 255,
        "gaussian_weights": True,
        "use_sample_covariance": False,
    }
    return float(np.mean([ssim(x, y, sigma=1.5, **options) for x, y in zip(a, b, strict=True)]))


def compare_replaced(plain: np.ndarray, replaced: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of pictures with replaced tokens against the plain reconstructions (M, H, W, 3) uint8."""
    psnr = np.minimum(peak_signal_to_noise(plain, replaced), MAX_PSNR)
    return {"psnr_db": float(psnr.mean()), "ssim": structural_similarity(plain, replaced)}
