"""Semantic Replacement Test (MASC, Sec. 4): does swapping tokens within their clusters change the picture?"""

import numpy as np

from masc.tree import Partition
from vq.measure import peak_signal_to_noise


def replace_tokens(tokens: np.ndarray, partition: Partition, seed: int) -> np.ndarray:
    """Every token replaced by a uniformly drawn member of its cluster, itself included: (M, T) -> (M, T)."""
    cluster = partition.cluster_of[tokens]
    draw = np.random.default_rng(seed).random(tokens.shape)
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
    # A picture whose tokens all stayed has no error: it counts as 60 dB, beyond what uint8 tells apart.
    psnr = np.minimum(peak_signal_to_noise(plain, replaced), 60.0)
    return {"psnr_db": float(psnr.mean()), "ssim": structural_similarity(plain, replaced)}
