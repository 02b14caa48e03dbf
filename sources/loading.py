"""Whatever holds slices, as a `Dataset`: the built-in cohort where no folder is given."""

from collections import Counter
from collections.abc import Container
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, printable
from common.runtime import ProgressFactory
from dataset import SPLITS, Dataset, Split
from sources.cohort import load_cohort
from sources.conditions import Condition, Joined, join, read_conditions
from sources.decoding import Decoded, decoded_images, decoded_volumes
from sources.images import SUFFIXES as IMAGE_SUFFIXES
from sources.listed_splits import read_split_file
from sources.options import FOLDER, DataOptions
from sources.scans import FORMATS, Found, Scan, slice_set_in, survey
from sources.slice_numbers import positions
from sources.slice_set import load_slice_set
from sources.splits import assign_splits, stated_splits
from sources.volumes import SUFFIXES as VOLUME_SUFFIXES
from sources.volumes import Space
from sources.walk import other_kinds, walk


def load(
    options: DataOptions,
    cache: str | Path = ".cache",
    progress: ProgressFactory | None = None,
    required: str | None = "train",
    slices_per_subject: int | None = None,
    known: dict[str, Condition] | None = None,
    slice_ends: tuple[int, int] | None = None,
) -> Dataset:
    """The slices that the options name.

    Args:
        options: what to read.
        cache: folder for decoded slices.
        progress: makes the bar shown while decoding, such as `common.runtime.Progress`.
        required, slices_per_subject: as in `slice_set.load_slice_set`.
        known: the conditions of a run that the data is scored by; they are found in the table where not given.
        slice_ends: slice numbers whose positions are 0 and 1, of a run that the data is scored by; found where not given.

    Raises:
        UserError: when the folder is of no known kind, or a file in it cannot be used.
    """
    options.check()
    if options.data is None:
        data = load_cohort(options.image_size, cache, progress)
    else:
        root = Path(options.data)
        _check_place(root)
        kind = "slices" if options.format == "auto" and slice_set_in(root) else options.format
        if kind == "slices":
            root = slice_set_in(root) or root
            data = load_slice_set(
                root,
                cache,
                options.image_size,
                progress,
                required,
                slices_per_subject,
                options.split_file,
                options.volumes.window,
                slice_ends,
            )
        else:
            found = survey(root, kind, options.contrast, options.subject, options.skip_bad)
            data = _load_scans(root, found, options, Path(cache), progress, required, slices_per_subject, slice_ends)
    return with_conditions(data, options, known) if options.conditions else data


def _check_place(place: Path) -> None:
    """Raise UserError unless the place is a folder, or a file that may be one volume or image."""
    if place.is_dir() or (place.is_file() and place.name.lower().endswith((*VOLUME_SUFFIXES, *IMAGE_SUFFIXES))):
        return
    if place.is_file():
        for _, what, _, todo in other_kinds(walk(place)):
            raise UserError(f"{printable(place)}: a {what}; expected a folder, a volume or an image; {todo}")
    found = ", but a file of a kind that is not read" if place.is_file() else ""
    raise UserError(
        f"{printable(place)}: no such folder{found}; expected one that holds {'; or '.join(FORMATS.values())}"
    )


