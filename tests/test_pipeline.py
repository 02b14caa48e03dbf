"""The three command lines, end to end on small slices."""

import io
import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import draw_slices
from PIL import Image
from safetensors.torch import load_file, save_file
from small_runs import with_small_networks, without_pictures

import evaluate
import generate
import train
from common.cli import run_main
from common.errors import UserError
from inference.coding import decode
from inference.drawing import Request, draw_samples
from scoring.case import Effort
from training import loop, pipeline
from training.loop import read_metrics
from utils import held, load_run

SMALL = ["--epoch", "2", "--epoch_prior", "2", "--batch", "6", "--batch_prior", "5", "--k", "16", "--d", "8"]
SMALL += ["--epoch_sharpen", "2", "--batch_sharpen", "5"]
SMALL += ["--epoch_detail", "2", "--batch_detail", "6", "--epoch_detail_prior", "2", "--batch_detail_prior", "5"]
WEIGHTS = ("vqvae", "detail", "prior", "detail_prior", "sharp")
RUN_FILES = {
    ".lock",
    "config.json",
    "split.csv",
    "vqvae.safetensors",
    "detail.safetensors",
    "prior.safetensors",
    "detail_prior.safetensors",
    "sharp.safetensors",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "metrics.jsonl",
    "report.md",
    "scores.json",
    "codes.safetensors",
    "held_out.safetensors",
    "images",
    "tensorboard",
}
PICTURES = {
    "vqvae_train_status.png",
    "detail_train_status.png",
    "detail.png",
    "prior_train_status.png",
    "detail_prior_train_status.png",
    "sharp_train_status.png",
    "sharpness.png",
    "original.png",
    "reconst.png",
    "test_q.png",
    "test_imgs.png",
    "generated_q.png",
    "generated_imgs.png",
    "generated_q2.png",
    "generated_imgs2.png",
    "architecture.png",
    "codes_and_slices.png",
    "real_and_generated.png",
    "full_size.png",
    "real_or_drawn.png",
    "scores_by_slice.png",
    "worst_reconstructions.png",
    "codebook.png",
    "bits_by_position.png",
    "closest_training_slices.png",
    "nearest_training_slices.png",
    "drawn_heads.png",
    "heads_along_slices.png",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # tiny maps: two threads would spend their time waiting for each other
    monkeypatch.setattr("scoring.classifier.EPOCHS", 2)  # what it finds is not asked here
    monkeypatch.setitem(plt.rcParams, "figure.dpi", 30)  # small pictures, drawn in a third of the time


@pytest.fixture
def few_pictures(monkeypatch):
    """Small grids and few samples."""
    monkeypatch.setattr(pipeline, "SHOWN", 4)
    monkeypatch.setattr(pipeline, "QUICK", Effort(8, 1, 8))


@pytest.fixture
def small_networks(monkeypatch):
    with_small_networks(monkeypatch.setattr)


@pytest.fixture
def training_alone(monkeypatch, small_networks):
    """Leave out sampling, scoring and pictures, which take most of the time of a small run."""
    without_pictures(monkeypatch.setattr)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, data folder, what training printed) of one run on small slices that several tests look at."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    for split, subjects in (("train", range(4)), ("validate", range(4, 6)), ("test", range(6, 8))):
        draw_slices(root / "slices", split, subjects)
    places = ["--data", str(root / "slices"), "--out", str(root / "run"), "--cache", str(root / "cache")]
    context = pytest.MonkeyPatch.context(), plt.rc_context({"figure.dpi": 30}), redirect_stdout(io.StringIO())
    with context[0] as patch, context[1], context[2] as printed:
        with_small_networks(patch.setattr)
        run_main(lambda: train.main([*SMALL, *places]))
    return root / "run", root / "slices", printed.getvalue()


def weights(folder: Path) -> bytes:
    return b"".join((folder / f"{name}.safetensors").read_bytes() for name in WEIGHTS)


