"""What each choice of the prior is worth, and what more subjects are: short trainings, from nothing.

    python benchmarks/prior_choices.py --run runs/f8 --data data/keras_png_slices_data
    python benchmarks/prior_choices.py --run runs/f8 --data data/keras_png_slices_data --choices "as it is,AdamW instead of Muon"
    python benchmarks/prior_choices.py --run runs/f8 --data data/keras_png_slices_data --part subjects

Choices, one at a time undone: all see the same maps in the same order, the whole scans of some training subjects, once, by the
schedule of `train.py`, and are scored on validation maps told nothing and told the slice below. Without a moving average of the
weights, whose 1,000 steps are longer than these trainings.

Subjects: priors of the same size see equally many maps, of few people often or of many seldom; of each the epoch is kept that is
the best on validation, as in `train.py`. "40 warped" has warped copies of the slices of 40 people besides (`warped.py`).

What is trained already is not trained again.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measuring import Results  # noqa: E402
from warped import WARPED, OfTheFirst, with_warped  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.files import hash_of  # noqa: E402
from common.runtime import resolve_precision, seed_everything, versions  # noqa: E402
from dataset import NEIGHBOUR, Split  # noqa: E402
from models.codes import first_level  # noqa: E402
from models.neighbours import SIDES  # noqa: E402
from pixelcnn import NUMBER, GatedPixelCNN  # noqa: E402
from sources.slice_set import load_slice_set  # noqa: E402
from training import loop, pipeline, prior_stage, told_neighbours  # noqa: E402
from training.coded_slices import CodedSlices  # noqa: E402
from training.loop import FitSettings, adamw, fit, read_metrics  # noqa: E402
from training.prior_stage import PriorStage  # noqa: E402
from utils import Run, load_run, read_codes  # noqa: E402

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Choice:
    """What is other than `train.py` has it: values in modules or classes by (where, name), and arguments of the prior."""

    values: tuple[tuple[Any, str, Any], ...] = ()
    prior: tuple[tuple[str, Any], ...] = ()


def _adamw_alone(stage: PriorStage, lr: float) -> list[torch.optim.Optimizer]:
    return [adamw(stage.model.parameters(), lr)]


CHOICES = {
    AS_IT_IS: Choice(),
    "AdamW instead of Muon": Choice(((PriorStage, "optimizers", _adamw_alone),)),
    "Muon's steps as large as AdamW's": Choice(((prior_stage, "MUON_SCALE", 0.2),)),
    "Muon's steps three times as large": Choice(((prior_stage, "MUON_SCALE", 0.6),)),
    "Muon's steps 7.5 times as large": Choice(((prior_stage, "MUON_SCALE", 1.5),)),
    "no mirrored half": Choice(prior=(("mirrored_half", False),)),
    "one neighbour": Choice(prior=(("context", 1),)),
    "15 % of the maps told nothing": Choice(((told_neighbours, "WITHHELD", 0.15),)),
    "no wrong codes in what is told": Choice(((told_neighbours, "MOST_WRONG", 0.0),)),
    "weight decay of 0.1": Choice(((loop, "WEIGHT_DECAY", 0.1),)),
    "weight decay of 1": Choice(((loop, "WEIGHT_DECAY", 1.0),)),
    "96 channels": Choice(prior=(("channels", 96),)),
}


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/prior_choices.py`."""

    run: str = flag("runs/f8", "Run folder with a VQ-VAE and the code maps of its data.")
    data: str = flag("data/keras_png_slices_data", "The OASIS slice set that the run was trained on.")
    choices: str = flag(",".join(CHOICES), "Which to train, separated by commas.")
    part: str = flag("choices", "What to measure.", ("choices", "subjects"))
    subjects: int = flag(125, "Training subjects of the choices, spread evenly over the split.")
    by_subjects: str = flag(
        "40,40 warped,80,160,302",
        "Numbers of training subjects to compare, separated by commas; with or without warped slices.",
    )
    maps: int = flag(19328, "Maps that each of these sees.")
    batch: int = flag(16, "Maps a step.")
    lr: float = flag(0.002, "Learning rate.")
    seed: int = flag(0, "Seed of everything random.")
    precision: str = flag("auto", "Arithmetic of training, as in train.py.", ("auto", "float32", "bf16"))
    out: str = flag("runs/bench-prior-choices", "Folder for the results.")
    cache: str = flag(".cache", "Folder for decoded slices.")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    wanted = [name.strip() for name in settings.choices.split(",")]
    unknown = [name for name in wanted if name not in CHOICES]
    require(not unknown, f"--choices: no {', '.join(unknown)}; there are {', '.join(CHOICES)}")
    run, codes = load_run(settings.run, level="first"), read_codes(Path(settings.run))
    codes = {name: first_level(maps) for name, maps in codes.items()}
    splits = load_slice_set(settings.data, settings.cache).splits
    require(
        all(len(splits[name]) == len(codes.get(name, ())) for name in ("train", "validate")),
        f"--data {settings.data} is not what {settings.run} was trained on: it holds other numbers of slices",
    )
    results = Results(Path(settings.out) / "results.json")
    results.origin = versions()
    some = partial(some_subjects, splits["train"], splits["validate"], codes)
    if settings.part == "choices":
        trainings = {
            name: partial(trained_once, run, some(settings.subjects), CHOICES[name], settings) for name in wanted
        }
    else:
        trainings = {}
        for row in settings.by_subjects.split(","):
            count, *warped = row.split()
            trainings[row] = partial(of_subjects, run, some(int(count)), bool(warped), settings)
    for name, training in trainings.items():
        if name not in results.values.get(settings.part, {}):
            results.add(settings.part, name, training())
        print(name, results.values[settings.part][name], flush=True)
    table = TABLES[settings.part](results.values[settings.part])
    (Path(settings.out) / f"{settings.part}.md").write_text(table + "\n")
    print(table)


