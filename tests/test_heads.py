"""Whole heads: real ones lie at the floor, and each kind of bad head is caught by the score meant for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from synthetic_heads import SIZE, SLICES, person
from torch import Tensor

from dataset import Frame, Split
from reporting.heads import contact_sheet, orthogonal_views, three_views
from scoring import heads as module
from scoring.continuity import areas, continuity, roughness
from scoring.drift import Step, drift, slices_at
from scoring.heads import HeadSet, head_means, head_scores, heads_of, measured, reslices, shared_numbers, steps
from scoring.memorisation import copied_heads
from scoring.metrics import ssim
from scoring.realism import Mirror, Realism, asymmetry
from scoring.sets import Untaken

MIRROR = Mirror(0, 0)


def heads(people: range) -> HeadSet:
    return coded(torch.from_numpy(np.stack([person(seed) for seed in people])).float(), [str(seed) for seed in people])


def coded(images: Tensor, groups: list[str]) -> HeadSet:
    """With codes that a slice's intensities would have, 8 pixels a side."""
    means = torch.nn.functional.avg_pool2d(images, 8)
    return HeadSet(images, groups, np.arange(SLICES), (means * 20).round().long())


@pytest.fixture(scope="module")
def real() -> HeadSet:
    return measured(heads(range(1000, 1012)), MIRROR)


@pytest.fixture(autouse=True)
def few_directions(monkeypatch):
    monkeypatch.setattr("scoring.realism.DIRECTIONS", 16)


@pytest.fixture
def no_classifier(monkeypatch):
    monkeypatch.setattr(module, "tell_apart", lambda first, second, seed: {"classifier": 0.0})


# --------------------------------------------------------------------------- what is caught


def bad_heads(images: Tensor) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Heads that none has, and the scores meant for them."""
    rng = np.random.default_rng(0)
    odd = (torch.arange(SLICES) % 2 == 1)[:, None, None]
    mixed = torch.stack([images[rng.permutation(len(images)), number] for number in range(SLICES)], 1)
    moves = rng.choice((-2, -1, 1, 2), (*images.shape[:2], 2))
    moved = [ndimage.shift(one, by, order=0) for one, by in zip(images.flatten(0, 1).numpy(), moves.reshape(-1, 2))]
    along = torch.from_numpy(ndimage.uniform_filter1d(images.numpy(), 3, axis=1, mode="nearest"))
    lopsided = images * torch.where(odd, 1, torch.linspace(0.8, 1.2, SIZE[0])[:, None])
    return {
        "of many people": (mixed, ("neighbour_ssim", "ssim_2", "outline", "ventricles")),
        "one slice repeated": (
            images[:, SLICES // 2, None].expand_as(images),
            ("neighbour_ssim", "ssim_4", "ssim_8", "code_agreement", "outline", "ventricles", "symmetry_variation"),
        ),
        "two people in turn": (
            torch.where(odd, images.roll(1, 0), images),
            ("neighbour_ssim", "outline", "ventricles"),
        ),
        "moved": (
            torch.from_numpy(np.stack(moved)).view_as(images),
            ("neighbour_ssim", "code_agreement", "symmetry", "symmetry_variation"),
        ),
        "blurred along": (along, ("neighbour_ssim", "ssim_2")),
        "lopsided here and there": (lopsided, ("symmetry_variation",)),
        "striped": (images * torch.where(odd, 0.3, 1), ("sagittal_swd_0", "coronal_swd_0")),
    }


def test_each_bad_head_is_caught_by_its_scores_and_real_ones_by_none(real, no_classifier):
    others = heads(range(8))
    how = dict(halvings=2, slice_distance=2)
    scores = head_scores(others, real, **how)
    for name, value in scores.items():
        assert value.score < 2.5 * value.floor + 1e-9, (name, value)
    floors = {name: value.floor for name, value in scores.items()}
    for name, (images, caught_by) in bad_heads(others.images).items():
        scores = head_scores(coded(images.contiguous(), others.groups), real, floors=floors, **how)
        for score in caught_by:
            assert scores[score].score > 3 * scores[score].floor, (name, score, scores[score])


def test_classifier_sees_slices_that_jump_in_the_cuts(real, monkeypatch):
    monkeypatch.setattr("scoring.classifier.EPOCHS", 3)
    others = heads(range(8))
    moved = coded(bad_heads(others.images)["moved"][0], others.groups)
    some = real[np.arange(8)]
    for plane, dim in module.PLANES.items():
        found = module.tell_apart(reslices(moved, dim, 2), reslices(some, dim, 2), 0)["classifier"]
        assert found > 0.8, plane


def test_heads_of_the_population_lie_at_the_floor_on_average(monkeypatch):
    """8 heads against halves of 18, as realism's."""
    monkeypatch.setattr(module, "cuts_apart", lambda *_: {})
    monkeypatch.setattr(module, "HALVINGS", 2)
    rng, found = np.random.default_rng(0), []

    def drawn(count: int) -> HeadSet:
        values = {"neighbour_ssim": rng.normal(size=(count, 5)), "outline": rng.normal(size=(count, 1)) ** 3}
        return HeadSet(torch.ones(count, 3, 4, 4), [str(i) for i in range(count)], np.arange(3), measured=values)

    for seed in range(200):
        found.append(head_scores(drawn(8), drawn(36), seed, halvings=0))
    for name in ("neighbour_ssim", "outline"):
        score, floor = (np.mean([getattr(one[name], part) for one in found]) for part in ("score", "floor"))
        assert 0.85 < score / floor < 1.15, (name, score / floor)


