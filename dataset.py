"""Slices in: PNG folders and the built-in cohort; subjects, splits and the content frame.

data = load_folder("data/keras_png_slices_data")      # or load_cohort(image_size=128)
train = data.splits["train"]                          # uint8 slices, memory-mapped
frame = find_frame(train.images, multiple=8)          # what is left without the zero padding
batch = train.batch(np.arange(32), frame)             # [32, 1, h, w] float in 0..1
images = frame.pad(batch)                             # back to the slices' own size
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from natsort import natsorted
from PIL import Image
from torch import Tensor

import cohort

SPLITS = ("train", "validate", "test")
SLICE_NAME = re.compile(r"case_(?P<subject>.+)_slice_(?P<number>\d+)(\.nii)?\.png")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # an image past Pillow's limit is refused
warnings.filterwarnings("ignore", message="Invalid APNG")  # of a broken animation its first image is taken
CACHE_VERSION = 1  # raise it when the decoding changes, so that old caches are made anew

ProgressFactory = Callable[[int, str, str], Any]  # (total, title, unit) -> context manager with update(count)


class DataError(ValueError):
    """The data cannot be used; the message names the file or folder and what to do."""


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
            raise DataError(f"expected images of {height}x{width} pixels, got {images.shape[-2]}x{images.shape[-1]}")


@dataclass(frozen=True)
class Split:
    """The slices of one split.

    images: `[N, H, W]` uint8, memory-mapped, read-only.
    subjects: `[N]` subject of each slice. names: `[N]` file names.
    numbers: `[N]` slice number in the volume, or None where the data says nothing of it.
    positions: `[N]` float32, the slice's place in the volume, 0 (lowest) to 1 (highest), or None likewise.
    symmetric: whether a slice mirrored across its rows may stand for one: where they run from one side of a head to the other.
    conditions: what else is known of each slice's subject, by name `[N]` float32, as the prior takes it (`conditions.py`).
    """

    images: np.ndarray
    subjects: list[str]
    names: list[str]
    numbers: np.ndarray | None = None
    positions: np.ndarray | None = None
    symmetric: bool = True
    conditions: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def known(self) -> dict[str, np.ndarray]:
        """All that the prior can be told of each slice, by name: its position, where the data says it, and the conditions."""
        return ({} if self.positions is None else {"position": self.positions}) | self.conditions

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
        chosen = spread_over(len(self), count)
        return Split(
            self.images[chosen],
            [self.subjects[i] for i in chosen],
            [self.names[i] for i in chosen],
            *(None if a is None else a[chosen] for a in (self.numbers, self.positions)),
            self.symmetric,
            {name: values[chosen] for name, values in self.conditions.items()},
        )


@dataclass(frozen=True)
class Dataset:
    """Named splits of slices of one size.

    title: how reports name the data. notes: what the user should know.
    slices_per_subject: slice numbers run from 0 to this less one; None where the data says nothing of them.
    kind: of folder, a key of `sources.FORMATS`, or "cohort". geometry: where slices of volumes lie in space. conditions: by name,
    `conditions.Condition`.
    """

    title: str
    splits: dict[str, Split]
    slices_per_subject: int | None = None
    notes: list[str] = field(default_factory=list)
    kind: str = "slices"
    geometry: dict[str, Any] | None = None
    conditions: dict[str, Any] = field(default_factory=dict)

    def best_split(self, *names: str) -> tuple[str, Split]:
        """The first of these splits that the data has, and its name; whatever there is as the last resort."""
        name = next(name for name in (*names, *self.splits) if name in self.splits)
        return name, self.splits[name]

    def summary(self) -> dict:
        """What `config.json` records of the data."""
        return {
            "title": self.title,
            "notes": self.notes,
            "kind": self.kind,
            "slices_per_subject": self.slices_per_subject,
            "geometry": self.geometry,
            "conditions": {name: condition.as_json() for name, condition in self.conditions.items()},
            "splits": {
                name: {"slices": len(split), "subjects": len(set(split.subjects))}
                for name, split in self.splits.items()
            },
        }


def spread_over(length: int, count: int) -> np.ndarray:
    """At most `count` indices spread evenly over 0..length-1, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def find_frame(images: np.ndarray, multiple: int) -> Frame:
    """The smallest rectangle that holds every non-zero pixel of `[N, H, W]` uint8 slices, grown to a multiple of f.

    It grows evenly on both sides where the image has room.

    Raises:
        DataError: when every pixel is zero.
    """
    covered = np.zeros(images.shape[1:], bool)
    for start in range(0, len(images), 512):
        covered |= images[start : start + 512].any(axis=0)
    if not covered.any():
        raise DataError("every training slice is entirely black; expected grayscale images with content")
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


