"""The third stage: a second decoder that restores the texture which codes cannot carry.

    sharp = SharpDecoder.after(vqvae)                       # starts as the trained decoder
    sharpener = Sharpener(sharp)
    out = sharpener.losses(codes_as_vectors, faithful, images)   # one step of both networks

A decoder trained on pixel errors paints the mean of all slices that a code map may stand for, and the mean is smooth. This one
is trained against a patch discriminator as well (as in VQGAN, arXiv 2012.09841), which sees whether texture is there, not whether
it is where the slice had it. The encoder, the codebook, the prior and the first decoder stay as they are.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm

from vqvae import SLOPE, VQVAE, Decoder, ResidualBlock, reconstruction_loss

DETAIL_CHANNELS, CONTEXT_CHANNELS = (
    16,
    8,
)  # of the convolutions at full resolution, and of what they are told of each place
WIDTHS = (48, 96, 128)  # of the discriminator
CONTRAST = (
    10.0  # of the texture that is shown to the discriminator, whose answers can change no faster than what it sees
)
ADVERSARIAL = 0.8  # the adversarial gradient's size as a share of the reconstruction's
SSIM_WEIGHT = 0.2  # of the reconstruction loss: SSIM resists all texture that is not the slice's own
CODE_WEIGHT = 0.1  # of the distance between the codes and the latents of the sharp slice


class SharpDecoder(Decoder):
    """Code vectors to slices, `[B, D, h, w]` -> `[B, 1, h*f, w*f]`, as `vqvae.Decoder` but with noise to make texture from.

    Noise is added after every residual block by a strength a channel, and three convolutions at full resolution, which know
    nothing of the grid of sub-pixels, make texture from the picture, the decoder's last features and more noise. Both start at
    zero: an untrained one paints what `Decoder` does.
    """

    def __init__(self, code_dim: int, downsample: int, width: int, blocks: int):
        super().__init__(code_dim, downsample, width, blocks)
        self.arguments = dict(code_dim=code_dim, downsample=downsample, width=width, blocks=blocks)
        channels = [layer.mix.out_channels for layer in self.layers if isinstance(layer, ResidualBlock)]
        self.strengths = nn.ParameterList([nn.Parameter(torch.zeros(count)) for count in channels])
        *_, last, shuffle = self.layers
        self.context = nn.Conv2d(last.in_channels, CONTEXT_CHANNELS, 1)
        self.upsample = nn.Upsample(scale_factor=shuffle.upscale_factor, mode="bilinear")
        self.detail = nn.Sequential(
            nn.Conv2d(2 + CONTEXT_CHANNELS, DETAIL_CHANNELS, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(DETAIL_CHANNELS, DETAIL_CHANNELS, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(DETAIL_CHANNELS, 1, 3, padding=1),
        )
        nn.init.zeros_(self.detail[-1].weight)
        nn.init.zeros_(self.detail[-1].bias)

    @classmethod
    def after(cls, vqvae: VQVAE) -> "SharpDecoder":
        """A new one that paints what the trained VQ-VAE's decoder does."""
        names = ("code_dim", "downsample", "width", "blocks")
        sharp = cls(**{name: vqvae.arguments[name] for name in names})
        sharp.load_state_dict(vqvae.decoder.state_dict(), strict=False)
        return sharp.to(vqvae.quantizer.codebook.device)

    def forward(self, quantized: Tensor, generators: list[torch.Generator] | None = None) -> Tensor:
        """`generators`: of each slice's noise, on the CPU. Where none are given, the code vectors seed it: the same code map
        gives the same slice, alone or in any batch."""
        generators = _seeded_by(quantized) if generators is None else generators
        strengths, x = iter(self.strengths), quantized
        for layer in self.layers[:-2]:
            x = layer(x)
            if isinstance(layer, ResidualBlock):
                x = x + _noise(x, generators) * next(strengths)[:, None, None]
        picture, context = self.layers[-2:](x), self.upsample(self.context(x))
        return picture + self.detail(torch.cat([picture, context, _noise(picture, generators)], dim=1))


