"""Train a VQ-VAE on brain slices, a PixelCNN prior on its codes and a decoder that restores texture; draw new slices.

    python train.py                                          # the built-in synthetic cohort, some minutes on 2 cores
    python train.py --data data/keras_png_slices_data        # OASIS-1 slices
    python train.py --data DIR --downsample 4 --epoch 20 --out runs/mine
    python train.py --data BIDS --table BIDS/participants.tsv --condition age,sex
    python train.py --resume --out runs/mine                 # go on where it was stopped
    python train.py --stage prior --out runs/mine            # one stage of a run anew
    torchrun --nproc_per_node=2 train.py --data DIR          # two processes share every batch: the same result

The run folder then holds the weights, the curves, the scores, the pictures and `report.md`; `generate.py` and `evaluate.py`
work on it.
"""

import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import figures
import ranks
import report
from cli import flag, parse_flags, require, run_main
from dataset import Dataset, Frame, Split, find_frame, spread_over
from evaluation import QUICK, Case, evaluate_split
from metrics import radial_power
from pixelcnn import NUMBER, GatedPixelCNN
from sampling import Samples, draw_samples
from scoring import decode, encode, encode_split, marginal_bits, score_split
from sharpening import SharpDecoder
from sources import FORMATS, DataOptions, describe, load, split_table
from stages import PriorStage, SharpenStage, VQVAEStage
from training import FitSettings, Interrupted, finished_stages, fit, mark_finished, read_metrics
from utils import (
    Progress,
    Run,
    check_writable,
    decoder_to_use,
    held,
    load_model,
    load_run,
    newest_run,
    read_codes,
    read_config,
    replacing,
    resolve_device,
    resolve_precision,
    run_folder,
    seed_everything,
    versions,
    with_sharp_decoder,
    write_json,
    write_text,
)
from volumes import AXES
from vqvae import VQVAE

Model = TypeVar("Model")
SHOWN = 32  # slices in a picture
WHILE_RESUMING = ("out", "device", "resume", "save_every", "cache")  # flags that may differ from the run's own
EPOCHS = {
    "epoch": "vqvae",
    "epoch_prior": "prior",
    "epoch_sharpen": "sharpen",
}  # flags that may be raised, and their stages


