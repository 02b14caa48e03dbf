"""Which split each subject belongs to."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence

from common.errors import UserError
from dataset import Dataset, Split


def assign_splits(subjects: Sequence[str], shares: str, given: Mapping[str, str]) -> dict[str, str]:
    """The split of each subject: what is given, else by a hash of the subject's name, which stays as it is when others come."""
    train, validate, _ = shares_of(shares)

    def by_hash(subject: str) -> str:
        share = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64 * 100
        return "train" if share < train else "validate" if share < train + validate else "test"

    return {subject: given.get(subject) or by_hash(subject) for subject in dict.fromkeys(subjects)}


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
