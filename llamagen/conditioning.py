"""What an image is conditioned on: its class, or nothing (the null class that guidance needs)."""

from torch import Tensor, nn


class LabelEmbedding(nn.Module):
    """One vector a class, and one for the null class, numbered `num_classes`.

    With `class_dropout` 0 there is no null class, as in the released code, and no guidance."""

    def __init__(self, num_classes: int, dim: int, class_dropout: float):
        super().__init__()
        self.num_classes = num_classes
        self.has_null = class_dropout > 0
        self.embedding_table = nn.Embedding(num_classes + self.has_null, dim)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) class numbers, `num_classes` for the null class -> (B, 1, D)."""
        return self.embedding_table(labels)[:, None]
