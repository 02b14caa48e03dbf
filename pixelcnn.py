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
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.conditions import NUMBER, ConditionEncoder
from models.context import ContextEncoder, ContextNetwork
from models.known import Known
from models.mirrored_half import MirroredHalf
from models.sampler import CachedSampler, Draw, Generators, MapsAdded, uniform_noise


def gate(x: Tensor) -> Tensor:
    """Gated activation of arXiv 1606.05328, equation 2: `[B, 2C, ...]` -> `[B, C, ...]`."""
    content, opening = x.chunk(2, dim=1)
    return _tanh(content) * torch.sigmoid(opening)


def _tanh(x: Tensor) -> Tensor:
    """Of float32 on a CPU by the sigmoid, which takes a quarter of the time there; they differ by 2e-7 at most."""
    return 2 * torch.sigmoid(2 * x) - 1 if x.dtype == torch.float32 and x.device.type == "cpu" else torch.tanh(x)


class GatedLayer(nn.Module):
    """One gated layer: a vertical and a horizontal stack, figure 2 of arXiv 1606.05328.

    Args:
        channels: C of both stacks.
        kernel: n, odd; the vertical kernel is n wide and sees (n + 1) // 2 rows, the horizontal one as many columns.
        first: the first layer sees codes, so its kernels leave out the current row and the current column. Later layers
            see features that know only the past, so theirs include them.
    """

    def __init__(self, channels: int, kernel: int, first: bool):
        super().__init__()
        self.first, self.reach = first, kernel // 2
        past = kernel // 2 if first else kernel // 2 + 1  # rows above, or columns to the left, that a kernel covers
        self.vertical = nn.Conv2d(channels, 2 * channels, (past, kernel))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, past))
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, v: Tensor, h: Tensor, condition: Tensor | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`v`, `h` `[B, C, h, w]`, `condition` `[B, 4C]` gate biases (vertical, then horizontal) or None; `kept` `[B, C, 1, 1]`
        factors of the horizontal stack's gated channels, or None."""
        v_bias, h_bias = (0, 0) if condition is None else condition[:, :, None, None].chunk(2, dim=1)
        v_features = self.vertical(self._pad_rows(v))
        v_out = gate(v_features + v_bias)
        h_features = self.horizontal(self._pad_columns(h)) + self.vertical_to_horizontal(v_features)
        gated = gate(h_features + h_bias)
        update = self.out(gated if kept is None else gated * kept)
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
        conditions: what may be known of a slice, each name with its number of classes, or `NUMBER` for a number in 0..1; all
            reach every gate (section 2.3 of the paper), and one that is not given is a value of its own. "position" is the
            slice's position in the volume.
        location: tell the prior where on the map it is, as slices are registered to an atlas: a smooth function of the row's and
            the column's share of the map, added to the features. Smooth, because a table with an entry a position learns by heart
            what a few subjects happen to have there.
        marginal: (h, w) of a table of how often each code stands at each position, whose log is added to the logits, so that the
            layers need only learn what it does not tell. Filled by `start_from_marginal`, never trained. Resampled for maps of
            other sizes. None: no such table.
        temperature: above 0, that all logits are divided by (Guo et al. 2017, arXiv 1706.04599): fitted on held-out maps when
            training has ended, since a prior that has learned few subjects is too sure of itself.
        context: code maps on the same grid that the prior may be told (`models.context`), such as that of the slice below.
        told_temperature: in place of `temperature` where a code of the context is known; None: the same.
        mirrored_half: tell the second half of the rows what the first one, reflected, holds (`models.mirrored_half`): for maps
            whose halves are alike.
        context_features: channels of the features on the same grid that the prior is always told, such as those of a coarser
            level of codes (`models.detail.TwoLevelVQVAE.context`).
    """

    def __init__(
        self,
        num_codes: int = 512,
        channels: int = 64,
        layers: int = 15,
        first_kernel: int = 7,
        dropout: float = 0.1,
        conditions: Mapping[str, int] = MappingProxyType({"position": NUMBER}),
        location: bool = True,
        marginal: tuple[int, int] | None = None,
        temperature: float = 1.0,
        context: int = 0,
        told_temperature: float | None = None,
        mirrored_half: bool = False,
        context_features: int = 0,
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
            conditions=dict(conditions),
            location=location,
            marginal=None if marginal is None else tuple(marginal),
        )
        self.num_codes = num_codes
        self.temperature = temperature
        if context:  # not named otherwise: the header of weights without context is that of versions which had none
            self.arguments["context"] = context
            self.told_temperature = temperature if told_temperature is None else told_temperature
        if mirrored_half:
            self.arguments["mirrored_half"] = True
        if context_features:
            self.arguments["context_features"] = context_features
        self.embedding = nn.Embedding(num_codes, channels)
        self.layers = nn.ModuleList(
            [GatedLayer(channels, first_kernel if i == 0 else 3, i == 0) for i in range(layers)]
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, num_codes, 1)
        )
        self.conditions = ConditionEncoder(conditions, channels, layers * 4 * channels) if conditions else None
        place = {"row": NUMBER, "column": NUMBER}
        self.location = ConditionEncoder(place, channels, channels) if location else None
        table = None if marginal is None else torch.full((num_codes, *marginal), -math.log(num_codes))
        self.register_buffer("log_marginal", table)
        told = context or context_features
        self.context = ContextEncoder(context, num_codes, channels, context_features) if told else None
        self.mirrored_half = MirroredHalf(num_codes, channels) if mirrored_half else None

    def forward(
        self,
        codes: Tensor,
        position: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        log_marginal: Tensor | None = None,
        chance: Tensor | None = None,
        context: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Logits of every code given the codes above it and to its left.

        Args:
            codes: `[B, h, w]` int64 in 0..K-1.
            position: `[B]` slice position in 0..1, NaN where unknown; None: unknown for all. Ignored by a prior without it.
            conditions: the others by name, `[B]` each: a number in 0..1 or a class 0, 1, ..., NaN where unknown.
            log_marginal: `[B, K, h, w]` in place of the prior's own table (`models.marginal.PositionalMarginal.log_without`).
            chance: `[B, chances]` in 0..1, decides which channels are dropped; drawn in training where not given. No effect in
                eval mode.
            context: `[B, M, h, w]` int64, or `[B, h, w]` of a single map: codes on the same grid, -1 where unknown. None: nothing
                is told.
            features: `[B, context_features, h, w]`, of a prior that is told such.

        Returns:
            `[B, K, h, w]` logits, calibrated.

        Raises:
            ValueError: for a condition or a context that the prior was not made for.
        """
        gate_biases = self._gate_biases(len(codes), position, conditions)
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        location, to_head = self._told_maps(context, features, tuple(codes.shape))
        if self.mirrored_half is not None:
            to_features, mirrored_to_head = self.mirrored_half(codes)
            location = location + to_features
            to_head = mirrored_to_head if to_head is None else to_head + mirrored_to_head
        for layer, condition, kept in zip(self.layers, gate_biases, self._kept(len(codes), chance)):
            v, h = layer(v, h, condition, kept)
            if layer.first:
                h = h + location
        logits = self.head(h if to_head is None else h + to_head)
        table = self.marginal_map(*codes.shape[1:]) if log_marginal is None else log_marginal
        logits = logits if table is None else logits + table
        temperature = self._temperature_of(context)
        if torch.is_tensor(temperature):
            return logits / temperature[:, None, None, None]
        return logits if temperature == 1 else logits / temperature

    @torch.no_grad()
    def start_from_marginal(self, marginal: Tensor) -> None:
        """Start at `[K, h, w]` code frequencies by position: fill the table with them, or, without one, start the bias of the
        logits at the frequencies over all positions."""
        if self.log_marginal is None:
            self.head[-1].bias.copy_(marginal.mean((1, 2)).log())
        else:
            self.log_marginal.copy_(marginal.log())
            self.head[-1].bias.zero_()

    @property
    def temperature(self) -> float:
        """Of the calibration; set it to fit another one. It is kept with the weights."""
        return self.arguments["temperature"]

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.arguments["temperature"] = _temperature(value)

    @property
    def told_temperature(self) -> float:
        """As `temperature`, where a code of the context is known; a prior without context has no other."""
        return self.arguments.get("told_temperature", self.temperature)

    @told_temperature.setter
    def told_temperature(self, value: float) -> None:
        self.arguments["told_temperature"] = _temperature(value)

    @property
    def context_maps(self) -> int:
        """M of the context, 0 without one."""
        return self.arguments.get("context", 0)

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor) -> None:
        """Start the embeddings and the head's last weights from the codes' `[K, D]` vectors, at their usual scales.

        What the prior learns of a code then holds for similar codes too, from the first step.
        """
        codes = (codebook - codebook.mean(0)) / codebook.std().clamp(min=1e-12)
        dims, channels, head = codes.shape[1], self.embedding.embedding_dim, self.head[-1].weight
        mix = torch.randn(dims, channels) / dims**0.5
        self.embedding.weight.copy_(codes if dims == channels else codes @ mix.to(codes))
        for encoder in self.told_encoders().values():
            encoder.embedding.weight.copy_(self.embedding.weight)
        rows = codes @ torch.randn(dims, head.shape[1]).to(codes)
        head.copy_((rows * (head.std() / rows.std().clamp(min=1e-12)))[:, :, None, None])

    def hidden_weights(self) -> list[nn.Parameter]:
        """The kernels between the first and the last convolutions, of what is told too, which Muon is for."""
        networks = [module for module in self.modules() if isinstance(module, ContextNetwork)]
        ends = [self.layers[0].vertical, self.layers[0].horizontal, self.head[-1]]
        ends += [end for network in networks for end in (network.first, network.out)]
        kernels = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        return [kernel.weight for kernel in kernels if all(kernel is not end for end in ends)]

    def sample(
        self,
        batch: int,
        height: int,
        width: int,
        position: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        **known: Any,
    ) -> Tensor:
        """Draw code maps, `[batch, height, width]` int64: `draw_maps` with each of its settings as a keyword.

        Args:
            batch, height, width: of the maps to draw.
            temperature, top_k, top_p: how each code is drawn, `Draw`.
            generator: on the CPU; the same seed gives the same maps. Several: one of each map, alone or in any batch.
            position, known: what is known of the maps, `Known`: also `conditions`, `context`, `features`, and `codes` with `keep`
                to complete partly known maps.

        Raises:
            ValueError: for a number that makes no sense.
        """
        draw, given = Draw(temperature, top_k, top_p), Known(position, **known)
        return self.draw_maps((batch, height, width), draw, given, generator)

    def draw_maps(
        self,
        size: tuple[int, int, int],
        draw: Draw = Draw(),
        known: Known = Known(),
        generator: Generators = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw code maps, code by code.

        Nothing is computed twice (`models/sampler.py`); the result is the one that running `forward` anew for each code gives.

        Args:
            size: (batch, height, width) of the maps.
            draw: how each code is drawn.
            known: what is known of the maps.
            generator: on the CPU; the same seed gives the same maps. Several: one of each map, alone or in any batch.
            progress: called with the number of rows just finished.

        Returns:
            `[batch, height, width]` int64.

        Raises:
            ValueError: when a known code is not in 0..K-1, or one of the context not in -1..K-1; or for a number of generators
                that is not the batch's.
        """
        if isinstance(generator, Sequence) and len(generator) != size[0]:
            raise ValueError(f"{len(generator)} generators for {size[0]} maps")
        kept = known.kept(size, self.num_codes)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                gate_biases = self._gate_biases(size[0], known.position, known.conditions)
                maps = *self._told_maps(known.context, known.features, size), self.marginal_map(*size[1:])
                temperature = self._temperature_of(known.context)
                if torch.is_tensor(temperature) and (temperature == temperature[0]).all():
                    temperature = temperature[0].item()
                noise = uniform_noise(*size, generator)
                added = MapsAdded(*maps, self.mirrored_half)
                sampler = CachedSampler(self, gate_biases, added, temperature, draw, noise, kept)
                drawn = sampler.sample(progress)
        finally:
            self.train(was_training)
        return drawn.clone()  # out of inference mode

    @property
    def chances(self) -> int:
        """Random numbers that dropout needs for one map."""
        return len(self.layers) * self.embedding.embedding_dim if self.arguments["dropout"] else 0

    def told_encoders(self) -> dict[str, ContextEncoder]:
        """Those of the maps that the prior is told, by the names of what holds them."""
        found = {"context": self.context} if self.context_maps else {}
        return found | ({} if self.mirrored_half is None else {"mirrored_half": self.mirrored_half.encoder})

    def _kept(self, batch: int, chance: Tensor | None) -> list[Tensor | None]:
        """Dropout's factors for each layer, `[B, C, 1, 1]`: whole channels of a map are dropped."""
        if not self.training or not self.chances:
            return [None] * len(self.layers)
        weight, dropout = self.embedding.weight, self.arguments["dropout"]
        if chance is None:
            chance = torch.rand(batch, self.chances)
        kept = (chance >= dropout).to(weight) / (1 - dropout)
        return list(kept[:, :, None, None].chunk(len(self.layers), dim=1))

    def _gate_biases(
        self, batch: int, position: Tensor | None, conditions: Mapping[str, Tensor] | None
    ) -> list[Tensor | None]:
        """Gate biases `[B, 4C]` of each layer, or None where the prior is unconditional."""
        known = self.arguments["conditions"]
        unknown = (conditions or {}).keys() - known.keys()
        if unknown:
            raise ValueError(f"this prior knows the conditions {sorted(known)}, not {sorted(unknown)}")
        if self.conditions is None:
            return [None] * len(self.layers)
        given = ({} if position is None else {"position": position}) | dict(conditions or {})
        nothing, weight = torch.full((batch,), math.nan), self.embedding.weight
        values = {name: given.get(name, nothing).to(weight) for name in known}
        return list(self.conditions(values).chunk(len(self.layers), dim=1))

    def _told_maps(
        self, context: Tensor | None, features: Tensor | None, size: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """What location and context add to the features of the first layer and to the head's input, `[B or 1, C, h, w]` each;
        None: nothing."""
        location = self._location_map(*size[1:])
        if self.context is None:
            if context is not None or features is not None:
                raise ValueError("this prior was made without context; it cannot be told other maps")
            return location, None
        to_features, to_head = self.context(*self.context.told(context, features, size))
        return location + to_features, to_head

    def _temperature_of(self, context: Tensor | None) -> float | Tensor:
        """What the logits are divided by: of all maps alike, or `[B]`."""
        if context is None or self.told_temperature == self.temperature:
            return self.temperature
        weight = self.embedding.weight
        told = (context >= 0).flatten(1).any(1).to(weight.device)
        return torch.where(told, *(weight.new_tensor(each) for each in (self.told_temperature, self.temperature)))

    def marginal_map(self, height: int, width: int) -> Tensor | None:
        """The table of log frequencies for a map of this size, `[1, K, h, w]`."""
        if self.log_marginal is None or self.log_marginal.shape[1:] == (height, width):
            return None if self.log_marginal is None else self.log_marginal[None]
        return F.interpolate(self.log_marginal[None], size=(height, width), mode="bilinear", align_corners=False)

    def _location_map(self, height: int, width: int) -> Tensor:
        """What the location adds to the features of the first layer, `[1, C, h, w]`; zeros where it is switched off."""
        weight = self.embedding.weight
        if self.location is None:
            return weight.new_zeros(1, weight.shape[1], height, width)
        shares = [(torch.arange(length).to(weight) + 0.5) / length for length in (height, width)]
        rows, columns = torch.meshgrid(*shares, indexing="ij")
        return self.location({"row": rows.flatten(), "column": columns.flatten()}).t().reshape(1, -1, height, width)


def _temperature(value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"expected a finite temperature above 0, got {value}")
    return float(value)