@dataclass(frozen=True)
class Settings:
    """The flags of `train.py`."""

    epoch: int = flag(50, "Epochs of VQ-VAE training.")
    batch: int = flag(32, "Batch size of VQ-VAE training.")
    lr: float = flag(0.002, "Learning rate of VQ-VAE training.")
    epoch_prior: int = flag(100, "Epochs of PixelCNN training.")
    batch_prior: int = flag(64, "Batch size of PixelCNN training.")
    lr_prior: float = flag(0.001, "Learning rate of PixelCNN training.")
    epoch_sharpen: int = flag(10, "Epochs of training the sharper decoder.")
    batch_sharpen: int = flag(8, "Batch size of training the sharper decoder.")
    lr_sharpen: float = flag(0.002, "Learning rate of training the sharper decoder.")
    no_sharpen: bool = flag(False, "Leave out the sharper decoder: samples are then as smooth as reconstructions.")
    k: int = flag(512, "Number of codes.")
    d: int = flag(64, "Dimension of a code.")
    downsample: int = flag(8, "Pixels a code covers along each side.", (2, 4, 8, 16, 32))
    data: str | None = flag(
        None,
        "Folder of slices or volumes, see --format; the built-in synthetic cohort where it is not given.",
    )
    format: str = flag(
        "auto",
        "What --data holds: "
        + "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        + "; auto recognises it.",
        ("auto", *FORMATS),
    )
    axis: str = flag("axial", "Which way volumes are sliced.", tuple(AXES))
    spacing: float = flag(1.0, "Millimetres between voxels that volumes are resampled to.")
    slices: int = flag(32, "Slices of each volume, spread evenly over its central part that holds brain.")
    slice_range: str | None = flag(
        None,
        "Shares of the axis, low:high in 0..1, that the slices of volumes are spread over instead, such as 0.3:0.7.",
    )
    split: str = flag(
        "85,10,5",
        "Percent of the subjects for training, validation and test where the data has no splits; who is where hangs on the "
        "subject's name alone.",
    )
    split_file: str | None = flag(
        None, "A table with the columns subject and split, such as a run's split.csv, that decides it instead."
    )
    skip_bad: bool = flag(
        False, "Leave out volumes and images that cannot be read, and say which, instead of stopping."
    )
    table: str | None = flag(None, "A .csv or .tsv file with a line a subject, such as participants.tsv.")
    condition: str | None = flag(
        None, "Columns of --table, separated by commas, that the prior is told, such as cdr,age,sex."
    )
    init: str | None = flag(
        None,
        "Run folder, or pretrained, whose weights the networks start from; they are trained further on the data given here.",
    )
    image_size: int | None = flag(
        None,
        "Resample slices to this many pixels a side; their own size where it is not given "
        "(112 for the built-in cohort).",
    )
    out: str | None = flag(None, "Run folder; a new one under runs/ where it is not given.")
    seed: int = flag(0, "Seed of everything random.")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps.")
    precision: str = flag(
        "auto",
        "Arithmetic of training; auto is bf16 where the hardware has it. Codes are always computed in float32.",
        ("auto", "float32", "bf16"),
    )
    patience: int = flag(
        10, "Epochs without a better validation score after which a stage stops early; 0 never stops early."
    )
    save_every: float = flag(5.0, "Minutes between two checkpoints within an epoch; every epoch ends with one.")
    stage: str = flag(
        "all",
        "Run one stage alone, from what the stages before it left in the run folder.",
        ("all", "vqvae", "encode", "prior", "sharpen", "sample", "report"),
    )
    resume: bool = flag(
        False, "Go on with the run of --out (the newest run where it is not given) where it was stopped."
    )
    cache: str = flag(".cache", "Folder for decoded slices.")

    def check(self) -> None:
        """Raise UserError for a value that cannot work."""
        for name in ("epoch", "batch", "epoch_prior", "batch_prior", "epoch_sharpen", "batch_sharpen"):
            require(getattr(self, name) >= 1, f"--{name} is {getattr(self, name)}; expected at least 1")
        for name in ("lr", "lr_prior", "lr_sharpen"):
            require(
                0 < getattr(self, name) < 1, f"--{name} is {getattr(self, name)}; expected a number between 0 and 1"
            )
        require(1 <= self.d <= 4096, f"--d is {self.d}; expected 1 to 4096 dimensions")
        require(2 <= self.k <= 2**16, f"--k is {self.k}; expected 2 to 65536 codes")
        require(self.patience >= 0, f"--patience is {self.patience}; expected 0 (never stop early) or more")
        require(self.save_every > 0, f"--save_every is {self.save_every}; expected minutes above 0")
        require(
            self.image_size is None or 8 <= self.image_size <= 4096,
            f"--image_size is {self.image_size}; expected 8 to 4096 pixels",
        )
        DataOptions.of(asdict(self)).check()
        require(
            not (self.no_sharpen and self.stage == "sharpen"), "--no_sharpen leaves out what --stage sharpen trains"
        )


@dataclass
class Job:
    """What the stages of one run share."""

    settings: Settings
    folder: Path
    data: Dataset
    frame: Frame
    device: torch.device
    precision: str
    started: float = field(default_factory=time.monotonic)

    @property
    def pictures(self) -> Path:
        return self.folder / "images"

    @property
    def map_size(self) -> tuple[int, int]:
        """(h, w) of a code map."""
        return self.frame.height // self.settings.downsample, self.frame.width // self.settings.downsample

    def validation(self) -> tuple[str, Split]:
        """Name and slices of the split that the best weights are chosen on: never the test split."""
        return self.data.best_split("validate", "train")

    def codes(self) -> dict[str, Tensor]:
        """Code maps `[N, h, w]` of each split, from the encode stage."""
        codes = read_codes(self.folder)
        require(
            bool(codes),
            f"{self.folder}: no codes.safetensors; encode with: python train.py --stage encode --out {self.folder}",
        )
        return codes

    def fit_settings(self, stage: str) -> FitSettings:
        s = self.settings
        epochs, batch, lr = {
            "vqvae": (s.epoch, s.batch, s.lr),
            "prior": (s.epoch_prior, s.batch_prior, s.lr_prior),
            "sharpen": (s.epoch_sharpen, s.batch_sharpen, s.lr_sharpen),
        }[stage]
        return FitSettings(epochs, batch, lr, s.patience, s.seed, s.save_every)


