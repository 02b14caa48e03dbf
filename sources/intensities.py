"""Which numbers become black and white, and what counts as background.

scale = Scale(0, 3685)                # of a data set of images
pixels = scale.bytes_of(values)       # [H, W] numbers -> uint8
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

DARK, BRIGHT = 1.0, 99.5  # percentiles of a volume that become black and white: of all voxels, and of those above black
ALMOST_ALL = 0.1  # per cent of the pixels of a data set that may lie beyond its scale at either end ...
FAR = 2.0  # ... where they lie further out than this many times the range of the others
BELOW = 0.1  # of the range of tissue: how far below it its background lies, where tissue has negative numbers
NARROW = ("u1", "i1", "u2", "i2", "f4")  # types that float32 holds exactly, and scipy resamples as they are
SAMPLED = 2**17  # voxels of a volume that its background is found by


@dataclass(frozen=True)
class Scale:
    """What of a data set of images becomes black and white.

    low, high: the numbers. everything: whether 8-bit images are scaled too (a window that was asked for), or keep their values.
    zero_is_black: whether zero is background in data that has negative numbers.
    """

    low: float
    high: float
    everything: bool = False
    zero_is_black: bool = False

    def bytes_of(self, values: np.ndarray) -> np.ndarray:
        """`[H, W]` numbers as uint8; what is no number is background, and black."""
        values = values.astype(np.float32)
        black = ~np.isfinite(values)
        if self.zero_is_black:
            black |= values == 0
        values[black] = self.low
        return np.where(black, 0, as_bytes(values, self.low, self.high)).astype(np.uint8)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"grey values: {self.low:g} to {self.high:g} become black to white"


@dataclass(frozen=True)
class Range:
    """What is in one image file: its smallest and largest number, some of the others, and how many of its corners are zero."""

    low: float
    high: float
    some: np.ndarray
    zero_corners: float

    @classmethod
    def of(cls, pages: np.ndarray, samples: int) -> "Range | None":
        """Of `[P, H, W]` numbers; None where none of them is finite."""
        numbers = pages[np.isfinite(pages)]
        if not numbers.size:
            return None
        corners = pages[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        some = numbers[:: max(1, numbers.size // samples)].astype(np.float32)
        return cls(float(numbers.min()), float(numbers.max()), some, float((corners == 0).mean()))


def scale_of(ranges: Sequence[Range]) -> Scale:
    """One scale for files of these ranges: from their smallest to their largest number, but for a few that lie far out."""
    low, high = min(each.low for each in ranges), max(each.high for each in ranges)
    some = np.concatenate([each.some for each in ranges])
    zero_is_black = False
    if low < 0 and np.mean([each.zero_corners for each in ranges]) > 0.5:
        others = some[some != 0]
        zero_is_black = bool(np.percentile(others, DARK) < 0) if others.size else False
        some = others if zero_is_black else some
    first, last = np.percentile(some, [ALMOST_ALL, 100 - ALMOST_ALL]).tolist()
    reach = FAR * (last - first)
    if reach > 0:
        low = first if low < last - reach else low
        high = last if high > first + reach else high
    if zero_is_black:
        low -= BELOW * (high - low)
    return Scale(low, high, zero_is_black=zero_is_black)


def as_bytes(values: np.ndarray, dark: float, bright: float) -> np.ndarray:
    """Finite numbers as uint8, `dark` and less as 0, `bright` and more as 255."""
    if not bright > dark:
        return np.zeros(values.shape, np.uint8)
    return (((values - dark) / (bright - dark)).clip(0, 1) * 255).round().astype(np.uint8)


def black_and_white(values: np.ndarray) -> tuple[float, float]:
    """The numbers that become black and white, by percentiles of float32 values; the same twice where there is but one."""
    dark = float(np.percentile(values, DARK))
    above = values[values > dark]
    return dark, float(np.percentile(above, BRIGHT)) if above.size else dark


def numbers_of(data: np.ndarray) -> np.ndarray:
    """Whatever a file holds as numbers that scipy can read: the magnitude of complex ones, the gray of colours.

    Raises:
        ValueError: for colours that are not gray.
    """
    if data.dtype.names:
        first, *others = (data[name] for name in data.dtype.names[:3])
        if not all(np.array_equal(first, other) for other in others):
            raise ValueError("it holds colours; expected gray values")
        data = first
    if np.iscomplexobj(data):
        data = np.abs(data)
    if data.dtype.str[1:] not in NARROW:
        with np.errstate(over="ignore", invalid="ignore"):
            data = data.astype(np.float32)
    return np.require(data, data.dtype.newbyteorder("="), "A")  # scipy would copy it at each call otherwise


def without_holes(data: np.ndarray) -> tuple[np.ndarray, float]:
    """`[X, Y, Z]` with its background filled in where it is not a number, and what lies outside of it.

    Zeros around a volume that also has negative numbers (z-scores of a brain) are background too. It becomes black: zero, or,
    where there are negative numbers, less than the darkest of them but for outliers, so that dark tissue is none of it.
    """
    hole = None
    if data.dtype.kind == "f" and not np.isfinite(data.sum(dtype=np.float64)):
        hole = ~np.isfinite(data)
    border = _border_of(data)
    if border == 0 and np.nanmin(data) < 0:
        zeros = data == 0
        if _darkest(data[~zeros]) < 0:
            hole = zeros if hole is None else hole | zeros
    if hole is None or not hole.any():
        return data, border if border is not None else _darkest(data)
    known = data[~hole]
    fill = _darkest(known)
    if fill < 0:
        fill -= BELOW * (float(np.percentile(known, BRIGHT)) - fill)
    filled = data.astype(np.float32)
    filled[hole] = fill
    return filled, fill


def _border_of(data: np.ndarray) -> float | None:
    """The number that most voxels of a volume's six faces share, where there is one."""
    faces = np.concatenate([data.swapaxes(0, axis)[end, ::2, ::2].ravel() for axis in range(3) for end in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if 2 * counts[most] > faces.size and np.isfinite(values[most]) else None


def _darkest(data: np.ndarray) -> float:
    """The darkest number but for outliers; zero where none is negative."""
    some = data.ravel()[:: max(1, data.size // SAMPLED)] if data.ndim == 1 else data[::4, ::4, ::4].ravel()
    some = some[np.isfinite(some)]
    return min(0.0, float(np.percentile(some, DARK))) if some.size else 0.0
