"""How often wrong input is found, and usual input is taken for wrong: counts of `scoring/input_checks.py`.

    python benchmarks/wrong_input.py --data data/keras_png_slices_data --out runs/wrong-input

Every validation scan is held against the others as it is, and made wrong in each way of `WRONG`; training scans that the mean
slices are not made of are held against all of them. Found: what is said has the words that the way is to have.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from common.cli import flag, parse_flags, run_main  # noqa: E402
from common.files import write_json, write_text  # noqa: E402
from common.runtime import Progress, versions  # noqa: E402
from dataset import spread_over  # noqa: E402
from scoring.held_out import MEAN_SCANS, scans_of  # noqa: E402
from scoring.input_checks import BACKGROUND, Template, features_of, findings  # noqa: E402
from sources import DataOptions  # noqa: E402
from sources import load as load_data  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """The flags."""

    data: str = flag("data/keras_png_slices_data", "Slices with numbers, split into train and validate.")
    subjects: int = flag(35, "Validation scans that are made wrong, spread over the split.")
    others: int = flag(206, "Training scans, not among those of the mean slices, that nothing is to be said of.")
    out: str = flag("runs/wrong-input", "Folder for the table.")
    cache: str = flag(".cache", "Folder for decoded slices.")


Way = Callable[[np.ndarray], np.ndarray]  # [S, H, W] uint8 -> the same


def in_head(images: np.ndarray) -> np.ndarray:
    """Which pixels lie in the head, holes filled."""
    return np.stack([ndimage.binary_fill_holes(ndimage.binary_opening(image > BACKGROUND)) for image in images])


def scaled(rows: float, columns: float) -> Way:
    """About the middle of the slices."""

    def made(images: np.ndarray) -> np.ndarray:
        shrink = np.array([1, 1 / rows, 1 / columns])
        middle = (np.array(images.shape) - 1) / 2
        return ndimage.affine_transform(images, shrink, middle - shrink * middle, order=1)

    return made


def stripped(images: np.ndarray) -> np.ndarray:
    """The brain alone: what has the grey of tissue, below the outline, opened, its largest piece, filled."""
    depth = np.stack([ndimage.distance_transform_edt(head) for head in in_head(images)])
    middle = np.median(images[depth > 18])
    tissue = (images > 0.4 * middle) & (images < 1.6 * middle)
    opened = ndimage.binary_opening(tissue & (depth > 7), np.ones((1, 3, 3)), iterations=3)
    pieces, count = ndimage.label(opened)
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]) if count else opened
    brain = np.stack([ndimage.binary_fill_holes(ndimage.binary_dilation(each, iterations=2)) for each in largest])
    return np.where(brain, images, 0).astype(np.uint8)


def of_grey(curve: Callable[[np.ndarray], np.ndarray]) -> Way:
    """Other grey values within the head: of 0..1, to 0..1."""

    def made(images: np.ndarray) -> np.ndarray:
        changed = 255 * curve(images / 255).clip(0, 1)
        return np.where(in_head(images), changed, images).astype(np.uint8)

    return made


WRONG: dict[str, tuple[str, Way]] = {  # words that are to be said of it, and how it is made
    "rotated by 90 degrees": ("rotated by 90", lambda images: np.rot90(images, 1, (1, 2))),
    "rotated by 270 degrees": ("rotated by 90", lambda images: np.rot90(images, 3, (1, 2))),
    "rotated by 180 degrees": ("180 degrees", lambda images: np.rot90(images, 2, (1, 2))),
    "front and back swapped": ("front and back", lambda images: images[:, :, ::-1]),
    "slices from the top down": ("top down", lambda images: images[::-1]),
    "grey values reversed": ("another contrast", of_grey(lambda grey: 0.9 - grey)),
    "grey values as in T2": ("another contrast", of_grey(lambda grey: 0.9 * np.exp(-grey / 0.3))),
    "15 % smaller": ("smaller", scaled(0.85, 0.85)),
    "15 % larger": ("larger", scaled(1.15, 1.15)),
    "20 % longer along rows": ("another shape", scaled(1.2, 1.0)),
    "20 % shorter along columns": ("another shape", scaled(1.0, 0.8)),
    "skull stripped": ("skull-stripped", stripped),
    "half as bright": ("darker", lambda images: images // 2),
    "twice as bright": ("brighter", lambda images: np.minimum(images, 127) * 2),
    "gamma of 0.6": ("", of_grey(lambda grey: grey**0.6)),
}


def main(argv: Sequence[str] | None = None) -> None:
    s = Settings(**parse_flags(Settings, __doc__, argv))
    data = load_data(DataOptions(data=s.data), s.cache, Progress)
    train, validate = data.splits["train"], data.splits["validate"]
    numbers = np.unique(validate.numbers)
    scans, own = list(scans_of(validate)), list(scans_of(train))
    averaged = spread_over(len(own), MEAN_SCANS)
    mean_of = train.at(np.concatenate([own[index] for index in averaged]))
    template = Template.of(mean_of, np.searchsorted(numbers, mean_of.numbers), len(numbers))

    def measured(images: np.ndarray, of: np.ndarray):
        return features_of(np.ascontiguousarray(images), np.searchsorted(numbers, of), template)

    usual = [measured(validate.images[indices], validate.numbers[indices]) for indices in scans]
    table = np.stack([each.values for each in usual])
    alarms = [findings(each, np.delete(table, index, 0)) for index, each in enumerate(usual)]
    others = np.setdiff1d(np.arange(len(own)), averaged)
    others = (
        [own[index] for index in others[spread_over(len(others), min(s.others, len(others)))]] if len(others) else []
    )
    strangers = [findings(measured(train.images[each], train.numbers[each]), table) for each in others]
    counts = {
        "false alarms, validation scans": [sum(map(bool, alarms)), len(alarms)],
        "false alarms, training scans": [sum(map(bool, strangers)), len(strangers)],
    }
    missed: dict[str, list[str]] = {}
    chosen = spread_over(len(scans), s.subjects)
    with Progress(len(WRONG) * len(chosen), "making input wrong", "scan") as progress:
        for name, (words, way) in WRONG.items():
            said = {}
            for index in chosen:
                images, of = validate.images[scans[index]], validate.numbers[scans[index]]
                said[index] = findings(measured(way(images), of), np.delete(table, index, 0))
                progress.update(1)
            found = [any(words in each for each in its) for its in said.values()]
            counts[name] = [sum(found), len(found)]
            missed[name] = ["; ".join(its) for its, hit in zip(said.values(), found) if not hit]
    report(Path(s.out), counts, missed, data.title)


def report(out: Path, counts: dict[str, list[int]], missed: dict[str, list[str]], title: str) -> None:
    lines = [f"| {title} | said |", "|---|--:|"]
    lines += [f"| {name} | {found} of {count} |" for name, (found, count) in counts.items()]
    write_text(out / "report.md", "\n".join(lines) + "\n")
    write_json(out / "wrong_input.json", {"counts": counts, "said instead": missed, "versions": versions()})
    print("\n".join(lines))
    for name, each in missed.items():
        if each:
            print(f"{name}, said instead: {' | '.join(one or 'nothing' for one in each)}")


if __name__ == "__main__":
    run_main(main)
