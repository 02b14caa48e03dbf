"""Along whole heads: how far apart slices are, how texture changes from slice to slice, and what drawing a head costs.

    python benchmarks/along_heads.py --run runs/f8 --data data/keras_png_slices_data
    python benchmarks/along_heads.py --run runs/f8 --data data/keras_png_slices_data --part apart,drawing

`apart`: the shift within its plane at which a training slice differs from itself as much as from the slice so many numbers
on, in pixels. `texture`: validation slices decoded by the sharp decoder, whose noise is more or less alike in neighbours, beside
the slices themselves. `drawing`: processor seconds of a head's code maps.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measuring import Results  # noqa: E402
from torch import Tensor  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.runtime import versions  # noqa: E402
from dataset import Split, spread_over  # noqa: E402
from inference import heads  # noqa: E402
from inference.coding import decode, encode  # noqa: E402
from scoring.metrics import ssim  # noqa: E402
from sources.slice_set import load_slice_set  # noqa: E402
from utils import Run, load_run  # noqa: E402

LAGS = (1, 2, 4, 8)  # slices apart
SHIFTS = 10  # pixels within the plane, at most
AROUND = 5  # pixels a side of the mean that fine detail is taken from
INSIDE = 0.22  # share of the frame left out on every side: what remains lies inside the brain
LIKE = (0.0, 0.7, 0.8, 0.9, 1.0)  # correlations of neighbours' noise


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/along_heads.py`."""

    run: str = flag("runs/f8", "Run folder; texture needs a sharp decoder, drawing a prior that is told neighbours.")
    data: str = flag(
        "data/keras_png_slices_data", "Folder that holds keras_png_slices_train/ and keras_png_slices_validate/."
    )
    part: str = flag("apart,texture,drawing", "Parts to run, separated by commas.")
    subjects: int = flag(10, "Subjects to measure, spread evenly over the split.")
    count: str = flag("1,16", "Heads to draw at once, by commas.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("runs/bench-along-heads", "Folder for the results.")
    cache: str = flag(".cache", "Folder for decoded slices.")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    parts = settings.part.split(",")
    require(set(parts) <= PARTS.keys(), f"--part {settings.part}: expected some of {', '.join(PARTS)}")
    results = Results(Path(settings.out) / "results.json")
    results.origin = versions()
    for part in parts:
        results.set(part, PARTS[part](settings))
        print(part, results.values[part], flush=True)


def volumes(split: Split, count: int, run: Run) -> list[Tensor]:
    """Content frames of whole scans, `[S, 1, h, w]` in 0..1 each."""
    subjects = np.array(split.subjects)
    names = np.unique(subjects)
    chosen = names[spread_over(len(names), count)]
    return [split.batch(np.flatnonzero(subjects == name), run.frame) for name in chosen]


def inside(images: Tensor) -> Tensor:
    """The middle of `[S, 1, h, w]` frames, `[S, h', w']`."""
    rows, columns = (round(length * INSIDE) for length in images.shape[2:])
    return images[:, 0, rows:-rows, columns:-columns]


def apart(settings: Settings) -> dict[str, list[float]]:
    """By slices apart: mean over subjects of the shift, and its standard deviation, in pixels."""
    run = load_run(settings.run)
    found = []
    for images in volumes(load_slice_set(settings.data, settings.cache).splits["train"], settings.subjects, run):
        brain = inside(images)
        within = [
            (
                (brain[:, shift:] - brain[:, :-shift]).square().mean()
                + (brain[..., shift:] - brain[..., :-shift]).square().mean()
            ).item()
            / 2
            for shift in range(1, SHIFTS + 1)
        ]
        across = [(brain[lag:] - brain[:-lag]).square().mean().item() for lag in LAGS[:3]]
        found.append(np.interp(across, within, np.arange(1, SHIFTS + 1)))
    return {str(lag): [float(np.mean(each)), float(np.std(each))] for lag, each in zip(LAGS, np.transpose(found))}


def texture(settings: Settings) -> dict[str, dict[str, float]]:
    """Of real slices and of each likeness of neighbours' noise: SSIM of neighbours, and how fine detail correlates."""
    run = load_run(settings.run, decoder="sharp")
    split = load_slice_set(settings.data, settings.cache, required="validate").splits["validate"]
    rows: dict[str, list[list[float]]] = {}
    before = heads.LIKE_THE_LAST
    for index, images in enumerate(volumes(split, settings.subjects, run)):
        codes = encode(run.vqvae, run.frame.pad(images), run.frame)
        rows.setdefault("real", []).append(along(images))
        for like in LIKE:
            heads.LIKE_THE_LAST = like
            noise = heads.noise_along(
                len(codes), images.shape[2:], torch.Generator().manual_seed(settings.seed + index)
            )
            decoded = run.frame.crop(decode(run.vqvae, codes, run.frame, noise))
            rows.setdefault(f"{like:g}", []).append(along(decoded))
    heads.LIKE_THE_LAST = before
    names = ("neighbour_ssim", *(f"detail_{lag}" for lag in LAGS))
    return {name: dict(zip(names, np.mean(values, 0).tolist())) for name, values in rows.items()}


def along(images: Tensor) -> list[float]:
    """SSIM of neighbours, and the correlation of fine detail of slices so far apart."""
    brain = inside(images)
    mean = F.avg_pool2d(brain[:, None], AROUND, 1, AROUND // 2, count_include_pad=False)[:, 0]
    detail = brain - mean
    power = detail.square().mean()
    alike = [((detail[lag:] * detail[:-lag]).mean() / power).item() for lag in LAGS if lag < len(detail)]
    return [ssim(images[:-1], images[1:]).mean().item(), *alike]


def drawing(settings: Settings) -> dict[str, float]:
    """Processor seconds a head, by how many are drawn at once."""
    run, seconds = load_run(settings.run), {}
    for count in settings.count.split(","):
        started = time.process_time()
        heads.draw_heads(run, heads.HeadRequest(int(count), seed=settings.seed))
        seconds[count] = (time.process_time() - started) / int(count)
    return seconds


PARTS = {"apart": apart, "texture": texture, "drawing": drawing}

if __name__ == "__main__":
    run_main(main)