def some_subjects(train: Split, validation: Split, codes: dict[str, torch.Tensor], count: int) -> CodedSlices:
    """All slices of some training subjects, with their code maps."""
    people = sorted(set(train.subjects))
    chosen = {people[index] for index in np.linspace(0, len(people) - 1, min(count, len(people))).round().astype(int)}
    some = np.array([index for index, subject in enumerate(train.subjects) if subject in chosen])
    maps = (codes[name][torch.from_numpy(some)] for name in ("train", "train_mirrored"))
    return CodedSlices(train.at(some), validation, *maps, codes["validate"])


def trained_once(run: Run, data: CodedSlices, choice: Choice, settings: Settings) -> dict[str, float]:
    """`trained` for one epoch, with a choice made otherwise."""
    with ExitStack() as undone:
        undone.enter_context(patch.object(PriorStage, "average_decay", None))
        for where, name, value in choice.values:
            undone.enter_context(patch.object(where, name, value))
        return trained(run, data, settings, len(data.codes), **dict(choice.prior))


def of_subjects(run: Run, data: CodedSlices, warped: bool, settings: Settings) -> dict[str, float]:
    """`trained` on so many maps of these slices, or of them and their warped copies."""
    if not warped:
        return trained(run, data, settings, settings.maps)
    conditions = {"position": NUMBER, NEIGHBOUR: SIDES, WARPED: NUMBER}
    return trained(run, with_warped(run, data, settings.seed), settings, settings.maps, conditions=conditions)


def trained(run: Run, data: CodedSlices, settings: Settings, maps: int, **arguments: Any) -> dict[str, float]:
    """Scores of a prior that has seen about so many maps, at its best epoch, and the processor time that it took.

    arguments: of the prior, where they are not those of `train.py`.
    """
    seed_everything(settings.seed, "prior")
    told = {"conditions": {"position": NUMBER, NEIGHBOUR: SIDES}, "context": pipeline.TOLD, "mirrored_half": True}
    prior = GatedPixelCNN(run.vqvae.quantizer.num_codes, marginal=run.map_size, **(told | arguments))
    precision = resolve_precision(settings.precision, torch.device("cpu"))
    stage = PriorStage(prior, data, run.vqvae.quantizer.codebook, precision)
    if WARPED in data.train.conditions:
        stage.marginal = OfTheFirst(stage)
    epochs, started = max(1, round(maps / len(data.codes))), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        schedule = FitSettings(epochs, settings.batch, settings.lr, 0, settings.seed, save_every=1e9)
        fit(stage, schedule, Path(folder), False, hash_of(run.vqvae.state_dict()))
        record = min(read_metrics(Path(folder)), key=lambda record: record[stage.score])
    kept = ("epoch", "train_bits", "validate_bits", "train_told_bits", "validate_told_bits")
    return {name: record[name] for name in kept} | {
        "epochs": epochs,
        "maps": epochs * len(data.codes),
        "processor_seconds": time.process_time() - started,
    }


def choices_table(choices: dict[str, dict[str, float]]) -> str:
    """The scores as Markdown, with the processor time as a share of the first one's."""
    first = choices.get(AS_IT_IS, next(iter(choices.values())))
    rows = [
        f"| {name} | {one['validate_bits']:.3f} | {one['validate_told_bits']:.3f} | "
        f"{one['processor_seconds'] / first['processor_seconds']:.2f} |"
        for name, one in choices.items()
    ]
    head = "| bits a code on validation | told nothing | told the slice below | processor time |\n|---|--:|--:|--:|"
    return "\n".join([head, *rows])


def subjects_table(by_subjects: dict[str, dict[str, float]]) -> str:
    """The scores as Markdown, a row a number of subjects."""
    rows = [
        f"| {count} | {one['epoch']} of {one['epochs']} | "
        + " | ".join(f"{one[f'{split}{told}_bits']:.3f}" for told in ("", "_told") for split in ("train", "validate"))
        + " |"
        for count, one in by_subjects.items()
    ]
    head = (
        "| subjects | best epoch | told nothing: train | validation | told the slice below: train | validation |\n"
        "|--:|--:|--:|--:|--:|--:|"
    )
    return "\n".join([head, *rows])


TABLES = {"choices": choices_table, "subjects": subjects_table}


if __name__ == "__main__":
    run_main(main)
