"""The OASIS PNG slice set: `keras_png_slices_{train,validate,test}/case_<subject>_slice_<n>.nii.png`."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from natsort import natsorted

from common.errors import UserError
from common.files import cached_array, digest
from common.runtime import ProgressFactory
from dataset import SPLITS, Dataset, Split
from sources.images import DECODING, SLICE_NAME, Survey, decode_images, survey
from sources.intensities import Scale
from sources.listed_splits import read_split_file
from sources.slice_numbers import positions
from sources.splits import check_sizes, check_subjects
from sources.walk import SLICE_SET, links_to_nothing


def load_slice_set(
    root: str | Path,
    cache: str | Path = ".cache",
    image_size: int | None = None,
    progress: ProgressFactory | None = None,
    required: str | None = "train",
    slices_per_subject: int | None = None,
    split_file: str | None = None,
    window: tuple[float, float] | None = None,
    slice_ends: tuple[int, int] | None = None,
) -> Dataset:
    """Read `ROOT/keras_png_slices_{train,validate,test}/case_<subject>_slice_<n>.nii.png`.

    Each split is decoded once into a memory-mapped array under `cache`; a file added, removed or changed is noticed.

    Args:
        root: the folder that holds the split folders.
        cache: folder for the decoded arrays.
        image_size: resample every slice to this many pixels a side; None keeps the files' own size.
        progress: makes the bar shown while decoding, such as `common.runtime.Progress`.
        required: the split that must be there; None asks for any.
        slices_per_subject, slice_ends: of the run that the data is scored by, as `Dataset` has them; found in the
        names when None.
        split_file: decides over the folders for the subjects that it names (`sources.listed_splits`).
        window: grey values that become black and white; None: 8 bits as they are, of more the range of all files together.

    Raises:
        UserError: for a missing or empty required split, unreadable files, mixed sizes, or a subject in two splits.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one that holds keras_png_slices_train/")
    files = {split: _files_of(root, split) for split in SPLITS}
    said: list[str] = []
    if split_file is not None:
        files, said = _by_file(files, split_file)
        if required and any(files.values()) and not files[required]:
            raise UserError(f"--split_file {split_file}: it leaves nobody of {root} in the {required} split")
    if not (files[required] if required else any(files.values())):
        raise UserError(
            f"{root}: no {required or ''} slices found; expected PNG files named case_<subject>_slice_<n>.nii.png "
            f"in {root / f'keras_png_slices_{required or SPLITS[0]}'}".replace("  ", " ")
        )
    notes = [*said, *(f"no {split} split in {root}" for split in SPLITS if not files[split])]
    kind = "" if split_file is None else f"-{digest(split_file)[:8]}"
    scale = _scale([path for paths in files.values() for path in paths], root, Path(cache), window, progress)
    splits = {
        split: _load_split(root, split + kind, paths, Path(cache), image_size, progress, scale)
        for split, paths in files.items()
        if paths
    }
    check_sizes(splits)
    check_subjects(splits)
    splits, slices, ends = _placed(root, splits, slices_per_subject, slice_ends)
    grey = None if scale is None else scale.as_json()
    return Dataset(root.resolve().name, splits, slices, notes, slice_ends=ends, grey=grey)


def _files_of(root: Path, split: str) -> list[Path]:
    """The slices of a split in natural order.

    Raises:
        UserError: when some are links to what is not there.
    """
    folder = root / f"{SLICE_SET}{split}"
    files = natsorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    gone = [path for path in files if path.is_symlink() and not path.exists()]
    if gone:
        raise UserError(f"{folder}: {links_to_nothing(len(gone), len(files), gone[0].name)}")
    return files


def _placed(
    root: Path, splits: dict[str, Split], slices_per_subject: int | None, ends: tuple[int, int] | None
) -> tuple[dict[str, Split], int, tuple[int, int]]:
    """The splits with slice positions, how many slice numbers there are, and those whose positions are 0 and 1.

    Raises:
        UserError: for a slice number that the run was not trained on.
    """
    highest, name = max((int(split.numbers.max()), name) for name, split in splits.items())
    slices = slices_per_subject or highest + 1
    if highest >= slices:
        raise UserError(
            f"{root}: the {name} split has a slice number {highest}, but the run was trained on slices "
            f"0 to {slices - 1}"
        )
    ends = ends or (min(int(split.numbers.min()) for split in splits.values()), highest)
    placed = {name: replace(split, positions=positions(split.numbers, *ends)) for name, split in splits.items()}
    return placed, slices, ends


def _scale(
    paths: list[Path],
    root: Path,
    cache: Path,
    window: tuple[float, float] | None,
    progress: ProgressFactory | None,
) -> Scale | None:
    """The scale of all splits together, which is said; None where they have 8 bits."""
    for path in paths:
        _parsed(path)
    place = cache / f"slices-{digest(str(root.resolve()))[:12]}.survey.json"
    scale = survey(paths, window, False, place, progress).scale
    if scale is not None:
        print(scale, flush=True)
    return scale


def _by_file(files: dict[str, list[Path]], split_file: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split where a split file decides whose split is which; and what is to be said of it."""
    paths = [(path, split) for split, some in files.items() for path in some]
    subjects = [_parsed(path)["subject"] for path, _ in paths]
    given, notes = read_split_file(split_file, subjects)
    moved: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for (path, split), subject in zip(paths, subjects):
        moved[given.get(subject, split)].append(path)
    return {split: natsorted(some, key=lambda path: path.name) for split, some in moved.items()}, notes


def _parsed(path: Path) -> re.Match[str]:
    """Subject and number in the name of a slice's file."""
    match = SLICE_NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path}: unexpected name; expected case_<subject>_slice_<n>.nii.png")
    return match


def _load_split(
    root: Path,
    split: str,
    paths: list[Path],
    cache: Path,
    image_size: int | None,
    progress: ProgressFactory | None,
    scale: Scale | None,
) -> Split:
    parsed = [_parsed(path) for path in paths]
    stats = [path.stat() for path in paths]
    key = digest(DECODING, image_size, scale, [(p.name, s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats)])
    place = cache / f"slices-{digest(str(root.resolve()))[:12]}-{split}-{image_size or 'own'}.npy"
    images = cached_array(
        place,
        key,
        lambda make: decode_images(
            paths, image_size, make, f"decoding {paths[0].parent.name}", progress, Survey(scale, [1] * len(paths))
        ),
    )
    return Split(
        images,
        [match["subject"] for match in parsed],
        [path.name for path in paths],
        np.array([int(match["number"]) for match in parsed]),
    )
