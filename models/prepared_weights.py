"""A prior's weights as the cached sampler (`models/sampler.py`) multiplies with them."""

import math
from functools import partial

import torch
from torch import Tensor, nn


class PreparedWeights:
    """The prior's weights, prepared for `CachedSampler` (in float64 on the CPU, kept in the prior's own precision on its device).

    A gate's first half is scaled by two and features change their sign: with s its sigmoids, tanh(a) sigmoid(b) =
    2 s_a s_b - s_b. What the horizontal layers hand on is kept without their biases, which are added to the gates instead.
    Matrices are laid out to be multiplied from the right: `[in, out]`.
    """

    def __init__(self, prior: nn.Module, conditions: list[Tensor | None], location: Tensor, temperature: float):
        first, later = prior.layers[0], prior.layers[1:]
        self.layers, self.channels, self.num_codes = len(prior.layers), location.shape[1], prior.num_codes
        self.past = first.reach  # rows above, and columns to the left, that the first layer sees
        keep = partial(torch.Tensor.to, dtype=location.dtype, device=location.device)
        self.head_layers = [
            (activation, keep(exact(layer.bias) / share), keep((_matrix(layer) / share).contiguous()))
            for activation, layer, share in zip(prior.head[::2], prior.head[1::2], (1.0, temperature))
        ]
        c = self.channels
        scale = torch.ones(2 * c, dtype=torch.float64)
        scale[:c] = 2

        embedding = exact(prior.embedding.weight)
        kernel = exact(first.vertical.weight) * scale[:, None, None, None]  # [2C, C, rows, columns]
        table = torch.einsum("kc,ocyx->yxko", embedding, kernel)
        none = torch.zeros_like(table[:, :, :1])  # outside the map
        self.vertical_table = keep(torch.cat([table, none], dim=2).flatten(0, 2))
        offsets = torch.arange(math.prod(kernel.shape[2:]), device=location.device)
        self.offsets = offsets * (self.num_codes + 1)  # of each position of the kernel in the table
        kernel = exact(first.horizontal.weight)[:, :, 0] * scale[:, None, None]  # [2C, C, columns], leftmost first
        self.horizontal_table = keep(torch.einsum("kc,ocx->kxo", embedding, kernel.flip(2)).contiguous())

        self.vertical_kernels = [
            keep((exact(layer.vertical.weight) * -scale[:, None, None, None]).permute(2, 3, 1, 0).reshape(6 * c, -1))
            for layer in later
        ]
        across = torch.stack([_matrix(layer.vertical_to_horizontal) * scale / scale[:, None] for layer in prior.layers])
        self.across = keep(across)

        zero = scale.new_zeros(1, 4 * c)
        biases = [zero if condition is None else exact(condition) for condition in conditions]
        vertical, horizontal = (torch.stack(torch.broadcast_tensors(*biases)) * scale.repeat(2)).chunk(2, dim=2)
        own = torch.stack([exact(layer.vertical.bias) for layer in prior.layers]) * scale
        self.vertical_bias = keep(own[:, None] + vertical)  # [L, B or 1, 2C]
        own = [exact(layer.vertical_to_horizontal.bias) + exact(layer.horizontal.bias) for layer in prior.layers]
        # the horizontal stack sees the vertical gates without their condition
        gate_bias = torch.stack(own)[:, None] * scale + horizontal - vertical @ across
        kernels = [exact(layer.horizontal.weight)[:, :, 0].permute(2, 1, 0) * scale for layer in later]
        left, here = torch.stack(kernels, dim=1) if kernels else scale.new_zeros(2, 0, c, 2 * c)
        self.outs = keep(torch.stack([-_matrix(layer.out) for layer in prior.layers]))  # [L, C, C]
        self.left, self.here = keep(left), keep(here)  # [L - 1, C, 2C]
        bias = torch.stack([exact(layer.out.bias) for layer in prior.layers]).cumsum(0)[:, None]  # [L, 1, C]
        gate_bias[1:] += bias[:-1] @ (left + here)
        self.horizontal_bias = keep(gate_bias)  # [L, B or 1, 2C]
        self.no_input = keep(-bias[:-1])  # beyond the left edge of the map
        self.head_bias = keep(bias[-1, 0])
        self.location = keep(exact(location).permute(2, 3, 0, 1))  # [h, w, B or 1, C]

    def head(self, features: Tensor) -> Tensor:
        """The prior's head at single positions: `[B, C]` -> `[B, K]` logits."""
        for activation, bias, matrix in self.head_layers:
            features = torch.addmm(bias, activation(features), matrix)
        return features


def exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has it."""
    return tensor.detach().cpu().double()


def _matrix(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weight as `[in, out]` float64."""
    return exact(convolution.weight).flatten(1).t()
