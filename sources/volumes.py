"""Volumes as slices: orientation, spacing, intensities, and which planes.

    options = VolumeOptions(axis="axial", spacing=1.0, slices=32)
    space = output_space("sub-01_T1w.nii.gz", options)           # without reading a voxel
    slices, planes = read_slices("sub-01_T1w.nii.gz", options, size=(176, 208))     # uint8 [32, 176, 208]

nibabel reads NIfTI, Analyze and MGH files. A volume is brought into RAS+ order first (x to the right, y to the front, z up), so
how its file stores it makes no difference. Slices lie as those of the OASIS slice set do: rows from left to right, the front or
the top of the head to the left. Mirroring a slice's rows therefore swaps the sides of the head, but for sagittal slices.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.processing import resample_to_output
from nibabel.spaces import vox2out_vox
from nibabel.spatialimages import HeaderDataError, SpatialImage

from common.errors import UserError

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of RAS+ arrays
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")
MOST_VOXELS = 2**29  # of a volume: 1024 x 1024 x 512
DARK, BRIGHT = 1.0, 99.5  # percentiles that become black and white: of all voxels, and of those above black
HOLDS_BRAIN = 0.25  # share of the fullest plane's foreground that a plane of the central part has, at least
TISSUE = 0.1  # of the range from black to white: what is brighter is the head
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    zlib.error,
    struct.error,
    ImageFileError,
    HeaderDataError,
)


@dataclass(frozen=True)
class VolumeOptions:
    """How volumes become slices.

    axis: "axial", "coronal" or "sagittal". spacing: mm a voxel, along all axes. slices: of each volume. slice_range: ends of the
    part they are spread over, 0..1 of the axis from low to high; None: the central part that holds brain.
    """

    axis: str = "axial"
    spacing: float = 1.0
    slices: int = 32
    slice_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Space:
    """A volume's voxels in RAS+ order at the spacing asked for: `shape` (X, Y, Z) and `affine` `[4, 4]` from voxels to mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def slice_size(self, axis: str) -> tuple[int, int]:
        """(rows, columns) of a slice across the axis."""
        rows, columns = (length for index, length in enumerate(self.shape) if index != AXES[axis])
        return rows, columns


def output_space(path: str | Path, options: VolumeOptions) -> Space:
    """The space of a volume's slices, from its header alone.

    Raises:
        UserError: when the file is no readable volume of one 3-D frame.
    """
    return _output_space(_open(Path(path)), options.spacing)


