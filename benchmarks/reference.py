"""The student project's network by its own recipe, for as long as it needs or for an hour: parts of `benchmarks/vqvae.py`.

    python benchmarks/vqvae.py --data data/keras_png_slices_data --part reference    # 2.4 hours on 2 cores at most
    python benchmarks/vqvae.py --data data/keras_png_slices_data --part grids,report # of what is trained so far, and of ours
    python benchmarks/vqvae.py --data data/keras_png_slices_data --part equal,report # MONAI and ours on as many slices

The reference trains on the whole training split at its own learning rate and at the best of three others, which short trainings
of equal length choose by their validation score. A training ends when the validation split passes the published SSIM, when its
time is over, or when it is `beyond_hope`. It may be killed: started again, it goes on from its last score.

All times are core-pair time (`measuring.core_pair_seconds`), of training steps alone.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import bench_figures
import numpy as np
import torch
from measuring import Results, core_pair_seconds
from peers import MONAI_CHANNELS, TARGET_SSIM, Monai, Peer, Reference, score_peer
from torch import Tensor

from common.files import load_checkpoint, save_checkpoint
from common.runtime import Progress, seed_everything
from dataset import Dataset, Split
from inference.coding import decode, encode
from scoring.metrics import SSIM_WINDOW, ssim, ssim_map
from training import loop
from utils import PRETRAINED, load_run

OWN_RATE = 0.002
OTHER_RATES = (0.001, 0.0005, 0.0002)
SCORE_EVERY = 60.0  # seconds of training between scores
SCORED = 140  # validation slices of those scores, spread evenly; what passes there is scored on the whole split
HOPELESS_SECONDS = 1800.0  # with one code and a loss that does not fall before a training is given up; some need 600
PUBLISHED = (  # SSIM of grids of the validation split that its training notebook prints after each epoch
    *(0.524, 0.734, 0.815, 0.856, 0.887, 0.886, 0.893, 0.901, 0.905, 0.907),
    *(0.914, 0.915, 0.92, 0.92, 0.92, 0.92, 0.919, 0.923, 0.927, 0.929),
)
PUBLISHED_EPOCH = 9664
KEPT = ("seconds", "wall_seconds", "steps", "curve", "outcome")
GRID_SLICES, GRID_COLUMNS, GRID_PADDING = 32, 8, 2  # of the published SSIM: a batch, torchvision's defaults
MONAI_BATCH, MONAI_RATE = 4, 1e-4  # the recipe that was the best of `MONAI_RECIPES` in three minutes
SAVE_EVERY = 16  # steps of its training between checkpoints
EQUAL_SCORED = 280  # validation slices of the comparison on equally many slices, spread evenly


@dataclass
class Training:
    """A peer on its way, kept in a checkpoint at `path`.

    steps: taken. seconds, wall_seconds: of the steps, core-pair and by the clock on the wall. curve: a point a score. losses,
    codebook_losses: of the steps since the last score. outcome: why the training has ended, "" while it has not.
    """

    peer: Peer
    seed: int
    path: Path
    steps: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    outcome: str = ""
    losses: list[float] = field(default_factory=list)
    codebook_losses: list[float] = field(default_factory=list)

    @classmethod
    def of_reference(cls, lr: float, seed: int, folder: Path) -> "Training":
        """A new training of the reference, or the one whose checkpoint the folder holds."""
        seed_everything(seed, "reference")
        peer = Reference(4, lr)
        peer.model.to(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU, otherwise the same
        return cls(peer, seed, folder / f"lr-{lr:g}.pt").restored()

    def restored(self) -> "Training":
        """Itself, where its checkpoint stands if there is one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            state = load_checkpoint(self.path)
            self.peer.model.load_state_dict(state["model"])
            self.peer.optimizers[0].load_state_dict(state["optimizer"])
            for name in KEPT:
                setattr(self, name, state[name])
        return self

    def save(self) -> None:
        state = {name: getattr(self, name) for name in KEPT}
        state |= {"model": self.peer.model.state_dict(), "optimizer": self.peer.optimizers[0].state_dict()}
        save_checkpoint(self.path, state)

    def step(self, train: Split) -> None:
        """One step on the next slices of the epoch; their order depends on the seed and the epoch alone."""
        steps_an_epoch = max(1, len(train) // self.peer.batch)
        epoch, place = divmod(self.steps, steps_an_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(train))
        started, wall_started = core_pair_seconds(), time.monotonic()
        indices = order[place * self.peer.batch : (place + 1) * self.peer.batch]
        self.losses.append(self.peer.step(train.batch(np.sort(indices))))
        self.codebook_losses.append(getattr(self.peer, "codebook_loss", math.nan))
        self.seconds += core_pair_seconds() - started
        self.wall_seconds += time.monotonic() - wall_started
        self.steps += 1

    def score(self, split: Split) -> None:
        """Add a point to the curve: the losses are means since the last one."""
        point = {"seconds": self.seconds, "wall_seconds": self.wall_seconds, "slices": self.steps * self.peer.batch}
        point |= {"loss": float(np.mean(self.losses)), "codebook_loss": float(np.mean(self.codebook_losses))}
        self.losses, self.codebook_losses = [], []
        self.curve.append(point | score_peer(self.peer, split))


def beyond_hope(curve: list[dict[str, float]]) -> bool:
    """Whether the training has diverged for good: the loss is not finite, or for `HOPELESS_SECONDS` every score found one code
    in use and the loss has not fallen since."""
    if not math.isfinite(curve[-1]["loss"]):
        return True
    late = [point for point in curve if point["seconds"] >= curve[-1]["seconds"] - HOPELESS_SECONDS]
    if len(late) == len(curve) or any(point["codes_used"] > 1 for point in late):
        return False
    return late[-1]["loss"] >= late[0]["loss"]


def train(training: Training, data: Dataset, minutes: float, report: Callable[[], None]) -> None:
    """Train until there have been so many minutes, or until it passes the target or is beyond hope.

    After each score it is saved and `report` is called.
    """
    validation = data.splits["validate"]
    some = validation.evenly(SCORED)
    training.peer.model.train()
    while not training.outcome and training.seconds < minutes * 60:
        scored = training.curve[-1]["seconds"] if training.curve else 0.0
        while training.seconds < min(scored + SCORE_EVERY, minutes * 60):
            training.step(data.splits["train"])
        training.score(some)
        point = training.curve[-1]
        if point["ssim"] >= TARGET_SSIM and score_peer(training.peer, validation)["ssim"] >= TARGET_SSIM:
            training.outcome = f"passed {TARGET_SSIM}"
        elif beyond_hope(training.curve):
            training.outcome = "beyond hope"
        training.save()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in point.items())
        print(f"{training.path.stem}: {shown} {training.outcome}", flush=True)
        report()


