"""Whatever holds slices: which kind of folder it is, whose scans are in it, which split each subject belongs to.

    data = load(DataOptions(data="data/bids"), cache=".cache")     # a Dataset, as from dataset.load_folder

Recognised are the OASIS PNG slice set, OASIS-1 discs, BIDS folders, folders of volumes and folders of images (`FORMATS`); the
built-in cohort stands in where no folder is given. Scans are decoded once into a memory-mapped cache, in parallel, a few in
memory at a time.
"""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsorted
from PIL import Image

from conditions import Condition, join, read_table
from dataset import (
    SPLITS,
    DataError,
    Dataset,
    ProgressFactory,
    Split,
    cached_array,
    decode_image,
    digest,
    load_cohort,
    load_folder,
    silent,
)
from volumes import SUFFIXES, Space, VolumeOptions, output_space, read_slices

FORMATS = {
    "slices": "the OASIS PNG slice set, keras_png_slices_*/case_<subject>_slice_<n>.nii.png",
    "oasis1": "OASIS-1 discs, OAS1_*/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc.hdr",
    "bids": "BIDS, sub-*/anat/*_T1w.nii.gz",
    "volumes": "volumes (.nii, .nii.gz, .hdr, .mgz)",
    "images": "images (.png, .jpg, .tif, .bmp)",
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
OASIS_SCAN = re.compile(r"((OAS1_\d{4})_MR\d+)", re.IGNORECASE)
BIDS_SCAN = re.compile(r"(sub-[^_/]+)(?:_(ses-[^_/]+))?")
NUMBERED = re.compile(
    r"(?P<subject>.+?)[_-]*(?:slice|slc|axial|img|image|z|s)?[_-]?(?P<number>\d+)(\.nii)?", re.IGNORECASE
)
TALLEST = 1.25  # times the median size, that slices are cropped to where a few volumes are much larger than the others


@dataclass(frozen=True)
class DataOptions:
    """Where slices come from and how; the flags of `train.py` of the same names."""

    data: str | None = None
    format: str = "auto"
    image_size: int | None = None
    axis: str = "axial"
    spacing: float = 1.0
    slices: int = 32
    slice_range: str | None = None
    split: str = "85,10,5"
    split_file: str | None = None
    skip_bad: bool = False
    table: str | None = None
    condition: str | None = None

    @classmethod
    def of(cls, flags: dict[str, Any]) -> "DataOptions":
        """From a run's flags; those that are not about data are left out."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in flags.items() if name in names})

    @property
    def volumes(self) -> VolumeOptions:
        ends = None if self.slice_range is None else _range_of(self.slice_range)
        return VolumeOptions(self.axis, self.spacing, self.slices, ends)

    @property
    def conditions(self) -> list[str]:
        return [name.strip() for name in (self.condition or "").split(",") if name.strip()]

    def check(self) -> None:
        """Raise DataError for a value that cannot work."""
        if not 0.1 <= self.spacing <= 20:
            raise DataError(f"--spacing is {self.spacing:g}; expected 0.1 to 20 mm")
        if not 1 <= self.slices <= 1024:
            raise DataError(f"--slices is {self.slices}; expected 1 to 1024 of each volume")
        if (self.table is None) != (not self.conditions):
            raise DataError("--table and --condition go together: a file, and which of its columns to use")
        if len(set(self.conditions)) < len(self.conditions) or "position" in self.conditions:
            raise DataError(
                f"--condition is {self.condition}; expected different columns, none of them called position"
            )
        _shares_of(self.split)
        if self.slice_range is not None:
            _range_of(self.slice_range)


@dataclass(frozen=True)
class Scan:
    """A volume, or the images of one scan: `files` in order; `name` tells the scans of a subject apart."""

    files: tuple[Path, ...]
    subject: str
    name: str
    numbers: tuple[int, ...] | None = None


def load(
    options: DataOptions,
    cache: str | Path = ".cache",
    progress: ProgressFactory | None = None,
    required: str | None = "train",
    slices_per_subject: int | None = None,
    known: dict[str, Condition] | None = None,
) -> Dataset:
    """The slices that the options name.

    Args:
        options: what to read.
        cache: folder for decoded slices.
        progress: makes the bar shown while decoding, such as `utils.Progress`.
        required, slices_per_subject: as in `dataset.load_folder`.
        known: the conditions of a run that the data is scored by; they are found in the table where not given.

    Raises:
        DataError: when the folder is of no known kind, or a file in it cannot be used.
    """
    options.check()
    if options.data is None:
        data = load_cohort(options.image_size, cache, progress)
    else:
        root = Path(options.data)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; expected one that holds {'; or '.join(FORMATS.values())}")
        kind = recognised(root) if options.format == "auto" else options.format
        if kind == "slices":
            data = load_folder(root, cache, options.image_size, progress, required, slices_per_subject)
        else:
            data = _load_scans(root, kind, options, Path(cache), progress, required, slices_per_subject)
    return data if options.table is None else _with_conditions(data, options, known)


def recognised(root: Path) -> str:
    """The kind of folder, a key of `FORMATS`.

    Raises:
        DataError: when there is nothing in it that is known.
    """
    if any(path.is_dir() for path in root.glob("keras_png_slices_*")):
        return "slices"
    for kind in ("oasis1", "bids", "volumes", "images"):
        if next(iter(_FINDERS[kind](root)), None) is not None:
            return kind
    raise DataError(f"{root}: no train slices found; expected {'; or '.join(FORMATS.values())}")


# --------------------------------------------------------------------------- whose scans


def find_scans(root: Path, kind: str) -> list[Scan]:
    """Every scan in a folder of a kind, in natural order; a subject's scans stand together."""
    paths = natsorted(_FINDERS[kind](root), key=lambda path: str(path.relative_to(root)))
    if not paths:
        raise DataError(f"{root}: --format {kind} finds nothing there; expected {FORMATS[kind]}")
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
    return [path for path in root.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file()]


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
        return Scan((path,), oasis[2].upper(), oasis[1].upper())
    if bids:
        return Scan((path,), bids[1], stem)
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


# --------------------------------------------------------------------------- splits


def assign_splits(subjects: Sequence[str], shares: str, split_file: str | None) -> dict[str, str]:
    """The split of each subject: what the file says, else by a hash of the subject's name, which stays as it is when others come.

    Raises:
        DataError: when the file cannot be read or names no split.
    """
    given = read_split_file(split_file) if split_file else {}
    train, validate, _ = _shares_of(shares)

    def by_hash(subject: str) -> str:
        place = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64 * 100
        return "train" if place < train else "validate" if place < train + validate else "test"

    return {subject: given.get(subject) or by_hash(subject) for subject in dict.fromkeys(subjects)}


def read_split_file(path: str) -> dict[str, str]:
    """The splits of a `split.csv` with the columns subject and split."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        splits = {row["subject"]: row["split"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--split_file {path}: not a readable table ({error})") from None
    except KeyError:
        raise DataError(
            f"--split_file {path}: expected the columns subject and split, as in a run's split.csv"
        ) from None
    for subject, split in splits.items():
        if split not in SPLITS:
            raise DataError(
                f"--split_file {path}: subject {subject} has the split {split}; expected {', '.join(SPLITS)}"
            )
    return splits


def split_table(data: Dataset) -> str:
    """The splits of a dataset's subjects as the text of a `split.csv`."""
    rows = [f"{subject},{name}" for name, split in data.splits.items() for subject in dict.fromkeys(split.subjects)]
    return "\n".join(["subject,split", *rows]) + "\n"


def _shares_of(text: str) -> tuple[float, float, float]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares, default=-1) < 0 or abs(sum(shares) - 100) > 1e-6 or shares[0] == 0:
        raise DataError(
            f"--split is {text}; expected shares of train, validate and test that make 100, such as 85,10,5"
        )
    return shares


