"""Whether a scan is what the weights expect: its orientation, size, contrast and skull, beside those of held-out scans, in words.

    template = Template.of(split)                               # mean slices of many scans, small
    features = features_of(images, places, template)            # of one scan, [S, H, W] uint8
    findings(features, held_out)                                # ["looks rotated by 90 degrees"]; [] where all is usual

The order matters. A scan that lies another way is turned back before its size is measured, and is brought to the usual size
before its contrast is, so that one fault is not said to be several. Nothing here knows of the networks: these are means, outlines
and histograms.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from dataset import Split, spread_over

SIDE = 64  # pixels a side of the small slices that scans are compared at
BACKGROUND = 16.0  # grey values of 255 that are darker are background
# depths below the head's outline, in shares of its width, that scalp and skull do not pass
SCALP, BRAIN = 0.07, 0.16
RINGS = 32  # of equal depth down to the brain, that grey values are averaged over
PROFILED = 8  # slices, spread over the scan, whose rings are averaged
SHIFT = 8  # small pixels that a scan may lie beside the mean one
# a scan must lie beyond the farthest held-out one by a tenth, and so many standard deviations off
MARGIN, SPREADS = 1.1, np.array([3.0, 3.0, 3.2, 4.0, 3.0, 3.0, 3.0, 3.0])
FEW = 4.0  # spreads over M scans count as 1 + FEW / M of them: few say little of the rest
RING = -0.3  # ln of a dark ring that is one
IN_PLACE = 0.21  # how much more a head gains by being brought to the usual size, in correlation, if it is a smaller one
SMALLER = 2.0  # standard deviations by which a head without its skull is smaller, at least
ALIKE = 1 / 3  # of the usual correlation, below which the contrast is another one
TURNS = {  # quarter turns, whether mirrored across rows before: what brings a scan that lies so back, in words
    (0, False): "",
    (0, True): "looks mirrored left to right",
    (1, False): "looks rotated by 90 degrees",
    (3, False): "looks rotated by 90 degrees",
    (1, True): "looks rotated by 90 degrees and mirrored",
    (3, True): "looks rotated by 90 degrees and mirrored",
    (2, False): "looks rotated by 180 degrees",
    (2, True): "looks as if front and back were swapped",
}
NOBODY_CAN_TELL = "looks rotated by 180 degrees, or front and back are swapped"  # where both sides are alike
UPSIDE_DOWN = "its slices look as if they ran from the top down"
NAMES = (  # of the features of a scan, in this order
    "turned",  # how much better the mean slices fit when the scan is turned back, correlation
    "size",  # ln of the head's extent over that of the mean slices, mean of both directions
    "shape",  # ln of its extent along rows minus that along columns, likewise
    "contrast",  # correlation with the mean slices within the head
    "skull",  # ln of the darkest ring below the brightest one near the outline, over that one: skull below scalp
    "grey",  # ln of the brightness of the core over that of the mean slices
    "moved",  # pixels of the small slices that the scan lies beside the mean ones
    "in place",  # contrast as the scan is minus contrast brought to the usual size
)
LEAST = np.array([0.02, 0.01, 0.01, 0.05, 0.05, 0.05, 2.0, 0.1])  # by how much each must differ at least


@dataclass(frozen=True)
class Template:
    """Mean slices.

    images: `[G, SIDE, SIDE]` float32, 0..255, of groups of slice numbers. symmetric: whether mirrored slices are as good.
    """

    images: Tensor
    symmetric: bool

    @classmethod
    def of(cls, split: Split, group_of: np.ndarray, groups: int) -> "Template":
        """Of the slices of a split. group_of: `[N]` the group of each."""
        sums, counts = torch.zeros(groups, SIDE, SIDE), torch.zeros(groups)
        for start in range(0, len(split), 512):
            part, into = small(split.images[start : start + 512]), torch.from_numpy(group_of[start : start + 512])
            sums.index_add_(0, into, part)
            counts += into.bincount(minlength=groups)
        images = sums / counts.clamp(min=1)[:, None, None]
        return cls((images + images.flip(1)) / 2 if split.symmetric else images, split.symmetric)


@dataclass(frozen=True)
class Features:
    """What was measured of a scan. values: `[len(NAMES)]` float64, when turned back. as_it_is: likewise, as it lies. turn: the
    words for how it lies, "" for as expected."""

    values: np.ndarray
    as_it_is: np.ndarray
    turn: str = ""


def small(images: np.ndarray) -> Tensor:
    """`[S, H, W]` uint8 -> `[S, SIDE, SIDE]` float32: padded to squares, then averaged."""
    found = torch.from_numpy(np.array(images, np.float32))[:, None]
    height, width = found.shape[2:]
    rows, columns = (max(height, width) - side for side in (height, width))
    found = F.pad(found, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return F.adaptive_avg_pool2d(found, SIDE)[:, 0]


def features_of(images: np.ndarray, groups: np.ndarray, template: Template) -> Features:
    """Measure one scan.

    Args:
        images: `[S, H, W]` uint8. groups: `[S]`, of `template`, that the slices belong to.
        template: mean slices that the scan is held against.
    """
    scan, mean = small(images), template.images[torch.from_numpy(groups)]
    turned, turn, gain = _turned_back(scan, mean, template.symmetric)
    skull = _skull(images)
    as_it_is = _measured(scan, mean, 0.0, skull)
    return Features(_measured(turned, mean, gain, skull) if turn else as_it_is, as_it_is, turn)


def _measured(scan: Tensor, mean: Tensor, gain: float, skull: float) -> np.ndarray:
    """The features of small slices that lie as the mean ones."""
    head, usual = heads_of(scan), heads_of(mean)
    rows, columns = (float(np.log(_extent(head, axis) / _extent(usual, axis))) for axis in (1, 2))
    sized = _resized(scan, float(np.exp(-rows)), float(np.exp(-columns)))
    as_sized, resized = (_contrast(each, mean, torch.from_numpy(usual)) for each in (scan, sized))
    grey = float(np.log((_core(scan, head) + 1) / (_core(mean, usual) + 1)))
    moved = float(np.hypot(*_best_shift(scan, mean)[1]))
    return np.array(
        [gain, (rows + columns) / 2, rows - columns, max(as_sized, resized), skull, grey, moved, as_sized - resized]
    )


def findings(features: Features, held_out: np.ndarray) -> list[str]:
    """What is unusual of a scan's features beside those of held-out scans, `[M, len(NAMES)]`, in words.

    A scan is turned only if it then has the usual contrast: one of another contrast fits nowhere, and best by chance.
    """
    values = features.values
    said = [features.turn] if features.turn and _beyond(values, held_out)[0] > 0 else []
    if not said or _beyond(values, held_out)[NAMES.index("contrast")] < 0:
        said, values = [], features.as_it_is
    found = dict(zip(NAMES, _beyond(values, held_out)))
    value = dict(zip(NAMES, values))
    if _is_bare(value, held_out):
        return [*said, "looks skull-stripped; the weights are not of such scans"]
    sized = found["size"] or found["shape"]
    if sized:
        said.append(_of_size(value["size"], value["shape"]))
    if found["contrast"] < 0 and not (sized and _is_alike(value, held_out)):
        return [*said, "another contrast"]
    if found["skull"] < 0:
        said.append("a bright rim, such as scalp or skull, that the weights do not know")
    if found["grey"]:
        how = "brighter" if value["grey"] > 0 else "darker"
        said.append(f"{how} than expected, by a factor of {np.exp(value['grey']):.2f}")
    if found["moved"] > 0 and not said:
        said.append(f"lies beside its place, by {100 * value['moved'] / SIDE:.0f} % of the slice")
    return said


def _is_bare(value: dict[str, float], held_out: np.ndarray) -> bool:
    """Whether a scan has no skull where the held-out ones have: no dark ring to speak of, and a smaller head. Some scans have
    noise around the head that hides the ring; they are not smaller."""
    usual, spread = (dict(zip(NAMES, each)) for each in (np.median(held_out, 0), held_out.std(0)))
    smaller = _is_alike(value, held_out) and value["size"] < usual["size"] - SMALLER * spread["size"]
    in_place = value["in place"] > usual["in place"] - IN_PLACE  # a smaller head would fit better when enlarged
    return bool(usual["skull"] < RING and value["skull"] > usual["skull"] / 2 and smaller and in_place)


def _is_alike(value: dict[str, float], held_out: np.ndarray) -> bool:
    """Whether the contrast is that of the held-out scans, if less clearly, as where a head is of another size or cut."""
    return bool(value["contrast"] > ALIKE * np.median(held_out[:, NAMES.index("contrast")]))


def _of_size(size: float, shape: float) -> str:
    """The head's extents beside the usual ones, in words."""
    rows, columns = np.exp(size + shape / 2), np.exp(size - shape / 2)
    if abs(shape) < abs(size):
        how, mean = "larger" if size > 0 else "smaller", np.exp(size)
        return f"{how} than expected, by {100 * abs(mean - 1):.0f} %: another spacing?"
    return f"another shape than expected: {100 * rows:.0f} % of the usual extent along rows, {100 * columns:.0f} % along columns"


