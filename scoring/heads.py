"""Is it a head? Scores of drawn heads against real ones, each beside what other real heads are apart.

    real = heads_of(data.splits["validate"], frame, codes)
    scores = head_scores(drawn, real, seed=0)           # {"neighbour_ssim": Realism(score, floor), ...}
    head_means(drawn), head_means(real)                 # plain means, for a table

Slices that are right one by one need not make a head. What is compared here is how they follow one another (`continuity`), and
what the stack looks like when it is cut the other way. Scores and floors are those of `scoring.realism`: 1 time its floor is
as far as as many other real heads would be.

Continuity is compared slice number by slice number, as distributions over heads: the Wasserstein-1 distance, its mean over the
numbers. A real head changes more in some places than in others, and no two do so alike; a mean would call heads right whose
slices are all the same distance apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Frame, Split, spread_over
from models.codes import CodeMaps, first_level
from scoring.classifier import tell_apart
from scoring.continuity import AREAS, LAGS, continuity
from scoring.realism import FEWEST_SUBJECTS, Mirror, Realism, find_mirror, over_halves, sliced_wasserstein
from scoring.sets import SliceSet, Untaken

RESLICES, OUTERMOST = 16, 1 / 8  # cuts of each kind through a head, and how near the sides of the frame they come
HALVINGS = (
    64  # of the real subjects, for what has been measured once: a mean of few would be near 0 by chance too often
)
COMPARISON = 8  # heads that are measured in the time of one comparison of cuts, about
PLANES = {"sagittal": 1, "coronal": 2}  # dimension of `[S, H, W]` heads that is cut across, where slices are axial


@dataclass(frozen=True)
class HeadSet:
    """Heads to compare, all of the same slice numbers.

    images: `[N, S, H, W]` float32 in 0..1, within the content frame, in the order of their numbers.
    groups: `[N]` the subject of a real head; a drawn one stands alone.
    numbers: `[S]` slice numbers, ascending.
    codes: `[N, S, h, w]` code maps of each level, or None.
    symmetric: whether a slice mirrored across its rows may stand for one, `dataset.Split`.
    measured: by name, `[N, values]` each, `continuity` of each head; None where it has not been taken.
    """

    images: Tensor
    groups: Sequence[str]
    numbers: np.ndarray
    codes: CodeMaps | None = None
    symmetric: bool = False
    measured: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: np.ndarray) -> "HeadSet":
        some = torch.from_numpy(chosen)
        return HeadSet(
            self.images[some],
            [self.groups[i] for i in chosen],
            self.numbers,
            None if self.codes is None else self.codes[some],
            self.symmetric,
            None if self.measured is None else {name: values[chosen] for name, values in self.measured.items()},
        )


def heads_of(
    split: Split,
    frame: Frame | None = None,
    codes: CodeMaps | None = None,
    numbers: np.ndarray | None = None,
    most: int | None = None,
) -> HeadSet:
    """The scans of a split (`Split.scans`) that have every wanted slice number; others are left out.

    Args:
        frame: what the heads are cropped to, where one is given. codes: `[len(split), h, w]`, where they are known.
        numbers: the slice numbers wanted, ascending; None: every number that any slice of the split has.
        most: heads, spread over the split, at most: they are held in memory. None: all.

    Raises:
        Untaken: where the data says nothing of slice numbers, or no scan has all of them.
    """
    if split.numbers is None:
        raise Untaken("the data says nothing of slice numbers")
    wanted = np.unique(split.numbers) if numbers is None else numbers
    scans = np.split(np.arange(len(split)), np.flatnonzero(np.diff(split.scans)) + 1)
    found = [scan[np.isin(split.numbers[scan], wanted)] for scan in scans]
    whole = [scan for scan in found if len(scan) == len(wanted)]
    if not whole:
        raise Untaken(f"none of {len(scans)} scans has all of the {len(wanted)} slice numbers")
    indices = np.stack(whole)  # [N, S]
    indices = indices if most is None else indices[spread_over(len(indices), most)]
    return HeadSet(
        split.batch(indices.ravel(), frame)[:, 0].unflatten(0, indices.shape),
        [split.subjects[first] for first in indices[:, 0]],
        wanted,
        None if codes is None else codes[torch.from_numpy(indices)],
        split.symmetric,
    )


def shared_numbers(split: Split, wanted: np.ndarray) -> np.ndarray:
    """Those of some slice numbers that at least half of the scans of a split have: scans of different lengths are compared where
    most of them are.

    Raises:
        Untaken: where the data says nothing of slice numbers, or there are fewer than 2.
    """
    if split.numbers is None:
        raise Untaken("the data says nothing of slice numbers")
    scans = len(np.unique(split.scans))
    shared = np.array([number for number in wanted if 2 * (split.numbers == number).sum() >= scans], int)
    if len(shared) < 2:
        raise Untaken(f"of {len(wanted)} slice numbers of a drawn head, half of the {scans} scans have {len(shared)}")
    return shared


def head_scores(
    drawn: HeadSet,
    real: HeadSet,
    seed: int = 0,
    halvings: int = 4,
    slice_distance: float = 1.0,
    progress: Callable[[int], None] | None = None,
    floors: Mapping[str, float] | None = None,
    notes: list[str] | None = None,
    planes: Mapping[str, int] = PLANES,
) -> dict[str, Realism]:
    """Every distance of drawn heads from real ones, beside its floor.

    Args:
        drawn: at least one head. real: held-out heads of at least 4 subjects, of the same slice numbers and size.
        seed: of halves, patches, projections and classifiers.
        halvings: random halvings of the real subjects that the means over cuts are of; `HALVINGS` for all else.
        slice_distance: from slice to slice in pixels; cuts are interpolated linearly to pixels that are as high as wide.
        progress: called with how many of `steps(...)` have just been done.
        floors: from an earlier call with the same real heads, seed and halvings and as many drawn ones; not computed again.
        notes: gets a sentence on each score that is left out because these heads do not allow it.
        planes: how cuts are called and which dimension of `[S, H, W]` heads each goes across, where slices are not axial.

    Returns:
        By name: those of `continuity`, Wasserstein-1 distances in its units. Of cuts, for axial slices called as follows:
        sagittal_swd_0, ... and coronal_swd_0, ...: sliced Wasserstein distances, `realism.sliced_wasserstein`, fine to coarse.
        sagittal_classifier, sagittal_patch_classifier, coronal_...: 2 |AUC - 1/2|, `classifier.tell_apart`.

    Raises:
        ValueError: for fewer than 4 real subjects, and for heads of other slice numbers.
    """
    subjects = len(set(real.groups))
    if subjects < FEWEST_SUBJECTS:
        raise ValueError(f"scores of heads need real ones of at least {FEWEST_SUBJECTS} subjects, got {subjects}")
    if not np.array_equal(drawn.numbers, real.numbers):
        raise ValueError(f"slices {drawn.numbers} of drawn heads and {real.numbers} of real ones are not the same")
    mirror = find_mirror(real.images.mean((0, 1)))
    drawn, real = (measured(one, mirror, progress) for one in (drawn, real))
    kinds = ("score",) if floors is not None else ("score", "floor")
    untaken: dict[str, str] = _unmeasured(drawn, real)

    def compare_cuts(first: HeadSet, second: HeadSet, halving: int) -> dict[str, float]:
        found = cuts_apart(first, second, slice_distance, seed + halving, untaken, planes)
        if progress is not None:
            progress(2 * COMPARISON // len(kinds))
        return found

    bare = (replace(one, images=one.images[:, :0], codes=None) for one in (drawn, real))
    along = over_halves(*bare, seed, HALVINGS, continuity_apart, kinds, matched_heads)
    across = over_halves(drawn, real, seed, halvings, compare_cuts, kinds, matched_heads)
    found = {
        kind: {name: float(np.mean(each)) for name, each in (along[kind] | across[kind]).items()} for kind in kinds
    }
    floors = found["floor"] if floors is None else floors
    if notes is not None:
        notes += [f"{name} of heads is not scored: {reason}" for name, reason in untaken.items()]
    return {name: Realism(score, floors[name]) for name, score in found["score"].items() if name in floors}


def steps(drawn: HeadSet, real: HeadSet, halvings: int) -> int:
    """What the `progress` of `head_scores` adds up to."""
    return 2 * halvings * COMPARISON + sum(len(one) for one in (drawn, real) if one.measured is None)


def head_means(heads: HeadSet, mirror: Mirror | None = None) -> dict[str, float]:
    """Plain means over all heads of what has a mean to speak of: SSIM at each distance, code agreement, symmetry.

    mirror: of `continuity`, for heads that have not been measured; found on these where it is not given.
    """
    heads = measured(heads, mirror or find_mirror(heads.images.mean((0, 1))))
    return {name: float(values.mean()) for name, values in heads.measured.items() if name not in AREAS}


def measured(heads: HeadSet, mirror: Mirror, progress: Callable[[int], None] | None = None) -> HeadSet:
    """The heads with their `continuity`. progress: called after each head with 1."""
    if heads.measured is not None:
        return heads
    rows = []
    for index, images in enumerate(heads.images):
        rows.append(continuity(images, None if heads.codes is None else first_level(heads.codes)[index], mirror))
        if progress is not None:
            progress(1)
    return replace(heads, measured={name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _unmeasured(drawn: HeadSet, real: HeadSet) -> dict[str, str]:
    """Why some of `continuity` is not there, by name."""
    count = len(real.numbers)
    reasons = {name: f"{count} slices a head" for name, lag in LAGS.items() if lag >= count}
    if count < 3:
        reasons |= dict.fromkeys(AREAS, f"{count} slices a head")
    if drawn.codes is None or real.codes is None:
        reasons["code_agreement"] = "no code maps of both"
    known = drawn.measured.keys() & real.measured.keys()
    return {name: reason for name, reason in reasons.items() if name not in known}


def matched_heads(first: HeadSet, second: HeadSet, rng: np.random.Generator) -> tuple[HeadSet, HeadSet]:
    """As many heads of each as there are in the smaller, drawn at random."""
    count = min(len(first), len(second))
    return tuple(one[np.sort(rng.permutation(len(one))[:count])] for one in (first, second))


def continuity_apart(first: HeadSet, second: HeadSet, halving: int = 0) -> dict[str, float]:
    """Wasserstein-1 distance of each measured distribution of equally many heads, a mean over the places along them."""
    return {
        name: float(np.abs(np.sort(values, 0) - np.sort(second.measured[name], 0)).mean())
        for name, values in first.measured.items()
        if name in second.measured
    }


# --------------------------------------------------------------------------- cuts


def cuts_apart(
    first: HeadSet,
    second: HeadSet,
    slice_distance: float,
    seed: int,
    untaken: dict[str, str],
    planes: Mapping[str, int] = PLANES,
) -> dict[str, float]:
    """Distances of the cuts through two sets of equally many heads, named as in `head_scores`. untaken: gets the reasons why
    others are not there, by name."""
    found: dict[str, float] = {}
    for plane, dim in planes.items():
        cuts, others = (reslices(one, dim, slice_distance) for one in (first, second))
        generator = torch.Generator().manual_seed(seed)
        try:
            levels = sliced_wasserstein(cuts.images, others.images, generator)
            found |= {f"{plane}_swd_{level}": value for level, value in enumerate(levels)}
        except Untaken as reason:
            untaken[f"{plane}_swd"] = str(reason)
        try:
            found |= {f"{plane}_{name}": value for name, value in tell_apart(cuts, others, seed).items()}
        except Untaken as reason:
            untaken[f"{plane}_classifier"] = str(reason)
    return found


def reslices(heads: HeadSet, dim: int, slice_distance: float = 1.0) -> SliceSet:
    """Cuts through heads across the rows (dim 1) or the columns (dim 2) of their slices, at `RESLICES` places of each.

    Images are `[N * cuts, S', W or H]`, the first slice at the top: `S'` rows, a pixel apart, where slices lie `slice_distance`
    pixels apart, linear in between. numbers: rows or columns of the frame.
    """
    side, height = heads.images.shape[dim + 1], round((len(heads.numbers) - 1) * slice_distance) + 1
    places = np.unique(np.linspace(OUTERMOST * side, (1 - OUTERMOST) * side, RESLICES).astype(int))
    cuts = heads.images.index_select(dim + 1, torch.from_numpy(places)).movedim(dim + 1, 1)  # [N, cuts, S, ...]
    resize = partial(F.interpolate, size=(height, cuts.shape[3]), mode="bilinear", align_corners=True)
    images = torch.cat([resize(of_head[:, None])[:, 0] for of_head in cuts])
    groups = [group for group in heads.groups for _ in places]
    return SliceSet(images, groups, np.tile(places, len(heads)))
