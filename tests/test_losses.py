"""Laws of the losses: each against an independent implementation or a known answer."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from dataset import find_frame
from models.sharp_decoder import SharpDecoder
from scoring.metrics import frequencies
from scoring.texture import NAMES
from training.reconstruction_loss import reconstruction_loss, window_ssim
from training.sharpen_stage import sharpness_scores
from training.texture_losses import CodeScore, SpectrumScore, TextureScore
from vqvae import VQVAE


@pytest.mark.parametrize("contrast", [0.02, 0.2, 1.0])
def test_window_ssim_is_scikit_images_at_every_second_pixel(contrast):
    """Also where contrast is so low that the constants decide."""
    images = contrast * torch.rand(3, 1, 23, 30)
    others = 0.3 * contrast * torch.rand(3, 1, 23, 30) + 0.7 * images
    maps = [
        structural_similarity(
            one.numpy(), other.numpy(), win_size=5, data_range=1.0, use_sample_covariance=False, full=True
        )[1]
        for one, other in zip(images[:, 0].double(), others[:, 0].double())
    ]
    expected = np.stack(maps)[:, 2:-2:2, 2:-2:2].mean()
    assert window_ssim(images.double(), others.double()).item() == pytest.approx(expected, abs=1e-6)
    assert expected < 0.995


def test_reconstruction_loss_is_absolute_error_and_what_ssim_lacks():
    images, others = torch.rand(2, 3, 1, 16, 24)
    error, lacking = (images - others).abs().mean(), 1 - window_ssim(images, others)
    for weight in (0.0, 0.2, 1.0):
        torch.testing.assert_close(reconstruction_loss(images, others, weight), error + weight * lacking)


# --------------------------------------------------------------------------- the sharp decoder


def noise(strength: float = 1.0, count: int = 24, side: int = 48) -> torch.Tensor:
    return 0.1 * strength * torch.randn(count, 1, side, side)


def texture_score(side: int = 48) -> tuple[TextureScore, torch.Tensor]:
    codes = torch.zeros(24, side // 8, side // 8, dtype=torch.int64)
    score = TextureScore(noise(side=side), codes, 1)
    score.look_anew()
    return score, codes


@pytest.mark.parametrize("side, resolutions", [(16, 1), (48, 1.5), (64, 2)])
def test_texture_that_is_missing_costs_one_for_pixels_and_one_for_what_is_seen_at_each_resolution(side, resolutions):
    """As views are weighed by their mean size, and places by 1 / (1 + .3); the coarser two resolutions count one half each."""
    score, codes = texture_score(side)
    blank = torch.zeros(24, 1, side, side)
    assert score(noise(side=side), blank, blank, codes).item() == pytest.approx(1 + resolutions / 1.3, rel=0.05)


def test_draws_with_nearly_all_of_the_texture_are_best():
    """Of normal distributions at a spread weight of .95, those of .91 times the strength; stronger ones would be grain."""
    score, codes = texture_score()
    images = noise()
    losses = {each: score(images, noise(each), noise(each), codes).item() for each in (0.0, 0.6, 0.9, 1.3, 2.0)}
    assert min(losses, key=losses.get) == 0.9, losses


def test_a_share_of_power_counts_alike_at_every_fine_frequency():
    """Of slices with a tenth of the power at the finest frequencies: half more there costs what half more elsewhere does."""
    fine = noise(side=128, count=8)
    frequency = frequencies(fine)
    images = torch.fft.ifft2(torch.fft.fft2(fine) * torch.where(frequency > 0.4, 0.1**0.5, 1.0)).real
    score, costs = SpectrumScore(images), []
    for low, high in ((0.22, 0.38), (0.42, 1.0)):
        band = (frequency > low) & (frequency < high)
        more = torch.fft.ifft2(torch.fft.fft2(images) * torch.where(band, 1.5**0.5, 1.0)).real
        costs.append(float(score(images, more)) / float(band.float().mean()))
    assert 0.5 < costs[0] / costs[1] < 2, costs


def test_the_code_score_has_no_unit():
    """Latents and codes of ten times the size, the same score."""
    vqvae, images = VQVAE(16, 8, 8, width=8, blocks=1).eval(), torch.rand(4, 1, 32, 32)
    vqvae.start(images)
    codes, places = vqvae.encode(images), torch.ones(4, 1, 4, 4, dtype=torch.bool)
    small = CodeScore(vqvae, images, codes)(images, codes, places)
    with torch.no_grad():
        for tensor in (vqvae.encoder.layers[-1].weight, vqvae.encoder.layers[-1].bias, vqvae.quantizer.codebook):
            tensor.mul_(10)
    torch.testing.assert_close(CodeScore(vqvae, images, codes)(images, codes, places), small, rtol=1e-3, atol=1e-5)
    assert small > 0


def test_the_sharp_decoder_is_chosen_by_the_mixture_that_its_page_gives():
    images = torch.rand(6, 1, 48, 48)
    frame = find_frame((255 * images[:, 0]).byte().numpy(), 8)
    scores = sharpness_scores(0.5 + 0.6 * (images - 0.5), images, frame)
    assert scores["validate_sharpness"] == pytest.approx(0.36, rel=1e-3)
    mixture = scores["validate_ssim"] - 0.1 * abs(math.log10(0.36)) - 0.5 * scores["validate_swd_0"] / 1000
    texture = [scores[f"validate_{name}"] for name in NAMES if f"validate_{name}" in scores]
    assert texture, "or their weight would not show"
    mixture -= 0.25 * sum(abs(math.log(ratio)) for ratio in texture)  # a tenth costs the SSIM that texture costs, .024
    assert scores["validate_mixture"] == pytest.approx(mixture, abs=1e-3)
    assert scores["validate_swd_0"] > 50, "or its weight would not show"


def test_each_code_map_has_noise_of_its_own():
    vqvae = VQVAE(16, 8, 8, width=16, blocks=1).eval()
    sharp, seeds = SharpDecoder.after(vqvae).eval(), []
    textured = sharp.texture.forward

    def noting(features: torch.Tensor, picture: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        seeds.append([generator.initial_seed() for generator in generators])
        return textured(features, picture, generators)

    sharp.texture.forward = noting
    quantized = vqvae.quantizer.lookup(torch.randint(16, (5, 3, 4)))
    sharp(quantized), sharp(quantized[3:])
    assert len(set(seeds[0])) == 5 and seeds[1] == seeds[0][3:]
