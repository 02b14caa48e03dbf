"""Which files of a folder are scans, and which of them are taken: one contrast, in one space.

files, notes = scans_by_name(tree.volumes, tree, wanted=None)      # without labels, masks, maps, deformation fields ...
whose, notes = one_contrast(whose, tree, wanted=None)              # the T1 of each, where there are several contrasts
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError
from sources.matching import counted
from sources.names import Whose
from sources.walk import Tree
from sources.words import FREESURFER, NO_ANATOMY, SPACES, contrast_named, no_scan, spm_output, stem_of, words_of

ALL, NONE = "all", "none"  # --contrast all: every scan, whatever it shows; none: those whose names say no contrast
MOST = (
    0.9  # share of the visits that the plainest version of a scan has to be there of, compared with the commonest one
)
HOW = "--contrast NAME takes another one"


def scans_by_name(files: Sequence[Path], tree: Tree, wanted: str | None) -> tuple[list[Path], list[str]]:
    """The files that are scans by their names, and what is to be said of the others: a count and an example for each reason.

    wanted: --contrast; files with that word in their names are taken whatever they are.

    Raises:
        UserError: when none is left.
    """
    stems = stems_of(files)
    kept: list[Path] = []
    left_out: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        reason = "" if wanted and holds_word(path, tree.root, wanted) else _reason(path, tree.root, stems)
        (left_out[reason] if reason else kept).append(path)
    if files and not kept:
        raise UserError(
            f"{tree.root}: every file there is left out by its name: {said_of(left_out, tree)}; rename what is a scan, "
            "or take files with a word in their names all the same, such as --contrast seg"
        )
    twins = _twins(kept)
    if twins:
        left_out["copies of a file of another kind beside them"] = twins
    notes = [f"left out by name: {said_of(left_out, tree)}"] if left_out else []
    copies = set(twins)
    return [path for path in kept if path not in copies], notes


def stems_of(files: Iterable[Path]) -> frozenset[str]:
    """Names without their endings, in lower case."""
    return frozenset(stem_of(path.name).lower() for path in files)


def _reason(path: Path, root: Path, stems: frozenset[str]) -> str:
    stem = stem_of(path.name)
    return spm_output(stem, stems)[0] or no_scan(path.relative_to(root).parts[:-1], stem)


def _twins(files: Sequence[Path]) -> list[Path]:
    """Of volumes of one name in one folder, such as x.nii beside x.nii.gz, all but the compressed one."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if re.search(r"\.(nii|nii\.gz|hdr|mgz|mgh)$", path.name, re.IGNORECASE):
            beside[path.with_name(stem_of(path.name))].append(path)
    return [
        path
        for several in beside.values()
        for path in sorted(several, key=lambda path: path.name.lower()[-3:] != ".gz")[1:]
    ]


def said_of(groups: dict[str, list[Path]], tree: Tree) -> str:
    """Each group with its count and an example."""
    return "; ".join(f"{len(paths)} {what} (such as {tree.inner(paths[0])})" for what, paths in groups.items() if paths)


def holds_word(path: Path, root: Path, wanted: str) -> bool:
    """Whether words of a path, one after the other, are those that are wanted; the last one may go on."""
    words, asked = words_of(path.relative_to(root).with_name(stem_of(path.name)).as_posix()), words_of(wanted)
    runs = (words[start : start + len(asked)] for start in range(len(words) - len(asked) + 1))
    return any(run[:-1] == asked[:-1] and run[-1].startswith(asked[-1]) for run in runs if asked)