def test_a_wrong_course_along_the_head_is_apart_though_all_values_are_there():
    values = np.random.default_rng(0).normal(size=(6, 5)) + 4 * np.arange(5)
    one = HeadSet(torch.zeros(6, 1, 1, 1), "abcdef", np.arange(1), measured={"ssim_2": values})
    turned, shuffled = (replace(one, measured={"ssim_2": each}) for each in (values[:, ::-1], values[::-1]))
    assert module.continuity_apart(one, shuffled)["ssim_2"] == 0, "which head is which says nothing"
    assert module.continuity_apart(one, turned)["ssim_2"] > 5


def test_scores_are_seeded_counted_and_take_floors(real, no_classifier):
    few, done = heads(range(50, 54)), []
    before = torch.get_rng_state()
    first, again = (head_scores(few, real, 3, 2, 2, done.append) for _ in range(2))
    assert first == again and torch.equal(before, torch.get_rng_state())
    assert sum(done) == 2 * steps(few, real, 2)
    floors = {name: value.floor for name, value in first.items()}
    assert head_scores(few, real, 3, 2, 2, floors=floors) == first
    assert head_scores(few, real, 4, 2, 2) != first


def test_what_cannot_be_scored_is_left_out_with_a_note(real, no_classifier):
    few, notes = heads(range(50, 54)), []
    found = head_scores(replace(few, codes=None), real, halvings=1, notes=notes)
    assert "code_agreement" not in found and {"ssim_8", "outline"} < set(found)
    said = "; ".join(notes)
    for part in (
        "code_agreement of heads is not scored",
        "ssim_31",
        "sagittal_swd of heads is not scored: slices of 12x40",
    ):
        assert part in said, part
    with pytest.raises(ValueError, match="at least 4 subjects"):
        head_scores(few, real[np.arange(3)])
    with pytest.raises(ValueError, match="not the same"):
        head_scores(replace(few, numbers=few.numbers + 1), real)


# --------------------------------------------------------------------------- what is measured


def test_continuity_is_of_the_pairs_it_says():
    images, codes = torch.rand(9, 30, 24), torch.randint(0, 2, (9, 3, 4))
    found = continuity(images, codes, MIRROR)
    for name, lag in (("neighbour_ssim", 1), ("ssim_4", 4)):
        pairs = [ssim(images[i][None, None], images[i + lag][None, None]).item() for i in range(0, 9 - lag, lag)]
        assert found[name] == pytest.approx(pairs, abs=1e-6), name
    assert "ssim_31" not in found
    assert found["code_agreement"] == pytest.approx((codes[1:] == codes[:-1]).float().mean((1, 2)).numpy())
    sides = asymmetry(images, MIRROR).numpy()
    assert found["symmetry"] == pytest.approx(sides.mean())
    assert found["symmetry_variation"] == pytest.approx(np.abs(sides[1:] - sides[:-1]).mean(), rel=1e-4)


