"""The second stage: a gated PixelCNN (arXiv 1606.05328) over code maps, and its cached sampler.

    prior = GatedPixelCNN(num_codes=512, channels=64, layers=15)
    logits = prior(codes, position)          # codes [B, h, w] int64, position [B] in 0..1 -> [B, K, h, w]
    loss = F.cross_entropy(logits, codes)    # nats per code

    generator = torch.Generator().manual_seed(0)
    codes = prior.sample(16, 22, 26, position=torch.full((16,), 0.5), generator=generator)   # [16, 22, 26]

Two stacks, as in the paper, so that there is no blind spot: the vertical one sees all rows above, the horizontal one the codes
to the left in the same row and, through it, the vertical one. Masks are the shapes of the kernels and the padding around them, so
no weight is ever wasted on a future code nor multiplied by zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

PLACE_FREQUENCIES = 8


@dataclass
class LayerCache:
    """What one layer of the sampler remembers.

    rows: `[B, C, n, w]`, the vertical stack's inputs of the rows above the current one.
    vertical: `[B, 2C, w]`, the vertical stack's contribution to the horizontal gate in the current row.
    """

    rows: Tensor
    vertical: Tensor


def gate(x: Tensor) -> Tensor:
    """Gated activation of arXiv 1606.05328, equation 2: `[B, 2C, ...]` -> `[B, C, ...]`."""
    content, opening = x.chunk(2, dim=1)
    return torch.tanh(content) * torch.sigmoid(opening)


class GatedLayer(nn.Module):
    """One gated layer: a vertical and a horizontal stack, figure 2 of arXiv 1606.05328.

    Args:
        channels: C of both stacks.
        kernel: n, odd; the vertical kernel is n wide and sees (n + 1) // 2 rows, the horizontal one as many columns.
        first: the first layer sees codes, so its kernels leave out the current row and the current column. Later layers
            see features that know only the past, so theirs include them.
        dropout: share of the horizontal stack's channels zeroed in training, a whole map at a time.
    """

    def __init__(self, channels: int, kernel: int, first: bool, dropout: float):
        super().__init__()
        self.first, self.reach = first, kernel // 2
        past = kernel // 2 if first else kernel // 2 + 1  # rows above, or columns to the left, that a kernel covers
        self.vertical = nn.Conv2d(channels, 2 * channels, (past, kernel))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, past))
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """`v`, `h` `[B, C, h, w]`, `condition` `[B, 4C]` gate biases (vertical, then horizontal) or None."""
        v_bias, h_bias = (0, 0) if condition is None else condition[:, :, None, None].chunk(2, dim=1)
        v_features = self.vertical(self._pad_rows(v))
        v_out = gate(v_features + v_bias)
        h_features = self.horizontal(self._pad_columns(h)) + self.vertical_to_horizontal(v_features)
        update = self.out(self.dropout(gate(h_features + h_bias)))
        return v_out, update if self.first else h + update  # no residual from the codes: it would show the code itself

    def _pad_rows(self, v: Tensor) -> Tensor:
        """Zeros left and right; above, as many rows as the kernel needs to end just above (first) or at the current row."""
        v = F.pad(v, (self.reach, self.reach, self.reach, 0))
        return v[:, :, :-1] if self.first else v

    def _pad_columns(self, h: Tensor) -> Tensor:
        h = F.pad(h, (self.reach, 0, 0, 0))
        return h[:, :, :, :-1] if self.first else h


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN prior (arXiv 1606.05328) over `[B, h, w]` code maps.

    Args:
        num_codes: K.
        channels: C of both stacks.
        layers: gated layers; the first has a kernel of `first_kernel`, the others of 3.
        first_kernel: odd.
        dropout: share of channels dropped in each layer's horizontal stack, in training.
        position: condition every gate on the slice's place in the volume; a place that is not given is a value of its own.
        location: tell the prior where on the map it is, as slices are registered to an atlas: a smooth function of the row's and
            the column's share of the map, added to the features. Smooth, because a table with an entry a place learns by heart
            what a few subjects happen to have there.
    """

    def __init__(
        self,
        num_codes: int = 512,
        channels: int = 64,
        layers: int = 15,
        first_kernel: int = 7,
        dropout: float = 0.1,
        position: bool = True,
        location: bool = True,
    ):
        super().__init__()
        if layers < 1 or first_kernel % 2 == 0:
            raise ValueError(f"expected at least 1 layer and an odd first kernel, got {layers} and {first_kernel}")
        self.arguments = dict(
            num_codes=num_codes,
            channels=channels,
            layers=layers,
            first_kernel=first_kernel,
            dropout=dropout,
            position=position,
            location=location,
        )
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes, channels)
        self.layers = nn.ModuleList(
            [GatedLayer(channels, first_kernel if i == 0 else 3, i == 0, dropout) for i in range(layers)]
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, num_codes, 1)
        )
        self.position = PlaceEncoder(1, channels, layers * 4 * channels) if position else None
        self.location = PlaceEncoder(2, channels, channels) if location else None

    def forward(self, codes: Tensor, position: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes above it and to its left.

        Args:
            codes: `[B, h, w]` int64 in 0..K-1.
            position: `[B]` slice position in 0..1, NaN where unknown; None: unknown for all.

        Returns:
            `[B, K, h, w]` logits.
        """
        conditions = self._conditions(position, len(codes))
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        location = self._location_map(*codes.shape[1:])
        for layer, condition in zip(self.layers, conditions):
            v, h = layer(v, h, condition)
            if layer.first:
                h = h + location
        return self.head(h)

    @torch.no_grad()
    def start_from_marginal(self, codes: Tensor) -> None:
        """Start the bias of the logits at the log of how often each code stands in `[N, h, w]` training maps."""
        counts = torch.bincount(codes.flatten().long(), minlength=self.num_codes) + 1
        self.head[-1].bias.copy_((counts / counts.sum()).log())

    def sample(
        self,
        batch: int,
        height: int,
        width: int,
        position: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw code maps, code by code in raster order.

        The vertical stack is computed once a row and the horizontal stack once a code, from what each layer
        remembers; the result is the one that running `forward` anew for each code gives.

        Args:
            batch, height, width: of the maps to draw.
            position: `[batch]` slice position in 0..1, NaN or None where unknown.
            temperature: above 0; logits are divided by it.
            top_k: draw from the k most probable codes alone.
            top_p: draw from the fewest codes whose probability reaches p, in 0..1.
            generator: on the CPU; the same seed gives the same maps.
            progress: called with the number of rows just finished.

        Returns:
            `[batch, height, width]` int64.
        """
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                codes = self._sample(
                    batch, height, width, position, Draw(temperature, top_k, top_p), generator, progress
                )
        finally:
            self.train(was_training)
        return codes.clone()  # out of inference mode, so that the caller may train on it

    def _sample(
        self,
        batch: int,
        height: int,
        width: int,
        position: Tensor | None,
        draw: "Draw",
        generator: torch.Generator | None,
        progress: Callable[[int], None] | None,
    ) -> Tensor:
        weight = self.embedding.weight
        uniform = uniform_noise(batch, height, width, generator).to(weight.device)
        codes = torch.zeros(batch, height, width, dtype=torch.int64, device=weight.device)
        conditions, location = self._conditions(position, batch), self._location_map(height, width)
        caches = [
            LayerCache(
                weight.new_zeros(batch, weight.shape[1], layer.vertical.kernel_size[0], width), weight.new_zeros(0)
            )
            for layer in self.layers
        ]
        for row in range(height):
            self._start_row(caches, conditions, codes[:, row - 1] if row else None)
            left = [weight.new_zeros(batch, weight.shape[1], layer.horizontal.kernel_size[1]) for layer in self.layers]
            code = None
            for column in range(width):
                logits = self._step(caches, left, code, location[:, row, column], column)
                code = draw(logits, uniform[:, row, column])
                codes[:, row, column] = code
            if progress is not None:
                progress(1)
        return codes

    def _start_row(self, caches: list[LayerCache], conditions: list[Tensor | None], above: Tensor | None) -> None:
        """Run the vertical stack for the row whose upper neighbour holds the codes `above` `[B, w]` (None: the first row)."""
        newest = None if above is None else self.embedding(above).transpose(1, 2)  # [B, C, w]
        for layer, cache, condition in zip(self.layers, caches, conditions):
            if newest is not None:
                cache.rows = torch.cat([cache.rows[:, :, 1:], newest[:, :, None]], dim=2)
            features = layer.vertical(F.pad(cache.rows, (layer.reach, layer.reach)))  # [B, 2C, 1, w]
            v_bias, h_bias = (0, 0) if condition is None else condition[:, :, None, None].chunk(2, dim=1)
            newest = gate(features + v_bias)[:, :, 0]
            cache.vertical = (layer.vertical_to_horizontal(features) + h_bias)[:, :, 0]

    def _step(
        self, caches: list[LayerCache], left: list[Tensor], code: Tensor | None, location: Tensor, column: int
    ) -> Tensor:
        """Logits `[B, K]` at one place, given the code `[B]` to its left (None in the first column)."""
        h = None if code is None else self.embedding(code)
        for index, (layer, cache) in enumerate(zip(self.layers, caches)):
            if h is not None:
                left[index] = torch.cat([left[index][:, :, 1:], h[:, :, None]], dim=2)
            features = F.linear(left[index].flatten(1), layer.horizontal.weight.flatten(1), layer.horizontal.bias)
            features = features + cache.vertical[:, :, column]
            update = F.linear(gate(features), layer.out.weight.flatten(1), layer.out.bias)
            h = update + location if layer.first else h + update
        return self.head(h[:, :, None, None])[:, :, 0, 0]

    def _conditions(self, position: Tensor | None, batch: int) -> list[Tensor | None]:
        """Gate biases `[B, 4C]` of each layer, or None where the prior is unconditional."""
        if self.position is None:
            return [None] * len(self.layers)
        weight = self.embedding.weight
        if position is None:
            position = torch.full((batch,), math.nan)
        return list(self.position(position.to(weight)[:, None]).chunk(len(self.layers), dim=1))

    def _location_map(self, height: int, width: int) -> Tensor:
        """What the location adds to the features of the first layer, `[C, h, w]`; zeros where it is switched off."""
        weight = self.embedding.weight
        if self.location is None:
            return weight.new_zeros(weight.shape[1], height, width)
        rows, columns = ((torch.arange(length).to(weight) + 0.5) / length for length in (height, width))
        places = torch.cartesian_prod(rows, columns)  # [h*w, 2], each 0..1
        return self.location(places).t().reshape(-1, height, width)


class PlaceEncoder(nn.Module):
    """Numbers in 0..1 (NaN: unknown) as features: sines of several frequencies through a small MLP.

    `[N, inputs]` -> `[N, out]`.
    """

    def __init__(self, inputs: int, hidden: int, out: int):
        super().__init__()
        self.unknown = nn.Parameter(torch.zeros(inputs, 2 * PLACE_FREQUENCIES))
        self.layers = nn.Sequential(
            nn.Linear(inputs * 2 * PLACE_FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, out)
        )

    def forward(self, values: Tensor) -> Tensor:
        known = ~values.isnan()
        half_octaves = torch.arange(PLACE_FREQUENCIES, device=values.device, dtype=values.dtype) / 2
        angles = values.nan_to_num(0)[..., None] * math.pi * 2**half_octaves
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [N, inputs, 2 * frequencies]
        return self.layers(torch.where(known[..., None], features, self.unknown).flatten(1))


@dataclass(frozen=True)
class Draw:
    """How a code is drawn from `[B, K]` logits: by inverting the cumulative distribution at uniform noise `[B]`.

    One number in 0..1 decides one code, so the same noise gives the same map however the logits were computed.
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
        probabilities = self.probabilities(logits)
        cumulative = probabilities.cumsum(1)
        threshold = uniform[:, None].to(cumulative) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
        last = (probabilities > 0).long().mul_(torch.arange(1, logits.shape[1] + 1, device=logits.device)).argmax(1)
        return torch.minimum(chosen, last)  # rounding must not choose a code of probability zero at the end

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution `[B, K]` drawn from: after temperature, top-k and top-p."""
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


def uniform_noise(batch: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    """The noise that decides a sample, `[batch, height, width]` float64 in 0..1, drawn on the CPU for any device."""
    return torch.rand(batch, height, width, generator=generator, dtype=torch.float64)


def positional_marginal(codes: Tensor, num_codes: int, smoothing: float = 32.0) -> Tensor:
    """How often each code stands at each place: `[N, h, w]` int64 -> `[K, h, w]` float32 probabilities.

    Smoothed by `smoothing` draws of the code's overall (add-one) frequency: by default as many as a subject has slices, since
    the slices of one subject are alike and their counts say little about another.
    """
    number, height, width = codes.shape
    places = torch.arange(height * width, device=codes.device)
    index = (codes.long().flatten(1) * (height * width) + places).flatten()
    counts = torch.bincount(index, minlength=num_codes * height * width).view(num_codes, height, width).double()
    overall = (counts.sum((1, 2), keepdim=True) + 1) / (codes.numel() + num_codes)
    return ((counts + smoothing * overall) / (number + smoothing)).float()
