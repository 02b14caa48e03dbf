"""Draw new slices from a trained run.

    python generate.py                                       # 64 slices from the newest run, else from the pretrained weights
    python generate.py --run runs/mine --n 16 --slice 12     # one slice position
    python generate.py --slice all                           # every slice position, a row each
    python generate.py --temperature 0.9 --top_p 0.95 --seed 1 --out samples --png
    python generate.py --sweep 0.7,0.85,1,1.15               # a row a temperature
    python generate.py --complete case_402_slice_16.nii.png --region bottom   # redraw a part of a slice
    python generate.py --where cdr=0.5,age=75 --slice 12     # of a run whose prior was told such things (train.py --table)
    python generate.py --level first                         # what the first of two levels of codes paints alone
    python generate.py --volumes 4                           # whole heads, whose slices fit each other
    python generate.py --complete-volume scan.nii.gz --missing 8:15           # draw slices that a scan lacks

Writes a grid of code maps (generated_q.png) and a grid of the slices they decode to (generated_imgs.png); with --sweep the rows
of slices (swept_imgs.png); with --complete the slice, what was kept of it, and several ways to complete it (completed_imgs.png).
With --volumes, under volumes/ of the output folder, of each head a NIfTI file, a sheet of its slices and a page to scroll through
it (head_0000.nii.gz, .png, .html), and three cuts through all of them (heads.png); with --complete_volume the same of each
completion (completed_0000), its slices beside what was there.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from common.cli import flag, parse_flags, require, run_main
from common.errors import UserError
from common.files import check_writable
from common.runtime import resolve_device
from inference.coding import decode, encode
from inference.completion import read_given
from inference.drawing import (
    Request,
    Samples,
    draw_samples,
    kept_positions,
    region_of,
    spread_numbers,
    stretches_of,
)
from inference.geometry import VOLUMES, Geometry
from inference.heads import HeadRequest, check_heads, draw_heads, stretches
from models.codes import each_level
from models.sampler import Draw
from reporting import figures, pictures
from reporting.volumes import write_completed, write_heads
from sources.conditions import Condition, parse_where
from sources.images import load_image
from sources.intensities import Scale
from utils import LEVELS, PRETRAINED, Run, decoder_to_use, load_run, run_folder

GRID_SLICES = 64  # slices in a grid, at most, unless every position has its row
EACH_POSITION, EACH_TEMPERATURE, COMPLETIONS = 8, 8, 6  # slices drawn where --n is not given


@dataclass(frozen=True)
class Settings:
    """The flags of `generate.py`."""

    run: str | None = flag(
        None, "Run folder, or pretrained; where it is not given, the newest under runs/, else the pretrained weights."
    )
    n: int | None = flag(
        None,
        "Slices to draw: 64 where it is not given, of which the grids show the first 64; with --slice all the number at each "
        "position, 8, with --sweep at each temperature, 8; with --complete the number of completions, 6, with "
        "--complete_volume 1.",
    )
    slice: str | None = flag(
        None,
        "Slice number, of those that the run was trained on, or all for a row a position; spread over all of them where it is "
        "not given.",
    )
    temperature: float = flag(
        1.0, "Above 0; 1 is the prior as calibrated on validation maps; below 1 draws likelier, smoother slices."
    )
    sweep: str | None = flag(
        None, "Temperatures separated by commas: a row of slices at each, of the same positions and from the same seed."
    )
    top_k: int | None = flag(None, "Draw each code from this many likeliest ones alone.")
    top_p: float | None = flag(
        None, "Draw each code from the fewest likeliest ones that together reach this probability."
    )
    where: str | None = flag(
        None,
        "What is known of the slices, such as cdr=0.5,age=75, of a run trained with --condition; the rest is unknown.",
    )
    complete: str | None = flag(None, "Image file of a slice to redraw a part of; the codes of the rest stand.")
    region: str = flag(
        "bottom",
        "Part that --complete redraws: top, bottom, left or right, or pixels as r0:r1,c0:c1. Codes are drawn from the top down, "
        "each row from the left, so what is drawn fits what lies above it and to its left.",
    )
    volumes: int | None = flag(
        None,
        "Whole heads to draw, all at once: each begins with a middle slice and grows upwards and downwards, every slice told "
        "the one before it.",
    )
    complete_volume: str | None = flag(
        None,
        "Volume with missing slices to draw: a file such as the run was trained on, or a folder with the slices of one subject. "
        "Slices of one value alone are missing, and so are those between the slices of a thick-slice acquisition.",
    )
    missing: str | None = flag(
        None,
        "Slice numbers that --complete_volume draws anew whatever is there, such as 3 or 8:15 (8 to 14), by commas.",
    )
    level: str = flag(
        "both",
        "Levels of codes of a run with two: first shows what the first one alone paints, with the reconstruction decoder.",
        LEVELS,
    )
    decoder: str | None = flag(
        None,
        "Decoder that paints the slices: faithful (the VQ-VAE's own) or sharp (which adds texture); by default sharp if "
        "the run has one.",
        ("faithful", "sharp"),
    )
    seed: int = flag(0, "The same seed draws the same slices.")
    out: str | None = flag(None, "Folder for the pictures; samples/ in the run folder where it is not given.")
    png: bool = flag(False, "Write each slice as its own 8-bit PNG too, under slices/ of the output folder.")
    nifti: bool = flag(
        False,
        "Write the slices as NIfTI files too, where those of a run trained on volumes lie: each by itself, with --slice all the "
        "slices of each column of the grid as one volume. They are drawn one at a time, so neighbours do not fit each other.",
    )
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps.")

    def check(self) -> None:
        """Raise UserError for a value that cannot work."""
        require(self.n is None or 1 <= self.n <= 10000, f"--n is {self.n}; expected 1 to 10000 slices")
        require(
            self.slice in (None, "all") or self.slice.isdecimal(),
            f"--slice is {self.slice}; expected a slice number or all",
        )
        require(
            0 < self.temperature <= 100, f"--temperature is {self.temperature}; expected a number above 0, at most 100"
        )
        sweep_asked = self.sweep is not None
        require(
            not sweep_asked
            or all(re.fullmatch(r"\d*\.?\d+", part) and 0 < float(part) <= 100 for part in self.sweep.split(",")),
            f"--sweep is {self.sweep}; expected temperatures above 0, at most 100, by commas, such as 0.8,1,1.2",
        )
        require(
            not (sweep_asked and (self.complete or self.slice == "all")),
            "--sweep draws whole slices of one position or of several in a row; leave out --complete and --slice all",
        )
        require(
            not (sweep_asked and self.temperature != 1),
            f"--temperature is {self.temperature:g}, but --sweep says the temperatures; leave one of them out",
        )
        require(self.top_k is None or self.top_k >= 1, f"--top_k is {self.top_k}; expected at least 1 code")
        require(self.top_p is None or 0 < self.top_p <= 1, f"--top_p is {self.top_p}; expected above 0, at most 1")
        require(
            not (self.complete and self.slice == "all"),
            "--slice all draws whole slices; --complete wants one number or none",
        )
        require(
            self.volumes is None or 1 <= self.volumes <= 1000, f"--volumes is {self.volumes}; expected 1 to 1000 heads"
        )
        require(self.missing is None or self.complete_volume is not None, "--missing goes with --complete_volume")
        self._check_whole()
        require(0 <= self.seed < 2**63, f"--seed is {self.seed}; expected a whole number from 0")
        require(self.out is None or not Path(self.out).is_file(), f"--out {self.out} is a file; expected a folder")

    def _check_whole(self) -> None:
        """Raise UserError for flags of single slices beside one of whole heads."""
        whole = [name for name in ("volumes", "complete_volume") if getattr(self, name) is not None]
        others = [name for name in ("slice", "sweep", "complete", "png", "nifti") if getattr(self, name)]
        others += ["n"] if self.volumes and self.n else []
        require(len(whole) < 2, "--volumes and --complete_volume are two things to do; leave one of them out")
        require(
            not (whole and others),
            f"--{whole[0] if whole else ''} makes whole volumes of every slice; leave out --{' --'.join(others)}",
        )

    @property
    def draw(self) -> Draw:
        return Draw(self.temperature, self.top_k, self.top_p)

    @property
    def how(self) -> str:
        """How the slices were drawn, for the pictures' titles."""
        limits = [
            f"top {self.top_k}" if self.top_k else "",
            f"top-p {self.top_p:g}" if self.top_p else "",
            self.where or "",
            "first level alone" if self.level == "first" else "",
        ]
        return ", ".join(filter(None, [f"temperature {self.temperature:g}", *limits, f"seed {self.seed}"]))


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    settings.check()
    folder = run_folder(settings.run, "prior.safetensors")
    decoder = decoder_to_use(folder, settings.decoder, settings.level)
    run = load_run(folder, resolve_device(settings.device), decoder, settings.level)
    print(
        f"run {folder.name if folder == PRETRAINED else folder}, trained on {run.config['data']['title']}; {decoder} decoder"
    )
    out = Path(settings.out) if settings.out else Path("samples") if folder == PRETRAINED else folder / "samples"
    check_writable(out, "--out")
    if settings.nifti:
        check_geometry(run)
    where = conditions_asked(settings, run)
    if settings.volumes or settings.complete_volume:
        (complete_volume if settings.complete_volume else draw_volumes)(settings, run, out, where)
        print(f"pictures and volumes: {out / 'volumes'}/")
        return
    make = complete if settings.complete else sweep if settings.sweep else draw_new
    samples = make(settings, run, out, where)
    if settings.png:
        write_slices(samples, out / "slices")
    if settings.nifti:
        write_volumes(samples, Geometry.of(run), out / "volumes", together=settings.slice == "all")
    print(f"pictures: {out}/")


