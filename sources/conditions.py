"""What else is known of subjects: a table joined by subject, for the prior to draw by.

    table = read_table("oasis_cross-sectional.csv", ["cdr", "age", "sex"])
    conditions, values = join(table, subjects, sessions)     # {"cdr": Condition(...)}, {"cdr": [one number a subject]}

A column of few different values is a class, any other column of numbers a number; a value that is missing is NaN, which the
prior takes as a value of its own.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError

MOST_CLASSES = 8  # different numbers that are still classes
MOST_WORDS = 64  # different words
MISSING = {"", "n/a", "na", "nan", "none", "null", "?", "."}
OASIS_NAME = re.compile(r"(OAS1_\d{4})_MR\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Condition:
    """A column: `classes` in order, or a number between `low` and `high`, which become 0 and 1."""

    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    def encoded(self, text: str) -> float:
        """A value as the prior takes it: a class's number, or 0..1; NaN where it is missing.

        Raises:
            ValueError: for a class that there is none of, or no number.
        """
        text = text.strip()
        if text.lower() in MISSING:
            return math.nan
        if self.classes:
            names = [_plain(name) for name in self.classes]
            if _plain(text) not in names:
                raise ValueError(f"expected one of {', '.join(self.classes)}")
            return float(names.index(_plain(text)))
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected a number, {self.low:g} to {self.high:g} in the data") from None
        return (value - self.low) / max(self.high - self.low, 1e-12)

    def encoded_or_missing(self, text: str) -> float:
        """As `encoded`, NaN for what it refuses."""
        try:
            return self.encoded(text)
        except ValueError:
            return math.nan

    @property
    def size(self) -> int:
        """Number of classes; 0 for a number, as `GatedPixelCNN` has it."""
        return len(self.classes)

    def __str__(self) -> str:
        if self.classes:
            return f"{len(self.classes)} classes ({', '.join(self.classes)})"
        return f"a number from {self.low:g} to {self.high:g}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Condition":
        return cls(tuple(value["classes"]), value["low"], value["high"])


def read_table(path: str | Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a .csv or .tsv file with its column names in lower case.

    Raises:
        UserError: when the file cannot be read or lacks a column that is named.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--table {path}: not a readable table ({error}); expected a .csv or .tsv file") from None
    table = [{(name or "").strip().lower(): (value or "") for name, value in row.items() if name} for row in rows]
    if not table:
        raise UserError(f"--table {path}: it has no rows; expected a line of column names and a line a subject")
    for name in names:
        if name.lower() not in table[0]:
            raise UserError(f"--table {path}: no column {name}; it has {', '.join(filter(None, table[0]))}")
    return table


def join(
    table: list[dict[str, str]],
    names: Sequence[str],
    subjects: Sequence[str],
    scans: Sequence[str],
    known: Mapping[str, Condition] | None = None,
) -> tuple[dict[str, Condition], dict[str, np.ndarray]]:
    """The conditions, and their values of each scan.

    Args:
        table: from `read_table`. names: its columns.
        subjects, scans: of each slice; the row of a scan (`OAS1_0001_MR2`) comes before that of its subject.
        known: conditions found before; a class that they do not have is taken as missing.

    Returns:
        By name, and by name `[N]` float32, NaN where the table says nothing.

    Raises:
        UserError: when no subject is found in the table, or a column holds nothing or too many different words.
    """
    key, rows = _rows_by_subject(table, [*scans, *subjects])
    found = [rows.get(_key(scan)) or rows.get(_key(subject)) for scan, subject in zip(scans, subjects)]
    if not any(found):
        raise UserError(f"--table: none of its subjects (column {key}) is in the data, such as {subjects[0]}")
    conditions, values = {}, {}
    for name in names:
        texts = [row[name.lower()] if row else "" for row in found]
        conditions[name] = (known or {}).get(name) or _inferred(name, texts)
        encoded = {text: conditions[name].encoded_or_missing(text) for text in set(texts)}
        values[name] = np.array([encoded[text] for text in texts], np.float32)
    return conditions, values


def parse_where(text: str, conditions: dict[str, Condition]) -> dict[str, float]:
    """`cdr=0.5,age=75` as the prior takes it.

    Raises:
        ValueError: for a condition or a value that there is none of.
    """
    values = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or name not in conditions:
            raise ValueError(
                f"{part.strip() or text}: expected NAME=VALUE with a NAME of {', '.join(conditions) or 'none'}"
            )
        try:
            values[name] = conditions[name].encoded(value)
        except ValueError as error:
            raise ValueError(f"{part.strip()}: {error}") from None
    return values


def _inferred(name: str, texts: Sequence[str]) -> Condition:
    known = sorted({_plain(text) for text in texts if text.strip().lower() not in MISSING})
    if not known:
        raise UserError(f"--condition {name}: the table holds no value of it for any subject of the data")
    try:
        numbers = sorted(float(text) for text in known)
    except ValueError:
        if len(known) > MOST_WORDS:
            raise UserError(
                f"--condition {name}: {len(known)} different words, such as {known[0]}; expected numbers or at most "
                f"{MOST_WORDS} classes"
            ) from None
        return Condition(tuple(known))
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"--condition {name}: it holds an infinite number; expected finite ones")
    if len(numbers) <= MOST_CLASSES:
        return Condition(tuple(f"{number:g}" for number in numbers))
    return Condition((), numbers[0], numbers[-1])


def _plain(text: str) -> str:
    """One spelling of a value: numbers without needless digits."""
    text = text.strip()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _rows_by_subject(table: list[dict[str, str]], wanted: Sequence[str]) -> tuple[str, dict[str, dict[str, str]]]:
    """The column that names most of the wanted subjects, and its rows by name; the first row of a name counts. The row of an
    OASIS subject's first session stands for the subject too."""
    names = {_key(name) for name in wanted}
    column = max(table[0], key=lambda column: len({_key(row[column]) for row in table} & names))
    rows: dict[str, dict[str, str]] = {}
    for row in table:
        rows.setdefault(_key(row[column]), row)
        session = OASIS_NAME.fullmatch(row[column].strip())
        if session:
            rows.setdefault(_key(session[1]), row)
    return column, rows


def _key(name: str) -> str:
    """One spelling of a subject's name: without prefixes and leading zeros, so that 001, sub-001 and OAS1_0001 are one."""
    name = name.strip().lower().removeprefix("sub-").removeprefix("oas1_")
    return name.lstrip("0") or name
