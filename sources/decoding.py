"""Scans into one memory-mapped array: decoded once, in parallel, a few in memory at a time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import cached_array, digest, write_json
from common.runtime import ProgressFactory
from sources.images import decode_image, decode_images, in_parallel, resized
from sources.options import DataOptions
from sources.scans import Scan
from sources.volumes import Space, output_space, read_slices

TALLEST = 1.25  # times the median size, that slices are cropped to where a few volumes are much larger than the others


@dataclass(frozen=True)
class Decoded:
    """What became of scans, in the order they were given.

    images: `[N, H, W]` uint8, without what was left out. names, numbers: of each scan the names and the numbers of its slices;
    none for one that was left out; numbers are None where nobody knows them. left_out: the reason by file.
    space: of the first volume, and the planes that its slices are; size: (rows, columns) of slices before --image_size.
    notes: what the user should know.
    """

    images: np.ndarray
    names: list[list[str]]
    numbers: list[list[int] | None]
    left_out: dict[Path, str] = field(default_factory=dict)
    space: tuple[Space, list[int]] | None = None
    notes: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None


def decoded_volumes(
    root: Path, scans: Sequence[Scan], options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> Decoded:
    """All slices of all readable volumes, one stretch a volume."""
    place = _cache_place(root, options, cache)
    stats = [
        [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in _with_image(scan)]
        for scan in scans
    ]
    key = digest("volumes with their size", options.volumes, options.image_size, options.skip_bad, stats)
    side = place.with_suffix(".scans.json")

    def fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        write_json(side, _read_volumes(make, root, scans, options, progress))

    images = cached_array(place, key, fill)
    said = json.loads(side.read_text())
    left_out = {scans[int(index)].files[0]: reason for index, reason in said["bad"].items()}
    _say_left_out(left_out)
    kept = [[] if scan.files[0] in left_out else list(range(options.slices)) for scan in scans]
    names = [[f"{scan.name}_slice_{i}" for i in numbers] for scan, numbers in zip(scans, kept)]
    first = said["first"]
    space = Space(tuple(first["shape"]), np.array(first["affine"]))
    return Decoded(
        images[: sum(map(len, kept))], names, kept, left_out, (space, first["planes"]), size=tuple(first["size"])
    )


def _say_left_out(left_out: dict[Path, str]) -> None:
    for reason in left_out.values():
        print(f"left out: {reason}", flush=True)


def _read_volumes(
    make: Callable[[tuple[int, ...]], np.ndarray],
    root: Path,
    scans: Sequence[Scan],
    options: DataOptions,
    progress: ProgressFactory | None,
) -> dict[str, Any]:
    """Fill the array that `make` gives for its shape with the slices of all readable volumes, first to last without a gap.

    Returns:
        bad: the reason by the index of each volume that cannot be read. first: shape, affine and planes of the first one.
    """
    bad: dict[int, str] = {}

    def tried(index: int, work: Callable[[Path], Any]) -> Any:
        try:
            return work(scans[index].files[0])
        except UserError as error:
            if not options.skip_bad:
                raise
            bad[index] = str(error)
            return None

    def none_readable() -> UserError:
        return UserError(f"{root}: none of its {len(scans)} volumes can be read; the first: {bad[min(bad)]}")

    spaces = [tried(index, lambda path: output_space(path, options.volumes)) for index in range(len(scans))]
    sizes = [space.slice_size(options.axis) for space in spaces if space is not None]
    if not sizes:
        raise none_readable()
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
    kept = [index for index in range(len(scans)) if index not in bad]
    if not kept:
        raise none_readable()
    for to, index in enumerate(kept):  # the readable ones close ranks
        if to != index:
            stretches[to] = stretches[index]
    first = spaces[kept[0]]
    space = {"shape": first.shape, "affine": first.affine.tolist(), "planes": planes[kept[0]], "size": size}
    return {"bad": dict(sorted(bad.items())), "first": space}


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
    """All images of all scans, in order; with --skip_bad, without the unreadable ones."""
    files = [file for scan in scans for file in scan.files]
    left_out = _unreadable_images(files) if options.skip_bad else {}
    good = [file for file in files if file not in left_out]
    if not good:
        raise UserError(f"{root}: none of its images can be read; the first: {next(iter(left_out.values()))}")
    stats = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in good]
    key = digest("images", options.image_size, stats)
    _say_left_out(left_out)
    images = cached_array(
        _cache_place(root, options, cache),
        key,
        lambda make: decode_images(good, options.image_size, make, f"decoding {root.name}", progress),
    )
    names = [[file.name for file in scan.files if file not in left_out] for scan in scans]
    numbers = [
        None if scan.numbers is None else [n for file, n in zip(scan.files, scan.numbers) if file not in left_out]
        for scan in scans
    ]
    return Decoded(images, names, numbers, left_out)


def _unreadable_images(files: Sequence[Path]) -> dict[Path, str]:
    bad = {}
    for file in files:
        try:
            decode_image(file, None)
        except UserError as error:
            bad[file] = str(error)
    return bad


def _cache_place(root: Path, options: DataOptions, cache: Path) -> Path:
    about = digest(str(root.resolve()), options.volumes, options.split, options.split_file, options.skip_bad)
    return cache / f"scans-{about[:12]}-{options.image_size or 'own'}.npy"