# --------------------------------------------------------------------------- PNG folders


def load_folder(
    root: str | Path,
    cache: str | Path = ".cache",
    image_size: int | None = None,
    progress: ProgressFactory | None = None,
    required: str | None = "train",
    slices_per_subject: int | None = None,
) -> Dataset:
    """Read `ROOT/keras_png_slices_{train,validate,test}/case_<subject>_slice_<n>.nii.png`.

    Each split is decoded once into a memory-mapped array under `cache`; a file added, removed or changed is noticed.

    Args:
        root: the folder that holds the split folders.
        cache: folder for the decoded arrays.
        image_size: resample every slice to this many pixels a side; None keeps the files' own size.
        progress: makes the bar shown while decoding, such as `utils.Progress`.
        required: the split that must be there; None asks for any.
        slices_per_subject: what slice positions are relative to; found in the names when None.

    Raises:
        DataError: for a missing or empty required split, unreadable files, mixed sizes, or a subject in two splits.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one that holds keras_png_slices_train/")
    files = {split: natsorted(path for path in (root / f"keras_png_slices_{split}").glob("*.png")) for split in SPLITS}
    if not (files[required] if required else any(files.values())):
        raise DataError(
            f"{root}: no {required or ''} slices found; expected PNG files named case_<subject>_slice_<n>.nii.png "
            f"in {root / f'keras_png_slices_{required or SPLITS[0]}'}".replace("  ", " ")
        )
    notes = [f"no {split} split in {root}" for split in SPLITS if not files[split]]
    splits = {
        split: _load_split(root, split, paths, Path(cache), image_size, progress)
        for split, paths in files.items()
        if paths
    }
    _check_splits(splits)
    highest, name = max((int(split.numbers.max()), name) for name, split in splits.items())
    slices = slices_per_subject or highest + 1
    if highest >= slices:
        raise DataError(
            f"{root}: the {name} split has a slice number {highest}, but the run was trained on slices "
            f"0 to {slices - 1}"
        )
    splits = {
        name: replace(split, positions=(split.numbers / max(slices - 1, 1)).astype(np.float32))
        for name, split in splits.items()
    }
    return Dataset(root.resolve().name, splits, slices, notes)


def _load_split(
    root: Path, split: str, paths: list[Path], cache: Path, image_size: int | None, progress: ProgressFactory | None
) -> Split:
    parsed = [SLICE_NAME.fullmatch(path.name) for path in paths]
    for path, match in zip(paths, parsed):
        if match is None:
            raise DataError(f"{path}: unexpected name; expected case_<subject>_slice_<n>.nii.png")
    stats = [path.stat() for path in paths]
    key = digest(CACHE_VERSION, image_size, [(p.name, s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats)])
    place = cache / f"slices-{digest(str(root.resolve()))[:12]}-{split}-{image_size or 'own'}.npy"
    images = cached_array(place, key, lambda make: _decode_all(paths, image_size, make, progress))
    return Split(
        images,
        [match["subject"] for match in parsed],
        [path.name for path in paths],
        np.array([int(match["number"]) for match in parsed]),
    )


def _decode_all(
    paths: list[Path],
    image_size: int | None,
    make: Callable[[tuple[int, ...]], np.ndarray],
    progress: ProgressFactory | None,
) -> None:
    """Decode the files in parallel into the array that `make(shape)` gives."""
    first = decode_image(paths[0], image_size)
    images = make((len(paths), *first.shape))

    def decode_into(index: int) -> None:
        image = decode_image(paths[index], image_size)
        if image.shape != first.shape:
            raise DataError(
                f"{paths[index]}: {image.shape[0]}x{image.shape[1]} pixels, but {paths[0].name} has "
                f"{first.shape[0]}x{first.shape[1]}; give --image_size to resample all to one size"
            )
        images[index] = image

    with (progress or silent)(len(paths), f"decoding {paths[0].parent.name}", "slice") as bar:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode_into, range(len(paths))):
                bar.update(1)


def decode_image(path: Path, image_size: int | None) -> np.ndarray:
    """One image file as `[H, W]` uint8; colour is averaged to gray, 16 bits are scaled to 8."""
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                gray = _gray_of_floats(np.asarray(image))
            elif image.mode.startswith("I"):
                gray = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            else:
                gray = image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or remove it") from None
    if image_size is not None and gray.size != (image_size, image_size):
        gray = gray.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(gray)


def _gray_of_floats(pixels: np.ndarray) -> Image.Image:
    """`[H, W]` floats, 0..1 or 0..255, as an 8-bit image."""
    if not np.isfinite(pixels).all():
        raise ValueError("it holds NaN or infinite pixels")
    scale = 255 if pixels.max() <= 1 else 1
    return Image.fromarray((pixels * scale).clip(0, 255).round().astype(np.uint8))


def load_image(path: str | Path, image_size: int | None = None) -> tuple[Tensor, int | None]:
    """One slice, `[1, 1, H, W]` float32 in 0..1, and its slice number where the file's name says it.

    Raises:
        DataError: when the file is missing or no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such image file")
    match = SLICE_NAME.fullmatch(path.name)
    pixels = torch.from_numpy(decode_image(path, image_size).copy())
    return pixels[None, None].float().div_(255), int(match["number"]) if match else None


