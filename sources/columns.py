"""What the cells of a column say: numbers, words, or nothing.

column = read_column("age", ["34", "89+", "-", "41,5"])
column.texts      # ("34", "89", "", "41.5"): one spelling of each value, "" where it is missing
column.notes      # what was read as what
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.errors import UserError
from sources.matching import some

MOST_CLASSES = 8  # different numbers that are still classes
MISSING = {
    "",
    "-",
    "--",
    "\u2013",
    "?",
    ".",
    "..",
    "n/a",
    "na",
    "n.a.",
    "n.a",
    "#n/a",
    "#na",
    "<na>",
    "nan",
    "none",
    "null",
}
MISSING |= {"(null)", "unknown", "unk", "missing", "not available", "not known", "not reported", "not recorded"}
CODES = {
    -value for digit in (7, 8, 9) for value in (digit, 11 * digit, 111 * digit, 1111 * digit)
}  # of missing values: -9, -999
HIGH_CODES = {999.0, 9999.0, 99999.0}
FAR = 5  # times the highest other value, from which on a high code cannot be a value
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
ENDLESS = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
WITH_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+", re.ASCII)
CENSORED = re.compile(
    r"(?:[<>\u2264\u2265]=?\s*([\d.]+)|([\d.]+)\s*(?:\+|(?:and|or)\s+(?:over|older|above|more)))", re.IGNORECASE
)
YEARS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:y|yr|yrs|years?|years? old)\.?", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """The cells of a column in one spelling each, "" where nothing is said; whether the others are numbers; notes."""

    texts: tuple[str, ...]
    numbers: bool
    notes: tuple[str, ...] = ()


def number_of(text: str) -> float | None:
    """The number that a text is, or None: 1_2 and nan are none."""
    text = text.strip()
    return float(text) if NUMBER.fullmatch(text) or ENDLESS.fullmatch(text) else None


def plain(text: str) -> str:
    """One spelling of a value: numbers without needless digits."""
    number = number_of(text)
    return text.strip() if number is None else f"{number:.15g}"


def is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING


def read_column(name: str, cells: Sequence[str], number: bool = False) -> Column:
    """What the cells say. number: whether the column is known to be of numbers, so that a word in it is taken as missing.

    Raises:
        UserError: for an infinite number, or commas that may be one thing or the other.
    """
    texts = ["" if is_missing(cell) else cell.strip() for cell in cells]
    notes = _of_missing([cell for cell, text in zip(cells, texts) if not text], len(cells))
    read = {text: text for text in texts if text}
    notes += _commas(name, read)
    notes += _limits_and_years(read)
    counts = Counter(read[text] for text in texts if text)
    odd = {text for text in counts if number_of(text) is None}
    if odd and not number:
        share = sum(count for text, count in counts.items() if text not in odd) / sum(counts.values())
        if share <= 0.5 or len(counts) - len(odd) <= MOST_CLASSES:
            return Column(tuple(plain(text) for text in texts), False, tuple(notes[:1] if "" in texts else []))
    if odd:
        count = sum(counts[text] for text in odd)
        notes.append(f"words taken as missing: {_quoted(odd)} ({count} of {len(cells)} cells)")
    values = {text: float(there) for text, there in read.items() if there not in odd}
    if not all(map(math.isfinite, values.values())):
        raise UserError(f"--condition {name}: it holds an infinite number; expected finite ones")
    codes = _codes(set(values.values()))
    if codes:
        count = sum(values.get(text) in codes for text in texts)
        shown = some([f"{code:g}" for code in sorted(codes)])
        notes.append(f"codes taken as missing: {shown} ({count} of {len(cells)} cells)")
    known = {text: f"{value:.15g}" for text, value in values.items() if value not in codes}
    return Column(tuple(known.get(text, "") for text in texts), True, tuple(notes))


def _of_missing(cells: Sequence[str], of: int) -> list[str]:
    if not cells:
        return []
    how = ", ".join("empty" if not cell else f"'{cell}'" for cell in dict.fromkeys(cell.strip() for cell in cells))
    return [f"{len(cells)} of {of} cells missing ({how})"]


def _commas(name: str, read: dict[str, str]) -> list[str]:
    """Write decimal commas as points, where every cell that is a number can be read so."""
    commas = [text for text in read if WITH_COMMA.fullmatch(text) or THOUSANDS.fullmatch(text)]
    if not commas:
        return []
    others = [text for text in read if NUMBER.fullmatch(text)]
    if len(commas) + len(others) <= len(read) / 2:
        return []
    points = [text for text in others if "." in text]
    if points:
        raise UserError(
            f"--condition {name}: some cells have commas ({commas[0]}), others points ({points[0]}); write all numbers one way"
        )
    if all(THOUSANDS.fullmatch(text) for text in commas):
        if not any(text.count(",") > 1 for text in commas):
            raise UserError(
                f"--condition {name}: {commas[0]} may be a thousand or a fraction; write its numbers without commas"
            )
        read.update({text: text.replace(",", "") for text in commas})
        return [f"commas stand between thousands: {commas[0]} was read as {read[commas[0]]}"]
    if any(text.count(",") > 1 for text in commas):
        return []
    read.update({text: text.replace(",", ".") for text in commas})
    return [f"decimal commas: {commas[0]} was read as {read[commas[0]]}"]


def _limits_and_years(read: dict[str, str]) -> list[str]:
    """Read 89+, >89 and 34Y as numbers, where the other cells are mostly numbers or years."""
    found: dict[str, tuple[str, str]] = {}
    for text, there in read.items():
        limit, years = CENSORED.fullmatch(there), YEARS.fullmatch(there)
        value = (limit[1] or limit[2]) if limit else years[1] if years else ""
        if value and NUMBER.fullmatch(value):
            found[text] = (value, "limit" if limit else "years")
    numbers = sum(NUMBER.fullmatch(there) is not None for there in read.values())
    years = sum(kind == "years" for _, kind in found.values())
    if not found or numbers + years <= len(read) / 2:
        return []
    read.update({text: value for text, (value, _) in found.items()})
    shown = [f"{text} read as {float(value):g}" for text, (value, _) in found.items()]
    return [some(shown)]


def _codes(values: set[float]) -> set[float]:
    """The values that can only be codes for missing ones: negative nines where nothing else is negative, nines far above all."""
    rest = values - CODES
    low = values & CODES if rest and min(rest) >= 0 else set()
    rest = values - low - HIGH_CODES
    high = {code for code in values & HIGH_CODES if rest and min(rest) >= 0 and code >= FAR * max(rest)}
    return low | high


def _quoted(texts: Iterable[str]) -> str:
    return some([f"'{text}'" for text in sorted(texts)])
