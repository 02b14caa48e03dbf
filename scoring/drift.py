"""Do heads get worse the further they are drawn? Realism of their slices by the distance from the first one.

    for step in drift(drawn, real, first=16, bands=((0,), range(1, 9), range(9, 17)), singles=singles):
        step.heads["swd_0"], step.singles["swd_0"], step.overall

Each slice is drawn after its neighbour, and what is wrong with one may be handed on and grow. Slices of the same numbers that
were drawn alone cannot have drifted, so they say what the position itself costs.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scoring.heads import HeadSet
from scoring.realism import Realism, realism
from scoring.sets import SliceSet, Untaken, matched


@dataclass(frozen=True)
class Step:
    """Slices at some distances from the first slice that was drawn.

    distances: in slice numbers. heads: `realism.realism` of the heads' slices. singles: of as many slices of the same numbers
    that were drawn alone; empty where there are none.
    """

    distances: tuple[int, ...]
    heads: dict[str, Realism]
    singles: dict[str, Realism]

    @property
    def title(self) -> str:
        """The distances in words."""
        ends = dict.fromkeys((self.distances[0], self.distances[-1]))
        return " to ".join(map(str, ends))

    @property
    def worse(self) -> dict[str, float]:
        """By name, by which share the heads' slices are further from real ones than the single slices are: 0.2 is 20 % worse."""
        times = {
            name: [one[name].score / one[name].floor for one in (self.heads, self.singles)]
            for name in self.heads.keys() & self.singles.keys()
            if self.heads[name].floor > 0 and self.singles[name].floor > 0
        }
        return {name: heads / singles - 1 for name, (heads, singles) in sorted(times.items()) if singles > 0}

    @property
    def overall(self) -> float | None:
        """The median of `worse`, because the ratio of two small distances may be anything; None where nothing is compared."""
        return statistics.median(self.worse.values()) if self.worse else None


def drift(
    drawn: HeadSet,
    real: HeadSet,
    first: int,
    bands: Sequence[Sequence[int]],
    singles: SliceSet | None = None,
    seed: int = 0,
    halvings: int = 4,
    progress: Callable[[int], None] | None = None,
    notes: list[str] | None = None,
) -> list[Step]:
    """Realism of the slices of drawn heads, band by band of distances from the first slice drawn.

    Few slices lie at one distance, two of each head at most, so that single distances say little. Twelve real heads, held
    against single slices of other real ones, were `overall` 0.2 worse or better at one distance, and 0.1 at 9 to 16 together.

    Args:
        drawn: heads. real: held-out heads of at least 4 subjects.
        first: the number of the slice that every head was begun with.
        bands: distances that are taken together; one without slices is left out.
        singles: slices drawn alone, with their numbers, in the same frame.
        seed, halvings, notes: as in `realism.realism`.
        progress: called after each comparison with how many of `2 * halvings` it stands for, for each band, and as many again
            with singles.
    """
    steps: list[Step] = []
    missing: dict[str, list[str]] = {}  # where, by what is missing
    for band in bands:
        numbers = real.numbers[np.isin(np.abs(real.numbers - first), list(band))]
        if not len(numbers):
            continue
        slices, others, said = slices_at(drawn, numbers), slices_at(real, numbers), []
        alone: dict[str, Realism] = {}
        if singles is not None:
            try:
                slices, single = matched(slices, singles, np.random.default_rng(seed))
                alone = realism(single, others, seed, halvings, progress, notes=said)
            except Untaken as reason:
                said.append(f"slices drawn alone are not scored: {reason}")
        steps.append(Step(tuple(band), realism(slices, others, seed, halvings, progress, notes=said), alone))
        for reason in dict.fromkeys(said):
            missing.setdefault(reason, []).append(steps[-1].title)
    if notes is not None:
        notes += [f"{', '.join(where)} from the first, {reason}" for reason, where in missing.items()]
    return steps


def slices_at(heads: HeadSet, numbers: np.ndarray) -> SliceSet:
    """The slices of heads that have one of these numbers, each of its head's group."""
    places = np.flatnonzero(np.isin(heads.numbers, numbers))
    groups = [group for group in heads.groups for _ in places]
    images = heads.images[:, places].flatten(0, 1)
    return SliceSet(images, groups, np.tile(heads.numbers[places], len(heads)), heads.symmetric)
