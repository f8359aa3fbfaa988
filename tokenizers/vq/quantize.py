"""Vector quantization with a learned codebook, l2-normalised by default (LlamaGen, Sec. 3.1).

Follows FoundationVision/LlamaGen (ce98ec4), tokenizer/tokenizer_image/vq_model.py: latents and codebook rows are
compared on the unit sphere, and the decoder reads the normalised rows too. The codebook is therefore the property
`codebook`, not the raw parameter. Without normalisation this is the quantizer of VQGAN.

Shapes: B images, H x W code grid, d code dimension, N tokens, M latents."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCORES = 2**24  # in memory at once: 64 MiB


class Quantized(NamedTuple):
    latents: Tensor  # (B, d, H, W), straight-through: the gradient passes to the encoder
    tokens: Tensor  # (B, H * W) int64, raster order
    loss: Tensor  # codebook loss + commitment * commitment loss


def best_match(latents: Tensor, codebook: Tensor, offset: Tensor | None = None) -> Tensor:
    """The row e with the largest z.e + offset: (M, d), (N, d), (N,) -> (M,) int64, in slices."""
    return torch.cat([scores.argmax(-1) for scores in _scores(latents, codebook, offset)])


def best_matches(latents: Tensor, codebook: Tensor, count: int, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `count` rows e with the largest z.e + offset, and these scores, descending: (M, count) int64 and float32.

    The first row is that of `best_match`, also where scores are equal."""
    rows, best = [], []
    for scores in _scores(latents, codebook, offset):
        first = scores.argmax(-1, keepdim=True)
        highest = scores.gather(1, first)
        found = scores.scatter_(1, first, float("inf")).topk(count)
        rows.append(found.indices)
        best.append(torch.cat([highest, found.values[:, 1:]], 1))
    return torch.cat(rows), torch.cat(best)


def _scores(latents: Tensor, codebook: Tensor, offset: Tensor | None) -> Iterator[Tensor]:
    """z.e + offset in slices of at most MAX_SCORES numbers: (M, d), (N, d), (N,) -> (B, N) each."""
    for part in latents.split(max(1, MAX_SCORES // len(codebook))):
        yield part @ codebook.T if offset is None else torch.addmm(offset, part, codebook.T)


class VectorQuantizer(nn.Module):
    """N vectors in d dimensions, on the unit sphere if `l2_norm`, learned by the codebook loss."""

    def __init__(self, num_tokens: int, code_dim: int, commitment: float, l2_norm: bool = True):
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, code_dim)
        self.commitment, self.l2_norm = commitment, l2_norm

    @property
    def codebook(self) -> Tensor:
        """The effective vectors, as they are compared and decoded: (N, d), unit rows if `l2_norm`."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    def compared(self, z: Tensor) -> Tensor:
        """The latents in the form that is compared with the codebook: (B, d, H, W) -> (B, H, W, d)."""
        z = z.permute(0, 2, 3, 1)
        return F.normalize(z, dim=-1) if self.l2_norm else z

    @torch.no_grad()
    def tokens(self, z: Tensor) -> Tensor:
        """Nearest codebook vectors of the latents: (B, d, H, W) -> (B, H * W) int64, raster order."""
        z, codebook = self.compared(z), self.codebook
        return best_match(z.flatten(0, 2), codebook, self._offset(codebook)).view(len(z), -1)

    @torch.no_grad()
    def near(self, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` nearest codebook vectors of each latent, and their squared distances to the compared latent.

        (B, d, H, W) -> (B, H * W, count) int64 and float32, ascending, raster order. The first one is the token."""
        z, codebook = self.compared(z).flatten(1, 2), self.codebook
        offset = self._offset(codebook)
        rows, scores = best_matches(z.flatten(0, 1), codebook, count, offset)
        norms = z.square().sum(-1, keepdim=True) + (1 if offset is None else 0)
        return rows.view(*z.shape[:2], count), (norms - 2 * scores.view(*z.shape[:2], count)).clamp(min=0)

    def _offset(self, codebook: Tensor) -> Tensor | None:
        """-|e|^2 / 2 of each vector: (N,); None on the unit sphere, where it is the same for all.

        |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2): the nearest vector has the largest bracket."""
        return None if self.l2_norm else codebook.square().sum(-1) / -2

    def forward(self, z: Tensor) -> Quantized:
        """Nearest codebook vectors of the latents z (B, d, H, W)."""
        tokens = self.tokens(z)
        z, codebook = self.compared(z), self.codebook  # z: (B, H, W, d)
        quantized = codebook[tokens].view(z.shape)
        loss = F.mse_loss(quantized, z.detach()) + self.commitment * F.mse_loss(z, quantized.detach())
        straight_through = z + (quantized - z).detach()
        return Quantized(straight_through.permute(0, 3, 1, 2), tokens, loss)

    def lookup(self, tokens: Tensor, grid: int) -> Tensor:
        """Vectors of a code grid: (B, grid * grid) -> (B, d, grid, grid)."""
        return self.codebook[tokens].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialise(self, latents: Tensor, seed: int) -> None:
        """Set the codebook to the spherical k-means centres of the latents (M, d), M >= N."""
        import faiss

        latents = F.normalize(latents, dim=-1)
        num_tokens, code_dim = self.embedding.weight.shape
        if len(latents) < num_tokens:
            raise ValueError(
                f"k-means with {num_tokens} centres needs as many latents, found {len(latents)}; use more images"
            )
        kmeans = faiss.Kmeans(
            code_dim,
            num_tokens,
            niter=20,
            spherical=True,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=max(1, len(latents) // num_tokens),
        )
        kmeans.train(latents.cpu().numpy())
        self.embedding.weight.copy_(torch.from_numpy(kmeans.centroids))
