"""Draw new slices from a trained run.

    python generate.py                                       # 64 slices from the newest run under runs/
    python generate.py --run runs/mine --n 16 --slice 12     # one slice position
    python generate.py --run runs/mine --temperature 0.9 --seed 1 --out samples --png

Writes a grid of code maps (generated_q.png) and a grid of the slices they decode to (generated_imgs.png).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import figures
from cli import flag, parse_flags, require, run_main
from sampling import Samples, draw_samples, spread_numbers
from utils import Run, load_run, newest_run, resolve_device

GRID_SLICES = 64  # slices in a grid, at most


@dataclass(frozen=True)
class Settings:
    """The flags of `generate.py`."""

    run: str | None = flag(None, "Run folder; the newest under runs/ where it is not given.")
    n: int = flag(64, "Slices to draw; the grids show the first 64.")
    slice: int | None = flag(None, "Slice number, 0 the lowest; spread over all positions where it is not given.")
    temperature: float = flag(1.0, "Above 0; below 1 draws likelier, smoother slices.")
    seed: int = flag(0, "The same seed draws the same slices.")
    out: str | None = flag(None, "Folder for the pictures; samples/ in the run folder where it is not given.")
    png: bool = flag(False, "Write each slice as its own 8-bit PNG too, under slices/ of the output folder.")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps.")

    def check(self) -> None:
        """Raise UserError for a value that cannot work."""
        require(1 <= self.n <= 10000, f"--n is {self.n}; expected 1 to 10000 slices")
        require(
            0 < self.temperature <= 100, f"--temperature is {self.temperature}; expected a number above 0, at most 100"
        )
        require(0 <= self.seed < 2**63, f"--seed is {self.seed}; expected a whole number from 0")
        require(self.out is None or not Path(self.out).is_file(), f"--out {self.out} is a file; expected a folder")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    settings.check()
    folder = Path(settings.run) if settings.run else newest_run("prior.safetensors")
    run = load_run(folder, resolve_device(settings.device))
    print(f"run {folder}, trained on {run.config['data']['title']}")
    numbers = slice_numbers(settings, run)
    started = time.monotonic()
    samples = draw_samples(run, numbers, settings.n, settings.temperature, settings.seed)
    print(f"drew and decoded {len(samples)} slices in {time.monotonic() - started:.1f} s")
    out = Path(settings.out) if settings.out else folder / "samples"
    write_grids(samples, run, out, settings)
    if settings.png:
        write_slices(samples, out / "slices")
    print(f"pictures: {out}/")


def slice_numbers(settings: Settings, run: Run) -> np.ndarray | None:
    """The slice number of each sample, or None where the run's data had no slice numbers."""
    slices = run.config["data"]["slices_per_subject"]
    if settings.slice is None:
        return None if slices is None else spread_numbers(settings.n, slices)
    require(slices is not None, "--slice: this run's data had no slice numbers; leave it out")
    require(0 <= settings.slice < slices, f"--slice is {settings.slice}; this run has slices 0 to {slices - 1}")
    return np.full(settings.n, settings.slice)


def write_grids(samples: Samples, run: Run, out: Path, settings: Settings) -> None:
    """Grids of the code maps and of the slices they decode to."""
    samples = samples.first(GRID_SLICES)
    ranks = figures.code_ranks(run.vqvae.quantizer.codebook.cpu().numpy())
    how = f"temperature {settings.temperature:g}, seed {settings.seed}"
    figures.code_grid(
        samples.codes.numpy(), out / "generated_q.png", f"Codes drawn from the prior, {how}", ranks, samples.labels
    )
    figures.slice_grid(
        samples.images.numpy(),
        out / "generated_imgs.png",
        f"Generated slices, {how} (trained on {run.config['data']['title']})",
        samples.labels,
    )


def write_slices(samples: Samples, folder: Path) -> None:
    """Each slice as an 8-bit gray PNG of the data's own size."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (samples.images * 255).round().byte().numpy()
    for index, (image, label) in enumerate(zip(pixels, samples.labels)):
        name = "_".join(filter(None, [f"sample_{index:04d}", label.replace(" ", "_")]))
        Image.fromarray(image).save(folder / f"{name}.png")


if __name__ == "__main__":
    run_main(main)
