"""What is asked of the prior when slices are drawn."""

import numpy as np
import pytest
import torch

from inference.drawing import Request, spread_numbers


def test_slice_numbers_become_positions_from_lowest_to_highest():
    request = Request(5, np.array([0, 31, 8, 16, 2]))
    known = request.known(0, 5, (0, 31))
    assert known.position.tolist() == pytest.approx([0, 1, 8 / 31, 16 / 31, 2 / 31])
    assert Request(2, np.array([100, 115])).known(0, 2, (100, 160)).position.tolist() == [0, 0.25]
    assert Request(3).known(0, 3, None).position is None
    assert Request(2, np.array([0, 0])).known(0, 2, (0, 0)).position.tolist() == [0, 0], "volumes of a single slice"


def test_every_batch_is_told_of_its_own_slices():
    request = Request(100, np.arange(100), where={"age": 0.25, "sex": 1.0})
    parts = [request.known(start, size, (0, 99)) for start, size in ((0, 64), (64, 36))]
    assert torch.cat([part.position for part in parts]).tolist() == pytest.approx((np.arange(100) / 99).tolist())
    for part, size in zip(parts, (64, 36)):
        assert {name: values.tolist() for name, values in part.conditions.items()} == {
            "age": [0.25] * size,
            "sex": [1.0] * size,
        }


def test_slices_are_spread_over_the_volume_or_go_through_it_again_and_again():
    assert spread_numbers(3, np.arange(31)).tolist() == [0, 15, 30]
    assert spread_numbers(7, np.array([100, 105, 110])).tolist() == [100, 105, 110, 100, 105, 110, 100]
