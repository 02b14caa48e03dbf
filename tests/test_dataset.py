"""Slices in: order, positions, the cache, the frame, the cohort."""

import os

import numpy as np
import pytest
import torch
from conftest import draw_slices
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from dataset import Frame, Split, find_frame
from sources import cohort, images
from sources.cohort import load_cohort
from sources.slice_set import load_slice_set


def frame_of(images: np.ndarray, multiple: int) -> Frame:
    return find_frame(images, multiple)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([2, 4, 8, 16]), st.data())
def test_frame_in_and_out_is_lossless(height, width, multiple, data):
    images = np.zeros((3, height, width), np.uint8)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    images[:, top:bottom, left:right] = np.random.default_rng(0).integers(1, 256, (3, bottom - top, right - left))
    frame = frame_of(images, multiple)
    assert frame.height % multiple == 0 and frame.width % multiple == 0
    assert frame.height < bottom - top + multiple and frame.width < right - left + multiple
    whole = torch.from_numpy(images)
    assert torch.equal(frame.pad(frame.crop(whole)), whole)


def test_content_outside_the_frame_is_lost_and_stays_lost():
    train = np.zeros((1, 32, 32), np.uint8)
    train[:, 8:16, 8:16] = 200
    frame = find_frame(train, 8)
    other = torch.zeros(1, 32, 32)
    other[:, 30, 30] = 1
    assert frame.pad(frame.crop(other)).sum() == 0


def test_frame_refuses_other_sizes_and_black_slices():
    frame = Frame(0, 0, 8, 8, 16, 16)
    with pytest.raises(UserError, match="expected images of 16x16"):
        frame.crop(torch.zeros(1, 1, 15, 16))
    with pytest.raises(UserError, match="entirely black"):
        find_frame(np.zeros((2, 16, 16), np.uint8), 8)


def test_natural_order_subjects_and_positions(tmp_path):
    data = load_slice_set(draw_slices(tmp_path / "d", "train", range(2), slices=12), tmp_path / "cache")
    train = data.splits["train"]
    assert train.names[:3] == ["case_000_slice_0.nii.png", "case_000_slice_1.nii.png", "case_000_slice_2.nii.png"]
    assert train.subjects == ["000"] * 12 + ["001"] * 12
    assert list(train.numbers[:12]) == list(range(12))
    assert train.positions[0] == 0 and train.positions[11] == 1
    assert data.slices_per_subject == 12
    for name, image in zip(train.names, train.images):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "d" / "keras_png_slices_train" / name)), image)


def test_missing_splits_are_said(tmp_path):
    data = load_slice_set(draw_slices(tmp_path / "d", "train", range(2)), tmp_path / "cache")
    assert list(data.splits) == ["train"]
    assert [note.split(" in ")[0] for note in data.notes] == ["no validate split", "no test split"]
    assert data.best_split("test", "validate")[0] == "train"


def test_cache_is_reused_and_a_changed_folder_is_noticed(slices, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    before = np.array(load_slice_set(slices, cache).splits["train"].images)
    decoded = []
    original = images.decode_pages
    monkeypatch.setattr(images, "decode_pages", lambda path, *how: decoded.append(path.name) or original(path, *how))
    again = load_slice_set(slices, cache).splits["train"].images
    assert not decoded and isinstance(again, np.memmap) and np.array_equal(before, again)

    changed = slices / "keras_png_slices_train" / "case_001_slice_2.nii.png"
    Image.fromarray(np.full((40, 56), 77, np.uint8)).save(changed)
    os.utime(changed, ns=(1, 1))
    assert (load_slice_set(slices, cache).splits["train"].images[6] == 77).all()

    (slices / "keras_png_slices_train" / "case_003_slice_3.nii.png").unlink()
    assert len(load_slice_set(slices, cache).splits["train"]) == 15


def test_damaged_cache_is_made_anew(slices, tmp_path):
    cache = tmp_path / "cache"
    before = np.array(load_slice_set(slices, cache).splits["train"].images)
    for path in cache.glob("*train*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    assert np.array_equal(load_slice_set(slices, cache).splits["train"].images, before)


def test_image_size_resamples(slices, tmp_path):
    images = load_slice_set(slices, tmp_path / "cache", image_size=24).splits["train"].images
    assert images.shape == (16, 24, 24)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1", "I;16"])
def test_other_image_modes_become_gray(slices, tmp_path, mode):
    gray = np.where(np.mgrid[:40, :56][0] < 20, 0, 255).astype(np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    image.save(slices / "keras_png_slices_train" / "case_000_slice_0.nii.png")
    assert np.array_equal(load_slice_set(slices, tmp_path / "cache").splits["train"].images[0], gray)


def test_a_subject_in_two_splits_is_refused(slices, tmp_path):
    draw = slices / "keras_png_slices_test"
    (draw / "case_006_slice_0.nii.png").rename(draw / "case_001_slice_0.nii.png")
    with pytest.raises(UserError, match="subject 001 is in both the train and the test split"):
        load_slice_set(slices, tmp_path / "cache")


@pytest.mark.parametrize(
    "breakage, message",
    [
        (
            lambda train: (train / "case_000_slice_0.nii.png").write_bytes(b"no image"),
            "case_000_slice_0.nii.png: not a readable",
        ),
        (
            lambda train: Image.fromarray(np.ones((8, 8), np.uint8)).save(train / "case_009_slice_0.nii.png"),
            r"case_009_slice_0.nii.png: 8x8 pixels, but .* has 40x56",
        ),
        (lambda train: (train / "holiday.png").write_bytes(b""), "holiday.png: unexpected name"),
    ],
)
def test_bad_files_are_named(slices, tmp_path, breakage, message):
    breakage(slices / "keras_png_slices_train")
    with pytest.raises(UserError, match=message):
        load_slice_set(slices, tmp_path / "cache")


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_slice_set(tmp_path / "nowhere", tmp_path / "cache")
    with pytest.raises(UserError, match="no train slices found"):
        load_slice_set(tmp_path, tmp_path / "cache")


def test_evenly_meets_every_position():
    numbers = np.tile(np.arange(32), 35)
    split = Split(np.zeros((1120, 1, 1), np.uint8), [""] * 1120, [""] * 1120, numbers, numbers / 31)
    assert set(split.evenly(256).numbers) == set(range(32))
    assert len(split.evenly(5000)) == 1120


def test_cohort_is_seeded_varied_and_split_by_subject(tmp_path):
    data = load_cohort(32, tmp_path, subjects={"train": 2, "validate": 1, "test": 1})
    again = cohort.draw_subject(1, 32)
    train = data.splits["train"]
    assert np.array_equal(train.images[32:], again)
    assert not np.array_equal(train.images[:32], again)
    assert "OASIS" not in data.title
    subjects = [set(split.subjects) for split in data.splits.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 4
    middle = train.images[16]
    assert middle[0].sum() == middle[:, 0].sum() == 0, "zero padding"
    assert 0.1 < (middle > 0).mean() < 0.6, "a head, not noise nor nothing"
