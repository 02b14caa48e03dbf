"""Which split each subject belongs to."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from common.errors import UserError
from dataset import SPLITS, Dataset, Split


def assign_splits(
    subjects: Sequence[str], shares: str, given: Mapping[str, str], stated: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of each subject: what a file gives, else what folders state, else by a hash of the subject's name.

    A hash stays as it is when others come, and so does the split, with one exception: a split that has a share but would be empty
    gets the one subject whose hash lies nearest to it, from a split that keeps others (training is filled first, then
    validation). Where folders state splits, subjects of no folder are for training, and validation is cut from
    training where it is not stated.

    Args:
        shares: --split. given: of a split file, by subject. stated: of folders, by subject.
    """
    everybody, parts = list(dict.fromkeys(subjects)), dict(zip(SPLITS, shares_of(shares)))
    stated = stated or {}
    if not stated:
        return by_hash(everybody, parts) | {subject: given[subject] for subject in everybody if subject in given}
    assigned = {subject: stated.get(subject, "train") for subject in everybody}
    learning = [subject for subject, split in assigned.items() if split == "train"]
    if "validate" not in assigned.values() and parts["validate"]:
        assigned |= by_hash(learning, {name: parts[name] for name in ("train", "validate")})
    return assigned | {subject: given[subject] for subject in everybody if subject in given}


def by_hash(subjects: Sequence[str], parts: Mapping[str, float]) -> dict[str, str]:
    """The split of each subject, where each split gets about its part of all: see `assign_splits`."""
    whole = 100 / sum(parts.values()) if len(parts) < len(SPLITS) else 1.0
    places = {
        subject: int.from_bytes(hashlib.sha256(subject.encode("utf-8", "surrogateescape")).digest()[:8], "big")
        / 2**64
        * 100
        for subject in subjects
    }
    ends = dict(zip(parts, accumulate(part * whole for part in parts.values())))
    last = [name for name in parts if parts[name]][-1]
    assigned = {
        subject: next((name for name, end in ends.items() if place < end), last) for subject, place in places.items()
    }
    order = [name for name in parts if parts[name]]
    for name in order:
        sizes = Counter(assigned.values())
        several = [subject for subject in subjects if sizes[assigned[subject]] > 1]
        later = [subject for subject in subjects if order.index(assigned[subject]) > order.index(name)]
        if not sizes[name] and (several or later):
            low, high = ends[name] - parts[name] * whole, ends[name]
            nearest = min(several or later, key=lambda one: max(low - places[one], places[one] - high))
            assigned[nearest] = name
    return assigned


def stated_splits(scans: Iterable[tuple[str, str, Path]], decided: Container[str] = ()) -> dict[str, str]:
    """The split of each subject that folders state; those of no such folder are left out.

    Args:
        scans: subject, split or "", and a file of it. decided: subjects whose split something else decides.

    Raises:
        UserError: for a subject in two splits.
    """
    found: dict[str, tuple[str, Path]] = {}
    for subject, split, path in scans:
        first, where = found.setdefault(subject, (split, path)) if split else (split, path)
        if first != split and subject not in decided:
            raise UserError(
                f"{subject} is in both the {first} and the {split} split that the folders state: {where} and {path}; "
                "move all scans of a person to one split, say whose they are with --subject, or give a --split_file"
            )
    return {subject: split for subject, (split, _) in found.items()}


def split_table(data: Dataset) -> str:
    """The splits of a dataset's subjects as the text of a `split.csv`."""
    table = io.StringIO(newline="")
    rows = [(subject, name) for name, split in data.splits.items() for subject in dict.fromkeys(split.subjects)]
    plain = csv.writer(table, lineterminator="\n")
    quoted = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in [("subject", "split"), *rows]:
        (quoted if "\r" in row[0] else plain).writerow(row)  # `csv` quotes what needs it, but for this end of a line
    return table.getvalue()


def shares_of(text: str) -> tuple[float, float, float]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares, default=-1) < 0 or abs(sum(shares) - 100) > 1e-6 or shares[0] == 0:
        raise UserError(
            f"--split is {text}; expected shares of train, validate and test that make 100, such as 85,10,5"
        )
    return shares


def check_sizes(splits: dict[str, Split]) -> None:
    """Raise UserError for splits of slices of different sizes."""
    first, *others = ((name, split.images.shape[1:]) for name, split in splits.items())
    for name, size in others:
        if size != first[1]:
            raise UserError(
                f"the {name} slices have {size[0]}x{size[1]} pixels, the {first[0]} slices "
                f"{first[1][0]}x{first[1][1]}; give --image_size to resample all to one size"
            )


def check_subjects(splits: dict[str, Split]) -> None:
    """Raise UserError for a subject in two splits."""
    seen: dict[str, str] = {}
    for name, split in splits.items():
        for subject in sorted(set(split.subjects)):
            if subject in seen:
                raise UserError(
                    f"subject {subject} is in both the {seen[subject]} and the {name} split; "
                    "move all slices of a subject to one split"
                )
            seen[subject] = name