def _load_scans(
    place: Path,
    found: Found,
    options: DataOptions,
    cache: Path,
    progress: ProgressFactory | None,
    required: str | None,
    slices_per_subject: int | None,
    slice_ends: tuple[int, int] | None,
) -> Dataset:
    root = place if place.is_dir() else place.parent
    scans, assigned, decoded, said = _decoded(root, found, options, cache, progress)
    notes = [*found.notes, *said, *decoded.notes]
    known = None not in decoded.numbers
    numbers = [number for each in decoded.numbers for number in each] if known else [0]
    lowest, highest = slice_ends or (min(numbers, default=0), max(numbers, default=0))
    slices = (slices_per_subject or highest + 1) if known else None
    splits, start = {}, 0
    for name in SPLITS:
        here = [index for index, scan in enumerate(scans) if assigned[scan.subject] == name]
        each = [scans[index] for index in here for _ in decoded.names[index]]
        if not each:
            notes.append(f"no subject of {printable(place)} is in the {name} split")
            continue
        numbers_here = np.array([number for index in here for number in decoded.numbers[index]]) if known else None
        splits[name] = Split(
            decoded.images[start : start + len(each)],
            [scan.subject for scan in each],
            [slice_name for index in here for slice_name in decoded.names[index]],
            numbers_here,
            None if numbers_here is None else positions(numbers_here, lowest, highest),
            _symmetric(found.kind, options),
            sessions=[scan.session for scan in each],
            folders=[scan.label for scan in each],
        )
        start += len(each)
    if not splits or (required is not None and required not in splits):
        raise UserError(
            f"{printable(place)}: no subject is in the {required or 'first'} split; change --split"
            f"{' or the folders that state splits' if any(scan.split for scan in scans) else ''}, or give a --split_file"
        )
    geometry = None if decoded.space is None else _geometry(*decoded.space, decoded.size, options)
    ends = (lowest, highest) if known else None
    grey = None if decoded.grey is None else decoded.grey.as_json()
    title = printable(place.resolve().name)
    return Dataset(title, splits, slices, notes, found.kind, geometry, slice_ends=ends, grey=grey)


