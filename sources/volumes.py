"""Volumes as slices: orientation, spacing, intensities, and which planes.

    options = VolumeOptions(axis="axial", spacing=1.0, slices=32)
    space = output_space("sub-01_T1w.nii.gz", options)           # without reading a voxel
    slices, planes = read_slices("sub-01_T1w.nii.gz", options, size=(176, 208))     # uint8 [32, 176, 208]

A volume is brought into RAS+ order first (x to the right, y to the front, z up), so how its file stores it makes no difference.
Slices lie as those of the OASIS slice set do: rows run from left to right, columns of axial ones from the back to the front. In
the other planes the top of the head lies to the left. Mirroring a slice's rows therefore swaps the sides of the head, but for
sagittal ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy.ndimage import map_coordinates

from common.errors import UserError
from sources.content import check_voxels
from sources.headers import AXES, Space, Volume, is_aligned, open_volume, unreadable
from sources.intensities import as_bytes, black_and_white, numbers_of, without_holes

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")
READING = 3  # version: raise it when slices of volumes change, so that old caches are made anew
HOLDS_BRAIN = 0.25  # share of the fullest plane's foreground that a plane of the central part has, at least
TISSUE = 0.1  # of the range from black to white: what is brighter is the head
ENOUGH = 250_000
NEARLY = 0.85  # of a threshold: what a coarse grid sees above it is looked at closely
STAGGER = (
    0.7548776662,
    0.5698402910,
)  # the plastic number's powers, which spread the grids of planes over rows and columns evenly
FULLEST = 5  # planes that may be the fullest, and are looked at closely


@dataclass(frozen=True)
class VolumeOptions:
    """How volumes become slices.

    axis: "axial", "coronal" or "sagittal". spacing: mm a voxel, along all axes. slices: of each volume. slice_range: ends of the
    part they are spread over, 0..1 of the axis from low to high; None: the central part that holds brain. window: intensities
    that become black and white; None: percentiles of each volume. front_first: columns of axial slices run from the front to the
    back, as they did in version 0.1.0.
    """

    axis: str = "axial"
    spacing: float = 1.0
    slices: int = 32
    slice_range: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    front_first: bool = False


def output_space(path: str | Path, options: VolumeOptions) -> Space:
    """The space of a volume's slices, from its header alone.

    Raises:
        UserError: when the file is no readable volume of one 3-D frame; `sources.content.NotAScan` when it holds no scan.
    """
    path = Path(path)
    return open_volume(path).space(options.spacing, path)


def read_slices(
    path: str | Path,
    options: VolumeOptions,
    size: tuple[int, int],
    place: Callable[[list[int]], Sequence[float]] | None = None,
) -> tuple[np.ndarray, list[int]]:
    """A volume's slices, lowest first, and the planes of its space that they are. Only these planes are resampled.

    Args:
        path: a NIfTI, Analyze (`.hdr`) or MGH file of one 3-D frame. Voxels that are no numbers are background, and black.
        size: (rows, columns) that slices are padded with zeros or cropped to, about their middle.
        place: from the planes chosen to where they are read, between planes too; None: where they are.

    Returns:
        `[slices, rows, columns]` uint8, the ends of the window, or percentiles of the volume's intensities, at 0 and 255; and the
        planes' numbers.

    Raises:
        UserError: when the file cannot be read, every voxel is the same, or it has too few planes; `sources.content.NotAScan`
            when it holds no scan.
    """
    path = Path(path)
    volume = open_volume(path)
    space = volume.space(options.spacing, path)
    try:
        data = numbers_of(np.asanyarray(volume.image.dataobj)).reshape(volume.shape)
    except Exception as error:  # whatever the reader of a foreign file raises
        raise unreadable(path, error) from None
    check_voxels(data, path)
    planes = Planes.of(volume, data, space, options)
    coarse = planes.coarse()
    dark, bright = options.window or black_and_white(np.concatenate([plane.ravel() for plane in coarse]))
    if not bright > dark:
        raise UserError(f"{path}: every voxel is {dark:g}; mend or remove it, or leave such files out with --skip_bad")

    def filled(plane: np.ndarray) -> float:
        return float((as_bytes(plane, dark, bright) > 255 * TISSUE).mean())

    shares = np.array([filled(plane) for plane in coarse])
    chosen = choose_planes(shares, lambda number: filled(planes.take([number])[0]), planes.exact, options, path)
    at_once = planes.exact and place is None
    taken = (
        np.stack([coarse[number] for number in chosen]) if at_once else planes.take(place(chosen) if place else chosen)
    )
    slices = as_bytes(taken, dark, bright)
    turned = [_turned(plane, options.axis, options.front_first) for plane in slices]
    return np.stack([_fitted(plane, size) for plane in turned]), chosen


def read_mask(
    path: str | Path, scan: str | Path, options: VolumeOptions, planes: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """How much of each pixel of a scan's slices a mask marks, which may lie on another grid than the scan does.

    Args:
        path: of the mask; whatever is not zero is marked. scan: that it is of. planes: of the scan's space, `read_slices`.
        options, size: as of `read_slices`.

    Returns:
        `[planes, rows, columns]` float32, 0..1.

    Raises:
        UserError: when one of the files cannot be read.
    """
    space = output_space(scan, options)
    try:
        image = nib.squeeze_image(nib.load(path))
        marked = nib.Nifti1Image((np.asanyarray(image.dataobj) != 0).astype(np.float32), image.affine)
        marked = resample_from_to(marked, (space.shape, space.affine), order=1).get_fdata(dtype=np.float32)
    except Exception as error:  # whatever the reader of a foreign file raises
        raise unreadable(Path(path), error) from None
    taken = np.moveaxis(marked, AXES[options.axis], 0)[list(planes)]
    return np.stack([_fitted(_turned(plane, options.axis, options.front_first), size) for plane in taken])


@dataclass(frozen=True)
class Planes:
    """A volume's planes across an axis, in its `Space`, each made when it is asked for, by linear interpolation.

    data: `[planes, rows, columns]` in RAS+ order, at the volume's own voxels. matrix `[3, 3]`, offset `[3]`: from the planes'
    voxels to those of `data`; None where they are the same. shape: of all planes, at the spacing asked for. fill: what lies
    outside of the volume. step: every which row and column of each plane is enough to know the brightness of them all.
    """

    data: np.ndarray
    matrix: np.ndarray | None
    offset: np.ndarray | None
    shape: tuple[int, int, int]
    fill: float
    step: int

    @classmethod
    def of(cls, volume: Volume, data: np.ndarray, space: Space, options: VolumeOptions) -> "Planes":
        """data: the volume's voxels, as they are stored."""
        data, fill = without_holes(data)
        across = AXES[options.axis]
        order = [across, *(axis for axis in range(3) if axis != across)]
        data = nib.orientations.apply_orientation(data, volume.orientation).transpose(order)
        shape = tuple(space.shape[axis] for axis in order)
        if is_aligned(volume.turned_affine, options.spacing):
            return cls(data, None, None, shape, fill, 1)
        to_voxels = np.linalg.inv(volume.turned_affine) @ space.affine
        step = min(max(1, round((np.prod(shape, dtype=float) / ENOUGH) ** 0.5)), *shape[1:])
        return cls(data, to_voxels[:3, :3][np.ix_(order, order)], to_voxels[order, 3], shape, fill, step)

    @property
    def exact(self) -> bool:
        """Whether `coarse` gives every voxel."""
        return self.step == 1

    def take(self, numbers: Sequence[float]) -> np.ndarray:
        """The planes of these numbers, `[N, rows, columns]` float32; between whole ones where planes are interpolated."""
        return np.stack([self._grid(number, 0, 0, 1) for number in numbers])

    def coarse(self) -> list[np.ndarray]:
        """A grid of `step` rows and columns of each plane, float32; no two neighbours have the same rows and columns."""
        starts = [[int(number * share * self.step) % self.step for share in STAGGER] for number in range(self.shape[0])]
        return [self._grid(number, *start, self.step) for number, start in enumerate(starts)]

    def _grid(self, number: float, row: int, column: int, step: int) -> np.ndarray:
        """Every `step`-th row and column of a plane, from these on."""
        if self.matrix is None:
            return self.data[number, row::step, column::step].astype(np.float32)
        rows, columns = (
            np.arange(start, length, step, dtype=float) for start, length in zip((row, column), self.shape[1:])
        )
        if self.is_straight:
            return self._straight_grid(number, rows, columns)
        places = [
            (shift + number * a + rows * b)[:, None] + columns * c for (a, b, c), shift in zip(self.matrix, self.offset)
        ]
        return map_coordinates(self.data, np.stack(places), np.float32, order=1, cval=self.fill)

    @property
    def is_straight(self) -> bool:
        """Whether the volume's own axes are those of space, so that it can be interpolated along one after the other."""
        return np.array_equal(self.matrix, np.diag(np.diag(self.matrix)))

    def _straight_grid(self, number: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """As `_grid` by `map_coordinates`, several times as fast."""
        found, outside = self.data, []
        for axis, wanted in enumerate((np.array([float(number)]), rows, columns)):
            places = self.offset[axis] + wanted * self.matrix[axis, axis]
            last = self.data.shape[axis] - 1
            below = np.floor(places).clip(0, max(last - 1, 0)).astype(int)
            share = (places - below).astype(np.float32).reshape([-1 if axis == other else 1 for other in range(3)])
            near, far = (
                np.moveaxis(np.moveaxis(found, axis, 0)[index], 0, axis)
                for index in (below, np.minimum(below + 1, last))
            )
            found = near * (1 - share) + far * share
            outside.append((places < 0) | (places > last))
        found[np.logical_or.outer(np.logical_or.outer(*outside[:2]), outside[2])] = self.fill
        return found[0].astype(np.float32)


def choose_planes(
    shares: np.ndarray, share_of: Callable[[int], float], exact: bool, options: VolumeOptions, path: Path
) -> list[int]:
    """Planes spread evenly over the part that holds brain, or over the range asked for.

    shares: of head in each plane, to be looked at closely by `share_of` where they matter, unless they are exact.
    """
    if options.slice_range is None:
        first, last = _ends(shares, None if exact else share_of)
    else:
        first, last = (round(share * (len(shares) - 1)) for share in options.slice_range)
    if last - first + 1 < options.slices:
        raise UserError(
            f"{path}: {last - first + 1} planes of {options.spacing:g} mm hold brain, fewer than the {options.slices} slices "
            "wanted; lower --slices or --spacing, or give --slice_range"
        )
    return np.linspace(first, last, options.slices).round().astype(int).tolist()


def _ends(shares: np.ndarray, share_of: Callable[[int], float] | None) -> tuple[int, int]:
    """The first and the last plane that hold brain."""
    if share_of is None:
        held = np.flatnonzero(shares >= HOLDS_BRAIN * shares.max())
        return int(held[0]), int(held[-1])
    for number in np.argsort(-shares, kind="stable")[:FULLEST].tolist():
        shares[number] = share_of(number)
    fullest = shares.max()
    candidates = np.flatnonzero(shares >= NEARLY * HOLDS_BRAIN * fullest).tolist()
    first, last = (
        next(number for number in numbers if share_of(number) >= HOLDS_BRAIN * fullest)
        for numbers in (candidates, candidates[::-1])
    )
    return first, last


def nifti_of(
    slices: np.ndarray,
    planes: list[int],
    space: Space,
    axis: str,
    size: tuple[int, int] | None = None,
    front_first: bool = False,
) -> nib.Nifti1Image:
    """Slices as a NIfTI where the planes of a space lie: `[S, rows, columns]` in 0..1 -> `[X, Y, Z]`, one of them S long.

    The planes' mean distance is the spacing across them; slices of another size than the space's count from its middle.
    size: (rows, columns) that slices had before they were resampled to the ones given, whose voxels are larger or smaller.
    front_first: as in `VolumeOptions`.
    """
    across, offset = AXES[axis], np.zeros(3)
    offset[across] = planes[0]
    turned = np.stack([_turned(one, axis, front_first) for one in slices])  # turning twice is turning back
    inside = [index for index in range(3) if index != across]
    size = size or turned.shape[1:]
    for index, length, other_way in zip(inside, size, _reversed(axis, front_first)):
        missing = length - space.shape[index]  # `_fitted` adds half of it before, seen as `_turned` sees it
        offset[index] = -(missing - missing // 2 if other_way else missing // 2)
    affine = space.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ offset
    for index, length, now in zip(inside, size, turned.shape[1:]):
        affine[:3, 3] += affine[:3, index] * (length / now - 1) / 2  # the middle of the first voxel, whose corner stays
        affine[:3, index] *= length / now
    if len(planes) > 1:
        affine[:3, across] *= (planes[-1] - planes[0]) / (len(planes) - 1)
    return nib.Nifti1Image(np.moveaxis(turned, 0, across).astype(np.float32), affine)


def slices_of(image: nib.Nifti1Image, axis: str, front_first: bool = False) -> np.ndarray:
    """What `nifti_of` was given: `[X, Y, Z]` in RAS+ order -> `[S, rows, columns]` float32."""
    planes = np.moveaxis(np.asarray(image.dataobj, np.float32), AXES[axis], 0)
    return np.stack([_turned(plane, axis, front_first) for plane in planes])


def _turned(plane: np.ndarray, axis: str, front_first: bool) -> np.ndarray:
    """A plane of an RAS+ array as a slice. Its own inverse."""
    rows, columns = _reversed(axis, front_first)
    return plane[:: -1 if rows else 1, :: -1 if columns else 1]


def _reversed(axis: str, front_first: bool) -> tuple[bool, bool]:
    """Whether rows and columns of slices run the other way than the axes of an RAS+ array."""
    return axis == "sagittal", axis != "axial" or front_first


def _fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Padded with zeros or cropped to a size about the middle."""
    for axis, length in enumerate(size):
        missing = length - image.shape[axis]
        before = missing // 2  # rounds down, below zero too
        if missing > 0:
            image = np.pad(image, [(before, missing - before) if i == axis else (0, 0) for i in (0, 1)])
        else:
            image = image.take(range(-before, -before + length), axis)
    return image
