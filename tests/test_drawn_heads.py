"""`evaluate.py --volumes`: what it says of heads that are known to be right, wrong or copied, and what it leaves out.

Most tests draw heads that are known: a codec whose codes are grey levels stands in for the VQ-VAE, so that any head has codes.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import draw_slices
from matplotlib.figure import Figure
from small_runs import with_small_networks, without_pictures
from synthetic_heads import SIZE, SLICES, person
from torch import Tensor, nn

import evaluate
import train
from common.errors import UserError
from dataset import Dataset, Frame, Split
from inference.drawing import Samples
from models.codes import first_level
from reporting import report
from reporting.heads import continuity_bands
from scoring import drawn_heads
from scoring.case import Case, Effort
from scoring.drawn_heads import score_heads
from utils import Run

ALONG = {"neighbour_ssim", "ssim_2", "ssim_4", "ssim_8", "code_agreement", "outline", "ventricles"}
ALONG |= {"symmetry", "symmetry_variation"}
ACROSS = {"swd_0", "classifier", "patch_classifier"}


class GreyLevels(nn.Module):
    """A codec whose codes are grey levels of 0..255; `gain` brightens what it paints."""

    downsample, quantizer = 1, SimpleNamespace(num_codes=256)

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain), requires_grad=False)
        self.decoder = nn.Identity()

    def decode(self, codes: Tensor, noise: None = None) -> Tensor:
        return (codes[:, None] / 255 * self.gain).clamp(0, 1)


def people(seeds: range, count: int = SLICES) -> tuple[Split, Tensor]:
    """The heads of so many people, the first slices of them, as a split; and their codes."""
    levels = (255 * np.concatenate([person(seed)[:count] for seed in seeds])).round().astype(np.uint8)
    names = [f"case_{seed}_slice_{number}.nii.png" for seed in seeds for number in range(count)]
    numbers = np.tile(np.arange(count), len(seeds))
    split = Split(levels, [str(seed) for seed in seeds for _ in range(count)], names, numbers, numbers / (count - 1))
    return split, torch.from_numpy(levels).short()


def maps_of(seeds: range) -> Tensor:
    return people(seeds)[1].unflatten(0, (len(seeds), SLICES))


SINGLES = Samples(*(maps_of(range(40, 48)).flatten(0, 1) / part for part in (1, 255)), np.tile(np.arange(SLICES), 8))


@pytest.fixture
def case(tmp_path, monkeypatch) -> Case:
    """12 people who were held out, 5 who were trained on, whose slices lie two pixels apart."""
    monkeypatch.setattr("scoring.realism.DIRECTIONS", 16)
    monkeypatch.setattr("scoring.realism.TEXTURE_HALVINGS", 2)
    monkeypatch.setattr("scoring.classifier.EPOCHS", 1)
    monkeypatch.setitem(plt.rcParams, "figure.dpi", 30)
    splits, codes = {}, {}
    for name, seeds in (("train", range(5)), ("validate", range(1000, 1012))):
        splits[name], codes[name] = people(seeds)
    codes["train_mirrored"] = codes["train"].flip(1)
    place = {"shape": [40, 32, 24], "affine": np.eye(4).tolist(), "axis": "axial", "planes": list(range(0, 24, 2))}
    about = {"title": "nobody", "kind": "volumes", "slices_per_subject": SLICES, "geometry": place}
    run = Run(GreyLevels(), None, Frame(0, 0, *SIZE, *SIZE), {"data": about, "flags": {"axis": "axial"}})
    return Case(run, Dataset("nobody", splits, SLICES), "validate", codes, Effort(8, 1, 8, 8), 0, tmp_path / "images")


@pytest.mark.parametrize("symmetric", [True, False])
def test_pictures_of_training_slices_are_those_of_their_codes_and_mirrored_ones_count_on(case, symmetric, monkeypatch):
    monkeypatch.setattr("scoring.case.PART", 8)
    if not symmetric:  # slices that have sides are encoded as they are instead
        case.codes["train_mirrored"] = case.codes["train"]
    codes, decoded = torch.cat(case.training_maps), []
    monkeypatch.setattr(
        Case, "faithful", lambda self, maps: decoded.append(len(maps)) or self.run.vqvae.decode(maps)[:, 0]
    )
    found = {}
    for start, images, maps in case.training_pictures():
        assert torch.equal(images, GreyLevels().decode(maps)[:, 0]) and torch.equal(
            maps, codes[start : start + len(maps)]
        )
        found |= dict.fromkeys(range(start, start + len(maps)))
    assert [*sorted(found)] == [*range(len(codes))] and sum(decoded) == len(codes) // 2, "each is decoded once"


@pytest.fixture
def no_drift(monkeypatch) -> None:
    """It takes most of the time."""
    monkeypatch.setattr(drawn_heads, "score_drift", lambda *_: {})


def scored(case: Case, maps: Tensor, samples: Samples = SINGLES) -> dict:
    """What is said of these heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_heads, "draw_heads", lambda run, request: maps[: request.count].long())
        case.effort = replace(case.effort, heads=len(maps))
        return score_heads(case, case.codes[case.name], samples).get("heads", {})