def _decoded(
    root: Path, found: Found, options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> tuple[list[Scan], dict[str, str], Decoded, list[str]]:
    """The scans in the order of their splits, the split of each subject, what became of the scans, and what is to be said.

    Where all scans of somebody are left out and a split would be empty without them, the others are split, and read, anew.
    """
    decode = decoded_images if found.kind == "images" else decoded_volumes
    scans, (assigned, said) = found.scans, _splits_of(found.scans, options)
    scans = sorted(scans, key=lambda scan: SPLITS.index(assigned[scan.subject]))  # stable: a split is one stretch
    decoded = decode(root, scans, options, cache, progress)
    here = {scan.subject for scan, names in zip(scans, decoded.names) if names}
    rest = [scan for scan in map(partial(_without, decoded.left_out), found.scans) if scan.files]
    again, said_again = _splits_of(rest, options) if 0 < len(here) < len(assigned) else (assigned, said)
    if all(again[subject] == assigned[subject] for subject in here):
        return scans, assigned, decoded, said
    scans = sorted(rest, key=lambda scan: SPLITS.index(again[scan.subject]))
    second = decode(root, scans, options, cache / "without what was left out", progress)
    notes = list(dict.fromkeys([*decoded.notes, *second.notes]))
    return scans, again, replace(second, left_out=decoded.left_out, notes=notes), said_again


def _without(left_out: Container[Path], scan: Scan) -> Scan:
    """A scan without the files that were left out."""
    kept = [index for index, file in enumerate(scan.files) if file not in left_out]
    numbers = None if scan.numbers is None else tuple(scan.numbers[index] for index in kept)
    return replace(scan, files=tuple(scan.files[index] for index in kept), numbers=numbers)


def _splits_of(scans: list[Scan], options: DataOptions) -> tuple[dict[str, str], list[str]]:
    """The split of each subject, and what the user should know of it."""
    subjects = [scan.subject for scan in scans]
    given, notes = read_split_file(options.split_file, subjects) if options.split_file else ({}, [])
    stated = stated_splits(((scan.subject, scan.split, scan.files[0]) for scan in scans), given)
    assigned = assign_splits(subjects, options.split, given, stated)
    if stated:
        counts = Counter(stated.values())
        said = ", ".join(f"{name} {counts[name]}" for name in SPLITS if counts[name])
        cut = [subject for subject in assigned if assigned[subject] == "validate"]
        without = (
            f"; {len(cut)} of those for training validate, by a hash of their names" if "validate" not in counts else ""
        )
        others = len(assigned) - len(stated)
        more = f"; {others} of no such folder are for training" if others else ""
        notes.insert(0, f"splits are those that the folders state: {said} people{more}{without if cut else ''}")
    return assigned, notes


def _symmetric(kind: str, options: DataOptions) -> bool:
    """Whether a slice mirrored across its rows may stand for a slice: of images, nobody says which way they lie."""
    return kind != "images" and options.axis != "sagittal"


def _geometry(space: Space, planes: list[int], size: tuple[int, int], options: DataOptions) -> dict[str, Any]:
    """Where slices lie in space, for `config.json`: those of the first volume. size: theirs, before --image_size."""
    place = {"axis": options.axis, "shape": list(space.shape), "affine": space.affine.tolist()}
    return place | {"planes": planes, "size": list(size), "front_first": options.front_first}


def with_conditions(data: Dataset, options: DataOptions, known: dict[str, Condition] | None) -> Dataset:
    """The dataset with what the table of the options says of each slice's subject. known: as in `load`.

    Raises:
        UserError: when the table cannot be read, or says nothing of the data's subjects.
    """
    columns = [name for name in options.conditions if name != FOLDER]
    found, values, notes = _of_folders(data, known) if FOLDER in options.conditions else ({}, {}, [])
    if columns:
        joined = _of_table(data, options.table, columns, known)
        found, values, notes = found | joined.conditions, values | joined.values, [*notes, *joined.notes]
    for note in notes:
        print(note, flush=True)
    splits, start = {}, 0
    for name, split in data.splits.items():
        here = slice(start, start + len(split))
        splits[name] = replace(split, conditions={column: values[column][here] for column in options.conditions})
        start += len(split)
    return replace(data, splits=splits, conditions={name: found[name] for name in options.conditions})


def _of_table(data: Dataset, path: str, columns: list[str], known: dict[str, Condition] | None) -> Joined:
    """What columns of a table say of each slice, and what is to be said of them."""
    table = read_conditions(path, columns)
    subjects = [subject for split in data.splits.values() for subject in split.subjects]
    sessions = [session for split in data.splits.values() for session in split.sessions or [""] * len(split)]
    joined = join(table, columns, subjects, sessions, known)
    named = [
        note if note.startswith("condition ") else f"note: table {Path(path).name}: {note}" for note in joined.notes
    ]
    return joined._replace(notes=named)


def _of_folders(
    data: Dataset, known: dict[str, Condition] | None
) -> tuple[dict[str, Condition], dict[str, np.ndarray], list[str]]:
    """The class that folders name as a condition, its value of each slice, and what is to be said of it.

    Raises:
        UserError: when no folders tell classes apart.
    """
    labels = [label for split in data.splits.values() for label in split.folders or [""] * len(split)]
    condition = (known or {}).get(FOLDER) or Condition(tuple(sorted({*labels} - {""})))
    if len(condition.classes) < 2:
        raise UserError(
            f"--condition {FOLDER}: no folders of {data.title} tell classes apart; expected folders such as AD/ and CN/ with the "
            "scans of different people in them"
        )
    encoded = {label: condition.encoded_or_missing(label) for label in {*labels}}
    values = np.array([encoded[label] for label in labels], np.float32)
    unknown = f"unknown of {int(np.isnan(values).sum())} of {len(values)} slices"
    return {FOLDER: condition}, {FOLDER: values}, [f"condition {FOLDER}: {condition}; {unknown}"]


def describe(data: Dataset) -> str:
    """What the folder was recognised as, in words."""
    if data.kind not in FORMATS:
        return ""
    subjects = Counter(name for name, split in data.splits.items() for _ in set(split.subjects))
    return f"recognised as {FORMATS[data.kind]}, {sum(subjects.values())} subjects; --format forces another"
