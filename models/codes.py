"""Code maps of one level or of two, under one name.

    codes = Codes(first, detail)                # [N, h, w] and [N, 2h, 2w] integers, of the same slices
    codes[:8], codes.split(32), len(codes)      # as of a tensor of maps
    each_level(lambda maps: maps.long(), codes)

A run with one level has tensors where one with two has `Codes`, and what handles whole maps handles both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FINER = 2  # codes of the second level beside each other where the first has one
FINEST = 2  # pixels that a code of the second level covers along each side, at least


@dataclass(frozen=True)
class Codes:
    """Code maps of both levels of the same slices.

    first: `[N, h, w]`. detail: `[N, 2h, 2w]`. Where they are of whole heads, both have a dimension more in front.
    """

    first: Tensor
    detail: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, chosen: Any) -> "Codes":
        return Codes(self.first[chosen], self.detail[chosen])

    def split(self, size: int) -> list["Codes"]:
        """Parts of so many maps, the last one of what is left."""
        return [Codes(*parts) for parts in zip(self.first.split(size), self.detail.split(size))]


CodeMaps = Tensor | Codes


def first_level(codes: CodeMaps) -> Tensor:
    """The maps of the first level."""
    return codes.first if isinstance(codes, Codes) else codes


def last_level(codes: CodeMaps) -> Tensor:
    """The maps of the finest level."""
    return codes.detail if isinstance(codes, Codes) else codes


def each_level(work: Callable[..., Tensor], *codes: CodeMaps) -> CodeMaps:
    """What `work` makes of code maps, level by level; all of them have as many levels."""
    if not isinstance(codes[0], Codes):
        return work(*codes)
    return Codes(work(*(each.first for each in codes)), work(*(each.detail for each in codes)))


def as_taken(codes: CodeMaps, device: torch.device) -> CodeMaps:
    """Code maps as models take them: int64, on their device."""
    return each_level(lambda maps: maps.long().to(device), codes)


def finer(maps: Tensor) -> Tensor:
    """What stands at each place of the first level's maps, on the grid of the second: `[..., h, w]` -> `[..., 2h, 2w]`."""
    return maps.repeat_interleave(FINER, -2).repeat_interleave(FINER, -1)
