"""Muon, the optimizer of hidden weights: momentum, made orthogonal.

    optimizers = [Muon(model.hidden_weights(), lr=0.002), torch.optim.AdamW(other_parameters, lr=0.002)]

K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". `torch.optim.Muon` takes matrices alone and
iterates in bfloat16, which processors without it only emulate; this one takes convolution kernels too and iterates in float32.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen by its authors for its slope at zero


class Muon(torch.optim.Optimizer):
    """Steps of equal size in every direction that a weight can move.

    The momentum of a kernel `[out, in, ...]` is read as a matrix `[out, in * ...]` whose singular values are all brought near 1
    by Newton-Schulz iterations. Directions that the raw gradient hardly shows are then learned as fast as the strong ones.

    Args:
        params: weights of at least 2 dimensions; biases, first and last layers belong to another optimizer.
        lr: learning rate. An entry moves by about `lr * scale` a step (root mean square).
        momentum: of the gradient's moving average, 0..1; Nesterov's form.
        weight_decay: decoupled, as in AdamW.
        iterations: of Newton-Schulz.
        scale: root mean square of a step at a learning rate of 1. 0.2 is AdamW's (arXiv 2502.16982).

    Raises:
        ValueError: when a parameter has fewer than 2 dimensions.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.002,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        iterations: int = 5,
        scale: float = 0.2,
    ):
        params = list(params)
        for param in params:
            if param.dim() < 2:
                raise ValueError(f"Muon takes weights of at least 2 dimensions, got one of shape {list(param.shape)}")
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, iterations=iterations, scale=scale)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, group)
        return loss

    def _move(self, param: Tensor, group: dict) -> None:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        state["momentum"].lerp_(param.grad, 1 - group["momentum"])
        ahead = param.grad.lerp(state["momentum"], group["momentum"])
        direction = orthogonalised(ahead.reshape(len(ahead), -1), group["iterations"])
        param.mul_(1 - group["lr"] * group["weight_decay"])
        step = group["lr"] * group["scale"] * max(direction.shape) ** 0.5  # its entries have RMS 1 / sqrt(longer side)
        param.add_(direction.view_as(param), alpha=-step)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The matrix with its singular values brought to about 1 (0.7 to 1.2), in float32: `[m, n]` -> `[m, n]`.

    An odd polynomial of the matrix, iterated: x <- (a + b g + c g^2) x with g = x x'. Every such polynomial is one of the first
    g times the first x, so the iterations run on the short side alone and the long one is multiplied twice.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().t() if tall else matrix.float()
    x = x / (x.norm() + 1e-7)
    gram = x @ x.t()
    identity = torch.eye(len(gram), device=gram.device)
    product = identity
    for iteration in range(iterations):
        factor = torch.addmm(b * gram, gram, gram, alpha=c) + a * identity
        product = factor @ product
        if iteration + 1 < iterations:
            gram = factor @ gram @ factor
    x = product @ x
    return (x.t() if tall else x).to(matrix.dtype)
