"""A second level of codes: what the first leaves unsaid, as in VQ-VAE-2 (arXiv 1906.00446).

    levels = TwoLevelVQVAE(vqvae, DetailLevel(**sizes_upon(vqvae)))
    codes = levels.encode(images)           # Codes: first [B, H/f, W/f], detail [B, 2H/f, 2W/f]
    images = levels.decode(codes)           # what both levels paint, [B, 1, H, W] in 0..1
    images = levels.decode(codes.first)     # what the first alone paints

The first level, its prior and its decoder stay as they are. The second is told what the first one paints, on both sides: its
encoder sees the picture and what is missing there, its decoder adds to the picture. So its codes say what is missing alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.codes import FINER, FINEST, CodeMaps, Codes, finer
from vqvae import (
    SLOPE,
    STEM_FACTOR,
    VQVAE,
    ResidualBlock,
    VectorQuantizer,
    VQVAEOutput,
    flat_patches,
    full_float32,
    standardise,
)

ENCODER_BLOCKS, DECODER_BLOCKS = 3, 4  # residual blocks, all at the grid of the codes
SIZE = 0.1  # of what the second decoder adds, in grey values: about what the first leaves out


class Painted(NamedTuple):
    """What a decoder makes of codes. features: `[B, C, ...]`, its last ones. picture: `[B, 1, H, W]`, unclamped."""

    features: Tensor
    picture: Tensor


class DetailLevel(nn.Module):
    """The second level of codes: its encoder, codebook and decoder.

    All of it works at the grid of its codes, `[H/d, W/d]`: slices and pictures come there by moving pixels into channels.

    Args:
        num_codes: K, entries of the codebook. code_dim: D, dimension of a code.
        downsample: d, pixels a code covers along each side: half of the first level's.
        told: channels of the first decoder's last features, brought to this grid (`on_grid`).
        width: channels of both networks.
    """

    def __init__(self, num_codes: int = 512, code_dim: int = 32, downsample: int = 4, told: int = 64, width: int = 64):
        super().__init__()
        if downsample < FINEST:
            raise ValueError(f"a code of the second level covers at least {FINEST} pixels a side, got {downsample}")
        self.arguments = dict(num_codes=num_codes, code_dim=code_dim, downsample=downsample, told=told, width=width)
        self.downsample, pixels = downsample, downsample**2
        self.encoder = nn.Sequential(
            nn.Conv2d(2 * pixels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(ENCODER_BLOCKS)),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, code_dim, 1),
        )
        self.quantizer = VectorQuantizer(num_codes, code_dim)
        self.decoder = nn.Sequential(
            nn.Conv2d(told + pixels + code_dim, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(DECODER_BLOCKS)),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, pixels, 3, padding=1),
        )
        self.flat_latent = nn.Conv2d(1, code_dim, 1)
        nn.init.zeros_(self.decoder[-1].weight)  # it starts as the first level's picture
        nn.init.zeros_(self.decoder[-1].bias)

    def hidden_weights(self) -> list[nn.Parameter]:
        """The kernels between the first and the last convolution, which Muon is for."""
        ends = (self.encoder[0].weight, self.decoder[-1].weight, self.flat_latent.weight)
        return [weight for weight in self.parameters() if weight.dim() > 1 and all(weight is not end for end in ends)]

    def told(self, first: Painted) -> Tensor:
        """What the first level paints, on this grid: features and picture, `[B, told + d*d, H/d, W/d]`."""
        rows = first.picture.shape[2] // self.downsample
        return torch.cat([on_grid(first.features, rows), self._pixels(first.picture)], 1)

    def latents(self, images: Tensor, first: Painted) -> Tensor:
        """Encoder output before quantisation, `[B, D, H/d, W/d]`, of slices and of what the first level paints of them.

        A uniform patch is encoded by its grey value alone, as in `VQVAE.latents`.
        """
        encoded = self.encoder(self._seen(images, first.picture))
        flat = flat_patches(images, self.downsample)
        return torch.where(flat, self.flat_latent(F.avg_pool2d(images, self.downsample)), encoded)

    def paint(self, vectors: Tensor, first: Painted) -> Painted:
        """What both levels paint: the first level's picture, and what the code vectors `[B, D, H/d, W/d]` add to it."""
        features = self.decoder[:-2](torch.cat([self.told(first), vectors], 1))
        added = F.pixel_shuffle(self.decoder[-2:](features), self.downsample)
        return Painted(features, first.picture + SIZE * added.float())

    @torch.no_grad()
    def start(self, images: Tensor, first: Painted) -> None:
        """Scale the untrained encoder and place the codes among its latents, as `VQVAE.start` does."""
        standardise(self.encoder[-1], self.encoder(self._seen(images, first.picture)))
        self.quantizer.start(self.latents(images, first))

    def _seen(self, images: Tensor, picture: Tensor) -> Tensor:
        """What the encoder sees: the first level's picture, and what is missing there. Slices themselves, which are nearly that
        picture, would leave it to find the difference first."""
        return torch.cat([self._pixels(picture), self._pixels((images - picture) / SIZE)], 1)

    def _pixels(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.downsample)


