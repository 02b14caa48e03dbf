"""Distances of sets of slices: real ones sit at the floor, and each kind of bad set is caught by the score meant for it."""

import numpy as np
import pytest
import torch
from scipy.stats import sem, wasserstein_distance
from scipy.stats import t as student_t
from torch import Tensor

from scoring.memorisation import FEWEST_HELD_OUT, CodeSearch, ImageSearch, Slices, audit_copies, thresholds
from scoring.metrics import mae, mean_interval, radial_power
from scoring.realism import (
    Mirror,
    asymmetry,
    find_mirror,
    intensity_distance,
    laplacian_pyramid,
    realism,
)
from scoring.sets import SliceSet, halves, matched
from scoring.texture import NAMES

NUMBERS = 4


def heads(people: range, size: tuple[int, int] = (64, 48)) -> SliceSet:
    """Bright ellipses with texture, a person each, which shrink with the slice number; nearly symmetric across rows."""
    images, groups, numbers = [], [], []
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    for person in people:
        generator = torch.Generator().manual_seed(person)
        height, width = 0.6 + 0.2 * torch.rand(2, generator=generator)
        texture = 0.15 * torch.rand(size, generator=generator)
        for number in range(NUMBERS):
            inside = (rows / height) ** 2 + (columns / width) ** 2 < (1 - 0.1 * number) ** 2
            folds = 0.5 + 0.3 * torch.cos(12 * rows.abs() + number) * torch.cos(9 * columns) + 0.2 * columns
            images.append(inside * (folds + texture * torch.rand(size, generator=generator)).clamp(0.2, 1))
            groups.append(str(person))
            numbers.append(number)
    return SliceSet(torch.stack(images), groups, np.array(numbers))


def alone(images: Tensor, numbers: np.ndarray) -> SliceSet:
    """As generated slices are: each a group of its own."""
    return SliceSet(images, [f"sample {i}" for i in range(len(images))], numbers)


def shuffled(images: Tensor, side: int = 8) -> Tensor:
    """The same patches at other places."""
    patches = images.unfold(1, side, side).unfold(2, side, side)
    rows, columns = patches.shape[1:3]
    mixed = patches.flatten(1, 2)[:, torch.randperm(rows * columns)].unflatten(1, (rows, columns))
    return mixed.permute(0, 1, 3, 2, 4).reshape(images.shape)


@pytest.fixture(scope="module")
def real() -> SliceSet:
    return heads(range(1000, 1024))  # whose means lie near their population's


def test_each_bad_set_is_caught_by_its_score_and_real_slices_by_none(real, monkeypatch):
    monkeypatch.setattr("scoring.classifier.EPOCHS", 3)
    torch.manual_seed(0)
    others = heads(range(100, 112))
    blurred = torch.nn.functional.avg_pool2d(others.images[:, None], 3, 1, 1)[:, 0]
    one = others.images[:NUMBERS].repeat(12, 1, 1)
    lopsided = others.images * torch.linspace(0.6, 1.3, 64)[:, None]
    bad = {
        "noise": (
            torch.rand(others.images.shape),
            ("swd_0", "histogram", "spectrum", "area", "symmetry", "classifier"),
        ),
        "one repeated image": (one, ("variety",)),
        "blurred": (blurred, ("swd_0", "spectrum", "classifier")),
        "shuffled patches": (shuffled(others.images), ("swd_1", "symmetry", "classifier")),
        "lopsided": (lopsided, ("symmetry",)),
    }
    floors = None
    for name, (images, caught_by) in bad.items():
        scores = realism(alone(images, others.numbers), real, halvings=2, floors=floors)
        floors = {score: value.floor for score, value in scores.items()}
        for score in caught_by:
            assert scores[score].score > 3 * scores[score].floor, (name, score, scores[score])
    scores = realism(heads(range(100, 160)), real, halvings=4)
    for name, value in scores.items():
        assert value.score < 3 * value.floor + 0.05, (name, value)


def test_realism_is_seeded_and_leaves_the_global_generator_alone(real, monkeypatch):
    monkeypatch.setattr("scoring.classifier.EPOCHS", 2)
    few = heads(range(50, 54))
    before = torch.get_rng_state()
    first, again = (realism(few, real, seed=3, halvings=1) for _ in range(2))
    assert first == again and torch.equal(before, torch.get_rng_state())
    assert realism(few, real, seed=4, halvings=1) != first
    floors = {name: value.floor for name, value in first.items()}
    assert realism(few, real, seed=3, halvings=1, floors=floors) == first
    with pytest.raises(ValueError, match="at least 4 subjects"):
        realism(few, heads(range(3)))


def test_halves_keep_subjects_whole_and_matched_sets_have_the_same_positions(real):
    rng = np.random.default_rng(0)
    first, second = halves(real, rng)
    assert not set(first.groups) & set(second.groups) and len(first) + len(second) == len(real)
    some = real[np.array([0, 1, 2, 4, 5, 9])]  # numbers 0, 1, 2, 0, 1, 1
    one, other = matched(some, second, rng)
    assert len(one) == len(other) == 6
    assert np.array_equal(np.sort(one.numbers), np.sort(other.numbers))


