"""How unusual slices are to a run: maps of where, and scores of slices and scans from them.

    maps = maps_of(run, scan, coded(run, scan))         # scan: a `Split` of one scan's slices
    maps["bits"], maps["bits_told"], maps["error"]      # [S, h, w] each, on the grid of the codes, NaN where it is not known
    maps["residual"], maps["surprise"], maps["inner"], maps["head"]   # [S, H/2, W/2] each, every other pixel of the frame
    scores = slice_scores(maps, high, usual, groups)    # name -> [S]; what is usual: of `held_out.HeldOut`

A prior that reads a map row by row knows nothing of what comes, so that what is unusual costs bits where it begins and makes what
follows it less so. Where a mirrored slice may stand for a slice, the mirrored one is scored too, its map reflected back, and the
mean is taken.

A code is eight pixels wide and much that is unusual is not, so that two maps are of pixels: what the codes cannot paint
(`residual`), and what they paint that the prior did not expect (`surprise`). Each is held against what held-out scans have at
that place, and the three kinds add up to one map, `standard`.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from dataset import Frame, Split
from inference.coding import encode_split, reconstructions
from models.codes import CodeMaps, first_level
from models.detail import first_of
from models.neighbours import told_a_side
from scoring.bits import bits_of_maps
from scoring.expected import expected
from scoring.input_checks import heads_of
from utils import Run

HIGH = 0.98  # quantile of held-out bits above which a code is unusual
LEAST_BITS = 1.0  # codes that are likelier than not are never unusual, however usual they are elsewhere
STEP = 2  # pixels of the slice from one of the maps of pixels to the next
SMOOTH = {"residual": 1.5, "surprise": 2.0}  # standard deviations, pixels, that these are blurred with
INNER = 0.1  # depth below the head's outline, in square roots of its area: scalps differ too much to say anything of
ABSENT = 0.02  # grey value that counts as a standard deviation where brain is missing: nearly no head lacks any there
OF_BITS = 0.5  # weight of the bits' standard scores beside those of pixels

SCORES = {  # of a slice, and what each says, for people
    "bits": "bits a code, all",
    "bits_foreground": "bits a code, foreground",
    "bits_told": "bits a code, all, told a neighbour",
    "bits_told_foreground": "bits a code, foreground, told a neighbour",
    "above": "share of codes above the 98th percentile",
    "above_told": "share of codes above the 98th percentile, told a neighbour",
    "error": "mean absolute reconstruction error of the foreground",
    "peak": "the most unusual place within the head: standard scores of pixels and bits",
}
RANKED = ("bits_foreground", "bits_told_foreground", "above", "above_told", "error", "peak")  # what the rank is made of
OF_CODES, OF_PIXELS = ("bits", "bits_told"), ("residual", "surprise")  # maps that say where


def coded(run: Run, scan: Split) -> dict[str, CodeMaps]:
    """Code maps of a scan's slices as they are and, where a mirrored slice may stand for one, of the first level mirrored."""
    codes = {"as it is": encode_split(run.vqvae, scan, run.frame)}
    if scan.symmetric:
        codes["mirrored"] = encode_split(first_of(run.vqvae), scan, run.frame, mirror=True)
    return codes


def maps_of(run: Run, scan: Split, codes: Mapping[str, CodeMaps]) -> dict[str, Tensor]:
    """Maps of the slices of one scan, float32.

    On the grid of the first level's codes, `[S, h, w]`:
        bits: of each code, the prior told nothing of other slices. bits_told: told the map of the slice below, or above where
        there is none; NaN where there is neither; only of a prior with context. error: mean absolute difference from the
        reconstruction, by all levels of codes. foreground: 1 where a patch has texture, else 0.
    Of every other pixel, `[S, H/2, W/2]`:
        residual: absolute difference from the reconstruction, blurred. surprise: the slice minus what the prior expects of it
        (`expected`), blurred. inner: 1 within the head below scalp and skull, else 0. head: 1 within the head.

    codes: `coded` of the scan.
    """
    ways = {way: first_level(each) for way, each in codes.items()}
    read = [_as_it_is(way, *expected(run, each, scan.known)) for way, each in ways.items()]
    maps = {"bits": _mean([bits for bits, _ in read])}
    if run.prior.context_maps:
        maps["bits_told"] = _mean([_as_it_is(way, _bits_told(run, each, scan))[0] for way, each in ways.items()])
    return maps | _pixel_maps(run, scan, codes["as it is"], _mean([pictures for _, pictures in read]))


def _as_it_is(way: str, *maps: Tensor) -> tuple[Tensor, ...]:
    """Maps of mirrored slices, reflected back."""
    return tuple(each.flip(1) for each in maps) if way == "mirrored" else maps


def _mean(maps: list[Tensor]) -> Tensor:
    return sum(maps) / len(maps)


def _bits_told(run: Run, codes: Tensor, scan: Split) -> Tensor:
    known, context = told_a_side(scan, codes, run.prior.context_maps)
    bits = torch.cat(list(bits_of_maps(run.prior, codes, known, context=context)))
    return bits.masked_fill((context[:, :1] < 0).flatten(1).all(1)[:, None, None], torch.nan)


