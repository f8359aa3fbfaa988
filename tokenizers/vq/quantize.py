"""Vector quantization against an l2-normalised codebook (LlamaGen, Sec. 3.1).

Follows FoundationVision/LlamaGen (ce98ec4), tokenizer/tokenizer_image/vq_model.py: latents and codebook
rows are compared on the unit sphere, and decoding reads the normalised rows too. The raw parameter is
therefore not the codebook: `codebook` is.

Shapes: B images, H x W code grid, d code dimension, N tokens, M latents."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    latents: Tensor  # (B, d, H, W), straight-through: the gradient passes to the encoder
    tokens: Tensor  # (B, H * W) int64, raster order
    loss: Tensor  # codebook loss + commitment * commitment loss


class VectorQuantizer(nn.Module):
    """N vectors on the unit sphere in d dimensions, learned by the codebook loss."""

    def __init__(self, num_tokens: int, code_dim: int, commitment: float):
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, code_dim)
        self.commitment = commitment

    @property
    def codebook(self) -> Tensor:
        """The effective vectors, as they are compared and decoded: (N, d), unit rows."""
        return F.normalize(self.embedding.weight, dim=-1)

    def forward(self, z: Tensor) -> Quantized:
        """Nearest codebook vectors of the latents z (B, d, H, W)."""
        z = F.normalize(z.permute(0, 2, 3, 1), dim=-1)  # (B, H, W, d)
        codebook = self.codebook
        # On the unit sphere |z - e|^2 = 2 - 2 z.e: the nearest vector has the largest inner product.
        tokens = (z.detach() @ codebook.detach().T).argmax(-1)
        quantized = codebook[tokens]
        loss = F.mse_loss(quantized, z.detach()) + self.commitment * F.mse_loss(z, quantized.detach())
        straight_through = z + (quantized - z).detach()
        return Quantized(straight_through.permute(0, 3, 1, 2), tokens.flatten(1), loss)

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
            raise ValueError(f"k-means over {num_tokens} tokens needs as many latents, found {len(latents)}")
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
