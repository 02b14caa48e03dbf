"""Drawing code maps from a gated PixelCNN at about the cost of one forward pass.

`GatedPixelCNN.sample` uses it. The vertical stack is computed some columns at a time and the horizontal one code by code, for a
whole batch, and nothing is computed twice:

- A code depends on the row above only up to some columns to its right. Small batches are therefore drawn along a wavefront:
  several rows at a time, each some columns behind the one above (`Schedule`).
- Codes are embedded and convolved by looking up tables of (code, offset in the kernel), summed.
- What reaches a gate of the horizontal stack from the vertical one, from conditions and from the column before is computed for
  many places or all layers at once.
- Gates need one sigmoid: tanh(x) = 2 sigmoid(2x) - 1, with the twos moved into the weights.
- A step of a few rows costs what its calls cost, not what they compute. NumPy's calls and its small products are cheaper than
  PyTorch's, so on a CPU it multiplies those, on the same memory, with one product a horizontal layer in place of two.

On CUDA a block of columns is captured as a graph and replayed, since it is some thousands of small kernels.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BELOW_ONE = 1 - 2**-22
WAVEFRONT_BLOCK = 6  # columns of a block in a wavefront: more make a longer lag, fewer more calls of the vertical stack
WAVEFRONT_BATCH = 4  # maps at most that are drawn along a wavefront
FEW_ROWS = 32  # rows of a step's products at most that NumPy multiplies, and one thread of PyTorch works on
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
        log_marginal: `[K, h, w]`, what each place adds to the logits, or None.
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
        log_marginal: Tensor | None = None,
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
        self.here, self.target, self.spot, self.covered = (
            table[0].clone().to(device) for table in (tables.here, tables.target, tables.spot, tables.covered)
        )
        self.around = self._around(0)
        self.goes_on = new(rows, 1)
        # codes by place, and the vertical stack by place: its gates, condition included [2C], and its features [C]
        self.map = torch.full((tables.code_places, self.batch), weights.num_codes, device=device)
        self.vertical = new(layers, tables.feature_places, self.batch, 2 * c)
        self.vertical_features = new(layers - 1, tables.feature_places, self.batch, c)
        self.vertical_bias = weights.vertical_bias.expand(-1, self.batch, -1).repeat(1, block * schedule.slots, 1)
        self.horizontal_bias = weights.horizontal_bias.expand(-1, self.batch, -1).repeat(1, schedule.slots, 1)
        count = block * rows  # places and maps that the vertical stack is computed for at a time
        self.window, self.window_gate, self.window_features = new(count * 6, c), new(count, 2 * c), new(count, c)
        # the horizontal stack at the places of a step: what is known of its gates before the codes of the block [2C], what the
        # column before adds to that, gates, gated features and, cumulated, what each layer hands on; and what the location adds
        self.beside = new(block + past, layers, rows, 2 * c)
        self.with_left = new(layers - 1, rows, 2 * c)
        self.gates, self.gated, self.handed_on = new(layers, rows, 2 * c), new(layers, rows, c), new(layers, rows, c)
        few = device.type == "cpu" and rows <= FEW_ROWS
        self.chain = HorizontalChain(weights, rows) if few else None
        self.addmm, self.bmm = (_numpy_addmm, _numpy_bmm) if few else (torch.addmm, torch.bmm)
        self.at_location = new(block, rows, c)
        self.marginal_by_spot = None if log_marginal is None else log_marginal.flatten(1).t().contiguous()  # [h * w, K]
        self.at_marginal = new(block, schedule.slots, 1, weights.num_codes)
        self.noise = new(block, rows)
        self.codes = torch.zeros(block, rows, dtype=torch.int64, device=device)
        self.known, self.keep = torch.zeros_like(self.codes), torch.zeros_like(self.codes, dtype=torch.bool)
        self._make_views()
        self._reset()
        self._run = self._captured() if device.type == "cuda" else self._run_block

    def sample(self, progress: Callable[[int], None] | None = None) -> Tensor:
        """Draw all maps, `[B, h, w]` int64; `progress` is called with the number of rows just finished."""
        with _threads(1 if self.codes.shape[1] <= FEW_ROWS else torch.get_num_threads()):
            self._run_blocks(progress)
        past, schedule = self.weights.past, self.schedule
        padded = self.map[:-1].view(schedule.height + past, -1, self.batch)
        return padded[past:, past : past + schedule.width].permute(2, 0, 1).contiguous()

    def _run_blocks(self, progress: Callable[[int], None] | None) -> None:
        done = 0
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

    def _is_known(self) -> bool:
        """Whether the block is a row of known codes, so that nothing need be drawn."""
        return (
            self.known_by_spot is not None and self.schedule.ahead == 0 and bool(self.known_by_spot[1][self.spot].all())
        )

    def _enter(self, block: int) -> None:
        """Read and write where this block does."""
        for name in ("here", "target", "spot", "covered"):
            getattr(self, name).copy_(getattr(self.tables, name)[block])
        self.around.copy_(self._around(block))
        self.goes_on.copy_(self.tables.goes_on[block].repeat_interleave(self.batch)[:, None])

    def _around(self, block: int) -> Tensor:
        """`[L - 1, n * B * 6]`: in the features by place and batch."""
        batch = torch.arange(self.batch)[:, None]
        return (self.tables.around[block][:, :, None] * self.batch + batch).flatten(1).to(self.here.device)

    def _reset(self) -> None:
        """As before the first block."""
        self.map.fill_(self.weights.num_codes)
        for buffer in (self.vertical, self.vertical_features, self.beside, self.before_last):
            buffer.zero_()

    def _make_views(self) -> None:
        """Views of the buffers by step and layer, made once: making one costs as much as using it."""
        weights, c, past, steps = self.weights, self.weights.channels, self.weights.past, range(self.schedule.block)
        self.noise_at, self.keep_at, self.known_at = (
            [row[:, None] for row in buffer] for buffer in (self.noise, self.keep, self.known)
        )
        self.codes_at, self.marginal_at = self.codes.unbind(0), self.at_marginal.unbind(0)
        self.first_gate_at = [layers[0] for layers in self.beside[: len(steps)]]
        self.later_gates_at = [layers[1:] for layers in self.beside[: len(steps)]]
        self.first_right_of = [self.beside[step + 1 : step + 1 + past, 0].transpose(0, 1) for step in steps]
        self.before_last = self.handed_on[:-1] if self.chain is None else self.chain.before_last
        # of each layer: its gate, the gate's halves and what they make; what it hands on, and the gate that comes of that
        self.gate_views = [(gate, gate[:, :c], gate[:, c:], gated) for gate, gated in zip(self.gates, self.gated)]
        self.out_views = list(zip(self.gated, weights.outs, self.handed_on))
        self.next_views = list(zip(self.with_left, self.handed_on, weights.here, self.gates[1:]))

        def by_place(tensor: Tensor) -> Tensor:
            return tensor.view(-1, self.batch, tensor.shape[-1])

        self.window_gate_parts = self.window_gate[:, :c], self.window_gate[:, c:]
        self.window_gate_by_place, self.window_features_by_place = map(
            by_place, (self.window_gate, self.window_features)
        )
        self.window_rows = self.window.view(-1, 6 * c)
        # of the vertical stack's later layers: what is read and where, bias, kernel; of all: where and to what is written
        self.window_reads = list(
            zip(self.vertical_features.flatten(1, 2), self.around, self.vertical_bias[1:], weights.vertical_kernels)
        )
        self.gate_writes = list(zip(self.vertical, self.here))
        self.feature_writes = list(zip(self.vertical_features, self.here))

    def _run_block(self) -> None:
        self._run_vertical()
        self._start_block()
        for step in range(self.schedule.block):
            self._draw_code(step)
        self._keep_codes()

    def _run_vertical(self) -> None:
        """The vertical stack's next places, of every layer, from the codes and the features above them."""
        weights, gate, features = self.weights, self.window_gate, self.window_features
        covered = self.map[self.covered].transpose(1, 2).flatten(0, 1)  # [n * B, places under the kernel]
        table = F.embedding_bag(covered + weights.offsets, weights.vertical_table, mode="sum")
        torch.add(table, self.vertical_bias[0], out=gate)
        for layer, (gates, here) in enumerate(self.gate_writes):
            if layer:
                source, around, bias, kernel = self.window_reads[layer - 1]
                torch.index_select(source, 0, around, out=self.window)
                self.addmm(bias, self.window_rows, kernel, out=gate)
            gates.index_copy_(0, here, self.window_gate_by_place)
            if layer + 1 < weights.layers:
                _gated(gate, *self.window_gate_parts, features)
                self.feature_writes[layer][0].index_copy_(0, here, self.window_features_by_place)

    def _start_block(self) -> None:
        """What does not depend on this block's codes."""
        weights, block = self.weights, self.schedule.block
        size = (block, self.schedule.slots, self.batch)
        spill = self.beside[block:, 0] * self.goes_on  # of the codes of the block before
        vertical = self.vertical.index_select(1, self.here[-1]).flatten(1, 2)
        across = self.bmm(vertical, weights.across).unflatten(1, (block, -1)).transpose(0, 1)
        torch.add(across, self.horizontal_bias, out=self.beside[:block])
        self.beside[block:, 0].zero_()
        self.beside[: len(spill), 0] += spill
        self.before_last.copy_(torch.where(self.goes_on > 0, self.before_last, weights.no_input))
        self.at_location.unflatten(1, size[1:]).copy_(weights.location[self.spot].view(*size[:2], 1, -1))
        if self.marginal_by_spot is not None:
            self.at_marginal.copy_(self.marginal_by_spot[self.spot].view_as(self.at_marginal))
        self.noise.copy_(self.noise_by_spot[self.spot].view_as(self.noise))
        if self.known_by_spot is not None:
            for buffer, by_spot in zip((self.known, self.keep), self.known_by_spot):
                buffer.copy_(by_spot[self.spot].view_as(buffer))

    def _draw_code(self, step: int) -> None:
        weights = self.weights
        if self.chain is None:
            features = self._run_horizontal(step)
        else:
            features = self.chain.run(self.first_gate_at[step], self.later_gates_at[step], self.at_location[step])
        logits = weights.head(features, self.addmm)
        if self.marginal_by_spot is not None:
            logits.view(-1, self.batch, weights.num_codes).add_(self.marginal_at[step])
        code = self.draw(logits, self.noise_at[step])
        if self.known_by_spot is not None:
            code = torch.where(self.keep_at[step], self.known_at[step], code)
        code = code[:, 0]
        self.codes_at[step].copy_(code)
        self.first_right_of[step].add_(weights.horizontal_table.index_select(0, code))

    def _run_horizontal(self, step: int) -> Tensor:
        """The horizontal stack at the places of a step: what its last layer hands on, `[rows, C]`."""
        weights = self.weights
        torch.baddbmm(self.later_gates_at[step], self.before_last, weights.left, out=self.with_left)
        self.gates[0].copy_(self.first_gate_at[step])
        handed_on = self.at_location[step]
        for layer, (gated, out, to) in enumerate(self.out_views):
            _gated(*self.gate_views[layer])
            handed_on = torch.addmm(handed_on, gated, out, out=to)
            if layer + 1 < weights.layers:
                with_left, _, here, gate = self.next_views[layer]
                torch.addmm(with_left, handed_on, here, out=gate)
        return handed_on

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


