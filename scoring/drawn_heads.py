"""Whole heads that a run draws, scored beside those of a split: `evaluate.py --volumes`.

    scores = score_heads(case, codes, samples)      # {"heads": {...}} of `scores.json`; {} where the split has no whole heads

Keys of `scores.json` under heads:

- count: heads drawn. real: those of the split that they are compared with. slices: numbers of the slices compared. decoder: what
  painted the drawn heads.
- distances: name -> {score, floor}, `heads.head_scores`; score / floor is 1 on average for perfect heads.
- means: "drawn", "real" and "reconstructed" -> `heads.head_means`; reconstructed are real heads, as many as were drawn, painted
  from their own code maps by the same decoder: how those differ from real ones is the decoder's doing, not the prior's.
- drift: of bands of distance from the first slice drawn, a list of distances (in slice numbers), heads and singles (name ->
  {score, floor}, `realism.realism`, of the heads' slices and of as many samples of the same numbers, each drawn alone), worse
  (name -> by which share the heads' are further from real ones) and overall, its median; null where nothing is compared.
- copies: `memorisation.copied_heads`: listed (number of heads), by_chance (how many would be, on average, at most, if none were a
  copy), people (the training person that each drawn head is nearest to), ratios (of its distance to that person and to the second
  nearest one, 0..1), shares (of its slices that are nearest to that person, 0..1), held_out (ratios of the real heads), threshold
  (ratio below which a head is listed).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.runtime import Progress
from dataset import spread_over
from inference.drawing import Samples, stretches_of
from inference.geometry import Geometry
from inference.heads import HeadRequest, decode_head, draw_heads, stretches, walk
from models.codes import CodeMaps, each_level, first_level
from reporting.heads import continuity_bands, three_views
from reporting.volumes import CUTS
from scoring.case import COMPARED, Case
from scoring.drift import drift
from scoring.heads import HeadSet, head_means, head_scores, heads_of, measured, shared_numbers, steps
from scoring.memorisation import copied_heads
from scoring.realism import FEWEST_SUBJECTS, Realism, find_mirror
from scoring.sets import SliceSet, Untaken

FEWEST_REAL = 8  # real heads that are held in memory, however many slices they have
FEWEST_DRIFTING = 4  # drawn heads whose drift says anything
FEW = 8  # heads, below which the chance of who is in a set is not what floors are scaled for
SHOWN = 4  # drawn heads in the picture, and real ones
ALONG = {"neighbour_ssim": "SSIM with the next slice", "code_agreement": "share of codes that the next slice has too"}


def score_heads(case: Case, codes: CodeMaps, samples: Samples) -> dict[str, Any]:
    """Draw `case.effort.heads` whole heads and score them; the key "heads" of `scores.json`, as this module's docstring says.

    codes: of the split's slices. samples: slices that were drawn alone.

    Raises:
        UserError: for a run that cannot draw heads.
    """
    try:
        real = real_heads(case, codes)
    except Untaken as reason:
        case.leave_out(f"heads are not scored: {reason}")
        return {}
    maps = draw_heads(case.run, HeadRequest(case.effort.heads, seed=case.seed))
    maps = maps[:, np.isin(case.run.slice_numbers, real.numbers)]
    some = real[spread_over(len(real), len(maps))]
    sets = {
        "drawn": replace(some, images=painted(case, maps), groups=[f"head {i}" for i in range(len(maps))], codes=maps),
        "real": real,
        "reconstructed": replace(some, images=painted(case, some.codes, "painting real heads' codes"), codes=None),
    }
    mirror = find_mirror(real.images.mean((0, 1)))
    with Progress(sum(map(len, sets.values())), "measuring heads", "head") as progress:
        sets = {name: measured(heads, mirror, progress.update) for name, heads in sets.items()}
    drawn, real = sets["drawn"], sets["real"]
    picture_heads(case, drawn, some, sets)
    scores = {"count": len(drawn), "real": len(real), "slices": real.numbers.tolist(), "decoder": case.decoder}
    scores["means"] = {name: head_means(heads) for name, heads in sets.items()}
    subjects = len(set(real.groups))
    if subjects < FEWEST_SUBJECTS:
        needed = f"{subjects} subjects have whole heads, and it needs at least {FEWEST_SUBJECTS}"
        case.leave_out(f"how far heads are from real ones, and their drift, is not scored: {needed}")
    else:
        scores |= score_distances(case, drawn, real) | score_drift(case, drawn, real, samples)
    return {"heads": scores | head_copies(case, maps, real.codes)}


def real_heads(case: Case, codes: CodeMaps) -> HeadSet:
    """The whole heads of the split, within the frame; of at most `COMPARED` slices together, spread over the split.

    Raises:
        Untaken: where there are none.
    """
    wanted, split = case.run.slice_numbers, case.split
    numbers = shared_numbers(split, wanted)
    if len(numbers) < len(wanted):
        others = stretches_of(np.setdiff1d(wanted, numbers))
        case.leave_out(f"heads are compared without slices {others}: fewer than half of the scans have them")
    return heads_of(split, case.run.frame, codes, numbers, max(FEWEST_REAL, COMPARED // len(numbers)))


def painted(case: Case, heads: CodeMaps, title: str = "painting heads") -> Tensor:
    """Code maps `[N, S, h, w]` as the decoder paints them that paints samples, within the frame: `[N, S, H, W]` in 0..1."""
    run, images = case.painter, []
    with Progress(len(heads), title, "head") as progress:
        for index, codes in enumerate(heads):
            images.append(run.frame.crop(decode_head(run, codes, case.seed, index)))
            progress.update(1)
    return torch.stack(images)


# --------------------------------------------------------------------------- distances and drift


def score_distances(case: Case, drawn: HeadSet, real: HeadSet) -> dict[str, Any]:
    """How far drawn heads are from real ones, `heads.head_scores`, beside what real ones are apart."""
    spacing, (_, across_columns, across_rows), _ = space_of(case)
    distance = spacing[0] / np.mean(spacing[1:])
    if len(drawn) < FEW:
        case.leave_out(f"of fewer than {FEW} heads, as here, perfect ones have less than 1 time the floor on average")
    planes, halvings = {across_rows: 1, across_columns: 2}, case.effort.halvings
    with Progress(steps(drawn, real, halvings), "comparing heads", "step") as progress:
        how = dict(slice_distance=distance, progress=progress.update, notes=case.notes, planes=planes)
        return {"distances": as_json(head_scores(drawn, real, case.seed, halvings, **how))}


def space_of(case: Case) -> tuple[tuple[float, float, float], tuple[str, str, str], bool]:
    """Millimetres between slices, rows and columns; what slices, cuts across columns and cuts across rows are; whether columns
    begin with the front. Slices a pixel apart are assumed where nobody knows."""
    frame, numbers = case.run.frame, case.run.slice_numbers
    try:
        geometry = Geometry.of(case.run)
    except UserError as error:
        case.leave_out(f"cuts through heads are made as if slices lay a pixel apart: {error}")
        return (1.0, 1.0, 1.0), CUTS[case.run.config["flags"].get("axis", "axial")], True
    spacing = geometry.spacing((len(numbers), frame.image_height, frame.image_width))
    return spacing, CUTS[geometry.axis], geometry.front_first


def score_drift(case: Case, drawn: HeadSet, real: HeadSet, samples: Samples) -> dict[str, Any]:
    """Whether slices get worse the further from the first they are drawn, `drift.drift`: the first, the nearer half of the
    others, and the further half."""
    numbers = case.run.slice_numbers
    if len(drawn) < FEWEST_DRIFTING:
        case.leave_out(f"drift of heads is not scored: {len(drawn)} heads, and it needs at least {FEWEST_DRIFTING}")
        return {}
    if len(stretches(numbers)) > 1:
        case.leave_out("drift of heads is not scored: slice numbers have gaps, and each stretch has a first slice")
        return {}
    first = int(numbers[walk(numbers, np.zeros(len(numbers), bool))[0][0].slot])
    reach, halvings = int(np.abs(real.numbers - first).max()), max(1, case.effort.halvings // 2)
    bands = [range(1), range(1, reach // 2 + 1), range(reach // 2 + 1, reach + 1)]
    names = [f"sample {i}" for i in range(len(samples))]
    singles = SliceSet(case.run.frame.crop(samples.images), names, samples.numbers, drawn.symmetric)
    notes: list[str] = []
    with Progress(4 * halvings * len(bands), "drift", "comparison") as progress:
        how = dict(halvings=halvings, progress=progress.update, notes=notes)
        found = drift(drawn, real, first, bands, singles, case.seed, **how)
    case.notes += [f"drift of heads: {note}" for note in notes]
    return {
        "drift": [
            {
                "distances": list(step.distances),
                "heads": as_json(step.heads),
                "singles": as_json(step.singles),
                "worse": step.worse,
                "overall": step.overall,
            }
            for step in found
        ]
    }


def as_json(scores: dict[str, Realism]) -> dict[str, dict[str, float]]:
    return {name: {"score": value.score, "floor": value.floor} for name, value in scores.items()}


# --------------------------------------------------------------------------- copies


def head_copies(case: Case, drawn: CodeMaps, held_out: CodeMaps) -> dict[str, Any]:
    """Whether one training person is behind a drawn head, `memorisation.copied_heads`. drawn, held_out: `[N, S, h, w]`."""
    known, split = case.training_maps, case.training_split
    if not known or case.name == "train" or split is None:
        case.leave_out(
            "copies of heads are not looked for: no codes of the training split, no training slices beside them that say whose "
            "they are, or no held-out split to compare with"
        )
        return {}

    def train() -> Iterator[tuple[Tensor, list[str]]]:
        for start, images, _ in case.training_pictures():
            start %= len(split)
            yield images, split.subjects[start : start + len(images)]

    shape = first_level(drawn).shape[1:2]
    heads = [
        case.faithful(each_level(lambda maps: maps.flatten(0, 1), codes)).unflatten(0, (-1, *shape))
        for codes in (drawn, held_out)
    ]
    try:
        with Progress(sum(map(len, known)), "copies of heads", "slice") as progress:
            found = copied_heads(*heads, train(), progress.update)
    except Untaken as reason:
        case.leave_out(f"copies of heads are not looked for: {reason}")
        return {}
    copies = {"listed": int(found.listed.sum()), "by_chance": found.by_chance, "people": found.people}
    copies |= {name: getattr(found, name).tolist() for name in ("ratios", "shares", "held_out")}
    return {"copies": copies | {"threshold": found.threshold}}


# --------------------------------------------------------------------------- pictures


def picture_heads(case: Case, drawn: HeadSet, real: HeadSet, sets: dict[str, HeadSet]) -> None:
    """Cuts through some drawn and some real heads; how slices follow one another. real: the heads to show. sets: measured heads
    by name."""
    spacing, planes, front_first = space_of(case)
    shown = {name: list(heads.images[:SHOWN].float().numpy()) for name, heads in (("drawn", drawn), ("real", real))}
    title = f"Heads that were drawn (trained on {case.trained_on}), and real ones of {case.data.title}"
    three_views(shown, case.pictures / "drawn_heads.png", title, spacing, planes, front_first)
    continuity_bands(
        real.numbers,
        {name: heads.measured for name, heads in sets.items()},
        ALONG,
        case.pictures / "heads_along_slices.png",
        f"How alike slices of a head are to the next: {len(drawn)} drawn heads (trained on {case.trained_on}), "
        f"{len(sets['real'])} real ones of {case.data.title}",
    )
