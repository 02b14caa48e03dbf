"""Where fine detail lies: grain that is strewn over smooth tissue has the power of detail, and not its place.

    values = texture_values(images)             # of each slice
    texture_summary(values)                     # {"texture_kurtosis": 8.3, "edge_to_smooth": 4.4, "tissue_noise": 3.2}

Power spectra say how much fine detail there is and not where. Real detail is sparse and strong at edges: its distribution has
heavy tails. White matter is nearly flat; what is seen there is the scanner's noise.

What is measured, in pixels where sides are given for a frame whose shorter side has 176 (`SIDE`) and grow with it:

- the fine band: a slice without the frequencies below `FINE` cycles a pixel (Fourier transform of the content frame);
- tissue: deeper than `RIM` pixels inside the outline of the head, holes filled, where the slice blurred by `BLUR` pixels is
  brighter than `DARK` of its median there: the scalp's outer edge, air and fluid are left out;
- edges and smooth tissue: the top tenth and the lowest three tenths of tissue by the gradient of the blurred slice;
- white matter: of what lies deeper than `DEEP` pixels, the brightest three tenths of the blurred slice (T1 shows white matter
  brightest), and of these the half with the smaller gradient.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import kurtosis
from torch import Tensor

from scoring.metrics import FOREGROUND, frequencies

FINE = 0.2  # cycles a pixel
BLUR = 2.0  # standard deviation of the blur in pixels
SIDE, RIM, DEEP = 176, 5, 20
DARK = 0.5
EDGES, SMOOTH, BRIGHT, CALM = 0.9, 0.3, 0.7, 0.5  # quantiles
FEWEST_PIXELS = 100  # of tissue, and half as many of white matter, from which a slice can be measured
PART = 64  # slices at a time
NAMES = ("texture_kurtosis", "edge_to_smooth", "tissue_noise")
MEASURES = ("kurtosis", "edges", "smooth", "noise")


def texture_values(images: Tensor) -> dict[str, np.ndarray]:
    """Of each of `[N, H, W]` slices in 0..1, `[N]` float64 each, NaN where a slice shows too little tissue.

    kurtosis: of the fine band in tissue (3 for Gaussian noise). edges, smooth: its mean power there (range 0..1, squared).
    noise: its standard deviation in white matter, in grey levels of 255.
    """
    rows: list[tuple[float, ...]] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for part in images.split(PART):
            rows += pool.map(_measure, part.numpy(), fine_band(part).numpy(), *_blurred(part.numpy()))
    return dict(zip(MEASURES, np.array(rows, dtype=float).reshape(-1, len(MEASURES)).T))


def fine_band(images: Tensor) -> Tensor:
    """`[N, H, W]` slices without the frequencies below `FINE` cycles a pixel."""
    spectrum = torch.fft.fft2(images.float()) * (frequencies(images[:, None]) >= FINE)
    return torch.fft.ifft2(spectrum).real


def _blurred(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The blurred slices and the size of their gradients, `[N, H, W]` each."""
    blurred = ndimage.gaussian_filter(images.astype(np.float32), (0, BLUR, BLUR))
    return blurred, np.hypot(*np.gradient(blurred, axis=(1, 2)))


def _measure(image: np.ndarray, fine: np.ndarray, blurred: np.ndarray, gradient: np.ndarray) -> tuple[float, ...]:
    """`MEASURES` of one `[H, W]` slice."""
    depth = depth_in_head(image)
    inside = depth > RIM
    if inside.sum() < FEWEST_PIXELS:
        return (math.nan,) * len(MEASURES)
    tissue = inside & (blurred > DARK * np.median(blurred[inside]))
    if tissue.sum() < FEWEST_PIXELS:
        return (math.nan,) * len(MEASURES)
    smooth, edges = np.quantile(gradient[tissue], (SMOOTH, EDGES))
    squared = np.square(fine.astype(float))
    return (
        float(kurtosis(fine[tissue].astype(float), fisher=False)),
        float(squared[tissue & (gradient >= edges)].mean()),
        float(squared[tissue & (gradient <= smooth)].mean()),
        _noise(fine, blurred, gradient, depth > DEEP),
    )


def depth_in_head(image: np.ndarray) -> np.ndarray:
    """How deep each pixel of an `[H, W]` slice lies inside the outline of the head, holes filled, in pixels of a frame whose
    shorter side has `SIDE`; 0 outside."""
    head = ndimage.binary_fill_holes(ndimage.binary_opening(image > FOREGROUND))
    # a rim of background: what touches the border of the frame is no deeper than the border
    return ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1] * SIDE / min(image.shape)


def _noise(fine: np.ndarray, blurred: np.ndarray, gradient: np.ndarray, deep: np.ndarray) -> float:
    if deep.sum() < FEWEST_PIXELS:
        return math.nan
    bright = deep & (blurred >= np.quantile(blurred[deep], BRIGHT))
    white = bright & (gradient <= np.quantile(gradient[bright], CALM))
    return 255 * float(fine[white].std()) if white.sum() >= FEWEST_PIXELS / 10 else math.nan


def texture_summary(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The three figures of a set of slices, of those that could be measured; one that none of them allows is left out.

    texture_kurtosis: mean kurtosis of the fine band. edge_to_smooth: its mean power at the strongest edges over that in smooth
    tissue. tissue_noise: its mean standard deviation in white matter, in grey levels of 255.
    """
    means = {name: float(np.nanmean(each)) for name, each in values.items() if np.isfinite(each).any()}
    found = {"texture_kurtosis": means.get("kurtosis"), "tissue_noise": means.get("noise")}
    if means.get("smooth", 0) > 0:
        found["edge_to_smooth"] = means["edges"] / means["smooth"]
    return {name: found[name] for name in NAMES if found.get(name) is not None}


def texture_apart(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """|ln of the ratio| of each figure of two `texture_summary`, by name: 0.1 is about a tenth more or less. What is not there
    on one side, or is 0, is left out."""
    return {
        name: abs(math.log(first[name] / second[name]))
        for name in NAMES
        if first.get(name, 0) > 0 and second.get(name, 0) > 0
    }
