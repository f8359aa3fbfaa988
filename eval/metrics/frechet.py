"""Frechet distance of two feature sets (Heusel et al. 2017), exact also with fewer samples than dimensions.

No matrix square root is computed. With covariances S = F^T F the trace of (S_a S_b)^(1/2) is the nuclear norm of
F_a F_b^T. With fewer samples than dimensions it comes from the singular values of a small matrix, otherwise from the
eigenvalues of F_b S_a F_b^T. F_b, a Cholesky factor, depends only on the reference and is kept with it."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from masc.runtime.errors import InputError

# Shapes: M samples, D dimensions, R <= min(M, D) rows of a factor. All in float64.


def check_features(features: np.ndarray | Tensor, what: str, dim: int | None = None) -> None:
    """Raise InputError unless features are finite numbers (M, D), M >= 1, and D is `dim` if that is given."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or not features.is_floating_point() or not features.numel():
        raise InputError(f"expected floats (M, D) of {what}, found {features.dtype} {tuple(features.shape)}")
    if dim not in (None, features.shape[1]):
        raise InputError(
            f"expected features of {dim} dimensions of {what}, found {features.shape[1]}: they come from different "
            "extractors"
        )
    if not features.isfinite().all():
        raise InputError(f"{what} have values that are not finite; the images or the extractor are broken")


class Gaussian:
    """Mean (D,) and covariance of a feature set: as centred samples if M <= D, otherwise as a matrix (D, D)."""

    def __init__(self, mean: Tensor, covariance: Tensor | None = None, rows: Tensor | None = None):
        self.mean = mean
        self._covariance = covariance
        self.rows = rows  # (M, D), centred and scaled: rows^T rows is the covariance

    @classmethod
    def from_factor(cls, mean: Tensor, factor: Tensor) -> "Gaussian":
        """From a stored factor: the factor of a matrix if it has as many rows as dimensions, otherwise samples."""
        if len(factor) < len(mean):
            return cls(mean, rows=factor)
        kept = cls(mean)
        kept.factor = factor
        return kept

    @classmethod
    def of(cls, features: np.ndarray | Tensor, device: torch.device | str = "cpu") -> "Gaussian":
        """From features (M, D), with unbiased covariance. Raises InputError if M < 2 or a value is not finite."""
        check_features(features, "the features")
        moments = Moments(features.shape[1], device)
        for start in range(0, len(features), 4096):
            moments.add(torch.as_tensor(features[start : start + 4096]))
        return moments.gaussian()

    @property
    def dim(self) -> int:
        return len(self.mean)

    @cached_property
    def covariance(self) -> Tensor:
        return self._covariance if self._covariance is not None else self.factor.T @ self.factor

    @cached_property
    def factor(self) -> Tensor:
        """F (R, D) with F^T F equal to the covariance. Costs D^3 / 3 multiplications, many more if it is singular."""
        if self.rows is not None:
            return self.rows
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        if not failed:
            return lower.T
        values, vectors = torch.linalg.eigh(self.covariance)  # singular: some dimensions never vary
        return values.clamp_min(0).sqrt()[:, None] * vectors.T

    @property
    def trace(self) -> Tensor:
        return self.factor.square().sum() if self._covariance is None else self._covariance.diagonal().sum()


def frechet_distance(a: np.ndarray | Gaussian, b: np.ndarray | Gaussian) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (M, D), (M', D) or their statistics.

    `b` is the reference; its factor is kept for the next distance. Raises InputError if the dimensions differ, if there
    are fewer than 2 samples, or if a feature is not finite."""
    a, b = (one if isinstance(one, Gaussian) else Gaussian.of(one) for one in (a, b))
    if a.dim != b.dim:
        raise InputError(
            f"a Frechet distance needs features of one dimension, found {a.dim} and {b.dim}: they come from different "
            "extractors"
        )
    if a.rows is None and b.rows is None:
        product = b.factor @ a.covariance @ b.factor.T
        cross = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
    else:
        cross = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return float((a.mean - b.mean).square().sum() + a.trace + b.trace - 2 * cross)


class Moments:
    """Running mean and covariance in float64, about the first batch's mean, so that no digits cancel.

    The samples are kept while there are no more of them than dimensions. Memory is D^2 for any M."""

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self._products: Tensor | None = None
        self._shift: Tensor | None = None
        self._rows: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Add features (B, D); InputError if one is not finite."""
        if features.ndim != 2 or features.shape[1] != len(self._sum):
            raise InputError(
                f"expected features (B, {len(self._sum)}), found {tuple(features.shape)} of another extractor"
            )
        if not features.isfinite().all():
            raise InputError("features are not finite; the images or the extractor are broken")
        if not len(features):
            return
        features = features.to(self._sum)
        if self._shift is None:
            self._shift = features.mean(0)
        self.count += len(features)
        self._sum += (features - self._shift).sum(0)
        self._rows.append(features)
        if self.count > len(self._sum):
            self._fold()

    def _fold(self) -> None:
        """Replace the kept samples by sums of products about the shift."""
        if self._products is None:
            self._products = torch.zeros(len(self._sum), len(self._sum), dtype=torch.float64, device=self._sum.device)
        for rows in self._rows:
            shifted = rows - self._shift
            self._products.addmm_(shifted.T, shifted)
        self._rows = []

    def cpu(self) -> "Moments":
        """A copy on the CPU, which can be sent to another process."""
        other = Moments(len(self._sum))
        other.count, other._sum, other._rows = self.count, self._sum.cpu(), [rows.cpu() for rows in self._rows]
        other._products = None if self._products is None else self._products.cpu()
        other._shift = None if self._shift is None else self._shift.cpu()
        return other

    def merge(self, others: Iterable["Moments"]) -> None:
        """Add the samples of other moments, such as those of other processes."""
        for other in others:
            if other._products is None:
                for rows in other._rows:
                    self.add(rows)
                continue
            if self._shift is None:
                self._shift = other._shift.to(self._sum)
            self._fold()
            move = other._shift.to(self._sum) - self._shift  # (x - a) = (x - b) + (b - a)
            theirs = other._sum.to(self._sum)
            cross = torch.outer(theirs, move)
            self._products += other._products.to(self._sum) + cross + cross.T + other.count * torch.outer(move, move)
            self._sum += theirs + other.count * move
            self.count += other.count

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; InputError with fewer than 2 samples."""
        if self.count < 2:
            raise InputError(f"a Frechet distance needs at least 2 samples, found {self.count}")
        off = self._sum / self.count
        mean = self._shift + off
        if self._products is None:
            return Gaussian(mean, rows=(torch.cat(self._rows) - mean) / (self.count - 1) ** 0.5)
        return Gaussian(mean, (self._products - self.count * torch.outer(off, off)) / (self.count - 1))