def test_areas_that_change_evenly_are_smooth_and_ventricles_are_what_is_dark_deep_inside():
    steady, bent = 1000 + 10 * np.arange(8), 1000 + 10 * (np.arange(8) % 2)
    even, _ = roughness(steady, bent)
    assert even == pytest.approx(np.log10(1 / steady.mean()))
    assert roughness(bent, bent)[0] == pytest.approx(np.log10(21 / bent.mean()))
    rows, columns = np.mgrid[-88:88, -100:100]
    slices = []
    for radius in (20, 24):
        head = np.hypot(rows, columns) < 80
        dark = np.hypot(rows, columns) < radius
        near = np.abs(np.hypot(rows, columns) - 64) < 6  # dark as well, and in the cortex
        slices.append(np.where(dark | near, 0.1, 0.6) * head)
    outline, ventricles = areas(np.stack(slices))
    assert outline == pytest.approx(2 * [np.pi * 80**2], rel=0.02)
    assert ventricles == pytest.approx([np.pi * 20**2, np.pi * 24**2], rel=0.12)


def test_plain_means_are_over_all_heads_and_places(real):
    means = head_means(real)
    assert means["neighbour_ssim"] == pytest.approx(real.measured["neighbour_ssim"].mean())
    assert means["neighbour_ssim"] > means["ssim_4"] > means["ssim_8"] and "outline" not in means


def test_cuts_are_rows_and_columns_of_all_slices_with_square_pixels():
    ramp = torch.arange(5.0)[:, None, None] + torch.rand(1, 16, 24)  # linear from slice to slice
    one = HeadSet(torch.stack([ramp, 2 * ramp]), ["a", "b"], np.arange(5))
    for dim, side, across in ((1, 16, 24), (2, 24, 16)):
        cuts = reslices(one, dim, 2.5)
        assert cuts.images.shape[1:] == (11, across) and set(cuts.groups) == {"a", "b"}
        for image, group, number in zip(cuts.images, cuts.groups, cuts.numbers):
            own = one.images["ab".index(group)].select(dim, int(number))
            assert torch.allclose(image[::5], own[::2], atol=1e-5), "every 2nd slice is 5 pixels on"
            assert torch.allclose(image.diff(dim=0), (own[1] - own[0]) / 2.5, atol=1e-4), "linear in between"
        assert cuts.numbers.min() >= side // 8 and cuts.numbers.max() <= side - side // 8


# --------------------------------------------------------------------------- heads of a split


def scans_of(*scans: tuple[str, list[int]]) -> tuple[Split, Tensor]:
    """A scan's name, whose beginning is the subject's, and its slice numbers, each; a slice is 10 x its scan + its number."""
    about = [(index, name, number) for index, (name, numbers) in enumerate(scans) for number in numbers]
    images = np.stack([np.full((6, 8), 10 * index + number, np.uint8) for index, _, number in about])
    names = [f"{name}_slice_{number}.nii.png" for _, name, number in about]
    split = Split(images, [name[:2] for _, name, _ in about], names, np.array([number for *_, number in about]))
    return split, torch.from_numpy(images[:, :2, :2]).long()


