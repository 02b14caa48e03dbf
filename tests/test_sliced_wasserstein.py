"""Known answers of the sliced Wasserstein distance."""

import math

import pytest
import torch

from scoring.realism import sliced_wasserstein


def distances(first: torch.Tensor, second: torch.Tensor, seed: int = 0) -> list[float]:
    return sliced_wasserstein(first, second, torch.Generator().manual_seed(seed))


def test_brightness_and_contrast_common_to_both_sets_are_no_distance():
    first, second = torch.rand(2, 12, 40, 48)
    first = first**2
    for contrast, brightness in ((0.1, 0.0), (5.0, 0.0), (0.5, 3.0)):
        changed = distances(contrast * first + brightness, contrast * second + brightness)
        assert changed == pytest.approx(distances(first, second), rel=1e-3, abs=0.1)


@pytest.mark.parametrize("strength, seed", [(0.5, 0), (3.0, 0), (3.0, 1)])
def test_noise_of_other_strength_is_apart_by_its_strength_in_units_of_the_second_set(strength, seed):
    """Projections of standardised noise have the standard deviation 1, those of noise k times as strong k: between two such
    normal distributions the distance is |k - 1| times the mean of |z|, whichever directions are drawn."""
    noise, other = torch.randn(2, 20, 24, 31)
    expected = 1000 * abs(strength - 1) * math.sqrt(2 / math.pi)
    assert distances(10 * strength * noise, 10 * other, seed)[0] == pytest.approx(expected, rel=0.05)
    assert distances(noise, other, seed)[0] < 80


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_difference_of_one_kind_alone_is_seen_from_many_sides(seed):
    """Brighter by one standard deviation everywhere: each direction sees a share of it, from 0 to 3 and |z| on average."""
    noise = torch.randn(20, 24, 31)
    assert distances(noise + 1, noise, seed)[0] == pytest.approx(1000 * math.sqrt(2 / math.pi), rel=0.15)


def test_the_second_set_is_the_yardstick():
    weak, strong = torch.randn(20, 24, 24), 4 * torch.randn(20, 24, 24)
    assert distances(strong, weak)[0] == pytest.approx(4 * distances(weak, strong)[0], rel=0.1)
