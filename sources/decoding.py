"""Scans into one memory-mapped array: decoded once, in parallel, a few in memory at a time."""

import json
from collections.abc import Callable, Sequence
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


def decoded_volumes(
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
        write_json(side, _read_volumes(make, root, scans, options, progress))

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
        except UserError as error:
            if not options.skip_bad:
                raise
            bad[scan.name] = str(error)
            return None

    def none_readable() -> UserError:
        return UserError(f"{root}: none of its {len(scans)} volumes can be read; the first: {next(iter(bad.values()))}")

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
            stretches[index] = slices if final == size else np.stack([resized(image, final) for image in slices])

    in_parallel(decode, len(scans), progress, f"reading {root.name}", "volume")
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


def decoded_images(
    root: Path, scans: Sequence[Scan], options: DataOptions, cache: Path, progress: ProgressFactory | None
) -> tuple[np.ndarray, dict[str, str], None]:
    """All images of all subjects, in order; with --skip_bad, subjects with an unreadable image by name."""
    bad: dict[str, str] = {}
    if options.skip_bad:
        scans, bad = _readable_images(scans)
    files = [file for scan in scans for file in scan.files]
    if not files:
        raise UserError(f"{root}: none of its images can be read; the first: {next(iter(bad.values()))}")
    stats = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = digest("images", options.image_size, stats)
    for reason in bad.values():
        print(f"left out: {reason}", flush=True)
    images = cached_array(
        _cache_place(root, options, cache),
        key,
        lambda make: decode_images(files, options.image_size, make, f"decoding {root.name}", progress),
    )
    return images, bad, None


def _readable_images(scans: Sequence[Scan]) -> tuple[list[Scan], dict[str, str]]:
    good, bad = [], {}
    for scan in scans:
        try:
            for file in scan.files:
                decode_image(file, None)
            good.append(scan)
        except UserError as error:
            bad[scan.name] = str(error)
    return good, bad


def _cache_place(root: Path, options: DataOptions, cache: Path) -> Path:
    about = digest(str(root.resolve()), options.volumes, options.split, options.split_file, options.skip_bad)
    return cache / f"scans-{about[:12]}-{options.image_size or 'own'}.npy"
