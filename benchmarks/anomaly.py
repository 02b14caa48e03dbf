"""What score.py finds of planted anomalies, beside three simple scores.

    python benchmarks/anomaly.py --run pretrained --out runs/anomaly
    python benchmarks/anomaly.py --run pretrained --subjects 4 --steps 50 --out runs/anomaly-small

Validation scans are the only ones that may be planted in, and they are what others are compared with, too. So they are halved:
what is usual is measured on one half, and anomalies are planted in the other, and the other way about. Of each anomaly the slice
in its middle is scored, beside the slices below and above it; slices without are all of the same scans as they are.

Beside the map of score.py: the error of the VQ-VAE's reconstruction, that of an autoencoder of the same size without codes, which
starts from the VQ-VAE's weights and is trained here for some steps, and the plain z-score, |slice - mean| / standard deviation of
training slices of the same number at the same pixel. All three are averaged over as many pixels as the map of restorations is.
What was scored is kept, a file a subject; a second call goes on.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from planting import KINDS, SIZED, Planted, Scan, plant  # noqa: E402
from torch import Tensor  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.files import load_model, replacing, save_model, write_json, write_text  # noqa: E402
from common.runtime import Progress, derive_seed, seed_everything  # noqa: E402
from dataset import Frame, Split, spread_over  # noqa: E402
from inference.coding import encode_split, reconstructions  # noqa: E402
from inference.restoring import Recipe  # noqa: E402
from models.detail import first_of  # noqa: E402
from reporting.figures import rows_of_slices  # noqa: E402
from scoring.held_out import HeldOut, load, measure, save, scans_of  # noqa: E402
from scoring.masks import Marked, agreement, counted  # noqa: E402
from scoring.scored import Scored, Scorer  # noqa: E402
from sources import DataOptions  # noqa: E402
from sources import load as load_data  # noqa: E402
from utils import Run, load_run, run_folder  # noqa: E402
from vqvae import VQVAE  # noqa: E402

WHITE = {
    "score.py": 16.0,
    "VQ-VAE error": 0.1,
    "autoencoder error": 0.1,
    "z-score": 8.0,
}  # what is white in the picture
SIMPLE = ("VQ-VAE error", "autoencoder error", "z-score")
LEAST_SPREAD = 0.02  # grey values of 1, added to the standard deviation of a pixel
AUTOENCODER_RATE = 3e-4
MEAN_SCANS = 100  # training scans of which the z-score has its mean


@dataclass(frozen=True)
class Settings:
    """The flags."""

    run: str = flag("pretrained", "Run folder, or pretrained.")
    data: str = flag("data/keras_png_slices_data", "The run's data.")
    subjects: int = flag(35, "Validation scans, spread over the split.")
    kinds: str = flag(",".join(KINDS), "Kinds of anomalies, separated by commas.")
    sizes: str = flag("4,8,12,16,20", "Diameters of what is local, in pixels.")
    restore: int = flag(0, "Restorations of each slice; 0: the map of standard deviations.")
    threshold: float = flag(Recipe.threshold, "As in score.py.")
    sharpness: float = flag(Recipe.sharpness, "As in score.py.")
    smooth: int = flag(Recipe.smooth, "As in score.py.")
    steps: int = flag(500, "Steps that the autoencoder without codes is trained for.")
    batch: int = flag(8, "Slices a step.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("runs/anomaly", "Folder for what was found.")
    cache: str = flag(".cache", "Folder for decoded slices.")

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.restore, self.threshold, self.sharpness, self.smooth, self.seed)


def main(argv: Sequence[str] | None = None) -> None:
    s = Settings(**parse_flags(Settings, __doc__, argv))
    folder, out = run_folder(s.run), Path(s.out)
    run, data = load_run(folder), load_data(DataOptions(data=s.data), s.cache, Progress)
    train, validate = data.splits["train"], data.splits["validate"]
    scans = list(scans_of(validate))
    scans = [scans[index] for index in spread_over(len(scans), s.subjects)]
    simple = Simple(run.frame, autoencoder(run, train, s, out), *mean_slices(train, run.frame))
    s.recipe.check()
    unknown = set(s.kinds.split(",")) - set(KINDS)
    require(not unknown, f"--kinds {', '.join(unknown)}: expected some of {', '.join(KINDS)}")
    kinds = s.kinds.split(",")
    conditions = [(kind, int(size)) for kind in kinds for size in (s.sizes.split(",") if kind in SIZED else ["16"])]
    halves = [half_of(run, validate, train, scans, side, out) for side in (0, 1)]
    with Progress(len(scans), "planting", "scan") as progress:
        for index, indices in enumerate(scans):
            path = out / f"scan_{index:03d}.npz"
            if not path.exists():
                scorer = Scorer(run, halves[1 - index % 2], s.recipe)
                found = score_planted(scorer, simple, validate.at(indices), conditions, s.seed)
                with replacing(path) as temporary:
                    np.savez_compressed(temporary.open("wb"), **found)
            progress.update(1)
    report(out, conditions, len(scans), s)
    picture(Scorer(run, halves[1], s.recipe), simple, validate.at(scans[0]), kinds, s.seed, out)


# --------------------------------------------------------------------------- what scores are made of


def half_of(run: Run, validate: Split, train: Split, scans: list[np.ndarray], side: int, out: Path) -> HeldOut:
    """What is usual, of every second scan."""
    path = out / f"held_out_{side}_of_{len(scans)}.safetensors"
    known = load(path, run)
    if known is None:
        known = measure(run, validate.at(np.concatenate(scans[side::2])), train, f"measuring half {side}")
        save(path, known, run)
    return known


def mean_slices(train: Split, frame: Frame) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of training slices at each pixel, `[highest number + 1, H, W]`."""
    scans = list(scans_of(train))
    some = train.at(np.concatenate([scans[index] for index in spread_over(len(scans), MEAN_SCANS)]))
    sums = torch.zeros(2, int(some.numbers.max()) + 1, frame.height, frame.width)
    for indices, images in some.batches(256, frame):
        numbers = torch.from_numpy(some.numbers[indices]).long()
        sums[0].index_add_(0, numbers, images[:, 0])
        sums[1].index_add_(0, numbers, images[:, 0].square())
    counts = torch.from_numpy(np.bincount(some.numbers)).clamp(min=1)[:, None, None]
    mean = sums[0] / counts
    return mean, (sums[1] / counts - mean.square()).clamp(min=0).sqrt() + LEAST_SPREAD


