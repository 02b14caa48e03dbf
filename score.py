"""How usual are these scans? Scores beside those of held-out scans of a run, a rank, and maps of where.

    python score.py --run pretrained --data DIR              # scores/slices.csv, scores/scans.csv, scores/worst.png
    python score.py --run runs/mine --data DIR --maps        # and the maps, as PNG and, of volumes, as NIfTI
    python score.py --run runs/mine --data DIR --restore 8   # and what slices would look like were they likely
    python score.py --run runs/mine --data DIR --masks DIR   # and how well the maps find what masks of the same names mark

For quality control: outliers, what is turned, scaled or otherwise not what the weights expect. It is not a detector of lesions
(docs/score.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.cli import flag, parse_flags, require, run_main
from common.errors import UserError
from common.files import check_writable, write_json
from common.runtime import Progress, resolve_device
from dataset import SPLITS, Dataset, Split
from inference.geometry import VOLUMES, data_options_of, geometry_of_volume
from inference.restoring import Recipe
from inference.run_data import holds_training, holds_validation, is_own, load_data
from models.detail import TwoLevelVQVAE
from reporting import unusual as pages
from scoring.held_out import HELD_OUT, HeldOut, load, measure, save, scans_of
from scoring.masks import Folder, Marked, agreement, counted, table_of
from scoring.scored import Scored, Scorer
from scoring.unusual import SCORES
from sources.scans import FORMATS, survey
from utils import PRETRAINED, Run, load_run, run_folder

WORST = 8  # slices on the page of the worst
FEWEST_SCANS = 2  # held-out ones, to compare one of them with another
WHITE = {"bits": 16.0, "bits_told": 16.0, "standard": 16.0, "restored": 0.3}  # what is white on the maps
SHOWN = {
    "bits": "bits",
    "bits_told": "bits, told a\nneighbour",
    "standard": "standard\ndeviations",
    "restored": "from its\nrestorations",
}


@dataclass(frozen=True)
class Settings:
    """The flags of `score.py`."""

    run: str | None = flag(
        None, "Run folder, or pretrained; where it is not given, the newest under runs/, else the pretrained weights."
    )
    data: str | None = flag(
        None,
        "Folder of slices or volumes, read as the run's own data was; the run's held-out scans where it is not given.",
    )
    split: str | None = flag(
        None,
        "Split to score; all that --data holds where it is not given, of the run's own data the held-out one.",
        SPLITS,
    )
    maps: bool = flag(False, "Write the map of bits of every slice as PNG, and of every volume as NIfTI.")
    restore: int = flag(
        0, "Draw unlikely codes anew, so many times a slice, and write the difference as a map; 0: do not."
    )
    threshold: float = flag(
        Recipe.threshold, "Standard deviations, on the map of what is unusual, from which a code is drawn anew."
    )
    sharpness: float = flag(
        Recipe.sharpness, "How much more restorations count that stay near to the slice; 0: all alike."
    )
    smooth: int = flag(Recipe.smooth, "Pixels a side that the map of restorations is averaged over; odd.")
    masks: str | None = flag(None, "Folder of masks of the same names, of what the maps are to find.")
    format: str | None = flag(
        None, "What --data holds, as in train.py; as the run had it where it is not given.", ("auto", *FORMATS)
    )
    split_file: str | None = flag(None, "A table with the columns subject and split for --data.")
    skip_bad: bool = flag(False, "Leave out files that cannot be read, and say which.")
    table: str | None = flag(None, "Table of the run's conditions for --data; unknown where it is not given.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("scores", "Folder for the tables, pictures and maps.")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps.")
    cache: str = flag(".cache", "Folder for decoded slices.")


@dataclass
class Found:
    """What was found so far. worst: the most unusual slices, as (how unusual, label, pictures by name `[H, W]`)."""

    slices: list[dict[str, Any]] = field(default_factory=list)
    scans: list[dict[str, Any]] = field(default_factory=list)
    worst: list[tuple[float, str, dict[str, np.ndarray]]] = field(default_factory=list)
    voxels: list[Marked] = field(default_factory=list)
    marked_slices: list[Marked] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    recipe = Recipe(settings.restore, settings.threshold, settings.sharpness, settings.smooth, settings.seed)
    recipe.check()
    out = Path(settings.out)
    require(not out.exists() or out.is_dir(), f"--out {out} is a file; expected a folder or a new name")
    check_writable(out, "--out")
    folder = run_folder(settings.run)
    run = load_run(folder, resolve_device(settings.device))
    require(run.prior is not None, f"{folder}: this run has no prior to score with; train one with --stage prior")
    data, _ = load_data(settings, run, folder)
    files = volume_files(settings, run, data) if settings.maps or recipe.times or settings.masks else {}
    masks = masks_of(settings, run, data, files)
    splits = splits_of(settings, run, data)
    scorer = Scorer(run, what_is_usual(settings, run, folder), recipe)
    say_what_is_left_out(run, data)
    found, scans = Found(), [(split, indices) for split in splits for indices in scans_of(split)]
    with Progress(len(scans), "scoring", "scan") as progress:
        for split, indices in scans:
            scan = split.at(indices)
            scored = scorer.score(scan)
            keep(found, run, scan, scored)
            if settings.maps or recipe.times:
                write_maps(run, scan, scored, out / "maps", files, settings.maps)
            if masks is not None:
                compare(found, run, scan, scored, masks)
            progress.update(1)
    write(found, out, f"{data.title} by {run.config['data']['title']}", settings.masks)


def splits_of(settings: Settings, run: Run, data: Dataset) -> list[Split]:
    """What to score: the split that is asked for, else all but what the run was trained on."""
    if settings.split is not None:
        require(settings.split in data.splits, f"--split {settings.split}: {data.title} has {', '.join(data.splits)}")
        names = [settings.split]
    else:
        own = is_own(run, data) or ("train" in data.splits and settings.data is not None and trained_on(run, data))
        names = [name for name in data.splits if not own or name != "train"]
        if own:
            print(f"{data.title} holds what the run was trained on, which is left out; --split train scores it")
    require(bool(names), f"{data.title}: nothing in it but what the run was trained on; --split train scores that")
    expected = (run.frame.image_height, run.frame.image_width)
    for name in names:
        height, width = data.splits[name].images.shape[1:]
        require(
            (height, width) == expected,
            f"{data.title}: slices of {height}x{width} pixels, but the run was trained on {expected[0]}x{expected[1]}",
        )
    return [data.splits[name] for name in names]


def trained_on(run: Run, data: Dataset) -> bool:
    """Whether the data's training split is the run's, where the run says which that was."""
    return bool(run.config["data"].get("content")) and holds_training(run, data)


def what_is_usual(settings: Settings, run: Run, folder: Path) -> HeldOut:
    """The held-out scans of the run, as `measured`, of which there have to be a few."""
    found = measured(settings, run, folder)
    require(
        len(found.marks) >= FEWEST_SCANS,
        f"{folder}: it has {len(found.marks)} validation scan to compare with; expected at least {FEWEST_SCANS}",
    )
    return found


def measured(settings: Settings, run: Run, folder: Path) -> HeldOut:
    """The held-out scans of the run, as it left them measured, else measured now, from its own data."""
    kept = Path("runs") / PRETRAINED.name if folder == PRETRAINED else folder
    for place in (folder, kept):
        held_out = load(place / HELD_OUT, run)
        if held_out is not None:
            return held_out
    try:
        own = replace(settings, data=None, format=None, split=None, split_file=None, table=None)
        data, _ = load_data(own, run, folder)
        require(holds_validation(run, data), f"{data.title} has not the run's validation split")
    except UserError as error:
        raise UserError(
            f"{folder}: no {HELD_OUT} of these weights, which says what is usual, and it cannot be measured from the run's data "
            f"({error}); run score.py once where that data is"
        ) from None
    found = measure(run, data.splits["validate"], data.splits.get("train"), "measuring held-out scans")
    save(kept / HELD_OUT, found, run)
    print(f"what is usual, of {len(found.marks)} held-out scans: {kept / HELD_OUT}", flush=True)
    return found


def say_what_is_left_out(run: Run, data: Dataset) -> None:
    if not run.prior.context_maps:
        print("note: this run's prior is told no neighbours; scores told a neighbour are left out")
    if isinstance(run.vqvae, TwoLevelVQVAE):
        print("note: bits are those of the first level of codes; reconstructions are of both")
    if any(split.numbers is None for split in data.splits.values()):
        print("note: the data has no slice numbers; slices are compared with held-out ones of all positions")


def keep(found: Found, run: Run, scan: Split, scored: Scored) -> None:
    """Add a scan's rows, and its slices to the worst, of which `WORST` are kept."""
    shared = {"subject": scan.subjects[0], "session": (scan.sessions or [""])[0]}
    whole = {"slices": len(scan), "unusual": scored.scan_unusual} | columns(scored.scan, scored.scan_percentiles)
    about = {"findings": "; ".join(scored.findings), "held_out": "yes" if scored.known else ""}
    found.scans.append({"rank": 0, "first_slice": scan.names[0]} | shared | whole | about)
    for index, name in enumerate(scan.names):
        own = {"number": scan.slice_numbers[index], "unusual": float(scored.unusual[index])}
        scores, percentiles = (
            {key: each[key][index] for key in SCORES} for each in (scored.slices, scored.percentiles)
        )
        found.slices.append({"rank": 0, "slice": name} | shared | own | columns(scores, percentiles))
    for index in np.argsort(-scored.unusual)[:WORST].tolist():
        number = scan.slice_numbers[index]
        label = f"{scan.subjects[0]}{'' if number is None else f', {number}'}\n{scored.unusual[index]:.1f}"
        found.worst.append((float(scored.unusual[index]), label, pictures_of(run, scan, scored, index)))
    found.worst = sorted(found.worst, key=lambda each: -each[0])[:WORST]


