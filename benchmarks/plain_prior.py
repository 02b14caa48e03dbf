"""The plain gated PixelCNN that the toolkit's prior is compared with, written anew from the papers.

As most implementations, and the student project that this toolkit started from, have it: square kernels multiplied by a mask, no
conditions, no dropout; trained by Adam at a constant rate.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class MaskedConv2d(nn.Conv2d):
    """A convolution whose kernel is multiplied by a 0/1 mask."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], mask: Tensor):
        super().__init__(channels, out, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        self.register_buffer("mask", mask[None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def _gate(x: Tensor) -> Tensor:
    content, opening = x.chunk(2, dim=1)
    return torch.tanh(content) * torch.sigmoid(opening)


class PlainLayer(nn.Module):
    """Vertical stack: rows above (and, past the first layer, its own); horizontal stack: columns to the left (and its own)."""

    def __init__(self, channels: int, kernel: int, first: bool):
        super().__init__()
        middle, own = kernel // 2, 0 if first else 1
        rows, columns = torch.zeros(kernel, kernel), torch.zeros(1, kernel)
        rows[: middle + own], columns[:, : middle + own] = 1, 1
        self.first = first
        self.vertical = MaskedConv2d(channels, 2 * channels, (kernel, kernel), rows)
        self.horizontal = MaskedConv2d(channels, 2 * channels, (1, kernel), columns)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vertical(v)
        update = self.out(_gate(self.horizontal(h) + self.vertical_to_horizontal(features)))
        return _gate(features), update if self.first else h + update


class PlainPixelCNN(nn.Module):
    """`[B, h, w]` int64 codes -> `[B, K, h, w]` logits."""

    def __init__(self, num_codes: int = 512, channels: int = 64, layers: int = 15):
        super().__init__()
        self.arguments = {"conditions": {}}
        self.embedding = nn.Embedding(num_codes, channels)
        self.layers = nn.ModuleList([PlainLayer(channels, 7 if i == 0 else 3, i == 0) for i in range(layers)])
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, num_codes, 1)
        )

    def forward(
        self, codes: Tensor, position: Tensor | None = None, conditions: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Position and conditions are ignored: this prior is unconditional."""
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, h = layer(v, h)
        return self.head(h)
