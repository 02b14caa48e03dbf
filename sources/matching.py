"""Which person of the data an id of a table or a split file means.

    matches = match(["1", "2"], ["sub-01", "sub-02", "sub-03"])
    matches.person                # {"1": "sub-01", "2": "sub-02"}
    identity("ADNI_002_S_0001_MR_MPRAGE").person        # "002_S_0001"

Ids are compared as they are written; then without upper case, `sub-` and the session; then without leading zeros, `.0` and
what stands between letters and digits; then inside longer names, and as the number of a name. A weaker comparison is made
for those alone that no stronger one has found, and is believed only where it leaves no choice.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

SHOWN = 3  # examples in a sentence
LONGEST_ID = 6  # words of an id that is looked for inside longer names
BARE = re.compile(r"(\d+)(?:\.0+)?")
KNOWN = (
    re.compile(r"(?P<person>OAS[12]_?(?P<number>\d{4}))(?!\d)(?:_?(?P<session>MR\d+))?", re.IGNORECASE),
    re.compile(r"(?P<person>OAS(?P<number>[34]\d{4}))(?!\d)(?:_?.*?_(?P<session>d\d{4}))?(?!\d)", re.IGNORECASE),
    re.compile(r"(?<!\d)(?P<person>\d{3}_?S_?(?P<number>\d{4,5}))(?!\d)", re.IGNORECASE),
    re.compile(r"(?P<person>IXI(?P<number>\d{3}))(?!\d)", re.IGNORECASE),
)  # OASIS-1 and -2, OASIS-3 and -4, ADNI, IXI
BIDS = re.compile(r"(?<![A-Za-z0-9])sub-(?P<label>[A-Za-z0-9]+)(?:[_/\\]ses-(?P<session>[A-Za-z0-9]+))?")


@dataclass(frozen=True)
class Identity:
    """What a name says by itself: `person` in one spelling, `session` or "", and the `number` of an id of a known study or ""."""

    person: str
    session: str = ""
    number: str = ""


@dataclass(frozen=True)
class Matches:
    """What `match` found.

    person: by listed id, the person of the data that it means.
    unclear: by listed id, the people of the data that it may mean, where nothing decides between them.
    rivals: by person, the different listed ids that may mean this one, where nothing decides between them.
    outdone: by listed id that is not used, the person whom it nearly names and whom another id names exactly.
    step: by listed id in `person`, the comparison that found it: 0 the strongest.
    """

    person: dict[str, str] = field(default_factory=dict)
    unclear: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rivals: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outdone: dict[str, str] = field(default_factory=dict)
    step: dict[str, int] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What is to be said of the ids that are not used: a line of each kind, with a count and an example."""
        said = []
        if self.unclear:
            listed, people = next(iter(self.unclear.items()))
            said.append(
                f"{counted(len(self.unclear), 'id')} of it may mean several people of the data and "
                f"{'is' if len(self.unclear) == 1 else 'are'} not used, such as {listed}, which may be {some(people, 'or')}"
            )
        if self.rivals:
            person, listed = next(iter(self.rivals.items()))
            said.append(
                f"{counted(len(self.rivals), 'person', 'people')} of the data may be several of its ids, none of which is used, "
                f"such as {person}, who may be {some(listed, 'or')}"
            )
        if self.outdone:
            listed, person = next(iter(self.outdone.items()))
            said.append(
                f"{counted(len(self.outdone), 'id')} of it, such as {listed}, not used: the person it nearly names, {person}, is "
                "named exactly by another"
            )
        return said


@lru_cache(maxsize=2**16)
def identity(text: str) -> Identity:
    """The id of a known study or of BIDS inside a name, else the whole name."""
    text = text.strip()
    bids = BIDS.search(text)
    inner, session = (bids["label"], bids["session"] or "") if bids else (text, "")
    for pattern in KNOWN:
        found = pattern.search(inner)
        if found:
            parts = found.groupdict()
            return Identity(_studied(found["person"]), session or parts.get("session") or "", found["number"])
    if bids:
        return Identity(inner.lower(), session)
    return Identity(re.sub(r"^sub(?:[-_\s]+|(?=\d))(?=.)", "", text.lower()))


def match(listed: Sequence[str], people: Sequence[str]) -> Matches:
    """The person of the data that each listed id means, by the strongest comparison that finds one.

    Args:
        listed: ids as a table or a split file writes them. people: ids of the data.
    """
    found = Matches()
    waiting, free = [text for text in dict.fromkeys(listed) if text.strip()], list(dict.fromkeys(people))
    comparisons = ((_exact, True), (_same, True), (_loose, False), (_numbers, False), (_inside, False))
    for step, (keys, again) in enumerate(comparisons):
        candidates = keys(waiting, list(dict.fromkeys(people)) if again else free)
        sure = {text: found_people[0] for text, found_people in candidates.items() if len(found_people) == 1}
        found.unclear.update({text: tuple(some) for text, some in candidates.items() if len(some) > 1})
        if keys is _same:
            sure = _without_zeros_lost(sure, found, people)
        if not again:
            sure = _without_rivals(sure, found)
        found.person.update(sure)
        found.step.update(dict.fromkeys(sure, step))
        taken = {*sure.values(), *found.rivals, *(one for some in found.unclear.values() for one in some)}
        waiting = [text for text in waiting if text not in candidates]
        free = [person for person in free if person not in taken]
    named = {loose(person): person for person in found.person.values()}
    found.outdone.update({text: named[loose(text)] for text in waiting if loose(text) in named})
    return found


