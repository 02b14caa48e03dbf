"""Does memory grow with the data? Peak memory of each stage of `train.py`, of `evaluate.py` and of reading volumes.

    python benchmarks/scale.py                          # 1,000, 10,000 and 40,000 slices; about 20 minutes on 2 cores
    python benchmarks/scale.py --slices 500,2000 --side 64

The slices are drawn ellipses with texture, few in number and linked under many names, in whole subjects of 32; nine tenths of
the subjects train, the others validate. What is counted is a process's own memory, watched while it runs (Linux); the cache is a
mapped file, whose pages the system takes back when it needs them, and is counted apart. Every figure is written to results.json
in --out.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
from measuring import Results  # noqa: E402
from PIL import Image  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.runtime import versions  # noqa: E402

STAGES = ("vqvae", "detail", "encode", "prior", "detail_prior", "sharpen")
DRAWN = 64  # different slices
SLICES = 32  # of a subject
VOXELS = (176, 208, 176)
READ_ALL = """
import sys
sys.path.insert(0, {root!r})
from sources import DataOptions, load
load(DataOptions({data!r}, split="100,0,0"), {cache!r})
"""


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/scale.py`."""

    slices: str = flag("1000,10000,40000", "Numbers of slices, separated by commas.")
    side: int = flag(128, "Pixels a side.")
    samples: int = flag(64, "Slices that evaluate.py draws.")
    volumes: str = flag(
        "3,300", "Numbers of volumes of 176x208x176 voxels that are read, separated by commas; 0 reads none."
    )
    out: str = flag("runs/bench-scale", "Folder for the results.")

    def check(self) -> None:
        require(
            re.fullmatch(r"\d+(,\d+)*", self.slices) is not None,
            f"--slices is {self.slices}; expected numbers by commas",
        )
        least = min(map(int, self.slices.split(",")))
        require(least >= 10 * SLICES, f"--slices has {least}; expected at least {10 * SLICES}")
        require(32 <= self.side <= 1024, f"--side is {self.side}; expected 32 to 1024 pixels")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    settings.check()
    results = Results(Path(settings.out) / "results.json")
    results.origin = versions() | {"side": str(settings.side)}
    for count in map(int, settings.slices.split(",")):
        with tempfile.TemporaryDirectory(dir=settings.out) as folder:
            for name, peak in peaks(Path(folder), count, settings).items():
                results.add(name, str(count), peak)
    for count in filter(None, map(int, settings.volumes.split(","))):
        with tempfile.TemporaryDirectory(dir=settings.out) as folder:
            results.add("volumes", str(count), peak_of_volumes(Path(folder), count))
            print(count, "volumes", results.values["volumes"][str(count)], flush=True)
    text = table(results.values)
    (Path(settings.out) / "report.md").write_text(text + "\n")
    print(text, flush=True)


def peaks(folder: Path, count: int, settings: Settings) -> dict[str, dict[str, int]]:
    """Peak bytes of each stage with this many slices, every one seen once."""
    link_slices(folder / "data", count, settings.side)
    common = ["--data", str(folder / "data"), "--cache", str(folder / "cache")]
    run, once = (
        str(folder / "run"),
        [f"--epoch{stage}" for stage in ("", "_detail", "_prior", "_detail_prior", "_sharpen")],
    )
    flags = [*common, "--out", run, *(word for name in once for word in (name, "1"))]
    found = {}
    for stage in STAGES:
        found[stage] = peak_of([str(ROOT / "train.py"), *flags, "--stage", stage])
        print(count, stage, found[stage], flush=True)
    evaluating = ["--run", run, "--split", "validate", "--quick", "--samples", str(settings.samples)]
    found["evaluate"] = peak_of([str(ROOT / "evaluate.py"), *common, *evaluating])
    print(count, "evaluate", found["evaluate"], flush=True)
    return found


def peak_of_volumes(folder: Path, count: int) -> dict[str, int]:
    """Peak bytes of reading this many volumes, one file under many names."""
    data = folder / "data"
    data.mkdir()
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in VOXELS), indexing="ij")
    brain = (x**2 + y**2 + z**2 < 0.8) * np.random.default_rng(0).integers(100, 1000, VOXELS, dtype=np.int16)
    nib.save(nib.Nifti1Image(brain, np.eye(4)), folder / "brain.nii")
    for index in range(count):
        (data / f"sub{index:03d}.nii").hardlink_to(folder / "brain.nii")
    return peak_of(["-c", READ_ALL.format(root=str(ROOT), data=str(data), cache=str(folder / "cache"))])


def link_slices(root: Path, count: int, side: int) -> None:
    """Split folders with `count` slices in all, to the whole subject."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    drawn = root / "drawn"
    drawn.mkdir(parents=True)
    for index in range(DRAWN):
        rng = np.random.default_rng(index)
        height, width = rng.uniform(0.5, 0.8, 2)
        inside = (rows / height) ** 2 + (columns / width) ** 2 < 1
        Image.fromarray((inside * rng.integers(60, 256, inside.shape)).astype(np.uint8)).save(drawn / f"{index}.png")
    subjects = count // SLICES
    for subject in range(subjects):
        folder = root / f"keras_png_slices_{'train' if subject < 0.9 * subjects else 'validate'}"
        folder.mkdir(exist_ok=True)
        for number in range(SLICES):
            name = folder / f"case_{subject:06d}_slice_{number}.nii.png"
            name.hardlink_to(drawn / f"{(subject * SLICES + number) % DRAWN}.png")


def peak_of(arguments: list[str]) -> dict[str, int]:
    """Run Python with these arguments; the most bytes that it held: `own` of its own, `mapped` of files."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    peak = {"own": 0, "mapped": 0}
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except FileNotFoundError:  # it has just ended
            continue
        for name, key in (("own", "RssAnon"), ("mapped", "RssFile")):
            held = re.search(rf"{key}:\s+(\d+) kB", status)
            peak[name] = max(peak[name], 1024 * int(held.group(1)) if held else 0)
        time.sleep(0.02)
    require(process.returncode == 0, f"{' '.join(arguments)} ended with status {process.returncode}")
    return peak


def table(values: dict[str, dict[str, dict[str, int]]]) -> str:
    """MiB of each stage as Markdown, a column a number of slices."""
    stages = [name for name in (*STAGES, "evaluate") if name in values]
    counts = sorted({int(count) for name in stages for count in values[name]})
    rows = [
        f"| {name} | " + " | ".join(f"{values[name][str(count)]['own'] / 2**20:.0f}" for count in counts) + " |"
        for name in stages
    ]
    head = f"| peak memory, MiB | {' | '.join(f'{count:,} slices' for count in counts)} |\n|---" + "|--:" * len(counts)
    if "volumes" in values:
        read = ", ".join(f"{int(count):,}: {peak['own'] / 2**20:.0f}" for count, peak in values["volumes"].items())
        rows.append(
            f"\nPeak memory of reading volumes of {'x'.join(map(str, VOXELS))} voxels, MiB by their number: {read}."
        )
    return "\n".join([f"{head}|", *rows])


if __name__ == "__main__":
    run_main(main)
