"""What a data set is: splits of slices, whose they are, and the frame that holds their content.

data = load(DataOptions(data="data/keras_png_slices_data"))     # `sources` reads folders
train = data.splits["train"]                          # uint8 slices, memory-mapped
frame = find_frame(train.images, multiple=8)          # what is left without the zero padding
batch = train.batch(np.arange(32), frame)             # [32, 1, h, w] float in 0..1
images = frame.pad(batch)                             # back to the slices' own size
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

SPLITS = ("train", "validate", "test")
NEIGHBOUR = "neighbour"  # what a prior with context is told beside its maps: on which side of the slice those lie


@dataclass(frozen=True)
class Frame:
    """The rectangle of a slice that holds content; the networks see only this.

    The frame may reach past the image's lower and right edges, where it reads zeros, so that any image size fits any
    downsampling. All values are pixels.
    """

    top: int
    left: int
    height: int
    width: int
    image_height: int
    image_width: int

    def map_size(self, downsample: int) -> tuple[int, int]:
        """(h, w) of the code maps of frames, where a code covers `downsample` pixels a side."""
        return self.height // downsample, self.width // downsample

    def crop(self, images: Tensor) -> Tensor:
        """`[..., image_height, image_width]` -> `[..., height, width]`."""
        self._check(images, self.image_height, self.image_width)
        bottom, right = self._inside()
        content = images[..., self.top : bottom, self.left : right]
        missing = (0, self.left + self.width - right, 0, self.top + self.height - bottom)
        return torch.nn.functional.pad(content, missing) if any(missing) else content

    def pad(self, images: Tensor) -> Tensor:
        """`[..., height, width]` -> `[..., image_height, image_width]`, zeros outside the frame."""
        self._check(images, self.height, self.width)
        bottom, right = self._inside()
        padded = images.new_zeros(*images.shape[:-2], self.image_height, self.image_width)
        padded[..., self.top : bottom, self.left : right] = images[..., : bottom - self.top, : right - self.left]
        return padded

    def _inside(self) -> tuple[int, int]:
        return min(self.top + self.height, self.image_height), min(self.left + self.width, self.image_width)

    @staticmethod
    def _check(images: Tensor, height: int, width: int) -> None:
        if tuple(images.shape[-2:]) != (height, width):
            raise UserError(f"expected images of {height}x{width} pixels, got {images.shape[-2]}x{images.shape[-1]}")


@dataclass(frozen=True)
class Split:
    """The slices of one split.

    images: `[N, H, W]` uint8, memory-mapped, read-only.
    subjects: `[N]` subject of each slice. names: `[N]` file names.
    numbers: `[N]` slice number in the volume, or None where the data says nothing of it.
    positions: `[N]` float32, the slice's position in the volume, 0 (lowest) to 1 (highest), or None likewise.
    symmetric: whether a slice mirrored across its rows may stand for one: where they run from one side of a head to the other.
    conditions: what else is known of each slice's subject, by name `[N]` float32, as the prior takes it (`sources.conditions`).
    folders: `[N]` the class of each slice, as folders name it, "" where there is none; empty where no slice has one.
    sessions: `[N]` the visit that each slice is of, such as MR1, "" where there is none; empty where no slice has one.
    """

    images: np.ndarray
    subjects: list[str]
    names: list[str]
    numbers: np.ndarray | None = None
    positions: np.ndarray | None = None
    symmetric: bool = True
    conditions: dict[str, np.ndarray] = field(default_factory=dict)
    sessions: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def slice_numbers(self) -> list[int | None]:
        """The slice number of each slice, None where the data says nothing of it."""
        return [None] * len(self) if self.numbers is None else self.numbers.tolist()

    @property
    def known(self) -> dict[str, np.ndarray]:
        """All that the prior can be told of each slice, by name: its position, where the data says it, and the conditions."""
        return ({} if self.positions is None else {"position": self.positions}) | self.conditions

    def known_of(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What the prior can be told of the slices at `indices`, by name."""
        return {name: values[indices] for name, values in self.known.items()}

    def neighbours(self, step: int) -> np.ndarray:
        """The slice of the same scan whose number is `step` more, `[N]` indices; -1 where there is none."""
        found = np.full(len(self), -1)
        if self.numbers is None or not len(self):
            return found
        places = {place: index for index, place in enumerate(zip(self.scans.tolist(), self.numbers.tolist()))}
        for (scan, number), index in places.items():
            found[index] = places.get((scan, number + step), -1)
        return found

    @property
    def scans(self) -> np.ndarray:
        """Which scan each slice is of, `[N]` integers from 0, of slices that have numbers.

        A scan is a run of slices of one subject and visit whose numbers rise; names that differ before `_slice_` are of
        different scans.
        """
        visits = self.sessions or [""] * len(self)
        about = [f"{one}\n{visit}\n{_scan(name)}" for one, visit, name in zip(self.subjects, visits, self.names)]
        whose = np.array(about)
        begins = (whose[1:] != whose[:-1]) | (self.numbers[1:] <= self.numbers[:-1])
        return np.concatenate([[0], np.cumsum(begins)])

    def batch(self, indices: np.ndarray, frame: Frame | None = None) -> Tensor:
        """The slices at `indices`, `[B, 1, h, w]` float32 in 0..1, cropped to the frame where one is given."""
        images = torch.from_numpy(self.images[indices])
        if frame is not None:
            images = frame.crop(images)
        return images[:, None].float().div_(255)

    def batches(self, size: int, frame: Frame | None = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All slices in order, as (indices, batch)."""
        for start in range(0, len(self), size):
            indices = np.arange(start, min(start + size, len(self)))
            yield indices, self.batch(indices, frame)

    def evenly(self, count: int) -> "Split":
        """At most `count` slices spread evenly over the split, the same ones every time."""
        return self.at(spread_over(len(self), count))

    def at(self, chosen: np.ndarray) -> "Split":
        """The slices at these indices."""
        return Split(
            self.images[chosen],
            [self.subjects[i] for i in chosen],
            [self.names[i] for i in chosen],
            *(None if a is None else a[chosen] for a in (self.numbers, self.positions)),
            self.symmetric,
            {name: values[chosen] for name, values in self.conditions.items()},
            *([each[i] for i in chosen] if each else [] for each in (self.sessions, self.folders)),
        )


@dataclass(frozen=True)
class Dataset:
    """Named splits of slices of one size.

    title: how reports name the data. notes: what the user should know.
    slices_per_subject: slice numbers are below this; None where the data says nothing of them.
    slice_ends: the slice numbers whose positions are 0 and 1; 0 and the highest where they are not given.
    kind: of folder, a key of `sources.scans.FORMATS`, or "cohort". geometry: where slices of volumes lie in space.
    conditions: by name, `sources.conditions.Condition`. grey: how images of more than 8 bits were scaled, as
    `sources.intensities.Scale` has it; None where there were none.
    """

    title: str
    splits: dict[str, Split]
    slices_per_subject: int | None = None
    notes: list[str] = field(default_factory=list)
    kind: str = "slices"
    geometry: dict[str, Any] | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    slice_ends: tuple[int, int] | None = None
    grey: dict[str, Any] | None = None

    def best_split(self, *names: str) -> tuple[str, Split]:
        """The first of these splits that the data has, and its name; whatever there is as the last resort."""
        name = next(name for name in (*names, *self.splits) if name in self.splits)
        return name, self.splits[name]

    def _trained_numbers(self) -> list[list[int]] | None:
        """The slice numbers of the training split, as stretches of [first, last]."""
        _, split = self.best_split("train")
        if split.numbers is None:
            return None
        numbers = np.unique(split.numbers)
        stretches = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
        return [[int(stretch[0]), int(stretch[-1])] for stretch in stretches]

    def summary(self) -> dict:
        """What `config.json` records of the data."""
        return {
            "title": self.title,
            "notes": self.notes,
            "kind": self.kind,
            "slices_per_subject": self.slices_per_subject,
            "slice_ends": None
            if self.slices_per_subject is None
            else list(self.slice_ends or (0, self.slices_per_subject - 1)),
            "slice_numbers": self._trained_numbers(),
            "geometry": self.geometry,
            "grey": self.grey,
            "conditions": {name: condition.as_json() for name, condition in self.conditions.items()},
            "splits": {
                name: {"slices": len(split), "subjects": len(set(split.subjects))}
                for name, split in self.splits.items()
            },
        }


def _scan(name: str) -> str:
    """What the name of a slice says of its scan: nothing where it does not count slices."""
    scan, counts, _ = name.rpartition("_slice_")
    return scan if counts else ""


def spread_over(length: int, count: int) -> np.ndarray:
    """At most `count` indices spread evenly over 0..length-1, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def find_frame(images: np.ndarray, multiple: int) -> Frame:
    """The smallest rectangle that holds every non-zero pixel of `[N, H, W]` uint8 slices, grown to a multiple of f.

    It grows evenly on both sides where the image has room.

    Raises:
        UserError: when every pixel is zero.
    """
    covered = np.zeros(images.shape[1:], bool)
    for start in range(0, len(images), 512):
        covered |= images[start : start + 512].any(axis=0)
    if not covered.any():
        raise UserError("every training slice is entirely black; expected grayscale images with content")
    (top, height), (left, width) = (
        _grow(np.flatnonzero(covered.any(axis=axis)), size, multiple)
        for axis, size in ((1, images.shape[1]), (0, images.shape[2]))
    )
    return Frame(top, left, height, width, *images.shape[1:])


def _grow(filled: np.ndarray, size: int, multiple: int) -> tuple[int, int]:
    """Start and length of the span of `filled`, grown evenly to a multiple and kept inside 0..size where it fits."""
    first, last = int(filled[0]), int(filled[-1])
    length = -(-(last - first + 1) // multiple) * multiple
    start = first - (length - (last - first + 1)) // 2
    return max(0, min(start, size - length)), length
