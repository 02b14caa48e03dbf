"""Known answers of scores of slices: which pixels, which frequencies, which units."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset import Frame, Split
from pixelcnn import GatedPixelCNN
from scoring import slices
from scoring.bits import code_bits, lossless_bits
from scoring.metrics import code_lengths, fine_power, mean_interval, radial_power
from scoring.realism import Mirror, SliceSet, asymmetry, pair_similarity
from scoring.slices import reconstruction_summary, slice_scores


def grating(rows: int, columns: int, side: int = 64) -> Tensor:
    """A wave of so many cycles down and across a square slice, `[1, 1, side, side]`; its power is side^2 / 8."""
    place = torch.arange(side) / side
    return 0.5 + 0.5 * torch.cos(2 * math.pi * (rows * place[:, None] + columns * place))[None, None]


@pytest.mark.parametrize(
    "rows, columns, counted",
    [(0, 15, False), (0, 17, True), (17, 0, True), (12, 12, True), (0, 31, True), (24, 24, False), (0, 32, False)],
)
def test_fine_power_is_that_between_a_quarter_and_half_of_the_sampling_frequency(rows, columns, counted):
    expected = 64 * 64 / 8 if counted else 0.0
    assert fine_power(grating(rows, columns)).item() == pytest.approx(expected, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("height, width", [(64, 64), (40, 72)])
def test_white_noise_has_its_variance_as_power_at_every_frequency(height, width):
    power = radial_power(3 * torch.randn(200, 1, height, width)).mean(0)
    assert len(power) == min(height, width) // 2
    assert torch.allclose(power, torch.full_like(power, 9.0), rtol=0.15)
    assert power.mean() == pytest.approx(9, rel=0.01)


def test_an_interval_over_many_subjects_is_that_of_the_normal_distribution():
    """95 %: 1.96 standard errors to either side of the mean, and subjects of many slices count as one each."""
    rng = np.random.default_rng(0)
    each = rng.normal(3, 1, 400)
    values, subjects = np.repeat(each, 5), [str(i // 5) for i in range(2000)]
    low, high = mean_interval(values, subjects)
    error = each.std() / 20
    assert (low + high) / 2 == pytest.approx(each.mean(), abs=0.1 * error)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06), "1.64 at 90 %, .88 of slices"


def scores_of(images: Tensor, decoded: Tensor, frame: Frame, monkeypatch) -> dict[str, np.ndarray]:
    monkeypatch.setattr(slices, "reconstructions", lambda *_: [(images, decoded)])
    split = Split(np.zeros((len(images), *images.shape[2:]), np.uint8), ["a"] * len(images), [""] * len(images))
    return slice_scores(None, split, torch.zeros(1), frame)


def test_foreground_is_what_is_brighter_than_background_and_the_frame_is_the_frame(monkeypatch):
    """Errors of .1 in the foreground, of .2 in the frame's background, of .4 outside the frame: each score sees its own."""
    images = torch.full((2, 1, 40, 40), 15.5 / 255)
    images[:, :, 10:20, 10:30] = 16.5 / 255
    frame = Frame(8, 8, 24, 24, 40, 40)
    decoded = images + 0.4
    decoded[:, :, 8:32, 8:32] = images[:, :, 8:32, 8:32] + 0.2
    decoded[:, :, 10:20, 10:30] = images[:, :, 10:20, 10:30] + 0.1
    scores = scores_of(images, decoded, frame, monkeypatch)
    foreground, inside, whole = 200, 576, 1600
    in_frame = (0.1 * foreground + 0.2 * (inside - foreground)) / inside
    on_all = (in_frame * inside + 0.4 * (whole - inside)) / whole
    assert scores["mae_foreground"] == pytest.approx(0.1, abs=1e-6)
    assert scores["mae_frame"] == pytest.approx(in_frame, abs=1e-6)
    assert scores["mae"] == pytest.approx(on_all, abs=1e-6)
    assert scores["psnr_foreground"] == pytest.approx(20, abs=1e-3)
    assert (scores["psnr_foreground"] > scores["psnr_frame"]).all() and (scores["psnr_frame"] > scores["psnr"]).all()


def test_sharpness_is_the_share_of_fine_power_that_is_left(monkeypatch):
    images = torch.rand(3, 1, 32, 32)
    scores = scores_of(images, 0.5 + 0.5 * (images - 0.5), Frame(0, 0, 32, 32, 32, 32), monkeypatch)
    assert reconstruction_summary(scores, ["a", "b", "c"])["sharpness"] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("num_codes, bits", [(256, 8), (257, 16)])
def test_uncompressed_codes_take_the_bits_of_their_bytes(num_codes, bits):
    codes = torch.randint(0, num_codes, (3, 4, 5), dtype=torch.int16)
    assert lossless_bits(codes, num_codes, lambda data: data) == bits
    assert lossless_bits(codes, num_codes, lambda data: data[: len(data) // 2]) == bits / 2


def test_bits_of_many_maps_are_those_of_each_alone():
    """More maps than are scored at a time, each with a position of its own."""
    prior = GatedPixelCNN(5, 4, 1, 3, marginal=(2, 3)).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter)
    codes, position = torch.randint(0, 5, (40, 2, 3)), np.linspace(0, 1, 40, dtype=np.float32)
    of_maps, by_place = code_bits(prior, codes, {"position": position})
    with torch.inference_mode():
        each = [
            code_lengths(prior(codes[i : i + 1], torch.from_numpy(position[i : i + 1])), codes[i : i + 1])
            for i in range(40)
        ]
    assert of_maps == pytest.approx([float(one.mean()) for one in each], rel=1e-4)
    assert by_place == pytest.approx(torch.cat(each).mean(0).numpy(), rel=1e-4)


def test_asymmetry_is_a_share_that_brightness_does_not_change():
    images = torch.rand(3, 20, 24)
    whole = asymmetry(images, Mirror(0, 0))
    torch.testing.assert_close(asymmetry(0.1 * images, Mirror(0, 0)), whole)
    half = torch.zeros(1, 20, 24)
    half[:, :10] = 1  # nothing of it on the other side
    assert asymmetry(half, Mirror(0, 0)).item() == pytest.approx(2)


def test_variety_compares_different_people():
    """Slices of one person that are all alike say nothing of how varied people are."""
    people = torch.rand(4, 1, 30, 40)
    alike = SliceSet(
        people.expand(-1, 3, -1, -1).flatten(0, 1), [str(i // 3) for i in range(12)], np.tile([0, 0, 0], 4)
    )
    likeness = pair_similarity(alike, torch.Generator().manual_seed(0))
    assert len(likeness) >= 4 and likeness.max() < 0.5
