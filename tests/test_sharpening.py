"""The second decoder: where it starts, what it depends on, and that training it leaves all else alone."""

import copy
import math

import numpy as np
import pytest
import torch

from common.files import load_model, save_model
from dataset import Split, find_frame
from models.sharp_decoder import SharpDecoder
from scoring.texture import NAMES
from training.coded_slices import CodedSlices
from training.loop import FitSettings, fit
from training.sharpen_stage import CODE_WEIGHT, SPECTRUM_WEIGHT, SharpenStage, sharpness_scores
from training.texture_losses import CodeScore, SpectrumScore, TextureScore
from utils import decoder_to_use, with_sharp_decoder
from vqvae import VQVAE


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    model = VQVAE(16, 8, 8, width=16).eval()
    for parameter in model.decoder.parameters():  # residual blocks start at zero
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def noisy(vqvae: VQVAE) -> SharpDecoder:
    sharp = SharpDecoder.after(vqvae).eval().requires_grad_(False)
    sharp.texture.full_out.weight.mul_(10)
    return sharp


@pytest.mark.parametrize("downsample", [2, 4, 8, 16])
def test_an_untrained_one_paints_what_the_first_decoder_does_and_a_trace_of_texture(downsample):
    torch.manual_seed(0)
    vqvae = VQVAE(16, 8, downsample, width=16).eval()
    quantized = vqvae.quantizer.lookup(torch.randint(16, (3, 4, 5)))
    added = SharpDecoder.after(vqvae)(quantized) - vqvae.decoder(quantized)
    assert added.shape == (3, 1, 4 * downsample, 5 * downsample) and 0 < added.std() < 0.05