def read_slices(path: str | Path, options: VolumeOptions, size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """A volume's slices, lowest first, and the planes of its space that they are.

    Args:
        path: a NIfTI, Analyze (`.hdr`) or MGH file of one 3-D frame. Voxels that are no numbers count as 0.
        size: (rows, columns) that slices are padded with zeros or cropped to, about their middle.

    Returns:
        `[slices, rows, columns]` uint8, percentiles of the volume's intensities at 0 and 255; and the planes' numbers.

    Raises:
        UserError: when the file cannot be read, every voxel is the same, or it has too few planes.
    """
    path = Path(path)
    volume = _open(path)
    space = _output_space(volume, options.spacing)
    try:
        data = np.asanyarray(volume.dataobj).astype(np.float32).reshape(volume.shape[:3])
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    whole = nib.as_closest_canonical(nib.Nifti1Image(np.nan_to_num(data, posinf=0, neginf=0), volume.affine))
    if not _is_aligned(whole.affine, options.spacing):
        whole = resample_to_output(whole, (options.spacing,) * 3, order=1)
    pixels = _as_bytes(np.asarray(whole.dataobj, dtype=np.float32), path)
    if pixels.shape != space.shape:
        raise UserError(f"{path}: {pixels.shape} voxels after resampling, expected {space.shape}")
    across = np.moveaxis(pixels, AXES[options.axis], 0)
    planes = choose_planes(across, options, path)
    return np.stack([_fitted(_turned(across[plane], options.axis), size) for plane in planes]), planes


def choose_planes(across: np.ndarray, options: VolumeOptions, path: Path) -> list[int]:
    """Planes of `[planes, ...]` uint8 spread evenly over the part that holds brain, or over the range asked for."""
    if options.slice_range is None:
        filled = (across > 255 * TISSUE).mean((1, 2))
        held = np.flatnonzero(filled >= HOLDS_BRAIN * filled.max())
        first, last = int(held[0]), int(held[-1])
    else:
        first, last = (round(share * (len(across) - 1)) for share in options.slice_range)
    if last - first + 1 < options.slices:
        raise UserError(
            f"{path}: {last - first + 1} planes of {options.spacing:g} mm hold brain, fewer than the {options.slices} slices "
            "wanted; lower --slices or --spacing, or give --slice_range"
        )
    return np.linspace(first, last, options.slices).round().astype(int).tolist()


def nifti_of(
    slices: np.ndarray, planes: list[int], space: Space, axis: str, size: tuple[int, int] | None = None
) -> nib.Nifti1Image:
    """Slices as a NIfTI where the planes of a space lie: `[S, rows, columns]` in 0..1 -> `[X, Y, Z]`, one of them S long.

    The planes' mean distance is the spacing across them; slices of another size than the space's count from its middle.
    size: (rows, columns) that slices had before they were resampled to the ones given, whose voxels are larger or smaller.
    """
    across, offset = AXES[axis], np.zeros(3)
    offset[across] = planes[0]
    turned = np.stack([_turned(one, axis) for one in slices])  # turning twice is turning back
    inside = [index for index in range(3) if index != across]
    size = size or turned.shape[1:]
    for index, length in zip(inside, size):
        missing = length - space.shape[index]  # `_fitted` adds half of it before, seen as `_turned` sees it
        offset[index] = -(missing // 2 if index == 0 else missing - missing // 2)
    affine = space.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ offset
    for index, length, now in zip(inside, size, turned.shape[1:]):
        affine[:3, 3] += affine[:3, index] * (length / now - 1) / 2  # the middle of the first voxel, whose corner stays
        affine[:3, index] *= length / now
    if len(planes) > 1:
        affine[:3, across] *= (planes[-1] - planes[0]) / (len(planes) - 1)
    return nib.Nifti1Image(np.moveaxis(turned, 0, across).astype(np.float32), affine)


def _open(path: Path) -> SpatialImage:
    """Header and a promise of the voxels."""
    try:
        volume = nib.load(path)
        shape = volume.shape
        if not np.isfinite(volume.affine).all():
            raise ValueError("its affine holds NaN")
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise UserError(f"{path}: {len(shape)}-D of {'x'.join(map(str, shape))} voxels; expected one 3-D volume")
    if min(shape) < 1 or np.prod(shape, dtype=float) > MOST_VOXELS:
        raise UserError(f"{path}: {'x'.join(map(str, shape))} voxels; expected 1 to {MOST_VOXELS}")
    return volume


def _unreadable(path: Path, error: Exception) -> UserError:
    said = str(error).splitlines() or [type(error).__name__]
    return UserError(
        f"{path}: not a readable volume ({said[0]}); mend or remove it, or leave such files out with --skip_bad"
    )


def _output_space(volume: SpatialImage, spacing: float) -> Space:
    orientation = nib.io_orientation(volume.affine)
    order = np.argsort(orientation[:, 0])
    shape = tuple(int(volume.shape[index]) for index in order)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape[:3])
    if not _is_aligned(affine, spacing):
        shape, affine = vox2out_vox((shape, affine), (spacing,) * 3)
    return Space(tuple(map(int, shape)), np.asarray(affine))


def _is_aligned(affine: np.ndarray, spacing: float) -> bool:
    """Whether voxels lie along the axes of space and have this spacing already."""
    return np.allclose(affine[:3, :3], spacing * np.eye(3), atol=1e-3 * spacing)


def _as_bytes(data: np.ndarray, path: Path) -> np.ndarray:
    dark = float(np.percentile(data, DARK))
    above = data[data > dark]
    bright = float(np.percentile(above, BRIGHT)) if above.size else dark
    if not bright > dark:
        raise UserError(f"{path}: every voxel is {dark:g}; mend or remove it, or leave such files out with --skip_bad")
    return (((data - dark) / (bright - dark)).clip(0, 1) * 255).round().astype(np.uint8)


def _turned(plane: np.ndarray, axis: str) -> np.ndarray:
    """A plane of an RAS+ array as a slice: whatever runs to the front or up is reversed. Its own inverse."""
    return plane[::-1, ::-1] if axis == "sagittal" else plane[:, ::-1]


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
