"""What a folder holds: of which kind it is, its scans, and whose they are."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from natsort import natsorted

from common.errors import UserError, printable
from sources.identity import BY_ITSELF, identify
from sources.matching import counted
from sources.names import Whose
from sources.planes import is_plane
from sources.selection import one_contrast, scans_by_name, stems_of
from sources.slice_numbers import believable
from sources.walk import SLICE_SET, Tree, links_to_nothing, other_kinds, walk
from sources.words import stem_of

FORMATS = {
    "slices": "the OASIS PNG slice set, keras_png_slices_*/case_<subject>_slice_<n>.nii.png",
    "oasis1": "OASIS-1 discs, OAS1_*/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc.hdr",
    "bids": "BIDS, sub-*/anat/*_T1w.nii.gz",
    "volumes": "volumes (.nii, .nii.gz, .hdr, .mgz)",
    "images": "images (.png, .jpg, .tif, .bmp)",
}
BIDS_SCAN = re.compile(r"(?:^|/)sub-[^/]+/(?:ses-[^/]+/)?anat/[^/]+\.nii(\.gz)?$")
BIDS_AT_THE_TOP = re.compile(r"sub-[^/]+/(?:ses-[^/]+/)?anat/[^/]+$")
NOT_RAW = re.compile(r"(?:^|/)(?:derivatives|sourcedata|code)/")


@dataclass(frozen=True)
class Scan:
    """A volume, or the images of one scan: `files` in order; `name` tells the scans of a subject apart; `session` is the visit it
    is of, such as MR1, "" where nothing says it; `split` and `label` are the split and the class that its folders state."""

    files: tuple[Path, ...]
    subject: str
    name: str
    numbers: tuple[int, ...] | None = None
    session: str = ""
    split: str = ""
    label: str = ""


@dataclass(frozen=True)
class Found:
    """The scans of a folder, in natural order, a subject's together; and what the user should know of them."""

    kind: str
    scans: list[Scan]
    notes: list[str] = field(default_factory=list)


def recognised(root: Path) -> str:
    """The kind of folder, a key of `FORMATS`.

    Raises:
        UserError: when there is nothing in it that is known.
    """
    return "slices" if slice_set_in(root) else _kind_of(walk(root))


def slice_set_in(root: Path) -> Path | None:
    """The folder that holds the splits of the OASIS PNG slice set: this one, or one right below it."""
    for place in (root, *(sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ())):
        if any(path.is_dir() for path in place.glob(f"{SLICE_SET}*")):
            return place
    return None


def survey(
    root: Path, kind: str = "auto", contrast: str | None = None, subject: str | None = None, skip_bad: bool = False
) -> Found:
    """The scans of one contrast in a folder, or the one file that is named.

    Args:
        kind: a key of `FORMATS` but "slices"; "auto" recognises it. contrast: which to take, by default the T1 where there are
            several, "all" for every scan. subject: a regular expression that finds the person in a path.
        skip_bad: whether links to files that are not there are left out.

    Raises:
        UserError: when nothing is found, several contrasts are and none is to be preferred, or files are not there.
    """
    tree = walk(root)
    kind = _kind_of(tree) if kind == "auto" else kind
    files, notes = _files_of(tree, kind, contrast)
    stems = stems_of(files)
    files, said = scans_by_name(files, tree, contrast)
    whose = identify(files, tree.root, kind == "images", subject, stems)
    whose, more = one_contrast(whose, tree, contrast)
    whose, gone = _present(whose, tree, skip_bad)
    scans = _image_scans(whose, tree.root) if kind == "images" else _volume_scans(whose, tree.root)
    scans, doubt = _numbered(scans)
    notes = [_grouping(whose, tree), *notes, *said, *more, *gone, *doubt, *_not_read(tree, kind)]
    return Found(kind, natsorted(scans, key=lambda scan: (printable(scan.subject), printable(scan.name))), notes)


