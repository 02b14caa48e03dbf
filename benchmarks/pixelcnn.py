"""The prior: what sampling costs, what a training step costs, and bits per code after equal time, beside a plain gated PixelCNN.

    python benchmarks/pixelcnn.py --part sampling,step                    # needs no data; some minutes on 2 cores
    python benchmarks/pixelcnn.py --run runs/f8 --data data/keras_png_slices_data --minutes 9

The codes are those of a trained run (`train.py --stage encode` leaves them). Every part writes its figures to results.json in
--out as soon as it has them.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measuring import Results, medians  # noqa: E402
from plain_prior import PlainPixelCNN  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.files import load_model  # noqa: E402
from common.runtime import Progress, autocast, resolve_precision, seed_everything, versions  # noqa: E402
from dataset import Dataset, spread_over  # noqa: E402
from models.codes import first_level  # noqa: E402
from pixelcnn import NUMBER, GatedPixelCNN  # noqa: E402
from scoring.bits import marginal_bits, mean_bits  # noqa: E402
from sources.slice_set import load_slice_set  # noqa: E402
from training.coded_slices import CodedSlices  # noqa: E402
from training.loop import FitSettings, fit, read_metrics  # noqa: E402
from training.prior_stage import PriorStage  # noqa: E402
from utils import read_codes  # noqa: E402
from vqvae import VQVAE  # noqa: E402

PARTS = ("sampling", "step", "training", "report")
NUM_CODES, SIDE = 512, 64  # of the maps that are sampled; priors are trained on as many codes as their run has
STEP_SIZE = (16, 22, 26)  # maps of a training step: batch, rows, columns
TIMED_STEPS = 7  # of our training, to see how many fit into the time
NAIVE_STEPS = 4  # forward passes that the naive loop's time is taken from: all of them cost the same


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/pixelcnn.py`."""

    part: str = flag("sampling,step,training,report", "Parts to run, separated by commas.")
    run: str | None = flag(None, "Run folder whose codes the priors are trained on.")
    data: str | None = flag(None, "The slices that the run was trained on, for their positions.")
    minutes: float = flag(9.0, "Training time of each prior.")
    batch: int = flag(16, "Maps a step of our own training.")
    lr: float = flag(0.002, "Learning rate of our own training.")
    precision: str = flag("auto", "Arithmetic of our own training.", ("auto", "float32", "bf16"))
    batches: str = flag("1,16,64", "Numbers of maps sampled at a time, separated by commas.")
    repeats: int = flag(5, "Repeats whose median is reported.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("runs/bench-pixelcnn", "Folder for the results.")
    cache: str = flag(".cache", "Folder for decoded slices.")

    def check(self) -> None:
        parts = set(self.part.split(","))
        require(parts <= set(PARTS), f"--part {', '.join(parts - set(PARTS))}: expected some of {', '.join(PARTS)}")
        require(
            all(batch.isdecimal() and int(batch) > 0 for batch in self.batches.split(",")),
            f"--batches is {self.batches}; expected numbers above 0, separated by commas",
        )
        require(
            "training" not in parts or (self.run is not None and self.data is not None),
            "--part training needs --run and --data",
        )

    @property
    def arithmetic(self) -> str:
        """ "float32" or "bf16"."""
        return resolve_precision(self.precision, torch.device("cpu"))


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    settings.check()
    results = Results(Path(settings.out) / "results.json")
    results.origin = versions() | {"precision": settings.arithmetic}
    for part in settings.part.split(","):
        PART_FUNCTIONS[part](settings, results)


# --------------------------------------------------------------------------- sampling


def sampling(settings: Settings, results: Results) -> None:
    """Seconds of one teacher-forced forward pass, of a sample, and of the naive loop, by batch size."""
    seed_everything(settings.seed)
    prior = GatedPixelCNN(NUM_CODES, marginal=(SIDE, SIDE)).eval()
    for batch in map(int, settings.batches.split(",")):
        codes, position = torch.randint(0, NUM_CODES, (batch, SIDE, SIDE)), torch.rand(batch)
        forward = torch.inference_mode()(lambda codes=codes, position=position: prior(codes, position))
        runs = {
            "forward": forward,
            "sample": lambda batch=batch, position=position: prior.sample(batch, SIDE, SIDE, position),
            "naive": lambda forward=forward: [forward() for _ in range(NAIVE_STEPS)],
        }
        seconds = medians(runs, settings.repeats)
        seconds["naive"] *= SIDE**2 / NAIVE_STEPS
        results.add("sampling", str(batch), seconds)
        print(batch, seconds, flush=True)


# --------------------------------------------------------------------------- a training step


def step(settings: Settings, results: Results) -> None:
    """Seconds of one forward and backward pass of both priors, in each arithmetic."""
    seed_everything(settings.seed)
    codes, position = torch.randint(0, NUM_CODES, STEP_SIZE), torch.rand(STEP_SIZE[0])
    runs: dict[str, Callable[[], Any]] = {}
    for precision in dict.fromkeys(("float32", settings.arithmetic)):
        for name, model in (
            ("ours", GatedPixelCNN(NUM_CODES, marginal=STEP_SIZE[1:])),
            ("plain", PlainPixelCNN(NUM_CODES)),
        ):
            model.train()
            runs[f"{name}, {precision}"] = partial(_forward_backward, model, codes, position, precision)
    seconds = medians(runs, settings.repeats)
    results.set("step", seconds)
    print(json.dumps(seconds, indent=2), flush=True)


def _forward_backward(model: nn.Module, codes: Tensor, position: Tensor, precision: str) -> None:
    model.zero_grad(set_to_none=True)
    with autocast(codes.device, precision):
        logits = model(codes, position)
    F.cross_entropy(logits.float(), codes).backward()


# --------------------------------------------------------------------------- training


def train_both(settings: Settings, results: Results) -> None:
    """Bits per code on the validation maps after equal training time."""
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    codes = {name: first_level(maps) for name, maps in read_codes(Path(settings.run)).items()}
    codebook = load_model(Path(settings.run) / "vqvae.safetensors", VQVAE).quantizer.codebook
    results.set("marginal", marginal_bits(codes["train"], codes["validate"], len(codebook)))
    results.set("plain", train_plain(settings, data, codes, len(codebook)))
    results.set("ours", train_ours(settings, data, codes, codebook))


def train_plain(settings: Settings, data: Dataset, codes: dict[str, Tensor], num_codes: int) -> dict[str, Any]:
    """The plain prior by its own recipe: Adam at 0.001, 64 maps a step, float32."""
    seed_everything(settings.seed, "plain")
    model, batch = PlainPixelCNN(num_codes), 64
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rng, seconds, maps = np.random.default_rng(settings.seed), 0.0, 0
    train, some = codes["train"], codes["validate"][:: max(1, len(codes["validate"]) // 140)]
    curve, next_score = [], 60.0
    while seconds < settings.minutes * 60:
        chosen = torch.from_numpy(rng.choice(len(train), min(batch, len(train)), replace=False))
        started = time.monotonic()
        part = train[chosen].long()
        loss = F.cross_entropy(model(part), part)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds, maps = seconds + time.monotonic() - started, maps + len(part)
        if seconds >= next_score:
            next_score = seconds + 60
            curve.append({"seconds": seconds, "maps": maps, "validate_bits": mean_bits(model, some, {})})
            print(f"  plain, {seconds / 60:.1f} min, {maps} maps: {curve[-1]['validate_bits']:.3f} bits", flush=True)
    return {"seconds": seconds, "maps": maps, "curve": curve} | _bits(model, data, codes)


def train_ours(settings: Settings, data: Dataset, codes: dict[str, Tensor], codebook: Tensor) -> dict[str, Any]:
    """Train as `train.py` does, on as many maps as fit into the time; what a step takes is measured first."""
    seconds = []
    stage = _stage(settings, data, codes, codebook, np.arange(len(codes["train"])))
    stage.model.train()
    for _ in range(TIMED_STEPS):
        started = time.monotonic()
        some = np.arange(min(settings.batch, stage.size))
        stage.losses(some, torch.rand(len(some), stage.chances))["loss"].backward()
        seconds.append(time.monotonic() - started)
    maps = max(settings.batch, int(settings.minutes * 60 / np.median(seconds)) * settings.batch)
    epochs = -(-maps // stage.size)
    stage = _stage(settings, data, codes, codebook, spread_over(stage.size, maps // epochs))
    folder = Path(settings.out) / "ours"
    folder.mkdir(parents=True, exist_ok=True)
    fit(stage, FitSettings(epochs, settings.batch, settings.lr, 0, settings.seed, 5.0), folder, resume=False)
    records = read_metrics(folder)
    best = load_model(folder / "prior.safetensors", GatedPixelCNN)
    curve = [{name: record[name] for name in ("seconds", "train_bits", "validate_bits")} for record in records]
    result = {"seconds": records[-1]["seconds"], "maps": epochs * stage.size, "curve": curve}
    return result | _bits(best, data, codes)


def _stage(
    settings: Settings, data: Dataset, codes: dict[str, Tensor], codebook: Tensor, chosen: np.ndarray
) -> PriorStage:
    """A new prior that will train on some of the training maps."""
    seed_everything(settings.seed, "prior")
    train = data.splits["train"]
    some = replace(
        train,
        images=train.images[chosen],
        subjects=[train.subjects[i] for i in chosen],
        positions=train.positions[chosen],
        numbers=train.numbers[chosen],
    )
    maps = codes["train"][chosen], codes["train_mirrored"][chosen], codes["validate"]
    model = GatedPixelCNN(len(codebook), conditions={"position": NUMBER}, marginal=tuple(maps[0].shape[1:]))
    return PriorStage(model, CodedSlices(some, data.splits["validate"], *maps), codebook, settings.arithmetic)


def _bits(model: nn.Module, data: Dataset, codes: dict[str, Tensor]) -> dict[str, float]:
    """Bits per code of every validation map, and of as many training maps."""
    some = np.linspace(0, len(codes["train"]) - 1, len(codes["validate"])).astype(int)
    known = {name: values[some] for name, values in data.splits["train"].known.items()}
    return {
        "validate_bits": mean_bits(model, codes["validate"], data.splits["validate"].known),
        "train_bits": mean_bits(model, codes["train"][some], known),
    }


# --------------------------------------------------------------------------- tables


def write_report(settings: Settings, results: Results) -> None:
    """Print the tables of all that results.json holds."""
    values, text = results.values, []
    if "sampling" in values:
        rows = [
            f"| {batch} | {row['sample'] / row['forward']:.2f} | {row['naive'] / row['sample']:.0f} |"
            for batch, row in values["sampling"].items()
        ]
        head = "| maps at a time | sampling / one forward pass | naive loop / sampling |\n|--:|--:|--:|"
        text.append("\n".join([head, *rows]))
    if "step" in values:
        rows = [
            f"| {precision} | {values['step'][f'ours, {precision}'] / values['step'][f'plain, {precision}']:.2f} |"
            for precision in dict.fromkeys(name.split(", ")[1] for name in values["step"])
        ]
        text.append("\n".join(["| training step | ours / plain |\n|---|--:|", *rows]))
    if "ours" in values:
        rows = [
            f"| {title} | {values[name]['seconds'] / 60:.1f} | {values[name]['maps']} | {values[name]['train_bits']:.3f} | "
            f"{values[name]['validate_bits']:.3f} |"
            for name, title in (("plain", "plain PixelCNN"), ("ours", "oasis-vqvae"))
        ]
        rows.append(f"| code frequencies by place | | | | {values['marginal']:.3f} |")
        head = "| | minutes | maps seen | bits per code, train | validate |\n|---|--:|--:|--:|--:|"
        text.append("\n".join([head, *rows]))
    (Path(settings.out) / "report.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text), flush=True)


PART_FUNCTIONS = {"sampling": sampling, "step": step, "training": train_both, "report": write_report}

if __name__ == "__main__":
    run_main(main)
