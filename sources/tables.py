"""Tables as people have them: comma, semicolon or tab, any of the usual encodings, names of columns in any case.

table = read_table("participants.tsv", "--table")
table.columns, table.rows[0].cells["age"], table.rows[0].line
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from common.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 500  # lines, to find out what separates cells
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # with which a file begins
OTHER_KINDS = {b"PK\x03\x04": "a spreadsheet", b"\xd0\xcf\x11\xe0": "a spreadsheet", b"\x1f\x8b": "compressed"}
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


@dataclass(frozen=True)
class Row:
    """A row: its `cells` by the name of their column, stripped; and the `line` of the file, from 1, that it ends on."""

    cells: dict[str, str]
    line: int


@dataclass(frozen=True)
class Table:
    """What a file holds. source: flag and file, for messages. columns: names in lower case, stripped. notes: what the user should
    know of how it was read."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def read_table(path: str | Path, flag: str) -> Table:
    """The rows of a text file with a line of column names. flag: that names the file, for messages.

    Raises:
        UserError: when it is a spreadsheet, cannot be read, has no rows, or has cells that no column is named for.
    """
    path = Path(path)
    text, notes = _text(path, flag)
    told = re.match(r"sep=(.)\r?\n", text)  # by Excel, which reads it too
    text = text[told.end() :] if told else text
    separator = told[1] if told else _separator(text)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = [(cells, reader.line_num) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise _unreadable(path, flag, str(error)) from None
    if len(lines) < 2:
        raise UserError(f"{flag} {path}: it has no rows; expected a line of column names and a line a subject")
    (names, _), *rest = lines
    names, said = _fitting_names(names, rest, separator)
    rows = []
    for cells, line in rest:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise UserError(
                f"{flag} {path}: line {line} has {len(cells)} cells, the line of column names {len(names)}; put cells that "
                f"hold {SEPARATORS.get(separator, separator)} in quotes"
            )
        cells = [*cells, *[""] * (len(names) - len(cells))]
        rows.append(Row({name.lower(): _plain(cell) for name, cell in zip(names, cells) if name}, line))
    expected = "\t" if path.suffix.lower() == ".tsv" else ","
    if separator != expected and len(names) > 1:
        said = [f"its cells are separated by {SEPARATORS.get(separator, separator)}", *said]
    if not any(names):
        raise UserError(f"{flag} {path}: its first line holds no column names")
    repeated = [name for name, count in Counter(name.lower() for name in names if name).items() if count > 1]
    if repeated:
        said.append(f"of the columns that are all called {repeated[0]} the last is read")
    return Table(
        f"{flag} {path}", tuple(dict.fromkeys(name.lower() for name in names if name)), tuple(rows), (*notes, *said)
    )


def _plain(cell: str) -> str:
    """A cell without spaces around it, and without the ="001" by which Excel keeps the zeros of an id."""
    cell = cell.strip()
    return cell[2:-1] if cell.startswith('="') and cell.endswith('"') else cell


def _text(path: Path, flag: str) -> tuple[str, list[str]]:
    """The file's text, and what is to be said of its encoding."""
    if path.suffix.lower() in SPREADSHEETS:
        raise UserError(f"{flag} {path}: a spreadsheet; save it as .csv (in Excel: Save As, CSV UTF-8) and give that")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, flag, error.strerror or str(error)) from None
    for start, what in OTHER_KINDS.items():
        if data.startswith(start):
            raise UserError(f"{flag} {path}: {what}, not text; save it as .csv and give that")
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:1000]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        return data.decode(encoding or "utf-8"), []
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise _unreadable(path, flag, str(error)) from None
        return data.decode("cp1252", errors="replace"), ["it is no UTF-8 and was read as latin-1 (Windows-1252)"]


def _separator(text: str) -> str:
    """What separates cells: that by which most lines have as many cells as the first one, of several the one of most cells."""

    def fit(separator: str) -> tuple[int, int]:
        rows = islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), LOOKED_AT)
        counts = [len(cells) for cells in rows if cells]
        usual, agree = Counter(counts[1:] or counts).most_common(1)[0] if counts else (1, 0)
        return (agree, usual) if min(usual, counts[0] if counts else 1) > 1 else (0, 1)

    try:
        return max(SEPARATORS, key=fit)
    except csv.Error:
        return ","


def _fitting_names(
    names: list[str], rows: Sequence[tuple[list[str], int]], separator: str
) -> tuple[list[str], list[str]]:
    """Column names where their line is split otherwise than all others are: a separator within parentheses, as in the table of
    IXI, or no name for the first column, as R writes row names; and what is to be said of it."""
    lengths = {len(cells) for cells, _ in rows}
    if len(lengths) == 1 and len(names) != max(lengths):
        joined = re.split(rf"{re.escape(separator)}(?![^()]*\))", separator.join(names))
        if len(joined) == max(lengths):
            column = next(name for name in joined if separator in name)
            return [name.strip() for name in joined], [f"{column!r} was read as the name of one column"]
        if len(names) + 1 == max(lengths):
            return ["row name", *(name.strip() for name in names)], [
                "its first column has no name, and is called row name here"
            ]
    return [name.strip() for name in names], []


def _unreadable(path: Path, flag: str, why: str) -> UserError:
    return UserError(f"{flag} {path}: not a readable table ({why}); expected a .csv or .tsv file")
