"""Score a trained run on a split.

    python evaluate.py                                       # the newest run, on its own data
    python evaluate.py --run runs/mine --data data/keras_png_slices_data --split validate
    python evaluate.py --run runs/mine --quick               # fewer samples, fewer comparisons
    python evaluate.py --run runs/mine --volumes 16          # whole heads too
    python evaluate.py --run pretrained --data DIR           # the weights that come with the toolkit; into runs/pretrained/

Prints the scores, adds them to scores.json in the run folder, and writes report.md and its pictures anew; for data that the run
was not trained on, in a folder of its own there: other_data/<name of the data>/. `scoring/evaluation.py` says what each key of
scores.json means.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from common.cli import flag, parse_flags, require, run_main
from common.files import write_json
from common.runtime import resolve_device
from dataset import SPLITS, Dataset
from inference.coding import encode_splits
from inference.heads import check_heads
from inference.run_data import holds_training, is_own, load_data
from reporting import report
from scoring.case import FULL, QUICK, Case
from scoring.evaluation import evaluate_split
from sources.scans import FORMATS
from utils import PRETRAINED, Run, decoder_to_use, load_run, read_codes, run_folder, save_codes, with_sharp_decoder

MOST_HEADS = 100  # drawn at once, and held in memory


@dataclass(frozen=True)
class Settings:
    """The flags of `evaluate.py`."""

    run: str | None = flag(
        None, "Run folder, or pretrained; where it is not given, the newest under runs/, else the pretrained weights."
    )
    data: str | None = flag(
        None,
        "Folder of slices or volumes, read as the run's own data was; the data the run was trained on where it is not given.",
    )
    format: str | None = flag(
        None, "What --data holds, as in train.py; as the run had it where it is not given.", ("auto", *FORMATS)
    )
    split_file: str | None = flag(
        None,
        "A table with the columns subject and split for --data; the run's own where it has one and names these subjects.",
    )
    skip_bad: bool = flag(
        False, "Leave out files that cannot be read, and say which; as the run did where it is not given."
    )
    table: str | None = flag(
        None,
        "Table of the run's conditions for --data; the run's own where it is not given. Where that is gone or says nothing of "
        "these subjects, slices are scored without conditions.",
    )
    split: str | None = flag(
        None, "Split to score; test where there is one, else validate, where it is not given.", SPLITS
    )
    samples: int | None = flag(
        None, f"Slices to draw for realism and copies; {FULL.samples}, with --quick {QUICK.samples}."
    )
    volumes: int = flag(
        0,
        "Whole heads to draw and score beside those of the split, 8 or more: whether their slices follow one another as real "
        "ones do, whether they get worse along the way, whether they are copies.",
    )
    quick: bool = flag(False, "Fewer samples and comparisons: the scores of samples are rough.")
    decoder: str | None = flag(
        None,
        "Decoder that paints the samples: faithful (the VQ-VAE's own) or sharp (which adds texture); by default sharp if "
        "the run has one. Reconstructions are scored with both.",
        ("faithful", "sharp"),
    )
    seed: int = flag(0, "Seed of everything random.")
    out: str | None = flag(None, "File for the scores alone, instead of the run folder's scores.json and report.md.")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps.")
    cache: str = flag(".cache", "Folder for decoded slices.")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    require(settings.samples is None or settings.samples >= 2, f"--samples is {settings.samples}; expected at least 2")
    require(0 <= settings.volumes <= MOST_HEADS, f"--volumes is {settings.volumes}; expected 0 to {MOST_HEADS} heads")
    require(
        settings.out is None or not Path(settings.out).is_dir(), f"--out {settings.out} is a folder; expected a file"
    )
    folder = run_folder(settings.run)
    run = load_run(folder, resolve_device(settings.device))
    if settings.volumes:
        check_heads(run)
    data, notes = load_data(settings, run, folder)
    name = settings.split or data.best_split("test", "validate")[0]
    require(name in data.splits, f"--split {name}: {data.title} has no such split; it has {', '.join(data.splits)}")
    split = data.splits[name]
    expected = (run.frame.image_height, run.frame.image_width)
    require(
        split.images.shape[1:] == expected,
        f"{data.title}: slices of {split.images.shape[1]}x{split.images.shape[2]} pixels, "
        f"but the run was trained on {expected[0]}x{expected[1]}",
    )
    print(
        f"run {folder.name if folder == PRETRAINED else folder}, trained on {run.config['data']['title']}; "
        f"scoring {name} of {data.title}",
        flush=True,
    )
    effort = QUICK if settings.quick else FULL
    effort = replace(effort, samples=settings.samples or effort.samples, heads=settings.volumes)
    sharp = with_sharp_decoder(run.vqvae, folder) if decoder_to_use(folder) == "sharp" else None
    decoder = decoder_to_use(folder, settings.decoder)
    own = is_own(run, data)
    kept = results_folder(folder, None if own else data)
    codes = known_codes(folder, kept, run, data, own)
    trained_here = own or holds_training(run, data)
    case = Case(run, data, name, codes, effort, settings.seed, kept / "images", sharp, decoder, notes, trained_here)
    scores = {name: evaluate_split(case)}
    print(report.table(scores))
    print(report.of_samples(scores[name]))
    if settings.out:
        write_json(Path(settings.out), scores)
    else:
        path = kept / "scores.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, known | scores)
        report.write(kept, run.config, known | scores, None if own else data.summary())
        print(f"scores, report and pictures: {kept}/")
    print(f"Average SSIM on {name} dataset: {scores[name]['ssim']:.4f}")


def results_folder(folder: Path, other: Dataset | None) -> Path:
    """Where scores and pictures go: the run folder, or, for data that the run was not trained on, a folder of its own in there,
    so that its scores never stand for the run's. The toolkit's own folder stays as it is."""
    kept = Path("runs") / PRETRAINED.name if folder == PRETRAINED else folder
    return kept if other is None else kept / "other_data" / other.title


def known_codes(folder: Path, kept: Path, run: Run, data: Dataset, own: bool) -> dict[str, Tensor]:
    """The code maps that the run left, those of its training split alone where the data is not its `own`. Where it left none, as
    the weights that come with the toolkit, those of the training split of its own data, which stay in `kept` for the next time.
    """
    codes = read_codes(folder)
    if codes:
        return codes if own else {name: codes[name] for name in ("train", "train_mirrored")}
    if not own or "train" not in data.splits:
        return {}
    if kept == folder:  # a run that has not encoded yet still has that to do
        return encode_splits(run.vqvae, data, run.frame, "train")
    codes = read_codes(kept, run.vqvae)
    if not codes:
        codes = encode_splits(run.vqvae, data, run.frame, "train")
        save_codes(kept, codes, run.vqvae)
    return codes


if __name__ == "__main__":
    run_main(main)