def check_geometry(run: Run) -> None:
    """Raise UserError for --nifti of a run that does not say where its slices lie."""
    data = run.config["data"]
    if data.get("geometry") is not None:
        return
    require(
        data.get("kind") not in VOLUMES,
        "--nifti: this run was trained with --image_size by an older version, which did not record where such slices lie; "
        "train it anew, or leave --nifti out",
    )
    raise UserError("--nifti: this run was not trained on volumes, so nobody knows where its slices lie; leave it out")


def conditions_asked(settings: Settings, run: Run) -> dict[str, float]:
    """The conditions of --where, as the prior takes them."""
    if settings.where is None:
        return {}
    known = {name: Condition.from_json(value) for name, value in run.config["data"].get("conditions", {}).items()}
    require(
        bool(known),
        "--where: this run's prior was told nothing but the slice; train one with train.py --table --condition",
    )
    try:
        return parse_where(settings.where, known)
    except ValueError as error:
        raise UserError(f"--where {error}") from None


def draw_new(settings: Settings, run: Run, out: Path, where: dict[str, float]) -> Samples:
    """Draw whole slices; leaves their grids."""
    numbers, columns = slice_numbers(settings, run)
    count = len(numbers) if numbers is not None else settings.n or GRID_SLICES
    started = time.monotonic()
    samples = draw_samples(run, Request(count, numbers, settings.draw, settings.seed, where))
    print(f"drew and decoded {len(samples)} slices in {time.monotonic() - started:.1f} s")
    write_grids(samples if settings.slice == "all" else samples.first(GRID_SLICES), run, out, settings, columns)
    return samples


