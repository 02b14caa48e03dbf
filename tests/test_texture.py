"""Where fine detail lies: known textures have known figures, and grain in place of detail is seen."""

import math

import numpy as np
import pytest
import torch

from scoring.texture import FINE, NAMES, fine_band, texture_apart, texture_summary, texture_values

SIZE = (176, 208)


def head(noise: float = 0.0, edges: float = 0.0, count: int = 4) -> torch.Tensor:
    """Bright discs, white within and grey without, with white noise of this strength and rings of this height around them."""
    rows, columns = torch.meshgrid(*(torch.arange(side) - side / 2 for side in SIZE), indexing="ij")
    radius = torch.hypot(rows, columns)
    disc = torch.where(radius < 45, 0.8, 0.5)
    for ring in (52, 66):
        disc = disc + edges * ((radius - ring).abs() < 0.6)
    return ((disc + noise * torch.randn(count, *SIZE)) * (radius < 84)).clamp(0, 1)


def test_the_fine_band_holds_fine_waves_alone():
    columns = torch.arange(64.0)
    fine, coarse = (torch.cos(2 * torch.pi * cycles * columns / 64).expand(1, 48, 64) for cycles in (14, 12))
    assert pytest.approx(12.8) == FINE * 64
    torch.testing.assert_close(fine_band(fine + coarse), fine, rtol=0, atol=1e-4)


def test_white_noise_has_the_figures_of_noise():
    found = texture_summary(texture_values(head(noise=0.02)))
    share = 1 - math.pi * FINE**2  # of the frequencies
    assert found["tissue_noise"] == pytest.approx(255 * 0.02 * math.sqrt(share), rel=0.06)
    assert found["edge_to_smooth"] > 1


def test_detail_at_edges_is_told_from_the_same_power_everywhere():
    detailed = head(noise=0.01, edges=0.4)
    blurred = torch.nn.functional.avg_pool2d(detailed[:, None], 3, 1, 1)[:, 0]
    lost = (detailed - blurred)[:, 8:-8].square().mean().sqrt()
    grainy = (blurred + lost * torch.randn_like(blurred) * (blurred > 0.1)).clamp(0, 1)
    real, grain = (texture_summary(texture_values(images)) for images in (detailed, grainy))
    assert real["texture_kurtosis"] > 1.5 * grain["texture_kurtosis"]
    assert real["edge_to_smooth"] > 2 * grain["edge_to_smooth"]
    assert real["tissue_noise"] < 0.5 * grain["tissue_noise"]
    apart = texture_apart(real, grain)
    assert set(apart) == set(NAMES) and min(apart.values()) > math.log(1.5)
    assert texture_apart(real, real) == dict.fromkeys(NAMES, 0)


def test_what_shows_no_tissue_is_not_measured():
    images = torch.cat([head(noise=0.02, count=2), torch.zeros(2, *SIZE)])
    values = texture_values(images)
    assert all(np.isfinite(each).tolist() == [True, True, False, False] for each in values.values())
    assert texture_summary(values) == texture_summary(texture_values(images[:2]))
    assert texture_summary(texture_values(images[2:])) == {} and texture_apart({}, {"tissue_noise": 1.0}) == {}
    assert texture_summary(texture_values(torch.rand(2, 5, 3))) == {}
