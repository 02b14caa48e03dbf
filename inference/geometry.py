"""Where the slices of a run lie in space: what its data said of it, and what is assumed where it said nothing.

geometry = Geometry.of(run)
nib.save(geometry.nifti(slices, run.slice_numbers), "head.nii.gz")      # slices [S, H, W] in 0..1
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.errors import UserError
from sources.cohort import CENTRE, FIELD_OF_VIEW, HIGHEST, LOWEST, SLICES
from sources.gaps import read_with_gaps
from sources.headers import AXES, open_volume
from sources.options import DataOptions
from sources.volumes import Space, nifti_of, slices_of
from utils import Run

VOLUMES = ("oasis1", "bids", "volumes")  # kinds of data whose slices lie in a known space


@dataclass(frozen=True)
class Geometry:
    """Where slices lie.

    space, axis: of the planes that the slices are. planes: of slice numbers, `[highest + 1]`.
    size: (rows, columns) of slices before they were resampled; None: as they are.
    front_first: whether columns run from the front of the head, or its top, to the other end.
    right_first: whether rows run from the right of the head to the left.
    assumed: a sentence on what is not known but assumed; "" where all is known.
    """

    space: Space
    axis: str
    planes: list[int]
    size: tuple[int, int] | None = None
    front_first: bool = False
    right_first: bool = False
    assumed: str = ""

    @classmethod
    def of(cls, run: Run) -> "Geometry":
        """Of the slices that a run was trained on.

        Raises:
            UserError: for a run on resampled volumes of a version that did not record where they lay.
        """
        data, flags = run.config["data"], run.config["flags"]
        kind, planes = data.get("kind", "slices"), list(range(int(run.slice_numbers[-1]) + 1))
        size = (run.frame.image_height, run.frame.image_width)
        if data.get("geometry") is not None:
            return cls.read(data["geometry"])
        if kind in VOLUMES:
            raise UserError(
                "this run was trained with --image_size by an older version, which did not record where such slices lie; train "
                "it anew"
            )
        if kind == "cohort":
            pixel, apart = FIELD_OF_VIEW / size[1], (HIGHEST - LOWEST) / (SLICES - 1)
            steps = (pixel, pixel, apart)
            corner = [middle - (length - 1) / 2 * pixel for middle, length in zip(CENTRE, size)]
            return cls(
                _space(size, len(planes), steps, [*corner, LOWEST]), "axial", planes, front_first=True, right_first=True
            )
        pixel = FIELD_OF_VIEW / size[1] if kind == "slices" and flags.get("image_size") else 1.0
        corner = [-(length - 1) / 2 * step for length, step in zip((*size, len(planes)), (pixel, pixel, 1.0))]
        space = _space(size, len(planes), (pixel, pixel, 1.0), corner)
        if kind == "slices":
            lie = "rows from left to right, columns from the back to the front, as those of OASIS-1"
            return cls(space, "axial", planes, assumed=_assumed("The PNG slice set does", pixel, lie))
        lie = "rows from left to right, columns from the front to the back"
        return cls(space, "axial", planes, front_first=True, assumed=_assumed("Images do", pixel, lie))

    @classmethod
    def read(cls, said: dict[str, Any]) -> "Geometry":
        """From what `config.json` says of runs on volumes."""
        space = Space(tuple(said["shape"]), np.array(said["affine"]))
        size, axis = said.get("size") and tuple(said["size"]), said["axis"]
        return cls(space, axis, list(said["planes"]), size, axis != "axial" or was_front_first(said))

    def nifti(self, slices: np.ndarray, numbers: np.ndarray) -> nib.Nifti1Image:
        """`[S, H, W]` slices in 0..1 of these numbers, rising, as a volume in RAS+ order; a number that is missing between them
        is a black plane."""
        first, last = int(numbers[0]), int(numbers[-1])
        filled = np.zeros((last - first + 1, *slices.shape[1:]), np.float32)
        filled[numbers - first] = slices
        return self.volume(filled, self.planes[first : last + 1])

    def slices(self, image: nib.Nifti1Image) -> np.ndarray:
        """A volume such as `nifti` makes as slices, `[S, H, W]`, whichever way its file stores it."""
        slices = slices_of(nib.as_closest_canonical(image), self.axis, self.front_first)
        return slices[:, ::-1] if self.right_first else slices

    def spacing(self, shape: tuple[int, ...]) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns of `[S, H, W]` slices."""
        image = self.volume(np.zeros(shape, np.float32), self.planes[: shape[0]])
        sizes = nib.affines.voxel_sizes(image.affine)
        across = AXES[self.axis]
        return tuple(float(sizes[index]) for index in (across, *(i for i in range(3) if i != across)))

    def volume(self, slices: np.ndarray, planes: list[int]) -> nib.Nifti1Image:
        """`[S, H, W]` slices in 0..1, which are these planes of the space, as a volume in RAS+ order."""
        slices = slices[:, ::-1] if self.right_first else slices
        return nifti_of(slices, planes, self.space, self.axis, self.size, self.front_first)


def data_options_of(config: dict[str, Any]) -> DataOptions:
    """How a run read its data, by its `config.json`."""
    options, geometry = DataOptions.of(config["flags"]), config["data"].get("geometry")
    return replace(options, front_first=geometry is not None and was_front_first(geometry))


def geometry_of_volume(path: Path, run: Run) -> Geometry:
    """Of the slices that a run on volumes cuts another volume into.

    Raises:
        UserError: when it cannot be read.
    """
    options, trained = data_options_of(run.config), Geometry.of(run)
    size = trained.size or (run.frame.image_height, run.frame.image_width)
    space = open_volume(path).space(options.spacing, path)
    _, planes, _ = read_with_gaps(path, options.volumes, size)
    return Geometry(space, options.axis, planes, size, trained.front_first)


def was_front_first(geometry: dict[str, Any]) -> bool:
    """Whether columns of a run's axial slices run from the front to the back, by what `config.json` says of where they lie;
    those of version 0.1.0, which did not say it, did."""
    return geometry.get("front_first", True)


def _space(size: tuple[int, int], planes: int, steps: tuple[float, float, float], corner: list[float]) -> Space:
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = corner
    return Space((*size, planes), affine)


def _assumed(which: str, pixel: float, lie: str) -> str:
    steps = f"pixels of {pixel:.4g} mm, slices 1 mm apart"
    return f"{which} not say where slices lie; assumed: {steps}, {lie}; the middle at the origin"
