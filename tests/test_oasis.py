"""Facts of the real OASIS-1 slices; run with OASIS_SLICES=data/keras_png_slices_data."""

import os

import numpy as np
import pytest
import torch

from dataset import find_frame
from sources.slice_set import load_slice_set

ROOT = os.environ.get("OASIS_SLICES")
pytestmark = pytest.mark.skipif(
    ROOT is None, reason="set OASIS_SLICES to a keras_png_slices_data folder to run on real slices"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_slice_set(ROOT, tmp_path_factory.mktemp("cache"))


def test_slices_and_subjects(data):
    for split in data.splits.values():
        assert split.images.shape[1:] == (256, 256)
        assert len(split) == 32 * len(set(split.subjects))
        assert list(split.numbers[:32]) == list(range(32))
    assert data.slices_per_subject == 32


def test_frame_loses_nothing_anywhere(data):
    frame = find_frame(data.splits["train"].images, 16)
    assert (frame.top, frame.left, frame.height, frame.width) == (40, 24, 176, 208)
    for split in data.splits.values():
        some = torch.from_numpy(np.array(split.images[::7]))
        assert torch.equal(frame.pad(frame.crop(some)), some)