def sweep(settings: Settings, run: Run, out: Path, where: dict[str, float]) -> Samples:
    """Draw a row of slices at each temperature; leaves their picture."""
    settings = replace(settings, n=settings.n or EACH_TEMPERATURE)
    numbers, _ = slice_numbers(settings, run)
    rows = []
    temperatures = settings.sweep.split(",")
    for text in temperatures:
        draw = Draw(float(text), settings.top_k, settings.top_p)
        request = Request(settings.n, numbers, draw, settings.seed, where)
        rows.append(draw_samples(run, request, f"temperature {text}"))
    figures.rows_of_slices(
        [(f"temperature\n{text}", row.images.numpy()) for text, row in zip(temperatures, rows)],
        out / "swept_imgs.png",
        f"Generated slices by temperature, seed {settings.seed} (trained on {run.config['data']['title']})",
        rows[0].labels,
    )
    codes = each_level(lambda *maps: torch.cat(maps), *(row.codes for row in rows))
    return Samples(
        codes, torch.cat([row.images for row in rows]), None if numbers is None else np.tile(numbers, len(rows))
    )


def slice_numbers(settings: Settings, run: Run) -> tuple[np.ndarray | None, int]:
    """The slice number of each sample, or None where the run's data had no slice numbers; and the columns of the grids."""
    there = run.slice_numbers
    if settings.slice is None:
        return None if there is None else spread_numbers(settings.n or GRID_SLICES, there), 8
    require(there is not None, "--slice: this run's data had no slice numbers; leave it out")
    if settings.slice == "all":
        each = settings.n or EACH_POSITION
        return np.repeat(there, each), each
    number = int(settings.slice)
    require(number in there, f"--slice is {number}; this run has slices {stretches_of(there)}")
    return np.full(settings.n or GRID_SLICES, number), 8


def write_grids(samples: Samples, run: Run, out: Path, settings: Settings, columns: int) -> None:
    """Grids of the code maps and of the slices they decode to."""
    figures.code_grid(
        path=out / "generated_q.png",
        title=f"Codes drawn from the prior, {settings.how}",
        labels=samples.labels,
        columns=columns,
        **pictures.shown_codes(run.vqvae, samples.codes),
    )
    figures.slice_grid(
        samples.images.numpy(),
        out / "generated_imgs.png",
        f"Generated slices, {settings.how} (trained on {run.config['data']['title']})",
        samples.labels,
        columns,
    )


