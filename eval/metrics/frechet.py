"""Frechet distance of two feature sets (Heusel et al. 2017), exact also with fewer samples than dimensions."""

import numpy as np

from masc.artifacts import InputError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (M, D), (M', D), in float64.

    With centred factors S = F^T F the last trace is the nuclear norm of F_a F_b^T, which needs no matrix
    square root and stays exact for singular covariances. One QR each and one SVD of min(M, D) x min(M', D).
    Raises InputError for fewer than 2 samples, other dimensions or non-finite features."""
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            raise InputError(
                "a Frechet distance needs two sets of at least 2 feature vectors of one dimension, "
                f"found {a.shape} and {b.shape}"
            )
        if not np.isfinite(features).all():
            raise InputError("features are not finite; the images or the extractor are broken")
    mean_a, factor_a = _mean_and_factor(a)
    mean_b, factor_b = _mean_and_factor(b)
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    traces = np.square(factor_a).sum() + np.square(factor_b).sum()
    return float(np.square(mean_a - mean_b).sum() + traces - 2 * cross)


def _mean_and_factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and F (min(M, D), D) with F^T F the unbiased covariance."""
    features = features.astype(np.float64)
    mean = features.mean(0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.linalg.qr(centred, mode="r")
