"""Headers of volumes: where their voxels lie, and which of what they say is not to be believed.

nibabel reads NIfTI, Analyze and MGH files. A header is refused before any voxel is read, and before memory is taken for one.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.imageglobals import logger
from nibabel.nifti1 import Nifti1Header
from nibabel.openers import ImageOpener
from nibabel.spaces import vox2out_vox
from nibabel.spatialimages import SpatialImage

from common.errors import UserError
from sources.content import check_header

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of RAS+ arrays
MOST_VOXELS = 2**29  # of a volume: 1024 x 1024 x 512
LONGEST = 4096  # voxels along an axis
MILLIMETRES = {"micron": 1e-3, "meter": 1e3}
DECIMALS = 6  # of millimetres, in affines of other units
NEAREST, FURTHEST = 2.0, 4000.0  # mm that the longest side of what is scanned may have: a mouse's brain, a man
SINGULAR = 1e-3  # volume of a voxel as a share of that of a box with its sides, under which it is none
GZIP = b"\x1f\x8b"
logger.setLevel(logging.CRITICAL)  # of nibabel, which says on stderr what is said here in our words


@dataclass(frozen=True)
class Space:
    """A volume's voxels in RAS+ order at the spacing asked for: `shape` (X, Y, Z) and `affine` `[4, 4]` from voxels to mm.

    guessed: what the header says wrongly or not at all, and what was taken instead.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    guessed: tuple[str, ...] = ()

    def slice_size(self, axis: str) -> tuple[int, int]:
        """(rows, columns) of a slice across the axis."""
        rows, columns = (length for index, length in enumerate(self.shape) if index != AXES[axis])
        return rows, columns


@dataclass(frozen=True)
class Volume:
    """An opened volume: nibabel's image, of which no voxel has been read; `affine` from voxels to mm; `guessed` as in Space."""

    image: SpatialImage
    affine: np.ndarray
    guessed: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape[:3]

    @property
    def orientation(self) -> np.ndarray:
        """Of its voxels towards RAS+, as `nibabel.orientations` has it."""
        return nib.io_orientation(self.affine)

    @property
    def turned_affine(self) -> np.ndarray:
        """The affine of its voxels in RAS+ order."""
        return self.affine @ nib.orientations.inv_ornt_aff(self.orientation, self.shape)

    def space(self, spacing: float, path: Path) -> Space:
        """Where its slices lie.

        Raises:
            UserError: when they would be too large.
        """
        order = np.argsort(self.orientation[:, 0])
        shape, affine = tuple(int(self.shape[index]) for index in order), self.turned_affine
        if not is_aligned(affine, spacing):
            shape, affine = vox2out_vox((shape, affine), (spacing,) * 3)
            shape = tuple(map(int, shape))
        if max(shape) > LONGEST or np.prod(shape, dtype=float) > MOST_VOXELS:
            raise UserError(
                f"{path}: it would have {_by(shape)} voxels of {spacing:g} mm (its header says voxels of "
                f"{_by(nib.affines.voxel_sizes(self.affine))} mm); mend the header, or raise --spacing"
            )
        return Space(shape, np.asarray(affine), self.guessed)


def open_volume(path: Path) -> Volume:
    """Header and a promise of the voxels.

    Raises:
        UserError: when the file is no readable volume of one 3-D frame; NotAScan when it is one, but of no scan.
    """
    try:
        image = nib.load(path)
        check_header(image, path)
        shape, affine = image.shape, np.asarray(image.affine, np.float64)
    except UserError:
        raise
    except Exception as error:  # whatever the reader of a foreign file raises
        raise unreadable(path, error) from None
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise UserError(f"{path}: {len(shape)}-D of {_by(shape)} voxels; expected one 3-D volume")
    if min(shape) < 1 or np.prod(shape, dtype=float) > MOST_VOXELS:
        raise UserError(f"{path}: {_by(shape)} voxels; expected 1 to {MOST_VOXELS}")
    guessed = _check_sizes(image, path) if isinstance(image.header, Nifti1Header) else ()
    _check_affine(affine, path)
    factor, lie = _millimetres(image, affine)
    if factor != 1:  # float32 holds 0.002 m less well than 2 mm
        affine = (np.diag([factor, factor, factor, 1.0]) @ affine).round(DECIMALS)
    return Volume(image, affine, (*guessed, *lie))


