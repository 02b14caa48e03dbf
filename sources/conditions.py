"""What else is known of subjects: a table joined by subject, for the prior to draw by.

    table = read_conditions("oasis_cross-sectional.csv", ["cdr", "age", "sex"])
    joined = join(table, ["cdr", "age", "sex"], subjects, sessions)
    joined.conditions, joined.values     # {"cdr": Condition(...)}, {"cdr": [one number a slice]}

A column of few different values is a class, any other column of numbers a number; a value that is missing is NaN, which the
prior takes as a value of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from sources.columns import MOST_CLASSES, Column, is_missing, number_of, plain, read_column
from sources.matching import some
from sources.rows import rows_of
from sources.tables import Table, read_table

MOST_WORDS = 64  # different words that are still classes


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
        if self.classes:
            names = [plain(name) for name in self.classes]
            if plain(text) in names:
                return float(names.index(plain(text)))
        if is_missing(text):
            return math.nan
        if self.classes:
            raise ValueError(f"expected one of {', '.join(self.classes)}")
        value = number_of(text)
        if value is None or not math.isfinite(value):
            raise ValueError(f"expected a number, {self.low:g} to {self.high:g} in the data")
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
            return f"{len(self.classes)} class{'es' * (len(self.classes) > 1)} ({', '.join(self.classes)})"
        return f"a number from {self.low:g} to {self.high:g}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Condition":
        return cls(tuple(value["classes"]), value["low"], value["high"])


class Joined(NamedTuple):
    """What a table says of slices: conditions by name; their values by name, `[N]` float32, NaN where nothing is said; notes."""

    conditions: dict[str, Condition]
    values: dict[str, np.ndarray]
    notes: list[str]


def read_conditions(path: str | Path, names: Sequence[str]) -> Table:
    """The table of `--table`.

    Raises:
        UserError: when the file cannot be read or lacks a column that is named.
    """
    table = read_table(path, "--table")
    for name in names:
        if name.lower() not in table.columns:
            raise UserError(f"--table {path}: no column {name}; it has {', '.join(table.columns)}")
    return table


def join(
    table: Table,
    names: Sequence[str],
    subjects: Sequence[str],
    sessions: Sequence[str],
    known: Mapping[str, Condition] | None = None,
) -> Joined:
    """The conditions, and their values of each slice.

    Args:
        table: from `read_conditions`. names: its columns.
        subjects, sessions: of each slice; the row of a session comes before that of its subject (`sources.rows`).
        known: conditions found before; a class that they do not have is taken as missing.

    Raises:
        UserError: when no subject is found in the table, rows contradict each other, or a column holds nothing or too many
            different words.
    """
    units = list(zip(subjects, sessions))
    scans = list(dict.fromkeys(units))
    rows, notes = rows_of(table, names, scans)
    indices = {unit: index for index, unit in enumerate(scans)}
    index = np.array([indices[unit] for unit in units])
    conditions, values = {}, {}
    for name in names:
        before = (known or {}).get(name)
        cells = [row.cells[name.lower()] for row in rows if row]
        column = read_column(name, cells, before is not None and not before.classes)
        condition = before or _inferred(name, column)
        texts = iter(column.texts)
        found = np.array([condition.encoded_or_missing(next(texts)) if row else math.nan for row in rows], np.float32)
        unknown = {subject for (subject, _), value in zip(scans, found) if np.isnan(value)}
        notes += [
            f"condition {name}: {note}" for note in (*column.notes, *_of_values(condition, column, before is not None))
        ]
        notes.append(f"condition {name}: {condition}; unknown of {len(unknown)} of {len(set(subjects))} subjects")
        conditions[name], values[name] = condition, found[index]
    return Joined(conditions, values, notes)


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


def _inferred(name: str, column: Column) -> Condition:
    """What a column is: classes of words, classes of a few numbers, or a number."""
    known = sorted(set(column.texts) - {""})
    if not known:
        raise UserError(f"--condition {name}: the table holds no value of it for any subject of the data")
    if not column.numbers:
        if len(known) > MOST_WORDS:
            raise UserError(
                f"--condition {name}: {len(known)} different words, such as {known[0]}; expected numbers or at most "
                f"{MOST_WORDS} classes"
            )
        return Condition(tuple(known))
    numbers = sorted(float(text) for text in known)
    if len(numbers) <= MOST_CLASSES:
        return Condition(tuple(f"{number:.15g}" for number in numbers))
    return Condition((), numbers[0], numbers[-1])


def _of_values(condition: Condition, column: Column, known: bool) -> list[str]:
    """What is to be said of a column's values: that they are all one, or that the run knows no such class."""
    there = sorted(set(column.texts) - {""})
    if known and condition.classes:
        others = [text for text in there if math.isnan(condition.encoded_or_missing(text))]
        return [f"the run knows no {some(others, 'or')}, which count as missing"] if others else []
    return [f"it is {there[0]} wherever it is known, and tells nothing"] if len(there) == 1 and not known else []