def test_samples_from_the_population_lie_at_the_floor_on_average(monkeypatch):
    """18 subjects against 18: halves have the chance of who is in them on both sides, samples drawn one by one on one side."""

    def means_apart(first, second, *_):
        shown = [one.images.mean((1, 2)).numpy() for one in (first, second)]
        return {"mean": abs(shown[0].mean() - shown[1].mean()), "spread": wasserstein_distance(*shown)}

    monkeypatch.setattr("scoring.realism.distances", means_apart)
    monkeypatch.setattr("scoring.realism.TEXTURE_HALVINGS", 1)
    rng, found = np.random.default_rng(0), {"drawn": [], "people": []}
    for seed in range(150):

        def slices(people: int, each: int) -> SliceSet:
            values = rng.normal(size=(people, 1)) + 0.5 * rng.normal(size=(people, each))
            images = torch.from_numpy(values.reshape(-1, 1, 1)).expand(-1, 4, 4)
            names = [f"{rng.random()}" for _ in range(people) for _ in range(each)] if each == 1 else None
            return SliceSet(images, names or [str(i) for i in range(people) for _ in range(each)], texture={})

        real = slices(36, 16)
        found["drawn"].append(realism(slices(500, 1), real, seed, halvings=1))
        found["people"].append(realism(slices(18, 16), real, seed, halvings=1))
    for kind, scores in found.items():
        for name in ("mean", "spread"):
            score, floor = (np.mean([getattr(one[name], part) for one in scores]) for part in ("score", "floor"))
            assert 0.85 < score / floor < 1.15, (kind, name, score / floor)


def test_scores_that_cannot_be_taken_are_left_out_with_a_note(real, monkeypatch):
    monkeypatch.setattr("scoring.classifier.EPOCHS", 2)  # what it finds is not asked here
    everything = set(realism(heads(range(100, 106)), real, halvings=1))
    assert {"swd_0", "variety", "histogram", "classifier"} < everything

    def left_out(samples: SliceSet, others: SliceSet = real) -> tuple[set[str], str]:
        notes: list[str] = []
        found = realism(samples, others, halvings=1, notes=notes)
        assert all(np.isfinite([value.score, value.floor]).all() for value in found.values())
        return everything - set(found), "; ".join(notes)

    few = heads(range(100, 101))  # a slice of each number: no two of the same
    missing, notes = left_out(alone(few.images, few.numbers))
    assert missing == {"variety"} and "variety is not scored: 0 pairs" in notes
    black = alone(torch.zeros(8, 64, 48), np.arange(8) % NUMBERS)
    missing, notes = left_out(black)
    assert {"histogram", *NAMES} & everything <= missing and "background" in notes
    missing, notes = left_out(alone(few.images, few.numbers + 50))
    assert missing == everything and "realism is not scored: no slice number" in notes
    small = heads(range(12), (16, 20))
    missing, notes = left_out(heads(range(20, 32), (16, 20)), small)
    assert {"swd_0", "variety", "classifier"} <= missing and "16x20 pixels" in notes
    missing, notes = left_out(heads(range(20, 24)), heads(range(4)))
    assert missing == {"classifier", "patch_classifier"} and "classifier is not scored: 2 and 2 subjects" in notes


def test_intensities_that_are_shifted_are_apart_by_the_shift():
    images = 0.2 + 0.5 * torch.rand(4, 30, 40)
    assert intensity_distance(images, images + 0.25) == pytest.approx(0.25 * 255, rel=1e-3)
    assert intensity_distance(images, images.flip(0)) == 0


def test_pyramid_separates_scales():
    columns = torch.arange(64.0)
    fine, coarse = ((torch.cos(2 * torch.pi * cycles * columns / 64)).expand(1, 64, 64) for cycles in (26, 2))
    of_fine, of_coarse = ([level.square().mean() for level in laplacian_pyramid(image)] for image in (fine, coarse))
    assert of_fine[0] > 10 * max(of_fine[1:]) and of_coarse[-1] > 10 * of_coarse[0]


def test_mirror_is_found_and_a_symmetric_head_has_no_asymmetry():
    image = torch.zeros(40, 30)
    image[5:25, 8:20] = torch.rand(20, 12)
    image[5:25] += image[5:25].flip(0)  # symmetric across row 14.5, five rows above the middle
    mirror = find_mirror(image)
    assert mirror == Mirror(0, -10) or torch.allclose(mirror(image), image)
    assert asymmetry(image[None], mirror).item() == pytest.approx(0, abs=1e-6)
    assert asymmetry(torch.rand(1, 40, 30), mirror).item() > 0.3


def test_radial_power_puts_a_grating_into_its_bin():
    columns = torch.arange(64.0)
    grating = torch.cos(2 * torch.pi * 10 * columns / 64).expand(1, 1, 64, 64)
    power = radial_power(grating)[0]
    assert len(power) == 32 and power.argmax() == 9, "bin i holds i to i + 1 cycles across the shorter side"