def test_heads_are_the_whole_scans_of_a_split_in_order():
    split, codes = scans_of(("s1_a", [0, 1, 2]), ("s1_b", [0, 1, 2]), ("s2_a", [0, 2]), ("s3_a", [0, 1, 1, 2]))
    found = heads_of(split, Frame(0, 0, 4, 8, 6, 8), codes)
    assert found.groups == ["s1", "s1"] and found.numbers.tolist() == [0, 1, 2], (
        "one lacks a slice, one has a slice twice"
    )
    assert found.images.shape == (2, 3, 4, 8) and found.symmetric
    assert (found.images[..., 0, 0] * 255).round().int().tolist() == [[0, 1, 2], [10, 11, 12]]
    assert found.codes[..., 0, 0].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert heads_of(split, codes=codes, most=1).codes[..., 0, 0].tolist() == [[0, 1, 2]]
    with pytest.raises(Untaken, match="nothing of slice numbers"):
        heads_of(replace(split, numbers=None))
    with pytest.raises(Untaken, match="none of 5 scans has all of the 2"):
        heads_of(split, numbers=np.array([2, 3]))


def test_heads_of_scans_of_different_lengths_are_compared_where_most_of_them_are():
    split, codes = scans_of(("s1", [0, 1, 2, 3]), ("s2", [1, 2, 3, 4, 5]), ("s3", [1, 2]), ("s4", [2, 3, 4]))
    numbers = shared_numbers(split, np.arange(5))
    assert numbers.tolist() == [1, 2, 3, 4]
    found = heads_of(split, codes=codes, numbers=np.array([1, 2, 3]))
    assert found.codes[..., 0, 0].tolist() == [[1, 2, 3], [11, 12, 13]], "slices beyond those wanted are left out"
    assert found.numbers.tolist() == [1, 2, 3]
    with pytest.raises(Untaken, match="of 2 slice numbers of a drawn head, half of the 4 scans have 1"):
        shared_numbers(split, np.array([4, 5]))


# --------------------------------------------------------------------------- copies and drift


def test_a_head_that_is_nearer_to_one_person_than_to_any_other_is_listed():
    people = torch.rand(6, SLICES, 8, 8)
    names = [f"p{i}" for i in range(6)]
    train = [(images, [name] * SLICES) for images, name in zip(people, names)]
    train += [(images.flip(1), [name] * SLICES) for images, name in zip(people, names)]
    held_out = people[torch.randint(0, 6, (9, SLICES)), torch.arange(SLICES)]
    held_out[0] = 0.4 * people[3] + 0.6 * torch.rand(
        SLICES, 8, 8
    )  # like one person in all slices, and still far from it
    noise = 0.05 * torch.rand(2, SLICES, 8, 8)
    mirrored = torch.where((torch.arange(SLICES) < 5)[:, None, None], people[2], people[2].flip(1))
    drawn = torch.cat([torch.stack([people[4], mirrored]) + noise, held_out])
    done: list[int] = []
    found = copied_heads(drawn, held_out, iter(train), done.append)
    assert found.people[:3] == ["p4", "p2", "p3"] and found.shares[:2].tolist() == [1, 1]
    assert found.shares[2] > 0.9, "which says nothing alone"
    assert found.ratios[:2].max() < 0.2 < found.threshold == found.held_out.min(), "the least of so few"
    assert found.listed.tolist() == 2 * [True] + 9 * [False] and sum(done) == 12 * SLICES
    assert found.by_chance == pytest.approx(11 / 10)
    whole = [(torch.cat([images for images, _ in train]), [name for _, own in train for name in own])]
    assert copied_heads(drawn, held_out, whole).ratios == pytest.approx(found.ratios, abs=1e-4)
    with pytest.raises(Untaken, match="single person"):
        copied_heads(drawn, held_out, train[:1])


def test_people_are_nearest_by_the_mean_over_a_head_of_their_nearest_slices():
    people, heads = torch.rand(3, 7, 4, 4), torch.rand(2, 5, 4, 4)
    found = copied_heads(heads, heads, [(people.flatten(0, 1), [name for name in "abc" for _ in range(7)])])
    for index, head in enumerate(heads):
        each = np.array([[min(((one - two) ** 2).mean() ** 0.5 for two in own) for one in head] for own in people])
        order = each.mean(1).argsort()
        assert found.people[index] == "abc"[order[0]]
        assert found.ratios[index] == pytest.approx(each.mean(1)[order[0]] / each.mean(1)[order[1]], rel=1e-4)
        assert found.shares[index] == pytest.approx((each.argmin(0) == order[0]).mean())


