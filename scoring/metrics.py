"""Scores. SSIM and PSNR are torchmetrics'; a score over a split is over every slice of it, never an average of batches.

SSIM is the 11x11 Gaussian one (sigma 1.5, data range 1; Wang et al. 2004), PSNR is in dB of the range 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student_t
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

SSIM_WINDOW = 11
FOREGROUND = 16 / 255  # darker pixels are background
PERFECT_PSNR = 100.0  # dB reported for an image without any error
FEW_SUBJECTS = 15  # below which intervals are Student's


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """SSIM of each slice: `[B, 1, H, W]` twice, 0..1 -> `[B]`, at most 1."""
    return ssim_map(images, targets).mean((1, 2, 3))


def ssim_map(images: Tensor, targets: Tensor) -> Tensor:
    """SSIM at each pixel: `[B, 1, H, W]` twice, 0..1 -> `[B, 1, H, W]`.

    Slices smaller than two windows a side are padded with zeros to that size first.
    """
    height, width = images.shape[2:]
    missing = [max(0, 2 * SSIM_WINDOW - side) for side in (images.shape[3], images.shape[2])]
    if any(missing):
        padding = [part for side in missing for part in (side // 2, side - side // 2)]
        images, targets = F.pad(images, padding), F.pad(targets, padding)
    images, targets = (
        images.transpose(0, 1),
        targets.transpose(0, 1),
    )  # slices as channels: same values, 6 times as fast
    values = structural_similarity_index_measure(
        images, targets, gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )[1]
    top, left = missing[1] // 2, missing[0] // 2
    return values.transpose(0, 1)[:, :, top : top + height, left : left + width]


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR of each slice in dB: `[B, 1, H, W]` twice, 0..1 -> `[B]`; `PERFECT_PSNR` where they are equal."""
    values = peak_signal_noise_ratio(images, targets, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=PERFECT_PSNR)


def mae(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of each slice: `[B, 1, H, W]` twice -> `[B]`, in units of the range 0..1."""
    return (images - targets).abs().mean((1, 2, 3))


def mean_interval(
    values: np.ndarray, subjects: Sequence[str], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of the mean of `[N]` values over subjects: slices of one subject are alike, so that an interval over slices
    would be too narrow. None for one subject, which says nothing of others.

    Fewer than `FEW_SUBJECTS`: Student's t, because resampling so few gives intervals that are too narrow (over 4 subjects, 95 %
    ones hold the mean 78 % of the time). It is taken on subject means; where subjects have unequal numbers of slices, on each
    one's deviation from the mean over all slices, weighted by its slices (the linearised ratio estimator; Cochran 1977, section
    6.3), which is the same where numbers are equal.
    From there on: percentile bootstrap, resampling subjects.
    """
    names, subject_of = np.unique(np.asarray(subjects), return_inverse=True)
    sums, counts = np.bincount(subject_of, values), np.bincount(subject_of)
    if len(names) < 2:
        return None
    if len(names) < FEW_SUBJECTS:
        mean = sums.sum() / counts.sum()
        deviations = (sums - mean * counts) / counts.mean()
        error = math.sqrt(np.square(deviations).sum() / (len(names) - 1) / len(names))
        reach = error * float(student_t.ppf((1 + level) / 2, len(names) - 1))
        return float(mean - reach), float(mean + reach)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fine_power(images: Tensor) -> Tensor:
    """Power of each slice between a quarter and half of the sampling frequency: `[B, 1, H, W]` -> `[B]`.

    Its ratio between reconstructions and slices says how much fine texture is left, which SSIM hardly notices.
    """
    power = torch.fft.fft2(images.float()).abs().square().squeeze(1)  # [B, H, W]
    frequency = frequencies(images)
    return (power * ((frequency >= 0.25) & (frequency < 0.5))).sum((1, 2)) / images[0].numel()


def radial_power(images: Tensor) -> Tensor:
    """Mean power of each slice by frequency: `[B, 1, H, W]` -> `[B, bins]`, bins evenly over 0 (left out) to half of the
    sampling frequency, as many as half the shorter side has pixels."""
    power = torch.fft.fft2(images.float()).abs().square().flatten(1) / images[0].numel()
    frequency, bins = frequencies(images).flatten(), min(images.shape[2:]) // 2
    bin_of = (frequency * 2 * bins).ceil().long() - 1  # bin i holds (i, i + 1] / (2 bins)
    inside = (bin_of >= 0) & (bin_of < bins)
    sums = power.new_zeros(len(images), bins).index_add_(1, bin_of[inside], power[:, inside])
    return sums / bin_of[inside].bincount(minlength=bins)


def frequencies(images: Tensor) -> Tensor:
    """Cycles a pixel of each Fourier coefficient, `[H, W]`."""
    rows, columns = (torch.fft.fftfreq(side, device=images.device) for side in images.shape[2:])
    return torch.hypot(rows[:, None], columns[None])


@dataclass(frozen=True)
class CodeUsage:
    """How a codebook is used over a whole split. `counts`: `[K]` how often each code was chosen."""

    counts: Tensor

    @classmethod
    def of(cls, codes: Tensor, num_codes: int) -> "CodeUsage":
        """From code maps of any shape."""
        return cls(torch.bincount(codes.flatten().long(), minlength=num_codes))

    @property
    def used(self) -> int:
        """Codes chosen at least once."""
        return int((self.counts > 0).sum())

    @property
    def entropy(self) -> float:
        """Bits per code of the codes' overall frequencies."""
        shares = self.counts[self.counts > 0].double() / self.counts.sum()
        return float(-(shares * shares.log2()).sum())

    @property
    def perplexity(self) -> float:
        """2 to the entropy: how many equally frequent codes would carry as much, 1..K."""
        return 2**self.entropy


def code_lengths(logits: Tensor, codes: Tensor) -> Tensor:
    """Length of each code: `[B, K, h, w]` logits, `[B, h, w]` codes -> `[B, h, w]` bits."""
    return F.cross_entropy(logits.float(), codes, reduction="none") / math.log(2)
