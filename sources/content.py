"""What is no scan, by what a file holds: labels, vectors, statistics, surfaces."""

from pathlib import Path

import numpy as np
from nibabel.filebasedimages import FileBasedImage
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import SpatialImage

from common.errors import UserError

STATISTICS = range(2, 25)  # NIfTI's intent codes: correlations, t, F, z, p values and the like
LABELS = 1002
SURFACES = (1008, 1009)  # points and triangles
VECTORS = (1004, 1005, 1006, 1007, 1010)  # matrices, displacements, vectors, quaternions
MASK = 3  # different values that a mask has at most, its background included
FEW = 8  # different values under which flat stretches are labels
MOST_LABELS = 256
FLAT = 0.7  # share of neighbours within the head that are equal in labels; noise makes it far lower in scans
JUMPS = 0.3  # share of the other neighbours that differ by more than one level in labels, whose order means nothing
LOOKED_AT = 12  # planes of a volume
QUICK = 4096  # voxels that show most scans to be no labels


class NotAScan(UserError):
    """A file that is read well but holds no scan. reason: what it holds, in words that go on from "files that hold"."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: it holds {reason}, no scan; remove it")
        self.reason = reason


def check_header(volume: FileBasedImage, path: Path) -> None:
    """Raise NotAScan for what the header alone shows to be none."""
    if not isinstance(volume, SpatialImage):
        raise NotAScan(path, f"no volume ({type(volume).__name__})")
    shape, header = volume.shape, volume.header
    if len(shape) >= 3 and sorted(shape[:3])[:2] == [1, 1] and max(shape[:3]) > 1:
        raise NotAScan(path, "values of a surface")
    if len(shape) >= 5 and max(shape[4:]) > 1:
        raise NotAScan(path, "vectors or deformations")
    intent = int(header["intent_code"]) if isinstance(header, Nifti1Header) else 0
    for codes, reason in (
        (STATISTICS, "statistics"),
        ((LABELS,), "labels"),
        (SURFACES, "values of a surface"),
        (VECTORS, "vectors or deformations"),
    ):
        if intent in codes:
            raise NotAScan(path, reason)


def check_voxels(data: np.ndarray, path: Path) -> None:
    """Raise NotAScan for `[X, Y, Z]` numbers that are labels or a mask: few whole numbers in flat stretches."""
    some = data.ravel(order="K")[:: max(1, data.size // QUICK)]
    if len(np.unique(some)) > MOST_LABELS:
        return
    step = max(1, data.shape[2] // LOOKED_AT)
    planes = data[:, :, ::step]
    values, ranks, counts = np.unique(planes, return_inverse=True, return_counts=True)
    known = values[np.isfinite(values)]
    if not 2 <= len(known) <= MOST_LABELS or (known != np.round(known)).any():
        return
    if len(known) <= MASK or _is_flat(ranks.reshape(planes.shape), int(counts.argmax()), len(known)):
        raise NotAScan(path, "labels or a mask")


def _is_flat(ranks: np.ndarray, background: int, levels: int) -> bool:
    """Whether neighbours within the head are mostly equal, and where not, far apart in rank, unless there are few levels.

    ranks: of the voxels of `[X, Y, planes]` among its different values. background: the rank that counts as outside of the head.
    """
    equal, jumping, other = 0, 0, 0
    for axis in (0, 1):
        here, there = (ranks.take(range(start, ranks.shape[axis] - 1 + start), axis) for start in (0, 1))
        inside = (here != background) & (there != background)
        steps = np.abs(here[inside] - there[inside])
        equal += int((steps == 0).sum())
        jumping += int((steps > 1).sum())
        other += int((steps > 0).sum())
    flat = equal >= FLAT * max(equal + other, 1)
    return flat and (levels <= FEW or jumping >= JUMPS * max(other, 1))
