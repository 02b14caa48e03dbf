"""The training loop that every stage shares: epochs, schedule, early stopping, checkpoints, curves.

A stage says what it trains and how it is scored (`Stage`); `fit` does the rest. All randomness of a step is seeded from
the run's seed and the step's place in the run, so that an interrupted run that is resumed ends with the same weights.
"""

import json
import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from common import ranks
from common.errors import UserError
from common.files import save_model, write_text
from common.runtime import Progress, derive_seed, seed_everything
from training.optimizer import Muon
from training.standing import CHECKPOINT, Standing

GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01  # decoupled
EXPLODED = 1e4  # a mean loss that no stage has unless it diverges: they begin below 10
WARM_UP = 0.05  # share of the steps over which the learning rate rises
EPOCH_SCORE_SLICES = 256  # slices of a split scored after an epoch, at most; the final scores are over all
FINAL_RATE = 0.02  # share of the learning rate that the cosine ends at


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast a stage trains; `patience` is in epochs without a better validation score, 0 for no limit."""

    epochs: int
    batch: int
    lr: float
    patience: int
    seed: int
    save_every: float  # minutes


class Stage:
    """What `fit` trains. A subclass sets the attributes and implements the methods.

    name: of the stage, and of its weights file. model: what is trained. size: number of training examples.
    score: key of the validation score that decides the best weights; higher_is_better: its direction.
    micro_batch: examples whose activations are held at a time; gradients of a batch are summed over its parts.
    average_decay: of the exponential moving average of the weights that is scored and kept; None scores the weights.
    chances: random numbers that the losses of one example need. They are drawn for the whole batch before it is divided, so that
        neither the parts nor the number of processes changes what an example meets.
    """

    name: str
    model: nn.Module
    size: int
    score: str
    higher_is_better: bool
    micro_batch: int
    average_decay: float | None = None
    chances: int = 0

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        """What moves the weights. The loop sets every learning rate to `lr` times its schedule."""
        return [adamw(self.model.parameters(), lr)]

    def start(self, indices: np.ndarray) -> None:
        """Set up what depends on data, from the first batch; before the first step of a new run."""

    def before_step(self, step: int, steps: int) -> None:
        """Called before each of the run's `steps` steps, with its number from 0."""

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        """Mean losses of a (part of a) batch as scalars; "loss" is minimised, the others are shown.

        chance: `[len(indices), chances]` float64 in 0..1, on the CPU.
        """
        raise NotImplementedError

    def after_step(self) -> dict[str, float]:
        """Called after each optimizer step; what it returns is shown in the progress bar."""
        return {}

    def before_validation(self) -> None:
        """Called in every process before `validate`, which the first process alone calls."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scores of the model, in eval mode, after an epoch."""
        raise NotImplementedError


@dataclass
class Place:
    """Where in the run a checkpoint stands."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished in the current one
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0  # epochs since the best
    totals: dict[str, float] = field(default_factory=dict)  # loss sums of the current epoch
    seconds: float = 0.0  # training time so far


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the state is saved."""