def test_a_code_map_has_one_picture_in_any_batch(vqvae):
    sharp, codes = noisy(vqvae), torch.randint(16, (3, 4, 5))
    quantized = vqvae.quantizer.lookup(codes)
    together = sharp(quantized)
    alone = torch.cat([sharp(quantized[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (sharp(quantized) - vqvae.decoder(quantized)).abs().amax((1, 2, 3)).min() > 0.01
    twice = sharp(quantized[:1].expand(2, -1, -1, -1), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert (twice[0] - twice[1]).abs().max() > 0.01  # texture is not a function of the codes alone


def test_flat_patches_stay_flat(vqvae):
    sharp = noisy(vqvae)
    features, picture = sharp.smooth(vqvae.quantizer.lookup(torch.randint(16, (1, 4, 5))))
    picture[:, :, 8:16, 16:32] = 0
    added = sharp.texture(features, picture, [torch.Generator().manual_seed(0)]) - picture
    assert (added[:, :, 8:16, 16:32] == 0).all() and added[:, :, :8].std() > 0


def texture(spread: torch.Tensor, sideways: torch.Tensor) -> torch.Tensor:
    """`[16, 1, 48, 48]` noise of this standard deviation, the more alike from column to column the larger `sideways`."""
    noise = torch.randn(16, 1, 48, 49)
    return spread * (noise[..., 1:] + sideways * noise[..., :-1]) / (1 + sideways**2) ** 0.5


def test_the_texture_score_pulls_draws_to_the_strength_and_the_spectrum_of_slices(monkeypatch):
    monkeypatch.setattr("training.texture_losses.SPREAD_WEIGHT", 1.0)
    torch.manual_seed(0)
    right = torch.tensor([0.1, 0.3])
    codes = torch.zeros(16, 6, 6, dtype=torch.int64)
    score = TextureScore(texture(*right), codes, 1)

    def pull(*drawn: float) -> torch.Tensor:
        """Downhill directions of the draws' strength and likeness of neighbours."""
        total, kind = torch.zeros(2), torch.tensor(drawn, requires_grad=True)
        for _ in range(16):
            score.look_anew()
            loss = score(texture(*right), texture(*kind), texture(*kind), codes)
            total -= torch.autograd.grad(loss, kind)[0] / 16
        return total

    there = pull(*right.tolist()).abs()
    assert pull(0.05, 0.3)[0] > 10 * there[0] and pull(0.2, 0.3)[0] < -10 * there[0]
    assert pull(0.1, 0.0)[1] > 5 * there[1] and pull(0.1, 0.7)[1] < -5 * there[1]


def test_views_are_weighed_by_the_size_of_what_they_see():
    torch.manual_seed(0)
    plain = torch.tensor(0.1), torch.tensor(0.0)
    score = TextureScore(texture(*plain), torch.zeros(16, 6, 6, dtype=torch.int64), 1)
    score.look_anew()
    first, again = score.filters[0].clone(), score.filters[0]
    answers = torch.nn.functional.conv2d(texture(*plain), first)
    assert answers.abs().mean() == pytest.approx(1, rel=0.1)
    score.look_anew()
    assert not torch.equal(first, score.filters[0]) and first.shape == again.shape


def test_places_are_weighed_by_the_texture_that_their_codes_have():
    """Of two codes, one with ten times the texture: what is missing of the faint one counts as a large share of it."""
    torch.manual_seed(0)
    codes = torch.zeros(16, 6, 6, dtype=torch.int64)
    codes[:, :, 3:] = 1
    strength = torch.where(codes == 1, 1.0, 0.1)[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = strength * texture(torch.tensor(0.1), torch.tensor(0.0))
    score = TextureScore(images, codes, 2)
    assert score.sizes[1] / score.sizes[0] == pytest.approx(10, rel=0.15)
    score.look_anew()
    score.pixel_size = float("inf")
    smooth = [torch.where(strength == which, 0.0, images) for which in (1.0, 0.1)]
    strong_missing, faint_missing = (float(score(images, one, one, codes)) for one in smooth)
    assert 2 * faint_missing < strong_missing < 7 * faint_missing


def test_the_spectrum_score_is_least_at_the_right_strength_and_colour_and_blind_to_coarse_waves():
    torch.manual_seed(0)
    strength, sideways = torch.tensor(0.1), torch.tensor(0.3)
    score, images = SpectrumScore(texture(strength, sideways)), texture(strength, sideways)
    right = score(images, texture(strength, sideways))
    for wrong in (texture(0.7 * strength, sideways), texture(1.4 * strength, sideways), texture(strength, -sideways)):
        assert score(images, wrong) > 1.5 * right
    assert score(images, images) == 0
    waves = torch.sin(2 * torch.pi * torch.arange(48) / 12).expand(16, 1, 48, 48)  # 12 pixels long
    torch.testing.assert_close(score(images, images + waves), torch.tensor(0.0), rtol=0, atol=1e-3)
    blank = torch.zeros(2, 1, 24, 24, requires_grad=True)
    loss = SpectrumScore(blank.detach())(blank, blank)
    loss.backward()
    assert loss == 0 and (blank.grad == 0).all()


def test_the_code_score_is_less_where_the_codes_are_found_again(vqvae):
    torch.manual_seed(0)
    images = torch.rand(4, 1, 32, 40)
    vqvae.start(images)
    codes = vqvae.encode(images)
    score = CodeScore(vqvae, images, codes)
    places = torch.ones(4, 1, 4, 5, dtype=torch.bool)
    assert score(images, codes, places) < score(images.flip(0), codes, places)
    assert score(images, codes, ~places) == 0


def test_training_it_leaves_the_vqvae_alone_and_resumes(vqvae, tmp_path):
    rng = np.random.default_rng(0)
    images = (rng.random((12, 32, 40)) * 255).astype(np.uint8)
    split = Split(images, [f"s{i // 3}" for i in range(12)], [str(i) for i in range(12)])
    frame = find_frame(images, 8)
    before = copy.deepcopy(vqvae.state_dict())

    def stage() -> SharpenStage:
        torch.manual_seed(3)
        codes = torch.randint(16, (12, 4, 5))
        return SharpenStage(vqvae, CodedSlices(split, split, codes, codes.flip(1), codes), frame, "float32")

    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for folder in (whole, halved):
        folder.mkdir()
    first = stage()
    first.before_step(0, 1)
    losses = first.losses(np.arange(4), torch.full((4, first.chances), 0.6, dtype=torch.float64))
    weighed = losses["texture"] + CODE_WEIGHT * losses["recoding"] + SPECTRUM_WEIGHT * losses["spectrum"]
    torch.testing.assert_close(losses["loss"], weighed)
    assert min(losses.values()) > 0
    fit(stage(), FitSettings(2, 5, 1e-3, 0, 0, 5.0), whole, resume=False)
    stopped = stage()
    validate = stopped.validate

    def stop_after_one(model):
        if stopped.seen:
            raise KeyboardInterrupt
        stopped.seen = True
        return validate(model)

    stopped.seen, stopped.validate = False, stop_after_one
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, FitSettings(2, 5, 1e-3, 0, 0, 5.0), halved, resume=False)
    fit(stage(), FitSettings(2, 5, 1e-3, 0, 0, 5.0), halved, resume=True)
    assert (whole / "sharp.safetensors").read_bytes() == (halved / "sharp.safetensors").read_bytes()
    assert all(torch.equal(before[name], tensor) for name, tensor in vqvae.state_dict().items())
    trained = load_model(whole / "sharp.safetensors", SharpDecoder)
    assert all(
        torch.equal(trained.layers.state_dict()[name], value)
        for name, value in vqvae.decoder.layers.state_dict().items()
    )
    start = {
        name.removeprefix("texture."): value for name, value in stage().model.state_dict().items() if "texture" in name
    }
    assert not all(torch.equal(trained.texture.state_dict()[name], value) for name, value in start.items())


def test_a_run_uses_its_sharp_decoder_where_it_has_one(vqvae, tmp_path):
    assert decoder_to_use(tmp_path) == "faithful"
    with pytest.raises(Exception, match="no sharp decoder; train it with"):
        decoder_to_use(tmp_path, "sharp")
    save_model(tmp_path / "sharp.safetensors", noisy(vqvae))
    assert decoder_to_use(tmp_path) == "sharp" and decoder_to_use(tmp_path, "faithful") == "faithful"
    codes = torch.randint(16, (2, 4, 5))
    faithful = vqvae.decode(codes)
    sharp = with_sharp_decoder(vqvae, tmp_path)
    assert torch.equal(vqvae.decode(codes), faithful) and not torch.equal(sharp.decode(codes), faithful)
    assert torch.equal(sharp.decode(codes), sharp.decode(codes))
    images = torch.rand(2, 1, 32, 40)
    assert torch.equal(sharp.encode(images), vqvae.encode(images))


def test_the_mixture_prefers_real_texture_to_smoothness():
    torch.manual_seed(0)
    images = torch.rand(8, 1, 64, 64)
    frame = find_frame((images[:, 0] * 255).byte().numpy(), 8)
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    real, smooth = (sharpness_scores(one, images, frame) for one in (images, blurred))
    assert real["validate_sharpness"] == pytest.approx(1) and real["validate_mixture"] > smooth["validate_mixture"]
    assert smooth["validate_sharpness"] < 0.2 and real["validate_swd_0"] < smooth["validate_swd_0"] / 3


def test_the_mixture_counts_grain_in_place_of_detail():
    """Detail in few places, and grain of its power everywhere."""
    torch.manual_seed(0)
    detail = 0.3 * torch.randn(8, 1, 96, 96) * (torch.rand(8, 1, 96, 96) < 0.05)
    images = (0.5 + 0.01 * torch.randn_like(detail) + detail).clamp(0.2, 1)
    grainy = (0.5 + images.std() * torch.randn_like(images)).clamp(0.2, 1)
    frame = find_frame((images[:, 0] * 255).byte().numpy(), 8)
    real, grain = (sharpness_scores(one, images, frame) for one in (images, grainy))
    assert 0.9 < grain["validate_sharpness"] < 1.1 and grain["validate_texture_kurtosis"] < 0.5
    for scores in (real, grain):
        ratios = [scores[f"validate_{name}"] for name in NAMES]
        expected = scores["validate_ssim"] - 0.1 * abs(math.log10(scores["validate_sharpness"]))
        expected -= 0.5 * scores["validate_swd_0"] / 1000 + 0.25 * sum(abs(math.log(ratio)) for ratio in ratios)
        assert scores["validate_mixture"] == pytest.approx(expected)
    assert ratios != [1, 1, 1] and [real[f"validate_{name}"] for name in NAMES] == pytest.approx([1, 1, 1])