def main(argv: Sequence[str] | None = None) -> None:
    given = parse_flags(Settings, __doc__, argv)
    settings, folder = plan(given)
    settings.check()
    device = ranks.join(resolve_device(settings.device))
    folder = ranks.from_first(lambda: folder)
    job = prepare(settings, folder, device)
    stages = stages_to_run(job)
    check_writable(folder, "--out")
    ranks.wait()  # all have read what is there, now it may change
    try:
        with held(folder) if ranks.first() else nullcontext():
            if ranks.first() and (not settings.resume or given.keys() & EPOCHS.keys()):
                write_config(job)
            run_stages(job, stages)
        ranks.leave()
    except (Interrupted, KeyboardInterrupt) as stop:
        name = str(stop) or "SIGINT"
        print(f"stopped by {name}; go on with: python train.py --resume --out {folder}", flush=True)
        raise SystemExit(128 + signal.Signals[name]) from None


def plan(given: dict[str, Any]) -> tuple[Settings, Path]:
    """Settings and run folder.

    A new run has the defaults and what was given. An existing one keeps what it was started with: `--resume` accepts no
    other value for a flag that would change the result, `--stage` does, since it makes its stage anew.
    """
    settings = Settings(**given)
    require(not (settings.resume and settings.stage != "all"), "--resume goes on with every stage; leave out --stage")
    folder = Path(settings.out) if settings.out else None
    if settings.resume or (settings.stage != "all" and folder is None):
        folder = folder or newest_run("config.json")
    if folder is None:
        return settings, new_folder(settings)
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; expected a folder or a new name")
    started = (folder / "config.json").exists()
    if not (settings.resume or (settings.stage != "all" and started)):
        require(
            not started, f"{folder} already holds a run; go on with it by --resume, or name another folder with --out"
        )
        return settings, folder
    stored = read_config(folder)["flags"]
    known = {field.name for field in fields(Settings)}
    require(
        stored.keys() <= known,
        f"{folder / 'config.json'}: this version has no such flags: {', '.join(sorted(stored.keys() - known))}",
    )
    for name, value in given.items():
        if settings.resume and name in EPOCHS and value > stored.get(name, value):
            check_raised(folder, name, stored[name], value)
            continue
        require(
            not settings.resume or name in WHILE_RESUMING or value == stored.get(name, value),
            f"--{name} is {value}, but the run in {folder} was started with {stored.get(name)}; "
            "leave it out, or start a new run with another --out",
        )
    if settings.stage == "sharpen":
        stored["no_sharpen"] = False
    return Settings(**(stored | given)), folder


def check_raised(folder: Path, name: str, before: int, value: int) -> None:
    """More epochs than the run was started with: possible as long as their stage is not finished."""
    require(
        EPOCHS[name] not in finished_stages(folder),
        f"--{name} is {value}, but that stage of {folder} has ended after {before} epochs at most; "
        "leave it out, or start a new run with another --out",
    )
    print(f"note: --{name} raised from {before} to {value}; the learning rate's schedule is stretched over all of them")


def new_folder(settings: Settings) -> Path:
    name = Path(settings.data).resolve().name if settings.data else "cohort"
    return Path("runs") / f"{name}-f{settings.downsample}-{time.strftime('%Y%m%d-%H%M%S')}"


