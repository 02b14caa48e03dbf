"""What the parts of a path say of a file: person, visit, split, class, contrast, what was done to it, slice number.

Ids of known kinds are found here; who it is where there is none, `identity` decides, which sees all files at once.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sources.words import (
    CHANNEL,
    DATE,
    FREESURFER,
    SHORT_VISIT,
    STRUCTURE,
    VERSIONS,
    VISIT,
    contrast_of,
    is_contrast_word,
    kind_of_folder,
    spm_version,
    stem_of,
    words_of,
)

BY_ID, BY_FOLDER = "ids in their names", "folder names"
# (person), then (visit) where the name says it
IDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(OAS[12]_\d{4})(?:_(MR\d+))?",
        r"(OAS[34]\d{4})(?:(?:_[A-Z]+\d*){0,3}?_(d\d{4}))?(?!\d)",
        r"(?<!\d)(\d{3}_S_\d{4,5})(?!\d)",
        r"(?<![A-Z0-9])(IXI\d{3})(?!\d)",
        r"(TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4})(?:[-_](\d{8}))?",
        r"(BraTS-[A-Z]{2,4}-\d{5})-(\d{3})",
        r"(BraTS\d*_(?:Training|Validation)_\d+)",
        r"(UPENN-GBM-\d{5})(?:_(\d+))?",
        r"(UCSF-PDGM-\d{3,4})(?:_(FU\d+d))?",
        r"(?<![A-Z0-9])((?:PPMI|AIBL|NACC)_?\d+)",
        r"(?<!\d)(\d{7})_(2\d{4}_\d_\d)",
    )
)
UPPER = re.compile(r"OAS|IXI|\d{3}_S|TCGA", re.IGNORECASE)
BIDS_ID = re.compile(r"(?:^|(?<=[^A-Za-z0-9]))(sub-\d+(?=-\d+(?:\D|$))|sub-[^_/.]+)")
BIDS_SESSION = re.compile(r"(?:^|[_/])(ses-[^_/.]+)")
PERSON_WORDS = (
    r"sub|subj|subject|person|patient|pat|pt|case|participant|volunteer|control|ctrl|hc|mouse|rat|proband|pid|id"
)
PERSON = re.compile(rf"(?:^|(?<=[_\-\s.]))((?:{PERSON_WORDS})[ _-]?\d+)(?![A-Za-z0-9])", re.IGNORECASE)
SLICE = re.compile(r"(?:^|[_\-. ])(?:slice|slc|axial|coronal|sagittal|z)[_-]?(\d+)(?=[_\-. ]|$)", re.IGNORECASE)
FIRST_NUMBER = re.compile(r"(\d+)[_\-. ]+(?=\D+$)")
LAST_NUMBER = re.compile(r"(?:(?:^|[_\-. ])(?:sl|img|image|s))?[_\-. (]*(\d+)\)?$", re.IGNORECASE)
VISIT_INSIDE = re.compile(
    rf"(?:(?:^|(?<=[_\-. ]))({VISIT.pattern}|{DATE.pattern})|(?<=[_\-])({SHORT_VISIT.pattern}))(?=[_\-. ]|$)",
    re.IGNORECASE,
)
BIDS_VERSION = re.compile(r"_((?:space|desc|res|den)-[^_]+)")


@dataclass(frozen=True)
class Whose:
    """Whose a file is and what of.

    session: the visit, such as MR1 or ses-a. split: that a folder states. label: the class that a folder names.
    contrast: a key of `words.CONTRASTS`. version: what was done to the scan, plain ones have nothing. number: of a
    slice, in images. how: what tells the person. certain: whether it is an id of a known kind, which is the same
    person wherever it stands.
    """

    path: Path
    person: str = ""
    session: str = ""
    split: str = ""
    label: str = ""
    contrast: str = ""
    version: tuple[str, ...] = ()
    number: int | None = None
    how: str = ""
    certain: bool = False


@dataclass
class Names:
    """What the parts of a path say, while nobody knows yet whose it is.

    folders: names that may be a person's, and what stands before each. base: what the file's name says beside contrast, visit
    and slice number. named: whether that is a word for a person with a number. before: all folders that may tell people of the
    same name apart. weak: folders that name nobody unless nothing else does.
    """

    whose: Whose
    folders: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    base: str = ""
    named: bool = False
    before: tuple[str, ...] = ()
    weak: list[str] = field(default_factory=list)


def names_of(
    path: Path,
    parts: tuple[str, ...],
    splits: Mapping[tuple[str, ...], str],
    stacks: bool,
    classes: bool,
    stems: frozenset[str],
) -> Names:
    """What the parts of one path say. classes: whether there are folders of classes, so that PD is one too, no contrast."""
    labels, visits, before, found, split, told = [], [], [], Names(Whose(path)), "", []
    for end, name in enumerate(parts[:-1], 1):
        kind = kind_of_folder(name)
        if parts[:end] in splits:
            split = split or splits[parts[:end]]
            continue
        if kind == "class" or (classes and name.lower() == "pd"):
            labels.append(name)
            continue
        told.append(name)
        if kind == "visit":
            visits.append(_day(name))
        elif kind == "weak":
            found.weak.append(name)
            visits += [name] if SHORT_VISIT.fullmatch(name) else []
        elif kind in ("group", ""):
            if kind == "":
                bare, inside = _without_visits(name)
                found.folders.append((_bare(bare) or name, tuple(before)))
                visits += inside
            before.append(name)
    made_by, stem = spm_version(stem_of(path.name), stems)
    free = not made_by and "mri" in told[-2:] and stem in FREESURFER
    version = ((stem,) if stem != "T1" else ()) if free else _version(stem, told) + ((made_by,) if made_by else ())
    contrast = "T1" if free else contrast_of(told, stem)
    if CHANNEL.fullmatch(stem) and any(name.startswith("images") for name in parts[:-1]):
        stem, channel = CHANNEL.fullmatch(stem).groups()
        contrast = f"channel {channel}"
    person, visit, certain, rest = _known(parts[:-1], stem)
    bare, inside = _without_visits(rest)
    if stacks and rest and not bare:
        inside = []  # Y1.jpg to Y99.jpg: numbered images, no years
    else:
        rest = bare
    number = None
    if stacks:
        number, rest = _number(rest) if person or not PERSON.search(rest) else _number_beside(rest)
    session = visit or "/".join([*visits, *inside])
    found.named = not person and PERSON.search(rest) is not None
    found.base = PERSON.search(rest)[1] if found.named else "" if free else _bare(rest, STRUCTURE)
    above = [place for place, name in enumerate(before) if person and person.lower() in name.lower()]
    found.before = tuple(before[: above[0]] if above else before)
    label = "/".join(labels)
    found.whose = Whose(
        path, person, session, split, label, contrast, version, number, BY_ID if certain else BY_FOLDER, certain
    )
    return found


def _known(folders: tuple[str, ...], stem: str) -> tuple[str, str, bool, str]:
    """The person and visit that an id says, whether it is of a known kind, and what the file's name says beside it."""
    plain_stem = re.sub(r"^[a-z]{1,4}\d?_?(?=sub-)", "", stem)
    for name in (plain_stem, *folders):
        bids = BIDS_ID.search(name) if name is plain_stem else re.match(r"(sub-[^_]+)", name)
        if bids:
            session = next((m[1] for n in (plain_stem, *folders) for m in [BIDS_SESSION.search(n)] if m), "")
            rest = plain_stem.replace(bids[1], "", 1) if name is plain_stem else stem
            return bids[1], session, True, BIDS_SESSION.sub("", rest)
    for pattern in IDS:
        for name in (*folders, stem):
            found = pattern.search(name)
            if found:
                visits = [m[2] for n in (stem, *folders) for m in [pattern.search(n)] if m and m.re.groups > 1 and m[2]]
                person = found[1].upper() if UPPER.match(found[1]) else found[1]
                return (
                    person,
                    visits[0].upper() if visits and visits[0][0] == "M" else "".join(visits[:1]),
                    True,
                    pattern.sub("", stem),
                )
    for name in folders:
        found = PERSON.match(name)
        if found:
            return found[1], "", False, stem
    return "", "", False, stem


