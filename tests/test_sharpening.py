"""The second decoder: where it starts, what it depends on, and that training it leaves all else alone."""

import copy

import numpy as np
import pytest
import torch

from dataset import Split, find_frame
from sharpening import SharpDecoder, Sharpener
from stages import SharpenStage, sharpness_scores
from training import FitSettings, fit
from utils import decoder_to_use, load_model, save_model, with_sharp_decoder
from vqvae import VQVAE


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    model = VQVAE(16, 8, 8, width=16).eval()
    for parameter in model.decoder.parameters():  # residual blocks start at zero; noise shall have a way through
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def noisy(vqvae: VQVAE) -> SharpDecoder:
    sharp = SharpDecoder.after(vqvae).eval().requires_grad_(False)
    for strength in sharp.strengths:
        strength.fill_(0.3)
    return sharp


def test_an_untrained_one_paints_what_the_first_decoder_does(vqvae):
    quantized = vqvae.quantizer.lookup(torch.randint(16, (3, 4, 5)))
    sharp = SharpDecoder.after(vqvae)
    torch.testing.assert_close(sharp(quantized), vqvae.decoder(quantized), rtol=0, atol=0)


def test_a_code_map_has_one_picture_in_any_batch(vqvae):
    sharp, codes = noisy(vqvae), torch.randint(16, (3, 4, 5))
    quantized = vqvae.quantizer.lookup(codes)
    together = sharp(quantized)
    alone = torch.cat([sharp(quantized[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (sharp(quantized) - vqvae.decoder(quantized)).abs().amax((1, 2, 3)).min() > 0.01
    twice = sharp(quantized[:1].expand(2, -1, -1, -1), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert (twice[0] - twice[1]).abs().max() > 0.01  # texture is not a function of the codes alone


def test_the_loss_pulls_the_decoder_both_ways_and_the_discriminator_one(vqvae):
    sharpener = Sharpener(SharpDecoder.after(vqvae))
    images = torch.rand(4, 1, 32, 40)
    quantized = vqvae.quantizer.lookup(torch.randint(16, (4, 4, 5)))
    faithful = vqvae.decoder(quantized)

    def gradients(ramp: float) -> tuple[torch.Tensor, torch.Tensor]:
        sharpener.zero_grad()
        torch.manual_seed(1)
        sharpener.losses(quantized, faithful, images, range(4), ramp).loss.backward()
        parts = (sharpener.decoder, sharpener.discriminator)
        return tuple(torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]) for part in parts)

    frozen = copy.deepcopy(sharpener.state_dict())
    decoder, discriminator = gradients(0.0)
    sharpener.load_state_dict(frozen)  # spectral norm moves its vectors at each call
    decoder_with, discriminator_with = gradients(1.0)
    assert (decoder_with - decoder).norm() > 0.1 * decoder.norm()
    torch.testing.assert_close(discriminator, discriminator_with)  # the decoder's wish does not move the judge
    assert discriminator.norm() > 0


def test_training_it_leaves_the_vqvae_alone_and_resumes(vqvae, tmp_path):
    rng = np.random.default_rng(0)
    images = (rng.random((12, 32, 40)) * 255).astype(np.uint8)
    split = Split(images, [f"s{i // 3}" for i in range(12)], [str(i) for i in range(12)])
    frame = find_frame(images, 8)
    before = copy.deepcopy(vqvae.state_dict())

    def stage() -> SharpenStage:
        torch.manual_seed(3)
        codes = torch.randint(16, (12, 4, 5))
        return SharpenStage(vqvae, split, split, codes, codes.flip(1), frame, "float32")

    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for folder in (whole, halved):
        folder.mkdir()
    fit(stage(), FitSettings(2, 5, 1e-3, 0, 0, 5.0), whole, [], resume=False)
    stopped = stage()
    validate = stopped.validate

    def stop_after_one(model):
        if stopped.seen:
            raise KeyboardInterrupt
        stopped.seen = True
        return validate(model)

    stopped.seen, stopped.validate = False, stop_after_one
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, FitSettings(2, 5, 1e-3, 0, 0, 5.0), halved, [], resume=False)
    fit(stage(), FitSettings(2, 5, 1e-3, 0, 0, 5.0), halved, [], resume=True)
    assert (whole / "sharp.safetensors").read_bytes() == (halved / "sharp.safetensors").read_bytes()
    assert all(torch.equal(before[name], tensor) for name, tensor in vqvae.state_dict().items())
    assert load_model(whole / "sharp.safetensors", SharpDecoder).strengths[0].abs().sum() > 0


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