def _check_splits(splits: dict[str, Split]) -> None:
    first, *others = ((name, split.images.shape[1:]) for name, split in splits.items())
    for name, size in others:
        if size != first[1]:
            raise DataError(
                f"the {name} slices have {size[0]}x{size[1]} pixels, the {first[0]} slices "
                f"{first[1][0]}x{first[1][1]}; give --image_size to resample all to one size"
            )
    seen: dict[str, str] = {}
    for name, split in splits.items():
        for subject in sorted(set(split.subjects)):
            if subject in seen:
                raise DataError(
                    f"subject {subject} is in both the {seen[subject]} and the {name} split; "
                    "move all slices of a subject to one split"
                )
            seen[subject] = name


# --------------------------------------------------------------------------- the built-in cohort


def load_cohort(
    image_size: int | None = None,
    cache: str | Path = ".cache",
    progress: ProgressFactory | None = None,
    subjects: dict[str, int] | None = None,
) -> Dataset:
    """The built-in synthetic cohort (see `cohort.py`), made once and cached. The same slices on every call.

    Args:
        image_size: pixels a side, over a field of view of 256 mm; `cohort.IMAGE_SIZE` when None.
        cache: folder for the finished arrays.
        progress: makes the bar shown while drawing, such as `utils.Progress`.
        subjects: how many of each split; `cohort.SUBJECTS` when None.
    """
    size, subjects = image_size or cohort.IMAGE_SIZE, subjects or cohort.SUBJECTS
    splits, first = {}, 0
    for name, count in subjects.items():
        seeds = range(first, first + count)
        first += count

        def draw(make: Callable[[tuple[int, ...]], np.ndarray], name: str = name, seeds: range = seeds) -> None:
            images = make((len(seeds) * cohort.SLICES, size, size))
            with (progress or silent)(len(seeds), f"drawing the built-in cohort, {name}", "subject") as bar:
                for subject, start in zip(seeds, range(0, len(images), cohort.SLICES)):
                    images[start : start + cohort.SLICES] = cohort.draw_subject(subject, size)
                    bar.update(1)

        images = cached_array(
            Path(cache) / f"cohort-{name}-{size}.npy", digest(CACHE_VERSION, cohort.VERSION, size, seeds), draw
        )
        names = [f"case_{seed:03d}_slice_{number}.nii.png" for seed in seeds for number in range(cohort.SLICES)]
        numbers = np.tile(np.arange(cohort.SLICES), count)
        splits[name] = Split(
            images,
            [f"{seed:03d}" for seed in seeds for _ in range(cohort.SLICES)],
            names,
            numbers,
            (numbers / (cohort.SLICES - 1)).astype(np.float32),
        )
    return Dataset("built-in synthetic cohort", splits, cohort.SLICES, kind="cohort")


# --------------------------------------------------------------------------- the cache


class silent:
    """A progress bar that shows nothing."""

    def __init__(self, *_: object):
        pass

    def update(self, count: int) -> None:
        pass

    def __enter__(self) -> "silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def digest(*values: object) -> str:
    """A name that says whether any of the values has changed."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _take_space(path: Path) -> None:
    """Have the file system set aside what the file needs: filling a mapped file without space for it ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def cached_array(place: Path, key: str, fill: Callable[[Callable[[tuple[int, ...]], np.ndarray]], None]) -> np.ndarray:
    """The uint8 array at `place`, memory-mapped; made anew by `fill(make)` unless its key file holds `key`.

    The array is written under another name and moved into place whole, its key last.
    """
    key_file = place.with_suffix(".json")
    try:
        if json.loads(key_file.read_text())["key"] == key:
            return np.load(place, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no cache yet, or a damaged one: make it
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as folder:
            temporary = Path(folder) / place.name

            def make(shape: tuple[int, ...]) -> np.ndarray:
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                _take_space(temporary)
                return array

            fill(make)
            key_file.unlink(missing_ok=True)
            temporary.replace(place)
        key_file.write_text(json.dumps({"key": key}))
    except OSError as error:
        raise DataError(
            f"{place.parent}: cannot write the slice cache there ({error.strerror}); "
            "free some space or name another folder with --cache"
        ) from None
    return np.load(place, mmap_mode="r")
