"""Laws of the first stage."""

import pytest
import torch
from torch import nn

from vqvae import VQVAE, VectorQuantizer, reconstruction_loss, window_ssim


def small(**changes) -> VQVAE:
    return VQVAE(**(dict(num_codes=32, code_dim=8, downsample=8, width=8, blocks=1) | changes))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("downsample", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("height, width", [(1, 3), (2, 1), (3, 2)])
def test_contract_for_any_multiple_of_f(downsample, height, width):
    model = small(downsample=downsample)
    images = torch.rand(2, 1, height * downsample, width * downsample)
    out = model(images)
    assert out.images.shape == images.shape
    assert out.codes.shape == (2, height, width) and out.codes.dtype == torch.int64
    assert out.commitment_loss.shape == ()
    codes = model.encode(images)
    assert torch.equal(codes, out.codes)
    decoded = model.decode(codes)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.allclose(decoded, out.images.clamp(0, 1), atol=1e-6)


def test_wrong_sizes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="multiples of the downsampling 8, got 12x16"):
        small()(torch.rand(1, 1, 12, 16))
    with pytest.raises(ValueError, match=r"expected images of shape \[B, 1, H, W\]"):
        small()(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="downsample must be"):
        small(downsample=6)


def test_straight_through_gradient_is_the_decoders_gradient_at_the_code():
    model = small()
    latents = torch.randn(2, 8, 3, 2, requires_grad=True)
    weights = torch.randn(2, 1, 24, 16)
    out = model.quantizer(latents)
    (model.decoder(out.quantized) * weights).sum().backward()
    at_code = model.quantizer.lookup(out.codes).detach().requires_grad_()
    (model.decoder(at_code) * weights).sum().backward()
    assert torch.allclose(latents.grad, at_code.grad, atol=1e-6)
    assert at_code.grad.abs().sum() > 0


def test_commitment_pulls_latents_to_codes_with_weight_one():
    quantizer = VectorQuantizer(16, 4)
    latents = torch.randn(2, 4, 3, 5, requires_grad=True)
    out = quantizer(latents)
    out.commitment_loss.backward()
    expected = 2 * (latents - quantizer.lookup(out.codes)) / latents.numel()
    assert torch.allclose(latents.grad, expected.detach(), atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_choice_equals_a_float64_brute_force(chunk):
    quantizer = VectorQuantizer(50, 12, chunk=chunk)
    latents = torch.randn(3, 12, 5, 7)
    vectors = latents.permute(0, 2, 3, 1).double()
    distances = (vectors[..., None, :] - quantizer.codebook.double()).square().sum(-1)
    assert torch.equal(quantizer.nearest(latents), distances.argmin(-1))


def test_quantizer_is_float32_under_autocast():
    quantizer = VectorQuantizer(64, 8)
    latents = torch.randn(4, 8, 9, 9)
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(latents)
    assert torch.equal(out.codes, expected.codes)
    assert out.quantized.dtype == out.commitment_loss.dtype == torch.float32


def test_codes_do_not_depend_on_autocast():
    model = small()
    images = torch.rand(16, 1, 64, 64)
    model.start(images)
    expected = model.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(images).codes, expected), "a bf16 encoder flips codes, or this test shows nothing"
        assert torch.equal(model.encode(images), expected)


@pytest.mark.parametrize("training", [True, False])
def test_forward_encode_and_decode_never_change_state(training):
    model = small().train(training)
    images = torch.rand(2, 1, 16, 24)
    model.start(images)
    before = snapshot(model)
    model(images)
    model.decode(model.encode(images))
    assert_unchanged(model, before)
    assert model.training is training


def test_only_assigned_codes_move():
    quantizer = VectorQuantizer(32, 4)
    for step in range(5):
        latents = torch.randn(1, 4, 2, 3)
        codes = quantizer.nearest(latents)
        before = quantizer.codebook.clone()
        quantizer.update(latents, codes)
        moved = (quantizer.codebook != before).any(1)
        assert torch.equal(moved.nonzero().flatten(), codes.unique()), step


def test_first_update_moves_codes_to_the_mean_of_their_vectors():
    quantizer = VectorQuantizer(8, 3)
    latents = torch.randn(2, 3, 4, 4) * 5
    codes = quantizer.nearest(latents)
    quantizer.update(latents, codes)
    vectors = latents.permute(0, 2, 3, 1)
    for code in codes.unique():
        assert torch.allclose(quantizer.codebook[code], vectors[codes == code].mean(0), atol=1e-5)


def test_codebook_follows_data_of_any_scale():
    for scale in (1e-3, 1.0, 1e3):
        quantizer = VectorQuantizer(16, 4)
        latents = torch.randn(8, 4, 8, 8) * scale
        quantizer.start(latents)
        for _ in range(30):
            quantizer.update(latents, quantizer.nearest(latents))
        error = quantizer(latents).commitment_loss / latents.var()
        assert error < 0.5, scale


def test_start_with_fewer_vectors_than_codes():
    quantizer = VectorQuantizer(64, 4)
    quantizer.start(torch.randn(1, 4, 3, 3))
    assert quantizer.codebook.isfinite().all() and len(quantizer.codebook.unique(dim=0)) > 9


def test_dead_codes_are_revived_from_badly_quantised_vectors():
    quantizer = VectorQuantizer(8, 2, revive_every=1)
    background = torch.zeros(1, 2, 30, 30)
    latents = background.clone()
    latents[0, :, 0, :6] = torch.tensor([[10.0, -10, 10, -10, 20, 5], [10.0, 10, -10, -10, 0, -30]])
    quantizer.codebook.fill_(100.0)
    quantizer.codebook[0] = 0
    quantizer.update(latents, quantizer.nearest(latents))
    revived = quantizer.codebook[1:]
    rare = latents[0, :, 0, :6].t()
    matches = (revived[:, None] - rare).abs().sum(-1) < 1e-6
    assert matches.any(1).sum() >= 6, "each rare vector gets a code, none goes to the flat background"
    assert torch.allclose(quantizer.sums[1:7], quantizer.codebook[1:7] * quantizer.counts[1:7, None])


def test_start_gives_latents_unit_scale():
    model = small()
    images = torch.rand(8, 1, 32, 32)
    model.start(images)
    latents = model.latents(images)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(8), atol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3


def test_loss_is_zero_for_equal_images_and_ssim_one():
    images = torch.rand(2, 1, 24, 40)
    assert window_ssim(images, images) == pytest.approx(1, abs=1e-4)
    assert reconstruction_loss(images, images) == pytest.approx(0, abs=1e-4)
    assert reconstruction_loss(1 - images, images) > 0.3


def test_training_learns():
    model = small()
    images = torch.zeros(8, 1, 32, 32)
    images[:, :, 8:24, 8:24] = torch.linspace(0.3, 1, 8)[:, None, None, None]
    model.start(images)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        out = model(images)
        loss = reconstruction_loss(out.images, images) + 0.25 * out.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.quantizer.update(out.latents, out.codes)
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
