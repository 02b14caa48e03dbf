"""The third stage's model: a second decoder that restores the texture which codes cannot carry.

    sharp = SharpDecoder.after(vqvae)                   # the trained decoder, and an untrained network that adds texture to it
    first, second = sharp(vectors, noise), sharp(vectors, other_noise)     # code vectors [B, D, h, w] -> [B, 1, H, W]
    sharp = SharpDetail.after(levels)                   # on top of what two levels of codes paint
    images = sharp(levels.paint(codes), codes, noise)

A decoder trained on pixel errors paints the mean of all slices that a code map may stand for, and the mean is smooth. This one
draws one of them (`training/texture_losses.py` says how it learns to). The encoder, the codebook, the prior and the first decoder
stay as they are.
"""

import zlib
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.codes import Codes
from models.detail import Codec, Painted, TwoLevelVQVAE
from vqvae import SLOPE, VQVAE, Decoder, ResidualBlock, flat_patches

COARSE, MIDDLE, FULL = 64, 32, 16  # channels at the decoder's finest scale, at half resolution and at full resolution
COARSE_NOISE = 8  # channels of noise at the decoder's finest scale
Noise = Sequence[torch.Generator] | Tensor
FIRST_TEXTURE = 0.01  # size of the last weights at the start: some texture of every kind, to tell which is wanted


