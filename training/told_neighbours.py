"""What the prior is told of neighbouring slices while it learns: which of them, how often none, and how wrong their codes are."""

import math

import numpy as np
import torch
from torch import Tensor

from dataset import Split
from models.neighbours import ABOVE, BELOW, maps_at, neighbours

WITHHELD = 0.55  # share of the training maps that are told no neighbour: first slices and single ones are drawn so
NEAREST_ALONE = 0.1  # share that is told the nearest of several neighbours alone, as the second slice of a head is
MOST_WRONG = 0.1  # of the codes of a told map, at most: drawn neighbours, which are not perfect, are not to lead astray
OF_A_MAP = 3  # random numbers that a map needs: whether it is told, which side, how many codes are wrong


class ToldNeighbours:
    """Neighbouring maps of training maps, as the context of a prior.

    A map is told those on one side of it, either one where there are slices on both, and now and then the nearest alone. A random
    share of their codes, at most `MOST_WRONG`, is replaced by codes that stand elsewhere on the same map.

    split: of the maps. maps: how many are told. codes, mirrored_codes: `[N, h, w]` integers each; mirrored maps are told mirrored
    ones. chances: random numbers that one map needs.
    """

    def __init__(self, split: Split, maps: int, codes: Tensor, mirrored_codes: Tensor):
        self.sides, self.codes, self.mirrored_codes = neighbours(split, maps), codes, mirrored_codes
        self.chances = OF_A_MAP + maps * math.prod(codes.shape[1:])

    def of(self, indices: np.ndarray, mirrored: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        """What is told of a batch.

        Args:
            indices: `[B]`. mirrored: `[B]` bool, which of them are taken mirrored. chance: `[B, chances]` float64 in 0..1.

        Returns:
            On which side of the slice its told neighbours lie, `[B]` float32, NaN where none are told; and their code maps,
            `[B, M, h, w]` int64, -1 where unknown.
        """
        below, above = self.sides[:, torch.from_numpy(indices)]
        withheld, either, share = chance[:, :OF_A_MAP].unbind(1)
        from_below = (below[:, 0] >= 0) & ((above[:, 0] < 0) | (either < 0.5))
        which = below.where(from_below[:, None], above).masked_fill((withheld < WITHHELD)[:, None], -1)
        which[:, 1:].masked_fill_((withheld < WITHHELD + NEAREST_ALONE)[:, None], -1)
        side = torch.where(from_below, float(BELOW), float(ABOVE)).masked_fill(which[:, 0] < 0, math.nan)
        maps = maps_at(self.mirrored_codes, which).where(mirrored[:, None, None, None], maps_at(self.codes, which))
        return side, _with_wrong_codes(maps, MOST_WRONG * share, chance[:, OF_A_MAP:])


def _with_wrong_codes(maps: Tensor, share: Tensor, chance: Tensor) -> Tensor:
    """`[B, M, h, w]` maps in which about a `share` `[B]` of the codes are those of other places. chance: `[B, M * h * w]`."""
    flat, share = maps.flatten(2), share[:, None, None]
    chance = chance.view(flat.shape)
    wrong = chance < share  # below the share, the same number is even over it: it says which other place
    place = torch.where(wrong, chance / share * flat.shape[2], 0.0).long().clamp(max=flat.shape[2] - 1)
    return torch.where(wrong, flat.gather(2, place), flat).view(maps.shape)
