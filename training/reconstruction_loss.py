"""The loss of reconstructions: absolute error and structure."""

import torch.nn.functional as F
from torch import Tensor


def window_ssim(images: Tensor, targets: Tensor, window: int = 5, stride: int = 2) -> Tensor:
    """Mean SSIM over uniform windows: a loss term that costs next to nothing (average pooling, no Gaussian filter).

    For training only: `scoring/metrics.py` scores with the standard 11x11 Gaussian window. Both `[B, 1, H, W]`, range 0..1.
    """
    window = min(window, *images.shape[2:])

    def local_mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride)

    c1, c2 = 0.01**2, 0.03**2  # Wang et al. 2004, data range 1
    mu_x, mu_y = local_mean(images), local_mean(targets)
    var_x = local_mean(images * images) - mu_x * mu_x
    var_y = local_mean(targets * targets) - mu_y * mu_y
    cov = local_mean(images * targets) - mu_x * mu_y
    return ((2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean()


def reconstruction_loss(images: Tensor, targets: Tensor, ssim_weight: float = 1.0) -> Tensor:
    """Mean absolute error plus `ssim_weight` times (1 - windowed SSIM); `[B, 1, H, W]` each, scalar out."""
    images, targets = images.float(), targets.float()
    return F.l1_loss(images, targets) + ssim_weight * (1 - window_ssim(images, targets))
