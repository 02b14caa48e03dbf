"""The benchmarks run, at small sizes, where their peers are installed."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_slices
from scipy import ndimage

import evaluate
import train
from common.errors import UserError
from common.files import save_model, save_tensors
from dataset import Frame
from models.sharp_decoder import SharpDecoder
from pixelcnn import GatedPixelCNN
from sources.slice_set import load_slice_set
from vqvae import VQVAE

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RATES = (0.001, 0.0002)  # of the reference network beside its own


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark with some of its sizes changed."""

    def load(name: str, **sizes: object):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"bench_{name}", module)
        spec.loader.exec_module(module)
        for size, value in sizes.items():
            monkeypatch.setattr(module, size, value)
        return module

    monkeypatch.setattr(sys, "path", sys.path.copy())
    torch.set_num_threads(1)
    return load


def test_every_part_of_the_pixelcnn_benchmark(tmp_path, load):
    bench = load("pixelcnn", SIDE=4, STEP_SIZE=(2, 3, 4), NAIVE_STEPS=1)
    data, run, cache, out = (
        tmp_path / "keras_png_slices_data",
        str(tmp_path / "run"),
        str(tmp_path / "cache"),
        tmp_path / "out",
    )
    for split, subjects in (("train", range(2)), ("validate", range(2, 4))):
        draw_slices(data, split, subjects)
    train.main(["--data", str(data), "--k", "32", "--epoch", "1", "--stage", "vqvae", "--out", run, "--cache", cache])
    train.main(["--stage", "encode", "--out", run, "--data", str(data), "--cache", cache])
    flags = ["--run", run, "--data", str(data), "--cache", cache, "--minutes", "0.01", "--repeats", "1", "--batch", "4"]
    flags += ["--batches", "1,2"]
    bench.main([*flags, "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    assert set(results["sampling"]) == {"1", "2"} and results["plain"]["maps"] > 0
    assert results["ours"]["validate_bits"] != results["plain"]["validate_bits"]
    report = (out / "report.md").read_text()
    for words in ("naive loop / sampling", "ours / plain", "code frequencies by place"):
        assert words in report, words


def test_every_part_of_the_vqvae_benchmark(tmp_path, monkeypatch, load):
    for needed in ("monai", "vector_quantize_pytorch"):
        pytest.importorskip(needed, reason="pip install -r requirements-bench.txt to run this benchmark's test")
    bench = load(
        "vqvae",
        VECTORS=2048,
        SCORED=4,
        PEER_SCORED=(2, 4),
        BRIEF_SLICES=8,
        CHOICE_SLICES=8,
        RATE_SLICES=(8, 24),
        BATCH=4,
    )
    data = tmp_path / "keras_png_slices_data"
    for split, subjects in (("train", range(2)), ("validate", range(2, 4))):
        draw_slices(data, split, subjects, slices=8, size=(64, 64))
    cache, run, out = str(tmp_path / "cache"), str(tmp_path / "run"), tmp_path / "out"
    train.main(["--data", str(data), "--epoch", "1", "--stage", "vqvae", "--out", run, "--cache", cache])
    evaluate.main(["--run", run, "--cache", cache])
    few = {name: bench.CHOICES[name] for name in ("as it is", "AdamW instead of Muon", "flat patches as any other")}
    monkeypatch.setattr(bench, "CHOICES", few)
    monkeypatch.setattr(bench, "memory_in_a_process", lambda name: 1 + len(name))
    for name, value in {
        "SCORED": 2,
        "EQUAL_SCORED": 4,
        "SCORE_EVERY": 0.5,
        "PRETRAINED": run,
        "OTHER_RATES": RATES,
    }.items():
        monkeypatch.setattr(bench.reference, name, value)
    flags = ["--minutes", "0.02", "--reference_minutes", "0.025", "--short_minutes", "0.008", "--repeats", "1"]
    flags += ["--monai_channels", "4,96"]
    flags += ["--runs", run, "--cache", cache]
    parts = ["--part", ",".join(bench.PARTS), "--data", str(data), "--out", str(out)]
    bench.main([*parts, *flags])
    results = json.loads((out / "results.json").read_text())
    assert results["codes"][run]["equal_in_batches_of_1_7_64_and_under_autocast"]
    assert results["choices"]["as it is"]["ssim"] != results["choices"]["AdamW instead of Muon"]["ssim"]
    assert {"ours", "monai", "reference"} <= results["training_f4"].keys()
    assert set(results["reference"]) == {"learning rate 0.002", "learning rate 0.001", "learning rate 0.0002"}
    assert results["reference"]["learning rate 0.002"]["seconds"] >= 0.025 * 60
    assert {"ssim", "grid_ssim", "grid_ssim_in_batches"} <= results["grids"]["reference, learning rate 0.002"].keys()
    assert 0 < results["grids"]["oasis-vqvae, pretrained"]["grid_ssim"] < 1
    assert [one["slices_seen"] for one in results["equal"].values()] == [8, 8, 8]
    report = (out / "report.md").read_text()
    for words in (
        "more than",
        "vector-quantize-pytorch",
        "f=16",
        "AdamW instead of Muon",
        "slices a second",
        "seen",
        "time over",
        "of grids",
    ):
        assert words in report, words
    for picture in ("rate_distortion", "ssim_by_time_f4", "reference_curves"):
        assert (out / f"{picture}.png").exists(), picture


def test_the_reference_is_the_published_network(load):
    pytest.importorskip("monai", reason="pip install -r requirements-bench.txt to run this benchmark's test")
    peers = load("peers")
    peer = peers.Reference(4)
    block = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    blocks = ["ReferenceResidual", "ReLU"] * 2
    names = [[type(layer).__name__ for layer in part] for part in (peer.model.encoder, peer.model.decoder)]
    assert names[0] == ["Conv2d", "ReLU"] * 2 + blocks and names[1] == blocks + ["ConvTranspose2d", "ReLU"] * 2
    residual = peer.model.encoder[4].layers
    assert [type(layer).__name__ for layer in residual] == block and residual[0].bias is residual[3].bias is None
    assert sum(weights.numel() for weights in peer.model.parameters()) == 330_433  # by hand
    assert peer.optimizers[0].defaults["lr"] == 0.002 and peer.batch == 32
    images = torch.rand(2, 1, 32, 32)
    decoded, codebook_loss = peer.model(images)
    latents = peer.model.encoder(images)
    chosen = peer.model.lookup(peer.model.codes(latents))
    distance = (chosen - latents).square().mean()
    assert decoded.min() >= 0 and torch.allclose(codebook_loss, 2 * distance)
    codebook_loss.backward()  # both terms pull, with the same weight
    pulled = peer.model.codebook.weight.grad.norm()
    peer.model.zero_grad()
    (chosen - latents.detach()).square().mean().backward()
    assert torch.allclose(pulled, peer.model.codebook.weight.grad.norm())
    assert torch.allclose(peer.loss(images), (peer.model(images)[0] - images).square().mean() + 2 * distance, rtol=1e-4)


def test_training_of_the_reference_goes_on_where_it_was_stopped(tmp_path, load):
    pytest.importorskip("monai", reason="pip install -r requirements-bench.txt to run this benchmark's test")
    bench = load("reference")
    draw_slices(tmp_path, "train", range(4), slices=16, size=(32, 32))
    train = load_slice_set(tmp_path, tmp_path / "cache").splits["train"]
    whole, stopped = (bench.Training.of_reference(0.002, 0, tmp_path / name) for name in ("whole", "stopped"))
    for training in (whole, stopped):
        training.step(train)
    stopped.score(train)
    stopped.save()
    again = bench.Training.of_reference(0.002, 0, tmp_path / "stopped")
    assert (again.steps, again.curve) == (1, stopped.curve)
    again.peer.model.train()
    for training in (whole, again):
        training.step(train)
    for name, weights in whole.peer.model.state_dict().items():
        assert torch.allclose(weights, again.peer.model.state_dict()[name], atol=1e-6), name


def test_a_reference_is_given_up_only_when_it_has_one_code_and_gets_no_better(load):
    pytest.importorskip("monai", reason="pip install -r requirements-bench.txt to run this benchmark's test")
    bench = load("reference")

    def curve(losses: list[float], codes: int = 1) -> list[dict[str, float]]:
        step = bench.HOPELESS_SECONDS / 5
        return [{"seconds": step * i, "loss": loss, "codes_used": codes} for i, loss in enumerate(losses)]

    assert bench.beyond_hope(curve([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.5]))
    assert not bench.beyond_hope(curve([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5]))
    assert not bench.beyond_hope(curve([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.5], codes=2))
    assert not bench.beyond_hope(curve([2.0, 2.0, 2.5]))  # for too short a time
    assert bench.beyond_hope(curve([2.0, float("nan")]))


def test_grids_of_slices_are_torchvisions(load):
    pytest.importorskip("monai", reason="pip install -r requirements-bench.txt to run this benchmark's test")
    bench = load("reference")
    images = torch.rand(11, 1, 30, 20) + 0.1
    grid = bench.make_grid(images)
    assert grid.shape == (1, 1, 2 * 32 + 2, 8 * 22 + 2)
    assert torch.equal(grid[0, :, 34:64, 24:44], images[9])  # the second of the second row
    assert (grid > 0).sum() == images.numel()
    assert bench.make_grid(images[:3]).shape == (1, 1, 34, 3 * 22 + 2) and bench.make_grid(images[:1]) is not None
    assert bench.grid_ssim(images, images) == pytest.approx(1)
    noisy = images + 0.1 * torch.randn_like(images)
    assert bench.grid_ssim(noisy, images) < 0.99


def test_every_part_of_the_scores_benchmark(tmp_path, monkeypatch, load):
    bench = load("scores", PATCH=8)
    monkeypatch.setattr(bench, "SPOILT", {name: bench.SPOILT[name] for name in ("held-out slices", "noise of 0.1")})
    kept = ("real heads", "two people's slices in turn")
    monkeypatch.setattr(bench, "SPOILT_HEADS", {name: bench.SPOILT_HEADS[name] for name in kept})
    data, run, out = tmp_path / "keras_png_slices_data", str(tmp_path / "run"), tmp_path / "out"
    for split, subjects in (("train", range(4)), ("validate", range(4, 10))):
        draw_slices(data, split, subjects, size=(64, 64))
    flags = ["--data", str(data), "--cache", str(tmp_path / "cache")]
    train.main([*flags, "--epoch", "1", "--batch", "4", "--k", "16", "--stage", "vqvae", "--out", run])
    train.main([*flags, "--stage", "encode", "--out", run])
    bench.main([*flags, "--run", run, "--samples", "12", "--halvings", "1", "--out", str(out)])
    bench.main([*flags, "--run", run, "--part", "heads,copied_heads,report", "--halvings", "1", "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    real, noisy = (results["separation"][name]["histogram"] for name in ("held-out slices", "noise of 0.1"))
    assert noisy[0] > 10 * real[0] and noisy[1] == real[1]
    whole, mixed = (results["heads"][name]["outline"] for name in kept)
    assert mixed[0] > 3 * whole[0] and mixed[1] == whole[1]
    assert results["head_means"][kept[0]]["neighbour_ssim"] > results["head_means"][kept[1]]["neighbour_ssim"]
    copied = results["copied_heads"]
    assert [len(copied[name]["listed"]) for name in ("held-out heads", "training heads", "mirrored")] == [3, 4, 4]
    assert all(copied[name]["listed"] == [1] * 4 for name in ("training heads", "mirrored"))
    assert results["copies"]["copies"] + results["copies"]["others"] == 12
    assert "others" in results["copies"] and "times its floor" in (out / "report.md").read_text()


def test_spoilt_slices_are_spoilt_and_of_the_same_shape(load):
    bench = load("scores")
    images, numbers = torch.rand(6, 48, 64), np.array([0, 1, 2, 0, 1, 2])
    torch.manual_seed(0)
    for name, spoil in bench.SPOILT.items():
        spoilt = spoil(images, numbers)
        assert spoilt.shape == images.shape and torch.equal(spoilt, images) == (name == "held-out slices"), name
    assert torch.equal(bench.SPOILT["one slice a position, repeated"](images, numbers)[3:], images[:3])


def test_spoilt_heads_are_spoilt_and_their_slices_are_not(load):
    bench, images = load("scores"), torch.rand(5, 6, 24, 20)
    known = {image.numpy().tobytes() for image in images.flatten(0, 1)}
    for name, spoil in bench.SPOILT_HEADS.items():
        spoilt = spoil(images, np.random.default_rng(0))
        assert spoilt.shape == images.shape and torch.equal(spoilt, images) == (name == "real heads"), name
        whole = {image.contiguous().numpy().tobytes() for image in spoilt.flatten(0, 1)} <= known
        assert whole == (name not in ("each slice moved by 1 or 2 pixels", "mean of 3 slices")), name


def test_the_scale_benchmark(tmp_path, load):
    bench = load("scale", STAGES=("vqvae", "encode"))
    found = bench.peak_of(["-c", "held = bytearray(200 << 20); import time; time.sleep(0.3)"])
    assert 200 << 20 < found["own"] < 300 << 20
    bench.link_slices(tmp_path / "data", 640, 32)
    names = [path.name for path in (tmp_path / "data" / "keras_png_slices_validate").glob("*.png")]
    assert len(names) == 64 and "case_000019_slice_31.nii.png" in names
    text = bench.table({"vqvae": {"1000": {"own": 5 << 20}, "40000": {"own": 6 << 20}}})
    assert text.splitlines()[-1] == "| vqvae | 5 | 6 |"


def test_every_part_of_the_benchmark_along_heads(tmp_path, load):
    bench, data, cache = load("along_heads"), tmp_path / "keras_png_slices_data", str(tmp_path / "cache")
    for split, subjects in (("train", range(2)), ("validate", range(2, 4))):
        draw_slices(data, split, subjects, slices=9, size=(32, 40))
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    vqvae = VQVAE(16, 8, 8, width=16, blocks=1)
    told = {"position": 0, "neighbour": 2}
    save_model(run / "vqvae.safetensors", vqvae)
    save_model(run / "sharp.safetensors", SharpDecoder.after(vqvae))
    save_model(run / "prior.safetensors", GatedPixelCNN(16, 16, 2, 3, conditions=told, context=1))
    about = {"slices_per_subject": 9, "frame": Frame(0, 0, 32, 40, 32, 40).__dict__}
    (run / "config.json").write_text(json.dumps({"data": about, "flags": {}}))
    flags = ["--run", str(run), "--data", str(data), "--cache", cache, "--subjects", "2", "--count", "2"]
    bench.main([*flags, "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    assert set(results["apart"]) == {"1", "2", "4"} and set(results["drawing"]) == {"2"}
    assert list(results["texture"]) == ["real", "0", "0.7", "0.8", "0.9", "1"]
    assert results["texture"]["1"]["neighbour_ssim"] > results["texture"]["0"]["neighbour_ssim"]


def test_every_choice_of_the_prior_is_trained_once_and_is_another(tmp_path, load, monkeypatch):
    bench, data, cache = load("prior_choices"), tmp_path / "keras_png_slices_data", str(tmp_path / "cache")
    for split, subjects in (("train", range(3)), ("validate", range(3, 5))):
        draw_slices(data, split, subjects, slices=16, size=(32, 40))
    run = tmp_path / "run"
    run.mkdir()
    vqvae, frame = VQVAE(16, 8, 8, width=16, blocks=1), Frame(0, 0, 32, 40, 32, 40)
    save_model(run / "vqvae.safetensors", vqvae)
    about = {"slices_per_subject": 16, "frame": frame.__dict__}
    (run / "config.json").write_text(json.dumps({"data": about, "flags": {}}))
    flags = ["--run", str(run), "--data", str(data), "--cache", cache, "--batch", "8", "--out", str(tmp_path / "out")]
    save_tensors(run / "codes.safetensors", {"train": torch.zeros(5, 4, 5, dtype=torch.int16)}, {}, None)
    with pytest.raises(UserError, match="is not what"):
        bench.main(flags)
    codes = {
        name: torch.randint(0, 16, (many, 4, 5), dtype=torch.int16) for name, many in (("train", 48), ("validate", 32))
    }
    save_tensors(run / "codes.safetensors", codes | {"train_mirrored": codes["train"].flip(1)}, {}, None)
    small = partial(GatedPixelCNN, channels=8, layers=2, first_kernel=3)
    monkeypatch.setattr(bench, "GatedPixelCNN", small)
    bench.main([*flags, "--subjects", "2"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())["choices"]
    assert found.keys() == bench.CHOICES.keys() and {one["maps"] for one in found.values()} == {32}
    assert len({one["validate_told_bits"] for one in found.values()}) == len(found), "each choice changes something"
    bench.main([*flags, "--part", "subjects", "--by_subjects", "1,1 warped,3", "--maps", "48"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())["subjects"]
    assert [(one["epochs"], one["maps"]) for one in found.values()] == [(3, 48), (2, 64), (1, 48)]
    assert len((tmp_path / "out" / "subjects.md").read_text().splitlines()) == 5
    monkeypatch.setattr(bench, "trained", lambda *_, **__: pytest.fail("trained again"))
    bench.main([*flags, "--choices", bench.AS_IT_IS])
    with pytest.raises(UserError, match="no AdamW; there are as it is"):
        bench.main([*flags, "--choices", "AdamW"])


def test_the_reading_benchmark(load, capsys):
    small = {"small": ((40, 44, 40), np.diag([2.0, 2.0, 2.0, 1.0]))}
    bench = load("reading", volumes=lambda: small, SLICES=6)
    bench.main(["--repeats", "1"])
    rows = [row.split("|") for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["1", "2"]
    assert all(float(row[3]) > 0 and int(row[4]) <= 1 for row in rows), "the same planes, within a grey level"


def test_every_rival_is_trained_scored_and_drawn(tmp_path, load, monkeypatch):
    bench, data = load("rivals", DRAWN=2, LARGE=24), tmp_path / "keras_png_slices_data"
    monkeypatch.setattr(bench, "K", 16)
    monkeypatch.setattr(bench, "VQVAE", partial(VQVAE, width=16, blocks=1))
    monkeypatch.setattr(bench, "ResidualVQVAE", partial(bench.ResidualVQVAE, width=16, blocks=1))
    monkeypatch.setattr(bench, "GatedPixelCNN", partial(GatedPixelCNN, channels=8))
    for split, subjects in (("train", range(3)), ("validate", range(3, 5))):
        draw_slices(data, split, subjects, slices=8, size=(32, 48))
    flags = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--epoch", "1"]
    bench.main(flags)
    found = json.loads((tmp_path / "out" / "results.json").read_text())["rivals"]
    assert {name: one["codes"] for name, one in found.items()} == {
        "f=8": 15,
        "f=8 and f=4 (two levels)": 15 + 60,
        "f=4": 60,
        "f=4, a quarter first": 60,
        "f=8, K=4096": 15,
        "f=8, 2 residual codes": 30,
        "f=8, 4 residual codes": 60,
    }
    assert all(0 < one["bits_per_slice"] < 6 * one["codes"] and one["drawing_seconds"] > 0 for one in found.values())
    with pytest.raises(UserError, match="no f=2"):
        bench.main([*flags, "--ways", "f=2"])


def test_residual_codes_quantise_what_those_before_leave(load):
    residual = load("residual_codes")
    torch.manual_seed(0)
    quantizer, latents = residual.ResidualQuantizer(3, 32, 4), torch.randn(8, 4, 6, 5)
    quantizer.start(latents)
    codes = quantizer.nearest(latents)
    assert codes.shape == (8, 18, 5)
    left = [
        (latents - sum(step.lookup(part) for step, part in zip(quantizer.steps[:d], codes.chunk(3, 1)))).square().mean()
        for d in (1, 2, 3)
    ]
    assert left[0] > 1.5 * left[1] > 2 * left[2]
    torch.testing.assert_close(quantizer(latents).quantized, quantizer.lookup(codes))
    before = [step.codebook.clone() for step in quantizer.steps]
    quantizer.update(latents + 0.1, quantizer.nearest(latents + 0.1))
    assert all(not torch.equal(step.codebook, old) for step, old in zip(quantizer.steps, before))


def test_anomalies_are_planted_where_their_masks_say(load):
    load("anomaly")
    import planting

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:120, :140]
    head = np.hypot((rows - 60) / 52, (columns - 70) / 62) < 1
    texture = ndimage.gaussian_filter(rng.normal(size=(6, 120, 140)), (1, 4, 4))
    images = (head * (0.4 + 0.1 * texture / texture.std() - columns / 1500)).clip(0.1 * head, 1).astype(np.float32)
    for kind in planting.KINDS:
        planted = planting.plant(kind, planting.Scan(images), np.random.default_rng(1), 12)
        changed = np.abs(planted.images - images) > 0.02
        assert planted.slices.any() and changed[planted.slices].any(), kind
        assert not changed[~planted.slices].any() or planted.mask is not None, kind
        assert planted.images.min() >= 0 and planted.images.max() <= 1
        if planted.mask is not None:
            near = np.stack([ndimage.binary_dilation(mask, iterations=4) for mask in planted.mask])
            assert changed[planted.mask].mean() > 0.2 and not (changed & ~near & head).any(), kind


def test_spheres_take_the_place_of_tissue(load):
    """In a head of which half is fluid."""
    load("anomaly")
    import planting

    rows, columns = np.mgrid[:160, :160]
    head = np.hypot(rows - 80, columns - 80) < 75
    images = np.repeat(np.where(head, np.where(columns < 76, 0.1, 0.5), 0)[None], 8, 0).astype(np.float32)
    scan = planting.Scan(images)
    for seed in range(8):
        planted = planting.plant("dark sphere", scan, np.random.default_rng(seed), 10)
        assert (images[planted.mask] == 0.5).mean() >= planting.ALL - 0.01