def train_reference(settings: Any, data: Dataset, results: Results) -> None:
    """Train at the published rate, choose among the others by short trainings, go on with the best of them."""
    folder, limit = Path(settings.out) / "reference", settings.reference_minutes

    def trained(lr: float, minutes: float) -> Training:
        training = Training.of_reference(lr, settings.seed, folder)

        def report() -> None:
            kept = {name: getattr(training, name) for name in KEPT} | {"short_minutes": settings.short_minutes}
            results.add("reference", f"learning rate {lr:g}", kept)

        train(training, data, minutes, report)
        report()  # of what an earlier call had brought to its end, too
        return training

    trained(OWN_RATE, limit)
    short = {lr: trained(lr, settings.short_minutes) for lr in OTHER_RATES}
    best = max(OTHER_RATES, key=lambda lr: score_after(short[lr].curve, settings.short_minutes))
    trained(best, limit)


def score_after(curve: list[dict[str, float]], minutes: float) -> float:
    """SSIM of the first score at or after so many minutes, of the last one where there is none."""
    return next((point["ssim"] for point in curve if point["seconds"] >= minutes * 60), curve[-1]["ssim"])


# --------------------------------------------------------------------------- the published SSIM, of grids


def make_grid(images: Tensor) -> Tensor:
    """`[B, 1, H, W]` -> `[1, 1, h, w]`, as torchvision's `make_grid` lays a batch out: rows of 8 with two pixels of zeros around
    each slice, one slice as it is."""
    if len(images) == 1:
        return images
    columns = min(GRID_COLUMNS, len(images))
    rows, padding = -(-len(images) // columns), GRID_PADDING
    height, width = images.shape[2] + padding, images.shape[3] + padding
    grid = images.new_zeros(1, 1, rows * height + padding, columns * width + padding)
    for place, image in enumerate(images):
        top, left = (place // columns) * height + padding, (place % columns) * width + padding
        grid[0, :, top : top + images.shape[2], left : left + images.shape[3]] = image
    return grid


def grid_ssim(images: Tensor, targets: Tensor) -> float:
    """SSIM of the grid of a batch, over windows that lie inside it, as pytorch_msssim takes it."""
    edge = SSIM_WINDOW // 2
    return float(ssim_map(make_grid(images), make_grid(targets))[..., edge:-edge, edge:-edge].double().mean())


@torch.no_grad()
def both_measures(split: Split, reconstruct: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """SSIM of a split as this toolkit takes it, the mean over slices, and as the student project does, the mean over grids."""
    values, grids = [], []
    for _, images in split.batches(GRID_SLICES):
        decoded = reconstruct(images)
        values.append(ssim(decoded, images))
        grids.append(grid_ssim(decoded, images))
    return {"ssim": float(torch.cat(values).double().mean()), "grid_ssim": float(np.mean(grids)), "slices": len(split)}


def compare_measures(settings: Any, data: Dataset, results: Results) -> None:
    """Both measures of the references trained so far and of the weights that come with the toolkit, on the validation split.

    The notebook that reports the published SSIM does not call `eval()`: there, batch norm takes the statistics of the batch. The
    references are measured that way too.
    """
    split = data.splits["validate"]
    for lr in (OWN_RATE, *OTHER_RATES):
        training = Training.of_reference(lr, settings.seed, Path(settings.out) / "reference")
        if training.steps:
            peer = training.peer
            measures = both_measures(split, _reconstruction_by(peer, training=False))
            in_batches = both_measures(split, _reconstruction_by(peer, training=True))
            measures |= {f"{name}_in_batches": in_batches[name] for name in ("ssim", "grid_ssim")}
            measures["slices_seen"] = training.curve[-1]["slices"]
            results.add("grids", f"reference, learning rate {lr:g}", measures)
    run = load_run(PRETRAINED)

    def reconstruct(images: Tensor) -> Tensor:
        return decode(run.vqvae, encode(run.vqvae, images, run.frame), run.frame)

    results.add("grids", "oasis-vqvae, pretrained", both_measures(split, reconstruct))


def _reconstruction_by(peer: Peer, training: bool) -> Callable[[Tensor], Tensor]:
    """Slices encoded and decoded by a copy of the peer's network."""
    peer = copy.copy(peer)
    peer.model = copy.deepcopy(peer.model).train(training)
    return lambda images: peer.decode(peer.encode(images))


# --------------------------------------------------------------------------- MONAI on as many slices as ours


def train_equally(
    settings: Any, data: Dataset, results: Results, slices: int, train_ours: Callable[[Dataset], dict[str, Any]]
) -> None:
    """Train ours and MONAI's network, as it is and narrower, on the same slices, each once, in float32, and score all alike.

    train_ours: trains as `train.py` does and scores on the validation split. What the results hold already is not trained again.
    """
    train, scored = data.splits["train"].evenly(slices), data.splits["validate"].evenly(EQUAL_SCORED)
    done = results.values.get("equal", {})
    if "oasis-vqvae" not in done:
        with patch.object(loop, "time", SimpleNamespace(monotonic=core_pair_seconds)):
            ours = train_ours(replace(data, splits=data.splits | {"validate": scored}))
        results.add("equal", "oasis-vqvae", ours)
    for channels in map(int, settings.monai_channels.split(",")):
        name = f"MONAI VQVAE, {channels} channels" + " (its default)" * (channels == MONAI_CHANNELS)
        if name not in done:
            seed_everything(settings.seed, "monai")
            peer = Monai(4, "float32", MONAI_RATE, MONAI_BATCH, channels)
            training = Training(peer, settings.seed, Path(settings.out) / "equal" / f"monai-{channels}.pt").restored()
            train_once(training, train)
            trained = {"seconds": training.seconds, "slices_seen": training.steps * peer.batch}
            results.add("equal", name, trained | score_peer(peer, scored) | {"slices": len(scored)})


def train_once(training: Training, train: Split) -> None:
    """Train on each slice once, in random order."""
    steps = len(train) // training.peer.batch
    with Progress(steps, training.path.stem, "step", initial=training.steps) as progress:
        while training.steps < steps:
            training.step(train)
            progress.update(1)
            if training.steps % SAVE_EVERY == 0 or training.steps == steps:
                training.save()


# --------------------------------------------------------------------------- tables and the picture


def write_tables(values: dict[str, Any], folder: Path) -> list[str]:
    """What `results.json` holds of these parts as Markdown; the picture of the curves goes to the folder."""
    text = []
    if "reference" in values:
        text.append(reference_table(values["reference"]))
        curves = {name: one["curve"] for name, one in values["reference"].items()}
        published = [((epoch + 1) * PUBLISHED_EPOCH, value) for epoch, value in enumerate(PUBLISHED)]
        ours = values.get("equal", {}).get("oasis-vqvae")
        bench_figures.reference_curves(curves, published, ours, TARGET_SSIM, folder / "reference_curves.png")
    if "grids" in values:
        text.append(grids_table(values["grids"]))
    if "equal" in values:
        text.append(equal_table(values["equal"]))
    return text


def reference_table(trainings: dict[str, Any]) -> str:
    """The trainings of the reference as Markdown; what was stopped by its minutes alone has no outcome."""
    rows = []
    for name, one in trainings.items():
        last, best = one["curve"][-1], max(one["curve"], key=lambda point: point["ssim"])
        rows.append(
            f"| {name} | {last['seconds'] / 60:.1f} | {last['slices']:,} | {last['ssim']:.4f} | "
            f"{best['ssim']:.4f} at {best['slices']:,} | {last['codes_used']}; {last['perplexity']:.1f} | "
            f"{last['codebook_loss']:.3g} | {one['outcome'] or 'time over'} |"
        )
    head = (
        "| reference network | minutes | slices seen | SSIM | best SSIM | codes used; perplexity | codebook loss | outcome |\n"
        "|---|--:|--:|--:|--:|--:|--:|---|"
    )
    return "\n".join([head, *rows])


def grids_table(measures: dict[str, Any]) -> str:
    """Both measures as Markdown."""
    rows = []
    for name, one in measures.items():
        in_batches = one.get("grid_ssim_in_batches")
        shown = "" if in_batches is None else f"{in_batches:.4f}"
        rows.append(f"| {name} | {one['ssim']:.4f} | {one['grid_ssim']:.4f} | {shown} |")
    head = "| SSIM, validation split | of slices | of grids | of grids, batch norm of the batch |\n|---|--:|--:|--:|"
    return "\n".join([head, *rows])


def equal_table(contenders: dict[str, Any]) -> str:
    """Quality and time at equally many slices as Markdown."""
    rows = [
        f"| {name} | {one['slices_seen']:,} | {one['ssim']:.4f} | {one['codes_used']}; {one['perplexity']:.0f} | "
        f"{one['seconds'] / 60:.1f} | {one['slices_seen'] / max(one['seconds'], 0.1):.1f} |"
        for name, one in contenders.items()
    ]
    head = (
        "| f=4, float32 | slices seen | quality: SSIM | codes used; perplexity | time: minutes | slices a second |\n"
        "|---|--:|--:|--:|--:|--:|"
    )
    return "\n".join([head, *rows])
