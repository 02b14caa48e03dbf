"""Are samples copies of somebody's scan? The nearest training slice of every sample, in pixels and in codes.

    audit = audit_copies(samples, held_out, train)          # slices
    copies = copied_heads(heads, held_out_heads, train)     # heads: is one person behind all slices?

That a sample has a near training slice says nothing alone: slices of all people are alike. So the distances of samples are
held against those of held-out real slices *of the same position*, which cannot be copies: near the top of the head all slices
are alike, and a threshold over all positions would let copies of the middle pass. A sample that is nearer to the training set
than all but 1 % of them is listed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.codes import FINER, CodeMaps, Codes, first_level
from scoring.sets import Untaken

PERCENTILE = (
    1.0  # of the held-out slices' distances, below which a sample is listed; of held-out heads' ratios likewise
)
FEWEST_HELD_OUT = 100  # held-out slices that such a percentile is taken of; neighbouring positions are taken in for it
CHUNK = 256  # slices compared at a time
DECIDING = ("pixels", "codes")  # spaces in which a sample has to be near to be listed


@dataclass(frozen=True)
class Slices:
    """Slices in both spaces: `images` `[N, H, W]` float32 in 0..1 within the content frame, `codes` `[N, h, w]` integers of each
    level; and their slice numbers, `numbers` `[N]`, or None where the data says nothing of them. start: of a part of the training
    set, the index of its first slice; None: the parts come in order."""

    images: Tensor
    codes: CodeMaps
    numbers: np.ndarray | None = None
    start: int | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Nearest:
    """The nearest training slice of each slice. distance: `[N]`. index: `[N]` int64, of the training slice."""

    distance: Tensor
    index: Tensor


@dataclass(frozen=True)
class Audit:
    """What `audit_copies` finds, by "pixels", by "codes", and by "detail" where there is a second level of codes.

    samples: nearest training slices. threshold: `[N]`, of each sample's slice position, the 1st percentile of the held-out
    slices' distances. `listed`: `[N]` bool, samples nearer than that in pixels and in codes. The second level decides nothing: a
    copy whose details were drawn anew is a copy.
    """

    samples: dict[str, Nearest]
    threshold: dict[str, Tensor]

    @property
    def listed(self) -> Tensor:
        return torch.stack([self.nearer(space) for space in DECIDING]).all(0)

    def closest(self, count: int) -> Tensor:
        """The `count` samples nearest to a training slice in both spaces, relative to the thresholds, nearest first."""
        relative = [self.samples[space].distance / self.threshold[space].clamp(min=1e-12) for space in DECIDING]
        return torch.stack(relative).amax(0).argsort()[:count]

    def nearer(self, space: str) -> Tensor:
        """`[N]` bool, samples nearer than their threshold in one space."""
        return self.samples[space].distance < self.threshold[space]


def audit_copies(
    samples: Slices, held_out: Slices, train: Iterable[Slices], progress: Callable[[int], None] | None = None
) -> Audit:
    """Find samples that are nearer to a training slice than real slices come.

    All slices must have passed the same codec, the training and held-out ones as reconstructions: a smooth image is nearer to
    any other than a noisy one. The training set should hold the mirrored slices too where the model has seen them.

    Args:
        samples, held_out: what to compare, at least one held-out slice; by position where both have numbers.
        train: the training set, in parts of any size, so that it need not be in memory as a whole.
        progress: called with the number of training slices just compared.

    Returns:
        Distances are root mean square differences of pixels (0..1) and shares of differing codes (0..1); indices count through
        the parts of the training set, or from where a part says that it starts.
    """
    sets = {"samples": samples, "held_out": held_out}
    searches = {
        name: {space: SEARCHES[space](maps) for space, maps in _spaces(slices).items()} for name, slices in sets.items()
    }
    for part in train:
        for each in searches.values():
            for space, maps in _spaces(part).items():
                each[space].look_at(maps, part.start)
        if progress is not None:
            progress(len(part))
    near = {name: {space: search.nearest() for space, search in each.items()} for name, each in searches.items()}
    threshold = {
        space: thresholds(nearest.distance, held_out.numbers, len(samples), samples.numbers)
        for space, nearest in near["held_out"].items()
    }
    return Audit(near["samples"], threshold)


def _spaces(slices: Slices) -> dict[str, Tensor]:
    """Slices in each space; of the second level one code in four, as many as the first has, which says as much in less time."""
    codes, images = slices.codes, slices.images
    spaces = {"pixels": images, "codes": first_level(codes)}
    return spaces | ({"detail": codes.detail[:, ::FINER, ::FINER]} if isinstance(codes, Codes) else {})


def thresholds(distances: Tensor, held_out: np.ndarray | None, count: int, samples: np.ndarray | None) -> Tensor:
    """Below which distance each of `count` samples is listed, `[count]`: the 1st percentile at its slice position.

    Where a position has fewer than `FEWEST_HELD_OUT` held-out slices, those of the nearest positions are taken in on both sides
    until there are as many, or all are in; without numbers, all are.

    Args:
        distances: `[N]` of held-out slices to their nearest training slices. held_out: `[N]` their slice numbers, or None.
        samples: `[count]` slice numbers of the samples, or None.
    """
    if held_out is None or samples is None:
        return distances.quantile(PERCENTILE / 100).expand(count)
    found = torch.empty(count)
    for number in np.unique(samples):
        away = np.abs(held_out - number)
        reach = np.sort(away)[min(FEWEST_HELD_OUT, len(away)) - 1]
        near = distances[torch.from_numpy(away <= reach)]
        found[torch.from_numpy(samples == number)] = near.quantile(PERCENTILE / 100)
    return found


# --------------------------------------------------------------------------- heads


@dataclass(frozen=True)
class HeadCopies:
    """What `copied_heads` finds.

    people: `[N]` the training person that each drawn head is nearest to: of each of its slices the root mean square distance to
    the nearest slice of that person, its mean over the head. shares: `[N]`, 0 to 1, of the head's slices whose nearest training
    slice is that person's. ratios: `[N]`, 0 to 1, of that distance and the one to the second nearest person. held_out: `[M]` the
    ratios of held-out heads. threshold: ratio below which a head is listed. listed: `[N]` bool.
    """

    people: list[str]
    shares: np.ndarray
    ratios: np.ndarray
    held_out: np.ndarray
    threshold: float

    @property
    def listed(self) -> np.ndarray:
        return self.ratios < self.threshold

    @property
    def by_chance(self) -> float:
        """How many heads would be listed on average, at most, if none were a copy: one that is like the held-out ones is as
        likely to have any rank among them."""
        return len(self.ratios) * (1 + int((self.held_out < self.threshold).sum())) / (len(self.held_out) + 1)


def copied_heads(
    drawn: Tensor,
    held_out: Tensor,
    train: Iterable[tuple[Tensor, Sequence[str]]],
    progress: Callable[[int], None] | None = None,
) -> HeadCopies:
    """Find drawn heads that are nearer to one training person than to any other, by more than held-out heads are.

    The ratio of both distances says it, because the share of slices that are nearest to one person does not: of 35 held-out heads
    one had all its slices nearest to one and the same stranger, whom it was not near. Ratios are 0.92 and more for held-out
    heads, 0.001 for copies, and 0.5 to 0.8 for copies with a quarter of their codes replaced (`benchmarks/scores.py`). A head
    that is too smooth is near to everybody, which the ratio does not take for a copy either.

    The threshold is the 1st percentile of the held-out heads' ratios, rounded down to one of them: with fewer than 100 it is the
    least. Heads that are no copies pass it too, `HeadCopies.by_chance`: one that is listed is to be looked at. As in
    `audit_copies`, all slices must have passed the same codec, and the training set should hold the mirrored slices too, under
    the same people's names.

    Args:
        drawn, held_out: heads, `[N, S, H, W]` and `[M, S, H, W]`.
        train: (slices `[P, H, W]`, whose they are), in parts of any size, so that it need not be in memory as a whole.
        progress: called with the number of training slices just compared.

    Raises:
        Untaken: for fewer than two training people.
    """
    searches = [PeopleSearch(heads) for heads in (drawn, held_out)]
    for images, names in train:
        for search in searches:
            search.look_at(images, names)
        if progress is not None:
            progress(len(images))
    (people, shares, ratios), (_, _, others) = (search.nearest() for search in searches)
    threshold = float(np.quantile(others, PERCENTILE / 100, method="lower"))
    return HeadCopies(people, shares, ratios, others, threshold)


# --------------------------------------------------------------------------- searches


class _Search:
    """The nearest training slice of each of some slices, while parts of the training set pass by.

    Args:
        slices: `[N, ...]`.
    """

    def __init__(self, slices: Tensor):
        self.slices, self.seen = slices.flatten(1).float(), 0
        self.best = torch.full((len(slices),), float("inf"))
        self.index = torch.zeros(len(slices), dtype=torch.int64)

    def look_at(self, train: Tensor, start: int | None = None) -> None:
        """Compare with the next `[M, ...]` training slices. start: index of the first; None: behind the last ones."""
        self.seen = self.seen if start is None else start
        for part in train.flatten(1).split(CHUNK):
            part = part.float()
            for first in range(0, len(self.slices), CHUNK):
                some = slice(first, first + CHUNK)
                value, place = self.distance(self.slices[some], part).min(1)
                nearer = value < self.best[some]
                self.best[some] = value.where(nearer, self.best[some])
                self.index[some] = (place + self.seen).where(nearer, self.index[some])
            self.seen += len(part)

    def nearest(self) -> Nearest:
        return Nearest(self.scaled(self.best), self.index)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """`[N, P]`, `[M, P]` -> `[N, M]`: less is nearer."""
        raise NotImplementedError

    def scaled(self, distance: Tensor) -> Tensor:
        """The distance as it is reported."""
        raise NotImplementedError


class ImageSearch(_Search):
    """By root mean square difference of `[N, H, W]` images; of equal ones, 0 but for rounding."""

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        return euclidean(first, second)

    def scaled(self, distance: Tensor) -> Tensor:
        return distance / self.slices.shape[1] ** 0.5


class CodeSearch(_Search):
    """By the share of positions whose codes differ (Hamming) of `[N, h, w]` maps."""

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cdist(first, second, p=0)

    def scaled(self, distance: Tensor) -> Tensor:
        return distance / self.slices.shape[1]


def euclidean(first: Tensor, second: Tensor) -> Tensor:
    """Distances of `[N, P]` and `[M, P]` vectors by their products, `[N, M]`; of equal ones, 0 but for rounding. As
    `torch.cdist` has them where it multiplies, which takes four times as long for slices, since it copies both first."""
    lengths = first.square().sum(1)[:, None] + second.square().sum(1)
    return torch.addmm(lengths, first, second.t(), alpha=-2).clamp(min=0).sqrt()


class PeopleSearch:
    """How near heads come to each training person, by root mean square difference, while parts of the training set pass by.

    Args:
        heads: `[N, S, H, W]`.
    """

    def __init__(self, heads: Tensor):
        self.shape, self.slices = heads.shape, heads.flatten(0, 1).flatten(1)
        self.best: dict[str, Tensor] = {}  # of each person, [N * S]

    def look_at(self, train: Tensor, names: Sequence[str]) -> None:
        """Compare with the next `[M, H, W]` training slices, of these people."""
        whose = np.asarray(names)
        for start in range(0, len(self.slices), CHUNK):
            some = slice(start, start + CHUNK)
            one, other = self.slices[some].float(), train.flatten(1).float()
            distance = euclidean(one, other)
            for person in np.unique(whose).tolist():
                best = self.best.setdefault(person, torch.full((len(self.slices),), float("inf")))
                nearest = distance[:, torch.from_numpy(whose == person)].amin(1)
                best[some] = torch.minimum(best[some], nearest)

    def nearest(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """people, shares and ratios of `HeadCopies`, `[N]` each."""
        if len(self.best) < 2:
            raise Untaken("slices of a single person were trained on")
        people, found = np.asarray(list(self.best)), torch.stack(list(self.best.values()))
        found = found.unflatten(1, self.shape[:2])  # [people, N, S]
        means, order = found.mean(2).double().sort(0)
        shares = (found.argmin(0) == order[0, :, None]).double().mean(1)
        ratios = means[0] / means[1].clamp(min=1e-12)
        return people[order[0].numpy()].tolist(), shares.numpy(), ratios.numpy()


SEARCHES: dict[str, type[_Search]] = {"pixels": ImageSearch, "codes": CodeSearch, "detail": CodeSearch}
