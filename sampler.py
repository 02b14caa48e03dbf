"""Drawing code maps from a gated PixelCNN at about the cost of one forward pass.

`GatedPixelCNN.sample` uses it. The vertical stack is computed some columns at a time and the horizontal one code by code, for a
whole batch, and nothing is computed twice:

- A code depends on the row above only up to some columns to its right. Small batches are therefore drawn along a wavefront:
  several rows at a time, each some columns behind the one above (`Schedule`).
- Codes are embedded and convolved by looking up tables of (code, offset in the kernel), summed.
- A layer of the horizontal stack is one product: its own 1x1 convolution and the next layer's kernel are multiplied out in
  advance, and what the vertical stack adds to its gate is computed for many places at once.
- Gates need one hyperbolic tangent: sigmoid(x) = (1 + tanh(x / 2)) / 2, with the halves moved into the weights.

On CUDA a block of columns is captured as a graph and replayed, since it is some thousands of small kernels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BELOW_ONE = 1 - 2**-22
WAVEFRONT_BLOCK = 6  # columns of a block in a wavefront: more make a longer lag, fewer more calls of the vertical stack
WAVEFRONT_BATCH = 8  # maps at most that are drawn along a wavefront
WAVEFRONT_STEPS = 0.75  # steps at most, as a share of those row by row


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


@dataclass(frozen=True)
class Schedule:
    """When each place of a `[height, width]` map is drawn: place (r, c) at time `lag * r + c`.

    With a lag of the width that is raster order, a place at a time. With a shorter one, a row begins while those above it are
    still being drawn, and places of several rows are drawn at a time; the lag is long enough that all they depend on is there.

    Times are worked through in blocks. A block begins with the vertical stack: its last layer for the places that the block will
    draw, each layer below for places `ahead` columns further on than the layer above it, which sees that far to the right.

    A row has one of `slots` rows of the sampler's buffers, in turns. `lag` is a multiple of `block`, so rows begin with a block.
    """

    height: int
    width: int
    lag: int
    block: int
    ahead: int

    @classmethod
    def by_rows(cls, height: int, width: int) -> "Schedule":
        """A row after the other, in one block each."""
        return cls(height, width, lag=width, block=width, ahead=0)

    @classmethod
    def wavefront(cls, height: int, width: int, layers: int, past: int) -> "Schedule":
        """Rows that follow each other as closely as the receptive field of the layers allows; the first sees `past` columns."""
        block = max(WAVEFRONT_BLOCK, past)
        reach = layers - 1 + past  # columns to the right that a code can see in the row above
        return cls(height, width, lag=-(-(reach + block) // block) * block, block=block, ahead=1)

    @classmethod
    def fastest(cls, batch: int, height: int, width: int, layers: int, past: int) -> "Schedule":
        """A wavefront for small batches, whose time is the number of steps, where it has far fewer of them."""
        rows, wavefront = cls.by_rows(height, width), cls.wavefront(height, width, layers, past)
        return wavefront if batch <= WAVEFRONT_BATCH and wavefront.steps < WAVEFRONT_STEPS * rows.steps else rows

    @property
    def slots(self) -> int:
        return -(-self.width // self.lag)

    @property
    def steps(self) -> int:
        """Places drawn one after the other."""
        return self.lag * (self.height - 1) + self.width

    def times(self, layers: int) -> Tensor:
        """`[blocks, block]`; below zero the lower layers get ahead of the first place."""
        early = -(-self.ahead * (layers - 1) // self.block)
        blocks = early + -(-self.steps // self.block)
        return torch.arange(-early * self.block, (blocks - early) * self.block).view(blocks, self.block)

    def places(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and whether there is such a place, of each slot: `[...]` -> `[..., slots]` each."""
        slot = torch.arange(self.slots)
        since, period = times[..., None] - self.lag * slot, self.lag * self.slots
        row, column = slot + self.slots * since.div(period, rounding_mode="floor"), since.remainder(period)
        return row, column, (row >= 0) & (row < self.height) & (column < self.width)


