"""Whatever holds slices, as a `Dataset`: the built-in cohort where no folder is given."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.runtime import ProgressFactory
from dataset import SPLITS, Dataset, Split
from sources.cohort import load_cohort
from sources.conditions import Condition, join, read_table
from sources.decoding import decoded_images, decoded_volumes
from sources.listed_splits import read_split_file
from sources.options import DataOptions
from sources.scans import FORMATS, find_scans, recognised
from sources.slice_set import load_slice_set
from sources.splits import assign_splits
from sources.volumes import Space


def load(
    options: DataOptions,
    cache: str | Path = ".cache",
    progress: ProgressFactory | None = None,
    required: str | None = "train",
    slices_per_subject: int | None = None,
    known: dict[str, Condition] | None = None,
) -> Dataset:
    """The slices that the options name.

    Args:
        options: what to read.
        cache: folder for decoded slices.
        progress: makes the bar shown while decoding, such as `common.runtime.Progress`.
        required, slices_per_subject: as in `slice_set.load_slice_set`.
        known: the conditions of a run that the data is scored by; they are found in the table where not given.

    Raises:
        UserError: when the folder is of no known kind, or a file in it cannot be used.
    """
    options.check()
    if options.data is None:
        data = load_cohort(options.image_size, cache, progress)
    else:
        root = Path(options.data)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; expected one that holds {'; or '.join(FORMATS.values())}")
        kind = recognised(root) if options.format == "auto" else options.format
        if kind == "slices":
            data = load_slice_set(
                root, cache, options.image_size, progress, required, slices_per_subject, options.split_file
            )
        else:
            data = _load_scans(root, kind, options, Path(cache), progress, required, slices_per_subject)
    return data if options.table is None else with_conditions(data, options, known)


def _load_scans(
    root: Path,
    kind: str,
    options: DataOptions,
    cache: Path,
    progress: ProgressFactory | None,
    required: str | None,
    slices_per_subject: int | None,
) -> Dataset:
    scans = find_scans(root, kind)
    subjects = [scan.subject for scan in scans]
    given, said = read_split_file(options.split_file, subjects) if options.split_file else ({}, [])
    assigned = assign_splits(subjects, options.split, given)
    scans = sorted(scans, key=lambda scan: SPLITS.index(assigned[scan.subject]))  # stable: each split is one stretch
    volumes = kind != "images"
    decoded = (decoded_volumes if volumes else decoded_images)(root, scans, options, cache, progress)
    notes = [*said, *(f"left out {path.relative_to(root)}" for path in decoded.left_out), *decoded.notes]
    numbers = decoded.numbers
    known = None not in numbers
    highest = max((number for each in numbers for number in each), default=0) if known else 0
    slices = (slices_per_subject or highest + 1) if known else None
    splits, start = {}, 0
    for name in SPLITS:
        here = [index for index, scan in enumerate(scans) if assigned[scan.subject] == name]
        subjects = [scans[index].subject for index in here for _ in decoded.names[index]]
        names = [slice_name for index in here for slice_name in decoded.names[index]]
        count = len(names)
        if not count:
            notes.append(f"no subject of {root} is in the {name} split")
            continue
        sessions = [scans[index].session for index in here for _ in decoded.names[index]]
        numbers_here = np.array([number for index in here for number in numbers[index]]) if known else None
        positions = None if numbers_here is None else (numbers_here / max(slices - 1, 1)).astype(np.float32)
        splits[name] = Split(
            decoded.images[start : start + count],
            subjects,
            names,
            numbers_here,
            positions,
            _symmetric(kind, options),
            sessions=sessions,
        )
        start += count
    if not splits or (required is not None and required not in splits):
        raise UserError(
            f"{root}: no subject is in the {required or 'first'} split; change --split or give a --split_file"
        )
    geometry = None if decoded.space is None or options.image_size else _geometry(*decoded.space, options)
    return Dataset(root.resolve().name, splits, slices, notes, kind, geometry)


def _symmetric(kind: str, options: DataOptions) -> bool:
    """Whether a slice mirrored across its rows may stand for a slice: of images, nobody says which way they lie."""
    return kind != "images" and options.axis != "sagittal"


def _geometry(space: Space, planes: list[int], options: DataOptions) -> dict[str, Any]:
    """Where slices lie in space, for `config.json`: those of the first volume."""
    return {"axis": options.axis, "shape": list(space.shape), "affine": space.affine.tolist(), "planes": planes}


def with_conditions(data: Dataset, options: DataOptions, known: dict[str, Condition] | None) -> Dataset:
    """The dataset with what the table of the options says of each slice's subject. known: as in `load`.

    Raises:
        UserError: when the table cannot be read, or says nothing of the data's subjects.
    """
    table = read_table(options.table, options.conditions)
    pairs = [
        (subject, re.sub(r"_slice_\d+.*$", "", name))
        for split in data.splits.values()
        for subject, name in zip(split.subjects, split.names)
    ]
    found, values = join(table, options.conditions, *zip(*pairs), known=known)
    splits, start = {}, 0
    for name, split in data.splits.items():
        here = slice(start, start + len(split))
        splits[name] = replace(split, conditions={column: each[here] for column, each in values.items()})
        start += len(split)
    for column, condition in found.items():
        unknown = {subject for (subject, _), value in zip(pairs, values[column]) if np.isnan(value)}
        print(f"condition {column}: {condition}; unknown of {len(unknown)} of {len({s for s, _ in pairs})} subjects")
    return replace(data, splits=splits, conditions=found)


def describe(data: Dataset) -> str:
    """What the folder was recognised as, in words."""
    if data.kind not in FORMATS:
        return ""
    subjects = Counter(name for name, split in data.splits.items() for _ in set(split.subjects))
    return f"recognised as {FORMATS[data.kind]}, {sum(subjects.values())} subjects; --format forces another"
