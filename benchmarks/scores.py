"""Do the scores score? Known-bad slices through every realism score, and known copies through the search for them.

    python benchmarks/scores.py --run runs/f8 --data data/keras_png_slices_data
    python benchmarks/scores.py --run runs/f8 --data data/keras_png_slices_data --part power,report
    python benchmarks/scores.py --run runs/f8 --data data/keras_png_slices_data --part heads,report

Slices of a third of the held-out subjects stand in for perfect samples, held against the other two thirds, each third in turn;
then they are spoilt in several ways. Copies are training slices, as the codec sees them, put among held-out ones. The
power of the classifier is the least known difference that it finds: held-out slices with a little noise, blur or gamma are told
from those of other subjects, as samples are, and from themselves, as reconstructions are. Heads are stacks of the same slices,
in thirds likewise, and spoilt in ways that leave nearly every slice as it is; copied heads are training heads, some with codes of
others, beside held-out ones. Every part writes its figures to
results.json in --out as soon as it has them.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measuring import Results  # noqa: E402
from scipy import ndimage  # noqa: E402
from torch import Tensor  # noqa: E402

from common.cli import flag, parse_flags, require, run_main  # noqa: E402
from common.runtime import Progress, versions  # noqa: E402
from dataset import spread_over  # noqa: E402
from inference.coding import decode, encode  # noqa: E402
from models.codes import first_level  # noqa: E402
from scoring.classifier import Auc, two_sample_auc  # noqa: E402
from scoring.heads import HeadSet, head_means, head_scores, heads_of, measured, steps  # noqa: E402
from scoring.memorisation import Slices, audit_copies, copied_heads  # noqa: E402
from scoring.metrics import FOREGROUND  # noqa: E402
from scoring.realism import find_mirror, realism  # noqa: E402
from scoring.sets import SliceSet, halves  # noqa: E402
from sources.slice_set import load_slice_set  # noqa: E402
from utils import load_run, read_codes  # noqa: E402

PARTS = ("separation", "copies", "power", "heads", "copied_heads", "report")
PATCH = 16  # pixels a side of the patches that are shuffled
THIRDS = 3  # parts of the held-out subjects that stand in for samples in turn
COPIED = 0.05  # share of the samples that are copies
MIXED = (0.25, 0.5)  # shares of the codes of copied heads that are another person's
COPIED_HEADS = 10  # training heads, of each kind of copy
FOUND = 0.75  # AUC from which a difference counts as found


@dataclass(frozen=True)
class Settings:
    """The flags of `benchmarks/scores.py`."""

    run: str = flag("runs/f8", "Run folder whose codec the copies have passed.")
    data: str | None = flag(None, "Folder that holds keras_png_slices_train/ and keras_png_slices_validate/.")
    part: str = flag("separation,copies,report", f"Parts to run, separated by commas: {', '.join(PARTS)}.")
    cases: str | None = flag(None, "Kinds of slices or heads to score, separated by semicolons; all if not given.")
    samples: int = flag(500, "Slices that copies are hidden among.")
    halvings: int = flag(2, "Halvings of the other held-out subjects that the scores of each third are means over.")
    slice_distance: float = flag(1.0, "From slice to slice in pixels, for the cuts through heads.")
    seed: int = flag(0, "Seed of everything random.")
    out: str = flag("runs/bench-scores", "Folder for the results.")
    cache: str = flag(".cache", "Folder for decoded slices.")

    def chosen(self, cases: dict[str, Any]) -> list[str]:
        """Which of these kinds are to be scored."""
        return [name for name in cases if self.cases is None or name in self.cases.split(";")]

    def check(self) -> None:
        unknown = set(self.part.split(",")) - set(PARTS)
        require(not unknown, f"--part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
        known = SPOILT | SPOILT_HEADS
        strangers = set(self.cases.split(";")) - set(known) if self.cases else set()
        require(not strangers, f"--cases {'; '.join(strangers)}: expected some of {'; '.join(known)}")
        require(self.data is not None or self.part == "report", "these parts need --data")


def main(argv: Sequence[str] | None = None) -> None:
    settings = Settings(**parse_flags(Settings, __doc__, argv))
    settings.check()
    results = Results(Path(settings.out) / "results.json")
    results.origin = versions()
    for part in settings.part.split(","):
        PART_FUNCTIONS[part](settings, results)


# --------------------------------------------------------------------------- known-bad slices


def held_out_slices(settings: Settings) -> SliceSet:
    """The validation slices, within the run's content frame."""
    data, frame = load_slice_set(settings.data, settings.cache, None, Progress), load_run(settings.run).frame
    split = data.splits["validate"]
    images = split.batch(np.arange(len(split)), frame)[:, 0]
    return SliceSet(images, split.subjects, split.numbers, split.symmetric)