def columns(scores: Mapping[str, float], percentiles: Mapping[str, float]) -> dict[str, float]:
    """Scores and their percentiles as columns of a table."""
    return {name: float(scores[name]) for name in SCORES} | {
        f"{name}_percentile": float(percentiles[name]) for name in SCORES
    }


def pictures_of(run: Run, scan: Split, scored: Scored, index: int) -> dict[str, np.ndarray]:
    """A slice and its maps within the frame, `[H, W]` by what they are called on the page."""
    maps = {name: scored.pixels(run, name) for name in WHITE if name in scored.maps}
    shown = {"slice": scan.batch(np.array([index]))[:, 0]}
    shown |= {SHOWN[name]: each[index : index + 1] / WHITE[name] for name, each in maps.items()}
    if scored.restored is not None:
        shown["restored"] = scored.restored.nearest[index : index + 1]
        shown[SHOWN["restored"]] = scored.restored.map[index : index + 1] / WHITE["restored"]
    return {name: run.frame.crop(each)[0].numpy() for name, each in shown.items()}


def volume_files(settings: Settings, run: Run, data: Dataset) -> dict[str, Path]:
    """The file of each scan by its name, of data on volumes."""
    options = data_options_of(run.config)
    place = settings.data or options.data
    if data.kind not in VOLUMES or place is None:
        return {}
    asked = (options.contrast, options.subject, settings.skip_bad or options.skip_bad)
    return {scan.name: scan.files[0] for scan in survey(Path(place), data.kind, *asked).scans}