def sizes_upon(first: VQVAE) -> dict[str, int]:
    """What a first level asks of a second, as arguments of `DetailLevel`."""
    downsample, stem = first.downsample // FINER, min(STEM_FACTOR, first.downsample)
    return {"downsample": downsample, "told": first.arguments["width"] * max(1, downsample // stem) ** 2}


def on_grid(features: Tensor, height: int) -> Tensor:
    """Features `[B, C, ...]` on a grid of so many rows: places moved into channels where it is coarser, repeated where it is
    finer."""
    rows = features.shape[2]
    return finer(features) if rows < height else F.pixel_unshuffle(features, rows // height)


class TwoLevelVQVAE(nn.Module):
    """A trained VQ-VAE and a second level upon it. In training, the second level alone learns.

    Args:
        first: the VQ-VAE. detail: the second level.
        sharp: `models.sharp_decoder.SharpDetail`, which adds texture to what both levels paint; None: nothing.
    """

    def __init__(self, first: VQVAE, detail: DetailLevel, sharp: nn.Module | None = None):
        super().__init__()
        self.first, self.detail, self.sharp = first, detail, sharp

    @property
    def downsample(self) -> int:
        """Pixels that a code of the first level covers along each side."""
        return self.first.downsample

    def with_decoder(self, sharp: nn.Module) -> "TwoLevelVQVAE":
        """The same levels with texture on top of what both paint; this one stays as it is."""
        other = TwoLevelVQVAE(self.first, self.detail, sharp)
        other.training = self.training
        return other

    # ----------------------------------------------------------------------- in training

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode, quantise and decode `[B, 1, H, W]` slices; codes, latents and commitment are the second level's. Changes no
        state."""
        first = self._first_of(images)
        latents = self.detail.latents(images, first)
        out = self.detail.quantizer(latents)
        picture = self.detail.paint(out.quantized, first).picture
        return VQVAEOutput(picture, out.codes, out.commitment_loss, latents.detach().float())

    def autoencode(self, images: Tensor) -> Tensor:
        """Encode and decode slices without quantising the second level; unclamped."""
        first = self._first_of(images)
        return self.detail.paint(self.detail.latents(images, first), first).picture

    def latents(self, images: Tensor) -> Tensor:
        """Encoder output of the second level before quantisation, `[B, D, H/d, W/d]`."""
        return self.detail.latents(images, self._first_of(images))

    def start(self, images: Tensor) -> None:
        """`DetailLevel.start`."""
        self.detail.start(images, self._first_of(images))

    def _first_of(self, images: Tensor) -> Painted:
        """What the first level paints of slices. Its codes are those of the precision at hand: the few that another one would
        choose otherwise paint the same."""
        with torch.no_grad():
            return self.paint_first(self.first.quantizer.nearest(self.first.latents(images)))

    # ----------------------------------------------------------------------- trained

    def encode(self, images: Tensor) -> Codes:
        """Code maps of both levels of `[B, 1, H, W]` slices, in float32 as those of `VQVAE.encode`: the same for a slice in any
        batch and on any device, but for rounding in what the first level paints."""
        first = self.first.encode(images)
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False), full_float32():
            latents = self.detail.latents(images.float(), self.paint_first(first))
            return Codes(first, self.detail.quantizer.nearest(latents).clone())

    def decode(self, codes: CodeMaps, noise: Tensor | None = None) -> Tensor:
        """Slices `[B, 1, H, W]` in 0..1 of code maps: of `Codes` what both levels paint, of `[B, h, w]` maps what the first alone
        does. noise: of the slices' size, for texture on top of both levels."""
        if not isinstance(codes, Codes):
            return self.first.decode(codes)
        with torch.inference_mode():
            painted = self.paint(codes)
            picture = painted.picture if self.sharp is None else self.sharp(painted, codes, noise)
            return picture.float().clamp(0, 1).clone()

    def paint(self, codes: Codes) -> Painted:
        """The second decoder's last features, `[B, C, H/d, W/d]`, and its picture, of both levels' code maps."""
        return self.detail.paint(self.detail.quantizer.lookup(codes.detail), self.paint_first(codes.first))

    def paint_first(self, codes: Tensor) -> Painted:
        """The same of the first level alone, from its own decoder: `[B, h, w]` code maps."""
        return Painted(*self.first.decoder.painted(self.first.quantizer.lookup(codes)))

    @torch.no_grad()
    def context(self, codes: Tensor) -> Tensor:
        """What a prior of the second level is told of the first, `[B, F, H/d, W/d]`: the vectors of its codes `[B, h, w]`, and
        what it paints."""
        vectors = finer(self.first.quantizer.lookup(codes))
        return torch.cat([vectors, self.detail.told(self.paint_first(codes))], 1)

    @property
    def context_channels(self) -> int:
        """F of `context`."""
        return self.first.quantizer.code_dim + self.detail.arguments["told"] + self.detail.downsample**2


Codec = VQVAE | TwoLevelVQVAE


def first_of(model: Codec) -> VQVAE:
    """The first level of a run's VQ-VAE: itself where it has no other."""
    return model.first if isinstance(model, TwoLevelVQVAE) else model
