"""Scores. SSIM and PSNR are torchmetrics'; a score over a split is over every slice of it, never an average of batches.

SSIM is the 11x11 Gaussian one (sigma 1.5, data range 1; Wang et al. 2004), PSNR is in dB of the range 0..1.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

SSIM_WINDOW = 11
PERFECT_PSNR = 100.0  # dB reported for an image without any error


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """SSIM of each slice: `[B, 1, H, W]` twice, 0..1 -> `[B]`, at most 1.

    Slices smaller than two windows a side are padded with zeros to that size, the same in both.
    """
    missing = [max(0, 2 * SSIM_WINDOW - side) for side in (images.shape[3], images.shape[2])]
    if any(missing):
        padding = [part for side in missing for part in (side // 2, side - side // 2)]
        images, targets = F.pad(images, padding), F.pad(targets, padding)
    return structural_similarity_index_measure(
        images, targets, gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none"
    ).reshape(-1)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR of each slice in dB: `[B, 1, H, W]` twice, 0..1 -> `[B]`; `PERFECT_PSNR` where they are equal."""
    values = peak_signal_noise_ratio(images, targets, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=PERFECT_PSNR)


def fine_power(images: Tensor) -> Tensor:
    """Power of each slice between a quarter and half of the sampling frequency: `[B, 1, H, W]` -> `[B]`.

    Its ratio between reconstructions and slices says how much fine texture is left, which SSIM hardly notices.
    """
    power = torch.fft.fft2(images.float()).abs().square().squeeze(1)  # [B, H, W]
    rows, columns = (torch.fft.fftfreq(side, device=images.device) for side in images.shape[2:])
    frequency = torch.hypot(rows[:, None], columns[None])  # cycles a pixel
    return (power * ((frequency >= 0.25) & (frequency < 0.5))).sum((1, 2)) / images[0].numel()


@dataclass
class CodeUsage:
    """How a codebook is used over a whole split. `counts`: `[K]` how often each code was chosen."""

    counts: Tensor

    @classmethod
    def of(cls, codes: Tensor, num_codes: int) -> "CodeUsage":
        """From code maps of any shape."""
        return cls(torch.bincount(codes.flatten().long(), minlength=num_codes))

    def __add__(self, other: "CodeUsage") -> "CodeUsage":
        return CodeUsage(self.counts + other.counts)

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


def bits_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean code length of each map: `[B, K, h, w]` logits, `[B, h, w]` codes -> `[B]` bits."""
    return F.cross_entropy(logits.float(), codes, reduction="none").mean((1, 2)) / math.log(2)
