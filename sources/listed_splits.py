"""A table that says which split each subject belongs to.

splits, notes = read_split_file("split.csv", ["sub-01", "sub-02"])     # {"sub-01": "train"}, ["split.csv does not name ..."]
"""

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from dataset import SPLITS
from sources.matching import Matches, counted, match, some
from sources.tables import Row, Table, read_table

OTHER_WORDS = {"val": "validate", "valid": "validate", "validation": "validate", "dev": "validate"}
SUBJECT_COLUMNS = (
    "subject",
    "participant_id",
    "subject_id",
    "subject id",
    "subjectid",
    "participant",
    "patient",
    "patient_id",
    "id",
)


def read_split_file(path: str | Path, subjects: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The splits that a file with the columns subject and split gives to subjects of the data.

    Args:
        path: of the file; ids match as those of tables do (`sources.matching`).
        subjects: of the data.

    Returns:
        The split by subject, of those that the file names; and what the user should know, a line each: rows that name nobody of
        the data, and subjects that no row names, who keep the split that they would have without the file.

    Raises:
        UserError: when the file cannot be read, names no split or another one than there are, puts a person into two splits, or
            names nobody of the data.
    """
    subjects = list(dict.fromkeys(subjects))
    table = read_table(path, "--split_file")
    column = _subject_column(table, path)
    given = [(row.cells[column], _split_of(row, column, path), row) for row in table.rows]
    found = match([listed for listed, _, _ in given], subjects)
    rows: dict[str, tuple[str, Row, str]] = {}
    persons = found.person | {listed: person for person, several in found.rivals.items() for listed in several}
    named = set(persons.values())
    for listed, split, row in given:
        person = persons.get(listed, listed)
        before = rows.setdefault(person, (listed, row, split))
        if before[2] != split:
            raise UserError(
                f"--split_file {path}: line {before[1].line} puts {before[0]} into {before[2]}, line {row.line} puts {listed} "
                f"into {split}" + (f", and both mean {person}" if before[0] != listed else "") + "; leave one of them"
            )
    splits = {subject: rows[subject][2] for subject in subjects if subject in named}
    if not splits:
        raise UserError(
            f"--split_file {path}: no row of it names anybody of the data; its column {column} holds "
            f"{some([listed for listed, _, _ in given])}, the data {some(subjects)}"
        )
    return splits, [*_notes(Path(path).name, given, persons, subjects, found), *table.notes]


def _notes(
    name: str,
    given: Sequence[tuple[str, str, Row]],
    persons: dict[str, str],
    subjects: Sequence[str],
    found: Matches,
) -> list[str]:
    notes = []
    nobody = [
        f"{listed} (line {row.line})"
        for listed, _, row in given
        if listed not in persons and listed not in found.unclear
    ]
    if nobody:
        notes.append(f"{name}: {counted(len(nobody), 'row')} of {len(given)} name nobody of the data: {some(nobody)}")
    if found.unclear:
        notes += [f"{name}: {said}" for said in Matches(unclear=found.unclear).sentences()]
    named = set(persons.values())
    unnamed = [subject for subject in subjects if subject not in named]
    if unnamed:
        notes.append(
            f"{name} does not name {counted(len(unnamed), 'subject')} of {len(subjects)} ({some(unnamed)}): they are in the "
            "split that they would be in without it"
        )
    return notes


def _subject_column(table: Table, path: str | Path) -> str:
    column = next((name for name in SUBJECT_COLUMNS if name in table.columns), None)
    if column is None or "split" not in table.columns:
        raise UserError(
            f"--split_file {path}: it has the columns {some(table.columns, shown=9)}; expected the columns subject and split, "
            "as in a run's split.csv"
        )
    return column


def _split_of(row: Row, column: str, path: str | Path) -> str:
    said = row.cells["split"]
    split = OTHER_WORDS.get(said.lower(), said.lower())
    if split not in SPLITS:
        raise UserError(
            f"--split_file {path}: subject {row.cells[column]} has the split {said or 'of no name'}; expected {', '.join(SPLITS)}"
        )
    return split
