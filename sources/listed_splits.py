"""A table that says which split each subject belongs to.

splits, notes = read_split_file("split.csv", ["sub-01", "sub-02"])     # {"sub-01": "train"}, ["split.csv does not name ..."]
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from dataset import SPLITS
from sources.matching import counted, some
from sources.rows import Joint, joined_by
from sources.tables import Row, read_table

OTHER_WORDS = {"val": "validate", "valid": "validate", "validation": "validate", "dev": "validate"}


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
    if "split" not in table.columns:
        raise UserError(
            f"--split_file {path}: it has the columns {some(table.columns, shown=9)}; expected the columns subject and split, "
            "as in a run's split.csv"
        )
    joint = joined_by(table, ["split"], subjects)
    found = joint.matches
    given = [(row.cells[joint.column], _split_of(row, joint.column, path), row) for row in table.rows]
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
    return splits, [*_notes(Path(path).name, joint, given, subjects, named), *table.notes]


def _notes(
    name: str, joint: Joint, given: Sequence[tuple[str, str, Row]], subjects: Sequence[str], named: set[str]
) -> list[str]:
    notes = [f"{name}: {said}" for said in replace(joint.matches, rivals={}).sentences()]
    lines = {listed: row.line for listed, _, row in reversed(given)}
    strangers = [f"{listed} (line {lines[listed]})" for listed in joint.strangers]
    if strangers:
        notes.append(f"{name}: rows that name nobody of the data: {len(strangers)} of {len(given)}, {some(strangers)}")
    unnamed = [subject for subject in subjects if subject not in named]
    if unnamed:
        notes.append(
            f"{name} does not name {counted(len(unnamed), 'subject')} of {len(subjects)} ({some(unnamed)}): they are in the "
            "split that they would be in without it"
        )
    return notes


def _split_of(row: Row, column: str, path: str | Path) -> str:
    said = row.cells["split"]
    split = OTHER_WORDS.get(said.lower(), said.lower())
    if split not in SPLITS:
        raise UserError(
            f"--split_file {path}: subject {row.cells[column]} has the split {said or '(empty)'}; expected {', '.join(SPLITS)}"
        )
    return split
