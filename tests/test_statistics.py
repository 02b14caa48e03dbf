"""What a statistic must leave out, and how sure of itself a prior may be."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from dataset import Split
from models.adapting import told_of, with_context
from pixelcnn import NUMBER, GatedPixelCNN
from scoring.bits import mean_bits
from scoring.calibration import fit_temperature
from training.coded_slices import CodedSlices
from training.prior_stage import PriorStage
from vqvae import VectorQuantizer, full_float32

K, SUBJECTS, SLICES = 8, 8, 6


def split(subjects: int = SUBJECTS) -> Split:
    count = subjects * SLICES
    names = [f"s{i // SLICES}" for i in range(count)]
    return Split(np.zeros((count, 8, 8), np.uint8), names, names, positions=np.zeros(count, np.float32))


def test_bits_on_training_maps_do_not_count_the_maps_own_subject():
    """Every subject has a code of its own: what others have says nothing of it."""
    maps = torch.arange(SUBJECTS).repeat_interleave(SLICES)[:, None, None].expand(-1, 3, 4).to(torch.int16)
    model = GatedPixelCNN(K, channels=4, layers=1, marginal=(3, 4)).eval()
    stage = PriorStage(model, CodedSlices(split(), split(), maps, maps, maps), torch.randn(K, 4), "float32")
    stage.start(np.arange(4))
    torch.nn.init.zeros_(model.head[-1].weight)  # nothing but the table of frequencies
    scores = stage.validate(model)
    assert scores["validate_bits"] < 3.5, "the table has counted these very maps"
    assert scores["train_bits"] > 5


def sure_prior(times: float) -> GatedPixelCNN:
    """Knows the distribution of codes, its logits so many times as large as they should be."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(K, channels=4, layers=1, conditions={"position": NUMBER}).eval()
    torch.nn.init.zeros_(prior.head[-1].weight)
    prior.head[-1].bias.data = times * torch.linspace(0, 2, K)
    return prior


@pytest.mark.parametrize("times", [0.8, 1.0, 1.3])
def test_the_temperature_that_is_fitted_is_the_one_by_which_a_prior_errs(times):
    shares = torch.linspace(0, 2, K).softmax(0)
    codes = torch.multinomial(shares, 64 * 20 * 20, replacement=True).view(64, 20, 20)
    prior, known = sure_prior(times), {"position": np.zeros(64, np.float32)}
    before = mean_bits(prior, codes, known)
    temperature = fit_temperature(prior, codes, known)
    assert temperature == pytest.approx(times, rel=0.03) and prior.temperature == 1
    prior.temperature = temperature
    after = mean_bits(prior, codes, known)
    assert after < before - 0.005 if times != 1 else after == pytest.approx(before, abs=1e-3)
    assert fit_temperature(prior, codes, known) == pytest.approx(temperature, rel=1e-3), "whatever it was before"


def test_the_temperature_of_told_maps_is_fitted_whatever_that_of_the_others_is():
    shares = torch.linspace(0, 2, K).softmax(0)
    codes = torch.multinomial(shares, 64 * 20 * 20, replacement=True).view(64, 20, 20)
    prior, known = with_context(sure_prior(1.3), 1).eval(), {"position": np.zeros(64, np.float32)}
    prior.temperature, prior.told_temperature = 1.7, 0.6
    assert fit_temperature(prior, codes, known, codes[:, None]) == pytest.approx(1.3, rel=0.03)
    assert fit_temperature(prior, codes, known) == pytest.approx(1.3, rel=0.03)
    prior.told_temperature = 1.3
    cold, warm = (mean_bits(prior, codes, known, context=each) for each in (None, codes[:, None]))
    assert warm < cold - 0.005