def _without_zeros_lost(sure: dict[str, str], found: Matches, people: Sequence[str]) -> dict[str, str]:
    """`sure` without ids such as 1 where sub-1 and sub-01 are two people of whom one is not listed: a program that lost the zeros
    may have meant either."""
    taken = {*found.person.values(), *sure.values()}
    others: dict[str, list[str]] = {}
    for person in people:
        if person not in taken:
            others.setdefault(loose(person), []).append(person)
    for text, person in sure.items():
        if loose(text) in others:
            found.unclear[text] = (person, *others[loose(text)])
    return {text: person for text, person in sure.items() if text not in found.unclear}


def _without_rivals(sure: dict[str, str], found: Matches) -> dict[str, str]:
    """`sure` without the ids that differ but mean one person: nothing says that they are of one."""
    listed: dict[str, list[str]] = {}
    for text, person in sure.items():
        listed.setdefault(person, []).append(text)
    for person, texts in listed.items():
        if len({identity(text).person for text in texts}) > 1:
            found.rivals[person] = tuple(texts)
    return {text: person for text, person in sure.items() if person not in found.rivals}


def _exact(listed: Sequence[str], people: Sequence[str]) -> dict[str, list[str]]:
    return _by_key(listed, people, str.strip)


def _same(listed: Sequence[str], people: Sequence[str]) -> dict[str, list[str]]:
    """Without upper case, `sub-` and the session."""
    return _by_key(listed, people, lambda text: identity(text).person)


def _loose(listed: Sequence[str], people: Sequence[str]) -> dict[str, list[str]]:
    """Without leading zeros, `.0`, and what stands between letters and digits."""
    return _by_key(listed, people, loose)


def _numbers(listed: Sequence[str], people: Sequence[str]) -> dict[str, list[str]]:
    """Bare numbers on one side, numbered names on the other: IXI012 and 12, case_004 and 4."""
    found: dict[str, list[str]] = {}
    for bare, named, turned in ((listed, people, False), (people, listed, True)):
        numbers = _numbered(named)
        for text in bare:
            whole = BARE.fullmatch(text.strip())
            for name in numbers.get(int(whole[1]), []) if whole else []:
                found.setdefault(*((name, []) if turned else (text, []))).append(text if turned else name)
    return found


def _numbered(names: Sequence[str]) -> dict[int, list[str]]:
    """Names by their number: of an id of a known study, or behind the one word that all numbered names begin with."""
    known = {name: int(identity(name).number) for name in names if identity(name).number}
    others = {name: re.fullmatch(r"(.*[^\W\d])(\d+)", loose(name)) for name in names if name not in known}
    words = {match[1] for match in others.values() if match}
    numbers = known | ({name: int(match[2]) for name, match in others.items() if match} if len(words) == 1 else {})
    by_number: dict[int, list[str]] = {}
    for name, number in numbers.items():
        by_number.setdefault(number, []).append(name)
    return by_number


def _inside(listed: Sequence[str], people: Sequence[str]) -> dict[str, list[str]]:
    """Ids that stand as whole words inside names of the other side: Subj1 in Subj1_T1, anna in group/anna."""
    found: dict[str, list[str]] = {}
    for short, long, turned in ((listed, people, False), (people, listed, True)):
        ids: dict[tuple[str, ...], list[str]] = {}
        for text in short:
            if _tells(text):
                ids.setdefault(_words(text), []).append(text)
        for name in long:
            words = _words(name)
            runs = {words[a:b] for a, b in combinations(range(len(words) + 1), 2) if b - a <= LONGEST_ID}
            for text in dict.fromkeys(text for run in runs for text in ids.get(run, [])):
                listed_id, person = (name, text) if turned else (text, name)
                if person not in found.setdefault(listed_id, []):
                    found[listed_id].append(person)
    return found


def _by_key(listed: Sequence[str], people: Sequence[str], key: Callable[[str], Hashable]) -> dict[str, list[str]]:
    """The people whose key is that of a listed id, by listed id; those without any are left out."""
    by_key: dict[Hashable, list[str]] = {}
    for person in people:
        by_key.setdefault(key(person), []).append(person)
    return {text: by_key[key(text)] for text in listed if key(text) in by_key}


@lru_cache(maxsize=2**16)
def loose(text: str) -> str:
    """A name without session, `sub-`, `subject`, upper case, leading zeros, `.0`, and what stands between letter and digit."""
    text = re.sub(r"^subj(?:ect)?[\s_-]*(?=\d+$)", "", identity(text).person)
    whole = BARE.fullmatch(text)
    text = whole[1] if whole else text
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    return re.sub(r"(?<=[^\W\d_])[\W_]+(?=\d)|(?<=\d)[\W_]+(?=[^\W\d_])", "", text)


def _studied(person: str) -> str:
    """The id of a known study in the spelling of that study, lower case: 002S0001 is 002_s_0001, OAS10001 oas1_0001."""
    plain = person.lower().replace("_", "")
    if plain.startswith(("oas1", "oas2")):
        return f"{plain[:4]}_{plain[4:]}"
    return re.sub(r"^(\d{3})s(\d+)$", r"\1_s_\2", plain)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.sub(r"^0+(?=\d)", "", word) for word in re.split(r"[\W_]+", text.lower()) if word)


def _tells(text: str) -> bool:
    """Whether a word inside a name can be an id: a number alone, or a letter or two, may be anything."""
    return bool(re.search(r"[^\W\d_]", text)) and (len(text) >= 3 or bool(re.search(r"\d", text)))


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def some(texts: Sequence[str], last: str = "and", shown: int = SHOWN) -> str:
    """The first few of some words as a part of a sentence."""
    texts = list(texts)
    if len(texts) > shown:
        return ", ".join(texts[:shown]) + f" {last} {len(texts) - shown:,} more"
    return f" {last} ".join(filter(None, [", ".join(texts[:-1]), texts[-1]])) if texts else ""
