"""Which intensities become black and white."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sources.images import decode_image
from sources.volumes import VolumeOptions, read_slices


@pytest.mark.parametrize("artefact", [0, 1e4, -1e4])
def test_a_few_voxels_do_not_decide_how_bright_a_volume_is(tmp_path, artefact):
    """A bright vessel in one volume, or a dark edge, leaves its tissue as it is in the others."""
    rng = np.random.default_rng(0)
    data = np.zeros((20, 22, 12), np.float32)
    data[4:16, 4:18, 2:10] = rng.uniform(60, 100, (12, 14, 8))
    data[6, 6, 4:6] = artefact
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    slices, _ = read_slices(tmp_path / "a.nii", VolumeOptions(slices=4), (20, 22))
    tissue = slices[:, 8:14, 8:16]
    assert tissue.mean() == pytest.approx(255 * 0.8, rel=0.05) and slices[:, :4].max() == 0


def test_sixteen_bits_become_eight_without_a_step_lost_at_either_end(tmp_path):
    levels = np.arange(256, dtype=np.uint16) * 257
    Image.fromarray(levels.reshape(16, 16)).save(tmp_path / "a.png")
    assert np.array_equal(decode_image(tmp_path / "a.png", None).flatten(), np.arange(256))
