"""Residual codes: several at each place, each of what the ones before it leave (RQ-VAE, arXiv 2203.01941). For `rivals.py`.

The maps of all depths stand above each other, `[B, depth * h, w]`, so that what handles code maps handles these.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.runtime import autocast
from models.codes import as_taken
from training.coded_slices import CodedSlices
from training.loop import Stage, muon_and_adamw
from training.prior_stage import MUON_SCALE
from vqvae import VQVAE, QuantizerOutput, ResidualBlock, VectorQuantizer


class ResidualQuantizer(nn.Module):
    """`depth` codebooks of K codes of D dimensions, one after the other; the interface is that of `VectorQuantizer`."""

    def __init__(self, depth: int, num_codes: int, code_dim: int):
        super().__init__()
        self.depth, self.num_codes, self.code_dim = depth, num_codes, code_dim
        self.steps = nn.ModuleList(VectorQuantizer(num_codes, code_dim) for _ in range(depth))

    @property
    def codebook(self) -> Tensor:
        return self.steps[0].codebook

    @property
    def updates(self) -> Tensor:
        return self.steps[0].updates

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """As `VectorQuantizer.forward`; the commitment is the mean over depths, as in the paper."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes, chosen, commitment = self.nearest(latents), torch.zeros_like(latents), 0.0
            for step, maps in zip(self.steps, codes.chunk(self.depth, 1)):
                chosen = chosen + step.lookup(maps)
                commitment = commitment + F.mse_loss(latents, chosen) / self.depth
            return QuantizerOutput(latents + (chosen - latents).detach(), codes, commitment)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        left, maps = latents.float(), []
        for step in self.steps:
            maps.append(step.nearest(left))
            left = left - step.lookup(maps[-1])
        return torch.cat(maps, 1)

    def lookup(self, codes: Tensor) -> Tensor:
        return sum(step.lookup(maps) for step, maps in zip(self.steps, codes.chunk(self.depth, 1)))

    @torch.no_grad()
    def start(self, latents: Tensor) -> None:
        left = latents.float()
        for step in self.steps:
            step.start(left)
            left = left - step.lookup(step.nearest(left))

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        left = latents.float()
        for step, maps in zip(self.steps, codes.chunk(self.depth, 1)):
            without = left - step.lookup(maps)
            step.update(left, maps)
            left = without


class ResidualVQVAE(VQVAE):
    """`VQVAE` with `depth` codes at each place."""

    def __init__(self, depth: int, **arguments: int):
        super().__init__(**arguments)
        self.arguments["depth"] = depth
        self.quantizer = ResidualQuantizer(depth, self.arguments["num_codes"], self.arguments["code_dim"])

    def encode(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.quantizer.nearest(self.latents(images.float())).clone()


class DepthHeads(nn.Module):
    """The codes of the second and later depths given those before, at all places at once: what stands around a place is known
    from the depth before, and a small network is enough."""

    def __init__(self, depth: int, num_codes: int, code_dim: int, width: int = 64, blocks: int = 3):
        super().__init__()
        self.arguments = dict(depth=depth, num_codes=num_codes, code_dim=code_dim, width=width, blocks=blocks)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(code_dim + 3, width, 3, padding=1),
                *(ResidualBlock(width) for _ in range(blocks)),
                nn.LeakyReLU(),
                nn.Conv2d(width, num_codes, 1),
            )
            for _ in range(depth - 1)
        )

    def hidden_weights(self) -> list[nn.Parameter]:
        return [weight for head in self.heads for weight in head[1:-1].parameters() if weight.dim() > 1]

    def forward(self, vectors: Tensor, position: Tensor, depth: int) -> Tensor:
        """Logits `[B, K, h, w]` of the maps of a depth from 1, given the sum of the vectors before, `[B, D, h, w]`, and the slice
        positions `[B]`."""
        batch, _, height, width = vectors.shape
        rows = torch.linspace(-1, 1, height).view(1, 1, -1, 1).expand(batch, 1, height, width)
        columns = torch.linspace(-1, 1, width).view(1, 1, 1, -1).expand(batch, 1, height, width)
        place = position.view(-1, 1, 1, 1).expand(batch, 1, height, width)
        return self.heads[depth - 1](torch.cat([vectors, rows, columns, place], 1))


class DepthStage(Stage):
    """Trains the heads on code maps of all depths; scored by bits per code on validation maps."""

    name, score, higher_is_better = "depth", "validate_bits", False
    micro_batch = 64

    def __init__(self, model: DepthHeads, quantizer: ResidualQuantizer, data: CodedSlices, precision: str):
        self.model, self.quantizer, self.data, self.precision = model, quantizer, data, precision
        self.size = len(data.codes)
        self.chances = 1

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        return muon_and_adamw(self.model, lr, MUON_SCALE)

    @torch.no_grad()
    def start(self, indices: np.ndarray) -> None:
        """Start at the code frequencies of each depth, as the prior does."""
        for head, maps in zip(self.model.heads, self.data.codes.chunk(self.quantizer.depth, 1)[1:]):
            counts = torch.bincount(maps.flatten().long(), minlength=self.quantizer.num_codes) + 1
            head[-1].bias.copy_((counts / counts.sum()).log())

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        maps = self.data.maps(torch.from_numpy(indices), chance[:, 0] < 0.5)
        with autocast(torch.device("cpu"), self.precision):
            return {"loss": self._loss(self.model, maps, self.data.train.positions[indices])}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        maps, positions, losses = self.data.validation_codes, self.data.validation.positions, []
        for places in torch.arange(len(maps)).split(64):
            losses.append(float(self._loss(model, maps[places], positions[places.numpy()])) * len(places))
        return {self.score: sum(losses) / len(maps) / math.log(2)}

    def _loss(self, model: nn.Module, maps: Tensor, positions: np.ndarray) -> Tensor:
        """Nats a code, mean over the depths from the second on."""
        depths = as_taken(maps, torch.device("cpu")).chunk(self.quantizer.depth, 1)
        vectors, loss = torch.zeros(()), torch.zeros(())
        for depth, (step, own, after) in enumerate(zip(self.quantizer.steps, depths, depths[1:]), 1):
            vectors = vectors + step.lookup(own)
            logits = model(vectors, torch.from_numpy(positions), depth)
            loss = loss + F.cross_entropy(logits.float(), after) / (len(depths) - 1)
        return loss

    @torch.no_grad()
    def draw(self, first: Tensor, positions: Tensor, generator: torch.Generator) -> Tensor:
        """All depths `[B, depth * h, w]` given the first `[B, h, w]`."""
        maps, vectors = [first], torch.zeros(())
        for depth, step in enumerate(self.quantizer.steps[:-1], 1):
            vectors = vectors + step.lookup(maps[-1])
            chances = self.model(vectors, positions, depth).softmax(1).permute(0, 2, 3, 1)
            maps.append(torch.multinomial(chances.flatten(0, 2), 1, generator=generator).view(first.shape))
        return torch.cat(maps, 1)
