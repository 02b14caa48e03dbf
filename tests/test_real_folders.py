"""Folders that installed packages carry: all kinds of files that were never meant for this give a data set or one sentence."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from common.errors import UserError
from sources import DataOptions, load

FOLDERS = (
    "nibabel/tests/data",
    "nibabel/nicom/tests/data",
    "nilearn/datasets/data",
    "nilearn/image/tests/data",
    "skimage/data",
    "scipy/ndimage/tests",
    "sklearn/datasets/images",
    "matplotlib/mpl-data/images",
    "matplotlib/mpl-data/sample_data",
)


def folder_of(name: str) -> Path:
    package, _, below = name.partition("/")
    spec = find_spec(package)
    if spec is None or not (Path(spec.origin).parent / below).is_dir():
        pytest.skip(f"no {name} here")
    return Path(spec.origin).parent / below


@pytest.mark.parametrize("name", FOLDERS)
def test_a_data_set_or_one_sentence(name, tmp_path):
    root = folder_of(name)
    for options in ({}, {"skip_bad": True}, {"skip_bad": True, "contrast": "all"}):
        try:
            data = load(DataOptions(str(root), slices=2, spacing=8, image_size=16, **options), tmp_path)
        except UserError as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) < 1000
        else:
            assert sum(map(len, data.splits.values())) > 0
