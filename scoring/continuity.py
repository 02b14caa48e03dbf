"""How the slices of one head follow one another: likeness at a distance, areas that change smoothly, sides that stay alike.

    values = continuity(images, codes, mirror)      # of a head: {"neighbour_ssim": [S - 1], "outline": [S - 2], ...}

The values of many heads are compared as distributions, `scoring.heads`: a head whose slices are too alike is as wrong as one
whose slices do not belong together.
"""

import numpy as np
from scipy import ndimage
from torch import Tensor

from scoring.metrics import ssim
from scoring.realism import Mirror, asymmetry
from scoring.texture import BLUR, DARK, RIM, depth_in_head

LAGS = {"neighbour_ssim": 1, "ssim_2": 2, "ssim_4": 4, "ssim_8": 8, "ssim_31": 31}  # slices apart
CORE = 30  # pixels inside the outline, as `texture.SIDE` counts them: what is dark there is mostly ventricles
AREAS = ("outline", "ventricles")


def continuity(images: Tensor, codes: Tensor | None, mirror: Mirror) -> dict[str, np.ndarray]:
    """What is measured along a head, by name; float64.

    neighbour_ssim `[S - 1]`: SSIM of each slice and the next. ssim_2, ssim_4, ssim_8, ssim_31: of every 2nd, 4th, ... slice and
    the next of these, where the head has as many. code_agreement `[S - 1]`: share of the codes that the next slice has at the
    same place, with codes only. outline, ventricles `[1]`: `roughness` of the area inside the outline, and of what is dark deep
    inside it. symmetry `[1]`: mean `asymmetry` of the slices. symmetry_variation `[1]`: mean difference of neighbours' asymmetry.

    Args:
        images: `[S, H, W]` in 0..1, in order, within the content frame.
        codes: `[S, h, w]`, or None. mirror: `realism.find_mirror` of real slices.
    """
    values = {
        name: ssim(images[:-lag:lag, None], images[lag::lag, None]).double().numpy()
        for name, lag in LAGS.items()
        if lag < len(images)
    }
    if codes is not None:
        values["code_agreement"] = (codes[:-1] == codes[1:]).double().mean((1, 2)).numpy()
    if len(images) > 2:
        values |= zip(AREAS, roughness(*areas(images.numpy())))
    sides = asymmetry(images, mirror).double().numpy()
    return values | {
        "symmetry": sides.mean(keepdims=True),
        "symmetry_variation": np.abs(np.diff(sides)).mean(keepdims=True),
    }


def areas(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `[S, H, W]` slices of one head, `[S]` pixels each: how many lie inside the outline, holes filled; and how many
    of those deeper than `CORE` are darker than `DARK` of the head's median, the slice blurred by `BLUR` pixels."""
    depths = np.stack([depth_in_head(image) for image in images])
    blurred = ndimage.gaussian_filter(images.astype(np.float32), (0, BLUR, BLUR))
    inside = depths > RIM
    dark = blurred < (DARK * np.median(blurred[inside]) if inside.any() else 0)
    return (depths > 0).sum((1, 2)), (dark & (depths > CORE)).sum((1, 2))


def roughness(outline: np.ndarray, ventricles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much both areas, `[S]` pixels, bend along the head, `[1]` each: decimal logarithm of the mean size of their second
    differences, as a share of the outline's mean area.

    In decades, because it has a heavy tail over real heads: where a gap in the scalp opens the outline, a few of them would hide
    all others. A pixel is added, so that heads that do not change at all have a roughness.
    """
    scale = max(float(outline.mean()), 1.0)
    return tuple(
        np.log10((np.abs(np.diff(area.astype(float), 2)).mean(keepdims=True) + 1) / scale)
        for area in (outline, ventricles)
    )
