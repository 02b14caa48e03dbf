"""The weights that come with the toolkit draw heads, and are what their page says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate
from utils import PRETRAINED, load_run

pytestmark = pytest.mark.skipif(
    not (PRETRAINED / "prior.safetensors").exists(), reason="no weights come with this checkout"
)


def test_they_are_small_and_hold_no_code():
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}


def test_they_draw_one_closed_head_a_slice(tmp_path, monkeypatch):
    """At every position: air around, bright scalp all the way round, tissue of middling intensity inside."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    generate.main(["--run", "pretrained", "--n", "8", "--out", "drawn", "--png", "--decoder", "faithful"])
    slices = [np.asarray(Image.open(path)) / 255 for path in sorted(Path("drawn/slices").glob("*.png"))]
    assert len(slices) == 8
    for image in slices:
        assert image.shape == (256, 256) and 0.2 < (image > 16 / 255).mean() < 0.55
        middle = (slice(88, 168), slice(88, 168))
        assert 0.15 < image[middle].mean() < 0.8
        for line in (image[128], image[128][::-1], image[:, 128], image[::-1, 128]):  # from outside to the middle
            inside = int(np.argmax(line > 0.3))
            assert 20 < inside < 100 and line[: inside - 8].max() < 0.3
    assert len({image.tobytes() for image in slices}) == 8


def test_their_page_gives_the_scores_of_their_file():
    page, scores = (PRETRAINED / "README.md").read_text(), json.loads((PRETRAINED / "scores.json").read_text())
    validate = scores["validate"]
    for value in (f"{validate['ssim']:.4f}", f"{validate['bits_per_code']:.3f}", f"{validate['copies']['listed']} of"):
        assert value in page
    run = load_run(PRETRAINED)
    assert run.frame.height // run.vqvae.downsample == 22 and run.prior is not None