def test_drift_grows_with_the_distance_and_single_slices_have_none(real, monkeypatch):
    monkeypatch.setattr("scoring.classifier.EPOCHS", 1)
    monkeypatch.setattr("scoring.realism.TEXTURE_HALVINGS", 2)
    first, drawn = 5, heads(range(8))
    images = drawn.images.clone()
    for number in range(SLICES):
        images[:, number] += 0.1 * abs(number - first) * (torch.rand(8, *SIZE) - 0.5) * (images[:, number] > 0)
    alone = slices_at(drawn, drawn.numbers)
    alone = replace(alone, groups=[f"sample {i}" for i in range(len(alone))])
    bands = ((0,), (4, 5), (30,))
    found = drift(replace(drawn, images=images.clamp(0, 1)), real, first, bands, alone, halvings=1)
    assert [step.distances for step in found] == [(0,), (4, 5)]
    worse = [step.worse["swd_0"] for step in found]
    assert worse[0] == pytest.approx(0, abs=0.2) and worse[1] > 1
    notes: list[str] = []
    strangers = replace(alone, numbers=alone.numbers + 90)
    assert not drift(drawn, real, first, ((0,),), strangers, halvings=1, notes=notes)[0].singles
    assert "0 from the first, slices drawn alone are not scored: no slice number" in notes[0]


def test_slices_at_some_numbers_are_those_of_each_head():
    one = HeadSet(torch.arange(6.0).view(2, 3, 1, 1), ["a", "b"], np.array([4, 5, 6]), symmetric=True)
    found = slices_at(one, np.array([4, 6]))
    assert found.images.flatten().tolist() == [0, 2, 3, 5] and found.groups == ["a", "a", "b", "b"]
    assert found.numbers.tolist() == [4, 6, 4, 6] and found.symmetric


def test_worse_is_by_which_share_the_heads_are_further_from_real_slices():
    one = Step((0,), {"a": Realism(3, 2), "b": Realism(1, 1)}, {"a": Realism(1, 1), "b": Realism(4, 2)})
    assert one.worse == pytest.approx({"a": 0.5, "b": -0.5})
    assert one.overall == pytest.approx(0)
    assert Step((0,), {"a": Realism(1, 1)}, {}).overall is None


# --------------------------------------------------------------------------- pictures


def test_cuts_are_shown_front_up_and_top_up():
    head = np.zeros((4, 6, 8))
    head[-1, 0, -1] = 1  # top, first rows, front
    head[2, 0, -1] = 0.5
    head[:, :, 4] += 0.1 * np.arange(4)[:, None]
    axial, coronal, sagittal = orthogonal_views(head)
    assert axial.shape == (8, 6) and axial[0, 0] == 0.5
    assert coronal.shape == (4, 6) and coronal[0, 0] == pytest.approx(0.3) and coronal[-1, 0] == 0
    assert sagittal.shape == (4, 8) and sagittal[0, 4] == pytest.approx(0.3)
    for cut, turned in zip(orthogonal_views(head), orthogonal_views(head[..., ::-1], front_first=True)):
        assert np.array_equal(cut, turned)


def test_pictures_of_heads_keep_the_proportions_of_the_spacing(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = {"real": list(rng.uniform(size=(2, 10, 20, 24))), "drawn": list(rng.uniform(size=(1, 10, 20, 24)))}
    heights = []
    for slices_apart in (1, 4):
        three_views(rows, tmp_path / "views.png", "Heads", (slices_apart, 1, 1))
        heights.append(np.asarray(Image.open(tmp_path / "views.png").convert("L")).shape[0])
    higher = (
        2 * 2 * 10 * 3 * 1.9 / 24 * 110
    )  # two cuts in two rows, 30 units higher, 24 units on 1.9 inches of 110 dots
    assert heights[1] - heights[0] == pytest.approx(higher, rel=0.02)
    contact_sheet(rows["real"][0], tmp_path / "sheet.png", "A head", columns=5)
    assert Image.open(tmp_path / "sheet.png").size[0] == pytest.approx(5 * 1.9 * 110, rel=0.02)