def _day(visit: str) -> str:
    """A visit's name; of a moment its day."""
    date = DATE.fullmatch(visit)
    return date[1] if date else visit


def _without_visits(text: str) -> tuple[str, list[str]]:
    visits = [_day(found[0]) for found in VISIT_INSIDE.finditer(text)]
    return (VISIT_INSIDE.sub("", text).strip("_-. "), visits) if visits else (text, [])


def _bare(text: str, others: Collection[str] = ()) -> str:
    """A name without the words that tell scans of one person apart: contrasts, what was done to a scan, and `others`."""
    words = [word for word in re.split(r"[_\-\s.,]+", text) if word]
    kept = [
        word
        for place, word in enumerate(words)
        if not (
            is_contrast_word(word.lower(), place == len(words) - 1)
            or word.lower() in VERSIONS
            or word.lower() in others
        )
    ]
    return text if len(kept) == len(words) else "_".join(kept)


def _version(stem: str, folders: Sequence[str]) -> tuple[str, ...]:
    """What was done to a scan, by the words of its name and of folders that name nobody."""
    derived = [
        f"derivatives/{''.join(folders[place + 1 : place + 2])}"
        for place, n in enumerate(folders)
        if n == "derivatives"
    ]
    if stem.startswith("sub-"):
        return (*derived, *BIDS_VERSION.findall(stem))
    inside = [word for name in folders if kind_of_folder(name) in ("structure", "weak") for word in words_of(name)]
    return tuple(sorted({*derived, *(word for word in (*words_of(stem), *inside) if word in VERSIONS)}))


def _number(text: str) -> tuple[int | None, str]:
    """The slice number that a file's name says, and the rest of the name."""
    *_, found = [None, *SLICE.finditer(text)]
    found = found or LAST_NUMBER.search(text) or FIRST_NUMBER.match(text)
    if found is None:
        return None, text
    return int(found[1]), (text[: found.start()] + text[found.end() :]).strip("_-. ")


def _number_beside(text: str) -> tuple[int | None, str]:
    """As `_number`, of what stands beside a word for a person and their number."""
    person = PERSON.search(text)
    number, rest = _number(text[: person.start()] + "_" + text[person.end() :])
    return number, f"{person[1]}_{rest}".strip("_")
