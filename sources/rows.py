"""Which row of a table speaks of a scan: the column that names subjects, the sessions, and rows that contradict each other.

rows, notes = rows_of(table, ["age"], [("sub-01", "ses-b"), ("sub-02", "")])     # of each its row, or None
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from natsort import natsorted

from common.errors import UserError
from sources.columns import is_missing, plain
from sources.matching import Matches, counted, identity, loose, match, some
from sources.tables import Row, Table

GAP = r"[\s_.\-]*"
PERSON = r"(?:subjects?|subj|sub|participants?|patients?|pat|persons?|proband|volunteer|case|record|mr|mri|oasis|adni|ixi|bids)"
LABEL = r"(?:ids?|no|nr|num|number|code|label|name|key|identifier|#)"
NAMES_PEOPLE = re.compile(
    rf"(?:.*[\s_.\-])?{PERSON}(?:{GAP}{LABEL})?|{LABEL}{GAP}{PERSON}|ids?|identifier|rid|ptid|eid|guid|patno|pid"
)
NAMES_SOMETHING = re.compile(r"[a-z0-9]{2,12}[\s_\-]?id")  # a code of people, or of sexes, sites, occupations
MEASURES = re.compile(r"age|sex|gender|score|years?|group|count|weight|height|site|diagnosis|mean|total|of")
SESSIONS = re.compile(
    r"(?:.*[\s_.\-])?(?:sessions?|ses|visits?|viscode\d?|time[\s_.\-]?points?|tp|wave|event|(?:scan|exam|study)[\s_.\-]?date)"
    rf"(?:{GAP}{LABEL})?"
)
WORTH = (1.0, 1.0, 0.6, 0.5, 0.5)  # of a match, by the comparison of `sources.matching` that found it
CONTESTED = 0.1  # of a person whom several ids of it may mean
DIFFERENT = 0.9  # share of the cells of a column of codes that differ, at least, where each may name a person
BY_CHANCE = (
    0.5  # share of the cells or people, at least, that a column of words has to match to be taken for one of subjects
)
BASELINE = {"bl": "m0", "baseline": "m0", "screening": "m0", "sc": "m0"}

LOOKED_AT = 500  # rows, to find out what a column is

Unit = tuple[str, str]  # subject and session of a scan, "" where it has none


@dataclass(frozen=True)
class Joint:
    """A column whose cells name people of the data. people: of each row, "" where it names nobody."""

    column: str
    cells: tuple[str, ...]
    matches: Matches

    @property
    def people(self) -> list[str]:
        return [self.matches.person.get(cell, "") for cell in self.cells]

    @property
    def strangers(self) -> list[str]:
        """Ids that name nobody of the data."""
        matches = self.matches
        rivals = {listed for several in matches.rivals.values() for listed in several}
        used = {"", *matches.person, *matches.unclear, *matches.outdone, *rivals}
        return [cell for cell in dict.fromkeys(self.cells) if cell not in used]

    @property
    def worth(self) -> float:
        """The more people it names, and the more surely, the more it is worth."""
        best: dict[str, float] = {}
        for listed, person in self.matches.person.items():
            best[person] = max(best.get(person, 0.0), WORTH[self.matches.step[listed]])
        return sum(best.values()) + CONTESTED * len(self.matches.rivals)


@dataclass
class Choice:
    """The rows of one unit, and how they were found."""

    rows: list[Row] = field(default_factory=list)
    first_of_several: str = ""  # the session whose rows they are, where the data names none and the table several
    strange: str = ""  # a session that the table has for this subject, where none of them is the unit's


def rows_of(table: Table, wanted: Sequence[str], units: Sequence[Unit]) -> tuple[list[Row | None], list[str]]:
    """The row that speaks of each unit, None where none does; and what the user should know.

    A row of the session comes before one that names no session, which serves all of a subject's. Where the data has no sessions,
    the first of the table's counts.

    Raises:
        UserError: when no column names people of the data, or two rows of one unit differ in a wanted column.
    """
    people = list(dict.fromkeys(person for person, _ in units))
    joint = joined_by(table, wanted, people)
    column, sessions = _sessions(table, wanted, joint, units)
    of_person: dict[str, list[tuple[str, Row]]] = {}
    for person, session, row in zip(joint.people, sessions, table.rows):
        of_person.setdefault(person, []).append((session, row))
    choices = {unit: _choice(of_person.get(unit[0], []), unit[1], wanted) for unit in dict.fromkeys(units)}
    for unit, choice in choices.items():
        _check_agreement(table, wanted, unit, choice.rows)
    notes = [*table.notes, *_of_people(joint, people), *joint.matches.sentences(), *_of_sessions(column, choices)]
    found = [choices[unit].rows[0] if choices[unit].rows else None for unit in units]
    if not any(found):
        raise UserError(f"{table.source}: none of its rows speaks of a scan of the data: {'; '.join(notes)}")
    return found, notes


def joined_by(table: Table, wanted: Sequence[str], people: Sequence[str]) -> Joint:
    """The column that names people: by what it is called, else by what it holds."""
    called, tried = [], []
    for column in table.columns:
        cells = tuple(row.cells[column] for row in table.rows)
        by_name = _names_people(column, cells)
        if not by_name and (column in wanted or not _words(cells)):
            continue
        joint = Joint(column, cells, match(cells, people))
        if by_name:
            tried.append(joint)
        if joint.worth and (by_name or _beyond_chance(joint, people)):
            called.append((joint.worth, by_name, joint))
    if called:
        return max(called, key=lambda each: each[:2])[2]
    if not tried:
        raise UserError(
            f"{table.source}: none of its columns ({some(table.columns, shown=9)}) names subjects; call the one that does "
            f"participant_id, and write there ids of the data, such as {some(people, 'or')}"
        )
    shown = "; ".join(
        f"column {joint.column} holds {some(list(dict.fromkeys(filter(None, joint.cells))))}" for joint in tried
    )
    unclear = [line for joint in tried for line in joint.matches.sentences()]
    raise UserError(
        f"{table.source}: none of its subjects is in the data: {shown}; the data has {some(people)}; write "
        "the ids of the data there" + "".join(f"; {line}" for line in unclear[:1])
    )


def _names_people(column: str, cells: Sequence[str]) -> bool:
    """Whether a column is one of ids by its name: participant_id, ID, MRID; IXI_ID beside SEX_ID too, whose cells repeat."""
    words = re.split(r"[\W_]+", column)
    if any(MEASURES.fullmatch(word) for word in words):
        return False
    if NAMES_PEOPLE.fullmatch(column):
        return True
    there = [cell for cell in cells if cell]
    return bool(NAMES_SOMETHING.fullmatch(column)) and len(set(there)) >= DIFFERENT * len(there) > 0


def _words(cells: Sequence[str]) -> bool:
    """Whether nearly all cells hold letters: ages and scores never name anybody."""
    there = [cell for cell in cells[:LOOKED_AT] if not is_missing(cell)]
    return bool(there) and sum(bool(re.search(r"[^\W\d_]", cell)) for cell in there) >= DIFFERENT * len(there)


def _beyond_chance(joint: Joint, people: Sequence[str]) -> bool:
    found = set(joint.matches.person.values())
    fewest = BY_CHANCE * min(len(people), len(set(filter(None, joint.cells))))
    return len(found) >= max(fewest, min(2, len(people)))


def _sessions(table: Table, wanted: Sequence[str], joint: Joint, units: Sequence[Unit]) -> tuple[str, list[str]]:
    """The session of each row, "" where it names none; and where that is written: the place that fits the data's best."""
    of_person: dict[str, set[str]] = {}
    for person, session in units:
        of_person.setdefault(person, set()).add(session)
    places = [(joint.column, [identity(cell).session for cell in joint.cells], True)]
    mine = [identity(cell).person for cell in joint.cells]
    for column in table.columns:
        cells = [row.cells[column] for row in table.rows]
        if column != joint.column:
            if any(identity(cell).session for cell in cells[:LOOKED_AT]):
                inner = [identity(cell) for cell in cells]
                same = [one.session if one.person == person else "" for one, person in zip(inner, mine)]
                places.append((column, same, True))
            if SESSIONS.fullmatch(column):
                places.append((column, ["" if is_missing(cell) else cell for cell in cells], False))
    places = [place for place in places if any(place[1])]

    def fitting(sessions: Sequence[str]) -> int:
        return sum(
            _meant(session, of_person.get(person, set())) is not None
            for person, session in zip(joint.people, sessions)
            if session
        )

    for column, sessions, sure in sorted(places, key=lambda place: -fitting(place[1])):  # stable
        several = len({(person, s) for person, s in zip(joint.people, sessions) if person}) > len(
            set(joint.people) - {""}
        )
        if sure or several or fitting(sessions):
            return column, sessions
    return "", [""] * len(table.rows)