def separation(settings: Settings, results: Results) -> None:
    """Every realism score of real and of spoilt slices: means over the thirds of the held-out subjects."""
    held_out = held_out_slices(settings)
    subjects = sorted(set(held_out.groups))
    thirds = [np.isin(held_out.groups, subjects[first::THIRDS]) for first in range(THIRDS)]
    floors: dict[int, dict[str, float]] = {}
    for name in settings.chosen(SPOILT):
        torch.manual_seed(settings.seed)
        found: dict[str, list[list[float]]] = {}
        with Progress(2 * settings.halvings * THIRDS, name, "comparison") as progress:
            for third, inside in enumerate(thirds):
                slices, real = held_out[np.flatnonzero(inside)], held_out[np.flatnonzero(~inside)]
                spoilt = replace(slices, images=SPOILT[name](slices.images, slices.numbers))
                scores = realism(spoilt, real, settings.seed, settings.halvings, progress.update, floors.get(third))
                floors[third] = {score: value.floor for score, value in scores.items()}
                for score, value in scores.items():
                    found.setdefault(score, []).append([value.score, value.floor])
        results.add("separation", name, {score: np.mean(values, axis=0).tolist() for score, values in found.items()})


def _blurred(images: Tensor, numbers: np.ndarray) -> Tensor:
    return F.avg_pool2d(images[:, None], 3, 1, 1)[:, 0]


def _grainy(images: Tensor, numbers: np.ndarray) -> Tensor:
    """Grain in place of detail: blurred, with noise of the spectrum and the power of what the blur took, anywhere in the head."""
    blurred = _blurred(images, numbers)
    detail, inside = images - blurred, images > FOREGROUND
    spectrum = torch.fft.fft2(detail).abs().square().mean(0).sqrt()
    grain = torch.fft.ifft2(torch.fft.fft2(torch.randn_like(images)) * spectrum).real * inside
    grain *= ((detail * inside).square().mean() / grain.square().mean()).sqrt()
    return (blurred + grain).clamp(0, 1)


def _noisy(images: Tensor, numbers: np.ndarray) -> Tensor:
    return (images + 0.1 * torch.randn_like(images)).clamp(0, 1)


def _one_a_position(images: Tensor, numbers: np.ndarray) -> Tensor:
    first = {int(number): index for index, number in reversed(list(enumerate(numbers)))}
    return images[[first[int(number)] for number in numbers]]


def _shuffled(images: Tensor, numbers: np.ndarray) -> Tensor:
    patches = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    mixed = patches.flatten(1, 2)[:, torch.randperm(patches.shape[1] * patches.shape[2])]
    return mixed.unflatten(1, patches.shape[1:3]).permute(0, 1, 3, 2, 4).reshape(images.shape)


def _lopsided(images: Tensor, numbers: np.ndarray) -> Tensor:
    return (images * torch.linspace(0.7, 1.3, images.shape[1])[:, None]).clamp(0, 1)


def _darker(images: Tensor, numbers: np.ndarray) -> Tensor:
    return 0.75 * images