def autoencoder(run: Run, train: Split, s: Settings, out: Path) -> VQVAE:
    """The VQ-VAE's networks without codes between them, trained on from its weights on the slices' absolute error."""
    path = out / f"autoencoder_{s.steps}.safetensors"
    if path.exists():
        return load_model(path, VQVAE)
    seed_everything(s.seed, "autoencoder")
    model = copy.deepcopy(first_of(run.vqvae)).to(memory_format=torch.channels_last).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), AUTOENCODER_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, AUTOENCODER_RATE, max(s.steps, 2))
    rng = np.random.default_rng(s.seed)
    with Progress(s.steps, "training the autoencoder", "step") as progress:
        for _ in range(s.steps):
            images = train.batch(np.sort(rng.choice(len(train), s.batch, replace=False)), run.frame)
            loss = (model.autoencode(images) - images).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(1, loss=loss.item())
    save_model(path, model)
    return model.eval()


@dataclass(frozen=True)
class Simple:
    """The simple scores."""

    frame: Frame
    autoencoder: VQVAE
    mean: Tensor
    spread: Tensor

    def maps(self, run: Run, scan: Split) -> dict[str, Tensor]:
        """Their maps within the frame, `[S, h, w]` each."""
        images = scan.batch(np.arange(len(scan)), self.frame)
        codes = encode_split(run.vqvae, scan, self.frame)
        decoded = torch.cat([self.frame.crop(each) for _, each in reconstructions(run.vqvae, scan, codes, self.frame)])
        with torch.inference_mode():
            plain = torch.cat([self.autoencoder.autoencode(part) for part in images.split(32)])
        numbers = torch.from_numpy(scan.numbers).long()
        z = ((images[:, 0] - self.mean[numbers]) / self.spread[numbers]).abs()
        maps = [(decoded - images).abs()[:, 0], (plain - images).abs()[:, 0], z]
        size = Recipe.smooth
        return {name: F.avg_pool2d(each[:, None], size, 1, size // 2)[:, 0] for name, each in zip(SIMPLE, maps)}


def all_maps(scorer: Scorer, simple: Simple, scan: Split) -> tuple[dict[str, Tensor], Scored]:
    """The maps of all scores within the frame, and what score.py has of the scan."""
    scored, run = scorer.score(scan), scorer.run
    maps = {"score.py": run.frame.crop(scored.anomaly(run))} | simple.maps(run, scan)
    return maps, scored


def score_planted(
    scorer: Scorer, simple: Simple, scan: Split, conditions: Sequence[tuple[str, int]], seed: int
) -> dict[str, np.ndarray]:
    """Counts of the scores where anomalies are and where not, by "kind size|score|of what|which"."""
    found: dict[str, np.ndarray] = {}
    clean, clean_scored = all_maps(scorer, simple, scan)
    usual = slice_values(clean, clean_scored)
    place = Scan(scan.images[:].astype(np.float32) / 255)
    for kind, size in conditions:
        rng = np.random.default_rng(derive_seed(seed, "plant", kind, size, scan.names[0]) % 2**32)
        planted = plant(kind, place, rng, size)
        some, middle = with_planted(scan, planted)
        inside = some.numbers == scan.numbers[middle]
        maps, scored = all_maps(scorer, simple, some)
        values = slice_values(maps, scored)
        for name, each in values.items():
            both = np.concatenate([each[inside], usual[name]])
            truth = np.arange(len(both)) < inside.sum()
            keep(found, f"{kind} {size}|{name}|slices", counted(both, truth, exact=True))
        if planted.mask is not None:
            marked = scorer.run.frame.crop(torch.from_numpy(planted.mask[middle][None])).numpy()
            for name, each in maps.items():
                keep(found, f"{kind} {size}|{name}|voxels", counted(each[torch.from_numpy(inside)].numpy(), marked))
    return found


def with_planted(scan: Split, planted: Planted) -> tuple[Split, int]:
    """The slice in the middle of an anomaly and those below and above it; the index of the first in the scan."""
    holding = np.flatnonzero(planted.slices)
    middle = int(holding[len(holding) // 2])
    near = np.arange(max(middle - 1, 0), min(middle + 2, len(scan)))
    images = (255 * planted.images[near]).round().astype(np.uint8)
    return replace(scan.at(near), images=images), middle


def slice_values(maps: dict[str, Tensor], scored: Scored) -> dict[str, np.ndarray]:
    """One value a slice: the highest of each map; of score.py also its figure of how unusual slices are."""
    values = {name: each.flatten(1).amax(1).double().numpy() for name, each in maps.items()}
    return values | {"score.py, peak": scored.slices["peak"], "score.py, unusual": scored.unusual}


def keep(found: dict[str, np.ndarray], name: str, counts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for which, each in zip(("values", "marked", "rest"), counts):
        found[f"{name}|{which}"] = each


# --------------------------------------------------------------------------- what was found


def report(out: Path, conditions: Sequence[tuple[str, int]], count: int, s: Settings) -> None:
    """Tables of AUROC over slices and average precision over voxels, as Markdown and JSON."""
    files = [np.load(out / f"scan_{index:03d}.npz") for index in range(count)]
    names = list(dict.fromkeys(key.split("|")[1] for key in files[0].files))
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for of, score in (("slices", "auroc"), ("voxels", "average_precision")):
        for kind, size in conditions:
            for name in names:
                key = f"{kind} {size}|{name}|{of}"
                if f"{key}|values" in files[0].files:
                    scans = [
                        Marked(str(i), *(file[f"{key}|{which}"] for which in ("values", "marked", "rest")))
                        for i, file in enumerate(files)
                    ]
                    table = found.setdefault(f"{of}: {score}", {}).setdefault(f"{kind}, {size}", {})
                    table[name] = {key: each for key, each in agreement(scans).items() if key.startswith(score)}
    lines = [f"{count} validation scans, seed {s.seed}, {s.restore} restorations, autoencoder of {s.steps} steps"]
    for title, table in found.items():
        shown = [name for name in names if any(name in row for row in table.values())]
        lines += ["", f"| {title} | {' | '.join(shown)} |", f"|---|{'--:|' * len(shown)}"]
        for condition, row in table.items():
            score = title.split(": ")[1]
            cells = (f"{row[name][score]:.3f}" if name in row else "" for name in shown)
            lines.append(f"| {condition} | {' | '.join(cells)} |")
    write_json(out / "anomaly.json", found)
    write_text(out / "report.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def picture(scorer: Scorer, simple: Simple, scan: Split, kinds: Sequence[str], seed: int, out: Path) -> None:
    """A slice with each kind of anomaly, and all maps of it."""
    rows: dict[str, list[np.ndarray]] = {}
    place, crop = Scan(scan.images[:].astype(np.float32) / 255), scorer.run.frame.crop
    for kind in kinds:
        rng = np.random.default_rng(derive_seed(seed, "plant", kind, 16, scan.names[0]) % 2**32)
        some, middle = with_planted(scan, plant(kind, place, rng, 16))
        index = int(np.flatnonzero(some.numbers == scan.numbers[middle])[0])
        maps, _ = all_maps(scorer, simple, some)
        rows.setdefault("slice", []).append(crop(some.batch(np.array([index])))[0, 0].numpy())
        for name, each in maps.items():
            rows.setdefault(name, []).append((each[index] / WHITE[name]).clamp(0, 1).numpy())
    whites = ", ".join(f"{name} {white:g}" for name, white in WHITE.items())
    shown = [(name, np.stack(each)) for name, each in rows.items()]
    rows_of_slices(shown, out / "anomaly.png", f"Planted anomalies and maps of them; white: {whites}", list(kinds))


if __name__ == "__main__":
    run_main(main)
