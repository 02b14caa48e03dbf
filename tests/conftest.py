"""Small slices and small trained runs that the tests share."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: two threads would spend their time waiting for each other

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.runtime import keep_freed_memory

keep_freed_memory()  # as every command does

LONG = ("pipeline", "run_folder", "ranks", "readme", "realism", "sources", "pixelcnn", "kill")  # the longest first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take long come first: short ones at the end leave no process waiting for another."""
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


def draw_slices(root: Path, split: str, subjects: range, slices: int = 4, size: tuple[int, int] = (40, 56)) -> Path:
    """Write a split folder of bright ellipses on black, a fresh one a subject, which shrink with the slice number."""
    folder = root / f"keras_png_slices_{split}"
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for subject in subjects:
        rng = np.random.default_rng(subject)
        height, width = rng.uniform(0.25, 0.4, 2) * size
        texture = rng.uniform(0.6, 1, size)
        for number in range(slices):
            shrink = 1 - 0.5 * number / slices
            inside = ((rows - size[0] / 2) / (height * shrink)) ** 2 + (
                (columns - size[1] / 2) / (width * shrink)
            ) ** 2 < 1
            pixels = (255 * inside * texture).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"case_{subject:03d}_slice_{number}.nii.png")
    return root


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """A data folder with train, validate and test splits of 40x56 slices."""
    root = tmp_path / "slices"
    for split, subjects in (("train", range(4)), ("validate", range(4, 6)), ("test", range(6, 8))):
        draw_slices(root, split, subjects)
    return root


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
