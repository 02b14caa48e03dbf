"""What a careful reviewer asks of a run, answered for one split, with pictures.

    scores = evaluate_split(Case(run, data, "validate", codes, FULL, seed=0, pictures=Path("runs/mine/images")))

Keys of the scores (a split's entry in `scores.json`); rates are in bits, intensities in 0..1 unless said:

- slices, subjects; ssim, psnr (dB), mae, each also with _frame and _foreground and with the ends of its 95 % interval as _low
  and _high (`metrics.mean_interval`; none over a single subject); sharpness: `slices.reconstruction_summary`.
- codes_used, perplexity, entropy, codes_per_slice, bits_per_slice_fixed: `slices.codes_summary`.
- decoders: of both decoders of a run that has a sharp one, and of the first level alone of a run with two,
  `decoders.compare_decoders`: scores of the same slices' reconstructions.
- detail, rate_distortion: of a run with two levels of codes, `levels`. Scores of codes and of the prior that stand here are of
  the first; reconstructions and samples are of both. first_level: the scores of samples below as the first level alone paints
  them (not with little effort).
- by_slice: number, ssim_frame, psnr_frame and, with a prior, bits_per_code: lists over slice numbers.
- by_group: condition -> group -> subjects, slices and means of the same scores: of each class, of thirds of a number, and of
  those whose value is unknown.
- bits_per_code, bits_per_slice: of the prior, whose logits are divided by temperature. bits_per_code_train: on training
  maps, each with the code frequencies of the other subjects. generalisation_gap: the difference.
- bits_per_code_told, bits_per_code_told_train: the same of a prior with context, told the code map of the slice below, over the
  slices that have one; logits divided by told_temperature.
- bits_per_code_uniform: log2 K. bits_per_code_marginal: code frequencies by position. bits_per_code_zlib, bits_per_code_lzma: the
  code maps as bytes through a general compressor.
- samples, seed, decoder: what was drawn for the following, and what painted it. samples_sharpness: their power between a quarter
  and half of the sampling frequency as a share of real slices'. realism: name -> {score, floor}, `realism.realism`; the floor is
  how far other real subjects would be, so that score / floor is 1 on average for perfect samples. texture: "samples" and "real"
  -> texture_kurtosis, edge_to_smooth, tissue_noise (grey levels of 255), `texture.texture_summary`; realism has their distance.
- copies, by what the first level of codes paints: listed (number of samples) and share (0..1) of the samples that are nearer
  to a training slice than 99 % of held-out slices of their position, in pixels and in codes; thresholds: those distances, as
  lists number (of the slice; null for all where the data says nothing of it), pixels, codes; closest: the nearest pairs as
  sample, train (the file's name, null where the data does not hold it), mirrored, distance_pixels, distance_codes. Of two
  levels also detail, distance_detail, and detail_listed: the number of samples that are nearer in the second level's codes.
- real_or_drawn: "real" and "drawn" -> the numbers of these slices in the picture in which they are shuffled.
- heads: of whole heads, where some were asked for; its keys are those of `scoring.drawn_heads`.
- notes: what was left out, and why.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.runtime import Progress
from dataset import spread_over
from inference.coding import decode
from inference.drawing import Request, Samples, draw_samples, spread_numbers
from models.codes import CodeMaps, Codes, each_level, first_level
from models.detail import Codec, first_of
from models.marginal import PositionalMarginal
from reporting import figures, full_size, pictures, report
from scoring.bits import code_bits, lossless_bits, marginal_bits, mean_bits, told_bits
from scoring.case import COMPARED, Case
from scoring.decoders import compare_decoders, decode_split
from scoring.drawn_heads import score_heads
from scoring.levels import Coded, rate_distortion, second_level
from scoring.memorisation import Audit, Slices, audit_copies
from scoring.metrics import CodeUsage, fine_power
from scoring.realism import FEWEST_SUBJECTS, realism
from scoring.sets import SliceSet
from scoring.slices import codes_summary, reconstruction_summary
from scoring.texture import texture_summary, texture_values
from sources.conditions import Condition

WORST, CLOSEST, NEIGHBOURS = 8, 8, 12
TO_TELL = 10  # real slices, and as many drawn ones, in the picture in which a person is to tell them apart


def evaluate_split(case: Case) -> dict[str, Any]:
    """All scores of the split, with their pictures; the keys are those of this module's docstring."""
    codes = case.split_codes
    decoded = decode_split(case.run.vqvae, case.split, codes, case.run.frame, case.name)
    values = dict(decoded.values)
    scores = reconstruction_summary(values, case.split.subjects) | codes_summary(first_level(codes), case.num_codes)
    if case.sharp is not None or isinstance(codes, Codes):
        about = (case.split, case.name, case.run.frame, case.seed)
        scores["decoders"] = compare_decoders(decoders_of(case, codes), *about, {"faithful": decoded}, case.leave_out)
    picture_reconstructions(case, codes, values["ssim_frame"])
    if case.run.prior is not None:
        scores |= score_prior(case, first_level(codes), values)
    if isinstance(codes, Codes):
        scores["detail"] = score_detail(case, codes)
        scores["rate_distortion"] = rate_distortion(scores)
    if case.run.prior is not None:
        samples = draw(case)
        scores |= {"samples": len(samples), "seed": case.seed, "decoder": case.decoder}
        scores |= score_realism(case, samples) | score_copies(case, samples, codes)
        if case.split.numbers is not None:
            scores["real_or_drawn"] = picture_full_size(case, samples, codes)
        if isinstance(codes, Codes) and case.effort.each_level:
            images = decode(case.run.vqvae, first_level(samples.codes), case.run.frame)[:, 0]
            floors = {name: value["floor"] for name, value in scores.get("realism", {}).items()}
            of_first = replace(samples, images=images)
            scores["first_level"] = score_realism(case, of_first, "realism_first_level.png", floors or None)
        scores |= score_heads(case, codes, samples) if case.effort.heads else {}
    if case.split.numbers is not None:
        scores["by_slice"] = by_slice(case, values)
    if case.split.conditions:
        scores["by_group"] = by_group(case, values)
    return scores | {"notes": case.notes}