def prepare(settings: Settings, folder: Path, device: torch.device) -> Job:
    """Load the data and see that it fits the run."""
    precision = resolve_precision(settings.precision, device)
    data = ranks.first_before_others(lambda: load_data(DataOptions.of(asdict(settings)), settings.cache))
    frame = find_frame(data.splits["train"].images, settings.downsample)
    job = Job(settings, folder, data, frame, device, precision)
    print(
        f"content frame {frame.height}x{frame.width} of {frame.image_height}x{frame.image_width} pixels, "
        f"code maps {job.map_size[0]}x{job.map_size[1]}; {device}, {precision}; run folder {folder}",
        flush=True,
    )
    height, width = job.map_size
    places = len(data.splits["train"]) * height * width
    require(
        settings.k <= places,
        f"--k is {settings.k}, but the training slices have only {places} places of {settings.downsample}x"
        f"{settings.downsample} pixels to be given a code; lower --k or --downsample",
    )
    if settings.init is not None:
        check_init(settings)
    if (folder / "config.json").exists():
        check_data(job)
    return job


def check_data(job: Job) -> None:
    """Raise UserError when the data is not what the existing run was trained on."""
    stored = read_config(job.folder)["data"]
    found = data_summary(job)
    for name in ("splits", "frame", "slices_per_subject"):
        require(
            found[name] == stored[name],
            f"{job.data.title}: its {name.replace('_', ' ')} are {found[name]}, but the run in "
            f"{job.folder} was trained on {stored[name]}; start a new run with another --out",
        )


def data_summary(job: Job) -> dict[str, Any]:
    return job.data.summary() | {"frame": asdict(job.frame)}


def load_data(options: DataOptions, cache: str) -> Dataset:
    """The slices that the options name; says what was found and what is missing."""
    data = load(options, cache, Progress)
    sizes = ", ".join(
        f"{name} {len(split)} slices of {len(set(split.subjects))} subjects" for name, split in data.splits.items()
    )
    print(f"data: {data.title}: {sizes}")
    if describe(data):
        print(f"data: {describe(data)}")
    for note in data.notes:
        print(f"note: {note}")
    return data


def write_config(job: Job) -> None:
    """Write `config.json` and `split.csv`, unless they say all this already."""
    config = {
        "flags": asdict(job.settings) | {"resume": False, "stage": "all", "out": str(job.folder)},
        "data": data_summary(job),
        "versions": versions() | {"device": str(job.device), "precision": job.precision},
    }
    path = job.folder / "config.json"
    if not path.exists() or read_config(job.folder) != config:
        write_json(path, config)
        write_text(job.folder / "split.csv", split_table(job.data))


def stages_to_run(job: Job) -> list[str]:
    """Names of the stages that are wanted and not done, in order."""
    wanted, names = job.settings.stage, list(PIPELINE)
    require(
        wanted != "vqvae" or not any((job.folder / f"{later}.safetensors").exists() for later in ("prior", "sharp")),
        f"--stage vqvae: what was trained after it in {job.folder} belongs to the VQ-VAE that is there; "
        "start a new run with another --out",
    )
    if wanted != "all":
        return [wanted]
    done = finished_stages(job.folder) if job.settings.resume else []
    if done == names:
        print(f"{job.folder}: this run is finished, there is nothing to resume")
    return names[len(done) :]


def run_stages(job: Job, names: list[str]) -> None:
    """Run these stages; each reads what the ones before it left in the run folder."""
    order = list(PIPELINE)
    for name in names:
        done = order[: order.index(name)]
        if name in TOGETHER or ranks.first():
            PIPELINE[name](job, done)
        ranks.wait()
        mark_finished(job.folder, [*done, name])


