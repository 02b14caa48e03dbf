"""The data that a run was trained on, read again, and other data, read as that was.

data, notes = load_data(flags, run, folder)         # flags: what the command line says of data
is_own(run, data)                                   # whether the run was trained on it
"""

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from common.cli import require
from common.errors import UserError
from common.runtime import Progress
from dataset import Dataset, Split
from inference.geometry import data_options_of
from sources import DataOptions, load
from sources.conditions import Condition
from sources.loading import with_conditions
from utils import Run

SPLIT_TABLE = "split.csv"  # which subject of the run's data is in which split
HASHED = 512  # slices hashed at a time


class DataFlags(Protocol):
    """What a command line says of the data to read; None or False where it says nothing."""

    data: str | None
    split_file: str | None
    table: str | None
    split: str | None
    cache: str


def is_own(run: Run, data: Dataset) -> bool:
    """Whether this is the data that the run was trained on, wherever it lies now: the same splits, of the same slices."""
    stored, found = run.config["data"], data.summary()
    if any(found[name] != stored[name] for name in ("kind", "slices_per_subject", "splits")):
        return False
    return all(content_of(data.splits[name]) == content for name, content in stored.get("content", {}).items())


def holds_training(run: Run, data: Dataset) -> bool:
    """Whether the training split of the data is the one that the run was trained on, as far as the run says; what its code maps
    are of is otherwise unknown, were they as many."""
    return "train" in data.splits and _said_content(run, "train") in (None, content_of(data.splits["train"]))


def holds_validation(run: Run, data: Dataset) -> bool:
    """Whether the validation split of the data is the one that the run was chosen on, as far as the run says."""
    if "validate" not in data.splits or data.kind != run.config["data"]["kind"]:
        return False
    said, found = (about["splits"].get("validate") for about in (run.config["data"], data.summary()))
    return said == found and _said_content(run, "validate") in (None, content_of(data.splits["validate"]))


def _said_content(run: Run, name: str) -> str | None:
    """What a run says its split held; version 0.1.0 did not record it."""
    return run.config["data"].get("content", {}).get(name)


def content_of(split: Split) -> str:
    """SHA-256 of the slices of a split, wherever it lies: every pixel, whose they are, their names and numbers.

    All slices are read, not some of them: finding the content frame reads the training slices at every start too, and 9,664
    slices of 256x256 pixels take about a second.
    """
    about = (split.images.shape, split.subjects, split.names, split.slice_numbers)
    found = hashlib.sha256(repr(about).encode())
    for start in range(0, len(split), HASHED):
        found.update(np.ascontiguousarray(split.images[start : start + HASHED]))
    return found.hexdigest()


def load_data(settings: DataFlags, run: Run, folder: Path) -> tuple[Dataset, list[str]]:
    """The folder of --data, else the data the run was trained on, read as the run did but for the flags that are given; and what
    is to be said of the scores on it."""
    data = run.config["data"]
    known = {name: Condition.from_json(value) for name, value in data.get("conditions", {}).items()}
    require(bool(known) or settings.table is None, "--table: this run's prior was told no conditions; leave it out")
    options = options_of(settings, run, folder)
    found, notes = load_slices(settings, run, replace(options, table=None, condition=None))
    ends, numbers = run.slice_ends, [split.numbers for split in found.splits.values() if split.numbers is not None]
    beyond = ends and numbers and (min(map(np.min, numbers)) < ends[0] or max(map(np.max, numbers)) > ends[1])
    if beyond:
        notes.append(f"some slice numbers lie beyond those that the run was trained on, {ends[0]} to {ends[1]}")
        print(f"note: {notes[-1]}")
    if not known:
        return found, notes
    try:
        return with_conditions(found, options, known), notes
    except UserError as error:
        if settings.table is not None:
            raise
        names = ", ".join(known)
        note = f"scored without the conditions {names}, as slices of which they are unknown ({error})"
        print(f"note: {note}; give the table of this data with --table")
        return found, [*notes, note]


def options_of(settings: DataFlags, run: Run, folder: Path) -> DataOptions:
    """How the run read its data, but for the flags that are given."""
    options = data_options_of(run.config)
    if options.split_file is not None and not Path(options.split_file).exists() and (folder / SPLIT_TABLE).exists():
        options = replace(options, split_file=str(folder / SPLIT_TABLE))  # it says the same of the run's subjects
    given = {field.name: getattr(settings, field.name, None) for field in fields(options) if field.name != "split"}
    return replace(options, **{name: value for name, value in given.items() if value not in (None, False)})


def load_slices(settings: DataFlags, run: Run, options: DataOptions) -> tuple[Dataset, list[str]]:
    """The slices that the options name; of other data than the run's, without the run's split file where that does not fit."""

    def read(options: DataOptions) -> Dataset:
        slices = run.config["data"]["slices_per_subject"]
        return load(options, settings.cache, Progress, settings.split, slices, slice_ends=run.slice_ends)

    try:
        return read(options), []
    except UserError as error:
        if settings.data is None or settings.split_file is not None or options.split_file is None:
            raise
        found = read(replace(options, split_file=None))
        note = f"the run's split file does not fit this data, whose own splits are taken ({error})"
        print(f"note: {note}")
        return found, [note]
