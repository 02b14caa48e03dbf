"""The third stage's model: a second decoder that restores the texture which codes cannot carry.

    sharp = SharpDecoder.after(vqvae)                   # the trained decoder, and an untrained network that adds texture to it
    first, second = sharp(vectors, noise), sharp(vectors, other_noise)     # code vectors [B, D, h, w] -> [B, 1, H, W]

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

from vqvae import SLOPE, VQVAE, Decoder, ResidualBlock, flat_patches

COARSE, MIDDLE, FULL = 64, 32, 16  # channels at the decoder's finest scale, at half resolution and at full resolution
COARSE_NOISE = 8  # channels of noise at the decoder's finest scale
Noise = Sequence[torch.Generator] | Tensor
FIRST_TEXTURE = 0.01  # size of the last weights at the start: some texture of every kind, to tell which is wanted


class SharpDecoder(Decoder):
    """Code vectors to slices, `[B, D, h, w]` -> `[B, 1, h*f, w*f]`: what `vqvae.Decoder` paints, and texture.

    Texture is made from noise, the decoder's last features and its picture, at three resolutions. Between them it is enlarged by
    interpolation, since sub-pixel convolution would leave a grid, and the last layers see every pixel alike. Patches that the
    decoder leaves without texture stay so: the encoder knows these by it.
    """

    def __init__(self, code_dim: int, downsample: int, width: int, blocks: int):
        super().__init__(code_dim, downsample, width, blocks)
        self.arguments = dict(code_dim=code_dim, downsample=downsample, width=width, blocks=blocks)
        *_, last, shuffle = self.layers
        self.stem = shuffle.upscale_factor
        self.texture = nn.ModuleDict(
            {
                "coarse_in": nn.Conv2d(last.in_channels + COARSE_NOISE, COARSE, 1),
                "coarse": nn.Sequential(ResidualBlock(COARSE), ResidualBlock(COARSE), nn.LeakyReLU(SLOPE)),
                "coarse_out": nn.Conv2d(COARSE, MIDDLE, 1),
                "middle_in": nn.Conv2d(8, MIDDLE, 3, padding=1),
                "middle": nn.Sequential(ResidualBlock(MIDDLE), ResidualBlock(MIDDLE), nn.LeakyReLU(SLOPE)),
                "middle_out": nn.Conv2d(MIDDLE, FULL, 1),
                "full_in": nn.Conv2d(2, FULL, 5, padding=2),
                "full": nn.Sequential(nn.LeakyReLU(SLOPE), nn.Conv2d(FULL, FULL, 3, padding=1), nn.LeakyReLU(SLOPE)),
                "full_out": nn.Conv2d(FULL, 1, 3, padding=1),
            }
        )
        for block in self.texture.modules():
            if isinstance(block, ResidualBlock):
                nn.init.normal_(block.mix.weight, std=0.05)
        nn.init.normal_(self.texture["full_out"].weight, std=FIRST_TEXTURE)
        nn.init.zeros_(self.texture["full_out"].bias)
        self.layers.requires_grad_(False)

    @classmethod
    def after(cls, vqvae: VQVAE) -> "SharpDecoder":
        """A new one that paints what the trained VQ-VAE's decoder does, and a trace of texture."""
        names = ("code_dim", "downsample", "width", "blocks")
        sharp = cls(**{name: vqvae.arguments[name] for name in names})
        sharp.load_state_dict(vqvae.decoder.state_dict(), strict=False)
        return sharp.to(vqvae.quantizer.codebook.device)

    def forward(self, quantized: Tensor, noise: Noise | None = None) -> Tensor:
        """`noise`: of each slice, as generators on the CPU or itself, `[B, 1, h*f, w*f]`. Where none is given, the code vectors
        seed it: the same code map gives the same slice, alone or in any batch."""
        features, picture = self.smooth(quantized)
        return self.textured(features, picture, _seeded_by(quantized) if noise is None else noise)

    def smooth(self, quantized: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's last features, `[B, C, h*f/s, w*f/s]`, and its picture, `[B, 1, h*f, w*f]`; neither is trained."""
        with torch.no_grad():
            features = self.layers[:-3](quantized)
            return features, self.layers[-3:](features).float()

    def textured(self, features: Tensor, picture: Tensor, noise: Noise) -> Tensor:
        """Add texture to what `smooth` gives."""
        net, half = self.texture, max(1, self.stem // 2)
        noise = _noise(picture, noise)
        coarse_noise = F.pixel_unshuffle(noise, self.stem)
        repeats = -(-COARSE_NOISE // coarse_noise.shape[1])
        coarse_noise = coarse_noise.repeat(1, repeats, 1, 1)[:, :COARSE_NOISE]
        x = net["coarse"](net["coarse_in"](torch.cat([features, coarse_noise.to(features.dtype)], 1)))
        x = F.interpolate(net["coarse_out"](x), scale_factor=half, mode="bilinear")
        pixels = torch.cat([picture, noise], 1)
        x = net["middle"](x + net["middle_in"](F.pixel_unshuffle(pixels, 2)))
        x = F.interpolate(net["middle_out"](x), scale_factor=2, mode="bilinear")
        texture = net["full_out"](net["full"](x + net["full_in"](pixels))).float()
        downsample = self.arguments["downsample"]
        flat = flat_patches(picture.clamp(0, 1), downsample)
        return picture + texture * F.interpolate((~flat).float(), scale_factor=downsample)


def _noise(like: Tensor, noise: Noise) -> Tensor:
    """Standard normal noise, one channel, `[B, 1, H, W]`."""
    if not torch.is_tensor(noise):
        noise = torch.stack([torch.randn(1, *like.shape[2:], generator=generator) for generator in noise])
    return noise.to(like.device, like.dtype)


def _seeded_by(quantized: Tensor) -> list[torch.Generator]:
    vectors = quantized.detach().float().cpu().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(vector.tobytes())) for vector in vectors]
