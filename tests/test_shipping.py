"""Weights handed on in 16 bits: what they hold, whom they belong to, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.files import hash_of, save_model, write_json
from models.detail import DetailLevel, TwoLevelVQVAE, sizes_upon
from models.sharp_decoder import SharpDetail
from pixelcnn import GatedPixelCNN
from training.shipping import rounded, ship
from utils import load_run
from vqvae import VQVAE

FRAME = {"top": 0, "left": 0, "height": 32, "width": 40, "image_height": 32, "image_width": 40}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two levels with both priors and a sharp decoder, untrained."""
    folder = tmp_path / "run"
    torch.manual_seed(0)
    first = VQVAE(12, 8, 8, width=16, blocks=1)
    levels = TwoLevelVQVAE(first, DetailLevel(10, 8, width=16, **sizes_upon(first)))
    upon_first, upon_both = hash_of(first.state_dict()), hash_of(levels.state_dict())
    save_model(folder / "vqvae.safetensors", first)
    save_model(folder / "detail.safetensors", levels.detail, vqvae=upon_first)
    save_model(folder / "prior.safetensors", GatedPixelCNN(12, 8, 2, marginal=(4, 5)), vqvae=upon_first)
    of_detail = GatedPixelCNN(10, 8, 2, context_features=levels.context_channels)
    save_model(folder / "detail_prior.safetensors", of_detail, vqvae=upon_both)
    sharp = SharpDetail(features=16, downsample=4)
    save_model(folder / "sharp.safetensors", sharp, vqvae=upon_both)
    write_json(folder / "config.json", {"flags": {"out": str(folder)}, "data": {"frame": FRAME}})
    return folder


def test_a_run_is_handed_on_in_half_of_the_bytes_and_loads_as_float32(run, tmp_path):
    shipped = ship(run, tmp_path / "to")
    assert len(shipped) == 5
    assert sum(path.stat().st_size for path in shipped) < 0.6 * sum(p.stat().st_size for p in run.glob("*.safetensors"))
    here, there = load_run(run, decoder="sharp"), load_run(tmp_path / "to", decoder="sharp")
    for name in ("vqvae", "prior", "detail_prior"):
        weights = getattr(here, name).state_dict()
        for key, value in getattr(there, name).state_dict().items():
            assert value.dtype == weights[key].dtype
            torch.testing.assert_close(value, weights[key], rtol=2**-10, atol=1e-7)
    assert load_file(tmp_path / "to" / "vqvae.safetensors")["quantizer.codebook"].dtype == torch.float16
    assert there.config["flags"]["out"] == "to"


def test_what_was_handed_on_belongs_to_the_rounded_weights(run, tmp_path):
    """A prior of the unrounded VQ-VAE beside the rounded one is refused, as any other."""
    ship(run, tmp_path / "to")
    (tmp_path / "to" / "prior.safetensors").write_bytes((run / "prior.safetensors").read_bytes())
    with pytest.raises(UserError, match="another VQ-VAE"):
        load_run(tmp_path / "to")


def test_handing_on_again_gives_the_same_bytes_and_leaves_nothing_old(run, tmp_path):
    first = {path.name: path.read_bytes() for path in ship(run, tmp_path / "to")}
    assert {path.name: path.read_bytes() for path in ship(run, tmp_path / "to")} == first
    (run / "sharp.safetensors").unlink()
    ship(run, tmp_path / "to")
    assert not (tmp_path / "to" / "sharp.safetensors").exists()


def test_a_run_is_not_handed_on_to_itself(run):
    with pytest.raises(UserError, match="the run itself"):
        ship(run, run)


def test_a_number_too_large_for_16_bits_is_refused_and_counts_stay():
    with pytest.raises(UserError, match="weight holds a number"):
        rounded({"weight": torch.tensor([1e6])})
    assert rounded({"steps": torch.tensor([70000])})["steps"].dtype == torch.int64
