"""Scans that lack slices: which of the slices that a volume is cut into its file really has.

slices, planes, there = read_with_gaps("thick.nii.gz", options, size=(176, 208))      # uint8 [S, 176, 208], planes, bool [S]
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from sources.headers import AXES, is_aligned, open_volume
from sources.intensities import numbers_of
from sources.volumes import VolumeOptions, read_slices

THICK = 1.5  # times the distance of two slices, from which on a file's own planes are too far apart to give all of them
SURELY = 1e-3  # of a plane: what is nearer to one than this needs no other


@dataclass(frozen=True)
class OwnPlanes:
    """The planes that a volume's file has, across the axis of its slices.

    first, step: of the file's planes, in planes of the space that its slices are cut from. empty: `[P]` bool, of one value alone.
    """

    first: float
    step: float
    empty: np.ndarray

    @classmethod
    def of(cls, path: Path, options: VolumeOptions) -> "OwnPlanes":
        volume, across = open_volume(path), AXES[options.axis]
        data = numbers_of(np.asanyarray(volume.image.dataobj)).reshape(volume.shape)
        planes = np.moveaxis(nib.orientations.apply_orientation(data, volume.orientation), across, 0)
        planes = planes.reshape(len(planes), -1)
        empty = planes.max(1) == planes.min(1)
        if is_aligned(volume.turned_affine, options.spacing):
            return cls(0.0, 1.0, empty)
        space = volume.space(options.spacing, path)
        to_voxels = np.linalg.inv(volume.turned_affine) @ space.affine
        middle = (np.array(space.shape) - 1) / 2  # of an oblique volume, planes are where their middles are
        middle[across] = 0
        start = to_voxels[across, :3] @ middle + to_voxels[across, 3]
        return cls(-start / to_voxels[across, across], 1 / to_voxels[across, across], empty)

    def there(self, planes: np.ndarray) -> np.ndarray:
        """Whether slices at these planes are made of nothing but planes of the file that are not empty, `[S]` bool."""
        own = (planes - self.first) / self.step
        last = len(self.empty) - 1
        ends = [np.clip(end, 0, last).astype(int) for end in (np.floor(own + SURELY), np.ceil(own - SURELY))]
        return ~(self.empty[ends[0]] | self.empty[ends[1]])

    def nearest(self, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of planes further apart than slices: each stands for the slice nearest to it. Where slices are then read, `[S]`, and
        which of them are there, `[S]` bool."""
        moved, there = planes.astype(float), np.zeros(len(planes), bool)
        reach = np.ptp(planes) / (len(planes) - 1) / 2
        for own in self.first + self.step * np.flatnonzero(~self.empty):
            slot = np.abs(planes - own).argmin()
            if abs(planes[slot] - own) <= reach:
                moved[slot], there[slot] = own, True
        return moved, there


def read_with_gaps(
    path: str | Path, options: VolumeOptions, size: tuple[int, int]
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """A volume's slices, as `read_slices` gives them, and which of them its file has.

    A slice is there if it is made of no plane of the file that has one value alone. Where the file's planes are further apart
    than slices (a thick-slice acquisition), each of its planes is the slice nearest to it, and what lies between was never seen.

    Returns:
        `[S, rows, columns]` uint8, zeros where a slice is not there; the planes' numbers; `[S]` bool.

    Raises:
        UserError: as `read_slices`.
    """
    path = Path(path)
    found: dict[str, np.ndarray] = {}

    def place(chosen: list[int]) -> np.ndarray:
        own, planes = OwnPlanes.of(path, options), np.array(chosen)
        apart = np.ptp(planes) / max(len(planes) - 1, 1)
        if len(planes) > 1 and abs(own.step) > THICK * apart:
            moved, found["there"] = own.nearest(planes)
            return moved
        found["there"] = own.there(planes)
        return planes

    slices, planes = read_slices(path, options, size, place)
    return slices * found["there"][:, None, None].astype(np.uint8), planes, found["there"]
