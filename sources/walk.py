"""The files below a folder, by one walk for every kind of data: links are followed, what systems leave behind is passed over.

tree = walk(Path("study"))
tree.volumes, tree.images, tree.others      # in natural order; tree.dangling are those whose content is not here
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from natsort import natsorted

from common.errors import UserError, printable
from sources.images import SUFFIXES as IMAGE_SUFFIXES
from sources.volumes import SUFFIXES as VOLUME_SUFFIXES

# surf/ of FreeSurfer holds values of the points of a surface, stored as if they were volumes
NEVER_ENTERED = {"__MACOSX", "surf", "__pycache__", "node_modules", "lost+found", "@eaDir", "$RECYCLE.BIN"}
SLICE_SET = "keras_png_slices_"  # what the folders of the OASIS PNG slice set are called, before the split
TO_NIFTI = "make NIfTI files of them first, with dcm2niix -z y -o NIFTI {root}, and give --data NIFTI"
UNPACK = "unpack first, with {tool}, and give the folder"
# what a file is by the end of its name, and what to do about it
OTHER_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"\.(dcm|dicom|ima)(\.gz)?", "DICOM file", TO_NIFTI),
    (r"\.zip", "zip archive", UNPACK.format(tool="unzip")),
    (r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))", "tar archive", UNPACK.format(tool="tar -xf")),
    (r"\.(7z|rar)", "7z or rar archive", UNPACK.format(tool="7z x")),
    (r"\.(par|rec)", "PAR or REC file", TO_NIFTI),
    (r"\.(head|brik)(\.gz)?", "AFNI file", "make NIfTI files of them first, with 3dAFNItoNIFTI"),
    (r"\.(mnc|mnc2)(\.gz)?", "MINC file", "make NIfTI files of them first, with mnc2nii"),
    (r"\.(nrrd|nhdr|mha|mhd)", "NRRD or MetaImage file", "make NIfTI files of them first, with SimpleITK or 3D Slicer"),
    (r"\.(npy|npz|h5|hdf5|mat|pt|pkl|tfrecords?)", "file of arrays", "save them as NIfTI (nibabel) or PNG (Pillow) first"),
    (r"\.(gif|webp|jp2|heic|svs|pdf)", "picture of a kind that is not read", "save them as PNG first, with convert"),
    (r"\.(gii|annot|label|trk|tck|vtk)(\.gz)?", "surface or tract", "they hold no volume"),
)  # fmt: skip


@dataclass(frozen=True)
class Tree:
    """What lies below `root`, each list in natural order. dangling: files that are links to what is not there."""

    root: Path
    volumes: list[Path]
    images: list[Path]
    others: list[Path]
    dangling: frozenset[Path] = frozenset()

    def inner(self, path: Path) -> str:
        """A file's path from the root on, as it can be printed."""
        return printable(path.relative_to(self.root))


def walk(place: Path) -> Tree:
    """All files below a folder, or the one file that is named.

    A folder that is reached twice counts once, under its own name where it has one there, so links cannot loop.

    Raises:
        UserError: when a folder cannot be read.
    """
    if not place.is_dir():
        return _sorted_out(place.parent, [place], frozenset())
    files, dangling, linked = [], set(), []
    seen, ahead = set(), [str(place)]
    while ahead or linked:
        folder = ahead.pop() if ahead else linked.pop(0)
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in _entries(folder):
            if entry.name.startswith(".") or entry.name in NEVER_ENTERED:
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else ahead).append(entry.path)
                continue
            files.append(Path(entry.path))
            if entry.is_symlink() and not os.path.exists(entry.path):
                dangling.add(files[-1])
    return _sorted_out(place, files, frozenset(dangling))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{printable(folder)}: the folder cannot be read ({error.strerror}); mend its permissions"
        ) from None


def _sorted_out(root: Path, files: Iterable[Path], dangling: frozenset[Path]) -> Tree:
    volumes, images, others = [], [], []
    for path in natsorted(files, key=lambda path: printable(path.relative_to(root))):
        name = path.name.lower()
        kind = (
            volumes if name.endswith(VOLUME_SUFFIXES) else images if path.suffix.lower() in IMAGE_SUFFIXES else others
        )
        kind.append(path)
    return Tree(root, volumes, images, others, dangling)


def other_kinds(tree: Tree) -> list[tuple[int, str, Path, str]]:
    """Files that hold pictures, but are of no kind that is read: how many, what one is, an example, what to do; most first."""
    found: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], Path] = {}
    for path in tree.others:
        kind = _other_kind(path)
        if kind is not None:
            found[kind] += 1
            example.setdefault(kind, path)
    return [
        (count, what, example[what, todo], todo.format(root=printable(tree.root)))
        for (what, todo), count in found.most_common()
    ]


def _other_kind(path: Path) -> tuple[str, str] | None:
    for pattern, what, todo in OTHER_KINDS:
        if re.search(pattern + "$", path.name, re.IGNORECASE):
            return what, todo
    if re.search(r"\.[A-Za-z]\w*$", path.name) is None and _is_dicom(path):
        return OTHER_KINDS[0][1:]
    return None


def _is_dicom(path: Path) -> bool:
    """Whether a file without an ending is DICOM, by its magic word."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def links_to_nothing(count: int, of: int, example: str) -> str:
    """What is to be said of links to files that are not there, as git-annex and DataLad leave them."""
    return (
        f"{count} of {of} files are links to what is not there, such as {example}; get them with datalad get PATH or "
        "git annex get PATH"
    )