def test_run_folder_is_complete(trained):
    run, _, printed = trained
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert {path.name for path in (run / "images").iterdir()} == PICTURES
    assert list((run / "tensorboard").iterdir())
    assert [(r["stage"], r["epoch"]) for r in read_metrics(run)] == [(name, n) for name in WEIGHTS for n in (1, 2)]
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["k"] == 16 and config["data"]["splits"]["train"] == {"slices": 16, "subjects": 4}
    report = (run / "report.md").read_text()
    assert all(f"images/{name}" in report for name in PICTURES)
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores) == {"test", "validate"}
    assert f"Average SSIM on test dataset: {scores['test']['ssim']:.4f}" in printed
    assert "SSIM, whole slice" in printed and str(run / "images") in printed


@pytest.mark.parametrize("split", ["validate", "test"])
def test_evaluate_reprints_the_runs_scores(trained, split, capsys):
    run, data, _ = trained
    flags = ["--quick", "--volumes", str(pipeline.HEADS), "--out", "again.json"]
    evaluate.main(["--run", str(run), "--data", str(data), "--split", split, *flags])
    again, before = (json.loads(path.read_text()) for path in (Path("again.json"), run / "scores.json"))
    assert before[split].items() <= again[split].items() if split == "validate" else before[split] == again[split]
    assert f"Average SSIM on {split} dataset: {again[split]['ssim']:.4f}" in capsys.readouterr().out
    assert again[split]["copies"]["listed"] <= again[split]["samples"] == 64
    assert again[split]["generalisation_gap"] == pytest.approx(
        again[split]["bits_per_code"] - again[split]["bits_per_code_train"]
    )
    assert len(again[split]["by_slice"]["number"]) == 4


def test_evaluate_adds_realism_to_the_run_where_there_are_subjects_enough(trained, tmp_path, capsys):
    run, _, _ = trained
    shutil.copytree(run, tmp_path / "run")
    draw_slices(tmp_path / "more", "validate", range(20, 26))
    draw_slices(tmp_path / "more", "train", range(1))
    flags = ["--run", str(tmp_path / "run"), "--data", str(tmp_path / "more"), "--split", "validate", "--quick"]
    evaluate.main([*flags, "--samples", "24", "--out", "first.json"])
    evaluate.main([*flags, "--samples", "24"])
    other = tmp_path / "run" / "other_data" / "more"
    first, second = (json.loads(path.read_text()) for path in (Path("first.json"), other / "scores.json"))
    assert first["validate"] == second["validate"] and set(second) == {"validate"}
    assert {"swd_0", "variety", "symmetry", "classifier"} <= first["validate"]["realism"].keys()
    assert 0 < first["validate"]["samples_sharpness"] < 10
    report = (other / "report.md").read_text()
    assert "images/realism.png" in report and "| classifier |" in report
    assert report.startswith("# A run trained on slices, scored on other data: more\n") and "Scored: more." in report
    for name in ("scores.json", "report.md", "images/worst_reconstructions.png"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), "the run's own stays as it was"
    assert "| classifier |" in capsys.readouterr().out
    evaluate.main([*flags, "--samples", "3", "--out", "few.json"])  # no two of the same slice number
    few = json.loads(Path("few.json").read_text())["validate"]
    assert "variety" not in few["realism"] and "swd_0" in few["realism"]
    assert "variety is not scored: 0 pairs" in "".join(few["notes"])


def test_generate_writes_grids_and_slices(trained):
    run, _, _ = trained
    generate.main(
        ["--run", str(run), "--n", "5", "--slice", "2", "--temperature", "0.8", "--seed", "3", "--out", "out", "--png"]
    )
    files = sorted(path.name for path in Path("out/slices").iterdir())
    assert files == [f"sample_{i:04d}_slice_2.png" for i in range(5)]
    for name in files:
        with Image.open(f"out/slices/{name}") as image:
            assert image.size == (56, 40) and image.mode == "L"
    assert {path.name for path in Path("out").glob("*.png")} == {"generated_q.png", "generated_imgs.png"}


def test_generate_is_seeded(trained):
    run, _, _ = trained
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        generate.main(["--run", str(run), "--n", "4", "--seed", seed, "--out", out, "--png"])
    first, again, other = ([path.read_bytes() for path in sorted(Path(out, "slices").iterdir())] for out in "abc")
    assert first == again != other