def train_vqvae(job: Job, done: list[str]) -> None:
    """Train the first stage; leaves `vqvae.safetensors` and its curves."""
    s = job.settings
    seed_everything(s.seed, "vqvae")
    model = weights_to_start_from(job, "vqvae", VQVAE) or VQVAE(s.k, s.d, s.downsample)
    model = model.to(job.device, memory_format=torch.channels_last)
    scored, validation = job.validation()
    if scored != "validate":
        print("note: without a validation split, the best weights are those that score best on the training slices")
    stage = VQVAEStage(model, job.data.splits["train"], validation, job.frame, job.precision, s.init is not None)
    fit(stage, job.fit_settings("vqvae"), job.folder, done, s.resume)
    if not ranks.first():
        return
    records = [record for record in read_metrics(job.folder) if record["stage"] == "vqvae"]
    figures.vqvae_status(records, job.pictures / "vqvae_train_status.png", f"VQ-VAE on {job.data.title}", s.k, scored)


def weights_to_start_from(job: Job, name: str, model_class: type[Model]) -> Model | None:
    """The model of the `--init` run, ready to be trained on, or None where there is no such run or it has no such model."""
    if job.settings.init is None:
        return None
    path = run_folder(job.settings.init) / f"{name}.safetensors"
    return load_model(path, model_class).requires_grad_(True) if path.exists() else None


def check_init(settings: Settings) -> None:
    """Raise UserError unless the networks of the `--init` run fit this one."""
    folder = run_folder(settings.init)
    read_config(folder)
    arguments = load_model(folder / "vqvae.safetensors", VQVAE).arguments
    for name, key in (("k", "num_codes"), ("d", "code_dim"), ("downsample", "downsample")):
        require(
            getattr(settings, name) == arguments[key],
            f"--init {settings.init}: its --{name} is {arguments[key]}, this run's {getattr(settings, name)}; make them equal",
        )


def encode_slices(job: Job, done: list[str]) -> None:
    """Encode every split, the training split mirrored too where that makes sense; leaves `codes.safetensors`."""
    model = load_model(job.folder / "vqvae.safetensors", VQVAE).to(job.device, memory_format=torch.channels_last)
    codes = {name: encode_split(model, split, job.frame, f"encoding {name}") for name, split in job.data.splits.items()}
    codes["train_mirrored"] = encode_split(
        model,
        job.data.splits["train"],
        job.frame,
        "encoding train, mirrored",
        mirror=job.data.splits["train"].symmetric,
    )
    with replacing(job.folder / "codes.safetensors") as temporary:
        save_file(codes, temporary)


def train_prior(job: Job, done: list[str]) -> None:
    """Train the second stage on the code maps; leaves `prior.safetensors` and its curve."""
    s, codes, splits = job.settings, job.codes(), job.data.splits
    seed_everything(s.seed, "prior")
    train = splits["train"]
    sizes = {name: condition.size for name, condition in job.data.conditions.items()}
    conditions = ({} if train.positions is None else {"position": NUMBER}) | sizes
    known = weights_to_start_from(job, "prior", GatedPixelCNN)
    if known is None:
        model = GatedPixelCNN(s.k, conditions=conditions, marginal=job.map_size).to(job.device)
    else:
        model = known.for_maps_of(*job.map_size).to(job.device)
    scored, validation = job.validation()
    stage = PriorStage(
        model,
        codes["train"],
        codes["train_mirrored"],
        codes[scored],
        train.known,
        validation.known,
        train.subjects,
        load_model(job.folder / "vqvae.safetensors", VQVAE).quantizer.codebook.to(job.device),
        job.precision,
        known is not None,
    )
    fit(stage, job.fit_settings("prior"), job.folder, done, s.resume)
    if not ranks.first():
        return
    records = [record for record in read_metrics(job.folder) if record["stage"] == "prior"]
    figures.prior_status(
        records,
        job.pictures / "prior_train_status.png",
        f"PixelCNN prior on {job.data.title}",
        s.k,
        marginal_bits(codes["train"], codes[scored], s.k),
        scored,
    )


