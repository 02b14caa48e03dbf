"""The stages of a run, one function each: every one reads what those before it left in the run folder and leaves more there.

A new stage is a function here, with its name in `PIPELINE`; one that trains has a `loop.Stage` in a module of its own.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from common import ranks
from common.cli import require
from common.errors import UserError
from common.files import hash_of, load_model, save_model, vqvae_named_by, write_json
from common.runtime import seed_everything
from dataset import NEIGHBOUR, Split, spread_over
from inference.coding import decode, encode, encode_splits
from inference.drawing import Request, draw_samples
from inference.heads import check_heads
from models.adapting import for_maps_of, told_of, with_context
from models.codes import CodeMaps, Codes, first_level, last_level
from models.detail import Codec, DetailLevel, TwoLevelVQVAE, sizes_upon
from models.neighbours import SIDES, neighbours, told_below
from models.sharp_decoder import SharpDecoder, SharpDetail
from pixelcnn import NUMBER, GatedPixelCNN
from reporting import figures, pictures, report
from scoring.bits import marginal_bits, mean_bits, told_of_first, with_one_below
from scoring.calibration import fit_temperature
from scoring.case import QUICK, Case, Effort
from scoring.evaluation import evaluate_split
from scoring.held_out import HELD_OUT, measure, save
from scoring.metrics import radial_power
from scoring.slices import score_split
from sources.conditions import Condition
from training.coded_slices import CodedSlices
from training.detail_prior_stage import DetailPriorStage
from training.detail_stage import DetailStage
from training.job import Job
from training.loop import fit, read_metrics
from training.prior_stage import PriorStage
from training.sharpen_stage import SharpenStage
from training.standing import check_needs, check_up_to_date, is_finished, mark_finished
from training.vqvae_stage import VQVAEStage
from utils import (
    DETAIL_WEIGHTS,
    Run,
    decoder_to_use,
    load_run,
    read_config,
    run_folder,
    save_codes,
    with_sharp_decoder,
)
from vqvae import VQVAE

Model = TypeVar("Model", bound=nn.Module)
SHOWN = 32  # slices in a picture
HEADS = 4  # whole heads drawn and scored at the end of a training
TOLD = 2  # neighbouring maps that a prior is told, where slices have neighbours: the second says how things grow
DETAIL_PRIOR = dict(layers=8, first_kernel=5)  # the first level has said what lies far away
AFTER_THE_FIRST = ("detail", "prior", "detail_prior", "sharp")  # weights that belong to the first level
CALIBRATED = 256  # validation maps, spread over the split, that the prior's temperature is fitted on


def check_stages(job: Job) -> None:
    """Raise UserError where what is to be run cannot start from what is in the run folder; writes nothing."""
    wanted, folder = job.settings.stage, job.folder
    require(
        wanted != "vqvae" or not any((folder / f"{later}.safetensors").exists() for later in AFTER_THE_FIRST),
        f"--stage vqvae: what was trained after it in {folder} belongs to the VQ-VAE that is there; "
        "start a new run with another --out",
    )
    if wanted != "all":
        check_needs(folder, wanted)
        check_inputs(job, wanted)
        check_up_to_date(folder, wanted)
    elif job.settings.resume:
        first = next(iter(left_to_do(job)), None)
        if first is not None:
            check_inputs(job, first)


def check_inputs(job: Job, name: str) -> None:
    """Raise UserError where a file that a stage reads is missing, damaged or of another VQ-VAE."""
    if name in ("sample", "report"):
        load_run(job.folder, decoder=decoder_to_use(job.folder))
    elif name != "vqvae":
        codec = job.vqvae("first" if name == "detail" else "both")
        require(
            name != "detail_prior" or isinstance(codec, TwoLevelVQVAE),
            f"--stage {name}: {job.folder} has no second level of codes; train it with: python train.py --stage detail "
            f"--out {job.folder}",
        )
    if name not in ("vqvae", "detail", "encode"):
        job.codes()


def run_stages(job: Job) -> None:
    """Run the stage that is wanted, or all that do not count as finished; each reads what the ones before it left."""
    wanted, ran = job.settings.stage, 0
    for name in to_do(job) if wanted == "all" else [wanted]:
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
        say_what_is_left(job)


def to_do(job: Job) -> list[str]:
    """The stages of this run, in order."""
    return [name for name in PIPELINE if name not in job.settings.left_out]


def left_to_do(job: Job) -> list[str]:
    """Those that do not count as finished."""
    return [name for name in to_do(job) if not is_finished(job.folder, name)]


def say_what_is_left(job: Job) -> None:
    """Say which stages do not count as finished after one was run alone."""
    left = left_to_do(job)
    if left:
        print(
            f"note: not finished, or out of date: {', '.join(left)}; go on with: python train.py --resume --out {job.folder}"
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


def train_detail(job: Job) -> None:
    """Train the second level of codes upon the first; leaves `detail.safetensors`, its curves and a picture of what it adds."""
    s, first = job.settings, job.vqvae("first")
    seed_everything(s.seed, "detail")
    known = weights_to_start_from(job, "detail", DetailLevel)
    model = known or DetailLevel(s.detail_k or s.k, s.detail_d, **sizes_upon(first))
    levels = TwoLevelVQVAE(first, model.to(job.device, memory_format=torch.channels_last))
    scored, validation = job.validation()
    stage = DetailStage(levels, job.data.splits["train"], validation, job.frame, job.precision, known is not None)
    fit(stage, s.fit_settings("detail"), job.folder, s.resume, hash_of(first.state_dict()))
    if ranks.first():
        path, title = job.pictures / "detail_train_status.png", f"Second level of codes on {job.data.title}"
        figures.vqvae_status(curves(job, "detail"), path, title, model.quantizer.num_codes, scored)
        picture_detail(job)


def picture_detail(job: Job) -> None:
    """A slice, what the first level and both make of it, and the spectra of many."""
    levels, (_, split) = job.vqvae(), job.validation()
    images = split.batch(spread_over(len(split), SHOWN))
    codes = encode(levels, images, job.frame)
    rows = {
        "real": images,
        "first level": decode(levels, first_level(codes), job.frame),
        "both levels": decode(levels, codes, job.frame),
    }
    picture_restored(job, rows, "detail.png")


def encode_slices(job: Job) -> None:
    """Encode every split, the training split mirrored too, by each level; leaves `codes.safetensors`."""
    vqvae = job.vqvae()
    save_codes(job.folder, encode_splits(vqvae, job.data, job.frame, *job.data.splits), vqvae)


def train_prior(job: Job) -> None:
    """Train the prior of the first level on its code maps and calibrate it; leaves `prior.safetensors` and its curve."""
    s, data = job.settings, job.coded_slices().of(first_level)
    seed_everything(s.seed, "prior")
    model, trained = prior_to_train(job, data.train)
    vqvae = job.vqvae("first")
    stage = PriorStage(model.to(job.device), data, vqvae.quantizer.codebook, job.precision, trained)
    fit(stage, s.fit_settings("prior"), job.folder, s.resume, hash_of(vqvae.state_dict()))
    if ranks.first():
        calibrate(job, "prior")
        picture_prior(job, "prior", f"PixelCNN prior on {job.data.title}", data, s.k)


def prior_to_train(job: Job, train: Split) -> tuple[GatedPixelCNN, bool]:
    """A prior for what is known of the slices, and whether it has been trained before: that of the `--init` run."""
    conditions, maps = told_to_priors(job, train)
    mirrored_half = train.symmetric and not job.settings.no_mirrored_half
    known = weights_to_start_from(job, "prior", GatedPixelCNN)
    if known is None:
        told = {"conditions": conditions, "context": maps, "mirrored_half": mirrored_half}
        return GatedPixelCNN(job.settings.k, marginal=job.map_size, **told), False
    told = with_context(for_maps_of(known, *job.map_size), maps, mirrored_half)
    return told_of(told, conditions, conditions_kept(job, known, conditions)), True


def told_to_priors(job: Job, train: Split) -> tuple[dict[str, int], int]:
    """What priors are told of slices: conditions, and how many neighbouring maps."""
    sizes = {name: condition.size for name, condition in job.data.conditions.items()}
    maps = 0 if job.settings.no_context or (neighbours(train, 1) < 0).all() else TOLD
    position = {} if train.positions is None else {"position": NUMBER}
    return position | sizes | ({NEIGHBOUR: SIDES} if maps else {}), maps


def train_detail_prior(job: Job) -> None:
    """Train the prior of the second level, told the first, and calibrate it; leaves `detail_prior.safetensors` and its curve."""
    s, data, levels = job.settings, job.coded_slices(), job.vqvae()
    seed_everything(s.seed, "detail_prior")
    conditions, maps = told_to_priors(job, data.train)
    known = weights_to_start_from(job, "detail_prior", GatedPixelCNN)
    if known is None:
        sizes = dict(context=maps, context_features=levels.context_channels, **DETAIL_PRIOR)
        model = GatedPixelCNN(levels.detail.quantizer.num_codes, conditions=conditions, **sizes)
    else:
        model = told_of(known, conditions, conditions_kept(job, known, conditions))
    stage = DetailPriorStage(model.to(job.device), levels, data, job.precision, known is not None)
    fit(stage, s.fit_settings("detail_prior"), job.folder, s.resume, hash_of(levels.state_dict()))
    if ranks.first():
        calibrate(job, "detail_prior")
        title = f"PixelCNN prior of the second level on {job.data.title}"
        picture_prior(job, "detail_prior", title, data.of(last_level), model.num_codes)


def picture_prior(job: Job, stage: str, title: str, data: CodedSlices, num_codes: int) -> None:
    """The curves of a prior."""
    marginal = marginal_bits(data.codes, data.validation_codes, num_codes)
    path = job.pictures / f"{stage}_train_status.png"
    figures.prior_status(curves(job, stage), path, title, num_codes, marginal, job.validation()[0])


def calibrate(job: Job, stage: str) -> None:
    """Fit the temperatures of the prior that a stage has trained on validation maps, told nothing and told the slice below; they
    are kept with its weights."""
    if "validate" not in job.data.splits:
        print("note: without a validation split, the prior is not calibrated")
        return
    path, split, codes = job.folder / f"{stage}.safetensors", job.data.splits["validate"], job.codes()["validate"]
    prior, upon_first = load_model(path, GatedPixelCNN).to(job.device), stage == "detail_prior"
    maps = last_level(codes) if upon_first else first_level(codes)
    of_first = told_of_first(job.vqvae(), first_level(codes)) if upon_first else lambda _: None
    some, name = spread_over(len(split), CALIBRATED), stage.replace("_", " ")
    ways: list[tuple[str, str, np.ndarray, Any]] = [(name, "temperature", some, (split.known_of(some), None))]
    below = with_one_below(split, some)
    if prior.context_maps and len(below):
        beside = told_below(split, maps, prior.context_maps, below)
        ways.append((f"{name}, told the slice below", "told_temperature", below, beside))
    for title, temperature, which, (known, context) in ways:
        beside = dict(context=context, features=of_first(which))
        setattr(prior, temperature, 1.0)
        before = mean_bits(prior, maps[which], known, **beside)
        setattr(prior, temperature, fit_temperature(prior, maps[which], known, **beside))
        after, fitted = mean_bits(prior, maps[which], known, **beside), getattr(prior, temperature)
        print(
            f"{title}: temperature {fitted:.3f}; validate bits {before:.4f} without it, {after:.4f} with it", flush=True
        )
    save_model(path, prior, vqvae=vqvae_named_by(path))


def train_sharp_decoder(job: Job) -> None:
    """Train the second decoder; leaves `sharp.safetensors`, its curves and a picture of what it restores."""
    s, data, vqvae = job.settings, job.coded_slices(), job.vqvae()
    seed_everything(s.seed, "sharpen")
    known = sharp_decoder_to_train(job, isinstance(vqvae, TwoLevelVQVAE))
    stage = SharpenStage(vqvae, data, job.frame, job.precision, known and known.to(job.device))
    fit(stage, s.fit_settings("sharpen"), job.folder, s.resume, hash_of(vqvae.state_dict()))
    if ranks.first():
        path, title = job.pictures / "sharp_train_status.png", f"Sharper decoder on {job.data.title}"
        figures.sharp_status(curves(job, "sharp"), path, title, job.validation()[0])
        picture_sharpness(job, vqvae, data.validation, data.validation_codes)


def sharp_decoder_to_train(job: Job, two_levels: bool) -> SharpDecoder | SharpDetail | None:
    """That of the `--init` run, if it paints on top of as many levels."""
    init = job.settings.init
    if init is not None and (run_folder(init) / DETAIL_WEIGHTS).exists() != two_levels:
        print(f"note: --init {init}: it has another number of levels of codes; the sharp decoder starts from nothing")
        return None
    return weights_to_start_from(job, "sharp", SharpDetail if two_levels else SharpDecoder)


def picture_sharpness(job: Job, vqvae: Codec, split: Split, codes: CodeMaps) -> None:
    """A slice, what both decoders make of its codes, and the spectra of many."""
    some = spread_over(len(split), SHOWN)
    rows = {
        "real": split.batch(some),
        "reconstruction decoder": decode(vqvae, codes[some], job.frame),
        "sharp decoder": decode(with_sharp_decoder(vqvae, job.folder), codes[some], job.frame),
    }
    picture_restored(job, rows, "sharpness.png")


def picture_restored(job: Job, rows: dict[str, Tensor], file: str) -> None:
    """Slices and several reconstructions of them, by name `[N, 1, H, W]`: one of them, and the mean spectra of all."""
    spectra = {name: radial_power(each).mean(0).numpy() for name, each in rows.items()}
    count = len(next(iter(rows.values())))
    title = (
        f"A {job.validation()[0]} slice of {job.data.title} and its reconstructions, and the mean spectra of {count}"
    )
    pictures.sharpness(rows, spectra, job.frame, job.pictures / file, title)


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
        decode(run.vqvae, codes.first, run.frame) if isinstance(codes, Codes) else None,
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
    """Score every held-out split; leaves `scores.json`, `report.md` and what is usual (`held_out.safetensors`), and prints the
    table."""
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
    if "validate" in job.data.splits:
        train = job.data.splits["train"]
        save(job.folder / HELD_OUT, measure(run, job.data.splits["validate"], train, "measuring held-out scans"), run)
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
    "detail": train_detail,
    "encode": encode_slices,
    "prior": train_prior,
    "detail_prior": train_detail_prior,
    "sharpen": train_sharp_decoder,
    "sample": sample_slices,
    "report": score_and_report,
}
# stages that all processes take part in; the first one does the others alone
TOGETHER = ("vqvae", "detail", "prior", "detail_prior", "sharpen")