def _range_of(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise DataError(f"--slice_range is {text}; expected two shares of the axis, low to high, such as 0.3:0.7")
    return low, high


# --------------------------------------------------------------------------- decoding


def _load_scans(
    root: Path,
    kind: str,
    options: DataOptions,
    cache: Path,
    progress: ProgressFactory | None,
    required: str | None,
    slices_per_subject: int | None,
) -> Dataset:
    scans = find_scans(root, kind)
    assigned = assign_splits([scan.subject for scan in scans], options.split, options.split_file)
    scans = sorted(scans, key=lambda scan: SPLITS.index(assigned[scan.subject]))  # stable: each split is one stretch
    volumes = kind != "images"
    images, bad, space = (_decoded_volumes if volumes else _decoded_images)(root, scans, options, cache, progress)
    notes = [f"left out {name}" for name in bad]
    scans = [scan for scan in scans if scan.name not in bad]
    numbers = [tuple(range(options.slices)) if volumes else scan.numbers for scan in scans]
    known = None not in numbers
    highest = max((max(each) for each in numbers), default=0) if known else 0
    slices = (slices_per_subject or highest + 1) if known else None
    splits, start = {}, 0
    for name in SPLITS:
        here = [(scan, each) for scan, each in zip(scans, numbers) if assigned[scan.subject] == name]
        count = sum(_length(scan, options, volumes) for scan, _ in here)
        if not count:
            notes.append(f"no subject of {root} is in the {name} split")
            continue
        subjects, names = [], []
        for scan, _ in here:
            length = _length(scan, options, volumes)
            subjects += [scan.subject] * length
            names += (
                [f"{scan.name}_slice_{i}" for i in range(length)] if volumes else [file.name for file in scan.files]
            )
        place = np.concatenate([np.array(each) for _, each in here]) if known else None
        positions = None if place is None else (place / max(slices - 1, 1)).astype(np.float32)
        splits[name] = Split(
            images[start : start + count], subjects, names, place, positions, _symmetric(kind, options)
        )
        start += count
    if not splits or (required is not None and required not in splits):
        raise DataError(
            f"{root}: no subject is in the {required or 'first'} split; change --split or give a --split_file"
        )
    geometry = None if space is None or options.image_size else _geometry(*space, options)
    return Dataset(root.resolve().name, splits, slices, notes, kind, geometry)


def _length(scan: Scan, options: DataOptions, volumes: bool) -> int:
    return options.slices if volumes else len(scan.files)


def _symmetric(kind: str, options: DataOptions) -> bool:
    """Whether a slice mirrored across its rows may stand for a slice: of images, nobody says which way they lie."""
    return kind != "images" and options.axis != "sagittal"


def _geometry(space: Space, planes: list[int], options: DataOptions) -> dict[str, Any]:
    """Where slices lie in space, for `config.json`: those of the first volume."""
    return {"axis": options.axis, "shape": list(space.shape), "affine": space.affine.tolist(), "planes": planes}


def _decoded_volumes(
    root: Path, scans: Sequence[Scan], options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> tuple[np.ndarray, dict[str, str], tuple[Space, list[int]]]:
    """All slices of all readable volumes, one stretch a volume; the others by name; space and planes of the first."""
    place = _cache_place(root, options, cache)
    stats = [
        [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _with_image(scan)] for scan in scans
    ]
    names = [scan.name for scan in scans]
    key = digest("volumes", options.volumes, options.image_size, options.skip_bad, names, stats)
    side = place.with_suffix(".scans.json")

    def fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        side.write_text(json.dumps(_read_volumes(make, root, scans, options, progress)))

    images = cached_array(place, key, fill)
    said = json.loads(side.read_text())
    for reason in said["bad"].values():
        print(f"left out: {reason}", flush=True)
    first = said["first"]
    space = Space(tuple(first["shape"]), np.array(first["affine"]))
    kept = len(scans) - len(said["bad"])
    return images[: kept * options.slices], said["bad"], (space, first["planes"])


def _read_volumes(
    make: Callable[[tuple[int, ...]], np.ndarray],
    root: Path,
    scans: Sequence[Scan],
    options: DataOptions,
    progress: ProgressFactory | None,
) -> dict[str, Any]:
    """Fill the array that `make` gives for its shape with the slices of all readable volumes, first to last without a gap.

    Returns:
        bad: the reason by the name of each volume that cannot be read. first: shape, affine and planes of the first one.
    """
    bad: dict[str, str] = {}

    def tried(scan: Scan, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DataError as error:
            if not options.skip_bad:
                raise
            bad[scan.name] = str(error)
            return None

    def none_readable() -> DataError:
        return DataError(f"{root}: none of its {len(scans)} volumes can be read; the first: {next(iter(bad.values()))}")

    spaces = {scan.name: tried(scan, lambda scan=scan: output_space(scan.files[0], options.volumes)) for scan in scans}
    sizes = [space.slice_size(options.axis) for space in spaces.values() if space is not None]
    if not sizes:
        raise none_readable()
    size = common_size(sizes)
    final = (options.image_size,) * 2 if options.image_size else size
    array = make((len(scans) * options.slices, *final))
    stretches = array.reshape(len(scans), options.slices, *final)
    planes: dict[str, list[int]] = {}

    def decode(index: int) -> None:
        scan = scans[index]
        if spaces[scan.name] is None:
            return
        found = tried(scan, lambda: read_slices(scan.files[0], options.volumes, size))
        if found is not None:
            slices, planes[scan.name] = found
            stretches[index] = slices if final == size else np.stack([_resized(image, final) for image in slices])

    _in_parallel(decode, len(scans), progress, f"reading {root.name}", "volume")
    kept = [index for index, scan in enumerate(scans) if scan.name not in bad]
    if not kept:
        raise none_readable()
    for to, index in enumerate(kept):  # the readable ones close ranks
        if to != index:
            stretches[to] = stretches[index]
    first = scans[kept[0]].name
    space = {"shape": spaces[first].shape, "affine": spaces[first].affine.tolist(), "planes": planes[first]}
    return {"bad": bad, "first": space}


def _with_image(scan: Scan) -> list[Path]:
    """A scan's files, the voxels of an Analyze header included."""
    return [path for file in scan.files for path in (file, file.with_suffix(".img")) if path.exists()]


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size that slices of these sizes are brought to: the largest, unless that is far above the median."""
    rows, columns = (int(min(max(lengths), np.ceil(TALLEST * np.median(lengths)))) for lengths in zip(*sizes))
    return rows, columns


def _decoded_images(
    root: Path, scans: Sequence[Scan], options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> tuple[np.ndarray, dict[str, str], None]:
    """All images of all subjects, in order; with --skip_bad, subjects with an unreadable image by name."""
    bad: dict[str, str] = {}
    if options.skip_bad:
        scans, bad = _readable_images(scans)
    files = [file for scan in scans for file in scan.files]
    if not files:
        raise DataError(f"{root}: none of its images can be read; the first: {next(iter(bad.values()))}")
    stats = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        first = decode_image(files[0], options.image_size)
        array = make((len(files), *first.shape))

        def decode(index: int) -> None:
            image = decode_image(files[index], options.image_size)
            if image.shape != first.shape:
                raise DataError(
                    f"{files[index]}: {image.shape[0]}x{image.shape[1]} pixels, but {files[0].name} has "
                    f"{first.shape[0]}x{first.shape[1]}; give --image_size to resample all to one size"
                )
            array[index] = image

        _in_parallel(decode, len(files), progress, f"decoding {root.name}", "image")

    key = digest("images", options.image_size, stats)
    for reason in bad.values():
        print(f"left out: {reason}", flush=True)
    return cached_array(_cache_place(root, options, cache), key, fill), bad, None


def _readable_images(scans: Sequence[Scan]) -> tuple[list[Scan], dict[str, str]]:
    good, bad = [], {}
    for scan in scans:
        try:
            for file in scan.files:
                decode_image(file, None)
            good.append(scan)
        except DataError as error:
            bad[scan.name] = str(error)
    return good, bad


def _cache_place(root: Path, options: DataOptions, cache: Path) -> Path:
    about = digest(str(root.resolve()), options.volumes, options.split, options.split_file, options.skip_bad)
    return cache / f"scans-{about[:12]}-{options.image_size or 'own'}.npy"


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def _in_parallel(
    work: Callable[[int], None], count: int, progress: ProgressFactory | None, title: str, unit: str
) -> None:
    """Do it for 0..count-1, as many at a time as there are processors."""
    with (progress or silent)(count, title, unit) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, range(count)):
            bar.update(1)


# --------------------------------------------------------------------------- conditions


def _with_conditions(data: Dataset, options: DataOptions, known: dict[str, Condition] | None) -> Dataset:
    """The dataset with what the table says of each slice's subject."""
    table = read_table(options.table, options.conditions)
    pairs = [
        (subject, re.sub(r"_slice_\d+.*$", "", name))
        for split in data.splits.values()
        for subject, name in zip(split.subjects, split.names)
    ]
    found, values = join(table, options.conditions, *zip(*pairs), known=known)
    splits, start = {}, 0
    for name, split in data.splits.items():
        here = slice(start, start + len(split))
        splits[name] = replace(split, conditions={column: each[here] for column, each in values.items()})
        start += len(split)
    for column, condition in found.items():
        unknown = {subject for (subject, _), value in zip(pairs, values[column]) if np.isnan(value)}
        print(f"condition {column}: {condition}; unknown of {len(unknown)} of {len({s for s, _ in pairs})} subjects")
    return replace(data, splits=splits, conditions=found)


def describe(data: Dataset) -> str:
    """What the folder was recognised as, in words."""
    if data.kind not in FORMATS:
        return ""
    subjects = Counter(name for name, split in data.splits.items() for _ in set(split.subjects))
    return f"recognised as {FORMATS[data.kind]}, {sum(subjects.values())} subjects; --format forces another"