def masks_of(settings: Settings, run: Run, data: Dataset, files: Mapping[str, Path]) -> Folder | None:
    """The folder of --masks. files: `volume_files`."""
    if settings.masks is None:
        return None
    return Folder(Path(settings.masks), run, files if data.kind in VOLUMES else None)


def write_maps(run: Run, scan: Split, scored: Scored, folder: Path, files: Mapping[str, Path], bits: bool) -> None:
    """Maps of a scan's slices as PNG and, of volumes, as NIfTI where the volume lies. bits: whether those of bits are wanted."""
    wanted = [name for name in ("bits", "bits_told", "standard") if bits and name in scored.maps]
    maps = {name: scored.pixels(run, name).numpy() for name in wanted}
    if scored.restored is not None:
        maps |= {"restored": scored.restored.map.numpy()}
    names = [name.replace("/", "_").removesuffix(".png").removesuffix(".nii") for name in scan.names]
    scan_name = scan.names[0].rpartition("_slice_")[0]
    place = geometry_of_volume(files[scan_name], run) if scan_name in files else None
    for name, each in maps.items():
        pages.write_map_pictures(each, names, folder / name, WHITE[name])
        if place is not None:
            path = folder / f"{scan_name.replace('/', '_')}_{name}.nii.gz"
            pages.write_map_volume(each, scan.numbers, place, path)


def compare(found: Found, run: Run, scan: Split, scored: Scored, masks: Folder) -> None:
    """Add how the maps and the slices' scores lie to a scan's masks; voxels outside of the frame are none."""
    its = masks.of(scan)
    if its is None:
        return
    marked, there = its
    maps = run.frame.crop(scored.anomaly(run)).numpy()
    inside = run.frame.crop(torch.from_numpy(marked)).numpy()
    found.voxels.append(Marked(scan.subjects[0], *counted(maps[there], inside[there])))
    of_slices = counted(scored.slices["peak"][there], inside[there].any((1, 2)), exact=True)
    found.marked_slices.append(Marked(scan.subjects[0], *of_slices))


def write(found: Found, out: Path, title: str, masks: str | None) -> None:
    """The tables, by rank, the page of the worst, and what is to be said."""
    for name, rows in (("scans", found.scans), ("slices", found.slices)):
        rows.sort(key=lambda row: -row["unusual"])
        for rank, row in enumerate(rows, 1):
            row["rank"] = rank
        pages.write_table(out / f"{name}.csv", rows)
    names = list(found.worst[0][2])
    rows = {name: np.stack([pictures[name] for _, _, pictures in found.worst]) for name in names}
    pages.worst_page(
        rows, out / "worst.png", f"The most unusual slices of {title}", [label for _, label, _ in found.worst]
    )
    for row in [row for row in found.scans if row["findings"]]:
        print(f"{row['first_slice']}: {row['findings']}")
    first = found.scans[0]
    print(
        f"{len(found.scans)} scans, {len(found.slices)} slices; the most unusual: {first['subject']} ({first['unusual']:+.1f} "
        f"standard deviations from held-out scans); tables and pictures: {out}/"
    )
    if masks is not None:
        require(
            bool(found.voxels), f"--masks {masks}: no mask has the name of a scan or slice; expected the same names"
        )
        scores = {"voxels": agreement(found.voxels), "slices": agreement(found.marked_slices)}
        write_json(out / "masks.json", scores)
        print(table_of(scores))


if __name__ == "__main__":
    run_main(main)
