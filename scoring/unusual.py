"""How unusual slices are to a run: maps on the grid of the codes, and scores of slices and scans from them.

    maps = maps_of(run, scan, coded(run, scan))     # scan: a `Split` of one scan's slices
    maps["bits"], maps["bits_told"], maps["error"]  # [S, h, w] each, NaN where it is not known
    scores = slice_scores(maps, high, usual, groups)    # name -> [S]; what is usual: of `held_out.HeldOut`

A prior that reads a map row by row knows nothing of what comes, so that what is unusual costs bits where it begins and makes what
follows it less so. Where a mirrored slice may stand for a slice, the mirrored one is scored too, its map reflected back, and the
mean is taken.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Split
from inference.coding import encode_split, reconstructions
from models.codes import CodeMaps, first_level
from models.detail import first_of
from models.neighbours import told_a_side
from scoring.bits import bits_of_maps
from utils import Run

HIGH = 0.98  # quantile of held-out bits above which a code is unusual
LEAST_BITS = 1.0  # codes that are likelier than not are never unusual, however usual they are elsewhere
WIDE = 3  # codes a side that the highest mean is taken over

SCORES = {  # of a slice, and what each says, for people
    "bits": "bits a code, all",
    "bits_foreground": "bits a code, foreground",
    "bits_told": "bits a code, all, told a neighbour",
    "bits_told_foreground": "bits a code, foreground, told a neighbour",
    "above": "share of codes above the 98th percentile",
    "above_told": "share of codes above the 98th percentile, told a neighbour",
    "error": "mean absolute reconstruction error of the foreground",
    "peak": "the most unusual place: mean standard score of 3x3 codes",
}
RANKED = ("bits_foreground", "bits_told_foreground", "above", "above_told", "error", "peak")  # what the rank is made of
PLACED = ("bits", "bits_told", "error")  # maps that say where


def coded(run: Run, scan: Split) -> dict[str, CodeMaps]:
    """Code maps of a scan's slices as they are and, where a mirrored slice may stand for one, mirrored."""
    codes = {"as it is": encode_split(run.vqvae, scan, run.frame)}
    return codes | ({"mirrored": encode_split(run.vqvae, scan, run.frame, mirror=True)} if scan.symmetric else {})


def maps_of(run: Run, scan: Split, codes: Mapping[str, CodeMaps]) -> dict[str, Tensor]:
    """Maps of the slices of one scan on the grid of the first level's codes, `[S, h, w]` float32 each.

    bits: of each code, the prior told nothing of other slices. bits_told: told the map of the slice below, or above where there
    is none; NaN where there is neither; only of a prior with context. error: mean absolute difference from the reconstruction, by
    all levels of codes. foreground: 1 where a patch has texture, else 0. codes: `coded` of the scan.
    """
    maps = {"bits": _mean_of_ways(codes, lambda each: _bits(run, each, scan))}
    if run.prior.context_maps:
        maps["bits_told"] = _mean_of_ways(codes, lambda each: _bits_told(run, each, scan))
    return maps | _pixel_maps(run, scan, codes["as it is"])


def _bits(run: Run, codes: Tensor, scan: Split) -> Tensor:
    return torch.cat(list(bits_of_maps(run.prior, codes, scan.known)))


def _bits_told(run: Run, codes: Tensor, scan: Split) -> Tensor:
    known, context = told_a_side(scan, codes, run.prior.context_maps)
    bits = torch.cat(list(bits_of_maps(run.prior, codes, known, context=context)))
    return bits.masked_fill((context[:, :1] < 0).flatten(1).all(1)[:, None, None], torch.nan)


def _mean_of_ways(codes: Mapping[str, CodeMaps], bits: Callable[[Tensor], Tensor]) -> Tensor:
    """Bits of the slices as they are and mirrored, those reflected back, on average."""
    found = {way: bits(first_level(each)) for way, each in codes.items()}
    return sum(each.flip(1) if way == "mirrored" else each for way, each in found.items()) / len(found)


def _pixel_maps(run: Run, scan: Split, codes: CodeMaps) -> dict[str, Tensor]:
    errors, foregrounds, f = [], [], run.vqvae.downsample
    for images, decoded in reconstructions(run.vqvae, scan, codes, run.frame):
        inside = run.frame.crop(images)
        errors.append(F.avg_pool2d((run.frame.crop(decoded) - inside).abs(), f)[:, 0])
        foregrounds.append(~first_of(run.vqvae).flat(inside)[:, 0])
    return {"error": torch.cat(errors), "foreground": torch.cat(foregrounds).float()}


def standard(maps: Mapping[str, Tensor], usual: Mapping[str, tuple[Tensor, Tensor]], groups: np.ndarray) -> Tensor:
    """How far slices lie from what held-out ones have at the same place, in standard deviations, the mean of the maps that say
    where: `[S, h, w]`.

    usual: mean and standard deviation `[G, h, w]` by the name of the map. groups: `[S]`, of these, that the slices belong to.
    """
    rows, scores = torch.from_numpy(groups), []
    for name in (name for name in PLACED if name in maps):
        mean, spread = (each[rows] for each in usual[name])
        scores.append(((maps[name] - mean) / spread).nan_to_num(0.0))
    return sum(scores) / len(scores)


def slice_scores(
    maps: Mapping[str, Tensor],
    high: Mapping[str, Tensor],
    usual: Mapping[str, tuple[Tensor, Tensor]],
    groups: np.ndarray,
) -> dict[str, np.ndarray]:
    """The `SCORES` of each slice, `[S]` float64, NaN where one is not known. high: the 98th percentiles, `[G, h, w]` by the name
    of the map. usual, groups: as in `standard`."""
    foreground, rows = maps["foreground"], torch.from_numpy(groups)
    some = foreground.sum((1, 2)) > 0
    weights = foreground.where(some[:, None, None], torch.ones(()))  # all of a slice that is nothing but background

    def over_foreground(values: Tensor) -> Tensor:
        return (values * weights).sum((1, 2)) / weights.sum((1, 2))

    scores = {"error": over_foreground(maps["error"])}
    for name, above in (("bits", "above"), ("bits_told", "above_told")):
        unknown = torch.full((len(foreground), 1, 1), torch.nan)
        bits = maps.get(name, unknown)
        scores[name] = bits.mean((1, 2))
        scores[f"{name}_foreground"] = over_foreground(bits)
        beyond = (bits > high[name][rows].clamp(min=LEAST_BITS)).float() if name in maps else bits
        scores[above] = beyond.mean((1, 2)).where(~scores[name].isnan(), torch.nan)
    pooled = F.avg_pool2d(standard(maps, usual, groups)[:, None], WIDE, 1, WIDE // 2)
    scores["peak"] = pooled.flatten(1).amax(1)
    return {name: scores[name].double().numpy() for name in SCORES}


def of_scan(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores of a scan from those of its slices: their means; of `peak` the highest."""
    found = {}
    for name, values in scores.items():
        known = values[~np.isnan(values)]
        found[name] = float(known.max() if name == "peak" else known.mean()) if len(known) else float("nan")
    return found


def pixels_of(maps: Tensor, factor: int) -> Tensor:
    """Maps of codes as pictures of the frame: `[S, h, w]` -> `[S, h*f, w*f]`, smooth between the middles of codes."""
    size = [side * factor for side in maps.shape[1:]]
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