def _kind_of(tree: Tree) -> str:
    for kind in ("oasis1", "bids"):
        if _files_of_kind(tree, kind, None):
            return kind
    if tree.volumes and not (_are_slices(tree.volumes) or (tree.images and not _any_scan(tree))):
        return "volumes"
    if tree.volumes or tree.images:
        return "images"
    raise _nothing(tree)


def _any_scan(tree: Tree) -> bool:
    try:
        return bool(scans_by_name(tree.volumes, tree, None)[0])
    except UserError:
        return False


def _are_slices(volumes: Sequence[Path]) -> bool:
    """Whether volumes are planes, each of them a slice: the first, the middle and the last one are."""
    some = {volumes[0], volumes[len(volumes) // 2], volumes[-1]}
    return all(is_plane(path) for path in some)


def _nothing(tree: Tree) -> UserError:
    where = printable(tree.root)
    for count, what, example, todo in other_kinds(tree)[:1]:
        return UserError(
            f"{where}: no train slices found, but {_of_kind(count, what)}, such as {tree.inner(example)}; {todo}"
        )
    return UserError(f"{where}: no train slices found; expected {'; or '.join(FORMATS.values())}")


def _of_kind(count: int, what: str) -> str:
    return counted(count, what, re.sub(r"^(file|picture|surface)|(file|archive)$", lambda word: word[0] + "s", what))


def _files_of(tree: Tree, kind: str, contrast: str | None) -> tuple[list[Path], list[str]]:
    """The files of a kind of folder, and what is to be said of the others.

    Raises:
        UserError: when there are none.
    """
    files = _files_of_kind(tree, kind, contrast)
    if not files:
        raise UserError(f"{printable(tree.root)}: --format {kind} finds nothing there; expected {FORMATS[kind]}")
    taken = {*files}
    others = [path for path in tree.volumes if path not in taken] if kind in ("oasis1", "bids") else []
    if not others:
        return files, []
    where = FORMATS[kind].split(",")[0]
    return files, [
        f"left out {counted(len(others), 'volume')} that are no part of {where} (such as {tree.inner(others[0])}); --format "
        f"volumes looks at them"
    ]


def _files_of_kind(tree: Tree, kind: str, contrast: str | None) -> list[Path]:
    if kind == "oasis1":
        return [
            path for path in tree.volumes if path.name.endswith("_t88_masked_gfc.hdr") and path.parent.name == "T88_111"
        ]
    if kind == "bids":
        inner = {path: path.relative_to(tree.root).as_posix() for path in tree.volumes}
        files = [path for path, name in inner.items() if BIDS_SCAN.search(name)]
        raw = [path for path in files if not NOT_RAW.search(inner[path])]
        top = [path for path in raw if BIDS_AT_THE_TOP.match(inner[path])]
        if contrast not in (None, "all") and files:
            return [path for path in tree.volumes if "sub-" in path.name]
        return top or raw or files
    planes = tree.volumes if kind == "images" and tree.volumes and _are_slices(tree.volumes) else []
    return tree.volumes if kind == "volumes" else [*tree.images, *planes]


def _not_read(tree: Tree, kind: str) -> list[str]:
    """What is to be said of files of other kinds that lie beside those that are read."""
    notes = [
        f"left out {_of_kind(count, what)} (such as {tree.inner(example)}); {todo}"
        for count, what, example, todo in other_kinds(tree)
        if what != "surface or tract"
    ]
    if kind != "images" and tree.images:
        images = f"{counted(len(tree.images), 'image')} (such as {tree.inner(tree.images[0])})"
        notes.append(f"left out {images}, since there are volumes; --format images takes them instead")
    return notes


def _present(whose: list[Whose], tree: Tree, skip_bad: bool) -> tuple[list[Whose], list[str]]:
    """The scans whose files are there.

    Raises:
        UserError: when a file is a link to what is not there, unless such files are left out.
    """
    gone = [one for one in whose if one.path in tree.dangling]
    if not gone:
        return whose, []
    said = links_to_nothing(len(gone), len(whose), tree.inner(gone[0].path))
    if not skip_bad or len(gone) == len(whose):
        raise UserError(f"{printable(tree.root)}: {said}, or leave them out with --skip_bad")
    return [one for one in whose if one.path not in tree.dangling], [f"left out: {said}"]


def _grouping(whose: list[Whose], tree: Tree) -> str:
    """Whose scans they were taken for, with two examples, and how to say it otherwise."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for one in whose:
        paths[one.person].append(one.path)
    people = {how: {one.person for one in whose if one.how == how} for how in dict.fromkeys(one.how for one in whose)}
    by = " and ".join(f"{len(some)} by {how}" if len(people) > 1 else f"by {how}" for how, some in people.items())
    examples = ", ".join(
        f"`{printable(person)}` <- {tree.inner(some[0])}" + (f" and {len(some) - 1} more" if len(some) > 1 else "")
        for person, some in list(paths.items())[:2]
    )
    leak = "; slices of one person may be in several splits" if BY_ITSELF in people else ""
    return (
        f"whose scan: {counted(len(paths), 'person', 'people')} {by}, such as {examples}{leak}; wrong? name the person by "
        "folder, or give --subject REGEX"
    )


def _volume_scans(whose: Sequence[Whose], root: Path) -> list[Scan]:
    """A scan a volume: BIDS files are called as they are, OASIS ones after the session, others after their person, if that is
    enough to tell them apart."""
    names = [_volume_name(one) for one in whose]
    often = Counter(names)
    return [
        Scan(
            (one.path,),
            one.person,
            name if often[name] == 1 else str(one.path.relative_to(root).with_name(stem_of(one.path.name))),
            session=one.session,
            split=one.split,
            label=one.label,
        )
        for one, name in zip(whose, names)
    ]


def _volume_name(one: Whose) -> str:
    if one.person.startswith("sub-"):
        return stem_of(one.path.name)
    return f"{one.person}_{one.session}" if re.match(r"OAS[12]", one.person) and one.session else one.person


def _image_scans(whose: Sequence[Whose], root: Path) -> list[Scan]:
    """Images of one person and visit in one folder are one scan, unless numbers among them repeat: then those whose names differ
    in the number alone are."""
    together: dict[tuple[str, str, Path], list[Whose]] = defaultdict(list)
    for one in whose:
        together[one.person, one.session, one.path.parent].append(one)
    stacks = []
    for some in together.values():
        numbers = [one.number for one in some]
        if len(set(numbers)) == len(numbers) or None in numbers:
            stacks.append(some)
            continue
        by_prefix: dict[str, list[Whose]] = defaultdict(list)
        for one in some:
            by_prefix[re.sub(rf"0*{one.number}(?!.*0*{one.number})", "#", one.path.stem)].append(one)
        stacks += by_prefix.values()
    often = Counter(stack[0].person for stack in stacks)
    return [_image_scan(stack, root, often[stack[0].person] == 1) for stack in stacks]


def _image_scan(stack: list[Whose], root: Path, alone: bool) -> Scan:
    numbers = [one.number for one in stack]
    numbered = None not in numbers and len(set(numbers)) == len(numbers)
    if numbered:
        stack = sorted(stack, key=lambda one: one.number)
    first = stack[0]
    name = (
        first.person if alone else f"{first.person}: {first.path.relative_to(root).with_name(stem_of(first.path.name))}"
    )
    return Scan(
        tuple(one.path for one in stack),
        first.person,
        name,
        tuple(sorted(numbers)) if numbered else None,
        first.session,
        first.split,
        first.label,
    )


def _numbered(scans: list[Scan]) -> tuple[list[Scan], list[str]]:
    """Scans without the numbers that do not look like those of slices, and what is to be said of it."""
    known = [scan.numbers for scan in scans if scan.numbers is not None]
    if known and max(map(len, known)) == 1:
        return [replace(scan, numbers=None) for scan in scans], []
    doubt = believable(known)
    if not doubt:
        return scans, []
    return [replace(scan, numbers=None) for scan in scans], [
        f"the numbers in the names {doubt}: they give an order, no slice positions"
    ]