def is_aligned(affine: np.ndarray, spacing: float) -> bool:
    """Whether voxels lie along the axes of space and have this spacing already."""
    return np.allclose(affine[:3, :3], spacing * np.eye(3), atol=1e-3 * spacing)


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for a file that its reader gave up on."""
    packed = _is_packed(path)
    if packed is not None and packed != path.name.lower().endswith("gz"):
        other = f"{path.name}.gz" if packed else path.name[:-3]
        return UserError(
            f"{path}: its name says otherwise, but it is {'' if packed else 'not '}gzipped; call it {other}"
        )
    said = str(error).splitlines() or [type(error).__name__]
    return UserError(
        f"{path}: not a readable volume ({said[0]}); mend or remove it, or leave such files out with --skip_bad"
    )


def _is_packed(path: Path) -> bool | None:
    """Whether a NIfTI file is gzipped, by its content; None where that cannot be said."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return None
    known = start[:2] == GZIP or start in (
        b"\x5c\x01\x00\x00",
        b"\x00\x00\x01\x5c",
        b"\x1c\x02\x00\x00",
        b"\x00\x00\x02\x1c",
    )
    return start[:2] == GZIP if known else None


def _check_sizes(image: SpatialImage, path: Path) -> tuple[str, ...]:
    """What is guessed of the voxels' sizes, where a NIfTI header has no affine of its own (`sform`) but is built from them.

    Raises:
        UserError: when it has no sizes either.
    """
    if int(image.header["sform_code"]) > 0:
        return ()
    try:
        with ImageOpener(path) as file:
            sizes = type(image.header).from_fileobj(file, check=False)["pixdim"][
                1:4
            ]  # nibabel would mend them silently
    except Exception as error:
        raise unreadable(path, error) from None
    if not (np.isfinite(sizes).all() and sizes.all()):
        raise UserError(
            f"{path}: its header gives no voxel sizes (pixdim is {_by(sizes)}); mend the header, or leave such files out with "
            "--skip_bad"
        )
    guessed = ("negative voxel sizes, taken as positive",) if min(sizes) < 0 else ()
    if int(image.header["qform_code"]) > 0:
        return guessed
    return (*guessed, "no orientation (no form code), taken as stored from right to left, back to front, bottom to top")


def _check_affine(affine: np.ndarray, path: Path) -> None:
    sizes = nib.affines.voxel_sizes(affine) if np.isfinite(affine).all() else np.zeros(3)
    if not sizes.all() or abs(np.linalg.det(affine[:3, :3])) < SINGULAR * np.prod(sizes):
        raise UserError(
            f"{path}: its header places no voxels (a singular affine, of voxels of {_by(sizes)} mm); mend the header, or leave "
            "such files out with --skip_bad"
        )


def _millimetres(image: SpatialImage, affine: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Millimetres that a unit of the affine is, and what is guessed of it; units that are not known are millimetres."""
    try:
        unit = image.header.get_xyzt_units()[0]
    except (AttributeError, KeyError):  # no NIfTI, or a code of no unit
        return 1.0, ()
    factor = MILLIMETRES.get(unit, 1.0)
    longest = float((nib.affines.voxel_sizes(affine) * image.shape[:3]).max())
    if factor != 1 and not NEAREST <= factor * longest <= FURTHEST and NEAREST <= longest <= FURTHEST:
        return 1.0, (f"{unit}s that cannot be, taken as millimetres",)
    return factor, ()


def _by(lengths: object) -> str:
    return " x ".join(f"{length:g}" for length in lengths)
