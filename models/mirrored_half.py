"""What a prior is told of the half of a map that it has drawn: heads are much the same on both sides.

    half = MirroredHalf(num_codes=512, channels=64)
    features, to_head = half(codes)     # [B, h, w] int64 -> [B, 64, h, w] each, zeros in the rows of the first half

Rows run from one side of a head to the other, and are drawn in that order. A prior's layers reach some rows up, and what they
know of the first half fades on the way; the place across the midline lies nearly a whole map away. So when the first half
stands, it is reflected onto the second, read by an unmasked network as any context is (`models.context`), and added at the places
of the second half alone: whatever is told there was drawn before.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.context import ContextEncoder


def rows_of_first_half(height: int) -> int:
    """Rows that are drawn before the mirrored half is told; the middle one of an odd number is among them."""
    return height - height // 2


class MirroredHalf(nn.Module):
    """The first half of a code map, reflected, as what it adds to a prior in the second half. It starts at zeros.

    Args:
        num_codes: K. channels: C of the prior.
    """

    def __init__(self, num_codes: int, channels: int):
        super().__init__()
        self.encoder = ContextEncoder(1, num_codes, channels)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Of `[B, h, w]` int64, of which only the first half is read, twice `[B, C, h, w]`: to the features of the first layer
        and to the head's input."""
        height = codes.shape[1]
        first = rows_of_first_half(height)
        reflected = codes[:, :first].flip(1)  # rows height // 2 and on of the mirrored map
        added = self.encoder(reflected[:, None])
        told_from = first - height // 2  # an odd map's middle row is its own partner
        return tuple(F.pad(each[:, :, told_from:], (0, 0, first, 0)) for each in added)