def complete(settings: Settings, run: Run, out: Path, where: dict[str, float]) -> Samples:
    """Redraw a part of a slice several times; leaves the picture."""
    grey = run.config["data"].get("grey")
    image, number = load_image(settings.complete, run.config["flags"]["image_size"], Scale(**grey) if grey else None)
    size = (run.frame.image_height, run.frame.image_width)
    require(
        tuple(image.shape[2:]) == size,
        f"{settings.complete} has {image.shape[2]}x{image.shape[3]} pixels; this run's slices have {size[0]}x{size[1]}",
    )
    region = region_of(settings.region, run.frame)
    keep, codes = kept_positions(region, run), encode(run.vqvae, image, run.frame)
    number, there = int(settings.slice) if settings.slice else number, run.slice_numbers
    known = number is not None and there is not None
    require(not known or number in there, f"slice number {number}: this run has slices {stretches_of(there)}")
    if not known:
        print(
            "note: neither --slice nor the file's name says which slice this is; it is completed as one of unknown position"
        )
    count = settings.n or COMPLETIONS
    numbers = np.full(count, number) if known else None
    request = Request(count, numbers, settings.draw, settings.seed, where, codes[0], keep)
    samples = draw_samples(run, request, "completing")
    kept = image[0, 0].clone()
    kept[region] = 0.5
    before = [image[0, 0], kept, decode(run.vqvae, codes, run.frame)[0, 0]]
    figures.slice_grid(
        np.stack([slice.numpy() for slice in [*before, *samples.images]]),
        out / "completed_imgs.png",
        f"{Path(settings.complete).name}: {settings.region} redrawn, {settings.how} (trained on {run.config['data']['title']})",
        ["original", "kept", "reconstructed", *[f"completion {i + 1}" for i in range(count)]],
        columns=3,
    )
    return samples


def draw_volumes(settings: Settings, run: Run, out: Path, where: dict[str, float]) -> None:
    """Draw whole heads; leaves their volumes and pictures."""
    check_heads(run)
    geometry, started = Geometry.of(run), time.monotonic()
    say_geometry(geometry, run)
    heads = draw_heads(run, HeadRequest(settings.volumes, settings.draw, settings.seed, where))
    print(f"drew {len(heads)} heads of {len(run.slice_numbers)} slices in {time.monotonic() - started:.1f} s")
    write_heads(run, heads, settings.seed, geometry, out / "volumes", settings.how)


def complete_volume(settings: Settings, run: Run, out: Path, where: dict[str, float]) -> None:
    """Draw the slices that a volume lacks; leaves the completed volumes and their pictures."""
    check_heads(run)
    given, numbers = read_given(settings.complete_volume, run, settings.missing), run.slice_numbers
    say_geometry(given.geometry, run)
    print(f"drawing slices {stretches_of(numbers[~given.known])}; {given.known.sum()} others are kept")
    request = HeadRequest(settings.n or 1, settings.draw, settings.seed, where, given.codes(run), given.known)
    heads = draw_heads(run, request, "completing")
    title = f"{Path(settings.complete_volume).name}, {settings.how}"
    write_completed(run, heads, settings.seed, given, out / "volumes", title)


def say_geometry(geometry: Geometry, run: Run) -> None:
    """What is assumed of where slices lie, and which of them are no neighbours."""
    if geometry.assumed:
        print(f"note: {geometry.assumed}")
    if len(stretches(run.slice_numbers)) > 1:
        print(
            "note: slice numbers have gaps; the prior learned of neighbours whose numbers are one apart, so each stretch is "
            "drawn by itself"
        )


def write_volumes(samples: Samples, geometry: Geometry, folder: Path, together: bool) -> None:
    """Slices as NIfTI files where the planes of the training volumes lie; together: those of all numbers as one volume."""
    folder.mkdir(parents=True, exist_ok=True)
    slices, planes = samples.images.numpy(), geometry.planes
    if together:
        numbers = np.unique(samples.numbers)
        where = [planes[number] for number in numbers]
        for index, stack in enumerate(slices.reshape(len(numbers), -1, *slices.shape[1:]).swapaxes(0, 1)):
            nib.save(geometry.volume(stack, where), folder / f"sample_{index:04d}.nii.gz")
        return
    for index, (image, number) in enumerate(zip(slices, samples.numbers)):
        nib.save(geometry.volume(image[None], [planes[number]]), folder / f"sample_{index:04d}_slice_{number}.nii.gz")


def write_slices(samples: Samples, folder: Path) -> None:
    """Each slice as an 8-bit gray PNG of the data's own size."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (samples.images * 255).round().byte().numpy()
    for index, (image, label) in enumerate(zip(pixels, samples.labels)):
        name = "_".join(filter(None, [f"sample_{index:04d}", label.replace(" ", "_")]))
        Image.fromarray(image).save(folder / f"{name}.png")


if __name__ == "__main__":
    run_main(main)
