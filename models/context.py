"""What a prior is told of a slice as maps on the grid of its codes: the code maps of neighbouring slices, and features, such as
those of a coarser level of codes.

    encoder = ContextEncoder(maps=1, num_codes=512, channels=64)
    features, to_head = encoder(neighbours)     # [B, 1, h, w] int64, -1 where unknown -> [B, 64, h, w] each
    encoder = ContextEncoder(maps=1, num_codes=512, channels=64, features=144)
    features, to_head = encoder(neighbours, coarser)                     # and [B, 144, h, w]

Context is known before anything is drawn, so the network that reads it is not masked: what stands anywhere within its reach
counts at every place. It enters the prior twice: where the location is added, and at the input of its head.
"""

import torch
from torch import Tensor, nn

from vqvae import SLOPE, ResidualBlock

BLOCKS = 4  # residual ones: with the first convolution, codes up to 5 places away are seen


class ContextNetwork(nn.Module):
    """Features on the grid of the codes as what they add to a prior of C channels: `[B, F, h, w]` -> twice `[B, C, h, w]`, to the
    features of its first layer and to the input of its head. It starts at zeros: a prior that knows nothing of context loses
    nothing when it is told one.

    Args:
        inputs: F. channels: C.
    """

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(BLOCKS)), nn.LeakyReLU(SLOPE))
        self.out = nn.Conv2d(channels, 2 * channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        to_features, to_head = self.out(self.blocks(self.first(features))).chunk(2, dim=1)
        return to_features, to_head


class ContextEncoder(nn.Module):
    """What a prior is told as maps, as what they add to it (`ContextNetwork`): code maps, features, or both.

    Each code map has its codes' vectors, zeros where they are unknown, and a channel that is 1 where they are known.

    Args:
        maps: M, how many code maps may be told, each with a meaning of its own.
        num_codes: K. channels: C of the prior. features: F, channels of the features, which are always told.
    """

    def __init__(self, maps: int, num_codes: int, channels: int, features: int = 0):
        super().__init__()
        self.maps, self.features = maps, features
        self.embedding = nn.Embedding(num_codes, channels) if maps else None
        self.network = ContextNetwork(maps * (channels + 1) + features, channels)

    def forward(self, maps: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`[B or 1, M, h, w]` int64, -1 where unknown, and `[B, F, h, w]` -> twice `[B, C, h, w]`."""
        told = [] if self.embedding is None else [self._vectors(maps)]
        if features is not None:
            told = [*(each.expand(len(features), -1, -1, -1) for each in told), features]
        return self.network(torch.cat(told, 1))

    def _vectors(self, maps: Tensor) -> Tensor:
        known = (maps >= 0)[:, :, None]
        vectors = self.embedding(maps.clamp(min=0)).permute(0, 1, 4, 2, 3) * known
        return torch.cat([vectors, known.to(vectors)], 2).flatten(1, 2)

    def told(
        self, context: Tensor | None, features: Tensor | None, size: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Context as `forward` takes it, for maps of `size` (batch, height, width).

        Args:
            context: `[B, M, h, w]`, or `[B, h, w]` of a single map; None: none is told, the same for all, `[1, M, h, w]`.
            features: `[B, F, h, w]`; None of an encoder without.

        Raises:
            ValueError: when a shape does not fit, or a code is not in -1..K-1.
        """
        (batch, height, width), weight = size, self.network.first.weight
        if (self.features == 0) != (features is None) or (
            features is not None and features.shape != (batch, self.features, height, width)
        ):
            found = "nothing" if features is None else list(features.shape)
            raise ValueError(f"features are {found}; expected {[batch, self.features, height, width]}")
        features = None if features is None else features.to(weight)
        if context is None:
            return torch.full((1, self.maps, height, width), -1, device=weight.device), features
        maps = (context[:, None] if context.dim() == 3 else context).to(weight.device)
        if maps.shape != (batch, self.maps, height, width):
            raise ValueError(
                f"context is {list(context.shape)}; expected {self.maps} maps, {[batch, self.maps, height, width]}"
            )
        if self.embedding is not None and ((maps < -1) | (maps >= self.embedding.num_embeddings)).any():
            raise ValueError(f"a code of the context is none of -1 (unknown) to {self.embedding.num_embeddings - 1}")
        return maps, features
