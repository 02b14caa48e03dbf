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