def _beyond(values: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """How each feature lies beside the held-out ones: -1 below, 1 above, 0 among them or not far beyond."""
    middle = np.median(held_out, 0)
    reach = SPREADS * held_out.std(0) * (1 + FEW / len(held_out)) + LEAST
    high = np.maximum(MARGIN * (held_out.max(0) - middle), reach)
    low = np.maximum(MARGIN * (middle - held_out.min(0)), reach)
    return (values > middle + high).astype(int) - (values < middle - low).astype(int)


def _turned_back(scan: Tensor, mean: Tensor, symmetric: bool) -> tuple[Tensor, str, float]:
    """The scan as the mean slices lie, how it lay in words, and by how much the fit is better so than as it is. symmetric: the
    mirrored scan is as good, and not looked for."""
    fits: dict[str, tuple[float, Tensor]] = {}
    for (turns, mirrored), words in TURNS.items():
        if symmetric and mirrored:
            continue
        words = NOBODY_CAN_TELL if symmetric and turns == 2 else words
        turned = torch.rot90(scan.flip(1) if mirrored else scan, turns, (1, 2))
        for said, each in ((words, turned), (_both(words, UPSIDE_DOWN), turned.flip(0))):
            fit = _best_shift(each, mean)[0]
            if said not in fits or fit > fits[said][0]:
                fits[said] = (fit, each)
    best = max(fits, key=lambda said: fits[said][0])
    return fits[best][1], best, fits[best][0] - fits[""][0]


def _both(words: str, more: str) -> str:
    return f"{words}; {more}" if words else more


def _best_shift(scan: Tensor, mean: Tensor) -> tuple[float, tuple[int, int]]:
    """The highest correlation of all slices together over shifts of a few pixels, and that shift (rows, columns)."""
    a, b = (each - each.mean() for each in (scan, mean))
    crossed = torch.fft.ifft2(torch.fft.fft2(a).conj() * torch.fft.fft2(b)).real.sum(0)
    near = torch.roll(crossed, (SHIFT, SHIFT), (0, 1))[: 2 * SHIFT + 1, : 2 * SHIFT + 1]
    at = int(near.argmax())
    scale = float(a.norm() * b.norm())
    return float(near.flatten()[at]) / max(scale, 1e-9), (at // near.shape[1] - SHIFT, at % near.shape[1] - SHIFT)


def _contrast(scan: Tensor, mean: Tensor, inside: Tensor) -> float:
    """The correlation with the mean slices within the head, at the best shift."""
    _, shift = _best_shift(scan, mean)
    return _correlation(torch.roll(scan, shift, (1, 2))[inside], mean[inside])


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def heads_of(images: Tensor) -> np.ndarray:
    """Which pixels lie in the head, `[S, ...]` bool: the largest piece of what is not background, filled. images: `[S, ...]` in
    0..255."""
    found = []
    for image in images.numpy():
        pieces, count = ndimage.label(image > BACKGROUND)
        largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]) if count else np.ones_like(image, bool)
        found.append(ndimage.binary_fill_holes(largest))
    return np.stack(found)


