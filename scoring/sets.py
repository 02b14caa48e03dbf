"""Sets of slices to compare: whose slices they are, halves by subject, sets that match by slice number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor


class Untaken(ValueError):
    """A score that these slices do not allow; the text says why, as the end of "... is not scored: "."""


class Grouped(Protocol):
    """Slices or heads, and whose each of them is."""

    @property
    def groups(self) -> Sequence[str]: ...

    def __getitem__(self, chosen: Any) -> Self: ...


GroupedSet = TypeVar("GroupedSet", bound=Grouped)


@dataclass(frozen=True)
class SliceSet:
    """Slices to compare.

    images: `[N, H, W]` float32 in 0..1, within the content frame.
    groups: `[N]` what must not be torn apart: the subject of a real slice; a sample stands alone.
    numbers: `[N]` slice number in the volume, or None where the data says nothing of it.
    symmetric: whether a slice mirrored across its rows may stand for one, `dataset.Split`.
    texture: by name, `[N]` each, `texture.texture_values` of the images; None where they have not been taken.
    """

    images: Tensor
    groups: Sequence[str]
    numbers: np.ndarray | None = None
    symmetric: bool = False
    texture: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: np.ndarray) -> "SliceSet":
        return SliceSet(
            self.images[torch.from_numpy(chosen)],
            [self.groups[i] for i in chosen],
            None if self.numbers is None else self.numbers[chosen],
            self.symmetric,
            None if self.texture is None else {name: values[chosen] for name, values in self.texture.items()},
        )


def independent_groups(groups: Sequence[str]) -> float:
    """How many groups of equal size would tell as much: (sum of sizes)^2 / sum of squares (Kish 1965)."""
    sizes = np.unique(np.asarray(groups), return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def halves(real: GroupedSet, rng: np.random.Generator) -> tuple[GroupedSet, GroupedSet]:
    """Two halves of the subjects, each with all its slices or heads."""
    subjects = rng.permutation(sorted(set(real.groups)))
    chosen = np.isin(real.groups, subjects[: len(subjects) // 2])
    return real[np.flatnonzero(chosen)], real[np.flatnonzero(~chosen)]


def matched(first: SliceSet, second: SliceSet, rng: np.random.Generator) -> tuple[SliceSet, SliceSet]:
    """As many slices of each as there are in the smaller, with equally many of each slice number.

    Raises:
        Untaken: where no slice number is in both.
    """
    sets = first, second
    if first.numbers is None or second.numbers is None:
        count = min(len(first), len(second))
        chosen = [[rng.permutation(len(one))[:count]] for one in sets]
    else:
        chosen = [[np.zeros(0, int)], [np.zeros(0, int)]]
        for number in np.intersect1d(first.numbers, second.numbers):
            places = [rng.permutation(np.flatnonzero(one.numbers == number)) for one in sets]
            count = min(map(len, places))
            for kept, place in zip(chosen, places):
                kept.append(place[:count])
    indices = [np.sort(np.concatenate(kept)) for kept in chosen]
    if not len(indices[0]):
        raise Untaken("no slice number is among both the samples and the real slices")
    return tuple(one[some] for one, some in zip(sets, indices))


def chance_apart(first: Grouped, second: Grouped) -> float:
    """How far two sets of one population are apart by the chance of who is in them, in units of what two single subjects are.

    The mean of n independent groups strays by 1 / sqrt(n), and the difference of two such means by the root of the sum of
    squares.
    """
    return math.sqrt(sum(1 / independent_groups(one.groups) for one in (first, second)))
