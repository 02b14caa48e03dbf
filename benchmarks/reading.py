"""How long does it take to read a volume? The planes that are wanted, beside the whole volume resampled.

    python benchmarks/reading.py

Synthetic heads, one stored at 2 mm, one turned by 10 degrees, one at 1 mm, gzipped, 32 planes of each. The plain way is
nibabel's resampling of the whole volume, of which planes are taken, as version 0.1.0 had it. Times are CPU time of one thread,
medians of `--repeats` in turns; the ratio and the largest difference of the planes in grey levels are printed as Markdown.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
from nibabel.processing import resample_to_output  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from sources.volumes import VolumeOptions, output_space, read_slices  # noqa: E402

SPACINGS = (1.0, 2.0)
SLICES = 32


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/reading.py`."""

    repeats: int = flag(3, "Readings of each volume, either way.")

    def check(self) -> None:
        require(self.repeats >= 1, f"--repeats is {self.repeats}; expected at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    settings.check()
    print("| volume | `--spacing` | the whole / the planes, time | grey levels apart |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (shape, affine) in volumes().items():
            path = Path(folder) / "head.nii.gz"
            nib.save(nib.Nifti1Image(head(shape), affine), path)
            for spacing in SPACINGS:
                ratio, apart = compared(path, VolumeOptions(spacing=spacing, slices=SLICES), settings.repeats)
                print(f"| {name} | {spacing:g} | {ratio:.1f} | {apart} |", flush=True)


def volumes() -> dict[str, tuple[tuple[int, int, int], np.ndarray]]:
    """Shape and affine by name."""
    turn, (sine, cosine) = np.eye(4), (np.sin(np.radians(10)), np.cos(np.radians(10)))
    turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    small, large, coarse = (91, 109, 91), (176, 208, 176), np.diag([2.0, 2.0, 2.0, 1.0])
    return {"2 mm": (small, coarse), "2 mm, turned": (small, turn @ coarse), "1 mm": (large, np.eye(4))}


def head(shape: tuple[int, int, int]) -> np.ndarray:
    """A textured ellipsoid on black, int16."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 0.95) ** 2 < 1
    return gaussian_filter(inside * np.random.default_rng(0).integers(300, 1000, shape).astype(float), 1).astype(
        np.int16
    )


def compared(path: Path, options: VolumeOptions, repeats: int) -> tuple[float, int]:
    """Time of the plain way over ours, and how far the planes are apart at most."""
    size = output_space(path, options).slice_size(options.axis)
    found = read_slices(path, options, size)
    ways: tuple[Callable[[], object], ...] = (
        lambda: whole(path, options, found[1]),
        lambda: read_slices(path, options, size),
    )
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for way, seconds in zip(ways, times):
            started = time.process_time()
            way()
            seconds.append(time.process_time() - started)
    apart = np.abs(whole(path, options, found[1]).astype(int) - found[0]).max()
    return statistics.median(times[0]) / statistics.median(times[1]), int(apart)


def whole(path: Path, options: VolumeOptions, planes: Sequence[int]) -> np.ndarray:
    """Axial planes of the whole volume resampled, `[S, H, W]` uint8."""
    image = nib.as_closest_canonical(nib.load(path))
    image = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    if not np.allclose(image.affine[:3, :3], options.spacing * np.eye(3)):
        image = resample_to_output(image, (options.spacing,) * 3, 1)
    data = image.get_fdata(dtype=np.float32)
    dark = np.percentile(data, 1)
    bright = np.percentile(data[data > dark], 99.5)
    pixels = (((data - dark) / (bright - dark)).clip(0, 1) * 255).round().astype(np.uint8)
    return np.moveaxis(pixels, 2, 0)[list(planes)]


if __name__ == "__main__":
    run_main(main)
