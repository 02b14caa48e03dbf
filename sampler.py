"""Drawing code maps from a gated PixelCNN at about the cost of one forward pass.

`GatedPixelCNN.sample` uses it. The vertical stack is computed once a row and the horizontal one once a code, for a whole batch,
and nothing is computed twice:

- Codes are embedded and convolved by looking up tables of (code, offset in the kernel), summed.
- What the vertical stack adds to a gate is computed a row at a time, and a layer of the horizontal stack is one product: its own
  1x1 convolution and the next layer's kernel are multiplied out in advance.
- Gates need one hyperbolic tangent: sigmoid(x) = (1 + tanh(x / 2)) / 2, with the halves moved into the weights.

On CUDA a row is captured as a graph and replayed, since a row is some thousands of small kernels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BELOW_ONE = 1 - 2**-22


@dataclass(frozen=True)
class Draw:
    """How a code is drawn from `[B, K]` logits: by inverting the cumulative distribution at uniform noise `[B]`.

    One number decides one code, so the same noise gives the same map however the logits were computed. The noise is in the
    logits' precision and below 1 (`as_noise`).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """`[B, K]` logits and noise `[B, 1]` -> codes `[B, 1]` int64."""
        cumulative = self.probabilities(logits).cumsum(1)
        return torch.searchsorted(
            cumulative, uniform * cumulative[:, -1:], right=True
        )  # the first code past the threshold

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution `[B, K]` drawn from: after temperature, top-k and top-p."""
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        probabilities = logits.softmax(1)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
            surplus = ordered.cumsum(1) - ordered >= self.top_p  # what comes before already reaches p
            probabilities = probabilities.masked_fill(torch.zeros_like(surplus).scatter(1, order, surplus), 0)
        return probabilities


def as_noise(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Noise in 0..1 in the precision of logits, kept far enough below 1 that rounding cannot push it past the last code."""
    return uniform.to(dtype).clamp(max=BELOW_ONE)


