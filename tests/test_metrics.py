"""Scores against independent implementations and known answers."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dataset import Frame, Split
from scoring.bits import marginal_bits
from scoring.metrics import PERFECT_PSNR, CodeUsage, code_lengths, fine_power, psnr, ssim
from scoring.slices import score_split
from vqvae import VQVAE


def padded_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images a slice with a zero border as wide as the window, as OASIS slices have."""
    first, second = torch.zeros(2, 3, 1, 64, 48)
    content = torch.rand(3, 1, 40, 24)
    first[:, :, 12:52, 12:36] = content
    second[:, :, 12:52, 12:36] = (content + 0.1 * torch.randn(3, 1, 40, 24)).clamp(0, 1)
    return first, second


def test_ssim_equals_scikit_image_over_every_pixel():
    first, second = padded_pair()
    expected = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            full=True,
        )[1].mean()
        for a, b in zip(first[:, 0], second[:, 0])
    ]
    assert np.allclose(ssim(first, second), expected, atol=1e-5)


def test_psnr_equals_scikit_image():
    first, second = padded_pair()
    expected = [
        peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1.0) for a, b in zip(first[:, 0], second[:, 0])
    ]
    assert np.allclose(psnr(first, second), expected, atol=1e-3)
    assert (psnr(first, first) == PERFECT_PSNR).all()


@pytest.mark.parametrize("height, width", [(1, 1), (8, 40), (40, 8), (22, 21)])
def test_ssim_of_small_slices_is_finite_and_one_for_equal_ones(height, width):
    images = 0.4 * torch.rand(2, 1, height, width)
    assert torch.allclose(ssim(images, images), torch.ones(2), atol=1e-5)
    assert (ssim(images, 1 - images) < 0.99).all()


def test_usage_of_known_codes():
    uniform = CodeUsage.of(torch.arange(8).repeat(5), 8)
    assert uniform.used == 8 and uniform.perplexity == pytest.approx(8)
    single = CodeUsage.of(torch.full((4, 4), 3), 8)
    assert single.used == 1 and single.perplexity == pytest.approx(1)


def test_bits_of_uniform_logits_are_log2_k():
    codes = torch.randint(0, 32, (3, 4, 5))
    assert torch.allclose(code_lengths(torch.zeros(3, 32, 4, 5), codes), torch.full((3, 4, 5), 5.0))
    certain = torch.nn.functional.one_hot(codes, 32).permute(0, 3, 1, 2) * 100.0
    assert (code_lengths(certain, codes) < 1e-6).all()


def test_marginal_bits_of_places_that_never_change_are_few():
    codes = torch.arange(12).view(1, 3, 4).repeat(500, 1, 1)
    assert marginal_bits(codes, codes[:5], 12) < 0.15
    random = torch.randint(0, 12, (5000, 3, 4))
    assert marginal_bits(random, random[:100], 12) == pytest.approx(math.log2(12), abs=0.05)


def test_split_scores_are_means_over_slices_not_batches():
    model = VQVAE(16, 8, 8, width=8, blocks=1).eval()
    images = np.random.default_rng(0).integers(0, 256, (37, 24, 24), dtype=np.uint8)
    split = Split(images, ["a"] * 37, [""] * 37)
    frame = Frame(0, 0, 24, 24, 24, 24)
    scores = score_split(model, None, split, frame)
    slices = split.batch(np.arange(37))
    decoded = model.decode(model.encode(slices))
    assert scores["ssim"] == pytest.approx(ssim(decoded, slices).mean().item(), abs=1e-6)
    assert scores["psnr"] == pytest.approx(psnr(decoded, slices).mean().item(), abs=1e-4)
    assert scores["slices"] == 37 and scores["subjects"] == 1 and "bits_per_code" not in scores
    assert scores["bits_per_slice_fixed"] == pytest.approx(9 * 4)


def test_fine_power_keeps_fine_gratings_and_drops_coarse_ones():
    columns = torch.arange(64.0)
    fine, coarse = (
        (0.5 + 0.4 * torch.cos(2 * math.pi * cycles * columns / 64)).expand(1, 1, 48, 64) for cycles in (20, 8)
    )
    assert fine_power(fine).item() == pytest.approx(0.4**2 / 2 * 48 * 64, rel=1e-4)
    assert fine_power(coarse).item() == pytest.approx(0, abs=1e-3)
    assert fine_power(torch.cat([fine, fine / 2]))[1] == pytest.approx(fine_power(fine).item() / 4, rel=1e-4)
