"""A file that changed is read anew, though its name and its size are what they were."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from sources import DataOptions, load


def later(path: Path) -> None:
    """As a file that was written a minute after the one before."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 60 * 10**9))


def test_slices_of_the_same_size_on_disk(tmp_path):
    folder = tmp_path / "data" / "keras_png_slices_train"
    folder.mkdir(parents=True)
    path, sizes = folder / "case_001_slice_0.nii.png", []
    for grey in (50, 200):
        Image.fromarray(np.full((16, 16), grey, np.uint8)).save(path, compress_level=0)
        later(path) if grey == 200 else None
        sizes.append(path.stat().st_size)
        split = load(DataOptions(str(tmp_path / "data")), tmp_path / "cache").splits["train"]
        assert (split.images == grey).all()
    assert sizes[0] == sizes[1]


def volume(path: Path, middle: float) -> Path:
    """A box with some texture and a step across its middle."""
    data = np.zeros((12, 14, 10), np.float32)
    data[3:9, 3:11, 2:8] = np.random.default_rng(0).uniform(99, 100, (6, 8, 6))
    data[5:7, 5:9, 2:8] = middle
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def test_volumes_of_the_same_size_on_disk_and_other_ways_to_slice_them(tmp_path):
    path, options = tmp_path / "data" / "anna.nii", {"slices": 2, "split": "100,0,0"}

    def middle(**changes: object) -> tuple[int, tuple[int, int]]:
        split = load(DataOptions(str(tmp_path / "data"), **(options | changes)), tmp_path / "cache").splits["train"]
        rows, columns = split.images.shape[1:]
        return int(split.images[0, rows // 2, columns // 2]), (rows, columns)

    volume(path, 20)
    assert middle() == (51, (12, 14))
    assert middle(spacing=0.5)[1] == (23, 27) and middle(axis="coronal")[1] == (12, 10)
    later(volume(path, 60))
    assert middle() == (153, (12, 14)) and middle(spacing=0.5)[1] == (23, 27)