def fit(stage: Stage, settings: FitSettings, folder: Path, resume: bool, vqvae: str | None = None) -> None:
    """Train a stage to its end and leave the best weights in `folder/<stage>.safetensors`.

    Args:
        stage: what to train.
        settings: how.
        folder: the run folder.
        resume: go on from `folder/checkpoint.pt` if it holds a training of this stage that was interrupted. What it says of other
            stages is kept.
        vqvae: `common.files.hash_of` the VQ-VAE whose codes the stage learns from; its weights and its checkpoint then name it.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    _Fit(stage, settings, folder, vqvae).run(resume)


class _Fit:
    def __init__(self, stage: Stage, settings: FitSettings, folder: Path, vqvae: str | None):
        self.stage, self.settings, self.folder, self.vqvae = stage, settings, folder, vqvae
        self.checkpoint, self.weights = folder / CHECKPOINT, folder / f"{stage.name}.safetensors"
        self.standing = Standing.of(folder)
        self.steps = math.ceil(stage.size / settings.batch)
        self.optimizers = stage.optimizers(settings.lr)
        self.average = _averaged(stage.model, stage.average_decay)
        self.place = Place()

    def run(self, resume: bool) -> None:
        if not (resume and self._restore()):
            seed_everything(self.settings.seed, self.stage.name, "start")
            self.stage.start(self._order(0)[: self.settings.batch])
            self._keep_metrics(0)
        ranks.wait()  # before anything is written that another process has yet to read
        with ExitStack() as open_files:
            arrived = open_files.enter_context(_signals())
            if ranks.first():
                curves = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.place.epoch + 1)
                self.curves = open_files.enter_context(curves)
            while self.place.epoch < self.settings.epochs and not self._out_of_patience():
                self._epoch(arrived)
        self.stage.model.requires_grad_(False)

    def _out_of_patience(self) -> bool:
        stop = 0 < self.settings.patience <= self.place.stale
        if stop:
            print(
                f"{self.stage.name}: no better {self.stage.score} for {self.place.stale} epochs, stopping early; "
                f"best was epoch {self.place.best_epoch}",
                flush=True,
            )
        return stop

    def _epoch(self, arrived: list[int]) -> None:
        place, settings, stage = self.place, self.settings, self.stage
        order = self._order(place.epoch)
        saved = started = time.monotonic()
        stage.model.train()
        title = f"{stage.name} epoch {place.epoch + 1}/{settings.epochs}"
        with Progress(stage.size, title, "slice", initial=min(place.step * settings.batch, stage.size)) as progress:
            while place.step < self.steps:
                batch = order[place.step * settings.batch : (place.step + 1) * settings.batch]
                shown = self._step(batch)
                place.step += 1
                progress.update(len(batch), **shown)
                stop = ranks.anywhere(bool(arrived))
                if stop or ranks.anywhere(time.monotonic() - saved > 60 * settings.save_every):
                    now = time.monotonic()
                    place.seconds += now - started
                    started = saved = now
                    self._save()
                if stop:
                    raise Interrupted(signal.Signals(arrived[0] if arrived else signal.SIGTERM).name)
        place.seconds += time.monotonic() - started
        self._finish_epoch()

    def _step(self, batch: np.ndarray) -> dict[str, float]:
        place, stage = self.place, self.stage
        seed_everything(self.settings.seed, stage.name, place.epoch, place.step)
        step = place.epoch * self.steps + place.step
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = self.settings.lr * self._rate(step)
        stage.before_step(step, self.steps * self.settings.epochs)
        chance = torch.rand(len(batch), stage.chances, dtype=torch.float64)
        mine = ranks.share(len(batch))
        totals = self._backward(batch[mine], chance[mine], len(batch))
        self._check_loss(totals["loss"] / len(batch))
        nn.utils.clip_grad_norm_(stage.model.parameters(), GRADIENT_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        shown = stage.after_step()
        if self.average is not None:
            self.average.update_parameters(stage.model)
        for name, value in totals.items():
            place.totals[name] = place.totals.get(name, 0.0) + value
        return {"loss": totals["loss"] / len(batch)} | shown

    def _check_loss(self, loss: float) -> None:
        """Raise UserError for a loss that is no number or has exploded; nothing of this step is kept."""
        place, good = self.place, self.checkpoint if self.checkpoint.exists() else "no checkpoint yet"
        if not loss < EXPLODED:  # not a number neither
            raise UserError(
                f"the {self.stage.name} loss is {loss:.4g} at epoch {place.epoch + 1}, step {place.step + 1}; the last good "
                f"checkpoint ({good}) and the best weights so far are kept; start anew with a lower learning rate than "
                f"{self.settings.lr}, a larger batch or --precision float32"
            )

    def _backward(self, batch: np.ndarray, chance: Tensor, whole: int) -> dict[str, float]:
        """Leave in every parameter the gradient of the mean loss over the `whole` batch, of which this process has a share; sums
        of each loss over it."""
        stage, parts = self.stage, []
        for start in range(0, len(batch), stage.micro_batch):
            part = slice(start, start + stage.micro_batch)
            losses = stage.losses(batch[part], chance[part])
            (losses["loss"] * (len(batch[part]) / whole)).backward()
            parts += [(name, value.detach(), len(batch[part])) for name, value in losses.items()]
        ranks.sum_gradients(stage.model.parameters())
        totals = {"loss": 0.0}
        values = torch.stack([value for _, value, _ in parts]).tolist() if parts else []
        for (name, _, count), value in zip(parts, values):  # read once all parts are under way: reading waits for a GPU
            totals[name] = totals.get(name, 0.0) + value * count
        return ranks.sum_by_name(totals)

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine over all epochs asked for, as a share of the learning rate."""
        total = self.steps * self.settings.epochs
        warm_up = max(1, min(200, round(WARM_UP * total)))
        if step < warm_up:
            return (step + 1) / warm_up
        done = (step - warm_up) / max(1, total - warm_up)
        return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))

    def _finish_epoch(self) -> None:
        place, stage = self.place, self.stage
        model = stage.model if self.average is None else self.average.module
        model.eval()
        scores = {name: total / stage.size for name, total in place.totals.items()}
        stage.before_validation()
        scores |= ranks.from_first(lambda: stage.validate(model))
        place.epoch, place.step, place.totals = place.epoch + 1, 0, {}
        value = scores[stage.score]
        better = place.best is None or (value > place.best if stage.higher_is_better else value < place.best)
        if better:
            place.best, place.best_epoch, place.stale = value, place.epoch, 0
            if ranks.first():
                save_model(self.weights, stage.model, model.state_dict(), self.vqvae)
        else:
            place.stale += 1
        self._log(scores)
        self._save()
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in scores.items())
        print(f"{stage.name} epoch {place.epoch}/{self.settings.epochs}: {shown}{' *' if better else ''}", flush=True)

    def _log(self, scores: dict[str, float]) -> None:
        if not ranks.first():
            return
        place = self.place
        record = {
            "stage": self.stage.name,
            "epoch": place.epoch,
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "seconds": round(place.seconds, 1),
        } | scores
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in scores.items():
            self.curves.add_scalar(f"{self.stage.name}/{name}", value, place.epoch)

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(derive_seed(self.settings.seed, self.stage.name, "order", epoch))
        return rng.permutation(self.stage.size)

    def _save(self) -> None:
        self.standing.trainings.pop(self.stage.name, None)  # it becomes the last one
        self.standing.trainings[self.stage.name] = {
            "vqvae": self.vqvae,
            "place": asdict(self.place),
            "model": self.stage.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": None if self.average is None else self.average.state_dict(),
        }
        if ranks.first():
            self.standing.save(self.folder)
        ranks.wait()

    def _restore(self) -> bool:
        """Load the checkpoint if it holds a training of this stage on the same codes; forget what was logged after it."""
        state = self.standing.trainings.pop(self.stage.name, None)
        if state is None:
            return False
        if state.get("vqvae") not in (None, self.vqvae):
            print(
                f"note: the {self.stage.name} was being trained on codes of another VQ-VAE; it starts anew", flush=True
            )
            return False
        try:
            self.stage.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.place = Place(**state["place"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.checkpoint}: a checkpoint of another run or version ({str(error).splitlines()[0]}); start again without "
                "--resume"
            ) from None
        self._keep_metrics(self.place.epoch)
        print(f"{self.stage.name}: resuming at epoch {self.place.epoch + 1}, step {self.place.step + 1}", flush=True)
        return True

    def _keep_metrics(self, epochs: int) -> None:
        """Forget what was logged of this stage after these epochs."""
        if not ranks.first():
            return
        kept = [
            record
            for record in read_metrics(self.folder)
            if record["stage"] != self.stage.name or record["epoch"] <= epochs
        ]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def scored_slices(training_slices: int) -> int:
    """How many slices to score after an epoch, so that scoring takes no large part of the time."""
    return max(8, min(EPOCH_SCORE_SLICES, training_slices // 8))


def adamw(params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """AdamW as every stage uses it."""
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY)


def muon_and_adamw(model: nn.Module, lr: float, scale: float) -> list[torch.optim.Optimizer]:
    """Muon for the model's `hidden_weights`, AdamW for the ends, the biases and what is no kernel.

    scale: root mean square of Muon's steps at a learning rate of 1; 0.2 is AdamW's.
    """
    hidden = model.hidden_weights()
    orthogonal = {id(weight) for weight in hidden}
    others = [param for param in model.parameters() if id(param) not in orthogonal]
    return [Muon(hidden, lr, weight_decay=WEIGHT_DECAY, scale=scale), adamw(others, lr)]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The run's `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the weights whose window grows with the run, so that a short run has one too."""
    if decay is None:
        return None

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

    return AveragedModel(model, multi_avg_fn=average)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; a second one acts at once."""
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        arrived.append(number)
        print("\nfinishing the step and saving; once more to leave at once", flush=True)
        for other in before:
            signal.signal(other, signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