def _pixel_maps(run: Run, scan: Split, codes: CodeMaps, pictures: Tensor) -> dict[str, Tensor]:
    errors, foregrounds, residuals, surprises, f = [], [], [], [], run.vqvae.downsample
    for images, decoded in reconstructions(run.vqvae, scan, codes, run.frame):
        inside = run.frame.crop(images)
        error = (run.frame.crop(decoded) - inside).abs()
        errors.append(F.avg_pool2d(error, f)[:, 0])
        foregrounds.append(~first_of(run.vqvae).flat(inside)[:, 0])
        residuals.append(_blurred(error[:, 0], SMOOTH["residual"]))
        start = sum(map(len, surprises))
        surprises.append(_blurred(inside[:, 0] - pictures[start : start + len(inside)], SMOOTH["surprise"]))
    inner, head = inner_of(run.frame.crop(torch.from_numpy(np.array(scan.images))))
    return {
        "error": torch.cat(errors),
        "foreground": torch.cat(foregrounds).float(),
        "residual": torch.cat(residuals),
        "surprise": torch.cat(surprises),
        "inner": inner,
        "head": head,
    }


def _blurred(maps: Tensor, sigma: float) -> Tensor:
    """`[S, H, W]` -> `[S, H/2, W/2]`."""
    smooth = ndimage.gaussian_filter(maps.numpy(), (0, sigma, sigma), truncate=3)
    return torch.from_numpy(np.ascontiguousarray(smooth[:, ::STEP, ::STEP]))


def inner_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """1 where a pixel lies deeper in the head than scalps and skulls do, else 0; and 1 where it lies in the head at all:
    `[S, H, W]` in 0..255 -> `[S, H/2, W/2]` float32 twice."""
    found, heads = [], heads_of(images[:, ::STEP, ::STEP].float())
    for head in heads:
        depth = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1]
        found.append(depth > INNER * np.sqrt(head.sum()))
    return torch.from_numpy(np.stack(found)).float(), torch.from_numpy(heads).float()


def tissue_of(template: Tensor, frame: Frame) -> Tensor:
    """Grey values of the inner parts of mean heads, 0 elsewhere: `[G, SIDE, SIDE]` whole slices padded to squares
    (`input_checks.Template`) in 0..255 -> `[G, H/2, W/2]` of the frame, 0..1."""
    height, width = frame.image_height, frame.image_width
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    inside = frame.crop(at_size(template, side, side)[:, top : top + height, left : left + width])
    return inner_of(inside)[0] * inside[:, ::STEP, ::STEP] / 255


def standard(
    maps: Mapping[str, Tensor],
    usual: Mapping[str, tuple[Tensor, Tensor]],
    groups: np.ndarray,
    beside: np.ndarray | None = None,
    tissue: Tensor | None = None,
) -> Tensor:
    """How far the inner parts of the heads lie from what held-out ones have at the same place: standard deviations of the
    residual and of the surprise, and half of those that the bits lie above, added: `[S, H/2, W/2]`, 0 or more. Where there is no
    head and mean heads have brain, its mean grey value over `ABSENT`.

    usual: mean and standard deviation `[G, ...]` by the name of the map. groups: `[S]`, of these, that the slices belong to.
    beside: `[2, S]` the slices below and above each, -1 for none, with which the mean is taken, in which the
    slice itself counts twice; None: of each alone.
    """
    rows = torch.from_numpy(groups)

    def score(name: str) -> Tensor:
        mean, spread = (each[rows] for each in usual[name])
        return (maps[name] - mean) / spread

    costs = [score(name).nan_to_num(0.0) for name in OF_CODES if name in maps]
    found = sum(score(name).abs() for name in OF_PIXELS)
    found = found + OF_BITS * at_size(_mean(costs).clamp(min=0), *found.shape[1:])
    if beside is not None:
        found = _with_those_beside(found, torch.from_numpy(beside))
    found = found * maps["inner"]
    return found if tissue is None else found + (1 - maps["head"]) * tissue[rows] / ABSENT


def _with_those_beside(maps: Tensor, beside: Tensor) -> Tensor:
    """The mean of each map `[S, H, W]`, twice, and of those below and above it, as far as there are any: `beside` `[2, S]`."""
    total, counts = 2 * maps, torch.full((len(maps),), 2.0)
    for side in beside:
        there = (side >= 0).float()
        total = total + maps[side.clamp(min=0)] * there[:, None, None]
        counts = counts + there
    return total / counts[:, None, None]


def beside_of(scan: Split) -> np.ndarray:
    """The slices below and above each of a scan's, `[2, S]`, -1 for none."""
    return np.stack([scan.neighbours(-1), scan.neighbours(1)])


def slice_scores(
    maps: Mapping[str, Tensor],
    high: Mapping[str, Tensor],
    usual: Mapping[str, tuple[Tensor, Tensor]],
    groups: np.ndarray,
    beside: np.ndarray | None = None,
    tissue: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The `SCORES` of each slice, `[S]` float64, NaN where one is not known. high: the 98th percentiles, `[G, h, w]` by the name
    of the map. usual, groups, beside, tissue: as in `standard`."""
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
    scores["peak"] = standard(maps, usual, groups, beside, tissue).flatten(1).amax(1)
    return {name: scores[name].double().numpy() for name in SCORES}


def of_scan(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores of a scan from those of its slices: their means; of `peak` the highest."""
    found = {}
    for name, values in scores.items():
        known = values[~np.isnan(values)]
        found[name] = float(known.max() if name == "peak" else known.mean()) if len(known) else float("nan")
    return found


def at_size(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps on a coarser grid as pictures: `[S, h, w]` -> `[S, height, width]`, smooth between the middles."""
    return F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