def _choice(rows: Sequence[tuple[str, Row]], session: str, wanted: Sequence[str]) -> Choice:
    """The rows of a subject that speak of a session of the data."""
    named = [listed for listed in dict.fromkeys(listed for listed, _ in rows) if listed]
    general = [row for listed, row in rows if not listed]
    if session:
        hits = [row for listed, row in rows if listed and _meant(listed, {session}) is not None]
        return Choice(hits or general, strange="" if hits or general or not named else named[0])
    if general or not named:
        return Choice(general)
    first = natsorted(named, key=_plain_session)[0]
    differ = len({tuple(plain(row.cells[column.lower()]) for column in wanted) for _, row in rows}) > 1
    return Choice([row for listed, row in rows if listed == first], first_of_several=first if differ else "")


def _meant(listed: str, sessions: set[str]) -> str | None:
    """The session of the data that a row means, if there is one and no more."""
    for key in (str.strip, _plain_session, _day, _only_number):
        wanted = key(listed)
        hits = [session for session in sessions if session and wanted and key(session) == wanted]
        if hits:
            return hits[0] if len(hits) == 1 else None
    return None


@lru_cache(maxsize=2**16)
def _plain_session(text: str) -> str:
    text = re.sub(r"^(?:ses|session|visit|timepoint)[\s_\-]*(?=.)", "", text.strip().lower())
    text = re.sub(r"^months?[\s_\-]*(?=\d)", "m", text)
    return BASELINE.get(text, loose(text))


