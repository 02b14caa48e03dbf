"""Anomalies planted in the slices of a scan that has none, with the masks of where they are.

    scan = Scan(images)                              # [S, H, W] in 0..1
    planted = plant("bright sphere", scan, np.random.default_rng(0), size=12)
    planted.images, planted.mask, planted.slices     # [S, H, W] floats, [S, H, W] bool, [S] bool

Sizes are in pixels, which are millimetres in the OASIS slice set, in the slices and across them. What is local lies inside the
brain. A sphere takes the place of tissue: a dark one in fluid would be none. What changes a whole slice has no mask that says
where, and counts by slices alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage, signal

FOREGROUND = 16 / 255
RIM = 18  # pixels from the head's outline to the brain, about
TISSUE = 0.6  # grey values of the brain's median that fluid does not reach
ALL = 0.95  # of a sphere's voxels that have to be tissue before
AWAY = 12  # slice numbers from which a slice of another position comes, at least
SOFT = 0.7  # standard deviation in pixels that the border of a sphere is blurred with


@dataclass(frozen=True)
class Planted:
    """A scan with an anomaly.

    images: `[S, H, W]` in 0..1. mask: `[S, H, W]` bool; None of one that has no place. slices: `[S]` bool, which hold some of it.
    """

    images: np.ndarray
    mask: np.ndarray | None
    slices: np.ndarray


@dataclass(frozen=True)
class Scan:
    """A scan to plant in. images: `[S, H, W]` in 0..1."""

    images: np.ndarray

    @cached_property
    def head(self) -> np.ndarray:
        """Which pixels lie in the head: what is not background, and what that encloses in its slice, `[S, H, W]` bool."""
        opened = (ndimage.binary_opening(image > FOREGROUND, iterations=2) for image in self.images)
        return np.stack([ndimage.binary_fill_holes(image) for image in opened])

    @cached_property
    def depth(self) -> np.ndarray:
        """How far pixels lie below the head's outline in their slice, `[S, H, W]`."""
        return np.stack([ndimage.distance_transform_edt(head) for head in self.head])

    @cached_property
    def tissue(self) -> np.ndarray:
        """Which pixels are brighter than fluid, `[S, H, W]` bool."""
        return self.images > TISSUE * np.median(self.images[self.depth > RIM])

    def place_in_tissue(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """The distance of every pixel from the middle of a sphere that lies in the brain and nearly all of which is tissue; where
        there is no such place, from that of the one with the most."""
        reach = np.arange(-(size // 2), size // 2 + 1)
        ball = (np.hypot(np.hypot(reach[:, None, None], reach[:, None]), reach) <= size / 2).astype(np.float32)
        within = np.ones_like(self.images)
        share = _sums(self.tissue.astype(np.float32), ball) / _sums(within, ball)  # of what lies in these slices
        share = np.where(self.depth > RIM + size / 2, share, -1)
        places = np.argwhere(share >= min(ALL, share.max()))
        if share.max() < 0:
            raise ValueError(f"no place for a sphere of {size} pixels in these slices")
        return self._distance(places[rng.integers(len(places))])

    def place(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The middle of a sphere that lies in the brain, (slice, row, column), and the distance of every pixel from it."""
        places = np.argwhere(self.depth > RIM + size / 2)
        if not len(places):
            raise ValueError(f"no place for a sphere of {size} pixels in these slices")
        middle = places[rng.integers(len(places))]
        return middle, self._distance(middle)

    def _distance(self, middle: np.ndarray) -> np.ndarray:
        grid = np.meshgrid(
            *(np.arange(length, dtype=np.float32) for length in self.images.shape), indexing="ij", sparse=True
        )
        return np.sqrt(sum((axis - at) ** 2 for axis, at in zip(grid, middle)))


def _sums(values: np.ndarray, ball: np.ndarray) -> np.ndarray:
    """Of the values within the ball about each place."""
    return signal.fftconvolve(values, ball, mode="same").clip(1e-6)


def plant(kind: str, scan: Scan, rng: np.random.Generator, size: int = 16) -> Planted:
    """One anomaly of a kind of `KINDS`. size: diameter of what is local, in pixels."""
    return KINDS[kind](scan, rng, size)


def _sphere(grey: float) -> Callable[[Scan, np.random.Generator, int], Planted]:
    """A sphere of nearly one grey value, with the noise that was there."""

    def planted(scan: Scan, rng: np.random.Generator, size: int) -> Planted:
        images, distance = scan.images, scan.place_in_tissue(rng, size)
        inside = distance <= size / 2
        share = ndimage.gaussian_filter(inside.astype(np.float32), SOFT)
        noise = images - ndimage.gaussian_filter(images, (0, 2, 2))
        return _local(images * (1 - share) + share * (grey + 0.5 * noise), inside)

    return planted


def _texture(scan: Scan, rng: np.random.Generator, size: int) -> Planted:
    """What lies elsewhere in the brain, turned by a quarter, in the place of what is there."""
    images = scan.images
    middle, distance = scan.place(rng, size)
    inside, half = distance <= size / 2, size // 2 + 1
    other, _ = scan.place(rng, size + 4)
    changed = images.copy()
    for index in range(len(images)):
        source = images[int(np.clip(other[0] + index - middle[0], 0, len(images) - 1))]
        patch = source[other[1] - half : other[1] + half + 1, other[2] - half : other[2] + half + 1]
        target = (index, slice(middle[1] - half, middle[1] + half + 1), slice(middle[2] - half, middle[2] + half + 1))
        changed[target] = np.where(inside[target], np.rot90(patch), images[target])
    return _local(changed, inside)


def _warp(scan: Scan, rng: np.random.Generator, size: int) -> Planted:
    """Tissue pushed away from a point, by up to a quarter of the size, in the slices."""
    images = scan.images
    size = max(size, 12)
    middle, distance = scan.place(rng, size)
    pushed = 0.25 * size * np.exp(-0.5 * (distance / (size / 3)) ** 2)
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]].astype(np.float32)
    away = np.hypot(rows - middle[1], columns - middle[2]).clip(1)
    towards = ((rows - middle[1]) / away, (columns - middle[2]) / away)
    changed = [
        ndimage.map_coordinates(image, [rows - by * towards[0], columns - by * towards[1]], order=1, mode="nearest")
        for image, by in zip(images, pushed)
    ]
    return _local(np.stack(changed), pushed > 0.5)


def _wedge(scan: Scan, rng: np.random.Generator, size: int) -> Planted:
    """A wedge of the slices is black, from the middle of the head outwards, through as many slices as the size."""
    images = scan.images
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]].astype(np.float32)
    centre = ndimage.center_of_mass(scan.head.any(0))
    angle, width = rng.uniform(-np.pi, np.pi), np.deg2rad(20)
    off = np.angle(np.exp(1j * (np.arctan2(rows - centre[0], columns - centre[1]) - angle)))
    mask = (np.abs(off) < width / 2) & _some_slices(images, rng, size)[:, None, None]
    return _local(np.where(mask, 0, images), mask & scan.head)


def _bias(scan: Scan, rng: np.random.Generator, _: int) -> Planted:
    """A field of brightness across the slices, from 0.5 to 1.5."""
    images = scan.images
    direction, length = rng.uniform(-np.pi, np.pi), images.shape[1:]
    rows, columns = (np.linspace(-1, 1, side) for side in length)
    ramp = np.sin(direction) * rows[:, None] + np.cos(direction) * columns
    return _whole(images * (1 + 0.5 * np.sin(np.pi / 2 * ramp)), np.ones(len(images), bool))


def _ghosts(scan: Scan, rng: np.random.Generator, size: int) -> Planted:
    """Copies of the slices, moved along their rows, on top of them, as when a head has moved in time with the scanner."""
    images = scan.images
    some, by = _some_slices(images, rng, size), images.shape[1] // int(rng.integers(4, 7))
    ghost = np.roll(images, by, 1) + np.roll(images, -by, 1)
    return _whole(np.where(some[:, None, None], 0.8 * images + 0.15 * ghost, images), some)


def _position(scan: Scan, rng: np.random.Generator, _: int) -> Planted:
    """A slice of another position in the place of one."""
    images = scan.images
    index = int(rng.integers(len(images)))
    others = [other for other in range(len(images)) if abs(other - index) >= min(AWAY, len(images) // 2)]
    changed = images.copy()
    changed[index] = images[others[rng.integers(len(others))]]
    return _whole(changed, np.arange(len(images)) == index)


def _sides(scan: Scan, rng: np.random.Generator, _: int) -> Planted:
    """Left and right swapped, about the middle of the head, in a slice between others that are as they were."""
    images = scan.images
    index = int(rng.integers(len(images)))
    head = np.flatnonzero(scan.head[index].any(1))
    turned = np.roll(images[index, ::-1], int(head[0] + head[-1] - (images.shape[1] - 1)), 0)
    changed = images.copy()
    changed[index] = turned
    return _whole(changed, np.arange(len(images)) == index)


def _intensity(scan: Scan, rng: np.random.Generator, _: int) -> Planted:
    """All grey values by a factor of 0.6 or 1.6."""
    images = scan.images
    return _whole(images * rng.choice([0.6, 1.6]), np.ones(len(images), bool))


def _some_slices(images: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    count = min(size, len(images))
    first = int(rng.integers(len(images) - count + 1))
    return (np.arange(len(images)) >= first) & (np.arange(len(images)) < first + count)


def _local(images: np.ndarray, mask: np.ndarray) -> Planted:
    return Planted(images.clip(0, 1), mask, mask.any((1, 2)))


def _whole(images: np.ndarray, slices: np.ndarray) -> Planted:
    return Planted(images.clip(0, 1), None, slices)


KINDS: dict[str, Callable[[Scan, np.random.Generator, int], Planted]] = {
    "bright sphere": _sphere(0.85),
    "dark sphere": _sphere(0.08),
    "texture swapped": _texture,
    "local warp": _warp,
    "missing wedge": _wedge,
    "bias field": _bias,
    "motion ghosts": _ghosts,
    "slice of another position": _position,
    "sides swapped": _sides,
    "intensity scale": _intensity,
}
SIZED = ("bright sphere", "dark sphere", "texture swapped", "local warp")