def _smaller(images: Tensor, numbers: np.ndarray) -> Tensor:
    height, width = images.shape[1:]
    size = (round(0.85 * height), round(0.85 * width))
    small = F.interpolate(images[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return F.pad(small, (left, width - size[1] - left, top, height - size[0] - top))


SPOILT: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "held-out slices": lambda images, numbers: images,
    "blurred, 3x3": _blurred,
    "grain in place of detail": _grainy,
    "noise of 0.1": _noisy,
    "one slice a position, repeated": _one_a_position,
    "shuffled patches": _shuffled,
    "one side brighter": _lopsided,
    "a quarter darker": _darker,
    "heads 15 % smaller": _smaller,
}


# --------------------------------------------------------------------------- known-bad heads


def heads(settings: Settings, results: Results) -> None:
    """Every score of real and of spoilt heads, which the run's codec has encoded: means over the thirds of the held-out subjects;
    and their plain means."""
    data, run = load_slice_set(settings.data, settings.cache, None, Progress), load_run(settings.run, level="first")
    held_out = heads_of(data.splits["validate"], run.frame)
    subjects = sorted(set(held_out.groups))
    thirds = [np.isin(held_out.groups, subjects[first::THIRDS]) for first in range(THIRDS)]
    mirror = find_mirror(held_out.images.mean((0, 1)))

    def coded_and_measured(images: Tensor, title: str) -> HeadSet:
        with Progress(2 * len(images), title, "step") as progress:
            codes = []
            for head in images:
                codes.append(encode(run.vqvae, run.frame.pad(head)[:, None], run.frame))
                progress.update(1)
            return measured(replace(held_out, images=images, codes=torch.stack(codes)), mirror, progress.update)

    real = coded_and_measured(held_out.images, "real heads")
    floors: dict[int, dict[str, float]] = {}
    for name in settings.chosen(SPOILT_HEADS):
        rng, images = np.random.default_rng(settings.seed), real.images.clone()
        for inside in thirds:  # nobody of the other thirds is mixed in
            images[torch.from_numpy(inside)] = SPOILT_HEADS[name](real.images[torch.from_numpy(inside)], rng)
        spoilt = coded_and_measured(images, name)
        found: dict[str, list[list[float]]] = {}
        with Progress(THIRDS * steps(spoilt, real, settings.halvings), f"{name}, scores", "step") as progress:
            for third, inside in enumerate(thirds):
                pair = spoilt[np.flatnonzero(inside)], real[np.flatnonzero(~inside)]
                how = settings.seed, settings.halvings, settings.slice_distance, progress.update, floors.get(third)
                scores = head_scores(*pair, *how)
                floors[third] = {score: value.floor for score, value in scores.items()}
                for score, value in scores.items():
                    found.setdefault(score, []).append([value.score, value.floor])
        results.add("heads", name, {score: np.mean(values, axis=0).tolist() for score, values in found.items()})
        results.add("head_means", name, head_means(spoilt))


def _of_many_people(images: Tensor, rng: np.random.Generator) -> Tensor:
    people = np.stack([rng.permutation(len(images)) for _ in range(images.shape[1])], 1)
    return images[torch.from_numpy(people), torch.arange(images.shape[1])]


def _one_slice(images: Tensor, rng: np.random.Generator) -> Tensor:
    return images[:, images.shape[1] // 2, None].expand_as(images)


def _interleaved(images: Tensor, rng: np.random.Generator) -> Tensor:
    odd = torch.arange(images.shape[1]) % 2 == 1
    return torch.where(odd[:, None, None], images.roll(1, 0), images)


def _two_halves(images: Tensor, rng: np.random.Generator) -> Tensor:
    upper = torch.arange(images.shape[1]) >= images.shape[1] // 2
    return torch.where(upper[:, None, None], images.roll(1, 0), images)


def _jittered(images: Tensor, rng: np.random.Generator) -> Tensor:
    moves = rng.choice((-2, -1, 1, 2), (*images.shape[:2], 2))
    moved = [ndimage.shift(image, by, order=0) for image, by in zip(images.flatten(0, 1).numpy(), moves.reshape(-1, 2))]
    return torch.from_numpy(np.stack(moved)).view_as(images)


def _blurred_along(images: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(ndimage.uniform_filter1d(images.numpy(), 3, axis=1, mode="nearest"))


SPOILT_HEADS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {  # [N, S, H, W] -> as many
    "real heads": lambda images, rng: images,
    "each slice another person's": _of_many_people,
    "one slice repeated": _one_slice,
    "two people's slices in turn": _interleaved,
    "lower half of one, upper of another": _two_halves,
    "each slice moved by 1 or 2 pixels": _jittered,
    "mean of 3 slices": _blurred_along,
}


# --------------------------------------------------------------------------- known copies


def copies(settings: Settings, results: Results) -> None:
    """Which of the samples the audit lists when some are training slices: among slices of one half of the held-out subjects,
    with the other half as what cannot be copies."""
    data, run = load_slice_set(settings.data, settings.cache, None, Progress), load_run(settings.run, level="first")
    codes = {name: first_level(maps).long() for name, maps in read_codes(Path(settings.run)).items()}
    subjects = np.asarray(data.splits["validate"].subjects)
    first = torch.from_numpy(np.isin(subjects, sorted(set(subjects))[::2]))
    rng = np.random.default_rng(settings.seed)
    others = codes["validate"][first]
    count = min(settings.samples, len(others))
    copied = max(1, round(COPIED * count))
    chosen = torch.from_numpy(rng.choice(len(codes["train"]), copied, replace=False))
    some = torch.from_numpy(spread_over(len(others), count - copied))
    sets = {
        "samples": torch.cat([codes["train"][chosen], others[some]]),
        "held out": codes["validate"][~first],
        "train": torch.cat([codes["train"], codes["train_mirrored"]]),
    }
    known = {name: data.splits[name].numbers for name in ("train", "validate")}
    numbers = {
        "samples": np.concatenate([known["train"][chosen.numpy()], known["validate"][first.numpy()][some.numpy()]]),
        "held out": known["validate"][~first.numpy()],
    }
    slices = {
        name: Slices(
            torch.cat([run.frame.crop(decode(run.vqvae, p, run.frame)[:, 0]).half() for p in m.split(256)]),
            m,
            numbers.get(name),
        )
        for name, m in sets.items()
    }
    with Progress(len(slices["train"]), "copies", "slice") as progress:
        audit = audit_copies(slices["samples"], slices["held out"], [slices["train"]], progress.update)
    listed = audit.listed
    found = {
        "copies": copied,
        "copies_listed": int(listed[:copied].sum()),
        "others": len(some),
        "others_listed": int(listed[copied:].sum()),
    }
    results.set("copies", found)
    print(json.dumps(found), flush=True)


def head_copies(settings: Settings, results: Results) -> None:
    """Which heads the search for copies lists: training heads as they are, mirrored, and with a share of their codes taken from
    other training heads; and those of one half of the held-out subjects, with the other half as what cannot be copies."""
    data, run = load_slice_set(settings.data, settings.cache, None, Progress), load_run(settings.run)
    codes, splits, rng = read_codes(Path(settings.run)), data.splits, np.random.default_rng(settings.seed)
    held_out = heads_of(splits["validate"], run.frame, codes["validate"])
    first = np.isin(held_out.groups, sorted(set(held_out.groups))[::2])
    own, mirrored = (
        heads_of(splits["train"], run.frame, codes[name], most=COPIED_HEADS).codes
        for name in ("train", "train_mirrored")
    )
    kinds = {"held-out heads": held_out.codes[torch.from_numpy(first)], "training heads": own, "mirrored": mirrored}
    for share in MIXED:
        other = torch.from_numpy(rng.random(own.shape) < share)
        kinds[f"{100 * share:.0f} % of their codes another's"] = torch.where(other, own.roll(1, 0), own)

    def painted(maps: Tensor) -> Tensor:
        return torch.cat([run.frame.crop(decode(run.vqvae, part, run.frame)[:, 0]).half() for part in maps.split(256)])

    def train() -> Iterator[tuple[Tensor, list[str]]]:
        for name in ("train", "train_mirrored"):
            for start in range(0, len(codes[name]), 256):
                yield painted(codes[name][start : start + 256]), splits["train"].subjects[start : start + 256]

    drawn = torch.cat(list(kinds.values()))
    sets = [painted(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]) for maps in (drawn, held_out.codes[~first])]
    with Progress(2 * len(codes["train"]), "copied heads", "slice") as progress:
        found = copied_heads(*sets, train(), progress.update)
    ends = np.cumsum([len(maps) for maps in kinds.values()])
    for name, *some in zip(kinds, *(np.split(each, ends[:-1]) for each in (found.ratios, found.shares, found.listed))):
        ratios, shares, listed = (each.astype(float).tolist() for each in some)
        results.add("copied_heads", name, {"ratios": ratios, "shares": shares, "listed": listed})
    results.set("copied_heads_threshold", found.threshold)


def copied_heads_table(values: dict[str, dict[str, list[float]]]) -> str:
    """What is listed, a row a kind of heads, as Markdown."""

    def span(values: list[float], form: str) -> str:
        return f"{min(values):{form}} to {max(values):{form}}"

    rows = [
        f"| {name} | {sum(each['listed']):.0f} of {len(each['listed'])} | {span(each['ratios'], '.3f')} | "
        f"{span(each['shares'], '.2f')} |"
        for name, each in values.items()
    ]
    head = "| heads | listed | distance, nearest person / second nearest | share of slices nearest to that person |"
    return "\n".join([head, "|---|--:|--:|--:|", *rows])


# --------------------------------------------------------------------------- the power of the classifier


def _white_noise(images: Tensor, levels: float) -> Tensor:
    return (images + levels / 255 * torch.randn_like(images) * (images > FOREGROUND)).clamp(0, 1)


def _gaussian_blur(images: Tensor, pixels: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, pixels, pixels)))


