"""What held-out scans are to a run: what is usual, to which other scans are compared (`held_out.safetensors` of a run folder).

    held_out = measure(run, data.splits["validate"], data.splits["train"])
    save(folder / HELD_OUT, held_out, run)
    held_out = load(folder / HELD_OUT, run)             # refused beside other weights
    held_out.percentiles(scores, groups)                # of slices, among the held-out ones of the same slice numbers

A scan that is itself among the held-out ones, by its pixels, is compared to the others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.files import hash_of, save_tensors
from common.runtime import Progress
from dataset import Split, spread_over
from scoring.input_checks import Template, features_of
from scoring.unusual import (
    HIGH,
    OF_CODES,
    OF_PIXELS,
    RANKED,
    SCORES,
    beside_of,
    coded,
    maps_of,
    of_scan,
    slice_scores,
    tissue_of,
)
from utils import Run

HELD_OUT = "held_out.safetensors"
MOST_SCANS = 64  # held-out scans measured, spread over the split; their maps are held in memory
MOST_GROUPS = 32  # of slice numbers, each with what is usual there
MEAN_SCANS = 96  # training scans, spread over the split, that mean slices are made of


@dataclass(frozen=True)
class HeldOut:
    """Held-out scans, measured.

    numbers: `[G]` the lowest slice number of each group. marks: `[M]` of the scans, `mark_of`.
    high, mean, spread: `[C, G, h, w]` 98th percentile, mean, standard deviation of the maps `OF_CODES` that there are.
    pixel_mean, pixel_spread: `[P, G, H/2, W/2]` of the maps `OF_PIXELS`.
    slices: `[R, len(SCORES)]` of all slices, of the groups slice_groups `[R]` and the scans slice_scans `[R]`.
    scans: `[M, len(SCORES)]`.
    template: mean training slices, `[G, SIDE, SIDE]`. features: `[M, len(input_checks.NAMES)]` of the scans.
    """

    numbers: Tensor
    marks: Tensor
    high: Tensor
    mean: Tensor
    spread: Tensor
    pixel_mean: Tensor
    pixel_spread: Tensor
    slices: Tensor
    slice_groups: Tensor
    slice_scans: Tensor
    scans: Tensor
    template: Tensor
    features: Tensor
    maps: tuple[str, ...] = OF_CODES
    symmetric: bool = True

    def groups_of(self, scan: Split) -> np.ndarray:
        """The group of each slice, `[S]`: that of the nearest slice number; the first where nothing is known of numbers."""
        return _groups(scan.numbers, self.numbers.numpy(), len(scan))

    @property
    def highs(self) -> dict[str, Tensor]:
        return dict(zip(self.maps, self.high.float()))

    @property
    def usual(self) -> dict[str, tuple[Tensor, Tensor]]:
        of_codes = zip(self.maps, self.mean, self.spread)
        of_pixels = zip(OF_PIXELS, self.pixel_mean, self.pixel_spread)
        return {name: (mean.float(), spread.float()) for name, mean, spread in (*of_codes, *of_pixels)}

    @property
    def mean_slices(self) -> Template:
        return Template(self.template.float(), self.symmetric)

    def own(self, scan: Split) -> int | None:
        """Which of the held-out scans this one is; None of another."""
        found = (self.marks == mark_of(scan)).nonzero()
        return int(found[0]) if len(found) else None

    def scores_of(self, own: int) -> dict[str, np.ndarray]:
        """The scores of the slices of one of the held-out scans, as beside the others, `[S]` each."""
        rows = self.slices[self.slice_scans == own].double().numpy()
        return {name: rows[:, index] for index, name in enumerate(SCORES)}

    def percentiles(
        self, scores: Mapping[str, np.ndarray], groups: np.ndarray, own: int | None = None
    ) -> dict[str, np.ndarray]:
        """The percentile of each slice among the held-out slices of its group, `[S]` of 0..100, NaN where a score is not known.
        own: the scan that the slices are of, which is left out."""
        others = self.slice_scans.numpy() != (-1 if own is None else own)
        table, group_of = self.slices.numpy()[others], self.slice_groups.numpy()[others]
        found = {name: np.full(len(groups), np.nan) for name in scores}
        for group in np.unique(groups):
            here = groups == group
            for name, values in scores.items():
                found[name][here] = _percentiles(values[here], table[group_of == group, [*SCORES].index(name)])
        return found

    def scan_percentiles(self, scores: Mapping[str, float], own: int | None = None) -> dict[str, float]:
        """The percentile of a scan among the held-out ones, as `percentiles`."""
        table = np.delete(self.scans.numpy(), [] if own is None else own, 0)
        return {
            name: float(_percentiles(np.array([value]), table[:, [*SCORES].index(name)])[0])
            for name, value in scores.items()
        }

    def unusual(self, scores: Mapping[str, np.ndarray], groups: np.ndarray, own: int | None = None) -> np.ndarray:
        """One figure of how unusual slices are, `[S]`: the mean over `RANKED` of how many standard deviations they lie above the
        held-out slices of their group. It ranks beyond the highest held-out one, where percentiles are all 100."""
        others = self.slice_scans.numpy() != (-1 if own is None else own)
        table, group_of = self.slices.numpy()[others], self.slice_groups.numpy()[others]
        of_groups = np.stack([_spread(table[group_of == group]) for group in np.unique(group_of)])
        typical = np.sqrt(np.nan_to_num(of_groups**2).mean(0))  # few scans may be alike by chance
        found = np.full(len(groups), np.nan)
        for group in np.unique(groups):
            here = groups == group
            found[here] = _standard(
                {key: each[here] for key, each in scores.items()}, table[group_of == group], typical
            )
        return found

    def scan_unusual(self, scores: Mapping[str, float], own: int | None = None) -> float:
        """The same of a scan among the held-out ones."""
        table = np.delete(self.scans.numpy(), [] if own is None else own, 0)
        return float(_standard({name: np.array([value]) for name, value in scores.items()}, table)[0])


def _percentiles(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    known = known[~np.isnan(known)]
    if not len(known):
        return np.full(len(values), np.nan)
    below = (known < values[:, None]).mean(1) + (known == values[:, None]).mean(1) / 2
    return np.where(np.isnan(values), np.nan, 100 * below)


def _standard(scores: Mapping[str, np.ndarray], table: np.ndarray, least: np.ndarray | None = None) -> np.ndarray:
    """The mean over `RANKED` of how far scores lie above those of a table, in its standard deviations, or in `least` if more."""
    spread = _spread(table) if least is None else np.fmax(_spread(table), least)
    each = []
    for index, name in ((index, name) for index, name in enumerate(SCORES) if name in RANKED):
        known = table[~np.isnan(table[:, index]), index]
        if len(known):
            each.append((scores[name] - known.mean()) / max(spread[index], 1e-3 * abs(known.mean()), 1e-6))
    rows = np.stack(each)
    known = ~np.isnan(rows)
    return np.where(known, rows, 0).sum(0) / known.sum(0).clip(1)


def _spread(table: np.ndarray) -> np.ndarray:
    """Standard deviation of each score, `[len(SCORES)]`, NaN where none is known."""
    masked = np.ma.masked_invalid(table)
    return masked.std(0).filled(np.nan)


# --------------------------------------------------------------------------- measuring


def scans_of(split: Split) -> Iterator[np.ndarray]:
    """The indices of the slices of each scan; of slices without numbers, of each subject and visit."""
    if split.numbers is not None:
        whose = split.scans
    else:
        visits = split.sessions or [""] * len(split)
        _, whose = np.unique([f"{one}\n{visit}" for one, visit in zip(split.subjects, visits)], return_inverse=True)
    order = np.argsort(whose, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(whose[order])) + 1)


def mark_of(scan: Split) -> int:
    """What a scan is known again by: of all its pixels."""
    found = hashlib.sha256(np.ascontiguousarray(scan.images).tobytes())
    return int.from_bytes(found.digest()[:8], "little", signed=True)


def measure(run: Run, split: Split, train: Split | None = None, title: str | None = None) -> HeldOut:
    """Measure held-out scans.

    Args:
        run: with a prior. split: the held-out scans. train: that mean slices are made of; None: of the held-out ones.
        title: of the progress bar; None shows none.
    """
    scans = list(scans_of(split))
    scans = [scans[index] for index in spread_over(len(scans), MOST_SCANS)]
    numbers, of_mean = _group_numbers(split.numbers), train if train is not None and len(train) else split
    some = list(scans_of(of_mean))
    mean_of = of_mean.at(np.concatenate([some[index] for index in spread_over(len(some), MEAN_SCANS)]))
    template = Template.of(mean_of, _groups(mean_of.numbers, numbers, len(mean_of)), len(numbers))
    all_maps: list[dict[str, Tensor]] = []
    about: list[_About] = []
    with Progress(len(scans), title or "", "scan", quiet=title is None) as progress:
        for indices in scans:
            scan = split.at(indices)
            groups = _groups(scan.numbers, numbers, len(scan))
            maps = maps_of(run, scan, coded(run, scan))
            all_maps.append({name: each.half() if name in _HALVED else each for name, each in maps.items()})
            features = features_of(scan.images, groups, template).values
            about.append(_About(groups, beside_of(scan), mark_of(scan), features))
            progress.update(1)
    names = tuple(name for name in OF_CODES if name in all_maps[0])
    pooled = Pool(all_maps, [each.groups for each in about], len(numbers), split.symmetric)
    of_codes, of_pixels = ([pooled.usual(name) for name in some] for some in (names, OF_PIXELS))
    slices, of_scans = _scores(all_maps, about, pooled, names, tissue_of(template.images, run.frame))
    return HeldOut(
        torch.from_numpy(numbers),
        torch.tensor([each.mark for each in about]),
        torch.stack([pooled.high(name) for name in names]).half(),
        *(torch.stack(each).half() for each in zip(*of_codes)),
        *(torch.stack(each).half() for each in zip(*of_pixels)),
        torch.from_numpy(np.concatenate(slices)).float(),
        torch.from_numpy(np.concatenate([each.groups for each in about])).short(),
        torch.from_numpy(np.repeat(np.arange(len(about)), [len(each.groups) for each in about])).short(),
        torch.from_numpy(np.stack(of_scans)).float(),
        template.images.half(),
        torch.from_numpy(np.stack([each.features for each in about])).float(),
        names,
        split.symmetric,
    )


_HALVED = (*OF_CODES, *OF_PIXELS, "inner", "head")  # maps that are kept in half the memory while scans are measured


@dataclass(frozen=True)
class _About:
    """Of a scan that is measured: the group of each slice `[S]`, the slices beside each `[2, S]`, `mark_of`, its features."""

    groups: np.ndarray
    beside: np.ndarray
    mark: int
    features: np.ndarray


def _scores(
    all_maps: list[dict[str, Tensor]], about: list[_About], pooled: "Pool", names: tuple[str, ...], tissue: Tensor
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The scores of the slices of each scan, `[S, len(SCORES)]`, and of the scan, each beside the others."""
    slices, of_scans = [], []
    for index, (its, each) in enumerate(zip(all_maps, about)):
        high = {name: pooled.high(name, index) for name in names}
        usual = {name: pooled.usual(name, index) for name in (*names, *OF_PIXELS)}
        maps = {name: values.float() for name, values in its.items()}
        scores = slice_scores(maps, high, usual, each.groups, each.beside, tissue)
        slices.append(np.stack([scores[name] for name in SCORES], 1))
        of_scans.append(np.array([of_scan(scores)[name] for name in SCORES]))
    return slices, of_scans


