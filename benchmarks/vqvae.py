"""The VQ-VAE beside its peers: time to a given SSIM, SSIM after equal time, the quantiser alone, slices a second.

    pip install -r requirements-bench.txt
    python benchmarks/vqvae.py --data data/keras_png_slices_data           # about 2 hours on 2 cores
    python benchmarks/vqvae.py --data data/keras_png_slices_data --part quantizer,speed --minutes 1
    python benchmarks/vqvae.py --data DIR --part codes,report --runs runs/f4,runs/f8   # how steady the codes of trained runs are

Every part writes its figures to results.json in --out as soon as it has them; the tables and pictures are made from that file.
Peers train on the train split and are scored on the validation split; peers and their recipes are in `peers.py`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_figures  # noqa: E402
import numpy as np  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measuring import Results, medians  # noqa: E402
from peers import CODE_DIM, NUM_CODES, TARGET_SSIM, Monai, Ours, Peer, Reference, score_peer  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import vqvae  # noqa: E402
from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.files import load_model  # noqa: E402
from common.runtime import Progress, autocast, resolve_precision, seed_everything, versions  # noqa: E402
from dataset import Dataset, Split, find_frame  # noqa: E402
from scoring.metrics import CodeUsage  # noqa: E402
from scoring.slices import score_split  # noqa: E402
from sources.slice_set import load_slice_set  # noqa: E402
from training import loop, vqvae_stage  # noqa: E402
from training import reconstruction_loss as reconstruction  # noqa: E402
from training.loop import FitSettings, adamw, fit, read_metrics  # noqa: E402
from training.reconstruction_loss import reconstruction_loss, window_ssim  # noqa: E402
from training.vqvae_stage import VQVAEStage  # noqa: E402
from utils import Run, load_run, read_config  # noqa: E402
from vqvae import FLAT, VQVAE, VectorQuantizer  # noqa: E402

PARTS = (
    "training",
    "monai",
    "reference",
    "grids",
    "equal",
    "rates",
    "quantizer",
    "speed",
    "codes",
    "choices",
    "report",
)
VECTORS = 131_072  # latents of the quantiser's test
SCORED = 140  # validation slices whose codes are looked at
PEER_SCORED = (
    70,
    280,
)  # validation slices that a peer, slow as it is, is scored on while it trains and at its end, spread evenly
BATCH = 32  # slices at a time in the speed table
AIR = 16 / 255  # brightest pixel of a patch that shows nothing but air
CHOICE_SLICES = 2560  # of the trainings that try one choice each
BRIEF_SLICES = 1024  # of the training that is timed to the target
RATE_SLICES = (
    2560,
    5120,
    7680,
)  # seen by the trainings of the rate-distortion picture: once, twice and three times the time
MONAI_RECIPES = ((4, 1e-4), (4, 3e-4), (4, 1e-3))  # slices a step and learning rate; the best one counts


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/vqvae.py`."""

    data: str | None = flag(None, "Folder that holds keras_png_slices_train/ and keras_png_slices_validate/.")
    part: str = flag("training,quantizer,speed,report", "Parts to run, separated by commas.")
    downsample: int = flag(4, "Pixels a code covers along each side; the reference network knows 4 alone.", (4, 8, 16))
    minutes: float = flag(15.0, "Training time that every contender is given.")
    reference_minutes: float = flag(60.0, "Training time after which the reference network is stopped for good.")
    short_minutes: float = flag(6.0, "Training time of the reference network at each rate tried beside its own.")
    monai_channels: str = flag("32,96", "Channels of MONAI's VQVAE where it sees as many slices as ours, one or more.")
    batch: int = flag(4, "Slices a step of our own trainings.")
    lr: float = flag(0.002, "Learning rate of our own trainings.")
    precision: str = flag(
        "auto", "Arithmetic of training, MONAI's too; the reference network is float32.", ("auto", "float32", "bf16")
    )
    runs: str = flag("", "Run folders to add to the rate-distortion picture, separated by commas; scored already.")
    repeats: int = flag(7, "Repeats whose median is reported.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("runs/bench-vqvae", "Folder for the results.")
    cache: str = flag(".cache", "Folder for decoded slices.")

    def check(self) -> None:
        unknown = set(self.part.split(",")) - set(PARTS)
        require(not unknown, f"--part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
        need_data = (set(PARTS) - {"quantizer", "report"}) & set(self.part.split(","))
        require(not need_data or self.data is not None, f"--part {self.part} needs --data")

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


# --------------------------------------------------------------------------- (a) training


def train_all(settings: Settings, results: Results) -> None:
    """Train ours briefly and for the whole time, then the peers for the whole time."""
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    add = partial(results.add, f"training_f{settings.downsample}")
    brief = train_ours(settings, data, BRIEF_SLICES, 1)
    add("ours_brief", brief)
    if settings.arithmetic != "float32":
        add("ours_float32", train_ours(replace(settings, precision="float32"), data, BRIEF_SLICES, 1))
    slices_a_second = BRIEF_SLICES / max(brief["seconds"], 0.1)
    epochs = max(1, int(settings.minutes * 60 * slices_a_second / len(data.splits["train"])))
    add("ours", train_ours(settings, data, len(data.splits["train"]), epochs))
    train_monai(settings, results)
    add("monai", max(results.values[f"monai_f{settings.downsample}"].values(), key=lambda tried: tried["ssim"]))
    if settings.downsample == 4:
        seed_everything(settings.seed, "reference")
        network = Reference(settings.downsample)
        add("reference", train_peer(network, data, settings.reference_minutes, settings.minutes, settings.seed))


def train_monai(settings: Settings, results: Results) -> None:
    """Train MONAI's VQVAE by each of several recipes, since the best learning rate for these slices is not known beforehand.

    Recipes that the results hold already are not tried again.
    """
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    for batch, lr in MONAI_RECIPES:
        if f"batch {batch}, learning rate {lr:g}" in results.values.get(f"monai_f{settings.downsample}", {}):
            continue
        seed_everything(settings.seed, "monai")
        monai = Monai(settings.downsample, settings.arithmetic, lr, batch)
        tried = train_peer(monai, data, settings.minutes, None, settings.seed) | {"batch": batch, "lr": lr}
        results.add(f"monai_f{settings.downsample}", f"batch {batch}, learning rate {lr:g}", tried)


def train_reference(settings: Settings, results: Results) -> None:
    """Train the reference network by its own recipe on the whole training split, and at the best of other rates."""
    reference.train_reference(settings, load_slice_set(settings.data, settings.cache, None, Progress), results)


def compare_measures(settings: Settings, results: Results) -> None:
    """The SSIM of grids beside that of slices, of the reference networks trained so far and of the weights that come along."""
    reference.compare_measures(settings, load_slice_set(settings.data, settings.cache, None, Progress), results)


def train_equally(settings: Settings, results: Results) -> None:
    """Ours, briefly, and MONAI's VQVAE on the same slices."""
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    same = replace(settings, precision="float32", downsample=4)
    ours = partial(train_ours, same, slices=BRIEF_SLICES, epochs=1)
    reference.train_equally(settings, data, results, BRIEF_SLICES, ours)


def train_ours(settings: Settings, data: Dataset, slices: int, epochs: int) -> dict[str, Any]:
    """Train as `train.py` does, on slices spread over the train split; the time is that of the training steps."""
    folder = Path(settings.out) / f"ours-f{settings.downsample}-{slices}-{epochs}-{settings.arithmetic}"
    stage = our_stage(settings, data, slices)
    fit_settings = FitSettings(epochs, settings.batch, settings.lr, 0, settings.seed, 5.0)
    return fit_and_score(stage, fit_settings, folder, data.splits["validate"])


def our_stage(settings: Settings, data: Dataset, slices: int) -> VQVAEStage:
    """A new VQ-VAE that will train on slices spread over the train split."""
    train = data.splits["train"].evenly(slices)
    seed_everything(settings.seed, "model")
    frame = find_frame(data.splits["train"].images, settings.downsample)
    model = VQVAE(NUM_CODES, CODE_DIM, settings.downsample).to(memory_format=torch.channels_last)
    return VQVAEStage(model, train, data.splits["validate"], frame, settings.arithmetic)


def fit_and_score(stage: VQVAEStage, settings: FitSettings, folder: Path, validation: Split) -> dict[str, Any]:
    """Train a stage and score its best weights; the curve is the validation SSIM after each epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    fit(stage, settings, folder, resume=False)
    records = read_metrics(folder)
    best = load_model(folder / "vqvae.safetensors", VQVAE).to(memory_format=torch.channels_last)
    scores = score_split(best, None, validation, stage.frame)
    print(f"{folder.name}, {records[-1]['seconds'] / 60:.1f} min: {scores}", flush=True)
    curve = [{"seconds": record["seconds"], "ssim": record["validate_ssim"]} for record in records]
    return {"curve": curve, "seconds": records[-1]["seconds"], "slices_seen": settings.epochs * stage.size} | scores


def train_rates(settings: Settings, results: Results) -> None:
    """Train ours at each downsampling for once, twice and three times as many slices."""
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    for seen in RATE_SLICES:
        epochs = -(-seen // len(data.splits["train"]))
        for downsample in (4, 8, 16):
            trained = train_ours(replace(settings, downsample=downsample), data, seen // epochs, epochs)
            results.add("rates", f"f={downsample}, {seen} slices", {"downsample": downsample} | trained)


def train_peer(peer: Peer, data: Dataset, limit: float, equal: float | None, seed: int) -> dict[str, Any]:
    """Train a peer for `limit` minutes or, where `equal` is given, until it has had those and has reached the target."""
    train, (some, many) = data.splits["train"], (data.splits["validate"].evenly(count) for count in PEER_SCORED)
    rng, curve, seconds, losses = np.random.default_rng(seed), [], 0.0, []
    order = np.empty(0, dtype=np.int64)
    next_score = 60.0
    result: dict[str, Any] = {"name": peer.name}
    print(f"{peer.name}: {limit:g} minutes at most", flush=True)
    while seconds < limit * 60:
        if len(order) < peer.batch:
            order = np.concatenate([order, rng.permutation(len(train))])
        indices, order = np.sort(order[: peer.batch]), order[peer.batch :]
        started = time.monotonic()
        losses.append(peer.step(train.batch(indices)))
        seconds += time.monotonic() - started
        if seconds < next_score:
            continue
        next_score = seconds * 1.15 + 30
        score = score_peer(peer, some)
        curve.append({"seconds": seconds, "slices": len(losses) * peer.batch, "loss": losses[-1]} | score)
        print(f"  {seconds / 60:.1f} min, {len(losses) * peer.batch} slices: {score}", flush=True)
        if equal is not None and seconds >= equal * 60:
            if "ssim" not in result:
                result |= score_peer(peer, many) | {"seconds": seconds}
            if max(point["ssim"] for point in curve) >= TARGET_SSIM:
                break
    final = score_peer(peer, many) | {"seconds": seconds}
    final["slices_seen"] = len(losses) * peer.batch
    curve.append({"loss": losses[-1]} | final)
    return final | result | {"curve": curve, "final": final}


# --------------------------------------------------------------------------- (b) the quantiser alone


def quantizers(settings: Settings, results: Results) -> None:
    """Training step of each quantiser, forward and backward and codebook: median seconds, and peak memory above its inputs."""
    torch.manual_seed(settings.seed)
    side = int((VECTORS // 32) ** 0.5)
    latents = torch.randn(32, CODE_DIM, side, side)
    contenders = quantizer_steps()
    seconds = medians({name: lambda step=step: step(latents) for name, step in contenders.items()}, settings.repeats)
    table = {}
    for name in contenders:
        table[name] = {"seconds": seconds[name], "peak_bytes": memory_in_a_process(name)}
    results.set("quantizer", table)
    print(json.dumps(table, indent=2), flush=True)


def quantizer_steps() -> dict[str, Callable[[Tensor], None]]:
    """One training step of each quantiser on `[B, D, h, w]` latents."""
    from monai.networks.layers.vector_quantizer import EMAQuantizer
    from vector_quantize_pytorch import VectorQuantize

    ours = VectorQuantizer(NUM_CODES, CODE_DIM)
    monai = EMAQuantizer(spatial_dims=2, num_embeddings=NUM_CODES, embedding_dim=CODE_DIM, decay=0.99)
    lucidrains = VectorQuantize(
        dim=CODE_DIM, codebook_size=NUM_CODES, decay=0.99, accept_image_fmap=True, threshold_ema_dead_code=2
    )
    plain = VectorQuantize(
        dim=CODE_DIM, codebook_size=NUM_CODES, decay=0.99, accept_image_fmap=True, rotation_trick=False
    )

    def step_ours(latents: Tensor) -> None:
        latents = latents.detach().requires_grad_()
        out = ours(latents)
        (out.quantized.square().mean() + out.commitment_loss).backward()
        ours.update(latents.detach(), out.codes)

    def step_monai(latents: Tensor) -> None:
        latents = latents.detach().requires_grad_()
        quantized, loss, _ = monai(latents)
        (quantized.square().mean() + loss).backward()

    def step_with(quantizer: nn.Module) -> Callable[[Tensor], None]:
        def step(latents: Tensor) -> None:
            latents = latents.detach().requires_grad_()
            quantized, _, loss = quantizer(latents)
            (quantized.square().mean() + loss.sum()).backward()

        return step

    return {
        "oasis-vqvae": step_ours,
        "MONAI EMAQuantizer": step_monai,
        "vector-quantize-pytorch": step_with(lucidrains),
        "vector-quantize-pytorch, straight through": step_with(plain),
    }


def memory_in_a_process(name: str) -> int:
    """`memory_of` in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])


