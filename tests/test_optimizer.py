"""Laws of Muon."""

import pytest
import torch

from training.optimizer import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 9)])
def test_orthogonalised_keeps_directions_and_evens_singular_values(shape):
    matrix = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    result = left.t() @ orthogonalised(matrix) @ right.t()
    off_diagonal = result - torch.diag(result.diagonal())
    assert off_diagonal.abs().max() < 1e-3, "singular vectors stay"
    big = values > 0.05 * values.max()
    assert result.diagonal()[big].min() > 0.6 and result.diagonal().max() < 1.3


def test_step_size_is_the_learning_rate_times_scale_at_any_gradient_scale():
    for factor in (1e-6, 1.0, 1e6):
        weight = torch.zeros(32, 24, 3, 3, requires_grad=True)
        optimizer = Muon([weight], lr=0.01, scale=0.4)
        weight.grad = factor * torch.randn_like(weight)
        optimizer.step()
        assert weight.detach().square().mean().sqrt() == pytest.approx(0.004, rel=0.25)


@pytest.mark.parametrize("shape", [(12, 7), (6, 4, 3, 3), (16, 16)])
def test_a_step_is_that_of_the_paper(shape):
    """In float64 by the singular values, each of which goes through the authors' polynomial; as long as AdamW's by `scale`."""
    weight = torch.randn(shape, requires_grad=True)
    before, weight.grad = weight.detach().clone(), torch.randn(shape)
    Muon([weight], lr=0.03, weight_decay=0.0, scale=0.2).step()
    left, values, right = torch.linalg.svd(weight.grad.double().flatten(1), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = -0.03 * 0.2 * max(left.shape[0], right.shape[1]) ** 0.5 * left @ values.diag() @ right
    torch.testing.assert_close((weight.detach() - before).flatten(1).double(), expected, atol=1e-5, rtol=1e-3)


def test_the_rate_of_a_schedule_is_followed():
    gradient, moved = torch.randn(12, 8), []
    for rate in (0.01, 0.001):
        weight = torch.zeros(12, 8, requires_grad=True)
        optimizer = Muon([weight], lr=0.5, weight_decay=0.0)
        optimizer.param_groups[0]["lr"] = rate  # as the loop sets it before every step
        weight.grad = gradient
        optimizer.step()
        moved.append(weight.detach().clone())
    torch.testing.assert_close(moved[0], 10 * moved[1])


def test_weights_decay_by_the_rate_and_apart_from_the_gradient():
    start, gradient = torch.randn(12, 8), torch.randn(12, 8)
    idle, decayed, plain = (start.clone().requires_grad_() for _ in range(3))
    for weight, grad, decay in ((idle, torch.zeros(12, 8), 0.5), (decayed, gradient, 0.5), (plain, gradient, 0.0)):
        optimizer = Muon([weight], lr=0.1, weight_decay=decay)
        weight.grad = grad
        optimizer.step()
    torch.testing.assert_close(idle.detach(), start * (1 - 0.1 * 0.5))
    torch.testing.assert_close(decayed.detach(), plain.detach() - 0.1 * 0.5 * start)


def test_a_step_remembers_the_gradients_before():
    """After one gradient, another at right angles to it: both directions are moved along for a while, then the new one alone."""
    weight = torch.zeros(6, 6, requires_grad=True)
    optimizer = Muon([weight], weight_decay=0.0)
    along = []
    for step in range(200):
        before = weight.detach().clone()
        weight.grad = torch.zeros(6, 6)
        weight.grad[(1, 1) if step else (0, 0)] = 1.0
        optimizer.step()
        along.append(((before - weight.detach())[0, 0] / (before - weight.detach()).abs().max()).item())
    assert along[0] == 1 and along[1] > 0.5 and along[10] > 0.5 and along[-1] < 0.1


def test_channels_last_kernels_move_alike():
    start, gradient = torch.randn(16, 8, 3, 3), torch.randn(16, 8, 3, 3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = start.clone(memory_format=layout).requires_grad_()
        optimizer = Muon([weight])
        for _ in range(2):
            weight.grad = gradient.clone(memory_format=layout)
            optimizer.step()
        results.append(weight.detach())
    assert torch.allclose(*results, atol=1e-6)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got one of shape \[4\]"):
        Muon([torch.zeros(4, requires_grad=True)])