@pytest.mark.parametrize("subjects", [2, 4, 14, 35])
@pytest.mark.parametrize("even", [True, False])
def test_intervals_hold_the_mean_as_often_as_they_say(subjects, even):
    rng, held = np.random.default_rng(subjects), 0
    for _ in range(1000):
        counts = np.full(subjects, 6) if even else rng.integers(4, 9, subjects)
        owner = np.repeat(np.arange(subjects), counts)
        values = rng.normal(size=subjects)[owner] + rng.normal(size=len(owner))
        low, high = mean_interval(values, owner.astype(str), resamples=400)
        held += low < 0 < high
    assert 0.93 <= held / 1000 <= 0.97


def test_intervals_are_over_subjects():
    values = np.repeat([0.0, 1.0], 50)
    low, high = mean_interval(values, [str(i) for i in range(100)])
    assert 0.38 < low < 0.42 and 0.58 < high < 0.62
    ends = mean_interval(np.repeat([1.0, 2.0, 4.0], 5), ["a"] * 5 + ["b"] * 5 + ["c"] * 5)
    assert ends == pytest.approx(student_t.interval(0.95, 2, np.mean([1, 2, 4]), sem([1, 2, 4])))
    assert mean_interval(values, ["a"] * 100) is None, "one subject says nothing of others"
    assert mae(torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.25)).tolist() == [0.25, 0.25]


# --------------------------------------------------------------------------- copies


def in_parts(search, train):
    for part in train.split(70):
        search.look_at(part)
    return search.nearest()


def test_nearest_slices_are_those_of_a_plain_search():
    images, train = torch.rand(5, 6, 7), torch.rand(300, 6, 7)
    expected = (images[:, None] - train).square().mean((2, 3)).sqrt().min(1)
    found = in_parts(ImageSearch(images), train)
    assert torch.equal(found.index, expected.indices) and torch.allclose(found.distance, expected.values, atol=1e-4)
    codes, known = torch.randint(0, 4, (5, 3, 4)), torch.randint(0, 4, (300, 3, 4))
    found = in_parts(CodeSearch(codes), known)
    assert torch.allclose(found.distance, (codes[:, None] != known).float().mean((2, 3)).amin(1))


def test_copies_are_listed_and_others_are_not():
    codes = {name: torch.randint(0, 9, (count, 6, 5)) for name, count in (("train", 400), ("held", 300), ("new", 190))}
    smooth = torch.randn(9, 8, 8)  # what each code decodes to
    decoded = {name: smooth[maps].permute(0, 1, 3, 2, 4).reshape(len(maps), 48, 40) for name, maps in codes.items()}
    copies = torch.arange(0, 400, 40)
    audit = audit_copies(
        Slices(
            torch.cat([decoded["new"], decoded["train"][copies]]), torch.cat([codes["new"], codes["train"][copies]])
        ),
        Slices(decoded["held"], codes["held"]),
        [Slices(decoded["train"][some], codes["train"][some]) for some in (slice(0, 150), slice(150, 400))],
    )
    assert audit.listed[190:].all() and audit.listed[:190].float().mean() <= 0.02
    assert set(audit.closest(10).tolist()) == set(range(190, 200))
    assert torch.equal(audit.samples["codes"].index[190:], copies)


def test_copies_of_the_middle_do_not_pass_on_an_easier_position():
    """All slices of the top are alike, those of the middle are not: what is near there is not near here."""
    count = 3 * FEWEST_HELD_OUT
    top, middle = torch.zeros(1, 12, 10), torch.rand(count, 12, 10)
    numbers = np.repeat([9, 4], count)

    def slices() -> Slices:
        new = torch.cat([top + 0.04 * torch.rand(count, 12, 10), torch.rand(count, 12, 10)])
        return Slices(new, (40 * new[:, ::4, ::4]).long(), numbers)

    train = torch.cat([top, middle])
    train = Slices(train, (40 * train[:, ::4, ::4]).long())
    copies = middle[:20] + 0.1 * torch.rand(20, 12, 10)
    codes = (40 * middle[:20, ::4, ::4]).long()
    codes[:, 0] += 1
    copies = Slices(copies, codes, np.full(20, 4))
    others = slices()
    samples = Slices(*(torch.cat([a, b]) for a, b in ((copies.images, others.images), (copies.codes, others.codes))))
    samples = Slices(samples.images, samples.codes, np.concatenate([copies.numbers, numbers]))
    audit = audit_copies(samples, slices(), [train])
    assert audit.listed[:20].all() and audit.listed[20:].float().mean() <= 0.02
    assert set(audit.closest(20).tolist()) == set(range(20))


def test_thresholds_take_in_neighbouring_positions_as_far_as_they_have_to():
    numbers, distances = np.repeat(np.arange(5), 50), torch.arange(5.0).repeat_interleave(50)
    found = thresholds(distances, numbers, 2, np.array([0, 3]))
    assert found.tolist() == [0, 2], "of 0 and 1; of 2, 3 and 4"
    everything = distances.quantile(0.01)
    assert (thresholds(distances, None, 2, np.array([0, 3])) == everything).all()
    assert (thresholds(distances, numbers, 2, None) == everything).all()
    assert (thresholds(distances[:60], numbers[:60], 2, np.array([0, 99])) == 0).all()
