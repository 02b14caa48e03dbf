"""The scores that the sharp decoder is trained by.

    score = TextureScore(residuals, codes, num_codes)
    score.look_anew()
    loss = score(images, first, second, codes)          # least where texture is drawn as slices with these codes have it
    loss += SpectrumScore(some_images)(images, first)   # least where it has the power that slices have at each fine frequency

Two draws of a slice are judged by a proper score, without an adversary: the energy score (Gneiting and Raftery 2007, section
4.3) of many one-dimensional views of the draws. Weather forecasts are trained so to be sharp (arXiv 2506.10772). That score
hardly feels the power spectrum, which a small network sees; a second term holds it.
A third asks that the encoder finds the codes again.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scoring.metrics import frequencies
from vqvae import VQVAE

FILTER, FILTERS = 11, (24, 12, 12)  # side in pixels and number of the views at full, half and quarter resolution
LEVEL_WEIGHTS = (1.0, 0.5, 0.5)
WAVES = (1.2, 2.4)  # standard deviation in pixels of a view's window
# of the distance between draws: 1 asks for all the texture of slices, less favours what the codes tell
SPREAD_WEIGHT = 0.95
REFERENCE_WAVES = 64  # by which the mean size of answers is held against their standard deviation
SMALL_SIZE = 0.3  # of texture, as a share of its mean size: what is fainter counts no more than this
RARE = 8  # patches, of mean size, that each code's mean size of texture is mixed with
FINE = 0.2  # cycles a pixel, the frequency from which spectra are held to those of slices
SPECTRUM_SIDE = 8  # Fourier coefficients along a side of the squares that spectra are averaged over
FAINT = 1e-3  # power, as a share of the mean of all squares, that counts as none


class TextureScore:
    """How well two draws of a slice foretell the slice: the sliced energy score, a loss.

    Of one number y and two draws a, b of what it might be, (|y - a| + |y - b| - |a - b|) / 2 is on average least when the draws
    have the distribution of y, and moves them there. Here y are the pixels, and the answers of the slice to `FILTERS` windowed
    waves of random frequency, direction and phase, drawn anew for every step, at three resolutions. Views are made equally
    important by the mean size of the answers of `residuals`, and positions by the mean size of the residuals under the code that
    stands there, so that faint texture is learned as well as strong. (Weights that depend on the draws themselves would be no
    proper score: texture grew to twice its power.)

    Args:
        residuals: `[N, 1, H, W]` slices less their smooth reconstructions.
        codes: `[N, h, w]` theirs.
        num_codes: K.
    """

    def __init__(self, residuals: Tensor, codes: Tensor, num_codes: int):
        self.pixel_size = float(residuals.abs().mean().clamp(min=1e-6))
        patches = F.adaptive_avg_pool2d(residuals.abs(), codes.shape[1:])[:, 0] / self.pixel_size
        sums = torch.zeros(num_codes).index_add(0, codes.flatten(), patches.flatten())
        self.sizes = (sums + RARE) / (torch.bincount(codes.flatten(), minlength=num_codes) + RARE)
        self.covariances, self.filters = [], []
        for level in self._levels(residuals):
            patches = F.unfold(level, FILTER, stride=3).transpose(1, 2).reshape(-1, FILTER**2).double()
            covariance = patches.t() @ patches / len(patches)
            # what is faint nearly everywhere has a mean size far below its standard deviation
            answers = patches @ waves(REFERENCE_WAVES).flatten(1).double().t()
            size = answers.abs().mean() / answers.square().mean().sqrt().clamp(min=1e-12)
            self.covariances.append(covariance * size**2)

    def look_anew(self) -> None:
        """Draw other views, from PyTorch's global random state."""
        self.filters = []
        for covariance, count in zip(self.covariances, FILTERS):
            filters = waves(count)
            rows = filters.flatten(1).double()
            size = ((rows @ covariance) * rows).sum(1).clamp(min=1e-12).sqrt().float()
            self.filters.append(filters / size[:, None, None, None])
        self.shifts = torch.randint(2, (len(self.filters), 2)).tolist()

    def __call__(self, images: Tensor, first: Tensor, second: Tensor, codes: Tensor) -> Tensor:
        """`[B, 1, H, W]` each and their codes `[B, h, w]`, a scalar out."""
        loss = _energy(images, first, second).mean() / self.pixel_size
        importance = 1 / (self.sizes.to(codes.device)[codes][:, None] + SMALL_SIZE)
        levels = self._levels(torch.cat([images, first, second]).float())
        for level, filters, shift, weight in zip(levels, self.filters, self.shifts, LEVEL_WEIGHTS):
            answers = _answers(level, filters.to(level.device), shift).chunk(3)
            weights = F.interpolate(importance, size=answers[0].shape[2:], mode="bilinear")
            loss = loss + weight * (_energy(*answers) * weights).mean()
        return loss

    @staticmethod
    def _levels(images: Tensor) -> list[Tensor]:
        """The images at full, half and quarter resolution, as far as a view fits in."""
        levels: list[Tensor] = []
        while len(levels) < len(FILTERS) and min(images.shape[2:]) >= FILTER + 3:
            levels.append(images)
            images = F.avg_pool2d(images, 2)
        return levels