def _gamma(images: Tensor, exponent: float) -> Tensor:
    return images**exponent


DIFFERENCES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "white noise in the head, s.d. in grey levels": (_white_noise, (0, 1, 1.5, 2, 3)),
    "Gaussian blur, s.d. in pixels": (_gaussian_blur, (0.3, 0.35, 0.4, 0.5)),
    "gamma": (_gamma, (1.05, 1.1, 1.2, 1.4)),
}


def power(settings: Settings, results: Results) -> None:
    """AUC of the classifier, by slices and by patches, by the size of a known difference: "others", of one half of the held-out
    subjects that has it from the other half that has not, `--halvings` times; "themselves", of all slices that have it from the
    same slices."""
    held_out = held_out_slices(settings)
    for name, (spoil, sizes) in DIFFERENCES.items():
        for size in sizes:
            torch.manual_seed(settings.seed)
            rng = np.random.default_rng(settings.seed)
            found: dict[str, list[Auc]] = {"themselves": [], "others": []}
            spoilt = replace(held_out, images=spoil(held_out.images, size))
            found["themselves"].append(two_sample_auc(spoilt, held_out, settings.seed))
            for halving in range(settings.halvings):
                first, second = halves(held_out, rng)
                first = replace(first, images=spoil(first.images, size))
                found["others"].append(two_sample_auc(first, second, settings.seed + halving))
            results.add("power", f"{name}: {size:g}", found)
            print(f"{name}: {size:g}", found, flush=True)


