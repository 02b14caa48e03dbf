"""The classifier two-sample test: whose slices train, stop and test, what it finds, and what it does not invent."""

import numpy as np
import pytest
import torch

from scoring.classifier import FOLDS, HEAD, PATCH, PATCHES, area_under_curve, folds, patches_within, two_sample_auc
from scoring.metrics import FOREGROUND
from scoring.sets import SliceSet, Untaken


def people(count: int, slices: int = 12, first: int = 0) -> SliceSet:
    """Slices of noise that is smooth and strong, each person's on a picture of their own: easy to know a person by."""
    images, groups = [], []
    for person in range(first, first + count):
        generator = torch.Generator().manual_seed(person)
        own = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 5, generator=generator), (48, 40), mode="bilinear")[0]
        images.append((own + 0.1 * torch.rand(slices, 48, 40, generator=generator)).clamp(0, 1))
        groups += [str(person)] * slices
    return SliceSet(torch.cat(images), groups)


def grainy(slices: SliceSet, strength: float) -> SliceSet:
    return SliceSet(slices.images + strength * torch.randn(slices.images.shape), slices.groups)


def test_a_little_grain_on_the_same_slices_is_found():
    """As reconstructions are of the slices they are compared with: nobody may train in one set and test in the other."""
    slices = people(10)
    assert two_sample_auc(slices, grainy(slices, 0.04), seed=0).slices > 0.9


def test_patches_say_how_wrong_a_slice_is_where_whole_slices_are_always_found():
    slices = people(10)
    little, much = (two_sample_auc(slices, grainy(slices, strength), seed=0) for strength in (0.015, 0.03))
    assert min(little.slices, much.slices) > 0.95
    assert 0.55 < little.patches < much.patches - 0.1


def test_patches_lie_within_the_head_of_their_own_slice():
    images = torch.zeros(3, 1, 48, 40)
    images[0, :, 8:40, 4:36] = 0.3
    images[2, :, :, :18] = 0.7  # 33 x 3 places, and those that stick out a little
    patches, of_slice = patches_within(images, np.random.default_rng(0))
    assert of_slice.tolist() == [0] * PATCHES + [2] * PATCHES, "a slice without a head has none"
    assert patches.shape[1:] == (1, PATCH, PATCH)
    assert ((patches > FOREGROUND).float().mean((1, 2, 3)) >= HEAD).all()
    own = torch.tensor([0.3] * PATCHES + [0.7] * PATCHES)
    assert torch.equal(patches.flatten(1).max(1).values, own)
    assert len({patch.numpy().tobytes() for patch in patches[:PATCHES]}) > 1, "at different places"


def test_what_is_the_same_is_not_told_apart():
    slices = people(10)
    assert two_sample_auc(slices, slices, seed=0) == pytest.approx((0.5, 0.5), abs=0.02)
    apart = [two_sample_auc(people(9, first=20 * i), people(9, first=20 * i + 10), seed=i).slices for i in range(3)]
    assert 0.25 < np.mean(apart) < 0.7, "a network that knows people says nothing of others"


def test_grain_on_other_peoples_slices_and_on_single_samples_is_found():
    slices, others = people(10), grainy(people(10, first=50), 0.06)
    assert two_sample_auc(slices, others, seed=0).slices > 0.9
    alone = SliceSet(others.images, [f"sample {i}" for i in range(len(others))])
    assert two_sample_auc(slices, alone, seed=0).slices > 0.9


@pytest.mark.parametrize("second", [range(7), range(20, 29), range(4, 12), range(3, 6)])
def test_a_person_is_in_one_part_and_every_slice_is_tested_once(second):
    first, second = ([str(person) for person in some for _ in range(2 + person % 3)] for some in (range(7), second))
    groups, tested = np.array([*first, *second]), []
    labels = np.array([0] * len(first) + [1] * len(second))
    for parts in folds(first, second, np.random.default_rng(0)):
        names = [set(groups[part.numpy()]) for part in parts]
        assert sum(map(len, names)) == len(set.union(*names)) == len(set(groups))
        assert all(set(labels[part.numpy()]) == {0, 1} for part in parts)
        tested += parts[2].tolist()
    assert sorted(tested) == list(range(len(groups)))


def test_too_few_people_are_said():
    with pytest.raises(Untaken, match=f"needs {FOLDS} of each"):
        two_sample_auc(people(2), people(5, first=9), seed=0)
    small = SliceSet(torch.rand(9, 20, 40), [str(i) for i in range(9)])
    with pytest.raises(Untaken, match="20x40 pixels"):
        two_sample_auc(small, small, seed=0)


def test_area_under_the_curve_counts_ties_for_half():
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert area_under_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1
    assert area_under_curve(torch.tensor([1e9, 2e9, 2e9, 3e9]), labels) == pytest.approx(0.875)
    assert area_under_curve(torch.zeros(4), labels) == 0.5