def train_sharp_decoder(job: Job, done: list[str]) -> None:
    """Train the second decoder; leaves `sharp.safetensors`, its curves and a picture of what it restores."""
    s, codes, splits = job.settings, job.codes(), job.data.splits
    if s.no_sharpen:
        return
    vqvae = load_model(job.folder / "vqvae.safetensors", VQVAE).to(job.device, memory_format=torch.channels_last)
    seed_everything(s.seed, "sharpen")
    known = weights_to_start_from(job, "sharp", SharpDecoder)
    scored, validation = job.validation()
    stage = SharpenStage(
        vqvae,
        splits["train"],
        validation,
        codes["train"],
        codes["train_mirrored"],
        job.frame,
        job.precision,
        known and known.to(job.device),
    )
    fit(stage, job.fit_settings("sharpen"), job.folder, done, s.resume)
    if not ranks.first():
        return
    records = [record for record in read_metrics(job.folder) if record["stage"] == "sharp"]
    figures.sharp_status(
        records, job.pictures / "sharp_train_status.png", f"Sharper decoder on {job.data.title}", scored
    )
    picture_sharpness(job, vqvae, validation, scored)


def picture_sharpness(job: Job, vqvae: VQVAE, split: Split, name: str) -> None:
    """A slice, what both decoders make of its codes, and the spectra of many."""
    some = split.evenly(SHOWN)
    images = some.batch(np.arange(len(some)))
    codes = encode(vqvae, images, job.frame)
    faithful = decode(vqvae, codes, job.frame)
    sharp = decode(with_sharp_decoder(vqvae, job.folder), codes, job.frame)
    rows = {"real": images, "faithful decoder": faithful, "sharp decoder": sharp}
    figures.sharpness(
        {title: job.frame.crop(each)[len(some) // 2, 0].numpy() for title, each in rows.items()},
        {title: radial_power(each).mean(0).numpy() for title, each in rows.items()},
        job.pictures / "sharpness.png",
        f"A {name} slice of {job.data.title} and its reconstructions, and the mean spectra of {len(some)}",
    )


def sample_slices(job: Job, done: list[str]) -> None:
    """Reconstruct held-out slices and draw new ones of the same positions; leaves their pictures."""
    run = load_run(job.folder, job.device)
    sharp = load_run(job.folder, job.device, decoder_to_use(job.folder))
    name, split = job.data.best_split("test", "validate")
    real = split.evenly(SHOWN)
    images = real.batch(np.arange(len(real)))
    codes = encode(run.vqvae, images, run.frame)
    decoded = decode(run.vqvae, codes, run.frame)
    drawn = [
        draw_samples(sharp, real.numbers, len(real), seed=job.settings.seed + i, title=f"sampling set {i + 1}")
        for i in (0, 1)
    ]
    picture_held_out(job, run, name, real, images, codes, decoded)
    picture_drawn(job, run, drawn)
    picture_side_by_side(job, name, real, images, decoded, decode(sharp.vqvae, codes, sharp.frame), drawn[0])
    arguments = run.prior.arguments
    figures.architecture(
        job.pictures / "architecture.png",
        job.settings.downsample,
        job.settings.k,
        job.settings.d,
        (run.frame.height, run.frame.width),
        arguments["channels"],
        arguments["layers"],
    )


def picture_held_out(
    job: Job, run: Run, name: str, real: Split, images: Tensor, codes: Tensor, decoded: Tensor
) -> None:
    """Held-out slices, their reconstructions and their code maps."""
    where, title = job.pictures, job.data.title
    labels = [
        subject if number is None else f"{subject}, slice {number}"
        for subject, number in zip(real.subjects, numbers_of(real))
    ]
    figures.slice_grid(images[:, 0].numpy(), where / "original.png", f"Original {name} slices, {title}", labels)
    figures.slice_grid(decoded[:, 0].numpy(), where / "reconst.png", f"Reconstructed {name} slices, {title}", labels)
    figures.code_grid(codes.numpy(), where / "test_q.png", f"Codes q(z|x) of {name} slices", code_ranks(run), labels)
    figures.slice_grid(
        decoded[:, 0].numpy(), where / "test_imgs.png", f"Decoded codes of {name} slices, {title}", labels
    )


def picture_drawn(job: Job, run: Run, drawn: Sequence[Samples]) -> None:
    """Two sets of drawn code maps and the slices they decode to."""
    where, title, ranks = job.pictures, job.data.title, code_ranks(run)
    for suffix, seed, samples in zip(("", "2"), (job.settings.seed, job.settings.seed + 1), drawn):
        figures.code_grid(
            samples.codes.numpy(),
            where / f"generated_q{suffix}.png",
            f"Codes drawn from the prior, seed {seed}",
            ranks,
            samples.labels,
        )
        figures.slice_grid(
            samples.images.numpy(),
            where / f"generated_imgs{suffix}.png",
            f"Generated slices, seed {seed} (trained on {title})",
            samples.labels,
        )
    some = spread_over(len(drawn[0]), 4)
    figures.codes_beside_slices(
        drawn[0].codes[some].numpy(),
        drawn[0].images[some].numpy(),
        where / "codes_and_slices.png",
        f"Code maps drawn from the prior and the slices they decode to (trained on {title})",
        ranks,
        [drawn[0].labels[i] for i in some],
    )


def picture_side_by_side(
    job: Job, name: str, real: Split, images: Tensor, decoded: Tensor, sharp: Tensor, drawn: Samples
) -> None:
    """Real, reconstructed and generated slices of the same positions above each other."""
    some = spread_over(len(real), 8)
    rows = [(f"real ({name})", images[some, 0].numpy()), ("reconstructed", decoded[some, 0].numpy())]
    if decoder_to_use(job.folder) == "sharp":
        rows.append(("reconstructed,\nsharp", sharp[some, 0].numpy()))
    rows.append(("generated", drawn.images[some].numpy()))
    figures.rows_of_slices(
        rows,
        job.pictures / "real_and_generated.png",
        f"Real and generated slices, {job.data.title}",
        ["" if number is None else f"slice {number}" for number in (numbers_of(real)[i] for i in some)],
    )


def numbers_of(split: Split) -> list[int | None]:
    """The slice number of each slice, None where the data says nothing of it."""
    return [None] * len(split) if split.numbers is None else split.numbers.tolist()


def code_ranks(run: Run) -> np.ndarray:
    return figures.code_ranks(run.vqvae.quantizer.codebook.cpu().numpy())


def score_and_report(job: Job, done: list[str]) -> None:
    """Score every held-out split; leaves `scores.json` and `report.md`, and prints the table."""
    run = load_run(job.folder, job.device)
    held_out = [name for name in ("test", "validate") if name in job.data.splits] or ["train"]
    train_codes = job.codes()["train"]
    first, *others = held_out
    decoder = decoder_to_use(job.folder)
    sharp = with_sharp_decoder(run.vqvae, job.folder) if decoder == "sharp" else None
    case = Case(run, job.data, first, job.codes(), QUICK, job.settings.seed, job.pictures, sharp, decoder)
    scores = {first: evaluate_split(case)} | {
        name: score_split(run.vqvae, run.prior, job.data.splits[name], run.frame, train_codes, name) for name in others
    }
    write_json(job.folder / "scores.json", scores)
    report.write(job.folder, run.config, scores)
    print(report.table(scores))
    print(report.of_samples(scores[first]))
    print(
        f"{(time.monotonic() - job.started) / 60:.1f} minutes; pictures: {job.pictures}/, report: {job.folder / 'report.md'}"
    )
    print(f"Average SSIM on {held_out[0]} dataset: {scores[held_out[0]]['ssim']:.4f}", flush=True)


PIPELINE = {
    "vqvae": train_vqvae,
    "encode": encode_slices,
    "prior": train_prior,
    "sharpen": train_sharp_decoder,
    "sample": sample_slices,
    "report": score_and_report,
}
TOGETHER = ("vqvae", "prior", "sharpen")  # stages that all processes take part in; the first one does the others alone


if __name__ == "__main__":
    run_main(main)