def uniform_noise(batch: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    """The noise that decides a sample, `[batch, height, width]` float64 in 0..1, drawn on the CPU for any device."""
    return torch.rand(batch, height, width, generator=generator, dtype=torch.float64)


class CachedSampler:
    """Draws `[batch, height, width]` code maps, a row a call, top to bottom.

    Every buffer keeps its place in memory from row to row, so that a row may be captured as a CUDA graph.

    Args:
        prior: a `GatedPixelCNN` in eval mode.
        batch, width: of the maps.
        conditions: gate biases `[batch, 4C]` of each layer, or None each.
        location: `[C, height, width]`, what each place adds to the features of the first layer.
        draw: from logits and noise to a code.
        partly_known: whether `row` will be given codes that stand.
    """

    def __init__(
        self,
        prior: nn.Module,
        batch: int,
        width: int,
        conditions: list[Tensor | None],
        location: Tensor,
        draw: Draw,
        partly_known: bool = False,
    ):
        self.batch, self.width, self.draw, self.partly_known = batch, width, draw, partly_known
        self.weights = weights = SamplerWeights(prior, conditions, location)
        layers, c, device = weights.layers, weights.channels, location.device
        new = partial(torch.zeros, dtype=location.dtype, device=device)
        self.above = torch.zeros(batch, weights.past, width + 2 * weights.past, dtype=torch.int64, device=device)
        self.vertical = new(layers, batch * width, 2 * c)  # the vertical stack's features in this row
        # what the vertical kernels of the later layers cover: three columns of the row above, three of this row
        self.windows = new(layers - 1, batch, width, 6 * c)
        # what stands beside the products of the horizontal stack: for a layer's gate [2C], for its input [C]
        self.beside = new(width + weights.past, layers, batch, 3 * c)
        self.beside_head = new(width, c)  # and beside the product that makes the features for the head
        # at this place a layer's gate [2C] and input [C], and what the next layer's input was at the place to the left [C]
        self.state = new(layers, batch, 4 * c)
        self.at_location, self.at_location_gate = new(width, c), new(width, 2 * c)
        self.codes = torch.zeros(batch, width, dtype=torch.int64, device=device)
        self.known, self.keep = torch.zeros_like(self.codes), torch.zeros_like(self.codes, dtype=torch.bool)
        self.noise = new(batch, width)
        self._make_views()
        self._reset()
        self._draw = self._captured() if device.type == "cuda" else self._draw_row

    def row(self, noise: Tensor, known: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Draw the next row.

        Args:
            noise: `[B, w]` in 0..1, decides what is drawn.
            known: `[B, w]` codes. keep: `[B, w]` bool, where they stand.

        Returns:
            `[B, w]` codes.
        """
        self.noise.copy_(as_noise(noise, self.noise.dtype))
        self.at_location.copy_(self.weights.location[self.next])
        self.at_location_gate.copy_(self.weights.location_gate[self.next])
        self.next += 1
        if keep is not None:
            self.known.copy_(known), self.keep.copy_(keep)
        if keep is not None and bool(keep.all()):
            self._run_vertical()
            self.codes.copy_(self.known)
            self._move_down()
        else:
            self._draw()
        return self.codes.clone()

    def _reset(self) -> None:
        """As before the first row."""
        self.next = 0
        weights, c = self.weights, self.weights.channels
        self.above.fill_(weights.num_codes)
        self.windows.zero_(), self.state.zero_()
        self.beside[:, 1:, :, 2 * c :] = weights.out_bias[:-1, None]
        self.beside_head[:] = weights.out_bias[-1]

    def _make_views(self) -> None:
        """Views of the buffers by column and layer, made once: making one costs as much as using it."""
        c, past = self.weights.channels, self.weights.past
        self.noise_at, self.codes_at, self.known_at, self.keep_at = (
            buffer.split(1, dim=1) for buffer in (self.noise, self.codes, self.known, self.keep)
        )
        self.beside_at = [layers[1:].unbind(0) for layers in self.beside[: self.width]]
        self.first_gate_at = [layers[0, :, : 2 * c] for layers in self.beside[: self.width]]
        self.beside_head_at = self.beside_head.unbind(0)
        self.first_right_of = [
            self.beside[column + 1 : column + 1 + past, 0, :, : 2 * c].transpose(0, 1) for column in range(self.width)
        ]
        gates = [(state[:, : 2 * c], state[:, :c], state[:, c : 2 * c]) for state in self.state]
        self.first_gate, *later_gates = gates
        # of each later layer: what its product reads and is made of and writes, then its gate and the gate's halves
        self.steps = [
            (before[:, c:], matrix, state[:, : 3 * c], *gate)
            for before, matrix, state, gate in zip(self.state, self.weights.products, self.state[1:], later_gates)
        ]
        self.to_head = self.state[-1, :, c : 3 * c]
        self.inputs, self.inputs_left = self.state[1:, :, 2 * c : 3 * c], self.state[:-1, :, 3 * c :]

    def _draw_row(self) -> None:
        self._run_vertical()
        self._start_row()
        for column in range(self.width):
            self._draw_code(column)
        self._move_down()

    def _run_vertical(self) -> None:
        """The vertical stack's features in this row, of every layer, from the codes and the features of the rows above."""
        weights, c, size = self.weights, self.weights.channels, (self.batch, self.width)
        covered = self.above.unfold(2, 2 * weights.past + 1, 1).transpose(1, 2).reshape(math.prod(size), -1)
        self.vertical[0] = F.embedding_bag(covered + weights.offsets, weights.vertical_table, mode="sum")
        self.vertical[0] += weights.vertical_bias[0]
        for layer, windows in enumerate(self.windows):
            gate = torch.tanh(self.vertical[layer].view(*size, 2 * c) + weights.vertical_condition[layer][:, None])
            features = windows[:, :, 4 * c : 5 * c]
            torch.addcmul(gate[:, :, :c], gate[:, :, :c], gate[:, :, c:], out=features)
            windows[:, 1:, 3 * c : 4 * c] = features[:, :-1]
            windows[:, :-1, 5 * c :] = features[:, 1:]
            bias, kernel = weights.vertical_bias[layer + 1], weights.vertical_kernels[layer]
            torch.addmm(bias, windows.view(-1, 6 * c), kernel, out=self.vertical[layer + 1])

    def _start_row(self) -> None:
        """Put beside the horizontal stack's products what does not depend on this row's codes."""
        weights, c, beside = self.weights, self.weights.channels, self.beside[: self.width]
        self.inputs_left.zero_()
        across = torch.bmm(self.vertical, weights.across).view(-1, self.batch, self.width, 2 * c)
        torch.add(across.permute(2, 0, 1, 3), weights.horizontal_bias, out=beside[..., : 2 * c])
        if weights.layers == 1:
            self.beside_head[:] = self.at_location + weights.out_bias[0]
        else:
            beside[:, 1, :, : 2 * c] += self.at_location_gate[:, None]
            beside[:, 1, :, 2 * c :] = (self.at_location + weights.out_bias[0])[:, None]

    def _draw_code(self, column: int) -> None:
        weights = self.weights
        gate, content, opening = self.first_gate
        torch.tanh(self.first_gate_at[column], out=gate)
        torch.addcmul(content, content, opening, out=opening)
        for beside, (read, matrix, product, gate, content, opening) in zip(self.beside_at[column], self.steps):
            torch.addmm(beside, read, matrix, out=product)
            gate.tanh_()
            torch.addcmul(content, content, opening, out=opening)
        features = torch.addmm(self.beside_head_at[column], self.to_head, weights.last)
        code = self.draw(weights.head(features), self.noise_at[column])
        if self.partly_known:
            code = torch.where(self.keep_at[column], self.known_at[column], code)
        self.codes_at[column].copy_(code)
        if column + 1 < self.width:
            self.first_right_of[column].add_(weights.horizontal_table.index_select(0, code[:, 0]))
            self.inputs_left.copy_(self.inputs)

    def _move_down(self) -> None:
        """This row becomes the row above."""
        c, past = self.weights.channels, self.weights.past
        self.above[:, :-1] = self.above[:, 1:].clone()
        self.above[:, -1, past : past + self.width] = self.codes
        self.windows[..., : 3 * c] = self.windows[..., 3 * c :]

    def _captured(self) -> Callable[[], None]:
        """`_draw_row` as a CUDA graph: replaying it costs one launch instead of some thousands."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._draw_row()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._draw_row()
        self._reset()
        return graph.replay


class SamplerWeights:
    """The prior's weights, multiplied out for `CachedSampler` (in float64, kept in the prior's own precision).

    A gate's second half is scaled by a half, and features by two, as sigmoid(x) = (1 + tanh(x / 2)) / 2: with t the tanh of a
    scaled gate, tanh(a) sigmoid(b) = (t_a + t_a t_b) / 2. Matrices are laid out to be multiplied from the right: `[in, out]`.
    """

    def __init__(self, prior: nn.Module, conditions: list[Tensor | None], location: Tensor):
        first, later = prior.layers[0], prior.layers[1:]
        self.layers, self.channels, self.num_codes = len(prior.layers), location.shape[0], prior.num_codes
        self.past = first.reach  # rows above, and columns to the left, that the first layer sees
        self.head_activations = prior.head[0], prior.head[2]
        self.head_matrices = [(layer.bias, layer.weight.flatten(1).t().contiguous()) for layer in prior.head[1::2]]
        keep = partial(torch.Tensor.to, dtype=location.dtype)
        c = self.channels
        scale = torch.ones(2 * c, dtype=torch.float64, device=location.device)
        scale[c:] = 0.5

        embedding = prior.embedding.weight.double()
        kernel = first.vertical.weight.double() * scale[:, None, None, None]  # [2C, C, rows, columns]
        table = torch.einsum("kc,ocyx->yxko", embedding, kernel)
        none = torch.zeros_like(table[:, :, :1])  # outside the map
        self.vertical_table = keep(torch.cat([table, none], dim=2).flatten(0, 2))
        offsets = torch.arange(math.prod(kernel.shape[2:]), device=location.device)
        self.offsets = offsets * (self.num_codes + 1)  # of each place of the kernel in the table
        kernel = first.horizontal.weight.double()[:, :, 0] * scale[:, None, None]  # [2C, C, columns], leftmost first
        self.horizontal_table = keep(torch.einsum("kc,ocx->kxo", embedding, kernel.flip(2)).contiguous())

        self.vertical_bias = keep(torch.stack([layer.vertical.bias.double() * scale for layer in prior.layers]))
        self.vertical_kernels = [
            keep(
                (layer.vertical.weight.double() * scale[:, None, None, None] / 2).permute(2, 3, 1, 0).reshape(6 * c, -1)
            )
            for layer in later
        ]
        across = [_matrix(layer.vertical_to_horizontal) * scale / scale[:, None] for layer in prior.layers]
        self.across = keep(torch.stack(across))

        zero = scale.new_zeros(1, 4 * c)
        biases = [(zero if condition is None else condition.double()).chunk(2, dim=1) for condition in conditions]
        self.vertical_condition = [keep(vertical * scale) for vertical, _ in biases]  # [B or 1, 2C] each
        batch = max(len(horizontal) for _, horizontal in biases)
        own = torch.stack(
            [layer.vertical_to_horizontal.bias.double() + layer.horizontal.bias.double() for layer in prior.layers]
        )
        gate_bias = (own[:, None] + torch.stack([horizontal.expand(batch, -1) for _, horizontal in biases])) * scale
        out_bias = torch.stack([layer.out.bias.double() for layer in prior.layers])
        self.out_bias = keep(out_bias)

        outs = [_matrix(layer.out) / 2 for layer in prior.layers]  # [C, C]
        left = [layer.horizontal.weight.double()[:, :, 0, 0].t() * scale for layer in later]  # [C, 2C]
        here = [layer.horizontal.weight.double()[:, :, 0, 1].t() * scale for layer in later]
        identity = torch.eye(c, dtype=torch.float64, device=location.device)
        self.products = [  # [3C, 3C]: gated features, input and input at the left -> the next layer's gate and its input
            keep(torch.cat([torch.cat([out @ now, now, before]), torch.cat([out, identity, 0 * out])], dim=1))
            for out, now, before in zip(outs, here, left)
        ]
        self.last = keep(torch.cat([outs[-1], identity]))
        for index, matrix in enumerate(here):  # the last layer's bias reaches the next gate
            gate_bias[index + 1] += out_bias[index] @ matrix
        self.horizontal_bias = keep(gate_bias)  # [L, B or 1, 2C]
        places = location.double().permute(1, 2, 0)  # [h, w, C]
        self.location = keep(places)
        self.location_gate = keep(places @ here[0]) if here else location.new_zeros(*places.shape[:2], 2 * c)

    def head(self, features: Tensor) -> Tensor:
        """The prior's head at single places: `[B, C]` -> `[B, K]` logits."""
        for activation, (bias, matrix) in zip(self.head_activations, self.head_matrices):
            features = torch.addmm(bias, activation.forward(features), matrix)
        return features


def _matrix(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weight as `[in, out]` float64."""
    return convolution.weight.double().flatten(1).t()