class HorizontalChain:
    """The horizontal stack at a few places, in NumPy: what `CachedSampler._run_horizontal` computes.

    What a layer takes in stands above its gates, `[in; gates]`, a column a place; its gated features take the place of the gates'
    first half, so that a matrix times `[in; gated]` is the next layer's `[in; gates]` but for what the column before and the
    vertical stack add.

    before_last: `[L - 1, rows, C]`, what each layer but the last has handed on.
    """

    def __init__(self, weights: "SamplerWeights", rows: int):
        layers, c = weights.layers, weights.channels
        chain, features = weights.location.new_zeros(layers, 3 * c, rows), weights.location.new_zeros(c, rows)
        self.features, self.before_last = features.t(), chain[1:, :c].transpose(1, 2)
        self.left, self.before = weights.left.transpose(1, 2).numpy(), chain[1:, :c].numpy()
        self.with_left = np.zeros((layers - 1, 2 * c, rows), chain.numpy().dtype)
        states = list(chain.numpy())
        self.first_input, self.first_gates = states[0][:c], states[0][c:]
        # of each layer: gates, their halves, what is multiplied, by what, and where to; the next gates and what is added to them
        to = [*states[1:], features.numpy()]
        added = [*zip((state[c:] for state in states[1:]), self.with_left), (features.numpy(), 0)]
        self.steps = [
            (state[c:], state[c : 2 * c], state[2 * c :], state[: 2 * c], matrix.t().contiguous().numpy(), out, *more)
            for state, matrix, out, more in zip(states, self._matrices(weights), to, added)
        ]

    @staticmethod
    def _matrices(weights: "SamplerWeights") -> list[Tensor]:
        """`[2C, 3C]` of each layer, `[2C, C]` of the last. Gated features come out as -2 times what `_gated` makes of them."""
        same, matrices = torch.eye(weights.channels, dtype=torch.float64), []
        for layer, out in enumerate(weights.outs.double() / -2):
            handed_on = torch.cat([same, out])
            more = [handed_on @ weights.here[layer].double()] if layer + 1 < weights.layers else []
            matrices.append(torch.cat([handed_on, *more], dim=1).to(weights.outs.dtype))
        return matrices

    def run(self, first_gates: Tensor, later_gates: Tensor, location: Tensor) -> Tensor:
        """`[rows, 2C]`, `[L - 1, rows, 2C]` and `[rows, C]` -> what the last layer hands on, `[rows, C]`."""
        np.matmul(self.left, self.before, out=self.with_left)
        np.add(self.with_left, later_gates.numpy().swapaxes(1, 2), out=self.with_left)
        self.first_input[:], self.first_gates[:] = location.numpy().T, first_gates.numpy().T
        for gates, content, opening, state, matrix, out, next_gates, with_left in self.steps:
            np.multiply(gates, 0.5, out=gates)
            np.tanh(gates, out=gates)  # sigmoid(b) = (1 + tanh(b / 2)) / 2
            np.multiply(opening, content, out=opening)
            np.add(content, opening, out=content)
            np.dot(matrix, state, out=out)
            np.add(next_gates, with_left, out=next_gates)
        return self.features


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with this many threads: waking others for a small product costs more than the product."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gated(gate: Tensor, content: Tensor, opening: Tensor, out: Tensor) -> None:
    """Minus tanh(a) sigmoid(b) of a gate that holds 2a and b, `[..., 2C]` -> `[..., C]`; its halves are passed as views."""
    gate.sigmoid_()
    torch.addcmul(opening, content, opening, value=-2, out=out)


