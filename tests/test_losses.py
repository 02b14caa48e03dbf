"""Laws of the losses: each against an independent implementation or a known answer."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from training.reconstruction_loss import reconstruction_loss, window_ssim


@pytest.mark.parametrize("contrast", [0.02, 0.2, 1.0])
def test_window_ssim_is_scikit_images_at_every_second_pixel(contrast):
    """Also where contrast is so low that the constants decide."""
    images = contrast * torch.rand(3, 1, 23, 30)
    others = 0.3 * contrast * torch.rand(3, 1, 23, 30) + 0.7 * images
    maps = [
        structural_similarity(
            one.numpy(), other.numpy(), win_size=5, data_range=1.0, use_sample_covariance=False, full=True
        )[1]
        for one, other in zip(images[:, 0].double(), others[:, 0].double())
    ]
    expected = np.stack(maps)[:, 2:-2:2, 2:-2:2].mean()
    assert window_ssim(images.double(), others.double()).item() == pytest.approx(expected, abs=1e-6)
    assert expected < 0.995


def test_reconstruction_loss_is_absolute_error_and_what_ssim_lacks():
    images, others = torch.rand(2, 3, 1, 16, 24)
    error, lacking = (images - others).abs().mean(), 1 - window_ssim(images, others)
    for weight in (0.0, 0.2, 1.0):
        torch.testing.assert_close(reconstruction_loss(images, others, weight), error + weight * lacking)
