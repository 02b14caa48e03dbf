"""Scans into one memory-mapped array: decoded once, in parallel, a few in memory at a time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, printable
from common.files import cached_array, digest, write_json
from common.runtime import ProgressFactory
from sources.content import NotAScan
from sources.images import DECODING, check_name, decode_images, in_parallel, resized, survey
from sources.intensities import Scale
from sources.options import DataOptions
from sources.scans import Scan
from sources.volumes import READING, Space, output_space, read_slices

TALLEST = 1.25  # times the median size, that slices are cropped to where a few volumes are much larger than the others


@dataclass(frozen=True)
class Decoded:
    """What became of scans, in the order they were given.

    images: `[N, H, W]` uint8, without what was left out. names, numbers: of each scan the names and the numbers of its slices;
    none for one that was left out; numbers are None where nobody knows them. left_out: the reason by file.
    space: of the first volume, and the planes that its slices are; size: (rows, columns) of slices before --image_size.
    notes: what the user should know. grey: the scale of images of more than 8 bits.
    """

    images: np.ndarray
    names: list[list[str]]
    numbers: list[list[int] | None]
    left_out: dict[Path, str] = field(default_factory=dict)
    space: tuple[Space, list[int]] | None = None
    notes: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    grey: Scale | None = None


def decoded_volumes(
    root: Path, scans: Sequence[Scan], options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> Decoded:
    """All slices of all readable volumes, one stretch a volume."""
    place = _cache_place(root, options, cache)
    stats = [
        [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in _with_image(scan)]
        for scan in scans
    ]
    key = digest("volumes", READING, options.volumes, options.image_size, options.skip_bad, stats)
    side = place.with_suffix(".scans.json")

    def fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        write_json(side, _read_volumes(make, root, scans, options, progress))

    images = cached_array(place, key, fill)
    said = json.loads(side.read_text())
    bad, no_scans, guessed = (
        {scans[int(index)].files[0]: what for index, what in said[kind].items()}
        for kind in ("bad", "no_scans", "guessed")
    )
    _say_left_out(bad)
    _say_grouped(root, {path: f"left out {{}} that hold{{}} {what}" for path, what in no_scans.items()})
    _say_grouped(root, {path: f"{{}} say{{}} {what}" for path, all_of in guessed.items() for what in all_of[:1]})
    left_out = bad | {path: f"{path}: it holds {what}, no scan" for path, what in no_scans.items()}
    left_out = {scan.files[0]: left_out[scan.files[0]] for scan in scans if scan.files[0] in left_out}
    if options.volumes.window is not None:
        print(Scale(*options.volumes.window), flush=True)
    kept = [[] if scan.files[0] in left_out else list(range(options.slices)) for scan in scans]
    names = [[f"{scan.name}_slice_{i}" for i in numbers] for scan, numbers in zip(scans, kept)]
    first = said["first"]
    space = Space(tuple(first["shape"]), np.array(first["affine"]))
    return Decoded(
        images[: sum(map(len, kept))],
        names,
        kept,
        left_out,
        (space, first["planes"]),
        _notes(root, bad),
        size=tuple(first["size"]),
    )


def _say_left_out(left_out: dict[Path, str]) -> None:
    for reason in left_out.values():
        print(f"left out: {reason}", flush=True)


def _notes(root: Path, left_out: dict[Path, str]) -> list[str]:
    return [f"left out {printable(path.relative_to(root))}" for path in left_out]


def _say_grouped(root: Path, said: dict[Path, str]) -> None:
    """One line for all files of which the same is said, with their count and an example."""
    for what in dict.fromkeys(said.values()):
        files = [path for path, other in said.items() if other == what]
        count, ending = (f"{len(files)} files", "") if len(files) > 1 else ("1 file", "s")
        print(f"{what.format(count, ending)}, such as {files[0].relative_to(root)}", flush=True)


@dataclass
class _Attempts:
    """Work on volumes, some of which cannot be read. bad: why, by their index; no_scans: what others hold instead of a scan."""

    scans: Sequence[Scan]
    skip_bad: bool
    bad: dict[int, str] = field(default_factory=dict)
    no_scans: dict[int, str] = field(default_factory=dict)

    def __call__(self, index: int, work: Callable[[Path], Any]) -> Any:
        """What the work on a volume gives, None where it cannot be read and may be left out."""
        try:
            check_name(self.scans[index].files[0])
            return work(self.scans[index].files[0])
        except NotAScan as error:
            self.no_scans[index] = error.reason
        except UserError as error:
            if not self.skip_bad:
                raise
            self.bad[index] = str(error)
        return None

    @property
    def failed(self) -> set[int]:
        return {*self.bad, *self.no_scans}

    def none_readable(self, root: Path) -> UserError:
        first = min(self.bad or self.no_scans)
        holds = f"{self.scans[first].files[0]} holds {self.no_scans.get(first)}, no scan"
        reason = self.bad.get(first, holds)
        return UserError(f"{root}: none of its {len(self.scans)} volumes can be read; the first: {reason}")


def _read_volumes(
    make: Callable[[tuple[int, ...]], np.ndarray],
    root: Path,
    scans: Sequence[Scan],
    options: DataOptions,
    progress: ProgressFactory | None,
) -> dict[str, Any]:
    """Fill the array that `make` gives for its shape with the slices of all readable volumes, first to last without a gap.

    Returns:
        bad: the reason by the index of each volume that cannot be read. no_scans: likewise, what those hold that are no scans.
        guessed: what the headers of some say wrongly, by their index. first: shape, affine and planes of the first one.
    """
    tried = _Attempts(scans, options.skip_bad)
    spaces = [tried(index, lambda path: output_space(path, options.volumes)) for index in range(len(scans))]
    sizes = [space.slice_size(options.axis) for space in spaces if space is not None]
    if not sizes:
        raise tried.none_readable(root)
    size = common_size(sizes)
    final = (options.image_size,) * 2 if options.image_size else size
    array = make((len(scans) * options.slices, *final))
    stretches = array.reshape(len(scans), options.slices, *final)
    planes: dict[int, list[int]] = {}

    def decode(index: int) -> None:
        if spaces[index] is None:
            return
        found = tried(index, lambda path: read_slices(path, options.volumes, size))
        if found is not None:
            slices, planes[index] = found
            stretches[index] = slices if final == size else np.stack([resized(image, final) for image in slices])

    in_parallel(decode, len(scans), progress, f"reading {root.name}", "volume")
    kept = [index for index in range(len(scans)) if index not in tried.failed]
    if not kept:
        raise tried.none_readable(root)
    for to, index in enumerate(kept):
        if to != index:  # the readable ones close ranks
            stretches[to] = stretches[index]
    first = spaces[kept[0]]
    place = {"shape": first.shape, "affine": first.affine.tolist(), "planes": planes[kept[0]], "size": size}
    guessed = {index: space.guessed for index, space in enumerate(spaces) if space is not None and space.guessed}
    return {
        "bad": dict(sorted(tried.bad.items())),
        "no_scans": dict(sorted(tried.no_scans.items())),
        "guessed": guessed,
        "first": place,
    }


def _with_image(scan: Scan) -> list[Path]:
    """A scan's files, the voxels of an Analyze header included."""
    return [path for file in scan.files for path in (file, file.with_suffix(".img")) if path.exists()]


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size that slices of these sizes are brought to: the largest, unless that is far above the median."""
    rows, columns = (int(min(max(lengths), np.ceil(TALLEST * np.median(lengths)))) for lengths in zip(*sizes))
    return rows, columns


def decoded_images(
    root: Path, scans: Sequence[Scan], options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> Decoded:
    """All images of all scans, in order; with --skip_bad, without the unreadable ones. Of a stack each page is a slice."""
    place = _cache_place(root, options, cache)
    files = [file for scan in scans for file in scan.files]
    found = survey(files, options.volumes.window, options.skip_bad, place.with_suffix(".survey.json"), progress)
    left_out = {files[index]: reason for index, reason in found.left_out.items()}
    if not any(found.pages):
        raise UserError(f"{root}: none of its images can be read; the first: {next(iter(left_out.values()))}")
    stats = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = digest("images", DECODING, options.image_size, found.scale, found.pages, stats)
    _say_left_out(left_out)
    if found.scale is not None:
        print(found.scale, flush=True)
    images = cached_array(
        place,
        key,
        lambda make: decode_images(files, options.image_size, make, f"decoding {root.name}", progress, found),
    )
    pages = iter(found.pages)
    slices = [_slices_of(scan, [next(pages) for _ in scan.files]) for scan in scans]
    names, numbers = [names for names, _ in slices], [numbers for _, numbers in slices]
    return Decoded(images, names, numbers, left_out, notes=_notes(root, left_out), grey=found.scale)


def _slices_of(scan: Scan, pages: Sequence[int]) -> tuple[list[str], list[int] | None]:
    """Names and numbers of the slices of a scan of images, whose files have so many pages; none of those that were left out.

    Where all files are stacks, pages are numbered from 0 in each; where some are, nobody knows how they follow each other.
    """
    files = [(file, count) for file, count in zip(scan.files, pages) if count]
    names = [
        file.name if count == 1 else f"{file.stem}_slice_{page}{file.suffix}"
        for file, count in files
        for page in range(count)
    ]
    if all(count > 1 for _, count in files):
        return names, [page for _, count in files for page in range(count)]
    if scan.numbers is None or any(count > 1 for _, count in files):
        return names, None
    return names, [number for number, count in zip(scan.numbers, pages) if count]


def _cache_place(root: Path, options: DataOptions, cache: Path) -> Path:
    about = digest(str(root.resolve()), options.volumes, options.split, options.split_file, options.skip_bad)
    return cache / f"scans-{about[:12]}-{options.image_size or 'own'}.npy"
