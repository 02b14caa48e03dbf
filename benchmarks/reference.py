"""The student project's network by its own recipe, for as long as it needs or for an hour: parts of `benchmarks/vqvae.py`.

    python benchmarks/vqvae.py --data data/keras_png_slices_data --part reference    # 2.4 hours on 2 cores at most

It trains on the whole training split at its own learning rate and at the best of three others, which short trainings of equal
length choose by their validation score. A training ends when the validation split passes the published SSIM, when its time is
over, or when it is `beyond_hope`. It is stopped with Ctrl-C or a kill and goes on from its last checkpoint when started again.

All times are core-pair time (`measuring.core_pair_seconds`), of training steps alone.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Results, core_pair_seconds
from peers import TARGET_SSIM, Reference, score_peer

from common.files import load_checkpoint, save_checkpoint
from common.runtime import seed_everything
from dataset import Dataset, Split

OWN_RATE = 0.002
OTHER_RATES = (0.001, 0.0005, 0.0002)
SCORE_EVERY = 60.0  # seconds of training between scores
SCORED = 140  # validation slices of those scores, spread evenly; what passes there is scored on the whole split
HOPELESS_SECONDS = 600.0  # with one code in use and a loss that does not fall, after which a training is given up
KEPT = ("seconds", "wall_seconds", "steps", "curve", "outcome")


@dataclass
class Training:
    """A reference network on its way.

    steps: taken. seconds, wall_seconds: of the steps, core-pair and by the clock on the wall. curve: a point a score. losses,
    codebook_losses: of the steps since the last score. outcome: why the training has ended, "" while it has not.
    """

    peer: Reference
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
    def of(cls, lr: float, seed: int, folder: Path) -> "Training":
        """A new one, or the one whose checkpoint the folder holds."""
        seed_everything(seed, "reference")
        training = cls(Reference(4, lr), seed, folder / f"lr-{lr:g}.pt")
        training.peer.model.to(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU, otherwise the same
        training.path.parent.mkdir(parents=True, exist_ok=True)
        if training.path.exists():
            state = load_checkpoint(training.path)
            training.peer.model.load_state_dict(state["model"])
            training.peer.optimizers[0].load_state_dict(state["optimizer"])
            for name in KEPT:
                setattr(training, name, state[name])
        return training

    def save(self) -> None:
        state = {name: getattr(self, name) for name in KEPT}
        state |= {"model": self.peer.model.state_dict(), "optimizer": self.peer.optimizers[0].state_dict()}
        save_checkpoint(self.path, state)

    def step(self, train: Split) -> None:
        """One step on the next slices of the epoch; their order depends on the seed and the epoch alone."""
        steps_an_epoch = len(train) // self.peer.batch
        epoch, place = divmod(self.steps, steps_an_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(train))
        started, wall_started = core_pair_seconds(), time.monotonic()
        indices = order[place * self.peer.batch : (place + 1) * self.peer.batch]
        self.losses.append(self.peer.step(train.batch(np.sort(indices))))
        self.codebook_losses.append(self.peer.codebook_loss)
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
    """Whether the training has diverged for good: for `HOPELESS_SECONDS` every score has found one code in use, and the loss is not
    finite or has not fallen since."""
    late = [point for point in curve if point["seconds"] >= curve[-1]["seconds"] - HOPELESS_SECONDS]
    if len(late) == len(curve) or any(point["codes_used"] > 1 for point in late):
        return False
    return not math.isfinite(late[-1]["loss"]) or late[-1]["loss"] >= late[0]["loss"]


def train(training: Training, data: Dataset, minutes: float, report: Callable[[], None]) -> None:
    """Train until there have been so many minutes, or until it passes the target or is beyond hope; `report` follows each score.

    It is saved after each score.
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
        training = Training.of(lr, settings.seed, folder)

        def report() -> None:
            kept = {name: getattr(training, name) for name in KEPT} | {"lr": lr, "short_minutes": settings.short_minutes}
            results.add("reference", f"learning rate {lr:g}", kept)

        train(training, data, minutes, report)
        return training

    trained(OWN_RATE, limit)
    short = {lr: trained(lr, settings.short_minutes) for lr in OTHER_RATES}
    best = max(OTHER_RATES, key=lambda lr: score_after(short[lr].curve, settings.short_minutes))
    trained(best, limit)


def score_after(curve: list[dict[str, float]], minutes: float) -> float:
    """SSIM of the first score at or after so many minutes, of the last one where there is none."""
    return next((point["ssim"] for point in curve if point["seconds"] >= minutes * 60), curve[-1]["ssim"])
