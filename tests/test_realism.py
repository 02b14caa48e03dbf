"""Distances of sets of slices: real ones sit at the floor, and each kind of bad set is caught by the score meant for it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring.memorisation import CodeSearch, ImageSearch, Slices, audit_copies
from scoring.metrics import bootstrap_interval, mae, radial_power
from scoring.realism import (
    Mirror,
    SliceSet,
    asymmetry,
    find_mirror,
    halves,
    intensity_distance,
    laplacian_pyramid,
    matched,
    realism,
)

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
    return heads(range(24))


def test_each_bad_set_is_caught_by_its_score_and_real_slices_by_none(real):
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
    for name, (images, caught_by) in bad.items():
        scores = realism(alone(images, others.numbers), real, halvings=1)
        for score in caught_by:
            assert scores[score].score > 3 * scores[score].floor, (name, score, scores[score])
    scores = realism(heads(range(100, 160)), real, halvings=4)
    for name, value in scores.items():
        assert value.score < 2 * value.floor + 0.02, (name, value)


def test_realism_is_seeded_and_leaves_the_global_generator_alone(real):
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


def test_intervals_resample_subjects():
    values, subjects = np.repeat([0.0, 1.0], 50), ["a"] * 50 + ["b"] * 50
    assert bootstrap_interval(values, subjects) == (0.0, 1.0)
    low, high = bootstrap_interval(values, [str(i) for i in range(100)])
    assert 0.38 < low < 0.42 and 0.58 < high < 0.62
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
