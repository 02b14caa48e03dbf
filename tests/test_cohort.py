"""The built-in cohort lies as OASIS-1's slices do, and its people differ."""

import numpy as np
import pytest
from nilearn import datasets

from sources import cohort

SIZE = 32


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    return [cohort.draw_subject(seed, SIZE).astype(float) for seed in (1, 2)]


def template(turned: bool, upside_down: bool) -> np.ndarray:
    """The template's T1 voxel by voxel, `[slices, rows, columns]`: columns from the front of the head to the back (`turned`: from
    the back), slices upwards from 18 mm below the anterior commissure to 44 mm above (`upside_down`: downwards). Its sides are
    equal, so the rows may run either way."""
    volume = datasets.load_mni152_template(resolution=1)
    offsets = (np.arange(SIZE) + 0.5) * 256 / SIZE - 128
    heights = np.linspace(-18, 44, cohort.SLICES)[:: -1 if upside_down else 1]
    places = np.stack(np.meshgrid(heights, offsets, -18 - offsets * (-1 if turned else 1), indexing="ij"), -1)[
        ..., [1, 2, 0]
    ]
    voxels = ((places - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T).round().astype(int)
    inside = ((voxels >= 0) & (voxels < volume.shape)).all(-1)
    values = volume.get_fdata()[tuple(np.moveaxis(voxels.clip(0, np.array(volume.shape) - 1), -1, 0))]
    return np.where(inside, values, 0)


def test_the_front_is_on_the_left_and_the_lowest_slice_comes_first(people):
    for person in people:
        likeness = {
            ways: np.corrcoef(template(*ways).ravel(), person.ravel())[0, 1]
            for ways in ((False, False), (True, False), (False, True))
        }
        assert likeness[False, False] > 0.92, likeness
        assert likeness[False, False] > 0.03 + max(likeness[True, False], likeness[False, True]), likeness


def test_people_differ_by_shape_and_not_only_by_noise(people):
    first, second = (person > 0 for person in people)
    assert 0.03 < (first ^ second).sum() / (first | second).sum() < 0.3