class Tables:
    """Where the sampler's buffers are read and written in each block of a schedule, as indices, a row a block.

    Features of the vertical stack are kept by place, for as many rows as are still needed, with a column of zeros on either side;
    codes by place with `past` rows above and `past` columns on either side. The last entry of both is for what is no place.
    """

    def __init__(self, schedule: Schedule, layers: int, past: int):
        height, width = schedule.height, schedule.width
        times = schedule.times(layers)
        ahead = schedule.ahead * torch.arange(layers - 1, -1, -1)
        rows, columns, valid = schedule.places(times[:, None] + ahead[:, None])  # [blocks, L, block, slots] each
        kept = schedule.slots + 2  # rows: those being computed, in the layer below too, and the one above them
        self.feature_places = kept * (width + 2) + 2
        nowhere = self.feature_places - 1
        here = rows.remainder(kept) * (width + 2) + columns + 1
        above = (rows - 1).remainder(kept) * (width + 2) + columns + 1
        around = torch.stack([above - 1, above, above + 1, here - 1, here, here + 1], dim=-1)
        self.here = here.where(valid, nowhere).flatten(2)  # [blocks, L, n], n = block * slots
        self.around = around.where(valid[..., None], nowhere).flatten(2, 3)[:, 1:]  # [blocks, L - 1, n, 6]

        pitch = width + 2 * past
        self.code_places = (height + past) * pitch + 1
        first = rows[:, 0] * pitch + columns[:, 0]  # the corner of what the first layer's kernel covers
        kernel = (torch.arange(past)[:, None] * pitch + torch.arange(2 * past + 1)).flatten()
        self.covered = first.where(valid[:, 0], 0).flatten(1)[:, :, None] + kernel  # [blocks, n, past * (2 past + 1)]
        row, column, drawn = rows[:, -1], columns[:, -1], valid[:, -1]
        self.target = ((row + past) * pitch + column + past).where(drawn, self.code_places - 1).flatten(1)
        self.spot = (row * width + column).where(drawn, 0).flatten(1)  # [blocks, n]
        self.goes_on = (columns[:, -1, 0] > 0).float()  # [blocks, slots]: the row began in an earlier block
        self.rows_done = ((times[:, -1] - width + 1).div(schedule.lag, rounding_mode="floor") + 1).clamp(0, height)