def ratios(scores: dict) -> dict[str, float]:
    return {name: value["score"] / max(value["floor"], 1e-12) for name, value in scores.items()}


# --------------------------------------------------------------------------- what is said of known heads


def test_real_heads_are_as_far_from_others_as_these_are_from_each_other_and_no_score_is_missing(case):
    found = scored(case, maps_of(range(20, 28)))
    planes = {f"{plane}_{name}" for plane in ("sagittal", "coronal") for name in ACROSS}
    assert set(found["distances"]) == ALONG | planes, "23 pixels high, since slices lie two apart"
    times = {name: value for name, value in ratios(found["distances"]).items() if "classifier" not in name}
    assert max(times.values()) < 2.5 and 0.6 < np.median(list(times.values())) < 1.6, times
    assert found["count"] == 8 and found["real"] == 12 and found["slices"] == list(range(SLICES))
    assert [step["distances"] for step in found["drift"]] == [[0], [1, 2, 3], [4, 5, 6]]
    assert all({"swd_0", "spectrum", "area"} <= step["worse"].keys() for step in found["drift"])
    assert found["means"]["drawn"]["neighbour_ssim"] == pytest.approx(
        found["means"]["real"]["neighbour_ssim"], abs=0.02
    )
    assert found["copies"]["listed"] == 0
    assert all("ssim_31" in note or note.startswith("drift of heads: 0 from the first") for note in case.notes)