def _extent(heads: np.ndarray, axis: int) -> float:
    """How far heads reach along an axis, the median over the slices, in small pixels: the length of a uniform bar of the same
    standard deviation, since single bright pixels far out would count in an outline."""
    shares = heads.sum(3 - axis).astype(float)  # of each row or column
    shares /= shares.sum(1, keepdims=True)
    places = np.arange(heads.shape[axis])
    means = (shares * places).sum(1, keepdims=True)
    return float(np.median(np.sqrt(12 * (shares * (places - means) ** 2).sum(1) + 1)))


def _resized(scan: Tensor, rows: float, columns: float) -> Tensor:
    """Slices with their head, about its middle, larger by these factors."""
    weights = scan.sum(0) + 1e-6
    middle = [float((weights.sum(1 - axis) * torch.arange(SIDE)).sum() / weights.sum()) for axis in (0, 1)]
    centre = [2 * at / (SIDE - 1) - 1 for at in middle]
    theta = torch.tensor(
        [[1 / columns, 0, centre[1] * (1 - 1 / columns)], [0, 1 / rows, centre[0] * (1 - 1 / rows)]]
    ).float()
    grid = F.affine_grid(theta[None], [1, 1, SIDE, SIDE], align_corners=True)
    return F.grid_sample(scan[None], grid, align_corners=True)[0]


def _core(images: Tensor, heads: np.ndarray) -> float:
    """Mean grey value of the heads' inner parts."""
    values = [
        image[head & (ndimage.distance_transform_edt(head) > BRAIN * np.sqrt(head.sum()))]
        for image, head in zip(images.numpy(), heads)
    ]
    return float(np.concatenate(values).mean()) if sum(map(len, values)) else 0.0


def _skull(images: np.ndarray) -> float:
    """How much darker than the brightest ring near the head's outline the darkest ring below it is, ln; 0: it is not."""
    sums, counts = np.zeros(RINGS), np.zeros(RINGS)
    shown = images[spread_over(len(images), PROFILED)].astype(np.float32)
    for image, head in zip(shown, heads_of(torch.from_numpy(shown))):
        depth = (ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1] - 1) / np.sqrt(head.sum())
        ring = (depth[head] / BRAIN * RINGS).astype(int)
        inside = ring < RINGS
        sums += np.bincount(ring[inside], image[head][inside], RINGS)
        counts += np.bincount(ring[inside], minlength=RINGS)
    rings = sums[counts > 0] / counts[counts > 0]
    if not len(rings):
        return 0.0
    brightest = int(rings[: max(1, round(len(rings) * SCALP / BRAIN))].argmax())
    return float(np.log((rings[brightest:].min() + 1) / (rings[brightest] + 1)))
