"""The stages of a run, one function each: every one reads what those before it left in the run folder and leaves more there.

A new stage is a function here, with its name in `PIPELINE`; one that trains has a `loop.Stage` in a module of its own.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from common import ranks
from common.cli import require
from common.errors import UserError
from common.files import hash_of, load_model, save_model, save_tensors, vqvae_named_by, write_json
from common.runtime import seed_everything
from dataset import NEIGHBOUR, Split, spread_over
from inference.coding import decode, encode_splits
from inference.drawing import Request, draw_samples
from inference.heads import check_heads
from models.adapting import for_maps_of, told_of, with_context
from models.neighbours import SIDES, neighbours, told_below
from models.sharp_decoder import SharpDecoder
from pixelcnn import NUMBER, GatedPixelCNN
from reporting import figures, pictures, report
from scoring.bits import marginal_bits, mean_bits, with_one_below
from scoring.calibration import fit_temperature
from scoring.case import QUICK, Case, Effort
from scoring.evaluation import evaluate_split
from scoring.metrics import radial_power
from scoring.slices import score_split
from sources.conditions import Condition
from training.job import Job
from training.loop import fit, read_metrics
from training.prior_stage import PriorStage
from training.sharpen_stage import SharpenStage
from training.standing import check_needs, check_up_to_date, is_finished, mark_finished
from training.vqvae_stage import VQVAEStage
from utils import CODES, Run, decoder_to_use, load_run, read_config, run_folder, with_sharp_decoder
from vqvae import VQVAE

Model = TypeVar("Model", bound=nn.Module)
SHOWN = 32  # slices in a picture
HEADS = 4  # whole heads drawn and scored at the end of a training
TOLD = 1  # neighbouring maps that a prior is told, where slices have neighbours
CALIBRATED = 256  # validation maps, spread over the split, that the prior's temperature is fitted on


def check_stages(job: Job) -> None:
    """Raise UserError where what is to be run cannot start from what is in the run folder; writes nothing."""
    wanted, folder = job.settings.stage, job.folder
    require(
        wanted != "vqvae" or not any((folder / f"{later}.safetensors").exists() for later in ("prior", "sharp")),
        f"--stage vqvae: what was trained after it in {folder} belongs to the VQ-VAE that is there; "
        "start a new run with another --out",
    )
    if wanted != "all":
        check_needs(folder, wanted)
        check_inputs(job, wanted)
        check_up_to_date(folder, wanted)
    elif job.settings.resume:
        first = next((name for name in PIPELINE if not is_finished(folder, name)), None)
        if first is not None:
            check_inputs(job, first)


def check_inputs(job: Job, name: str) -> None:
    """Raise UserError where a file that a stage reads is missing, damaged or of another VQ-VAE."""
    if name in ("sample", "report"):
        load_run(job.folder, decoder=decoder_to_use(job.folder))
    elif name != "vqvae":
        job.vqvae()
    if name not in ("vqvae", "encode"):
        job.codes()


def run_stages(job: Job) -> None:
    """Run the stage that is wanted, or all that do not count as finished; each reads what the ones before it left."""
    wanted, ran = job.settings.stage, 0
    for name in PIPELINE if wanted == "all" else [wanted]:
        if wanted == "all" and ranks.from_first(partial(is_finished, job.folder, name)):
            continue
        if name in TOGETHER or ranks.first():
            PIPELINE[name](job)
        ranks.wait()
        if ranks.first():
            mark_finished(job.folder, name)
        ranks.wait()  # before another process reads the checkpoint for the next stage
        ran += 1
    if not ran:
        print(f"{job.folder}: this run is finished, there is nothing to resume")
    if wanted != "all" and ranks.first():
        say_what_is_left(job.folder)


def say_what_is_left(folder: Path) -> None:
    """Say which stages do not count as finished after one was run alone."""
    left = [name for name in PIPELINE if not is_finished(folder, name)]
    if left:
        print(
            f"note: not finished, or out of date: {', '.join(left)}; go on with: python train.py --resume --out {folder}"
        )


def train_vqvae(job: Job) -> None:
    """Train the first stage; leaves `vqvae.safetensors` and its curves."""
    s = job.settings
    seed_everything(s.seed, "vqvae")
    model = weights_to_start_from(job, "vqvae", VQVAE) or VQVAE(s.k, s.d, s.downsample)
    model = model.to(job.device, memory_format=torch.channels_last)
    scored, validation = job.validation()
    if scored != "validate":
        print("note: without a validation split, the best weights are those that score best on the training slices")
    stage = VQVAEStage(model, job.data.splits["train"], validation, job.frame, job.precision, s.init is not None)
    fit(stage, s.fit_settings("vqvae"), job.folder, s.resume)
    if ranks.first():
        path, title = job.pictures / "vqvae_train_status.png", f"VQ-VAE on {job.data.title}"
        figures.vqvae_status(curves(job, "vqvae"), path, title, s.k, scored)


def encode_slices(job: Job) -> None:
    """Encode every split, the training split mirrored too; leaves `codes.safetensors`."""
    vqvae = job.vqvae()
    codes = encode_splits(vqvae, job.data, job.frame, *job.data.splits)
    save_tensors(job.folder / CODES, codes, {}, hash_of(vqvae.state_dict()))


def train_prior(job: Job) -> None:
    """Train the second stage on the code maps and calibrate it; leaves `prior.safetensors` and its curve."""
    s, data = job.settings, job.coded_slices()
    seed_everything(s.seed, "prior")
    model, trained = prior_to_train(job, data.train)
    vqvae = job.vqvae()
    stage = PriorStage(model.to(job.device), data, vqvae.quantizer.codebook, job.precision, trained)
    fit(stage, s.fit_settings("prior"), job.folder, s.resume, hash_of(vqvae.state_dict()))
    if ranks.first():
        calibrate(job)
        path, title = job.pictures / "prior_train_status.png", f"PixelCNN prior on {job.data.title}"
        marginal = marginal_bits(data.codes, data.validation_codes, s.k)
        figures.prior_status(curves(job, "prior"), path, title, s.k, marginal, job.validation()[0])


def prior_to_train(job: Job, train: Split) -> tuple[GatedPixelCNN, bool]:
    """A prior for what is known of the slices, and whether it has been trained before: that of the `--init` run."""
    sizes = {name: condition.size for name, condition in job.data.conditions.items()}
    maps = 0 if job.settings.no_context or (neighbours(train, TOLD) < 0).all() else TOLD
    mirrored_half = train.symmetric and not job.settings.no_mirrored_half
    conditions = (
        ({} if train.positions is None else {"position": NUMBER}) | sizes | ({NEIGHBOUR: SIDES} if maps else {})
    )
    known = weights_to_start_from(job, "prior", GatedPixelCNN)
    if known is None:
        told = {"conditions": conditions, "context": maps, "mirrored_half": mirrored_half}
        return GatedPixelCNN(job.settings.k, marginal=job.map_size, **told), False
    told = with_context(for_maps_of(known, *job.map_size), maps, mirrored_half)
    return told_of(told, conditions, conditions_kept(job, known, conditions)), True


def calibrate(job: Job) -> None:
    """Fit the temperatures of the trained prior on validation maps, told nothing and told the slice below; they are kept in
    `prior.safetensors`."""
    if "validate" not in job.data.splits:
        print("note: without a validation split, the prior is not calibrated")
        return
    path, split, codes = job.folder / "prior.safetensors", job.data.splits["validate"], job.codes()["validate"]
    prior = load_model(path, GatedPixelCNN).to(job.device)
    some = spread_over(len(split), CALIBRATED)
    ways: list[tuple[str, str, np.ndarray, Any]] = [("prior", "temperature", some, (split.known_of(some), None))]
    below = with_one_below(split, some)
    if prior.context_maps and len(below):
        told = told_below(split, codes, prior.context_maps, below)
        ways.append(("prior, told the slice below", "told_temperature", below, told))
    for title, name, which, (known, context) in ways:
        maps = codes[which]
        setattr(prior, name, 1.0)
        before = mean_bits(prior, maps, known, context=context)
        setattr(prior, name, fit_temperature(prior, maps, known, context))
        after, fitted = mean_bits(prior, maps, known, context=context), getattr(prior, name)
        print(
            f"{title}: temperature {fitted:.3f}; validate bits {before:.4f} without it, {after:.4f} with it", flush=True
        )
    save_model(path, prior, vqvae=vqvae_named_by(path))


def train_sharp_decoder(job: Job) -> None:
    """Train the second decoder; leaves `sharp.safetensors`, its curves and a picture of what it restores."""
    s, data = job.settings, job.coded_slices()
    if s.no_sharpen:
        return
    vqvae = job.vqvae()
    seed_everything(s.seed, "sharpen")
    known = weights_to_start_from(job, "sharp", SharpDecoder)
    stage = SharpenStage(vqvae, data, job.frame, job.precision, known and known.to(job.device))
    fit(stage, s.fit_settings("sharpen"), job.folder, s.resume, hash_of(vqvae.state_dict()))
    if ranks.first():
        path, title = job.pictures / "sharp_train_status.png", f"Sharper decoder on {job.data.title}"
        figures.sharp_status(curves(job, "sharp"), path, title, job.validation()[0])
        picture_sharpness(job, vqvae, data.validation, data.validation_codes)


def picture_sharpness(job: Job, vqvae: VQVAE, split: Split, codes: Tensor) -> None:
    """A slice, what both decoders make of its codes, and the spectra of many."""
    some = spread_over(len(split), SHOWN)
    rows = {
        "real": split.batch(some),
        "reconstruction decoder": decode(vqvae, codes[some], job.frame),
        "sharp decoder": decode(with_sharp_decoder(vqvae, job.folder), codes[some], job.frame),
    }
    spectra = {name: radial_power(each).mean(0).numpy() for name, each in rows.items()}
    title = f"A {job.validation()[0]} slice of {job.data.title} and its reconstructions, and the mean spectra of {len(some)}"
    pictures.sharpness(rows, spectra, job.frame, job.pictures / "sharpness.png", title)


def sample_slices(job: Job) -> None:
    """Reconstruct held-out slices and draw new ones of the same positions; leaves their pictures."""
    run, decoder = load_run(job.folder, job.device), decoder_to_use(job.folder)
    painter = load_run(job.folder, job.device, decoder)
    name, split = job.data.best_split("test", "validate")
    codes = job.codes()[name][spread_over(len(split), SHOWN)]
    real = split.evenly(SHOWN)
    shown = pictures.HeldOut(
        name,
        real,
        job.data.title,
        real.batch(np.arange(len(real))),
        codes,
        decode(run.vqvae, codes, run.frame),
        decode(painter.vqvae, codes, run.frame) if decoder == "sharp" else None,
    )
    seeds = [job.settings.seed, job.settings.seed + 1]
    drawn = [
        draw_samples(painter, Request(len(real), real.numbers, seed=seed), f"sampling set {i + 1}")
        for i, seed in enumerate(seeds)
    ]
    pictures.held_out(run, shown, job.pictures)
    pictures.drawn(run, list(zip(seeds, drawn)), job.data.title, job.pictures)
    pictures.side_by_side(shown, drawn[0], job.pictures)
    pictures.architecture(run, job.pictures)


def score_and_report(job: Job) -> None:
    """Score every held-out split; leaves `scores.json` and `report.md`, and prints the table."""
    run, codes, decoder = load_run(job.folder, job.device), job.codes(), decoder_to_use(job.folder)
    held_out = [name for name in ("test", "validate") if name in job.data.splits] or ["train"]
    first, *others = held_out
    sharp = with_sharp_decoder(run.vqvae, job.folder) if decoder == "sharp" else None
    case = Case(run, job.data, first, codes, effort_for(run), job.settings.seed, job.pictures, sharp, decoder)
    scores = {first: evaluate_split(case)}
    for name in others:
        split = job.data.splits[name]
        scores[name] = score_split(run.vqvae, run.prior, split, run.frame, codes["train"], name, codes[name])
    write_json(job.folder / "scores.json", scores)
    report.write(job.folder, run.config, scores)
    print(report.table(scores))
    print(report.of_samples(scores[first]))
    minutes = (time.monotonic() - job.started) / 60
    print(f"{minutes:.1f} minutes; pictures: {job.pictures}/, report: {job.folder / 'report.md'}")
    print(f"Average SSIM on {first} dataset: {scores[first]['ssim']:.4f}", flush=True)


def effort_for(run: Run) -> Effort:
    """How much is scored: whole heads too, where the run can draw them."""
    try:
        check_heads(run)
    except UserError:
        return QUICK
    return replace(QUICK, heads=HEADS)


def weights_to_start_from(job: Job, name: str, model_class: type[Model]) -> Model | None:
    """The model of the `--init` run, ready to be trained on, or None where there is no such run or it has no such model."""
    if job.settings.init is None:
        return None
    path = run_folder(job.settings.init) / f"{name}.safetensors"
    return load_model(path, model_class).requires_grad_(True) if path.exists() else None


def conditions_kept(job: Job, prior: GatedPixelCNN, conditions: dict[str, int]) -> list[str]:
    """The conditions that mean the same to the prior of the `--init` run as they do here; says which it has to learn."""
    stored = read_config(run_folder(job.settings.init))["data"].get("conditions", {})
    told = {name: Condition.from_json(value) for name, value in stored.items()}
    same = {name for name, condition in job.data.conditions.items() if told.get(name) == condition}
    same |= {"position", NEIGHBOUR}
    kept = [name for name in conditions if name in same and name in prior.arguments["conditions"]]
    for name in conditions.keys() - set(kept):
        print(
            f"note: --init {job.settings.init}: its prior was not told {name} as it is here; that is learned from nothing"
        )
    return kept


def curves(job: Job, stage: str) -> list[dict[str, Any]]:
    """What was logged of a stage, a record an epoch."""
    return [record for record in read_metrics(job.folder) if record["stage"] == stage]


PIPELINE: dict[str, Callable[[Job], None]] = {
    "vqvae": train_vqvae,
    "encode": encode_slices,
    "prior": train_prior,
    "sharpen": train_sharp_decoder,
    "sample": sample_slices,
    "report": score_and_report,
}
TOGETHER = ("vqvae", "prior", "sharpen")  # stages that all processes take part in; the first one does the others alone
