"""What users get wrong: every mistake gets exit status 2 and one sentence that names it, and leaves nothing behind."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import draw_slices
from PIL import Image
from safetensors.torch import save_file

import evaluate
import generate
import train
from common.cli import run_main
from common.files import hash_of, load_model, save_model
from models.detail import DetailLevel, sizes_upon
from training import pipeline
from vqvae import VQVAE

PROGRAMS = {"train": train.main, "generate": generate.main, "evaluate": evaluate.main}
TINY = ["--epoch", "1", "--epoch_prior", "1", "--k", "8", "--d", "4", "--no_detail", "--no_sharpen"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with slices (data/) and a run trained on them (runs/run/), never to be changed."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    for split, subjects in (("train", range(3)), ("validate", range(3, 5))):
        draw_slices(root / "data", split, subjects)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(pipeline, "PIPELINE", {name: pipeline.PIPELINE[name] for name in ("vqvae", "encode", "prior")})
        for name in ("vqvae_status", "prior_status"):
            patch.setattr(f"reporting.figures.{name}", lambda *_: None)
        train.main([*TINY, "--data", "data", "--out", "runs/run"])
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("utils.PRETRAINED", Path("nowhere/pretrained"))
    monkeypatch.setattr("reporting.figures.slice_grid", lambda *_: pytest.fail("a picture was drawn"))


def slices(split: str = "train") -> list[Path]:
    return sorted(Path(f"data/keras_png_slices_{split}").glob("*.png"))


# --------------------------------------------------------------------------- what may be wrong with files


def nothing() -> None:
    pass


def empty_folder() -> None:
    Path("empty").mkdir()


def no_training_split() -> None:
    shutil.rmtree("data/keras_png_slices_train")


def empty_training_split() -> None:
    for path in slices():
        path.unlink()


def mixed_sizes() -> None:
    Image.new("L", (24, 24), 9).save(slices()[1])


def other_size_in_a_split() -> None:
    for path in slices("validate"):
        Image.new("L", (24, 24), 9).save(path)


def truncated_image() -> None:
    slices()[2].write_bytes(slices()[2].read_bytes()[:60])


def no_image() -> None:
    slices()[0].write_text("not an image")


def directory_named_png() -> None:
    Path("data/keras_png_slices_train/case_000_slice_9.nii.png").mkdir()


def odd_name() -> None:
    slices()[0].rename("data/keras_png_slices_train/brain.png")


def black_images() -> None:
    for path in slices():
        Image.new("L", (56, 40)).save(path)


def subject_in_two_splits() -> None:
    shutil.copy(slices()[0], "data/keras_png_slices_validate/case_000_slice_0.nii.png")


def file_in_the_way() -> None:
    Path("file").write_text("something")


def wrong_size() -> None:
    Image.new("L", (30, 30), 9).save("small.png")


def foreign_detail() -> None:
    save_file({"weight": torch.zeros(2)}, Path("runs/run/detail.safetensors"))


def without_its_prior() -> None:
    first = load_model(Path("runs/run/vqvae.safetensors"), VQVAE)
    save_model(
        Path("runs/run/detail.safetensors"), DetailLevel(8, **sizes_upon(first)), vqvae=hash_of(first.state_dict())
    )


def huge_image() -> None:
    Image.new("1", (20000, 20000)).save("huge.png")


def damaged_config() -> None:
    Path("runs/run/config.json").write_text("{")


def flag_of_another_version() -> None:
    config = json.loads(Path("runs/run/config.json").read_text())
    config["flags"]["colour"] = 1
    Path("runs/run/config.json").write_text(json.dumps(config))


def foreign_weights() -> None:
    save_file({"weight": torch.zeros(3)}, "runs/run/vqvae.safetensors")


def weights_are_text() -> None:
    Path("runs/run/prior.safetensors").write_text("hello")


def foreign_checkpoint() -> None:
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        Path(f"runs/run/{name}").write_bytes(b"PK not really")


def checkpoint_of_something_else() -> None:
    torch.save({"epoch": 3, "weights": torch.zeros(3)}, "runs/run/checkpoint.pt")


def checkpoint_of_another_model() -> None:
    state = torch.load("runs/run/checkpoint.pt", weights_only=True)
    place = {"epoch": 0, "step": 0, "best": None, "best_epoch": 0, "stale": 0, "totals": {}, "seconds": 0.0}
    model = {"model": {"weight": torch.zeros(3)}, "optimizers": [], "average": None, "place": place}
    torch.save(state | model | {"stage": "prior", "finished": ["vqvae", "encode"]}, "runs/run/checkpoint.pt")


def damaged_codes() -> None:
    Path("runs/run/codes.safetensors").write_bytes(b"\x08\x00\x00")


def broken_volume() -> None:
    Path("volumes").mkdir()
    Path("volumes/a.nii.gz").write_bytes(b"nothing of the kind")


def no_prior() -> None:
    Path("runs/run/prior.safetensors").unlink()


def no_vqvae() -> None:
    Path("runs/run/vqvae.safetensors").unlink()


def no_codes() -> None:
    Path("runs/run/codes.safetensors").unlink()


def no_runs() -> None:
    shutil.rmtree("runs")


def other_subjects() -> None:
    draw_slices(Path("more"), "train", range(4))
    shutil.rmtree("data")
    Path("more").rename("data")


def moved_data() -> None:
    Path("data").rename("elsewhere")


RUN = ["--run", "runs/run"]
RESUME = ["--resume", "--out", "runs/run"]
NEW = [*TINY, "--data", "data", "--out", "new"]
COMPLETE = [*RUN, "--complete", "data/keras_png_slices_validate/case_003_slice_1.nii.png"]

CASES: list[tuple[str, list[str], Callable[[], None], str]] = [
    ("train", ["--data", "nowhere"], nothing, "nowhere: no such folder"),
    ("train", ["--data", "empty"], empty_folder, "empty: no train slices found"),
    ("train", ["--data", "file"], file_in_the_way, "file: no such folder"),
    ("train", NEW, no_training_split, "data: no train slices found"),
    ("train", NEW, empty_training_split, "data: no train slices found"),
    ("train", NEW, mixed_sizes, "24x24 pixels, but case_000_slice_0.nii.png has 40x56; give --image_size"),
    ("train", NEW, other_size_in_a_split, "the validate slices have 24x24 pixels"),
    ("train", NEW, truncated_image, "case_000_slice_2.nii.png: not a readable image"),
    ("train", NEW, no_image, "case_000_slice_0.nii.png: not a readable image"),
    ("train", NEW, directory_named_png, "case_000_slice_9.nii.png: not a readable image"),
    ("train", NEW, odd_name, "brain.png: unexpected name; expected case_<subject>_slice_<n>.nii.png"),
    ("train", NEW, black_images, "every training slice is entirely black"),
    ("train", NEW, subject_in_two_splits, "subject 000 is in both the train and the validate split"),
    ("train", ["--data", "empty"], empty_folder, "BIDS, sub-*/anat/*_T1w.nii.gz"),
    ("train", [*NEW, "--format", "bids"], nothing, "data: --format bids finds nothing there"),
    ("train", [*NEW, "--format", "dicom"], nothing, "--format: invalid choice: 'dicom'"),
    ("train", [*NEW, "--spacing", "0"], nothing, "--spacing is 0; expected 0.1 to 20 mm"),
    ("train", [*NEW, "--slices", "0"], nothing, "--slices is 0; expected 1 to 1024"),
    ("train", [*NEW, "--window", "-100:-300"], nothing, "--window is -100:-300; expected two grey values, low to high"),
    ("train", [*NEW, "--slice_range", "0.7:0.3"], nothing, "--slice_range is 0.7:0.3; expected two shares"),
    ("train", [*NEW, "--split", "85,10"], nothing, "--split is 85,10; expected shares of train, validate and test"),
    ("train", ["--data", "data", "--format", "images", "--split_file", "nowhere.csv"], nothing, "nowhere.csv: not a readable"),
    ("train", [*NEW, "--table", "nowhere.csv", "--condition", "age"], nothing, "--table nowhere.csv: not a readable table"),
    ("train", [*NEW, "--condition", "age"], nothing, "--table and --condition go together"),
    ("train", ["--data", "volumes"], broken_volume, "volumes/a.nii.gz: not a readable volume"),
    ("train", ["--epoch", "0"], nothing, "--epoch is 0; expected at least 1"),
    ("train", ["--epoch", "two"], nothing, "--epoch: invalid int value: 'two'"),
    ("train", ["--batch", "-3"], nothing, "--batch is -3; expected at least 1"),
    ("train", ["--batch_prior", "0"], nothing, "--batch_prior is 0; expected at least 1"),
    ("train", ["--epoch_sharpen", "0"], nothing, "--epoch_sharpen is 0; expected at least 1"),
    ("train", ["--epoch_detail", "0"], nothing, "--epoch_detail is 0; expected at least 1"),
    ("train", ["--batch_detail_prior", "0"], nothing, "--batch_detail_prior is 0; expected at least 1"),
    ("train", ["--lr_detail", "2"], nothing, "--lr_detail is 2.0; expected a number between 0 and 1"),
    ("train", ["--detail_k", "1"], nothing, "--detail_k is 1; expected 2 to 65536"),
    ("train", ["--detail_d", "0"], nothing, "--detail_d is 0; expected 1 to 4096"),
    ("train", ["--data", "data", "--k", "8", "--detail_k", "4000"], nothing, "--detail_k is 4000, but the training slices have"),
    ("train", ["--no_detail", "--stage", "detail"], nothing, "--no_detail leaves out what --stage detail trains"),
    ("train", ["--no_detail", "--stage", "detail_prior"], nothing, "--no_detail leaves out what --stage detail_prior trains"),
    ("train", ["--stage", "detail_prior", "--out", "runs/run"], nothing, "runs/run has no second level of codes; train it with"),
    ("train", ["--stage", "encode", "--detail_k", "4", "--out", "runs/run"], nothing, "--stage encode leaves its detail as"),
    ("train", ["--lr", "0"], nothing, "--lr is 0.0; expected a number between 0 and 1"),
    ("train", ["--lr_prior", "nan"], nothing, "--lr_prior is nan; expected a number between 0 and 1"),
    ("train", ["--k", "1"], nothing, "--k is 1; expected 2 to 65536"),
    ("train", ["--k", "1000000"], nothing, "--k is 1000000; expected 2 to 65536"),
    ("train", [*NEW, "--k", "4000"], nothing, "--k is 4000, but the training slices have only"),
    ("train", ["--d", "0"], nothing, "--d is 0; expected 1 to 4096"),
    ("train", ["--d", "1000000000"], nothing, "--d is 1000000000; expected 1 to 4096"),
    ("train", ["--downsample", "5"], nothing, "--downsample: invalid choice: 5"),
    ("train", ["--image_size", "3"], nothing, "--image_size is 3; expected 8 to 4096"),
    ("train", ["--patience", "-1"], nothing, "--patience is -1; expected 0"),
    ("train", ["--save_every", "0"], nothing, "--save_every is 0.0; expected minutes above 0"),
    ("train", ["--precision", "fp8"], nothing, "--precision: invalid choice: 'fp8'"),
    ("train", ["--epoch_priors", "3"], nothing, "unknown flag --epoch_priors; did you mean --epoch_prior?"),
    ("train", ["--no_sharpen", "--stage", "sharpen"], nothing, "--no_sharpen leaves out what --stage sharpen trains"),
    ("train", [*NEW, "--out", "file"], file_in_the_way, "--out file is a file"),
    ("train", [*NEW, "--out", "file/run"], file_in_the_way, "file/run: cannot be made"),
    ("train", [*NEW, "--cache", "file"], file_in_the_way, "file: cannot write the slice cache there"),
    ("train", [*TINY, "--data", "data", "--out", "runs/run"], nothing, "runs/run already holds a run"),
    ("train", ["--resume"], no_runs, "no run under runs/ holds config.json"),
    ("train", ["--resume", "--out", "nowhere"], nothing, "nowhere: not a run folder"),
    ("train", [*RESUME, "--stage", "prior"], nothing, "--resume goes on with every stage; leave out --stage"),
    ("train", [*RESUME, "--k", "9"], nothing, "--k is 9, but the run in runs/run was started with 8"),
    ("train", [*RESUME, "--epoch", "5"], nothing, "--epoch is 5, but that stage of runs/run has ended"),
    ("train", RESUME, other_subjects, "its splits are"),
    ("train", RESUME, moved_data, "data: no such folder"),
    ("train", RESUME, damaged_config, "config.json: damaged"),
    ("train", RESUME, flag_of_another_version, "this version has no such flags: colour"),
    ("train", RESUME, foreign_checkpoint, "checkpoint.pt: not a readable checkpoint"),
    ("train", RESUME, checkpoint_of_something_else, "checkpoint.pt: not a checkpoint of this toolkit"),
    ("train", RESUME, checkpoint_of_another_model, "checkpoint.pt: a checkpoint of another run or version"),
    ("train", ["--stage", "vqvae", "--out", "runs/run"], nothing, "--stage vqvae: what was trained after it"),
    ("train", ["--stage", "encode", "--out", "runs/run"], no_vqvae, "vqvae.safetensors: no such file; train the run"),
    ("train", ["--stage", "prior", "--out", "runs/run"], no_codes, "no codes.safetensors; encode with"),
    ("train", ["--stage", "prior", "--out", "runs/run"], damaged_codes, "codes.safetensors: damaged"),
    ("train", ["--stage", "prior", "--lr_prior", "0.01", "--out", "runs/run"], no_codes, "no codes.safetensors; encode with"),
    ("train", ["--stage", "prior", "--k", "4", "--out", "runs/run"], nothing, "--k is 4, but the run in runs/run has 8"),
    ("train", ["--stage", "report", "--out", "runs/run"], nothing, "the stage sample, from which it starts, has not finished"),
    ("train", ["--stage", "encode", "--data", "data", "--out", "typo"], nothing, "typo holds no run whose stage it could be"),
    ("generate", ["--run", "nowhere"], nothing, "nowhere: not a run folder"),
    ("generate", [], no_runs, "no run under runs/ holds prior.safetensors"),
    ("generate", RUN, no_prior, "has no prior to sample from"),
    ("generate", RUN, foreign_weights, "vqvae.safetensors: not weights of this toolkit: it holds no named model"),
    ("generate", RUN, weights_are_text, "prior.safetensors: not weights of this toolkit"),
    ("generate", [*RUN, "--n", "0"], nothing, "--n is 0; expected 1 to 10000"),
    ("generate", [*RUN, "--n", "1000000"], nothing, "--n is 1000000; expected 1 to 10000"),
    ("generate", [*RUN, "--slice", "4"], nothing, "--slice is 4; this run has slices 0 to 3"),
    ("generate", [*RUN, "--slice", "-1"], nothing, "--slice is -1; expected a slice number or all"),
    ("generate", [*RUN, "--temperature", "0"], nothing, "--temperature is 0.0; expected a number above 0"),
    ("generate", [*RUN, "--temperature", "nan"], nothing, "--temperature is nan; expected a number above 0"),
    ("generate", [*RUN, "--sweep", "0.8,0"], nothing, "--sweep is 0.8,0; expected temperatures above 0"),
    ("generate", [*RUN, "--sweep", "hot"], nothing, "--sweep is hot; expected temperatures above 0"),
    ("generate", [*RUN, "--sweep", "1", "--temperature", "0.9"], nothing, "but --sweep says the temperatures"),
    ("generate", [*RUN, "--sweep", "1", "--slice", "all"], nothing, "--sweep draws whole slices"),
    ("generate", [*RUN, "--top_k", "0"], nothing, "--top_k is 0; expected at least 1 code"),
    ("generate", [*RUN, "--top_p", "1.5"], nothing, "--top_p is 1.5; expected above 0"),
    ("generate", [*RUN, "--seed", "-1"], nothing, "--seed is -1; expected a whole number from 0"),
    ("generate", [*RUN, "--out", "file"], file_in_the_way, "--out file is a file"),
    ("generate", [*RUN, "--out", "file/below"], file_in_the_way, "file/below: cannot be made"),
    ("generate", [*RUN, "--level", "second"], nothing, "--level: invalid choice: 'second'"),
    ("generate", RUN, foreign_detail, "detail.safetensors: not weights of this toolkit"),
    ("generate", [*RUN, "--level", "first", "--decoder", "sharp"], foreign_detail, "paints on top of both levels; leave out"),
    ("generate", RUN, without_its_prior, "a second level of codes and no prior of it"),
    ("evaluate", RUN, foreign_detail, "detail.safetensors: not weights of this toolkit"),
    ("generate", [*RUN, "--decoder", "sharp"], nothing, "this run has no sharp decoder; train it with"),
    ("generate", [*RUN, "--nifti"], nothing, "--nifti: this run was not trained on volumes"),
    ("generate", [*RUN, "--where", "age=7"], nothing, "--where: this run's prior was told nothing but the slice"),
    ("generate", [*RUN, "--complete", "nowhere.png"], nothing, "nowhere.png: no such image file"),
    ("generate", [*RUN, "--complete", "small.png"], wrong_size, "small.png has 30x30 pixels; this run's slices have 40x56"),
    ("generate", [*RUN, "--complete", "huge.png"], huge_image, "huge.png: not a readable image"),
    ("generate", [*RUN, "--complete", "file"], file_in_the_way, "file: not a readable image"),
    ("generate", [*COMPLETE, "--region", "nose"], nothing, "--region is nose; expected top, bottom"),
    ("generate", [*COMPLETE, "--region", "5:5,0:9"], nothing, "--region 5:5,0:9 is empty or leaves the slice"),
    ("generate", [*COMPLETE, "--slice", "all"], nothing, "--slice all draws whole slices"),
    ("generate", [*COMPLETE, "--slice", "7"], nothing, "slice number 7: this run has slices 0 to 3"),
    ("evaluate", [], no_runs, "no run under runs/ holds vqvae.safetensors"),
    ("evaluate", [*RUN, "--split", "test"], nothing, "data: no test slices found"),
    ("evaluate", [*RUN, "--split", "all"], nothing, "--split: invalid choice: 'all'"),
    ("evaluate", [*RUN, "--samples", "1"], nothing, "--samples is 1; expected at least 2"),
    ("evaluate", [*RUN, "--out", "empty"], empty_folder, "--out empty is a folder; expected a file"),
    ("evaluate", RUN, moved_data, "data: no such folder"),
    ("evaluate", RUN, damaged_codes, "codes.safetensors: damaged"),
    ("evaluate", RUN, other_size_in_a_split, "the validate slices have 24x24 pixels"),
]  # fmt: skip


def everything() -> dict[str, int]:
    """Every file here but the cache's and the locks, and when it was written."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in Path(".").rglob("*")
        if ".cache" not in path.parts and path.name != ".lock" and not path.is_dir()
    }


@pytest.mark.parametrize(
    "program, arguments, spoil, message", CASES, ids=[f"{case[0]}: {case[3][:50]} {i}" for i, case in enumerate(CASES)]
)
def test_every_mistake_gets_one_sentence(program, arguments, spoil, message, place, capsys, monkeypatch):
    spoil()
    before, folders = everything(), {path for path in Path(".").rglob("*") if path.is_dir()}
    monkeypatch.setattr(sys, "argv", [f"{program}.py"])
    with pytest.raises(SystemExit) as stop:
        run_main(partial(PROGRAMS[program], arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said, said
    assert said.startswith(f"{program}.py: ") and said.count("\n") == 1
    assert everything() == before
    assert {path for path in Path(".").rglob("*") if path.is_dir() and ".cache" not in path.parts} <= folders


def test_a_missing_device_is_named(place, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    for program, arguments in (("train", NEW), ("generate", RUN), ("evaluate", RUN)):
        with pytest.raises(SystemExit) as stop:
            run_main(partial(PROGRAMS[program], [*arguments, "--device", "cuda"]))
        assert stop.value.code == 2 and "--device cuda: this machine or this PyTorch build has no such" in (
            capsys.readouterr().err
        )