def _numpy_addmm(bias: Tensor, x: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """`torch.addmm`, multiplied by NumPy."""
    out = x.new_empty(len(x), matrix.shape[1]) if out is None else out
    np.dot(x.numpy(), matrix.numpy(), out=out.numpy())
    return out.add_(bias)


def _numpy_bmm(x: Tensor, matrices: Tensor) -> Tensor:
    """`torch.bmm`, multiplied by NumPy."""
    return torch.from_numpy(np.matmul(x.numpy(), matrices.numpy()))


def _by_spot(values: Tensor) -> Tensor:
    """`[B, h, w]` -> `[h * w, B]`."""
    return values.flatten(1).t().contiguous()


class SamplerWeights:
    """The prior's weights, prepared for `CachedSampler` (in float64, kept in the prior's own precision).

    A gate's first half is scaled by two and features change their sign: with s its sigmoids, tanh(a) sigmoid(b) =
    2 s_a s_b - s_b. What the horizontal layers hand on is kept without their biases, which are added to the gates instead.
    Matrices are laid out to be multiplied from the right: `[in, out]`.
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
        scale[:c] = 2

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
            keep((layer.vertical.weight.double() * -scale[:, None, None, None]).permute(2, 3, 1, 0).reshape(6 * c, -1))
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
        kernels = [layer.horizontal.weight.double()[:, :, 0].permute(2, 1, 0) * scale for layer in later]
        left, here = torch.stack(kernels, dim=1) if kernels else scale.new_zeros(2, 0, c, 2 * c)
        self.outs = keep(torch.stack([-_matrix(layer.out) for layer in prior.layers]))  # [L, C, C]
        self.left, self.here = keep(left), keep(here)  # [L - 1, C, 2C]
        bias = torch.stack([layer.out.bias.double() for layer in prior.layers]).cumsum(0)[:, None]  # [L, 1, C]
        gate_bias[1:] += bias[:-1] @ (left + here)
        self.horizontal_bias = keep(gate_bias)  # [L, B or 1, 2C]
        self.no_input = keep(-bias[:-1])  # beyond the left edge of the map
        self.head_bias = keep(bias[-1, 0])
        self.location = keep(location.double().permute(1, 2, 0).flatten(0, 1))  # [h * w, C]

    def head(self, features: Tensor, addmm: Callable[..., Tensor]) -> Tensor:
        """The prior's head at single places: `[B, C]`, what the last layer hands on, -> `[B, K]` logits."""
        features = features + self.head_bias
        for activation, (bias, matrix) in zip(self.head_activations, self.head_matrices):
            features = addmm(bias, activation.forward(features), matrix)
        return features


def _matrix(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weight as `[in, out]` float64."""
    return convolution.weight.double().flatten(1).t()