# --------------------------------------------------------------------------- reconstruction and codes


def by_slice(case: Case, values: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Means of some scores over the slices of each number."""
    numbers = np.unique(case.split.numbers)
    names = [name for name in ("ssim_frame", "psnr_frame", "bits_per_code") if name in values]
    means = {name: [float(values[name][case.split.numbers == number].mean()) for number in numbers] for name in names}
    figures.by_slice(
        numbers,
        {
            "ssim_frame": "SSIM, content frame",
            "psnr_frame": "PSNR, content frame (dB)",
            "bits_per_code": "bits per code",
        },
        means,
        case.pictures / "scores_by_slice.png",
        f"Scores by slice number, {case.name} split of {case.data.title}",
    )
    return {"number": numbers.tolist()} | means


def by_group(case: Case, values: dict[str, np.ndarray]) -> dict[str, dict[str, dict[str, float]]]:
    """Means of some scores over the slices of each group of subjects that a condition makes."""
    names = [name for name in ("ssim_frame", "psnr_frame", "bits_per_code") if name in values]
    subjects = np.asarray(case.split.subjects)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for column, each in case.split.conditions.items():
        for group, inside in groups(case.data.conditions[column], each):
            counts = {"subjects": len(set(subjects[inside])), "slices": int(inside.sum())}
            table.setdefault(column, {})[group] = counts | {name: float(values[name][inside].mean()) for name in names}
    return table


def groups(condition: Condition, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and members of each group that is not empty: classes, thirds of the numbers, and the unknown."""
    known = ~np.isnan(values)
    if condition.classes:
        parts = [(name, values == index) for index, name in enumerate(condition.classes)]
    else:
        ends = np.quantile(values[known], (0, 1 / 3, 2 / 3, 1)) if known.any() else np.zeros(4)
        marks = condition.low + ends * (condition.high - condition.low)
        third = np.searchsorted(ends[1:3], values, side="right")
        parts = [(f"{marks[i]:.4g} to {marks[i + 1]:.4g}", known & (third == i)) for i in range(3)]
    yield from ((name, inside) for name, inside in [*parts, ("unknown", ~known)] if inside.any())


def decoders_of(case: Case, codes: CodeMaps) -> dict[str, tuple[Codec, CodeMaps]]:
    """What paints reconstructions, by name, and from which codes."""
    vqvae = case.run.vqvae
    ways = {"first": (vqvae, first_level(codes))} if isinstance(codes, Codes) else {}
    return ways | {"faithful": (vqvae, codes)} | ({} if case.sharp is None else {"sharp": (case.sharp, codes)})


def picture_reconstructions(case: Case, codes: CodeMaps, ssim_frame: np.ndarray) -> None:
    """Pictures of the worst reconstructions and of the codebook."""
    about = f"{case.name} split of {case.data.title}"
    worst = np.argsort(ssim_frame, kind="stable")[:WORST]
    decoded = decode(case.run.vqvae, codes[torch.from_numpy(worst)], case.run.frame)
    path = case.pictures / "worst_reconstructions.png"
    pictures.worst_reconstructions(case.split, decoded, worst, ssim_frame, path, about)
    counts = CodeUsage.of(first_level(codes), case.num_codes).counts
    about = f"{case.name} split ({case.data.title}"
    pictures.codebook(first_of(case.run.vqvae), counts, case.pictures / "codebook.png", about)


# --------------------------------------------------------------------------- prior


def score_prior(case: Case, codes: Tensor, values: dict[str, np.ndarray]) -> dict[str, float]:
    """Bits of the code maps under the prior and under simpler models; adds each slice's bits to `values`."""
    own_tables = partial(without_their_subjects, case) if case.name == "train" else lambda _: None
    tables = own_tables(np.arange(len(codes)))
    values["bits_per_code"], by_position = code_bits(case.run.prior, codes, case.split.known, case.name, tables)
    figures.bits_by_position(
        by_position,
        case.pictures / "bits_by_position.png",
        f"Bits per code by position, {case.name} split of {case.data.title}",
    )
    mean = float(values["bits_per_code"].mean())
    scores = {
        "bits_per_code": mean,
        "bits_per_slice": mean * codes[0].numel(),
        "temperature": case.run.prior.temperature,
        "bits_per_code_uniform": float(np.log2(case.num_codes)),
        "bits_per_code_zlib": lossless_bits(codes, case.num_codes, lambda data: zlib.compress(data, 9)),
        "bits_per_code_lzma": lossless_bits(codes, case.num_codes, lambda data: lzma.compress(data, preset=9)),
    }
    told = told_bits(case.run.prior, codes, case.split, tables=own_tables)
    if told is not None:
        scores |= {"bits_per_code_told": told, "told_temperature": case.run.prior.told_temperature}
    if "train" not in case.codes:
        case.notes.append("the run has no codes of its training split: no positional marginal, no generalisation gap")
        return scores
    train, train_codes = case.training_split, first_level(case.codes["train"])
    scores["bits_per_code_marginal"] = marginal_bits(train_codes, codes, case.num_codes)
    if case.name != "train" and train is not None:
        some = spread_over(len(train), case.effort.train_maps)
        maps = train_codes[torch.from_numpy(some)]
        on_train = mean_bits(case.run.prior, maps, train.known_of(some), without_their_subjects(case, some))
        scores["bits_per_code_train"] = on_train
        scores["generalisation_gap"] = mean - scores["bits_per_code_train"]
        if told is not None:
            tables = partial(without_their_subjects, case)
            scores["bits_per_code_told_train"] = told_bits(case.run.prior, train_codes, train, some, tables)
    return scores


def without_their_subjects(case: Case, some: np.ndarray) -> Callable[[Tensor], Tensor] | None:
    """The tables of code frequencies for these training maps, each without the map's own subject: how a prior does on maps whose
    subject it has counted says nothing of how it does on others."""
    if case.run.prior.log_marginal is None or case.training_split is None:
        return None
    maps = [first_level(each) for each in case.training_maps]
    marginal = PositionalMarginal(maps, case.num_codes, case.training_split.subjects)
    chosen = torch.from_numpy(some)
    return lambda indices: marginal.log_without(chosen[indices])


def score_detail(case: Case, codes: Codes) -> dict[str, float]:
    """`levels.second_level` of the split."""
    train, training = case.codes.get("train"), None
    if train is not None and case.training_split is not None and case.name != "train":
        training = Coded(case.training_split, train)
    most = case.effort.train_maps // 2  # they hold four times as many codes
    return second_level(case.run, Coded(case.split, codes), train, training, most)


# --------------------------------------------------------------------------- samples


def draw(case: Case) -> Samples:
    """Slices of all positions in turn."""
    there, count = case.run.slice_numbers, case.effort.samples
    numbers = None if there is None else spread_numbers(count, there)
    return draw_samples(case.painter, Request(count, numbers, seed=case.seed), "samples")


def score_realism(
    case: Case, samples: Samples, file: str = "realism.png", floors: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """How real the samples are, `realism.realism`, beside what real slices are apart; leaves a picture of this name.

    floors: of samples of the same numbers, where they are known already.
    """
    frame, subjects = case.run.frame, len(set(case.split.subjects))
    if subjects < FEWEST_SUBJECTS:
        case.leave_out(f"realism is not scored: {subjects} subjects, and it needs at least {FEWEST_SUBJECTS}")
        return {}
    numbers = None if samples.numbers is None or case.split.numbers is None else samples.numbers
    split = case.split.evenly(COMPARED)
    real = split.batch(np.arange(len(split)), frame)[:, 0]
    drawn = frame.crop(samples.images)
    names, real_numbers = [f"sample {i}" for i in range(len(samples))], None if numbers is None else split.numbers
    sets = {
        "samples": SliceSet(drawn, names, numbers, split.symmetric, texture_values(drawn)),
        "real": SliceSet(real, split.subjects, real_numbers, split.symmetric, texture_values(real)),
    }
    halvings = case.effort.halvings
    if floors is not None:  # which are of all of them, and steadier than one score
        halvings = max(1, halvings // 2)
    with Progress(2 * halvings, "realism", "comparison") as progress:
        found = realism(*sets.values(), case.seed, halvings, progress.update, floors, case.notes)
    if found:
        figures.realism(
            {name: (value.score, value.floor) for name, value in found.items()},
            case.pictures / file,
            f"Distance of {len(samples)} samples (trained on {case.trained_on}) from real slices",
        )
    values = {name: {"score": value.score, "floor": value.floor} for name, value in found.items()}
    return ({"realism": values} if found else {}) | {
        "samples_sharpness": mean_fine_power(drawn) / max(mean_fine_power(real), 1e-12),
        "texture": {name: texture_summary(one.texture) for name, one in sets.items()},
    }


def picture_full_size(case: Case, samples: Samples, codes: CodeMaps) -> dict[str, list[int]]:
    """Pictures at full size: real and drawn slices, shuffled, and one slice beside its reconstructions and one drawn.

    Returns the numbers of the real and of the drawn slices in the first picture.
    """
    frame, rng = case.run.frame, np.random.default_rng(case.seed)
    wanted = np.intersect1d(samples.numbers, case.split.numbers)
    wanted = wanted[spread_over(len(wanted), TO_TELL)]
    chosen = [(_any(rng, case.split.numbers == one), _any(rng, samples.numbers == one)) for one in wanted]
    real, drawn = (list(each) for each in zip(*chosen))
    slices = frame.crop(case.split.batch(np.array(real)))[:, 0].numpy()
    sampled = frame.crop(samples.images[drawn]).numpy()
    numbers = full_size.shuffled(slices, sampled, case.pictures / "real_or_drawn.png", case.seed)
    middle = len(wanted) // 2
    rows = {f"real, slice {wanted[middle]}": slices[middle]}
    for name, (vqvae, maps) in decoders_of(case, codes).items():
        decoded = decode(vqvae, maps[torch.tensor([real[middle]])], frame)
        rows[report.DECODERS[name]] = frame.crop(decoded)[0, 0].numpy()
    full_size.beside(rows | {"drawn": sampled[middle]}, case.pictures / "full_size.png")
    return numbers


def _any(rng: np.random.Generator, which: np.ndarray) -> int:
    """One of the places that are true, by chance."""
    return int(rng.choice(np.flatnonzero(which)))


def mean_fine_power(images: Tensor) -> float:
    """Mean `metrics.fine_power` of `[N, H, W]` slices."""
    return float(torch.cat([fine_power(part[:, None]) for part in images.split(64)]).double().mean())


def score_copies(case: Case, samples: Samples, codes: CodeMaps) -> dict[str, Any]:
    """How near samples come to training slices, beside how near held-out slices come."""
    known = case.training_maps
    if not known or case.name == "train":
        case.leave_out(
            "copies are not looked for: no codes of the training split, or no held-out split to compare with"
        )
        return {}
    compared = spread_over(len(codes), COMPARED)
    numbers = None if case.split.numbers is None else case.split.numbers[compared]
    drawn = Slices(case.faithful(samples.codes), samples.codes, samples.numbers)
    held_out = Slices(case.faithful(codes[compared]), codes[compared], numbers)
    train = (Slices(images, maps, start=start) for start, images, maps in case.training_pictures())
    with Progress(sum(map(len, known)), "copies", "slice") as progress:
        audit = audit_copies(drawn, held_out, train, progress.update)
    closest = audit.closest(CLOSEST)
    pairs = [_pair(case, audit, index, len(known[0])) for index in closest.tolist()]
    title = "The samples nearest to training slices"
    picture_neighbours(case, samples, audit, closest, "closest_training_slices.png", title)
    some = torch.from_numpy(np.sort(np.random.default_rng(case.seed).permutation(len(drawn))[:NEIGHBOURS]))
    title = f"{len(some)} samples picked at random, and the training slices nearest to them"
    picture_neighbours(case, samples, audit, some, "nearest_training_slices.png", title)
    copies = {
        "listed": int(audit.listed.sum()),
        "share": float(audit.listed.double().mean()),
        "thresholds": _thresholds(audit, samples.numbers if held_out.numbers is not None else None),
        "closest": pairs,
    } | ({"detail_listed": int(audit.nearer("detail").sum())} if "detail" in audit.samples else {})
    return {"copies": copies}


def picture_neighbours(case: Case, samples: Samples, audit: Audit, chosen: Tensor, file: str, title: str) -> None:
    """Samples above the training slices that are nearest to them."""
    known, nearest = case.training_maps, audit.samples["pixels"].index[chosen].tolist()
    maps = [known[index // len(known[0])][index % len(known[0])] for index in nearest]
    originals = each_level(lambda *each: torch.stack(each), *maps)
    distances = list(zip(*(audit.samples[space].distance[chosen].tolist() for space in ("pixels", "codes"))))
    title = f"{title} (trained on {case.trained_on})"
    pictures.neighbours(case.run, samples.codes[chosen], originals, distances, case.pictures / file, title)


def _thresholds(audit: Audit, numbers: np.ndarray | None) -> dict[str, list[float | None]]:
    """Distances below which a sample counts as near, by slice number; None for the number where they are of all slices."""
    known, first = (np.array([None]), [0]) if numbers is None else np.unique(numbers, return_index=True)
    return {"number": known.tolist()} | {space: each[first].tolist() for space, each in audit.threshold.items()}


def _pair(case: Case, audit: Audit, index: int, train_slices: int) -> dict[str, Any]:
    place = int(audit.samples["pixels"].index[index])
    train = case.training_split
    return {
        "sample": index,
        "train": None if train is None else train.names[place % train_slices],
        "mirrored": place >= train_slices,
    } | {f"distance_{space}": float(nearest.distance[index]) for space, nearest in audit.samples.items()}