def test_slices_of_two_people_in_turn_are_far_from_a_head_and_the_means_say_why(case, no_drift):
    maps = maps_of(range(20, 28))
    odd = (torch.arange(SLICES) % 2 == 1)[:, None, None]
    turns = scored(case, torch.where(odd, maps.roll(1, 0), maps))
    repeated = scored(case, maps[:, SLICES // 2, None].expand_as(maps))
    for found, lower, names in ((turns, "drawn", ("outline",)), (repeated, "real", ("code_agreement", "ssim_8"))):
        for name in ("neighbour_ssim", "ventricles", *names):
            assert ratios(found["distances"])[name] > 3, name
        means = {name: found["means"][name]["neighbour_ssim"] for name in ("drawn", "real")}
        assert means[lower] == min(means.values()) < max(means.values()) - 0.05


def test_a_copied_training_head_is_listed_and_an_unrelated_one_is_not(case, no_drift):
    copies, others = maps_of(range(3)), maps_of(range(60, 63))
    copies[1] = copies[1].flip(1)  # the mirrored training set holds it
    found = scored(case, torch.cat([others[:1], copies, others[1:]]))
    assert found["copies"]["listed"] == 3 and found["copies"]["people"][1:4] == ["0", "1", "2"]
    assert max(found["copies"]["ratios"][1:4]) < 0.05 < found["copies"]["threshold"] == min(found["copies"]["held_out"])
    assert min(found["copies"]["ratios"][i] for i in (0, 4, 5)) > 0.5 and len(found["copies"]["held_out"]) == 12
    said = report.of_samples({"heads": found})
    assert "3 of 6 heads are nearer to one training person" in said and "head 3 is nearest to 2, at 0.0" in said
    assert "head 0 is nearest" not in said
    case.codes.pop("train_mirrored")
    alone = scored(case, copies)["copies"]["ratios"]
    assert max(alone[0], alone[2]) < 0.05 < 0.2 < alone[1], "a mirrored copy is one of mirrored slices"


def test_training_slices_pass_by_in_parts(case, monkeypatch):
    monkeypatch.setattr("scoring.case.PART", 7)
    sizes, whose, real = [], [], drawn_heads.copied_heads

    def watched(drawn: Tensor, held_out: Tensor, train: Iterator, progress) -> object:
        parts = ((images, names) for images, names in train if not (sizes.append(len(images)) or whose.extend(names)))
        return real(drawn, held_out, parts, progress)

    monkeypatch.setattr(drawn_heads, "copied_heads", watched)
    scored(case, maps_of(range(2)))
    assert max(sizes) == 7 and sum(sizes) == 2 * 5 * SLICES
    assert sorted(whose) == sorted(2 * case.data.splits["train"].subjects)


def test_the_decoder_asked_for_paints_heads_and_copies_are_sought_with_the_other(case, no_drift):
    case.sharp, case.decoder = GreyLevels(0.5), "sharp"
    found = scored(case, maps_of(range(4)))
    assert found["decoder"] == "sharp" and found["copies"]["listed"] == 4, "as the codec itself paints them"
    means = {name: each["neighbour_ssim"] for name, each in found["means"].items()}
    case.sharp = GreyLevels(0.1)
    darker = {name: each["neighbour_ssim"] for name, each in scored(case, maps_of(range(4)))["means"].items()}
    assert means["real"] == darker["real"]
    assert means["drawn"] != darker["drawn"] and means["reconstructed"] != darker["reconstructed"]
    assert "code_agreement" not in found["means"]["reconstructed"], "its codes are the real ones"


def test_cuts_are_called_what_they_are(case, no_drift):
    case.run.config["data"]["geometry"] |= {"axis": "coronal", "shape": [40, 24, 32]}
    names = scored(case, maps_of(range(20, 24)))["distances"]
    assert {name.split("_swd")[0] for name in names if "swd" in name} == {"sagittal", "axial"}


# --------------------------------------------------------------------------- what a split may be like


def test_scans_of_one_person_are_one_group(case, monkeypatch):
    """Two visits of six people each: halves by person, not by scan."""
    split, asked = case.split, []
    person_of = {seed: str(seed % 6) for seed in range(1000, 1012)}
    subjects = [person_of[int(subject)] for subject in split.subjects]
    case.data.splits["validate"] = replace(split, subjects=subjects)
    monkeypatch.setattr(drawn_heads, "head_scores", lambda drawn, real, *_, **__: asked.append(real) or {})
    scored(case, maps_of(range(2)))
    assert sorted(asked[0].groups) == sorted(2 * list("012345"))


def test_scans_of_different_lengths_are_compared_where_most_of_them_are(case):
    split, codes = case.split, case.codes["validate"]
    lengths = np.repeat([SLICES, 9, 6], 4)
    kept = np.concatenate([np.arange(length) + SLICES * index for index, length in enumerate(lengths)])
    case.data.splits["validate"] = Split(
        split.images[kept], [split.subjects[i] for i in kept], [split.names[i] for i in kept], split.numbers[kept]
    )
    case.codes["validate"] = codes[kept]
    found = scored(case, maps_of(range(20, 24)))
    assert found["slices"] == list(range(9)) and found["real"] == 8
    assert "heads are compared without slices 9 to 11: fewer than half of the scans have them" in case.notes
    assert found["drift"][0]["distances"] == [0], "of the first slice that was drawn, 6 of 12"
    assert found["drift"][-1]["distances"] == [4, 5, 6]


def test_the_real_heads_that_are_compared_are_limited(case, monkeypatch):
    monkeypatch.setattr(drawn_heads, "COMPARED", 9 * SLICES)
    assert scored(case, maps_of(range(2)))["real"] == 9
    monkeypatch.setattr(drawn_heads, "COMPARED", 1)
    assert scored(case, maps_of(range(2)))["real"] == drawn_heads.FEWEST_REAL


@pytest.mark.parametrize(
    "kept, said",
    [
        (lambda number, head: number != head % SLICES, "heads are not scored: none of 12 scans has all of the 12 slice numbers"),
        (lambda number, head: number == head, "heads are not scored: of 12 slice numbers of a drawn head, half of the 12 scans"),
    ],
)  # fmt: skip
def test_a_split_without_whole_heads_draws_none_and_says_so(case, kept, said, monkeypatch):
    split = case.split
    some = np.flatnonzero([kept(number, index // SLICES) for index, number in enumerate(split.numbers)])
    case.data.splits["validate"] = Split(
        split.images[some], [split.subjects[i] for i in some], [split.names[i] for i in some], split.numbers[some]
    )
    monkeypatch.setattr(drawn_heads, "draw_heads", lambda *_: pytest.fail("drawn for nothing"))
    case.codes["validate"] = case.codes["validate"][torch.from_numpy(some)]
    assert score_heads(case, case.codes["validate"], SINGLES) == {}
    assert len(case.notes) == 1 and case.notes[0].startswith(said)


def test_what_few_heads_or_subjects_do_not_allow_is_left_out_and_the_rest_is_not(case):
    found = scored(case, maps_of(range(1)))
    assert "drift" not in found and "neighbour_ssim" in found["distances"] and found["copies"]["listed"] == 1
    assert "drift of heads is not scored: 1 heads, and it needs at least 4" in case.notes
    assert any(note.startswith("sagittal_classifier of heads is not scored") for note in case.notes)
    assert any(note.startswith("of fewer than 8 heads, as here, perfect ones have less") for note in case.notes)
    three = slice(3 * SLICES)
    case.data.splits["validate"] = people(range(1000, 1003))[0]
    case.codes["validate"] = case.codes["validate"][three]
    few = scored(case, maps_of(range(4)))
    assert not {"distances", "drift"} & few.keys() and few["copies"]["listed"] == 4 and few["means"]["drawn"]
    assert any("3 subjects have whole heads, and it needs at least 4" in note for note in case.notes)
    assert "| neighbour_ssim |" in report.of_samples({"heads": few})


def test_nobody_is_named_where_the_data_does_not_hold_the_training_slices(case):
    case.trained_here = False
    found = scored(case, maps_of(range(2)))
    assert "copies" not in found and any("copies of heads are not looked for" in note for note in case.notes)


def test_slice_numbers_with_gaps_have_several_first_slices(case):
    case.run.config["data"]["slice_numbers"] = [[0, 4], [6, 11]]
    maps = maps_of(range(20, 24))[:, [number for number in range(SLICES) if number != 5]]
    found = scored(case, maps)
    assert 5 not in found["slices"] and len(found["slices"]) == 11 and "drift" not in found
    assert any("slice numbers have gaps" in note for note in case.notes)


# --------------------------------------------------------------------------- what is shown


def test_scores_of_heads_are_a_table_and_two_pictures(case):
    found = scored(case, maps_of(range(20, 24)))
    said = report.of_samples({"heads": found, "notes": ["a reason"]})
    value = found["distances"]["neighbour_ssim"]
    assert (
        f"| neighbour_ssim | {value['score']:.4g} | {value['floor']:.4g} | {value['score'] / value['floor']:.1f} |"
        in said
    )
    assert "| distance from 12 real heads, 4 heads, reconstruction decoder | score |" in said
    means = [found["means"][name]["ssim_2"] for name in ("drawn", "real", "reconstructed")]
    assert "| ssim_2 | " + " | ".join(f"{mean:.4g}" for mean in means) + " |" in said
    assert [f"| {band} |" in said for band in ("0", "1 to 3", "4 to 6")] == [True] * 3
    assert f"{100 * found['drift'][1]['overall']:+.0f} |" in said
    assert "0 of 4 heads are nearer to one training person" in said and said.endswith("Note: a reason.")
    names = {path.name for path in case.pictures.iterdir()}
    assert names == {"drawn_heads.png", "heads_along_slices.png"} <= {name for name, _ in report.PICTURES}
    assert json.loads(json.dumps(found)) == found


def test_bands_hold_the_middle_of_the_heads_and_show_what_is_too_alike(monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr("reporting.heads.save_figure", lambda figure, path: kept.append(figure))
    real = np.linspace(0.8, 0.9, 11)[:, None] + np.zeros(4)
    values = {"drawn": {"ssim": real + 0.2}, "real": {"ssim": real, "codes": real}}
    continuity_bands(np.array([3, 4, 5, 7, 8]), values, {"ssim": "SSIM", "codes": "codes"}, Path("x.png"), "title")
    left, right = kept[0].axes
    assert [line.get_label() for line in left.lines] == ["drawn", "real"] and len(right.lines) == 1
    drawn, band = left.lines[0].get_xydata(), left.collections[1].get_paths()[0].vertices[:, 1]
    assert drawn[:, 0].tolist() == [3.5, 4.5, 6, 7.5] and drawn[:, 1] == pytest.approx(1.05)
    assert (band.min(), band.max()) == pytest.approx((0.81, 0.89)), "a tenth of the heads below and above"
    plt.close("all")


# --------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with slices (data/) and two small runs on them, with and without context (run/, alone/)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("heads")
    for split, subjects in (("train", range(4)), ("validate", range(4, 9))):
        draw_slices(root / "data", split, subjects)
    flags = ["--epoch", "1", "--epoch_prior", "1", "--k", "8", "--d", "4", "--no_sharpen", "--data", "data"]
    flags += ["--epoch_detail", "1", "--epoch_detail_prior", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with_small_networks(patch.setattr)
        without_pictures(patch.setattr)
        train.main([*flags, "--out", "run"])
        train.main([*flags, "--out", "alone", "--no_context"])
    return root


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it as the current folder; little is drawn and compared beside heads."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("scoring.realism.DIRECTIONS", 16)
    monkeypatch.setattr("scoring.classifier.EPOCHS", 1)
    monkeypatch.setattr("scoring.realism.TEXTURE_HALVINGS", 2)
    monkeypatch.setattr(evaluate, "QUICK", Effort(8, 1, 8))
    monkeypatch.setattr("reporting.figures.rows_of_slices", lambda *_: None)  # half of the time
    monkeypatch.setitem(plt.rcParams, "figure.dpi", 30)
    return tmp_path / "here"


def evaluated(*flags: str) -> dict:
    """The scores of the validation split."""
    evaluate.main(["--run", "run", "--quick", "--out", "scores.json", *flags])
    return json.loads(Path("scores.json").read_text())["validate"]


def test_heads_are_drawn_where_they_are_asked_for_and_one_seed_draws_the_same(here, capsys):
    none, first, again = (evaluated(*flags) for flags in ([], *2 * [["--volumes", "4"]]))
    assert "heads" not in none and first == again and len(first["heads"]["drift"]) == 3
    assert none == {name: value for name, value in first.items() if name != "heads"} | {"notes": none["notes"]}
    evaluate.main(["--run", "run", "--quick", "--volumes", "4", "--seed", "1"])
    other = json.loads(Path("run/scores.json").read_text())["validate"]
    assert first["heads"]["means"]["drawn"] != other["heads"]["means"]["drawn"]
    assert first["heads"]["means"]["real"] == other["heads"]["means"]["real"]
    assert "| distance from 5 real heads, 4 heads, reconstruction decoder |" in capsys.readouterr().out
    text = Path("run/report.md").read_text()
    assert "images/drawn_heads.png" in text and "images/heads_along_slices.png" in text and "| neighbour_ssim |" in text
    evaluate.main(["--run", "run", "--quick"])
    assert Path("run/images/drawn_heads.png").exists() and "drawn_heads.png" not in Path("run/report.md").read_text()


def test_a_split_without_whole_heads_is_scored_without_them(here):
    for index, path in enumerate(sorted(Path("data/keras_png_slices_validate").glob("*_slice_?.nii.png"))):
        if index // 4 == index % 4 or index == 17:  # each scan lacks another slice
            path.unlink()
    found = evaluated("--volumes", "2")
    assert "heads" not in found and found["ssim"] > 0
    assert "heads are not scored: none of 5 scans has all of the 4 slice numbers" in found["notes"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--run", "alone", "--volumes", "2"], "this run's prior is not told the slice next to the one that it draws"),
        (["--run", "run", "--volumes", "-1"], "--volumes is -1; expected 0 to 100 heads"),
        (["--run", "run", "--volumes", "101"], "--volumes is 101; expected 0 to 100 heads"),
    ],
)
def test_who_cannot_draw_heads_is_told_so_before_anything_is_scored(here, monkeypatch, flags, message):
    monkeypatch.setattr(evaluate, "load_data", lambda *_: pytest.fail("data was read"))
    with pytest.raises(UserError, match=message):
        evaluate.main(flags)


def test_other_data_with_as_many_training_slices_is_not_taken_for_the_runs_own(here, monkeypatch):
    """Its people are not those that were trained on, and its slices have other codes."""
    for split, subjects in (("train", range(20, 24)), ("validate", range(24, 29))):
        draw_slices(here / "other", split, subjects)
    found = evaluated("--data", "other", "--volumes", "2")
    assert "generalisation_gap" not in found and {pair["train"] for pair in found["copies"]["closest"]} == {None}
    assert "copies" not in found["heads"] and "distances" in found["heads"]
    shown: list[Tensor] = []
    monkeypatch.setattr(
        evaluate, "evaluate_split", lambda case: shown.append(first_level(case.split_codes)) or {"ssim": 0.0}
    )
    monkeypatch.setattr(report, "of_samples", lambda *_: "")
    for data in ("data", "other"):
        evaluate.main(["--run", "run", "--data", data, "--split", "train", "--quick", "--out", "scores.json"])
    assert not torch.equal(*shown)


def test_a_training_split_that_is_the_runs_own_is_known_beside_other_splits(here):
    draw_slices(here / "data", "test", range(30, 35))
    found = evaluated("--data", "data", "--split", "validate", "--volumes", "2")
    assert "generalisation_gap" in found and set(found["heads"]["copies"]["people"]) <= {f"{i:03d}" for i in range(4)}