def test_generate_draws_a_row_a_position(trained):
    run, _, _ = trained
    generate.main(["--run", str(run), "--slice", "all", "--n", "2", "--top_k", "5", "--top-p", "0.9", "--png"])
    files = sorted(path.name for path in Path(run, "samples", "slices").iterdir())
    assert files == [f"sample_{i:04d}_slice_{i // 2}.png" for i in range(8)]


def test_generate_sweeps_temperatures(trained):
    run, _, _ = trained
    common = ["--run", str(run), "--n", "3", "--slice", "1", "--png"]
    generate.main([*common, "--sweep", "0.5,1.5", "--out", "swept"])
    generate.main([*common, "--temperature", "1.5", "--out", "hot"])
    swept, hot = ([path.read_bytes() for path in sorted(Path(out, "slices").iterdir())] for out in ("swept", "hot"))
    assert len(swept) == 6 and swept[3:] == hot and swept[:3] != hot
    assert Path("swept/swept_imgs.png").exists()


@pytest.mark.parametrize("region, rows, columns", [("bottom", (20, 40), (0, 56)), ("8:24,16:40", (8, 24), (16, 40))])
def test_generate_completes_a_slice(trained, region, rows, columns):
    run_folder, data, _ = trained
    run, path = load_run(run_folder), data / "keras_png_slices_test" / "case_006_slice_1.nii.png"
    samples = []
    original = generate.draw_samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "draw_samples", lambda *args: samples.append(original(*args)) or samples[-1])
        generate.main(
            ["--run", str(run_folder), "--complete", str(path), "--region", region, "--n", "5", "--out", "out"]
        )
    assert Path("out/completed_imgs.png").exists()
    image = torch.from_numpy(np.asarray(Image.open(path)).copy())[None, None].float() / 255
    codes = run.vqvae.encode(run.frame.crop(image))[0]
    f, touched = run.vqvae.downsample, torch.zeros_like(codes.first, dtype=torch.bool)
    for row in range(rows[0] - run.frame.top, rows[1] - run.frame.top):
        for column in range(columns[0] - run.frame.left, columns[1] - run.frame.left):
            if 0 <= row < run.frame.height and 0 <= column < run.frame.width:
                touched[row // f, column // f] = True
    assert samples[0].labels == ["slice 1"] * 5
    details = touched.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for drawn, known, redrawn in (
        (samples[0].codes.first, codes.first, touched),
        (samples[0].codes.detail, codes.detail, details),
    ):
        assert (drawn[:, ~redrawn] == known[~redrawn]).all() and (drawn[:, redrawn] != known[redrawn]).any()


def test_the_first_of_two_levels_alone_is_drawn_as_it_was(trained, capsys):
    """The same maps of the first level, painted by its own decoder; the second level adds to that."""
    run, _, _ = trained
    both, first = (draw_samples(load_run(run, level=level), Request(5, seed=3)) for level in ("both", "first"))
    assert torch.equal(both.codes.first, first.codes) and not torch.equal(both.images, first.images)
    assert torch.equal(decode(load_run(run).vqvae, both.codes.first, load_run(run).frame)[:, 0], first.images)
    generate.main(["--run", str(run), "--n", "5", "--seed", "3", "--level", "first", "--out", "out", "--png"])
    assert "faithful decoder" in capsys.readouterr().out
    files = sorted(Path("out/slices").iterdir())
    found = torch.stack([torch.from_numpy(np.asarray(Image.open(path)).copy()) for path in files])
    drawn = draw_samples(load_run(run, level="first"), Request(5, np.array([0, 1, 2, 3, 0]), seed=3))
    assert torch.equal(found, (drawn.images * 255).round().byte())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--region", "middle"], "--region is middle; expected top"),
        (["--region", "9:3,0:5"], "is empty or leaves the slice"),
        (["--region", "0:5,0:57"], "slices have 40x56 pixels"),
        (["--region", "0:1,0:1"], "nothing is to be drawn"),
        (["--slice", "9"], "slice number 9: this run has slices 0 to 3"),
    ],
)
def test_completion_refuses(trained, arguments, message):
    run, data, _ = trained
    path = data / "keras_png_slices_test" / "case_006_slice_1.nii.png"
    with pytest.raises(UserError, match=message):
        generate.main(["--run", str(run), "--complete", str(path), *arguments])


