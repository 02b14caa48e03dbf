"""Where the content frame lies, and what a batch of slices is."""

import numpy as np
import pytest
import torch

from dataset import Split, find_frame


def content(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (60, 70)) -> np.ndarray:
    images = np.zeros((1, *size), np.uint8)
    images[0, top:bottom, left:right] = 1
    return images


@pytest.mark.parametrize("length", range(17, 25))
def test_the_frame_grows_by_as_much_on_either_side(length):
    frame = find_frame(content(20, 30, 20 + length, 30 + length), 8)
    assert frame.height == frame.width == 24
    for start, first in ((frame.top, 20), (frame.left, 30)):
        before, after = first - start, start + 24 - (first + length)
        assert abs(before - after) <= 1 and before + after == 24 - length


def test_the_frame_stays_inside_the_slice_where_it_fits():
    low, high = find_frame(content(0, 1, 17, 18), 8), find_frame(content(43, 52, 60, 69), 8)
    assert (low.top, low.left) == (0, 0) and (high.top, high.left) == (36, 46)


@pytest.mark.parametrize("where", [0, 511, 512, 1300])
def test_content_of_every_slice_counts(where):
    images = np.zeros((1301, 16, 16), np.uint8)
    images[where, 3, 12] = 1
    images[700, 9, 2] = 1
    frame = find_frame(images, 1)
    assert (frame.top, frame.left, frame.height, frame.width) == (3, 2, 7, 11)


def test_white_is_one_and_a_part_keeps_what_is_known_of_its_slices():
    images = np.arange(256, dtype=np.uint8).reshape(16, 4, 4)
    split = Split(images, [str(i) for i in range(16)], [str(i) for i in range(16)], conditions={"age": np.arange(16.0)})
    batch = split.batch(np.array([15, 0]))
    assert batch.shape == (2, 1, 4, 4) and batch[0, 0, 3, 3] == 1 and batch[1, 0, 0, 0] == 0
    assert torch.equal(split.batch(np.array([7]))[0, 0] * 255, torch.arange(112.0, 128.0).view(4, 4))
    part = split.evenly(4)
    assert part.conditions["age"].tolist() == [float(name) for name in part.names] == [0, 5, 10, 15]
    assert np.array_equal(part.images, images[[0, 5, 10, 15]])