def _day(text: str) -> str:
    found = re.search(r"(?<!\d)((?:19|20)\d\d)[-_./]?(\d\d)[-_./]?(\d\d)(?!\d)", text)
    return "".join(found.groups()) if found else ""


def _only_number(text: str) -> str:
    numbers = re.findall(r"\d+", BASELINE.get(text.strip().lower(), text))
    return str(int(numbers[0])) if len(numbers) == 1 else ""


def _check_agreement(table: Table, wanted: Sequence[str], unit: Unit, rows: Sequence[Row]) -> None:
    for column in wanted:
        different = {plain(row.cells[column.lower()]): row for row in reversed(rows)}
        if len(different) > 1:
            (one, first), (other, second) = sorted(different.items(), key=lambda each: each[1].line)[:2]
            raise UserError(
                f"{table.source}: lines {first.line} and {second.line} are both of {' '.join(filter(None, unit))}, but "
                f"{column} is {one or 'empty'} in one and {other or 'empty'} in the other; leave one of them, or name their "
                "sessions in a column session_id"
            )


def _of_people(joint: Joint, people: Sequence[str]) -> list[str]:
    found = set(joint.people) - {""}
    missing = [person for person in people if person not in found]
    strangers = joint.strangers
    said = f"its column {joint.column} names {len(found)} of {counted(len(people), 'subject')} of the data"
    if missing:
        said += f", and not {some(missing)}"
        if strangers:
            said += f"; it names {some(strangers)} too, whom the data has not"
    return [said]


def _of_sessions(column: str, choices: dict[Unit, Choice]) -> list[str]:
    notes = []
    used = [unit for unit, choice in choices.items() if unit[1] and choice.rows]
    if column and used:
        notes.append(f"rows are joined by session too, from its column {column}")
    several = {unit: choice.first_of_several for unit, choice in choices.items() if choice.first_of_several}
    if several:
        (person, _), first = next(iter(several.items()))
        notes.append(
            f"it has rows of several sessions of {counted(len(several), 'subject')} whose scans name none: the first is taken, "
            f"such as {first} of {person}"
        )
    strange = {unit: choice.strange for unit, choice in choices.items() if choice.strange}
    if strange:
        (person, session), listed = next(iter(strange.items()))
        notes.append(
            f"it has no row of {counted(len(strange), 'session')} of the data, such as {session} of {person}, "
            f"of whom it has {listed}"
        )
    return notes
