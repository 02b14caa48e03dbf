"""How well maps and scores find what masks mark: average precision, AUROC, best Dice, with intervals over subjects.

    marked = Marked("sub-01", *counted(maps, masks))            # of one scan: maps [S, H, W] floats, masks [S, H, W] bool
    found = agreement([marked, ...])                            # {"average_precision": ..., "auroc": ..., "dice": ..., ...}

Scores of voxels are counted at 4,096 levels (1.5 % apart), so that a scan of any size takes little memory. The levels are those
of float16 with its last bits left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from dataset import Split
from inference.geometry import data_options_of, geometry_of_volume
from sources.images import SUFFIXES as IMAGE_SUFFIXES
from sources.images import decode_image, resized
from sources.volumes import SUFFIXES as VOLUME_SUFFIXES
from sources.volumes import read_mask
from utils import Run

DROPPED = 4  # last bits of float16 that are left out of voxels' scores
RESAMPLES, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Marked:
    """Scores of what a mask marks and of the rest, of one scan, each value with how often it is there.

    values: `[V]` sorted or not. marked, rest: `[V]` counts.
    """

    subject: str
    values: np.ndarray
    marked: np.ndarray
    rest: np.ndarray


def counted(scores: np.ndarray, masks: np.ndarray, exact: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, and how often each is there where the mask is true and where it is false. exact: keep values as they are."""
    kept = scores.astype(np.float64).ravel() if exact else levels(scores.ravel())
    values, places = np.unique(kept, return_inverse=True)
    counts = [np.bincount(places[masks.ravel() == side], minlength=len(values)) for side in (True, False)]
    return values, *counts


def levels(scores: np.ndarray) -> np.ndarray:
    """Scores rounded towards zero to 4,096 levels."""
    halves = np.nan_to_num(scores).clip(-65504, 65504).astype(np.float16).view(np.uint16)
    return (halves & np.uint16(0xFFFF << DROPPED & 0xFFFF)).view(np.float16).astype(np.float64)


def agreement(scans: Sequence[Marked], seed: int = 0) -> dict[str, float]:
    """Average precision, AUROC and the best Dice over thresholds, over all scans together, each with the ends of its 95 %
    interval as _low and _high: percentile bootstrap over subjects, none over a single one.

    NaN where nothing is marked, or everything.
    """
    names, subject_of = np.unique([scan.subject for scan in scans], return_inverse=True)
    values, places = np.unique(np.concatenate([scan.values for scan in scans]), return_inverse=True)
    owner = np.repeat(subject_of, [len(scan.values) for scan in scans])
    sides = [np.concatenate(each) for each in ([scan.marked for scan in scans], [scan.rest for scan in scans])]

    def of(times: np.ndarray) -> dict[str, float]:
        """With each subject so many times."""
        return curves(*(np.bincount(places, side * times[owner], minlength=len(values))[::-1] for side in sides))

    found = of(np.ones(len(names)))
    if len(names) < 2:
        return found
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(RESAMPLES)]
    again = [of(times.astype(float)) for times in drawn]
    for name in list(found):
        ends = np.nanquantile([each[name] for each in again], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[f"{name}_low"], found[f"{name}_high"] = map(float, ends)
    return found


def curves(marked: np.ndarray, rest: np.ndarray) -> dict[str, float]:
    """Scores from counts by falling value, `[V]` each: average precision as scikit-learn defines it, the area under the ROC
    curve, and the best Dice, over thresholds at every value."""
    hits, alarms = marked.cumsum(), rest.cumsum()
    if not (len(hits) and hits[-1] > 0 and alarms[-1] > 0):
        return {"average_precision": np.nan, "auroc": np.nan, "dice": np.nan}
    precision = hits / np.maximum(hits + alarms, 1e-12)
    before = alarms - rest / 2
    return {
        "average_precision": float((marked * precision).sum() / hits[-1]),
        "auroc": float(1 - (marked * before).sum() / (hits[-1] * alarms[-1])),
        "dice": float((2 * hits / (hits + alarms + hits[-1])).max()),
    }


class Folder:
    """Masks of slices or volumes by the names of what they are of.

    Args:
        place: that holds them. run: that the scans are scored by. scans: the files of scans on volumes, by the scans' names,
            whose masks are volumes too; None: the scans are images, and so are their masks.

    Raises:
        UserError: when there is no such folder, or it holds no masks.
    """

    def __init__(self, place: Path, run: Run, scans: Mapping[str, Path] | None):
        if not place.is_dir():
            raise UserError(f"--masks {place}: no such folder; expected one that holds masks named as the scans are")
        self.place, self.run, self.scans = place, run, scans
        endings = IMAGE_SUFFIXES if scans is None else VOLUME_SUFFIXES
        self.files = {
            _stem(path): path for path in sorted(place.rglob("*")) if path.name.lower().endswith(tuple(endings))
        }
        if not self.files:
            raise UserError(f"--masks {place}: no {'images' if scans is None else 'volumes'} in it")

    def of(self, scan: Split) -> tuple[np.ndarray, np.ndarray] | None:
        """Masks of a scan's slices, `[S, H, W]` bool, and which slices have one, `[S]`; None where no slice has."""
        height, width = scan.images.shape[1:]
        masks, there = np.zeros((len(scan), height, width), bool), np.zeros(len(scan), bool)
        if self.scans is not None:
            name = scan.names[0].rpartition("_slice_")[0]
            path = self.files.get(_stem(Path(name)))
            if path is not None and name in self.scans:
                masks[:], there[:] = self._volume(path, self.scans[name], scan.numbers, (height, width)), True
        else:
            for index, name in enumerate(scan.names):
                path = self.files.get(_stem(Path(name)))
                if path is not None:
                    masks[index], there[index] = self._image(path, (height, width)), True
        return (masks, there) if there.any() else None

    def _image(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        image = decode_image(path, self.run.config["flags"]["image_size"], None)
        if image.shape != size:
            raise UserError(f"{path}: {image.shape[0]}x{image.shape[1]} pixels; its slice has {size[0]}x{size[1]}")
        return image > 0

    def _volume(self, path: Path, scan: Path, numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Cut where the scan is; half of a pixel or more counts."""
        place, options = geometry_of_volume(scan, self.run), data_options_of(self.run.config).volumes
        planes = [place.planes[number] for number in numbers]
        marked = read_mask(path, scan, options, planes, place.size)
        if place.size != size:
            marked = np.stack([resized((255 * image).round().astype(np.uint8), size) for image in marked]) / 255
        return marked >= 0.5


def _stem(path: Path) -> str:
    """A file's name up to its first ending."""
    return path.name.split(".")[0]


def table_of(found: Mapping[str, Mapping[str, float]]) -> str:
    """What was found, by name, as lines for people."""
    lines = []
    for name, each in found.items():
        parts = []
        for score in ("average_precision", "auroc", "dice"):
            ends = f" ({each[f'{score}_low']:.3f} to {each[f'{score}_high']:.3f})" if f"{score}_low" in each else ""
            parts.append(f"{score.replace('_', ' ')} {each[score]:.3f}{ends}")
        lines.append(f"{name}: {'; '.join(parts)}")
    return "\n".join(lines)