def one_contrast(whose: list[Whose], tree: Tree, wanted: str | None) -> tuple[list[Whose], list[str]]:
    """The scans of one contrast and one space, and what is to be said of the others.

    Args:
        wanted: --contrast: a contrast, or a word of names or folders; None takes the T1 where there are several contrasts.

    Raises:
        UserError: when there are several contrasts and no T1 of most people, or nothing is as wanted.
    """
    if wanted is not None and wanted.lower() == ALL:
        return whose, []
    taken = whose if wanted is None else _wanted(whose, tree, wanted)
    kinds = _by_contrast(taken)
    if len(kinds) > 1:
        taken = kinds[_contrast_to_take(kinds, tree)]
    version = _version_to_take(taken, tree)
    taken = [one for one in taken if one.version == version]
    chosen = {one.path for one in taken}
    others: dict[str, list[Path]] = defaultdict(list)
    for one in whose:
        if one.path not in chosen:
            name = one.contrast or "of no named contrast"
            same = one.contrast == taken[0].contrast
            others[f"{name} {_called(one.version)}" if same else name].append(one.path)
    if not others:
        return taken, []
    what = " ".join(filter(None, [taken[0].contrast or "scans of no named contrast", version and _called(version)]))
    lost = {one.person for one in whose} - {one.person for one in taken}
    without = f"; {counted(len(lost), 'person', 'people')} without it, such as {sorted(lost)[0]}" if lost else ""
    return taken, [f"took {len(taken)} {what}, left out {said_of(others, tree)}{without}; {HOW}"]


def _wanted(whose: list[Whose], tree: Tree, wanted: str) -> list[Whose]:
    named = contrast_named(wanted)
    taken = [one for one in whose if one.contrast == named and (named or wanted.lower() == NONE)]
    taken = taken or [one for one in whose if holds_word(one.path, tree.root, wanted)]
    if not taken:
        raise UserError(
            f"--contrast {wanted}: no scan in {tree.root} is called that; it holds {_listed(_by_contrast(whose), tree)}"
        )
    return taken


def _by_contrast(whose: Iterable[Whose]) -> dict[str, list[Whose]]:
    kinds: dict[str, list[Whose]] = defaultdict(list)
    for one in whose:
        kinds[one.contrast].append(one)
    return kinds


def _contrast_to_take(kinds: dict[str, list[Whose]], tree: Tree) -> str:
    people = {name: {one.person for one in some} for name, some in kinds.items()}
    everybody = set.union(*people.values())
    with_t1 = people.get("T1", set())
    unnamed = people.get("", set()) - with_t1
    if 2 * len(with_t1) >= len(everybody) and len(unnamed) <= (1 - MOST) * len(everybody):
        return "T1"
    anatomy = [name for name in kinds if name not in NO_ANATOMY]
    if len(anatomy) == 1 and 2 * len(people[anatomy[0]]) >= len(everybody):
        return anatomy[0]
    raise UserError(
        f"{tree.root}: scans of several contrasts, which one model is not to mix: {_listed(kinds, tree)}; say which with "
        "--contrast NAME, or --contrast all for all of them"
    )


def _listed(kinds: dict[str, list[Whose]], tree: Tree) -> str:
    return ", ".join(
        f"{name or NONE + ' that is named'} of {counted(len({one.person for one in some}), 'person', 'people')} "
        f"(such as {tree.inner(some[0].path)})"
        for name, some in kinds.items()
    )


def _version_to_take(whose: list[Whose], tree: Tree) -> tuple[str, ...]:
    """What was done to the scans that are taken: as little as possible, of those that are there of most visits.

    Raises:
        UserError: when no version is there of half of the people.
    """
    visits: dict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)
    for one in whose:
        visits[one.version].add((one.person, one.session))
    most = max(map(len, visits.values()))
    version = min((each for each in visits if len(visits[each]) >= MOST * most), key=_plainness)
    people = {person for person, _ in visits[version]}
    everybody = {one.person for one in whose}
    if 2 * len(people) < len(everybody):
        some = {_called(each) or "plain": [one.path for one in whose if one.version == each] for each in visits}
        raise UserError(
            f"{tree.root}: scans of which each person has another version: {said_of(some, tree)}; say which with "
            "--contrast WORD, a word of their names, or --contrast all for all of them"
        )
    return version


def _plainness(version: tuple[str, ...]) -> tuple[int, int, int, str]:
    place = FREESURFER.index(version[-1]) if version and version[-1] in FREESURFER else len(FREESURFER)
    return sum(bool(SPACES.match(word)) for word in version), len(version), place, " ".join(version)


def _called(version: tuple[str, ...]) -> str:
    return f"({', '.join(version)})" if version else ""