def _noise(like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Standard normal noise, one channel, `[B, 1, H, W]`."""
    maps = [torch.randn(1, *like.shape[2:], generator=generator) for generator in generators]
    return torch.stack(maps).to(like.device, like.dtype)


def _seeded_by(quantized: Tensor) -> list[torch.Generator]:
    vectors = quantized.detach().float().cpu().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(vector.tobytes())) for vector in vectors]


class Discriminator(nn.Module):
    """Which patches are real: `[B, 1, H, W]` slices beside what the first decoder made of their codes -> `[B, 1, H/8, W/8]`.

    It sees the faithful picture and, enlarged, what that lacks: the texture that is to be judged.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        channels = 8
        for index, width in enumerate(WIDTHS):
            stride = 1 if index == 0 else 2
            layers += [spectral_norm(nn.Conv2d(channels, width, 3 + stride - 1, stride, 1)), nn.LeakyReLU(0.2)]
            channels = width
        layers += [spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 3, padding=1)))

    def forward(self, images: Tensor, faithful: Tensor) -> Tensor:
        return self.layers(torch.cat([CONTRAST * (images - faithful), faithful], dim=1))


@dataclass
class SharpeningLosses:
    """Scalars. loss: its gradient moves both networks, the decoder against the discriminator. The others are for show."""

    loss: Tensor
    reconstruction: Tensor
    adversarial: Tensor
    discriminator: Tensor
    codes: Tensor


class Sharpener(nn.Module):
    """The second decoder and the discriminator that it is trained against."""

    def __init__(self, decoder: SharpDecoder):
        super().__init__()
        self.decoder = decoder
        self.discriminator = Discriminator().to(decoder.strengths[0].device)

    @property
    def arguments(self) -> dict[str, int]:
        return self.decoder.arguments

    def losses(
        self,
        quantized: Tensor,
        faithful: Tensor,
        images: Tensor,
        seeds: Sequence[int],
        ramp: float = 1.0,
        code_distance: Callable[[Tensor], Tensor] | None = None,
    ) -> SharpeningLosses:
        """One step's losses of both networks.

        The adversarial gradient is scaled to `ADVERSARIAL` times the size of the reconstruction's, both measured at the picture.
        Texture may be any, as long as the encoder would still find the same codes in it.

        Args:
            quantized: `[B, D, h, w]` code vectors.
            faithful: `[B, 1, H, W]` what the first decoder makes of them.
            images: `[B, 1, H, W]` the slices.
            seeds: of each slice's noise.
            ramp: 0..1, weight of the adversarial term while the discriminator learns its first lessons.
            code_distance: how far `[B, 1, H, W]` pictures are from their codes, a scalar; None does not ask.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sharp = self.decoder(quantized, generators).float()
        with torch.enable_grad():
            seen = sharp.detach().requires_grad_()
            reconstruction = reconstruction_loss(seen, images, SSIM_WEIGHT)
            codes = seen.new_zeros(()) if code_distance is None else code_distance(seen)
            (pull,) = torch.autograd.grad(reconstruction + CODE_WEIGHT * codes, seen)
            adversarial = -self.discriminator(seen, faithful).float().mean()
            (push,) = torch.autograd.grad(adversarial, seen)
        push = push * (pull.norm() / push.norm().clamp(min=1e-12))
        moved = (sharp * (pull + ramp * ADVERSARIAL * push)).sum()  # has these gradients at the picture
        real, fake = (
            self.discriminator(torch.cat([images, seen.detach()]), torch.cat([faithful, faithful])).float().chunk(2)
        )
        discriminator = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        shown = reconstruction.detach() + discriminator.detach()
        loss = moved - moved.detach() + discriminator - discriminator.detach() + shown
        return SharpeningLosses(loss, *(part.detach() for part in (reconstruction, adversarial, discriminator, codes)))
