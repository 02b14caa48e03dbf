"""Whose scan is it: person, visit, split and class of every file, from the names of folders and files alone.

    whose = identify(tree.volumes, tree.root, stacks=False)
    whose[0].person, whose[0].session, whose[0].split, whose[0].label       # "sub-01", "ses-a", "", "AD"

Where a name is an id of a known kind (BIDS, OASIS, ADNI, IXI, TCGA ...), it is the person, wherever in the path it stands. Else
the part of the path that tells most people apart is: folders of visits, classes, contrasts and splits name nobody, nor do names
that repeat below all the others. In doubt two are taken for one, never one for two, since nobody may be in two splits.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UserError, printable
from sources.names import BY_FOLDER, Names, Whose, names_of
from sources.words import kind_of_folder, split_folders, stem_of

NOBODY = "person"  # whose files are where no name says anything but numbers
BY_FILE, BY_STACK, BY_ITSELF, BY_PATTERN = (
    "file names",
    "numbered images that lie together",
    "nothing in the names: each file counts as one",
    "--subject",
)
MOST_REPEATS = 8  # scans of one person that are counted in file names
CONTIGUOUS = 0.9  # share of the numbers between the least and the greatest that people who were counted have, at least


def identify(
    files: Sequence[Path], root: Path, stacks: bool, pattern: str | None = None, stems: frozenset[str] = frozenset()
) -> list[Whose]:
    """Whose each file below `root` is.

    Args:
        files: volumes, or images. stacks: whether they are single slices, whose numbers are no part of a name.
        pattern: a regular expression with which the user names the person in the path, by its first group.
        stems: names of all files without their endings, in lower case, by which what SPM made of another file is known.

    Raises:
        UserError: for a file in which the pattern finds nobody.
    """
    parts = [path.relative_to(root).parts for path in files]
    splits = split_folders({each[:end] for each in parts for end in range(1, len(each))})
    classes = any(kind_of_folder(name) == "class" for each in parts for name in each[:-1])
    names = [names_of(path, each, splits, stacks, classes, stems) for path, each in zip(files, parts)]
    if pattern is not None:
        return [replace(each.whose, **_by_pattern(each.whose.path, root, pattern)) for each in names]
    unknown = [each for each in names if not each.whose.person]
    _take_repeated_folders_for_classes(unknown)
    _part_repeated_words(unknown)
    _name_people(unknown, stacks)
    found = [each.whose for each in names]
    found = _apart_where_counted_anew(found, lambda one: one.label)
    found = _apart_where_counted_anew(_each_by_itself(found, root), lambda one: one.split)
    return _with_labels(found, ["/".join(each.before) for each in names])


def _by_pattern(path: Path, root: Path, pattern: str) -> dict[str, object]:
    found = re.search(pattern, path.relative_to(root).as_posix())
    person = (found[1] if found.re.groups else found[0]) if found else None
    if not person:
        raise UserError(
            f"--subject {pattern}: it finds nobody in {printable(path.relative_to(root))}; expected a regular "
            "expression whose first group is the person, in every path from --data on"
        )
    return {"person": person, "how": BY_PATTERN, "certain": True}


# --------------------------------------------------------------------------- people without ids


def _take_repeated_folders_for_classes(names: list[Names]) -> None:
    """Where folders state splits and the same few folders without numbers lie in each split, these are classes, no people."""
    where = defaultdict(set)
    for each in names:
        if each.whose.split and each.folders:
            where[each.folders[0][0]].add(each.whose.split)
    if len(where) < 2 or any(len(splits) < 2 or re.search(r"\d", name) for name, splits in where.items()):
        return
    for each in names:
        if each.whose.split and each.folders:
            (name, _), *each.folders = each.folders
            each.before = tuple(part for part in each.before if part != name)
            each.whose = replace(each.whose, label="/".join(filter(None, [each.whose.label, name])))


def _part_repeated_words(names: list[Names]) -> None:
    """Where file names are people and a word that repeats with all of them (p01_a, p01_b, p02_a), take the people alone.

    Of the two the one of which there are more is people, in doubt the first. Names that count anew after each numbered first
    word, and further than scans of one person do, are whole names: MMRR-21-1 to MMRR-21-21 beside NKI-22-1 to NKI-22-22.
    """
    parted = {each.base: re.fullmatch(r"(.+)[_\-. ]([^_\-. ]+)", each.base) for each in names if not each.named}
    ends, fronts = defaultdict(set), defaultdict(set)
    for found in filter(None, parted.values()):
        ends[found[1]].add(found[2])
        fronts[found[2]].add(found[1])
    if (
        None in parted.values()
        or len(ends) < 2
        or len(fronts) < 2
        or {kind_of_folder(f) for f in ends} & {"class", "group"}
    ):
        return
    shared, repeated = (sum(len(each) > 1 for each in some.values()) for some in (fronts, ends))
    if shared < len(fronts) / 2 or repeated < len(ends) / 2 or all(map(_counted_far, *zip(*ends.items()))):
        return
    part = 2 if len(fronts) > 2 * len(ends) else 1
    for each in names:
        if each.base in parted:
            each.base = parted[each.base][part]


def _counted_far(front: str, endings: set[str]) -> bool:
    return bool(re.search(r"\d", front)) and len(endings) > MOST_REPEATS and _counted(endings)


def _name_people(names: list[Names], stacks: bool) -> None:
    """Give everybody who has no id a name: that of the folder or file that tells most people apart."""
    depth = max((len(each.folders) for each in names), default=0)
    values = [[dict(enumerate(each.folders)).get(place, ("", ()))[0] for each in names] for place in range(depth)] + [
        [each.base for each in names]
    ]
    named = bool(names) and sum(each.named for each in names) >= 0.8 * len(names)
    best = _most_telling(values, stacks, named)
    weak = {each.weak[0] for each in names if each.weak}
    if len(set(filter(None, values[best]))) < 2 <= len(weak):
        for each in names:
            each.folders = [(each.weak[0], ())] if each.weak else each.folders
        best = 0
    bases = defaultdict(set)
    for each in names:
        bases[each.whose.path.parent].add(each.base)
    chosen = [_chosen(each, best, depth) for each in names]
    places = defaultdict(set)
    for value, before, _ in chosen:
        places[value].add(before)
    for each, (value, before, how) in zip(names, chosen):
        one = each.whose
        alone = (
            how == BY_FILE and stacks and one.number is not None and len(bases[one.path.parent]) == 1 and not each.named
        )
        if not value or alone:
            how = BY_STACK if stacks else BY_FILE
            stem = stem_of(one.path.name) if len(names) == 1 and not stacks else ""
            value = "/".join(filter(None, [one.label, value or stem])) or NOBODY
        elif len(places[value]) == 1:
            value = "/".join((*before, value))
        each.before = before
        each.whose = replace(one, person=value, how=how)


def _chosen(each: Names, best: int, depth: int) -> tuple[str, tuple[str, ...], str]:
    """The name in the best column, what stands before it, and which it is; where it is empty, that of the next best."""
    if best < depth and best < len(each.folders):
        return *each.folders[best], BY_FOLDER
    if each.base and (best >= depth or not each.folders):
        return each.base, each.before, BY_FILE
    return (*each.folders[-1], BY_FOLDER) if each.folders else ("", (), BY_FILE)


def _most_telling(values: list[list[str]], stacks: bool, named: bool) -> int:
    """The column that tells most people apart.

    Of two columns whose values go with each other's, the one with more values; of two where one divides the other's, the finer
    one, unless these are images or the coarser one's names have numbers, as people's do.
    """
    varying = [place for place, column in enumerate(values) if len(set(filter(None, column))) > 1]
    if not varying:
        return next((place for place, column in enumerate(values) if any(column)), len(values) - 1)
    best, *others = varying
    for other in others:
        pairs = {(a, b) for a, b in zip(values[best], values[other]) if a and b}
        above = defaultdict(set)
        for a, b in pairs:
            above[b].add(a)
        repeated = sum(len(each) > 1 for each in above.values())
        coarse, fine = {a for a, _ in pairs}, set(above)
        if repeated >= 0.5 * max(len(above), 1):
            best = other if len(fine) > len(coarse) else best
        elif not _are_people(coarse, stacks and not (named and other == len(values) - 1)) and len(fine) > len(coarse):
            best = other
    return best


def _are_people(names: set[str], images: bool) -> bool:
    return images or sum(bool(re.search(r"\d", name)) for name in names) >= 0.8 * len(names)


# --------------------------------------------------------------------------- one name in several places


def _with_labels(found: list[Whose], above: list[str]) -> list[Whose]:
    """Where no folder is called like a class, the folders above people are their classes, if they divide people."""
    if any(one.label for one in found) or not 1 < len(set(above)) < len({one.person for one in found}):
        return found
    return [replace(one, label=name) for one, name in zip(found, above)]


def _each_by_itself(found: list[Whose], root: Path) -> list[Whose]:
    """Where names say nothing but numbers below folders of splits or of classes, each file counts as one person.

    One stack a class would be one split a class.
    """
    classes = {one.label for one in found if one.how == BY_STACK and one.label}
    if not any(one.split for one in found) and len(classes) < 2:
        return found
    stems = defaultdict(set)
    for one in found:
        stems[stem_of(one.path.name)].add(one.path.parent)
    return [
        replace(
            one,
            how=BY_ITSELF,
            person=stem_of(one.path.name)
            if len(stems[stem_of(one.path.name)]) == 1
            else str(one.path.relative_to(root).with_name(stem_of(one.path.name))),
            number=None,
        )
        if one.how == BY_STACK and (one.split or (one.label and len(classes) > 1))
        else one
        for one in found
    ]


def _apart_where_counted_anew(found: list[Whose], group_of: Callable[[Whose], str]) -> list[Whose]:
    """People of one name in several groups are several people where each group counts its own from the start: AD/1, CN/1."""
    groups = defaultdict(set)
    for one in found:
        if not one.certain:
            groups[group_of(one)].add(one.person)
    shared = {
        person for a, people in groups.items() for b, others in groups.items() if a != b for person in people & others
    }
    if not shared or not all(_counted(groups[group]) for group in groups if groups[group] & shared):
        return found
    return [
        replace(one, person=f"{group_of(one)}/{one.person}") if not one.certain and one.person in shared else one
        for one in found
    ]


def _counted(people: set[str]) -> bool:
    """Whether names are one word and the numbers from 0 or 1 on, with hardly a hole."""
    parted = [re.fullmatch(r"(.*?)(\d+)", person) for person in people]
    if len(people) < 2 or None in parted or len({each[1] for each in parted}) > 1:
        return False
    numbers = {int(each[2]) for each in parted}
    return min(numbers) <= 1 and len(numbers) >= CONTIGUOUS * (max(numbers) - min(numbers) + 1)