class Pool:
    """Maps of several scans, as what is usual at each place: pooled over the groups on either side, and mirrored where a mirrored
    slice may stand for one, since few scans say little of a place.

    Args:
        all_maps: of each scan, by name `[S, h, w]`. groups: of each scan, `[S]`. count: G. symmetric: as of the split.
    """

    def __init__(self, all_maps: list[dict[str, Tensor]], groups: list[np.ndarray], count: int, symmetric: bool):
        self.all_maps, self.count, self.symmetric = all_maps, count, symmetric
        self.groups = groups
        self.owner = torch.from_numpy(np.repeat(np.arange(len(groups)), [len(each) for each in groups]))
        self.group = torch.from_numpy(np.concatenate(groups))
        self._tops: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._sums: dict[str, Tensor] = {}

    def _pools(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each group, the maps `[P, h, w]` of it and its neighbours, NaN left out, and whose they are `[P]`."""
        maps = torch.cat([each[name] for each in self.all_maps])
        known = ~maps.flatten(1)[:, 0].isnan()
        for group in range(self.count):
            here = ((self.group - group).abs() <= 1) & known
            pool, owner = maps[here].float(), self.owner[here]
            yield (torch.cat([pool, pool.flip(1)]), owner.repeat(2)) if self.symmetric else (pool, owner)

    def high(self, name: str, without: int | None = None) -> Tensor:
        """The quantile `HIGH` of a map at each place, `[G, h, w]`. without: a scan to leave out."""
        if name not in self._tops:
            self._tops[name] = [_top(pool, owner) for pool, owner in self._pools(name)]
        found = []
        for values, owners, sizes in self._tops[name]:
            others = owners != (-1 if without is None else without)
            rank = max(1, round((1 - HIGH) * float(sizes.sum() - (0 if without is None else sizes[without]))))
            at = (others.cumsum(0) < rank).sum(0).clamp(max=len(values) - 1)
            found.append(values.gather(0, at[None])[0])
        return torch.stack(found)

    def usual(self, name: str, without: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a map at each place, `[G, ...]`; of the latter the highest of 5x5 places, since edges
        lie elsewhere in another head, and half of what is typical more. without: a scan to leave out."""
        if name not in self._sums:
            self._sums[name] = sum(self._sums_of(name, index) for index in range(len(self.all_maps)))
        sums = self._sums[name] if without is None else self._sums[name] - self._sums_of(name, without)
        counts = sums[0].clamp(min=1)
        mean = sums[1] / counts
        spread = (sums[2] / counts - mean.square()).clamp(min=0).sqrt()
        wide = F.max_pool2d(spread[:, None], NEAR, 1, NEAR // 2)[:, 0]
        return mean.float(), (wide + ADDED * typical_of(spread) + 1e-6).float()

    def _sums_of(self, name: str, index: int) -> Tensor:
        """Of the maps of one scan, and mirrored, by group: how many, their sum and that of their squares, `[3, G, ...]` float64;
        a map counts for its group and those on either side."""
        maps = self.all_maps[index][name]
        known = ~maps.flatten(1)[:, 0].isnan()
        maps, groups = maps[known].double(), torch.from_numpy(self.groups[index])[known]
        each = torch.stack([torch.ones_like(maps), maps, maps.square()])
        each = each + each.flip(2) if self.symmetric else each
        sums = torch.zeros(3, self.count + 2, *maps.shape[1:], dtype=torch.float64)
        for side in range(3):
            sums.index_add_(1, groups + side, each)
        return sums[:, 1:-1]


ADDED = 0.5  # of the typical standard deviation, added to each: where nothing happens a little would count as much
NEAR = 5  # places a side that the highest standard deviation is taken of


def typical_of(spread: Tensor) -> float:
    """The median of the standard deviations that are not next to nothing."""
    some = spread[spread > 1e-3 * spread.max()]
    return float(some.median()) if len(some) else 0.0


def _top(pool: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest values at each place `[T, h, w]`, whose they are, and how many maps each scan has: enough of them that the
    quantile is among them when any scan is left out."""
    sizes = owner.bincount(minlength=int(owner.max()) + 1 if len(owner) else 1)
    count = min(len(pool), round((1 - HIGH) * len(pool)) + int(sizes.max()) + 1)
    values, rows = pool.topk(count, 0)
    return values, owner[rows], sizes


def _group_numbers(numbers: np.ndarray | None) -> np.ndarray:
    """The lowest slice number of each group, `[G]`: of every number, or of stretches of as many, where there are many."""
    there = np.zeros(1, int) if numbers is None else np.unique(numbers)
    return np.array([part[0] for part in np.array_split(there, min(MOST_GROUPS, len(there)))])


def _groups(numbers: np.ndarray | None, lowest: np.ndarray, count: int) -> np.ndarray:
    if numbers is None or len(lowest) == 1:
        return np.zeros(count, int)
    return (np.searchsorted(lowest, numbers, side="right") - 1).clip(0, len(lowest) - 1)


# --------------------------------------------------------------------------- the file


def save(path: Path, held_out: HeldOut, run: Run) -> None:
    """Write them for `load`, with the hashes of the weights that they were measured by."""
    tensors = {each.name: getattr(held_out, each.name) for each in fields(HeldOut) if each.type is Tensor}
    about = {"class": "HeldOut", "maps": held_out.maps, "symmetric": held_out.symmetric, "prior": prior_mark(run)}
    about |= {"scores": [*SCORES], "pixels": [*OF_PIXELS]}
    save_tensors(path, tensors, about, hash_of(run.vqvae.state_dict()))


def load(path: Path, run: Run) -> HeldOut | None:
    """What `save` wrote; None where there is none, or it was measured by other weights or another version.

    Raises:
        UserError: when the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get("model", "{}"))
        belongs = (header.get("prior"), header.get("vqvae")) == (prior_mark(run), hash_of(run.vqvae.state_dict()))
        if not belongs or (header.get("scores"), header.get("pixels")) != ([*SCORES], [*OF_PIXELS]):
            return None
        return HeldOut(**load_file(path), maps=tuple(header["maps"]), symmetric=header["symmetric"])
    except (SafetensorError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it, and score.py makes it anew from the run's data"
        ) from None


def prior_mark(run: Run) -> str:
    """What says which prior, and how calibrated."""
    weights = hash_of(run.prior.state_dict())
    return f"{weights} {run.prior.temperature:.6g} {run.prior.told_temperature:.6g}"
