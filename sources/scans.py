"""What a folder holds: of which kind it is, its scans, and whose they are."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from natsort import natsorted

from common.errors import UserError
from sources.images import SUFFIXES as IMAGE_SUFFIXES
from sources.volumes import SUFFIXES as VOLUME_SUFFIXES

FORMATS = {
    "slices": "the OASIS PNG slice set, keras_png_slices_*/case_<subject>_slice_<n>.nii.png",
    "oasis1": "OASIS-1 discs, OAS1_*/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc.hdr",
    "bids": "BIDS, sub-*/anat/*_T1w.nii.gz",
    "volumes": "volumes (.nii, .nii.gz, .hdr, .mgz)",
    "images": "images (.png, .jpg, .tif, .bmp)",
}
OASIS_SCAN = re.compile(r"((OAS1_\d{4})_(MR\d+))", re.IGNORECASE)
BIDS_SCAN = re.compile(r"(sub-[^_/]+)(?:_(ses-[^_/]+))?")
NUMBERED = re.compile(
    r"(?P<subject>.+?)[_-]*(?:slice|slc|axial|img|image|z|s)?[_-]?(?P<number>\d+)(\.nii)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Scan:
    """A volume, or the images of one scan: `files` in order; `name` tells the scans of a subject apart; `session` is the visit it
    is of, such as MR1, "" where nothing says it."""

    files: tuple[Path, ...]
    subject: str
    name: str
    numbers: tuple[int, ...] | None = None
    session: str = ""


def recognised(root: Path) -> str:
    """The kind of folder, a key of `FORMATS`.

    Raises:
        UserError: when there is nothing in it that is known.
    """
    if any(path.is_dir() for path in root.glob("keras_png_slices_*")):
        return "slices"
    for kind in ("oasis1", "bids", "volumes", "images"):
        if next(iter(_FINDERS[kind](root)), None) is not None:
            return kind
    raise UserError(f"{root}: no train slices found; expected {'; or '.join(FORMATS.values())}")


def find_scans(root: Path, kind: str) -> list[Scan]:
    """Every scan in a folder of a kind, in natural order; a subject's scans stand together."""
    paths = natsorted(_FINDERS[kind](root), key=lambda path: str(path.relative_to(root)))
    if not paths:
        raise UserError(f"{root}: --format {kind} finds nothing there; expected {FORMATS[kind]}")
    neighbours = Counter(path.parent for path in paths)
    scans = (
        _image_scans(root, paths)
        if kind == "images"
        else [_volume_scan(root, path, kind, neighbours[path.parent] == 1) for path in paths]
    )
    return natsorted(scans, key=lambda scan: (scan.subject, scan.name))


def _oasis_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*_t88_masked_gfc.hdr") if path.parent.name == "T88_111"]


def _bids_files(root: Path) -> list[Path]:
    found = [*root.glob("sub-*/anat/*_T1w.nii*"), *root.glob("sub-*/ses-*/anat/*_T1w.nii*")]
    return [path for path in found if path.name.endswith((".nii", ".nii.gz"))]


def _volume_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.lower().endswith(VOLUME_SUFFIXES) and path.is_file()]


def _image_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]


_FINDERS: dict[str, Callable[[Path], list[Path]]] = {
    "oasis1": _oasis_files,
    "bids": _bids_files,
    "volumes": _volume_files,
    "images": _image_files,
}


def _volume_scan(root: Path, path: Path, kind: str, alone: bool) -> Scan:
    """Sessions of an OASIS or BIDS subject are one subject; else a folder that holds one volume names the subject, else the file.

    alone: whether the volume is the only one in its folder."""
    stem = re.sub(r"\.(nii|nii\.gz|hdr|mgz|mgh)$", "", path.name, flags=re.IGNORECASE)
    oasis, bids = OASIS_SCAN.search(str(path.relative_to(root))), BIDS_SCAN.match(path.name)
    if oasis and kind != "bids":
        return Scan((path,), oasis[2].upper(), oasis[1].upper(), session=oasis[3].upper())
    if bids:
        return Scan((path,), bids[1], stem, session=bids[2] or "")
    named = path.parent if alone and path.parent != root else path.with_name(stem)
    subject = str(named.relative_to(root))
    return Scan((path,), subject, subject)


def _image_scans(root: Path, paths: Sequence[Path]) -> list[Scan]:
    """Images of one folder below the root are one subject; of the root itself those whose names differ in the last number."""
    groups: dict[str, list[tuple[Path, int | None]]] = {}
    for path in paths:
        match = NUMBERED.fullmatch(path.stem)
        below = path.parent != root
        subject = str(path.parent.relative_to(root)) if below else match["subject"] if match else path.stem
        groups.setdefault(subject, []).append((path, int(match["number"]) if match else None))
    scans = []
    for subject, members in groups.items():
        numbers = [number for _, number in members]
        numbered = None not in numbers and len(set(numbers)) == len(numbers) > 1
        if numbered:
            members = sorted(members, key=lambda member: member[1])
        files = tuple(path for path, _ in members)
        scans.append(Scan(files, subject, subject, tuple(number for _, number in members) if numbered else None))
    return scans
