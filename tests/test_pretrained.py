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
    scores = json.loads((PRETRAINED / "scores.json").read_text())["validate"]
    rows = [f"{scores['ssim']:.4f} [{scores['ssim_low']:.4f}, {scores['ssim_high']:.4f}]"]
    rows += [f"{scores['bits_per_code']:.3f}", f"{scores['copies']['listed']} of {scores['samples']} samples"]
    rows += [f"Sharpness of the samples: {scores['samples_sharpness']:.3f}"]
    for name, value in scores["realism"].items():
        rows.append(f"| {name} | {value['score']:.4g} | {value['floor']:.4g} | {value['score'] / value['floor']:.1f} |")
    for name in scores["decoders"]["faithful"]:
        cells = " | ".join(f"{scores['decoders'][decoder][name]:.4g}" for decoder in ("first", "faithful", "sharp"))
        rows.append(f"| {name.replace('_', ' ')} | {cells} |")
    text = (PRETRAINED / "README.md").read_text()
    assert not [row for row in rows if row not in text]
    run = load_run(PRETRAINED)
    assert run.map_size == (22, 26) and run.detail_size == (44, 52)
    assert run.prior.context_maps and run.detail_prior.context_maps, "they draw whole heads"