def test_a_calibrated_prior_draws_as_it_scores():
    """Dividing by two temperatures in turn is dividing by their product, with the table of frequencies and without."""
    for marginal in (None, (5, 6)):
        torch.manual_seed(0)
        prior = GatedPixelCNN(K, channels=8, layers=3, marginal=marginal).double().eval()
        for parameter in prior.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
        codes, position = torch.randint(0, K, (2, 5, 6)), torch.tensor([0.1, 0.8]).double()
        plain = prior(codes, position)
        by_hand = prior.sample(16, 5, 6, temperature=1.7, generator=torch.Generator().manual_seed(1))
        cold = prior.sample(16, 5, 6, generator=torch.Generator().manual_seed(1))
        prior.temperature = 1.7
        torch.testing.assert_close(prior(codes, position), plain / 1.7)
        calibrated = prior.sample(16, 5, 6, generator=torch.Generator().manual_seed(1))
        assert torch.equal(calibrated, by_hand) and not torch.equal(calibrated, cold)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature above 0"):
            prior.temperature = wrong


@pytest.mark.parametrize("flat", [0, 300, 480])
def test_k_means_starts_from_distinct_rows(flat):
    """Uniform patches share one latent but for rounding: copies of it would be codes that nothing is nearest to."""
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 32, 16)
    rows = latents.view(4, -1)
    rows[:, :flat] = rows[:, :1] * (1 + 1e-7 * torch.randn(1, flat))
    quantizer = VectorQuantizer(32, 4)
    quantizer.start(latents)
    apart = torch.cdist(quantizer.codebook, quantizer.codebook) + torch.eye(32) * 9
    assert apart.min() > 1e-3
    used = quantizer.nearest(latents).unique()
    assert len(used) == 32


def test_fewer_distinct_rows_than_codes_are_all_codes():
    latents = torch.tensor([[1.0, 2.0, 3.0]]).repeat(1, 40).view(1, 1, 12, 10)
    quantizer = VectorQuantizer(8, 1)
    quantizer.start(latents)
    assert all((quantizer.codebook - value).abs().min() < 1e-5 for value in (1, 2, 3))


def test_cudnn_stays_on_where_its_tf32_is_off():
    before = torch.backends.cudnn.enabled
    with full_float32():
        assert torch.backends.cudnn.enabled == before and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.enabled == before


class Float64Elsewhere(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses float64 on any device but the CPU, as Apple's does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                assert tensor.device.type == "cpu", f"float64 on {tensor.device} by {func}"
        return out


def test_a_step_of_the_prior_takes_no_float64_to_its_device(monkeypatch):
    monkeypatch.setattr("training.prior_stage.autocast", lambda *_: nullcontext())  # the stand-in has none
    maps = torch.randint(0, K, (SUBJECTS * SLICES, 3, 4), dtype=torch.int16)
    model = GatedPixelCNN(K, channels=4, layers=2).to("meta").train()  # stands in for a device without float64
    stage = PriorStage(model, CodedSlices(split(), split(), maps, maps, maps), torch.randn(K, 4), "float32")
    with Float64Elsewhere():
        chance = torch.rand(4, stage.chances, dtype=torch.float64)
        assert stage.losses(np.arange(4), chance)["loss"].device.type == "meta"


def test_what_an_initial_prior_was_told_otherwise_it_learns_from_nothing():
    torch.manual_seed(0)
    prior = GatedPixelCNN(K, channels=4, layers=2, conditions={"position": NUMBER, "sex": 2}).eval()
    for parameter in prior.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    torch.nn.init.zeros_(prior.conditions.unknown["sex"])
    codes, position = torch.randint(0, K, (2, 4, 5)), torch.tensor([0.2, 0.8])
    wanted = {"position": NUMBER, "age": NUMBER, "sex": 3}
    other = told_of(prior, wanted, ["position"]).eval()
    assert other.arguments["conditions"] == wanted
    for known in ({}, {"age": torch.tensor([0.1, 0.9]), "sex": torch.tensor([2.0, 0.0])}):
        torch.testing.assert_close(other(codes, position, known), prior(codes, position))
    loss = other(codes, position, known).square().sum()
    loss.backward()
    assert other.conditions.first["age"].weight.grad.abs().sum() > 0, "and it does learn"
    assert told_of(prior, prior.arguments["conditions"], ["position", "sex"]) is prior
    unconditional = GatedPixelCNN(K, channels=4, layers=2, conditions={}).eval()
    torch.testing.assert_close(told_of(unconditional, wanted, []).eval()(codes, position), unconditional(codes))