def memory_of(name: str) -> int:
    """Peak memory of a step above what the process holds before it, in bytes (Linux); to be run in a process of its own."""
    side = int((VECTORS // 32) ** 0.5)
    step = quantizer_steps()[name]
    step(torch.randn(2, CODE_DIM, 8, 8))  # whatever is allocated once
    latents = torch.randn(32, CODE_DIM, side, side)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step(latents)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


# --------------------------------------------------------------------------- (c) slices a second


def speeds(settings: Settings, results: Results) -> None:
    """Slices a second for a training step, encoding and decoding, at each downsampling that a contender knows."""
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    images = data.splits["train"].batch(np.arange(BATCH))
    table: dict[str, dict[str, float]] = {}
    for downsample in (4, 8, 16):
        frame = find_frame(data.splits["train"].images, downsample)
        contenders: list[Peer] = [Reference(downsample)] if downsample == 4 else []
        for precision in dict.fromkeys(("float32", settings.arithmetic)):
            contenders += [Monai(downsample, precision), Ours(downsample, frame, images, precision)]
        repeats = max(3, settings.repeats // 2)
        for verb, prepare in (("train", _train_step), ("encode", _encode), ("decode", _decode)):
            steps = {f"{peer.name}, {peer.precision}": prepare(peer, images) for peer in contenders}
            seconds = medians(steps, repeats)
            for name, value in seconds.items():
                table.setdefault(f"{name}, f={downsample}", {})[verb] = BATCH / value
        print(json.dumps(table, indent=2), flush=True)
    results.set("speed", table)


def _train_step(peer: Peer, images: Tensor) -> Callable[[], Any]:
    peer.model.train()
    return lambda: peer.step(images)


def _encode(peer: Peer, images: Tensor) -> Callable[[], Any]:
    peer.model.eval()
    return torch.no_grad()(autocast(images.device, peer.precision)(lambda: peer.encode(images)))


def _decode(peer: Peer, images: Tensor) -> Callable[[], Any]:
    peer.model.eval()
    with torch.no_grad():
        codes = peer.encode(images)
    return torch.no_grad()(autocast(images.device, peer.precision)(lambda: peer.decode(codes)))


# --------------------------------------------------------------------------- (d) how steady the codes are


def steadiness(settings: Settings, results: Results) -> None:
    """Codes of each run of --runs: under other batch sizes, under a bf16 encoder, and on flat background."""
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    split = data.splits["validate"].evenly(SCORED)
    table = {name: steadiness_of(load_run(name, level="first"), split) for name in settings.runs.split(",") if name}
    results.set("codes", table)
    print(json.dumps(table, indent=2), flush=True)


@torch.no_grad()
def steadiness_of(run: Run, split: Split) -> dict[str, Any]:
    """Figures of one run; shares are 0..1."""
    model, factor = run.vqvae, run.vqvae.downsample
    images = run.frame.crop(split.batch(np.arange(len(split)))).contiguous(memory_format=torch.channels_last)
    maps = {size: torch.cat([model.encode(part) for part in images.split(size)]) for size in (64, 7, 1)}
    latents = torch.cat([model.latents(part) for part in images.split(64)])
    every = max(1, len(images) // 35)  # bf16 is slow where it is emulated
    with autocast(images.device, "bf16"):
        maps |= {"bf16": torch.cat([model.encode(part) for part in images.split(64)])}
        bf16 = torch.cat([model.quantizer.nearest(model.latents(part)) for part in images[::every].split(5)])
    highest = F.max_pool2d(images, factor)[:, 0]
    flat = highest + F.max_pool2d(-images, factor)[:, 0] < FLAT
    return {
        "equal_in_batches_of_1_7_64_and_under_autocast": all(torch.equal(codes, maps[64]) for codes in maps.values()),
        "share_settled_in_float64": float(model.quantizer.nearest_surely(latents)[1].double().mean()),
        "share_flipped_by_a_bf16_encoder": float((bf16 != maps[64][::every]).double().mean()),
        "flat_places": float(flat.double().mean()),
        "codes_for_95_percent_of_flat_places": covering(maps[64][flat]),
        "air_places": float((highest <= AIR).double().mean()),
        "codes_for_95_percent_of_air_places": covering(maps[64][highest <= AIR]),
    }


def covering(codes: Tensor, share: float = 0.95) -> int:
    """How many distinct codes cover this share of the places."""
    counts = CodeUsage.of(codes, NUM_CODES).counts.sort(descending=True).values.double()
    return int((counts.cumsum(0) < share * counts.sum()).sum()) + 1


# --------------------------------------------------------------------------- (e) what each choice pays


def try_choices(settings: Settings, results: Results) -> None:
    """The same short training with one choice at a time undone, on the same slices in the same order.

    Choices that the results hold already are not tried again.
    """
    data = load_slice_set(settings.data, settings.cache, None, Progress)
    for name, undo in CHOICES.items():
        if name in results.values.get("choices", {}):
            continue
        folder = Path(settings.out) / "choices" / f"f{settings.downsample}-{name.replace(' ', '-')}"
        fit_settings = FitSettings(1, settings.batch, settings.lr, 0, settings.seed, 60.0)
        with ExitStack() as undone:
            stage = our_stage(settings, data, CHOICE_SLICES)
            fit_settings = undo(undone, stage, fit_settings) or fit_settings
            tried = fit_and_score(stage, fit_settings, folder, data.splits["validate"])
        results.add("choices", name, tried)


def _patched(target: Any, name: str, value: Any) -> Callable[..., None]:
    """Undoes a choice that is a name in a module or a class."""

    def undo(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> None:
        undone.enter_context(patch.object(target, name, value))

    return undo


def _without_muon(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> None:
    stage.optimizers = lambda lr: [adamw(stage.model.parameters(), lr)]


def _without_revival(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> None:
    stage.model.quantizer.revive_every = 10**9


def _with_average(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> None:
    stage.average_decay = 0.99


def _with_batch_32(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> FitSettings:
    return replace(settings, batch=32)


def _with_relu(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> None:
    undone.enter_context(patch.object(vqvae, "SLOPE", 0.0))
    for layer in stage.model.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.negative_slope = 0.0


def _with_another_order(undone: ExitStack, stage: VQVAEStage, settings: FitSettings) -> FitSettings:
    return replace(settings, seed=settings.seed + 1)


CHOICES: dict[str, Callable[[ExitStack, VQVAEStage, FitSettings], FitSettings | None]] = {
    "as it is": lambda *_: None,
    "as it is, slices in another order": _with_another_order,  # how much is chance
    "AdamW instead of Muon": _without_muon,
    "codes from the first step": _patched(vqvae_stage, "CONTINUOUS_SHARE", 0.0),
    "SSIM term at 0.2": _patched(vqvae_stage, "reconstruction_loss", partial(reconstruction_loss, ssim_weight=0.2)),
    "32 slices a step": _with_batch_32,
    "flat patches as any other": _patched(vqvae, "FLAT", -1.0),
    "ReLU instead of leaky ReLU": _with_relu,
    "no mirroring": _patched(vqvae_stage, "mirrored", lambda images, chance: images),
    "SSIM windows of 7": _patched(reconstruction, "window_ssim", partial(window_ssim, window=7)),
    "average of the weights": _with_average,
    "no revival": _without_revival,
    "constant learning rate": _patched(loop._Fit, "_rate", lambda self, step: 1.0),
    "no gradient clipping": _patched(loop, "GRADIENT_NORM", float("inf")),
}


# --------------------------------------------------------------------------- tables and pictures


def write_report(settings: Settings, results: Results) -> None:
    """Print the tables and draw the pictures of all that results.json holds and of the runs named."""
    values, folder = results.values, Path(settings.out)
    text = []
    trainings = {f: values[f"training_f{f}"] for f in (4, 8, 16) if f"training_f{f}" in values}
    for downsample, contenders in trainings.items():
        text.append(training_table(downsample, contenders))
        curves = {name: contenders[name]["curve"] for name in bench_figures.STYLES if name in contenders}
        bench_figures.curves(curves, TARGET_SSIM, folder / f"ssim_by_time_f{downsample}.png")
    recipes = {f: values[f"monai_f{f}"] for f in (4, 8, 16) if f"monai_f{f}" in values}
    text += [monai_table(downsample, tried) for downsample, tried in recipes.items()]
    text += reference.write_tables(values, folder)
    if "quantizer" in values:
        text.append(quantizer_table(values["quantizer"]))
    if "speed" in values:
        text.append(speed_table(values["speed"]))
    if "choices" in values:
        text.append(choices_table(values["choices"]))
    if "codes" in values:
        text.append(codes_table(values["codes"]))
    for run in (Path(name) for name in settings.runs.split(",") if name):
        results.add("runs", run.name, run_point(run))
    runs = list(values.get("runs", {}).values())
    rates = [rate | {"minutes": rate["seconds"] / 60} for rate in values.get("rates", {}).values()]
    if runs or rates:
        text.append(runs_table(rates + runs))
        bench_figures.rate_distortion(
            rates, runs, peer_points(trainings, recipes), TARGET_SSIM, folder / "rate_distortion.png"
        )
    (folder / "report.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text), flush=True)


def training_table(downsample: int, contenders: dict[str, Any]) -> str:
    """(a) as Markdown."""
    rows = []
    for name, title in (
        ("ours_brief", "oasis-vqvae, brief"),
        ("ours_float32", "oasis-vqvae, brief, float32"),
        ("ours", "oasis-vqvae"),
        ("monai", "MONAI VQVAE"),
        ("reference", "reference network, float32"),
    ):
        if name in contenders:
            result, reached = contenders[name], minutes_to_target(contenders[name])
            seconds = result["seconds"]
            rows.append(
                f"| {title} | {seconds / 60:.1f} | {result['ssim']:.4f} | {result['codes_used']} | "
                f"{result['perplexity']:.0f} | {reached} |"
            )
    head = (
        f"| f={downsample} | minutes | SSIM | codes used | perplexity | minutes to SSIM {TARGET_SSIM} |\n"
        "|---|--:|--:|--:|--:|--:|"
    )
    return "\n".join([head, *rows])


def monai_table(downsample: int, recipes: dict[str, Any]) -> str:
    """Every recipe of MONAI's VQVAE as Markdown."""
    rows = [
        f"| {name} | {tried['seconds'] / 60:.1f} | {tried['final']['slices_seen']} | {tried['ssim']:.4f} | "
        f"{tried['codes_used']}; {tried['perplexity']:.0f} |"
        for name, tried in recipes.items()
    ]
    head = f"| MONAI VQVAE, f={downsample} | minutes | slices seen | SSIM | codes used; perplexity |\n|---|--:|--:|--:|--:|"
    return "\n".join([head, *rows])


def minutes_to_target(result: dict[str, Any]) -> str:
    """Training time of the first score at the target, "more than" the whole time where there is none."""
    reached = [point["seconds"] / 60 for point in result["curve"] if point["ssim"] >= TARGET_SSIM]
    return f"{min(reached):.2f}" if reached else f"more than {result['curve'][-1]['seconds'] / 60:.0f}"


def quantizer_table(table: dict[str, dict[str, float]]) -> str:
    """(b) as Markdown."""
    ours = table["oasis-vqvae"]
    rows = [
        f"| {name} | {row['seconds'] / ours['seconds']:.2f} | {row['peak_bytes'] / ours['peak_bytes']:.2f} | "
        f"{row['peak_bytes'] / 2**20:.0f} |"
        for name, row in table.items()
    ]
    return "\n".join(["| quantiser | time, ours = 1 | peak memory, ours = 1 | MiB |\n|---|--:|--:|--:|", *rows])


def speed_table(table: dict[str, dict[str, float]]) -> str:
    """(c) as Markdown."""
    rows = [
        f"| {name} | {row['train']:.1f} | {row['encode']:.1f} | {row['decode']:.1f} |" for name, row in table.items()
    ]
    return "\n".join(["| slices a second | train | encode | decode |\n|---|--:|--:|--:|", *rows])


def choices_table(table: dict[str, dict[str, Any]]) -> str:
    """(e) as Markdown."""
    rows = [
        f"| {name} | {row['ssim']:.4f} | {row['ssim'] - table['as it is']['ssim']:+.4f} | {row['sharpness']:.3f} | "
        f"{row['codes_used']}; {row['perplexity']:.0f} |"
        for name, row in table.items()
    ]
    head = "| | SSIM | change | sharpness | codes used; perplexity |\n|---|--:|--:|--:|--:|"
    return "\n".join([head, *rows])


def codes_table(table: dict[str, dict[str, Any]]) -> str:
    """(d) as Markdown, a column a run."""
    rows = []
    for key in next(iter(table.values())):
        cells = [row[key] for row in table.values()]
        shown = [f"{100 * cell:.3g} %" if isinstance(cell, float) else str(cell) for cell in cells]
        rows.append(f"| {key.replace('_', ' ')} | {' | '.join(shown)} |")
    names = [Path(name).name for name in table]
    return "\n".join([f"| | {' | '.join(names)} |", "|---" + "|--:" * len(names) + "|", *rows])


def run_point(folder: Path) -> dict[str, Any]:
    """Bits, SSIM and training time of a run that `evaluate.py --split validate` has scored."""
    config = read_config(folder)
    scores = json.loads((folder / "scores.json").read_text())["validate"]
    records = [record for record in read_metrics(folder) if record["stage"] == "vqvae"]
    return {
        "name": folder.name,
        "downsample": config["flags"]["downsample"],
        "minutes": records[-1]["seconds"] / 60,
        "slices_seen": len(records) * config["data"]["splits"]["train"]["slices"],
    } | scores


def runs_table(runs: list[dict[str, Any]]) -> str:
    """Trained runs as Markdown."""
    rows = [
        f"| {run['downsample']} | {run['codes_per_slice']} | {run['bits_per_slice_fixed']:.0f} | {run['slices_seen']} | "
        f"{run['minutes']:.1f} | {run['ssim']:.4f} | {run['ssim_frame']:.4f} | {run['psnr']:.2f} | {run['psnr_frame']:.2f} | "
        f"{run['codes_used']}; {run['perplexity']:.0f} | {run['sharpness']:.2f} |"
        for run in sorted(runs, key=lambda run: (run["downsample"], run["slices_seen"]))
    ]
    head = (
        "| f | codes | bits | slices seen | minutes | SSIM | SSIM, frame | PSNR | PSNR, frame | "
        "codes used; perplexity | sharpness |\n"
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    return "\n".join([head, *rows])


def peer_points(
    trainings: dict[int, dict[str, Any]], recipes: dict[int, dict[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The peers as points of the rate-distortion picture, MONAI's by its best recipe."""
    found = [("MONAI VQVAE", f, max(tried.values(), key=lambda one: one["ssim"])) for f, tried in recipes.items()]
    found += [("reference network", f, those["reference"]) for f, those in trainings.items() if "reference" in those]
    return [
        {
            "name": f"{title}, f={downsample}, {peer['seconds'] / 60:.0f} min",
            "bits": peer["codes_per_slice"] * float(np.log2(NUM_CODES)),
            "ssim": peer["ssim"],
        }
        for title, downsample, peer in found
    ]


PART_FUNCTIONS = {
    "training": train_all,
    "monai": train_monai,
    "reference": train_reference,
    "grids": compare_measures,
    "equal": train_equally,
    "rates": train_rates,
    "quantizer": quantizers,
    "speed": speeds,
    "codes": steadiness,
    "choices": try_choices,
    "report": write_report,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory-of"]:
        print(memory_of(sys.argv[2]))
    else:
        run_main(main)