class Texture(nn.Module):
    """Adds texture to a decoder's picture, from noise, the decoder's last features and the picture itself, at three resolutions.

    Between them it is enlarged by interpolation, since sub-pixel convolution would leave a grid, and the last layers see every
    pixel alike. Patches that the decoder leaves without texture stay so: the encoder knows these by it.

    Args:
        features: channels of the decoder's last features. stem: pixels that one of them covers along each side.
        patch: pixels a side of the patches that stay flat.
    """

    def __init__(self, features: int, stem: int, patch: int):
        super().__init__()
        self.stem, self.patch = stem, patch
        self.coarse_in = nn.Conv2d(features + COARSE_NOISE, COARSE, 1)
        self.coarse = nn.Sequential(ResidualBlock(COARSE), ResidualBlock(COARSE), nn.LeakyReLU(SLOPE))
        self.coarse_out = nn.Conv2d(COARSE, MIDDLE, 1)
        self.middle_in = nn.Conv2d(8, MIDDLE, 3, padding=1)
        self.middle = nn.Sequential(ResidualBlock(MIDDLE), ResidualBlock(MIDDLE), nn.LeakyReLU(SLOPE))
        self.middle_out = nn.Conv2d(MIDDLE, FULL, 1)
        self.full_in = nn.Conv2d(2, FULL, 5, padding=2)
        self.full = nn.Sequential(nn.LeakyReLU(SLOPE), nn.Conv2d(FULL, FULL, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.full_out = nn.Conv2d(FULL, 1, 3, padding=1)
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                nn.init.normal_(block.mix.weight, std=0.05)
        nn.init.normal_(self.full_out.weight, std=FIRST_TEXTURE)
        nn.init.zeros_(self.full_out.bias)

    def forward(self, features: Tensor, picture: Tensor, noise: Noise) -> Tensor:
        """`[B, C, H/stem, W/stem]` features and `[B, 1, H, W]` picture -> the picture with texture. noise: of each slice, as
        generators on the CPU or itself, `[B, 1, H, W]`."""
        half, noise = max(1, self.stem // 2), _noise(picture, noise)
        coarse_noise = F.pixel_unshuffle(noise, self.stem)
        repeats = -(-COARSE_NOISE // coarse_noise.shape[1])
        coarse_noise = coarse_noise.repeat(1, repeats, 1, 1)[:, :COARSE_NOISE]
        x = self.coarse(self.coarse_in(torch.cat([features, coarse_noise.to(features.dtype)], 1)))
        x = F.interpolate(self.coarse_out(x), scale_factor=half, mode="bilinear")
        pixels = torch.cat([picture, noise], 1)
        x = self.middle(x + self.middle_in(F.pixel_unshuffle(pixels, 2)))
        x = F.interpolate(self.middle_out(x), scale_factor=2, mode="bilinear")
        texture = self.full_out(self.full(x + self.full_in(pixels))).float()
        flat = flat_patches(picture.clamp(0, 1), self.patch)
        return picture + texture * F.interpolate((~flat).float(), scale_factor=self.patch)


class SharpDecoder(Decoder):
    """Code vectors to slices, `[B, D, h, w]` -> `[B, 1, h*f, w*f]`: what `vqvae.Decoder` paints, and `Texture`."""

    def __init__(self, code_dim: int, downsample: int, width: int, blocks: int):
        super().__init__(code_dim, downsample, width, blocks)
        self.arguments = dict(code_dim=code_dim, downsample=downsample, width=width, blocks=blocks)
        *_, last, shuffle = self.layers
        self.texture = Texture(last.in_channels, shuffle.upscale_factor, downsample)
        self.layers.requires_grad_(False)

    @classmethod
    def after(cls, vqvae: VQVAE) -> "SharpDecoder":
        """A new one that paints what the trained VQ-VAE's decoder does, and a trace of texture."""
        names = ("code_dim", "downsample", "width", "blocks")
        sharp = cls(**{name: vqvae.arguments[name] for name in names})
        sharp.load_state_dict(vqvae.decoder.state_dict(), strict=False)
        return sharp.to(vqvae.quantizer.codebook.device)

    def forward(self, quantized: Tensor, noise: Noise | None = None) -> Tensor:
        """`noise`: of each slice, as `Texture` takes it. Where none is given, the code vectors seed it: the same code map gives
        the same slice, alone or in any batch."""
        return self.texture(*self.smooth(quantized), _seeded_by(quantized) if noise is None else noise)

    def smooth(self, quantized: Tensor) -> Painted:
        """What the decoder paints without texture; neither features nor picture are trained."""
        with torch.no_grad():
            return Painted(*self.painted(quantized))


class SharpDetail(nn.Module):
    """`Texture` on top of what two levels of codes paint.

    Args:
        features: channels of the second level's last features. downsample: pixels that its codes cover along each side.
    """

    def __init__(self, features: int, downsample: int):
        super().__init__()
        self.arguments = dict(features=features, downsample=downsample)
        self.texture = Texture(features, downsample, downsample)

    @classmethod
    def after(cls, levels: TwoLevelVQVAE) -> "SharpDetail":
        """A new one that leaves a trace of texture."""
        arguments = levels.detail.arguments
        return cls(arguments["width"], arguments["downsample"]).to(levels.detail.quantizer.codebook.device)

    def forward(self, painted: Painted, codes: Codes, noise: Noise | None = None) -> Tensor:
        """What both levels paint of these codes, with texture. noise: as in `SharpDecoder.forward`, by default seeded by the
        codes of the second level."""
        return self.texture(*painted, _seeded_by(codes.detail) if noise is None else noise)


def makes_texture(vqvae: Codec) -> bool:
    """Whether what this VQ-VAE paints has texture made of noise."""
    return vqvae.sharp is not None if isinstance(vqvae, TwoLevelVQVAE) else isinstance(vqvae.decoder, SharpDecoder)


def _noise(like: Tensor, noise: Noise) -> Tensor:
    """Standard normal noise, one channel, `[B, 1, H, W]`."""
    if not torch.is_tensor(noise):
        noise = torch.stack([torch.randn(1, *like.shape[2:], generator=generator) for generator in noise])
    return noise.to(like.device, like.dtype)


def _seeded_by(maps: Tensor) -> list[torch.Generator]:
    """A generator of each of `[B, ...]` maps: the same for the same one, alone or in any batch."""
    each = maps.detach().float().cpu().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(one.tobytes())) for one in each]
