"""What is wrong with the input is said in words, and of usual scans nothing is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dataset import Split
from scoring.input_checks import Template, features_of, findings

SLICES, ROWS, COLUMNS = 8, 112, 128
GROUPS = np.arange(SLICES)


def head(seed: int) -> np.ndarray:
    """A head with scalp, skull, brain and ventricles, narrower in front and at the top, `[SLICES, ROWS, COLUMNS]` uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:ROWS, :COLUMNS] + 0.5
    wide, bright, noise = rng.normal(1, 0.015), rng.normal(1, 0.05), rng.normal(size=(SLICES, ROWS, COLUMNS))
    smooth = ndimage.gaussian_filter(rng.normal(size=(SLICES, ROWS, COLUMNS)), (1, 3, 3))
    found = np.zeros((SLICES, ROWS, COLUMNS))
    for number in range(SLICES):
        size = wide * (1 - 0.03 * number)
        across = (rows - ROWS / 2) / (40 * size * (1 - 0.25 * (columns - COLUMNS / 2) / COLUMNS))
        radius = np.hypot(across, (columns - COLUMNS / 2) / (52 * size))
        ventricle = np.hypot((np.abs(rows - ROWS / 2) - 8) / 5, (columns - 52 - 3 * number) / 14) < 1
        image = np.select([radius < 0.86, radius < 0.94, radius < 1], [120.0, 40.0, 220.0], 0.0)
        image = np.where(ventricle, 30.0, image)
        found[number] = bright * image + (radius < 1) * (noise[number] * 3 + 60 * smooth[number])
    return found.clip(0, 255).astype(np.uint8)


def scaled(images: np.ndarray, rows: float, columns: float) -> np.ndarray:
    shrink = np.array([1, 1 / rows, 1 / columns])
    middle = (np.array(images.shape) - 1) / 2
    return ndimage.affine_transform(images, shrink, middle - shrink * middle, order=1)


def stripped(images: np.ndarray) -> np.ndarray:
    inside = np.stack([ndimage.binary_erosion(ndimage.binary_fill_holes(image > 16), iterations=7) for image in images])
    return images * inside.astype(np.uint8)


def reversed_grey(images: np.ndarray) -> np.ndarray:
    inside = np.stack([ndimage.binary_fill_holes(image > 16) for image in images])
    return np.where(inside, 240 - images.clip(0, 220), 0).astype(np.uint8)


WRONG = {
    "looks rotated by 90 degrees": lambda images: np.rot90(images, 1, (1, 2)),
    "looks rotated by 180 degrees, or front and back": lambda images: images[:, :, ::-1],
    "ran from the top down": lambda images: images[::-1],
    "smaller than expected, by 1": lambda images: scaled(images, 0.85, 0.85),
    "larger than expected, by 1": lambda images: scaled(images, 1.15, 1.15),
    "another shape than expected": lambda images: scaled(images, 0.8, 1.0),
    "another contrast": reversed_grey,
    "looks skull-stripped": stripped,
    "darker than expected": lambda images: images // 2,
}


@pytest.fixture(scope="module")
def usual() -> tuple[Template, np.ndarray]:
    images = np.concatenate([head(seed) for seed in range(12)])
    split = Split(images, [""] * len(images), [""] * len(images))
    template = Template.of(split, np.tile(GROUPS, 12), SLICES)
    return template, np.stack([features_of(head(seed), GROUPS, template).values for seed in range(12, 24)])


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input_is_said_in_words(usual, words):
    template, held_out = usual
    for seed in (30, 31):
        wrong = np.ascontiguousarray(WRONG[words](head(seed)))
        found = findings(features_of(wrong, GROUPS, template), held_out)
        assert any(words in each for each in found), found


def test_nothing_is_said_of_usual_scans_and_of_mirrored_ones(usual):
    template, held_out = usual
    for seed in range(40, 46):
        images = head(seed) if seed % 2 else np.ascontiguousarray(head(seed)[:, ::-1])
        assert not findings(features_of(images, GROUPS, template), held_out)


def test_the_benchmark_counts_what_is_found(tmp_path, monkeypatch, capsys):
    """A way that changes nothing is never found, and a turned scan always is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import wrong_input

    for split, seeds in (("train", range(16)), ("validate", range(16, 26))):
        folder = tmp_path / f"keras_png_slices_{split}"
        folder.mkdir()
        for seed in seeds:
            for number, pixels in enumerate(head(seed)):
                Image.fromarray(pixels).save(folder / f"case_{seed:03d}_slice_{number}.nii.png")
    ways = {
        name: wrong_input.WRONG[name] for name in ("rotated by 90 degrees", "grey values reversed", "half as bright")
    }
    monkeypatch.setattr(wrong_input, "WRONG", ways | {"as it is": ("rotated", lambda images: images)})
    monkeypatch.setattr(wrong_input, "MEAN_SCANS", 12)
    flags = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "cache"),
        "--subjects",
        "4",
    ]
    wrong_input.main(flags)
    counts = json.loads((tmp_path / "out" / "wrong_input.json").read_text())["counts"]
    assert counts["false alarms, validation scans"] == [0, 10] and counts["false alarms, training scans"] == [0, 4]
    assert counts["rotated by 90 degrees"] == counts["half as bright"] == [4, 4]
    assert counts["as it is"] == [0, 4]
    assert "| rotated by 90 degrees | 4 of 4 |" in capsys.readouterr().out