def power_table(values: dict[str, dict[str, list[list[float]]]]) -> str:
    """Mean AUC a difference as Markdown."""
    rows = []
    for name, found in values.items():
        means = [mean for kind in ("others", "themselves") for mean in np.mean(found[kind], axis=0)]
        rows.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    head = (
        "| AUC of held-out slices with | from other subjects' | by patches | from the same slices without | by patches |\n"
        "|---|--:|--:|--:|--:|"
    )
    return "\n".join([head, *rows, "", f"A difference counts as found from an AUC of {FOUND} on."])


# --------------------------------------------------------------------------- tables


def write_report(settings: Settings, results: Results) -> None:
    """Print the tables of all that results.json holds."""
    values, text = results.values, []
    if "separation" in values:
        text.append(separation_table(values["separation"]))
    if "heads" in values:
        text += [separation_table(values["heads"]), means_table(values["head_means"])]
    if "copies" in values:
        c = values["copies"]
        text.append(
            f"{c['copies_listed']} of {c['copies']} copies and {c['others_listed']} of {c['others']} other slices are listed."
        )
    if "copied_heads" in values:
        text.append(copied_heads_table(values["copied_heads"]))
    if "power" in values:
        text.append(power_table(values["power"]))
    (Path(settings.out) / "report.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text), flush=True)


def separation_table(table: dict[str, dict[str, Any]]) -> str:
    """Scores as multiples of their floors, a column a kind of slices."""
    names = list(table)
    rows = [
        f"| {score} | "
        + " | ".join(f"{table[name][score][0] / max(table[name][score][1], 1e-12):.2f}" for name in names)
        for score in next(iter(table.values()))
    ]
    head = f"| times its floor | {' | '.join(names)} |\n|---" + "|--:" * len(names) + "|"
    return "\n".join([head, *(f"{row} |" for row in rows)])


def means_table(table: dict[str, dict[str, float]]) -> str:
    """Plain means of heads, a row a kind of heads."""
    names = list(next(iter(table.values())))
    rows = [f"| {kind} | {' | '.join(f'{means[name]:.3f}' for name in names)} |" for kind, means in table.items()]
    return "\n".join([f"| mean | {' | '.join(names)} |", "|---" + "|--:" * len(names) + "|", *rows])


PART_FUNCTIONS = {
    "separation": separation,
    "copies": copies,
    "power": power,
    "heads": heads,
    "copied_heads": head_copies,
    "report": write_report,
}

if __name__ == "__main__":
    run_main(main)