class CachedSampler:
    """Draws code maps.

    Every buffer keeps its place in memory from block to block, so that a block may be captured as a CUDA graph.

    Args:
        prior: a `GatedPixelCNN` in eval mode.
        schedule: in which order places are drawn.
        conditions: gate biases `[B, 4C]` of each layer, or None each.
        location: `[C, h, w]`, what each place adds to the features of the first layer.
        draw: from logits and noise to a code.
        noise: `[B, h, w]` in 0..1, decides what is drawn.
        known: codes and where they stand, `[B, h, w]` int64 and bool, or None.
    """

    def __init__(
        self,
        prior: nn.Module,
        schedule: Schedule,
        conditions: list[Tensor | None],
        location: Tensor,
        draw: Draw,
        noise: Tensor,
        known: tuple[Tensor, Tensor] | None = None,
    ):
        self.schedule, self.draw, self.batch = schedule, draw, len(noise)
        self.weights = weights = SamplerWeights(prior, conditions, location)
        layers, c, past, device = weights.layers, weights.channels, weights.past, location.device
        self.tables = tables = Tables(schedule, layers, past)
        block, rows = schedule.block, schedule.slots * self.batch  # rows of a step's products: slots, then batch
        new = partial(torch.zeros, dtype=location.dtype, device=device)
        self.noise_by_spot = _by_spot(as_noise(noise, location.dtype)).to(device)
        self.known_by_spot = None if known is None else [_by_spot(part).to(device) for part in known]
        # where this block reads and writes
        self.here, self.target, self.spot = (table[0].to(device) for table in (tables.here, tables.target, tables.spot))
        self.covered = tables.covered[0].to(device)
        self.around = self._around(0)
        self.goes_on = new(rows, 1)
        # codes by place, and the vertical stack by place: its gates before the condition [2C] and its features [C]
        self.map = torch.full((tables.code_places, self.batch), weights.num_codes, device=device)
        self.vertical = new(layers, tables.feature_places, self.batch, 2 * c)
        self.features = new(layers - 1, tables.feature_places * self.batch, c)
        self.vertical_bias = weights.vertical_bias.expand(-1, self.batch, -1).repeat(1, block * schedule.slots, 1)
        self.horizontal_bias = weights.horizontal_bias.expand(-1, self.batch, -1).repeat(1, schedule.slots, 1)
        # what stands beside the products of the horizontal stack: for a layer's gate [2C], for its input [C]
        self.beside = new(block + past, layers, rows, 3 * c)
        self.beside_head = new(block, rows, c)  # and beside the product that makes the features for the head
        # at this place a layer's gate [2C] and input [C], and what the next layer's input was at the place to the left [C]
        self.state = new(layers, rows, 4 * c)
        self.noise = new(block, rows)
        self.codes = torch.zeros(block, rows, dtype=torch.int64, device=device)
        self.known, self.keep = torch.zeros_like(self.codes), torch.zeros_like(self.codes, dtype=torch.bool)
        self._make_views()
        self._reset()
        self._run = self._captured() if device.type == "cuda" else self._run_block

    def sample(self, progress: Callable[[int], None] | None = None) -> Tensor:
        """Draw all maps, `[B, h, w]` int64; `progress` is called with the number of rows just finished."""
        schedule, past, done = self.schedule, self.weights.past, 0
        for block, rows in enumerate(self.tables.rows_done.tolist()):
            self._enter(block)
            if self._is_known():
                self._run_vertical()
                self.codes.copy_(self.known_by_spot[0][self.spot].view_as(self.codes))
                self._keep_codes()
            else:
                self._run()
            if progress is not None and rows > done:
                progress(rows - done)
            done = rows
        padded = self.map[:-1].view(schedule.height + past, -1, self.batch)
        return padded[past:, past : past + schedule.width].permute(2, 0, 1).contiguous()

    def _is_known(self) -> bool:
        """Whether the block is a row of known codes, so that nothing need be drawn."""
        return (
            self.known_by_spot is not None and self.schedule.ahead == 0 and bool(self.known_by_spot[1][self.spot].all())
        )

    def _enter(self, block: int) -> None:
        tables = self.tables
        (
            self.here.copy_(tables.here[block]),
            self.target.copy_(tables.target[block]),
            self.spot.copy_(tables.spot[block]),
        )
        self.covered.copy_(tables.covered[block])
        self.around.copy_(self._around(block))
        self.goes_on.copy_(tables.goes_on[block].repeat_interleave(self.batch)[:, None])

    def _around(self, block: int) -> Tensor:
        """`[L - 1, n * B * 6]`: in the features by place and batch."""
        batch = torch.arange(self.batch)[:, None]
        return (self.tables.around[block][:, :, None] * self.batch + batch).flatten(1).to(self.here.device)

    def _reset(self) -> None:
        """As before the first block."""
        weights, c = self.weights, self.weights.channels
        self.map.fill_(weights.num_codes)
        self.vertical.zero_(), self.features.zero_(), self.state.zero_(), self.beside.zero_()
        self.beside[:, 1:, :, 2 * c :] = weights.out_bias[:-1, None]
        self.beside_head[:] = weights.out_bias[-1]

    def _make_views(self) -> None:
        """Views of the buffers by step and layer, made once: making one costs as much as using it."""
        c, past, steps = self.weights.channels, self.weights.past, range(self.schedule.block)
        self.noise_at, self.keep_at, self.known_at = (
            [row[:, None] for row in buffer] for buffer in (self.noise, self.keep, self.known)
        )
        self.codes_at = self.codes.unbind(0)
        self.beside_at = [layers[1:].unbind(0) for layers in self.beside[: len(steps)]]
        self.first_gate_at = [layers[0, :, : 2 * c] for layers in self.beside[: len(steps)]]
        self.beside_head_at = self.beside_head.unbind(0)
        self.first_right_of = [self.beside[step + 1 : step + 1 + past, 0, :, : 2 * c].transpose(0, 1) for step in steps]
        gates = [(state[:, : 2 * c], state[:, :c], state[:, c : 2 * c]) for state in self.state]
        self.first_gate, *later_gates = gates
        # of each later layer: what its product reads and is made of and writes, then its gate and the gate's halves
        self.steps = [
            (before[:, c:], matrix, state[:, : 3 * c], *gate)
            for before, matrix, state, gate in zip(self.state, self.weights.products, self.state[1:], later_gates)
        ]
        self.to_head = self.state[-1, :, c : 3 * c]
        self.inputs, self.inputs_left = self.state[1:, :, 2 * c : 3 * c], self.state[:-1, :, 3 * c :]

    def _run_block(self) -> None:
        self._run_vertical()
        self._start_block()
        for step in range(self.schedule.block):
            self._draw_code(step)
        self._keep_codes()

    def _run_vertical(self) -> None:
        """The vertical stack's next places, of every layer, from the codes and the features above them."""
        weights, c = self.weights, self.weights.channels
        covered = self.map[self.covered].transpose(1, 2).flatten(0, 1)  # [n * B, places under the kernel]
        gate = F.embedding_bag(covered + weights.offsets, weights.vertical_table, mode="sum") + self.vertical_bias[0]
        for layer, kept in enumerate(self.vertical):
            if layer:
                covered = self.features[layer - 1].index_select(0, self.around[layer - 1]).view(-1, 6 * c)
                gate = torch.addmm(self.vertical_bias[layer], covered, weights.vertical_kernels[layer - 1])
            kept.index_copy_(0, self.here[layer], gate.view(-1, self.batch, 2 * c))
            if layer + 1 < weights.layers:
                content, opening = gate.tanh_().chunk(2, dim=1)
                features = torch.addcmul(content, content, opening)
                by_place = self.features[layer].view(-1, self.batch, c)
                by_place.index_copy_(0, self.here[layer], features.view(-1, self.batch, c))

    def _start_block(self) -> None:
        """Put beside the horizontal stack's products what does not depend on this block's codes."""
        weights, c, block = self.weights, self.weights.channels, self.schedule.block
        size = (block, self.schedule.slots, self.batch)
        spill = self.beside[block:, 0, :, : 2 * c] * self.goes_on  # of the codes of the block before
        vertical = self.vertical.index_select(1, self.here[-1]).flatten(1, 2)
        across = torch.bmm(vertical, weights.across).unflatten(1, (block, -1)).transpose(0, 1)
        torch.add(across, self.horizontal_bias, out=self.beside[:block, :, :, : 2 * c])
        self.beside[block:, 0].zero_()
        self.beside[: len(spill), 0, :, : 2 * c] += spill
        self.inputs_left.mul_(self.goes_on)
        location = weights.location[self.spot].view(*size[:2], 1, c) + weights.out_bias[0]
        if weights.layers == 1:
            self.beside_head.unflatten(1, size[1:])[:] = location
        else:
            second = self.beside[:block, 1].unflatten(1, size[1:])
            second[..., : 2 * c] += weights.location_gate[self.spot].view(*size[:2], 1, 2 * c)
            second[..., 2 * c :] = location
        self.noise.copy_(self.noise_by_spot[self.spot].view_as(self.noise))
        if self.known_by_spot is not None:
            for buffer, by_spot in zip((self.known, self.keep), self.known_by_spot):
                buffer.copy_(by_spot[self.spot].view_as(buffer))

    def _draw_code(self, step: int) -> None:
        weights = self.weights
        gate, content, opening = self.first_gate
        torch.tanh(self.first_gate_at[step], out=gate)
        torch.addcmul(content, content, opening, out=opening)
        for beside, (read, matrix, product, gate, content, opening) in zip(self.beside_at[step], self.steps):
            torch.addmm(beside, read, matrix, out=product)
            gate.tanh_()
            torch.addcmul(content, content, opening, out=opening)
        features = torch.addmm(self.beside_head_at[step], self.to_head, weights.last)
        code = self.draw(weights.head(features), self.noise_at[step])
        if self.known_by_spot is not None:
            code = torch.where(self.keep_at[step], self.known_at[step], code)
        code = code[:, 0]
        self.codes_at[step].copy_(code)
        self.first_right_of[step].add_(weights.horizontal_table.index_select(0, code))
        self.inputs_left.copy_(self.inputs)

    def _keep_codes(self) -> None:
        self.map.index_copy_(0, self.target, self.codes.view(-1, self.batch))

    def _captured(self) -> Callable[[], None]:
        """`_run_block` as a CUDA graph: replaying it costs one launch instead of some thousands."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run_block()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run_block()
        self._reset()
        return graph.replay


def _by_spot(values: Tensor) -> Tensor:
    """`[B, h, w]` -> `[h * w, B]`."""
    return values.flatten(1).t().contiguous()


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

        self.vertical_kernels = [
            keep(
                (layer.vertical.weight.double() * scale[:, None, None, None] / 2).permute(2, 3, 1, 0).reshape(6 * c, -1)
            )
            for layer in later
        ]
        across = torch.stack([_matrix(layer.vertical_to_horizontal) * scale / scale[:, None] for layer in prior.layers])
        self.across = keep(across)

        zero = scale.new_zeros(1, 4 * c)
        biases = [zero if condition is None else condition.double() for condition in conditions]
        vertical, horizontal = (torch.stack(torch.broadcast_tensors(*biases)) * scale.repeat(2)).chunk(2, dim=2)
        own = torch.stack([layer.vertical.bias.double() for layer in prior.layers]) * scale
        self.vertical_bias = keep(own[:, None] + vertical)  # [L, B or 1, 2C]
        own = [layer.vertical_to_horizontal.bias.double() + layer.horizontal.bias.double() for layer in prior.layers]
        # the horizontal stack sees the vertical gates without their condition
        gate_bias = torch.stack(own)[:, None] * scale + horizontal - vertical @ across
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
        self.location = keep(places.flatten(0, 1))  # by spot
        self.location_gate = keep((places @ here[0]).flatten(0, 1)) if here else None

    def head(self, features: Tensor) -> Tensor:
        """The prior's head at single places: `[B, C]` -> `[B, K]` logits."""
        for activation, (bias, matrix) in zip(self.head_activations, self.head_matrices):
            features = torch.addmm(bias, activation.forward(features), matrix)
        return features


def _matrix(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weight as `[in, out]` float64."""
    return convolution.weight.double().flatten(1).t()