def waves(count: int) -> Tensor:
    """Windowed waves (Gabor filters) of unit energy, of any frequency that pixels can hold: `[count, 1, FILTER, FILTER]`."""
    place = torch.arange(FILTER) - FILTER // 2
    frequency = torch.rand(2, count, 1, 1) - 0.5  # in cycles a pixel
    width = WAVES[0] + (WAVES[1] - WAVES[0]) * torch.rand(count, 1, 1)
    phase = frequency[0] * place[:, None] + frequency[1] * place + torch.rand(count, 1, 1)
    window = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * width**2))
    filters = window * torch.cos(2 * math.pi * phase)
    return (filters / filters.flatten(1).norm(dim=1)[:, None, None])[:, None]


def _answers(images: Tensor, filters: Tensor, shift: Sequence[int]) -> Tensor:
    """Answers of `[B, 1, H, W]` images to filters at every second pixel from `shift` on.

    Pixels go into channels first, which the processor multiplies several times faster than one channel with a stride.
    """
    images = images[:, :, shift[0] :, shift[1] :]
    images = images[:, :, : images.shape[2] // 2 * 2, : images.shape[3] // 2 * 2]
    even = F.pixel_unshuffle(F.pad(filters, (0, 1, 0, 1)), 2)
    with torch.autocast(images.device.type, enabled=False):
        return F.conv2d(F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last), even)


def _energy(real: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return ((real - first).abs() + (real - second).abs() - SPREAD_WEIGHT * (first - second).abs()) / 2


class SpectrumScore:
    """How far the fine power spectra of draws are from those of their slices, a loss.

    A small network tells slices by their spectra, and the energy score hardly feels a tenth of the power. Powers are
    compared, not their logarithms: some slices are far noisier than their codes tell, and the mean over all is what should hold.

    Args:
        images: `[N, 1, H, W]` slices, whose mean power at each frequency is the unit there.
    """

    def __init__(self, images: Tensor):
        self.side = max(1, min(SPECTRUM_SIDE, min(images.shape[2:]) // 8))
        self.fine = frequencies(images) >= FINE
        self.used = F.avg_pool2d(self.fine.float()[None], self.side)[0] > 0.5
        power = self._power(images).mean(0)
        self.unit = power + FAINT * power.mean() + 1e-12

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """`[B, 1, H, W]` each, a scalar out."""
        return F.smooth_l1_loss(self._power(draws) / self.unit, self._power(images) / self.unit)

    def _power(self, images: Tensor) -> Tensor:
        """Mean of each square of fine Fourier coefficients: `[B, 1, H, W]` -> `[B, squares]`."""
        power = torch.fft.fft2(images.float()[:, 0]).abs().square() * self.fine
        return F.avg_pool2d(power, self.side)[:, self.used]


class CodeScore:
    """How surely the encoder finds the codes again in a picture that was drawn from them, a loss.

    Args:
        vqvae: whose encoder and codebook.
        images: `[N, 1, H, W]` slices, which say how far latents are from their codes.
        codes: `[N, h, w]` theirs.
    """

    SURENESS = 4.0  # how many times the mean squared distance of latents from their codes counts as a difference

    def __init__(self, vqvae: VQVAE, images: Tensor, codes: Tensor):
        self.vqvae = vqvae
        with torch.no_grad():
            apart = (vqvae.latents(images).float() - vqvae.quantizer.lookup(codes)).square().sum(1)
            textured = ~vqvae.flat(images)[:, 0]
            self.scale = float((apart * textured).sum() / textured.sum().clamp(min=1)) / self.SURENESS

    def __call__(self, pictures: Tensor, codes: Tensor, textured: Tensor) -> Tensor:
        """Cross-entropy of the codes, each as likely as its vector is near.

        Args:
            pictures: `[B, 1, H, W]`.
            codes: `[B, h, w]`.
            textured: `[B, 1, h, w]` bool, the positions that count: uniform patches are not encoded by the encoder.
        """
        latents = self.vqvae.encoder(pictures.contiguous(memory_format=torch.channels_last)).float()
        codebook = self.vqvae.quantizer.codebook
        with torch.autocast(pictures.device.type, enabled=False):
            vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
            nearness = (2 * vectors @ codebook.t() - codebook.square().sum(1)) / max(self.scale, 1e-12)
            unlikely = F.cross_entropy(nearness, codes.flatten(), reduction="none").view(codes.shape)
        return (unlikely * textured[:, 0]).mean()