def test_load_run_gives_working_models(trained):
    vqvae, prior, frame, config = load_run(trained[0])
    position = torch.tensor([0.5])
    height, width = frame.height // config["flags"]["downsample"], frame.width // config["flags"]["downsample"]
    codes = prior.sample(1, height, width, position)
    image = frame.pad(vqvae.decode(codes))
    assert image.shape == (1, 1, 40, 56) and prior(codes, position).shape == (1, 16, height, width)
    assert not vqvae.training and not prior.training


def test_one_seed_gives_the_same_weights_and_another_gives_others(slices, training_alone):
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        train.main([*SMALL, "--data", str(slices), "--seed", seed, "--out", out])
    assert weights(Path("a")) == weights(Path("b")) != weights(Path("c"))


@pytest.mark.parametrize("steps", [4, 9, 12, 18])
def test_a_resumed_run_ends_with_the_same_weights(slices, steps, monkeypatch, capsys, training_alone):
    """Interrupted after any number of steps, in either stage, within an epoch or at its end."""
    train.main([*SMALL, "--data", str(slices), "--out", "whole"])
    taken, step = [], loop._Fit._step

    def counted(self, batch):
        taken.append(1)
        if len(taken) == steps:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(loop._Fit, "_step", counted)
    with pytest.raises(SystemExit) as stop:
        train.main([*SMALL, "--data", str(slices), "--out", "parts"])
    assert stop.value.code == 143 and "--resume --out parts" in capsys.readouterr().out
    train.main(["--resume", "--out", "parts"])
    assert weights(Path("parts")) == weights(Path("whole"))
    strip = [
        {key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(Path("parts"))
    ]
    assert strip == [{key: value for key, value in r.items() if key != "seconds"} for r in read_metrics(Path("whole"))]
    capsys.readouterr()
    train.main(["--resume", "--out", "parts"])
    assert "nothing to resume" in capsys.readouterr().out


@contextmanager
def no_file_above(size: int):
    """The system refuses to write more than this many bytes to a file, as a full disk refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refusal(arguments: list[str], capsys, program=train) -> str:
    """The one sentence that a command line ends with."""
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: program.main(arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1, said
    return said


def test_a_full_disk_is_said_and_leaves_what_was_saved(slices, capsys, training_alone):
    flags = [*SMALL, "--epoch", "2", "--data", str(slices), "--out", "run"]
    with no_file_above(5000):
        assert ".cache: cannot write the slice cache there" in refusal(flags, capsys)
    assert not Path("run").exists()
    whole, step, taken = [*SMALL, "--epoch", "2", "--data", str(slices), "--out", "whole"], loop._Fit._step, []
    train.main(whole)

    def stopped(self, batch):
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop._Fit, "_step", stopped)
        train.main(flags)
    before = {path: path.read_bytes() for path in Path("run").glob("*.pt")}
    capsys.readouterr()
    for size, name in ((5000, "vqvae.safetensors"), (Path("whole/vqvae.safetensors").stat().st_size, "checkpoint.pt")):
        with no_file_above(size):
            assert f"run/{name}: cannot be written" in refusal(["--resume", "--out", "run"], capsys)
        assert {path: path.read_bytes() for path in Path("run").glob("*.pt")} == before
        assert not list(Path("run").glob(".new-*"))
    train.main(["--resume", "--out", "run"])
    assert weights(Path("run")) == weights(Path("whole"))
    assert "drawn/generated_q.png: cannot be written" in refusal_of_pictures(capsys)


def refusal_of_pictures(capsys) -> str:
    capsys.readouterr()
    with no_file_above(500):
        return refusal(["--run", "run", "--n", "2", "--out", "drawn"], capsys, generate)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e6])
def test_a_loss_that_explodes_stops_and_keeps_what_was_good(slices, loss, monkeypatch, capsys, training_alone):
    backward, calls = loop._Fit._backward, []

    def exploding(self, batch, chance, whole):
        calls.append(1)
        totals = backward(self, batch, chance, whole)
        return totals | {"loss": loss * whole} if len(calls) == 5 else totals

    monkeypatch.setattr(loop._Fit, "_backward", exploding)
    said = refusal([*SMALL, "--epoch", "3", "--data", str(slices), "--out", "run"], capsys)
    for words in ("the vqvae loss is", "at epoch 2, step 2", "run/checkpoint.pt", "lower learning rate than"):
        assert words in said, said
    assert torch.load("run/checkpoint.pt", weights_only=True)["place"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in load_file("run/vqvae.safetensors").values())


def test_patience_stops_early_and_the_best_weights_are_kept(slices, monkeypatch, training_alone):
    scores = iter([0.5, 0.7, 0.6, 0.6, 0.9])
    seen = []

    def validate(self, model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {
            f"{split}_{name}": next(scores) if (split, name) == ("validate", "ssim") else 1
            for split in ("train", "validate")
            for name in ("ssim", "codes_used", "perplexity")
        }

    monkeypatch.setattr("training.vqvae_stage.VQVAEStage.validate", validate)
    train.main([*SMALL, "--epoch", "5", "--patience", "2", "--stage", "vqvae", "--data", str(slices), "--out", "run"])
    assert len(seen) == 4
    kept = load_file("run/vqvae.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(kept[name], tensor) for name, tensor in seen[3].items())


def test_one_stage_can_be_run_anew(slices, training_alone):
    train.main([*SMALL, "--data", str(slices), "--out", "run"])
    vqvae, prior = Path("run/vqvae.safetensors").read_bytes(), Path("run/prior.safetensors").read_bytes()
    train.main(["--stage", "prior", "--lr_prior", "0.01", "--out", "run"])
    assert Path("run/vqvae.safetensors").read_bytes() == vqvae
    assert Path("run/prior.safetensors").read_bytes() != prior
    assert json.loads(Path("run/config.json").read_text())["flags"]["lr_prior"] == 0.01
    assert [r["epoch"] for r in read_metrics(Path("run")) if r["stage"] == "prior"] == [1, 2]


def test_missing_splits_are_said_and_what_there_is_is_scored(tmp_path, capsys, few_pictures, small_networks):
    train.main([*SMALL, "--data", str(draw_slices(tmp_path / "a", "train", range(3))), "--out", "a"])
    printed = capsys.readouterr().out
    assert "note: no validate split" in printed and "note: no test split" in printed
    assert "Average SSIM on train dataset: " in printed
    draw_slices(tmp_path / "b", "train", range(3))
    train.main([*SMALL, "--data", str(draw_slices(tmp_path / "b", "validate", range(3, 4))), "--out", "b"])
    assert "Average SSIM on validate dataset: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "slices_of, size, extra",
    [
        (range(1), (24, 32), ["--downsample", "4"]),  # two images
        (range(2), (8, 40), []),  # code maps of one row
        (range(2), (40, 8), []),  # and of one column
        (range(2), (33, 71), ["--downsample", "16"]),  # no multiple of anything
    ],
)
def test_unusual_shapes(tmp_path, slices_of, size, extra, few_pictures, small_networks):
    data = draw_slices(tmp_path / "data", "train", slices_of, slices=2, size=size)
    train.main([*SMALL, *extra, "--data", str(data), "--out", "run"])
    generate.main(["--run", "run", "--n", "3"])
    scores = json.loads(Path("run/scores.json").read_text())["train"]
    assert scores["slices"] == 2 * len(slices_of) and np.isfinite([scores["ssim"], scores["ssim_frame"]]).all()


def test_bf16_training_is_said_in_the_config(slices, training_alone):
    train.main([*SMALL, "--precision", "bf16", "--data", str(slices), "--out", "run"])
    assert json.loads(Path("run/config.json").read_text())["versions"]["precision"] == "bf16"


def test_hyphens_are_understood(slices, training_alone):
    few = ["--epoch", "1", "--epoch-prior", "1", "--epoch-sharpen=1", "--batch-prior=4", "--k", "16"]
    train.main([*few, "--data", str(slices), "--out", "run"])
    assert json.loads(Path("run/config.json").read_text())["flags"]["batch_prior"] == 4


def test_a_run_is_not_overwritten_and_flags_of_a_resumed_run_are_held(trained):
    run, data, _ = trained
    with pytest.raises(UserError, match="already holds a run"):
        train.main(["--data", str(data), "--out", str(run)])
    with pytest.raises(UserError, match="--k is 32, but the run in .* was started with 16"):
        train.main(["--resume", "--k", "32", "--out", str(run)])


def test_a_run_in_use_is_left_alone(trained):
    run, _, _ = trained
    with held(run), pytest.raises(UserError, match="another process is training in this run folder"):
        train.main(["--resume", "--out", str(run)])


def test_a_run_can_start_from_the_weights_of_another(trained, tmp_path, monkeypatch, capsys, training_alone):
    run, data, _ = trained
    draw_slices(tmp_path / "other", "train", range(20, 24), size=(48, 56))
    monkeypatch.setattr("training.loop._Fit._rate", lambda self, step: 1e-6)  # hardly moves
    monkeypatch.setattr("vqvae.VectorQuantizer.update", lambda *_: None)
    for name, folder in (("same", data), ("other", tmp_path / "other")):
        train.main([*SMALL, "--epoch", "1", "--data", str(folder), "--init", str(run), "--out", name])
        for part in WEIGHTS:
            before, after = (load_file(Path(where) / f"{part}.safetensors") for where in (run, name))
            for key, tensor in before.items():
                if key != "log_marginal":
                    torch.testing.assert_close(after[key], tensor, atol=1e-3, rtol=1e-3)
    assert after.keys() == before.keys()
    with pytest.raises(UserError, match="its --k is 16, this run's 32; make them equal"):
        train.main(["--k", "32", "--init", str(run), "--data", str(data)])
    with pytest.raises(UserError, match="its --detail_k is 16, this run's 8; make them equal"):
        train.main([*SMALL, "--detail_k", "8", "--init", str(run), "--data", str(data)])
    train.main([*SMALL, "--no_detail", "--init", str(run), "--data", str(data), "--out", "one"])
    assert "it has another number of levels of codes; the sharp decoder starts from nothing" in capsys.readouterr().out
    train.main([*SMALL, "--init", "one", "--data", str(data), "--out", "both"])
    assert load_run("both", decoder="sharp").detail_prior is not None


def test_the_pretrained_weights_stand_in_where_there_is_no_run(trained, monkeypatch, capsys):
    run, data, _ = trained
    monkeypatch.setattr("utils.PRETRAINED", run.parent / "pretrained")
    monkeypatch.setattr(generate, "PRETRAINED", run.parent / "pretrained")
    monkeypatch.setattr(evaluate, "PRETRAINED", run.parent / "pretrained")
    with pytest.raises(UserError, match="no run under runs/"):
        generate.main(["--n", "2"])
    shutil.copytree(run, run.parent / "pretrained", ignore=shutil.ignore_patterns("codes.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in (run.parent / "pretrained").rglob("*")}
    generate.main(["--n", "2"])
    assert "run pretrained" in capsys.readouterr().out and Path("samples/generated_imgs.png").exists()
    evaluate.main(["--run", "pretrained", "--data", str(data), "--quick", "--samples", "4"])
    assert Path("runs/pretrained/scores.json").exists() and Path("runs/pretrained/report.md").exists()
    scores, kept = (
        json.loads(Path("runs/pretrained/scores.json").read_text()),
        Path("runs/pretrained/codes.safetensors"),
    )
    with monkeypatch.context() as patched:  # what is encoded once stays, for these weights
        patched.setattr(evaluate, "encode_splits", None)
        evaluate.main(["--run", "pretrained", "--data", str(data), "--quick", "--samples", "4"])
    assert json.loads(Path("runs/pretrained/scores.json").read_text()) == scores
    save_file(load_file(kept), kept, {"model": json.dumps({"vqvae": "of others"})})
    evaluate.main(["--run", "pretrained", "--data", str(data), "--quick", "--samples", "4"])
    assert json.loads(Path("runs/pretrained/scores.json").read_text()) == scores
    kept.write_bytes(b"damaged")
    with pytest.raises(UserError, match="codes.safetensors: damaged .*; delete it"):
        evaluate.main(["--run", "pretrained", "--data", str(data), "--quick", "--samples", "4"])
    monkeypatch.chdir(run.parent)  # as one is who has the toolkit before them
    evaluate.main(["--run", "pretrained", "--data", str(data), "--quick", "--samples", "4"])
    assert Path("runs/pretrained/scores.json").exists()
    assert before == {path: path.stat().st_mtime_ns for path in (run.parent / "pretrained").rglob("*")}


def test_more_epochs_can_be_asked_for_while_a_stage_is_running(slices, monkeypatch, capsys, training_alone):
    finish = loop._Fit._finish_epoch

    def stop_after_the_first(self):
        finish(self)
        if self.stage.name == "prior":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(loop._Fit, "_finish_epoch", stop_after_the_first)
        train.main([*SMALL, "--data", str(slices), "--out", "run"])
    with pytest.raises(UserError, match="--epoch is 3, but that stage of run has ended after 2 epochs"):
        train.main(["--resume", "--epoch", "3", "--out", "run"])
    with pytest.raises(UserError, match="--epoch_prior is 1, but the run in run was started with 2"):
        train.main(["--resume", "--epoch_prior", "1", "--out", "run"])
    train.main(["--resume", "--epoch_prior", "4", "--out", "run"])
    assert "raised from 2 to 4; the learning rate's schedule is stretched" in capsys.readouterr().out
    assert [r["epoch"] for r in read_metrics(Path("run")) if r["stage"] == "prior"] == [1, 2, 3, 4]
    assert json.loads(Path("run/config.json").read_text())["flags"]["epoch_prior"] == 4


def test_the_sharper_decoder_can_be_left_out_and_trained_later(slices, capsys, few_pictures):
    train.main([*SMALL, "--data", str(slices), "--no_sharpen", "--out", "run"])
    assert not Path("run/sharp.safetensors").exists()
    before = {name: Path(f"run/{name}.safetensors").read_bytes() for name in ("vqvae", "prior", "codes")}
    with pytest.raises(UserError, match="no sharp decoder; train it with: python train.py --stage sharpen"):
        generate.main(["--run", "run", "--decoder", "sharp"])
    generate.main(["--run", "run", "--n", "2"])
    assert "faithful decoder" in capsys.readouterr().out
    train.main(["--stage", "sharpen", "--out", "run"])
    generate.main(["--run", "run", "--n", "2"])
    assert "sharp decoder" in capsys.readouterr().out
    assert before == {name: Path(f"run/{name}.safetensors").read_bytes() for name in before}
    evaluate.main(["--run", "run", "--quick", "--split", "validate"])
    scores = json.loads(Path("run/scores.json").read_text())["validate"]
    assert scores["decoders"]["faithful"]["ssim"] == scores["ssim"] and scores["decoder"] == "sharp"
    assert len({tuple(scores["decoders"][name]) for name in ("first", "faithful", "sharp")}) == 1
    assert (
        "| reconstructions | first level alone | reconstruction decoder | sharp decoder |"
        in Path("run/report.md").read_text()
    )


@pytest.mark.parametrize(
    "program, arguments, message",
    [
        ("train.py", ["--data", "nowhere"], "nowhere: no such folder"),
        ("generate.py", ["--run", "nowhere"], "nowhere: not a run folder"),
        ("evaluate.py", ["--run", "runs/none"], "runs/none: not a run folder"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(program, arguments, message):
    """As a user meets them; `test_bad_input.py` has them all."""
    path = Path(train.__file__).parent / program
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_slice_out_of_range_and_run_without_prior(trained, slices):
    run, _, _ = trained
    with pytest.raises(UserError, match="--slice is 4; this run has slices 0 to 3"):
        generate.main(["--run", str(run), "--slice", "4"])
    train.main([*SMALL, "--stage", "vqvae", "--data", str(slices), "--out", "first"])
    with pytest.raises(UserError, match="has no prior"):
        generate.main(["--run", "first"])


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        train.main(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--epoch EPOCH",
        "(default: 50)",
        "(default: 32)",
        "(default: 0.002)",
        "(default: 100)",
        "(default: 64)",
        "(default: 0.001)",
        "(default: 512)",
        "(default: 8)",
    ):
        assert part in text
