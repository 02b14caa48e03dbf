"""Neighbouring slices as the context of a prior: which slice is whose neighbour, and what a prior is told of it.

sides = neighbours(split, maps=1)                     # [2, N, 1]: the slices below and above each, -1 where there is none
known, context = told_below(split, codes, maps=1)     # what a prior is told of each slice beside the map below it
prior(codes[:32], conditions={name: torch.from_numpy(values[:32]) for name, values in known.items()}, context=context[:32])
"""

import numpy as np
import torch
from torch import Tensor

from dataset import NEIGHBOUR, Split

BELOW, ABOVE = 0, 1  # classes of the condition `NEIGHBOUR`: on which side of the slice lie those whose maps are told
SIDES = 2


def neighbours(split: Split, maps: int) -> Tensor:
    """The slices on either side of each slice, `[2, N, maps]` int64: below and above, the nearest first; -1 where there is none,
    and for those beyond one that is missing."""
    sides = [np.stack([split.neighbours(sign * step) for step in range(1, maps + 1)], 1) for sign in (-1, 1)]
    found = torch.from_numpy(np.stack(sides))
    return found.where((found >= 0).cumprod(-1).bool(), -1)


def maps_at(codes: Tensor, indices: Tensor) -> Tensor:
    """Code maps as context: `[N, h, w]` integers at `[B, M]` indices -> `[B, M, h, w]` int64, -1 where the index is."""
    return codes[indices.clamp(min=0)].long().masked_fill((indices < 0)[..., None, None], -1)


def told_below(
    split: Split, codes: Tensor, maps: int, some: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], Tensor]:
    """What a prior with context is told of slices beside the code maps below them.

    Args:
        split: of the slices. codes: `[N, h, w]` of all of them.
        maps: M, that the prior may be told.
        some: the slices, by their indices; None: all.

    Returns:
        All that is known of each slice by name (`Split.known`), on which side the maps lie included; and their code maps,
        `[B, M, h, w]` int64, -1 where there is no slice below.
    """
    some = np.arange(len(split)) if some is None else some
    below = neighbours(split, maps)[BELOW, torch.from_numpy(some)]
    side = np.where(below[:, 0].numpy() >= 0, np.float32(BELOW), np.float32(np.nan))
    return split.known_of(some) | {NEIGHBOUR: side}, maps_at(codes, below)


def told_a_side(split: Split, codes: Tensor, maps: int) -> tuple[dict[str, np.ndarray], Tensor]:
    """As `told_below` of all slices, but where there is no slice below, the map above is told."""
    below, above = neighbours(split, maps)
    lowest = (below[:, 0] < 0) & (above[:, 0] >= 0)
    told = below.where(~lowest[:, None], above)
    side = np.where(lowest.numpy(), np.float32(ABOVE), np.float32(BELOW))
    side[(told[:, 0] < 0).numpy()] = np.nan
    return split.known | {NEIGHBOUR: side}, maps_at(codes, told)
