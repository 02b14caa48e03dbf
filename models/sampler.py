"""Drawing code maps from a gated PixelCNN at about the cost of one forward pass.

`GatedPixelCNN.sample` uses it. Maps are drawn row by row: the vertical stack for a whole row at once, then the horizontal stack
code by code, for a whole batch. Nothing is computed twice:

- The vertical stack's features of the row above are kept, and so is what each horizontal layer made of the code to the left.
- Codes are embedded and convolved by looking up tables of (code, offset in the kernel), summed.
- What reaches a gate of the horizontal stack from the vertical one, from conditions and from the column before is computed for
  the whole row or for all layers at once.
- A gate needs one sigmoid: tanh(x) = 2 sigmoid(2x) - 1, with the twos moved into the weights.

On CUDA a row is captured as a graph and replayed, since it is some thousands of small kernels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mirrored_half import MirroredHalf, rows_of_first_half
from models.prepared_weights import PreparedWeights

BELOW_ONE = 1 - 2**-22
Generators = torch.Generator | Sequence[torch.Generator] | None  # of the noise of all maps, or one of each map's
FEW_MAPS = 16  # at most that one thread draws: waking another for a small product costs more than the product


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


def uniform_noise(batch: int, height: int, width: int, generator: Generators) -> Tensor:
    """The noise that decides a sample, `[batch, height, width]` float64 in 0..1, drawn on the CPU for any device."""
    if isinstance(generator, Sequence):
        return torch.cat([uniform_noise(1, height, width, each) for each in generator])
    return torch.rand(batch, height, width, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class MapsAdded:
    """What is added at each place, in all maps alike or in each.

    location: `[B or 1, C, h, w]`, to the features of the first layer. to_head: the same, to the head's input; None: nothing.
    log_marginal: `[B or 1, K, h, w]`, to the logits before they are divided by the prior's temperature; None: nothing.
    mirrored_half: what is added to location and to_head when the first half of the rows stands; None: nothing.
    """

    location: Tensor
    to_head: Tensor | None = None
    log_marginal: Tensor | None = None
    mirrored_half: MirroredHalf | None = None


class CachedSampler:
    """Draws code maps.

    Every buffer keeps its place in memory from row to row, so that a row may be captured as a CUDA graph.

    Args:
        prior: a `GatedPixelCNN` in eval mode.
        conditions: gate biases `[B, 4C]` of each layer, or None each.
        added: at each position.
        temperature: the prior's, of all maps, or `[B]` of each.
        draw: from logits and noise to a code.
        noise: `[B, h, w]` in 0..1, decides what is drawn.
        known: codes and where they stand, `[B, h, w]` int64 and bool, or None.
    """

    def __init__(
        self,
        prior: nn.Module,
        conditions: list[Tensor | None],
        added: MapsAdded,
        temperature: float | Tensor,
        draw: Draw,
        noise: Tensor,
        known: tuple[Tensor, Tensor] | None = None,
    ):
        location = added.location
        self.draw, self.device = draw, location.device
        self.batch, self.height, self.width = noise.shape
        # one temperature is moved into the weights, those of each map cost a division a code
        common = 1.0 if torch.is_tensor(temperature) else temperature
        self.temperatures = temperature[:, None] if torch.is_tensor(temperature) else None
        self.weights = weights = PreparedWeights(prior, conditions, location, common)
        layers, c, past = weights.layers, weights.channels, weights.past
        new = partial(torch.zeros, dtype=location.dtype, device=self.device)
        batch, width = self.batch, self.width
        # of the rows above: codes, with positions outside the map on either side; of the row above and this one: features of the
        # vertical stack [C], with zeros on either side; of this row: its gates, condition included [2C]
        self.above = torch.full((past, width + 2 * past, batch), weights.num_codes, device=self.device)
        self.features = new(layers - 1, 2, width + 2, batch, c)
        self.vertical = new(layers, width, batch, 2 * c)
        self.vertical_bias = weights.vertical_bias.expand(-1, batch, -1).repeat(1, width, 1)  # [L, w * B, 2C]
        self.window, self.opened = new(width, batch, 2, 3, c), new(width, batch, 2 * c)
        # of the horizontal stack: what is known of its gates before a code is drawn [2C], in columns to the right of the map too;
        # at one column: that and the column before [2C], gates, gated features, and what each layer hands on, cumulated [C]
        self.beside = new(width + past, layers, batch, 2 * c)
        self.with_left = new(layers - 1, batch, 2 * c)
        self.gates, self.gated, self.handed_on = new(layers, batch, 2 * c), new(layers, batch, c), new(layers, batch, c)
        self.codes = torch.zeros(width, batch, dtype=torch.int64, device=self.device)
        self.inputs = self._inputs(as_noise(noise, location.dtype), known, added, common)
        self.mirrored_half = added.mirrored_half
        # those of the row being drawn
        self.here = {name: torch.zeros_like(rows[0]) for name, rows in self.inputs.items()}
        self.rows_known = [False] * self.height if known is None else known[1].all(2).all(0).tolist()
        self._make_views()
        self._run = self._captured() if self.device.type == "cuda" else self._run_row

    def sample(self, progress: Callable[[int], None] | None = None) -> Tensor:
        """Draw all maps, `[B, h, w]` int64; `progress` is called with 1 after each row."""
        drawn = torch.empty(self.height, self.width, self.batch, dtype=torch.int64, device=self.device)
        with _threads(1 if self.batch <= FEW_MAPS else torch.get_num_threads()):
            for row, known in enumerate(self.rows_known):
                if self.mirrored_half is not None and row == rows_of_first_half(self.height):
                    self._tell_mirrored_half(drawn)
                for name, rows in self.inputs.items():
                    self.here[name].copy_(rows[row])
                if known:
                    self._keep_known_row()
                else:
                    self._run()
                drawn[row] = self.codes
                if progress is not None:
                    progress(1)
        return drawn.permute(2, 0, 1).contiguous()

    def _inputs(
        self, noise: Tensor, known: tuple[Tensor, Tensor] | None, added: MapsAdded, temperature: float
    ) -> dict[str, Tensor]:
        """What the rows are drawn from, by name `[h, w, B or 1, ...]`."""
        inputs = {"location": self.weights.location, "noise": noise.permute(1, 2, 0)[..., None]}
        if known is not None:
            inputs |= {"known": known[0].permute(1, 2, 0), "keep": known[1].permute(1, 2, 0)}
        if added.to_head is not None:
            inputs["to_head"] = added.to_head.permute(2, 3, 0, 1) + self.weights.head_bias
        if added.mirrored_half is not None:  # which is of each map
            inputs["location"] = inputs["location"].expand(-1, -1, self.batch, -1).clone()
            to_head = inputs.get("to_head", self.weights.head_bias)
            inputs["to_head"] = to_head.expand_as(inputs["location"]).clone()
        if added.log_marginal is not None:
            inputs["log_marginal"] = (added.log_marginal / temperature).permute(2, 3, 0, 1)
        return {name: values.to(self.device).contiguous() for name, values in inputs.items()}

    def _tell_mirrored_half(self, drawn: Tensor) -> None:
        """Add what the first half of the maps, `[h, w, B]` as far as they are drawn, tells of the second."""
        first = rows_of_first_half(self.height)
        added = self.mirrored_half(drawn.permute(2, 0, 1))
        for name, each in zip(("location", "to_head"), added):
            self.inputs[name][first:] += each.permute(2, 3, 0, 1)[first:]

    def _reset(self) -> None:
        """As before the first row."""
        self.above.fill_(self.weights.num_codes)
        self.features.zero_()

    def _make_views(self) -> None:
        """Views of the buffers by layer and column, made once: making one costs as much as using it."""
        weights, past = self.weights, self.weights.past
        around = self.features.unfold(2, 3, 1).permute(0, 2, 3, 1, 5, 4)  # [L - 1, w, B, 2, 3, C]
        # of the vertical stack's later layers: the features below, what is multiplied by what, and where to
        self.vertical_steps = list(
            zip(
                self.vertical[:-1],
                self.features[:, 1, 1:-1],
                around,
                self.vertical_bias[1:],
                weights.vertical_kernels,
                self.vertical[1:].flatten(1, 2),
            )
        )
        # of the horizontal stack: gate, gated features, matrix and result of each layer; what comes of it in the next gate
        self.horizontal_steps = list(zip(self.gates, self.gated, weights.outs, self.handed_on))
        self.next_steps = [*zip(self.with_left, weights.here, self.gates[1:]), None]
        self.first_gate_at = [layers[0] for layers in self.beside]
        self.later_gates_at = [layers[1:] for layers in self.beside]
        self.right_of = [self.beside[i + 1 : i + 1 + past, 0].transpose(0, 1) for i in range(self.width)]
        self.here_at = [{name: row[i] for name, row in self.here.items()} for i in range(self.width)]

    def _run_row(self) -> None:
        self._run_vertical()
        self._start_row()
        for column in range(self.width):
            self.codes[column] = self._draw_code(column)
        self._finish_row()

    def _keep_known_row(self) -> None:
        """A row of known codes: nothing need be drawn."""
        self._run_vertical()
        self.codes.copy_(self.here["known"])
        self._finish_row()

    def _run_vertical(self) -> None:
        """The vertical stack in this row, of every layer, from the codes and the features above."""
        weights, size = self.weights, 2 * self.weights.past + 1
        covered = self.above.unfold(1, size, 1).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # [w * B, codes covered]
        gates = F.embedding_bag(covered + weights.offsets, weights.vertical_table, mode="sum")
        torch.add(gates, self.vertical_bias[0], out=self.vertical[0].flatten(0, 1))
        multiplied = self.window.view(self.width * self.batch, -1)
        for below, features, around, bias, kernel, out in self.vertical_steps:
            torch.sigmoid(below, out=self.opened)
            _gated(self.opened, out=features)
            self.window.copy_(around)
            torch.addmm(bias, multiplied, kernel, out=out)

    def _start_row(self) -> None:
        """What does not depend on this row's codes."""
        weights = self.weights
        across = torch.bmm(self.vertical.flatten(1, 2), weights.across).unflatten(1, (self.width, self.batch))
        torch.add(across.transpose(0, 1), weights.horizontal_bias, out=self.beside[: self.width])
        self.handed_on[:-1] = weights.no_input

    def _draw_code(self, column: int) -> Tensor:
        """The codes `[B]` of one column, whose successors to the right are told of them."""
        here = self.here_at[column]
        features = self._run_horizontal(column, here["location"])
        logits = self.weights.head(features + here.get("to_head", self.weights.head_bias))
        if "log_marginal" in here:
            logits += here["log_marginal"]
        if self.temperatures is not None:
            logits /= self.temperatures
        code = self.draw(logits, here["noise"])[:, 0]
        if "keep" in here:
            code = torch.where(here["keep"], here["known"], code)
        self.right_of[column].add_(self.weights.horizontal_table.index_select(0, code))
        return code

    def _run_horizontal(self, column: int, location: Tensor) -> Tensor:
        """The horizontal stack at a column: what its last layer hands on, `[B, C]`."""
        torch.baddbmm(self.later_gates_at[column], self.handed_on[:-1], self.weights.left, out=self.with_left)
        self.gates[0].copy_(self.first_gate_at[column])
        handed_on = location
        for (gate, gated, out, to), following in zip(self.horizontal_steps, self.next_steps):
            _gated(gate.sigmoid_(), out=gated)
            handed_on = torch.addmm(handed_on, gated, out, out=to)
            if following is not None:
                with_left, here, next_gate = following
                torch.addmm(with_left, handed_on, here, out=next_gate)
        return handed_on

    def _finish_row(self) -> None:
        """This row becomes the row above."""
        past = self.weights.past
        self.above.copy_(self.above.roll(-1, 0))
        self.above[-1, past : past + self.width] = self.codes
        self.features[:, 0].copy_(self.features[:, 1])

    def _captured(self) -> Callable[[], None]:
        """`_run_row` as a CUDA graph: replaying it costs one launch instead of some thousands."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run_row()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run_row()
        self._reset()
        return graph.replay


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with this many threads: waking others for a small product costs more than the product."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gated(opened: Tensor, out: Tensor) -> None:
    """Minus tanh(a) sigmoid(b) of the sigmoids of 2a and b, `[..., 2C]` -> `[..., C]`."""
    content, opening = opened.chunk(2, dim=-1)
    torch.addcmul(opening, content, opening, value=-2, out=out)
