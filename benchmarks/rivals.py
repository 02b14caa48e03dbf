"""Ways to say more of a slice than one level of codes at f=8 does, each trained alike: what it costs and what is had for it.

    python benchmarks/rivals.py --data data/keras_png_slices_data
    python benchmarks/rivals.py --data data/keras_png_slices_data --ways "f=8 and f=4 (two levels); f=4" --epoch 1 --subjects 40

Every VQ-VAE sees the training slices equally often (both levels of two do), every prior the same slices of some subjects once; it
is told position and location, and no neighbour. Bits are those of whole slices of the validation split. What is trained already
is not trained again.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measuring import Results  # noqa: E402
from residual_codes import DepthHeads, DepthStage, ResidualVQVAE  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.files import load_model  # noqa: E402
from common.runtime import resolve_precision, seed_everything, versions  # noqa: E402
from dataset import Dataset, Frame, find_frame  # noqa: E402
from inference.coding import encode_split, encode_splits  # noqa: E402
from models.codes import as_taken, finer, first_level, last_level  # noqa: E402
from models.detail import DetailLevel, TwoLevelVQVAE, sizes_upon  # noqa: E402
from pixelcnn import GatedPixelCNN  # noqa: E402
from scoring.bits import code_bits, told_of_first  # noqa: E402
from scoring.slices import reconstruction_summary, slice_scores  # noqa: E402
from sources.slice_set import load_slice_set  # noqa: E402
from training.coded_slices import CodedSlices  # noqa: E402
from training.detail_prior_stage import DetailPriorStage  # noqa: E402
from training.detail_stage import DetailStage  # noqa: E402
from training.loop import FitSettings, Stage, fit  # noqa: E402
from training.pipeline import DETAIL_PRIOR  # noqa: E402
from training.prior_stage import PriorStage  # noqa: E402
from training.vqvae_stage import VQVAEStage  # noqa: E402
from vqvae import VQVAE  # noqa: E402

K, DIM, LARGE = 512, 64, 4096
DRAWN = 16  # maps drawn at a time for the clock
KEPT = ("ssim", "ssim_frame", "psnr", "sharpness")


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/rivals.py`."""

    data: str = flag("data/keras_png_slices_data", "The OASIS slice set.")
    ways: str | None = flag(None, "Which to train, separated by semicolons; all where it is not given.")
    epoch: int = flag(2, "Epochs of each VQ-VAE, and of each level.")
    subjects: int = flag(125, "Training subjects whose maps the priors see.")
    batch: int = flag(8, "Slices a step, and maps a step of twice as many.")
    lr: float = flag(0.002, "Learning rate of everything.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("runs/bench-rivals", "Folder for the weights and the results.")
    cache: str = flag(".cache", "Folder for decoded slices.")


@dataclass
class Bench:
    """What all of them share. folder: of one way's weights."""

    settings: Settings
    data: Dataset
    frame: Frame
    precision: str
    folder: Path

    def trained(self, stage: Stage, epochs: int, batch: int) -> nn.Module:
        """The best weights of a stage; those that lie in the folder where they do."""
        path = self.folder / f"{stage.name}.safetensors"
        if not path.exists():
            fit(stage, FitSettings(epochs, batch, self.settings.lr, 0, self.settings.seed, 1e9), self.folder, False)
        return load_model(path, type(stage.model))

    def codec(self, model: VQVAE | TwoLevelVQVAE) -> nn.Module:
        """A VQ-VAE, or the second level upon a trained one, trained."""
        splits = self.data.splits["train"], self.data.splits["validate"]
        two = isinstance(model, TwoLevelVQVAE)
        stage = (DetailStage if two else VQVAEStage)(model, *splits, self.frame, self.precision)
        found = self.trained(stage, self.settings.epoch, self.settings.batch)
        return replaced(model, found) if two else found

    def coded(self, codec: nn.Module) -> CodedSlices:
        """Code maps of the validation split and of the subjects that the priors see."""
        train, validation = self.data.splits["train"], self.data.splits["validate"]
        people = sorted(set(train.subjects))
        chosen = {
            people[i] for i in np.linspace(0, len(people) - 1, min(self.settings.subjects, len(people))).astype(int)
        }
        some = train.at(np.array([i for i, subject in enumerate(train.subjects) if subject in chosen]))
        codes = encode_splits(codec, Dataset("", {"train": some}), self.frame, "train")
        held_out = encode_split(codec, validation, self.frame, "encoding validate")
        return CodedSlices(some, validation, codes["train"], codes["train_mirrored"], held_out)

    def prior(self, stage: PriorStage) -> GatedPixelCNN:
        return self.trained(stage, 1, 2 * self.settings.batch)


def replaced(levels: TwoLevelVQVAE, detail: DetailLevel) -> TwoLevelVQVAE:
    return TwoLevelVQVAE(levels.first, detail).eval()


# --------------------------------------------------------------------------- the ways: a codec, bits a slice and a sampler each

Way = Callable[[Bench], tuple[nn.Module, CodedSlices, float, Callable[[Tensor], None]]]


def prior_for(num_codes: int, data: CodedSlices, **arguments: Any) -> GatedPixelCNN:
    size = tuple(first_level(data.codes).shape[1:])
    return GatedPixelCNN(num_codes, **({"marginal": size, "mirrored_half": True} | arguments))


def bits(prior: GatedPixelCNN, data: CodedSlices, features: Any = None, where: Tensor | None = None) -> float:
    """Bits a slice of validation maps, at the places where `where` `[h, w]` is true; None: at all."""
    _, by_position = code_bits(prior, data.validation_codes, data.validation.known, features=features)
    return float(by_position.sum() if where is None else by_position[where.numpy()].sum())


def one_level(downsample: int, num_codes: int, bench: Bench) -> Any:
    codec = bench.codec(VQVAE(num_codes, DIM, downsample))
    data = bench.coded(codec)
    stage = PriorStage(prior_for(num_codes, data), data, codec.quantizer.codebook, bench.precision)
    prior = bench.prior(stage)
    size = data.codes.shape[1:]
    return codec, data, bits(prior, data), lambda positions: prior.sample(len(positions), *size, position=positions)


def two_levels(bench: Bench) -> Any:
    first = bench.codec(VQVAE(K, DIM, 8))
    codec = bench.codec(TwoLevelVQVAE(first, DetailLevel(K, **sizes_upon(first))))
    data = bench.coded(codec)
    coarse, fine = data.of(first_level), data.of(last_level)
    prior = bench.prior(PriorStage(prior_for(K, coarse), coarse, first.quantizer.codebook, bench.precision))
    upon = GatedPixelCNN(K, context_features=codec.context_channels, **DETAIL_PRIOR)
    detail = bench.prior(DetailPriorStage(upon, codec, data, bench.precision))
    everywhere = told_of_first(codec, coarse.validation_codes)(np.arange(len(coarse.validation_codes)))

    def draw(positions: Tensor) -> None:
        maps = prior.sample(len(positions), *coarse.codes.shape[1:], position=positions)
        detail.sample(len(positions), *fine.codes.shape[1:], position=positions, features=codec.context(maps))

    return codec, data, bits(prior, coarse) + bits(detail, fine, everywhere), draw


class OfASubset(PriorStage):
    """The prior of all codes of a level, told every second one of every second row."""

    name = "fine_prior"

    def features(self, chosen: Tensor, mirrored: Tensor) -> Tensor:
        return every_second(self.codebook, self.data.maps(chosen, mirrored))

    def scored_features(self, name: str) -> Callable[[np.ndarray], Callable[[Tensor], Tensor]]:
        maps = self.data.codes if name == "train" else self.data.validation_codes
        return lambda some: lambda indices: every_second(self.codebook, maps[torch.from_numpy(some)[indices]])


def subset(maps: Tensor) -> Tensor:
    """Every second code of every second row."""
    return maps[..., ::2, ::2]


def every_second(codebook: Tensor, maps: Tensor) -> Tensor:
    """The vectors of `subset`, on the whole grid, `[B, D, h, w]`."""
    chosen = as_taken(subset(maps), codebook.device)
    return finer(nn.functional.embedding(chosen, codebook).permute(0, 3, 1, 2))


def coarse_to_fine(bench: Bench) -> Any:
    """One level at f=4, of which a quarter of the codes is drawn first and told to the rest."""
    codec = bench.codec(VQVAE(K, DIM, 4))
    data, codebook = bench.coded(codec), codec.quantizer.codebook
    coarse = data.of(subset)
    prior = bench.prior(PriorStage(prior_for(K, coarse), coarse, codebook, bench.precision))
    upon = GatedPixelCNN(K, context_features=DIM, marginal=tuple(data.codes.shape[1:]), **DETAIL_PRIOR)
    fine = bench.prior(OfASubset(upon, data, codebook, bench.precision))
    rest = torch.ones(data.codes.shape[1:], dtype=torch.bool)
    rest[::2, ::2] = False

    def features(indices: Tensor) -> Tensor:
        return every_second(codebook, data.validation_codes[indices])

    def draw(positions: Tensor) -> None:
        known = torch.zeros(len(positions), *data.codes.shape[1:], dtype=torch.int64)
        known[:, ::2, ::2] = prior.sample(len(positions), *coarse.codes.shape[1:], position=positions)
        told = every_second(codebook, known)
        fine.sample(len(positions), *known.shape[1:], position=positions, features=told, codes=known, keep=~rest)

    return codec, data, bits(prior, coarse) + bits(fine, data, features, rest), draw


def residual(depth: int, bench: Bench) -> Any:
    codec = bench.codec(ResidualVQVAE(depth, num_codes=K, code_dim=DIM, downsample=8))
    data = bench.coded(codec)
    first = data.of(lambda maps: maps.chunk(depth, 1)[0])
    prior = bench.prior(PriorStage(prior_for(K, first), first, codec.quantizer.codebook, bench.precision))
    stage = DepthStage(DepthHeads(depth, K, DIM), codec.quantizer, data, bench.precision)
    stage.model = bench.trained(stage, 1, 2 * bench.settings.batch)
    size, later = first.codes.shape[1:], data.codes[0].numel() - first.codes[0].numel()

    def draw(positions: Tensor) -> None:
        maps = prior.sample(len(positions), *size, position=positions)
        stage.draw(maps, positions, torch.Generator().manual_seed(0))

    return codec, data, bits(prior, first) + later * stage.validate(stage.model)["validate_bits"], draw


WAYS: dict[str, Way] = {
    "f=8": lambda bench: one_level(8, K, bench),
    "f=8 and f=4 (two levels)": two_levels,
    "f=4": lambda bench: one_level(4, K, bench),
    "f=4, a quarter first": coarse_to_fine,
    "f=8, K=4096": lambda bench: one_level(8, LARGE, bench),
    "f=8, 2 residual codes": partial(residual, 2),
    "f=8, 4 residual codes": partial(residual, 4),
}


def measured(way: Way, bench: Bench) -> dict[str, float]:
    """What a way costs and gives."""
    seed_everything(bench.settings.seed, "rivals")
    started = time.process_time()
    codec, data, bits_per_slice, draw = way(bench)
    spent = time.process_time() - started
    held_out = data.validation
    values = slice_scores(codec, held_out, data.validation_codes, bench.frame, "validate")
    summary = reconstruction_summary(values, held_out.subjects)
    positions = torch.linspace(0, 1, DRAWN)
    started = time.process_time()
    draw(positions)
    drawing = (time.process_time() - started) / DRAWN
    maps = [data.codes] if torch.is_tensor(data.codes) else [data.codes.first, data.codes.detail]
    return {name: summary[name] for name in KEPT} | {
        "codes": sum(each[0].numel() for each in maps),
        "bits_per_slice": bits_per_slice,
        "processor_seconds": spent,
        "drawing_seconds": drawing,
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown; drawing time as a share of two levels'."""
    unit = found.get("f=8 and f=4 (two levels)", next(iter(found.values())))["drawing_seconds"]
    rows = [
        f"| {name} | {one['codes']:.0f} | {one['bits_per_slice']:.0f} | {one['ssim']:.4f} | {one['ssim_frame']:.4f} | "
        f"{one['psnr']:.2f} | {one['sharpness']:.2f} | {one['drawing_seconds'] / unit:.2f} |"
        for name, one in found.items()
    ]
    head = "| | codes | bits a slice, priors | SSIM | SSIM, frame | PSNR | sharpness | drawing time |"
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|--:|--:|", *rows])


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    wanted = list(WAYS) if settings.ways is None else [name.strip() for name in settings.ways.split(";")]
    unknown = [name for name in wanted if name not in WAYS]
    require(not unknown, f"--ways: no {'; '.join(unknown)}; there are {'; '.join(WAYS)}")
    data, out = load_slice_set(settings.data, settings.cache), Path(settings.out)
    results = Results(out / "results.json")
    results.origin = versions()
    frame, precision = find_frame(data.splits["train"].images, 8), resolve_precision("auto", torch.device("cpu"))
    for name in wanted:
        if name not in results.values.get("rivals", {}):
            bench = Bench(settings, data, frame, precision, out / name.replace(" ", "_"))
            results.add("rivals", name, measured(WAYS[name], bench))
        print(name, results.values["rivals"][name], flush=True)
    (out / "report.md").write_text(table(results.values["rivals"]) + "\n")
    print(table(results.values["rivals"]))


if __name__ == "__main__":
    run_main(main)
