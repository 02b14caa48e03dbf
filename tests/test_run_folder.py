"""What a run folder says of itself is true: which stages have finished, what was made from what, where the data lies."""

import csv
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_slices
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import with_small_networks, without_curves

import evaluate
import generate
import train
from common.cli import run_main
from common.errors import UserError
from common.files import hash_of, hash_of_file, save_model
from dataset import Frame, find_frame
from scoring.case import Effort
from sources import DataOptions, load
from training import loop, pipeline
from training.plan import plan
from training.settings import PRESETS, Settings, in_words, with_preset
from training.vqvae_stage import VQVAEStage
from utils import decoder_to_use, load_run, read_codes, with_sharp_decoder
from vqvae import VQVAE

FLAGS = ["--epoch", "2", "--epoch_prior", "2", "--epoch_sharpen", "2", "--batch", "4", "--batch_prior", "4"]
FLAGS += ["--batch_sharpen", "4", "--k", "8", "--d", "4", "--epoch_detail", "2", "--batch_detail", "4"]
FLAGS += ["--epoch_detail_prior", "2", "--batch_detail_prior", "4"]
STAGES = ("vqvae", "detail", "encode", "prior", "detail_prior", "sharpen", "sample", "report")
WEIGHTS = ("vqvae", "detail", "codes", "prior", "detail_prior", "sharp")
STEPS = 2  # of an epoch
PLACES = (
    "vqvae",
    "detail",
    "prior",
    "detail_prior",
    "sharp",
)  # trainings, and folders of runs that were stopped in them
DATA = "data"


def quietly(patch: pytest.MonkeyPatch, ran: list[str]) -> None:
    """Training of small networks without pictures; the last two stages only leave a file. `ran` receives the name of each stage
    that is run."""

    def noted(name: str, work: Callable, job: pipeline.Job) -> None:
        ran.append(name)
        work(job)

    stages = dict(pipeline.PIPELINE) | {
        name: lambda job, name=name: (job.folder / f"{name}.txt").write_text("") for name in ("sample", "report")
    }
    patch.setattr(pipeline, "PIPELINE", {name: partial(noted, name, work) for name, work in stages.items()})
    with_small_networks(patch.setattr)
    without_curves(patch.setattr)


@contextmanager
def stopped_in(name: str, steps: int) -> Iterator[None]:
    """SIGTERM in a step of a stage, counted from 1; training has to end by it."""
    taken, step = [], loop._Fit._step

    def counted(self, batch):
        if self.stage.name == name:
            taken.append(1)
            if len(taken) == steps:
                signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Fit, "_step", counted)
        with pytest.raises(SystemExit) as stop:
            yield
        assert stop.value.code == 143


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with slices (data/) and runs that were stopped in the second epoch of a stage (vqvae/, detail/, prior/,
    detail_prior/, sharp/), or never (whole/), never to be changed."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run-folder")
    for split, subjects in (("train", range(2)), ("validate", range(2, 3))):
        draw_slices(root / DATA, split, subjects, size=(16, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        quietly(patch, [])
        train.main([*FLAGS, "--data", DATA, "--out", "whole"])
        for name in PLACES:
            with stopped_in(name, STEPS + 1):
                train.main([*FLAGS, "--data", DATA, "--out", name])
    return root


@pytest.fixture
def ran(here, tmp_path, monkeypatch):
    """The stages that are run, in a copy of that folder."""
    shutil.copytree(here, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    stages: list[str] = []
    quietly(monkeypatch, stages)
    return stages


def weights(folder: str) -> list[bytes]:
    return [Path(folder, f"{name}.safetensors").read_bytes() for name in WEIGHTS]


def refusal(arguments: list[str], capsys, program=train) -> str:
    """The one sentence that a command line ends with; the files stay as they are."""
    before = {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file() and ".cache" not in path.parts}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: program.main(arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1, said
    after = {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert {
        path for path in after.keys() | before.keys() if path.name != ".lock" and after.get(path) != before.get(path)
    } == set()
    return said


# --------------------------------------------------------------------------- finished stages

# for each place where a run was stopped and each --stage: what --resume does afterwards, None where the stage is refused
REST = {
    ("vqvae", "vqvae"): STAGES[1:],
    ("detail", "detail"): STAGES[2:],
    ("prior", "detail"): STAGES[3:],
    ("prior", "encode"): STAGES[3:],
    ("prior", "prior"): STAGES[4:],
    ("prior", "detail_prior"): ("prior", "sharpen", "sample", "report"),
    ("prior", "sharpen"): ("prior", "detail_prior", "sample", "report"),
    ("detail_prior", "detail"): STAGES[4:],
    ("detail_prior", "encode"): STAGES[4:],
    ("detail_prior", "prior"): STAGES[4:],
    ("detail_prior", "detail_prior"): STAGES[5:],
    ("detail_prior", "sharpen"): ("detail_prior", "sample", "report"),
    ("sharp", "detail"): STAGES[5:],
    ("sharp", "encode"): STAGES[5:],
    ("sharp", "prior"): STAGES[5:],
    ("sharp", "detail_prior"): STAGES[5:],
    ("sharp", "sharpen"): STAGES[6:],
} | {("whole", stage): () for stage in STAGES[1:]}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", [*PLACES, "whole"])
def test_a_stage_alone_leaves_a_run_that_can_be_resumed_to_its_end(place, stage, ran, capsys):
    """Whatever was interrupted and whichever stage is run in between, the run ends as the one that was never stopped."""
    rest = REST.get((place, stage))
    if rest is None:
        said = refusal(["--stage", stage, "--out", place], capsys)
        assert f"--stage {stage}: " in said
        assert (
            stage == "vqvae"
            or f"has not finished in {place}; go on with: python train.py --resume --out {place}" in said
        )
        return
    train.main(["--stage", stage, "--out", place])
    assert ran == [stage]
    ran.clear()
    capsys.readouterr()
    train.main(["--resume", "--out", place])
    printed = capsys.readouterr().out
    assert tuple(ran) == rest and ("nothing to resume" in printed) == (not rest)
    if place != "whole" and stage != {"sharp": "sharpen"}.get(place, place):
        assert f"{place}: resuming at epoch 2, step 2" in printed, "the interrupted training goes on where it stopped"
    assert weights(place) == weights("whole")
    ran.clear()
    train.main(["--resume", "--out", place])
    assert not ran


@pytest.mark.parametrize("stage", ["prior", "detail_prior", "sharpen"])
def test_what_was_made_from_replaced_weights_is_made_anew_by_resume(stage, ran, capsys):
    train.main(["--stage", stage, f"--lr_{stage}", "0.01", "--out", "whole"])
    assert "out of date: sample, report; go on with: python train.py --resume --out whole" in capsys.readouterr().out
    ran.clear()
    train.main(["--resume", "--out", "whole"])
    assert ran == ["sample", "report"]


def test_two_interrupted_trainings_both_go_on(ran, capsys):
    with stopped_in("sharp", STEPS + 1):
        train.main(["--stage", "sharpen", "--out", "prior"])
    capsys.readouterr()
    train.main(["--resume", "--out", "prior"])
    printed = capsys.readouterr().out
    assert "prior: resuming at epoch 2, step 2" in printed and "sharp: resuming at epoch 2, step 2" in printed
    assert weights("prior") == weights("whole")


def test_a_stage_that_was_being_made_anew_is_not_finished(ran, capsys):
    with stopped_in("prior", 1):  # before any of its new weights is kept
        train.main(["--stage", "prior", "--lr_prior", "0.01", "--out", "whole"])
    assert "has not finished in whole" in refusal(["--stage", "report", "--out", "whole"], capsys)
    ran.clear()
    train.main(["--resume", "--out", "whole"])
    assert ran == ["prior", "sample", "report"]
    assert json.loads(Path("whole/config.json").read_text())["flags"]["lr_prior"] == 0.01


@pytest.mark.parametrize("name", ["codes", "prior"])
def test_a_file_that_is_gone_is_made_anew(name, ran):
    before = Path(f"whole/{name}.safetensors").read_bytes()
    Path(f"whole/{name}.safetensors").unlink()
    train.main(["--resume", "--out", "whole"])
    assert Path(f"whole/{name}.safetensors").read_bytes() == before
    assert ran == ["encode" if name == "codes" else name]


def as_version_0_1_0(folder: str) -> None:
    """The checkpoint, the weights and the config as that version left them: nothing says what was made from what."""
    state = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    torch.save(
        {name: each for name, each in state.items() if name not in ("made_from", "waiting", "vqvae")},
        f"{folder}/checkpoint.pt",
    )
    for path in Path(folder).glob("*.safetensors"):
        without_hash(path)
    config = json.loads(Path(folder, "config.json").read_text())
    del config["data"]["content"], config["data"]["condition_values"]
    Path(folder, "config.json").write_text(json.dumps(config))


def without_hash(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["model"])
    header.pop("vqvae", None)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"model": json.dumps(header)} if header else None)


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_run_of_an_older_version_goes_on(place, ran):
    as_version_0_1_0(place)
    train.main(["--resume", "--out", place])
    assert ran == list(STAGES[STAGES.index({"sharp": "sharpen"}.get(place, place)) :])
    for name in WEIGHTS:
        found, expected = (load_file(f"{folder}/{name}.safetensors") for folder in (place, "whole"))
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("told", ["no_context", "no_mirrored_half"])
def test_a_run_of_a_version_whose_priors_were_not_told_so_much_goes_on_without(tmp_path, told):
    flags = {name: value for name, value in asdict(Settings()).items() if name != told}
    data = {"frame": asdict(Frame(0, 0, 8, 8, 8, 8))}
    Path(tmp_path, "config.json").write_text(json.dumps({"flags": flags, "data": data}))
    for anew, without in (({"resume": True}, True), ({"stage": "prior"}, False)):
        assert getattr(plan(anew | {"out": str(tmp_path)})[0], told) is without


def test_a_finished_run_of_an_older_version_stays_finished(ran, capsys):
    as_version_0_1_0("whole")
    load_run("whole", decoder="sharp"), read_codes(Path("whole"))
    train.main(["--resume", "--out", "whole"])
    train.main(["--stage", "encode", "--out", "whole"])
    train.main(["--resume", "--out", "whole"])
    assert ran == ["encode"]
    train.main(["--stage", "prior", "--lr_prior", "0.01", "--out", "whole"])
    train.main(["--resume", "--out", "whole"])
    assert ran == ["encode", "prior", "sample", "report"]


# --------------------------------------------------------------------------- what was made from which VQ-VAE


def test_codes_of_another_vqvae_are_refused_and_made_anew_by_resume(ran, capsys):
    for stage in ("vqvae", "encode"):
        train.main([*FLAGS, "--data", DATA, "--stage", stage, "--out", "run"])
    train.main(["--stage", "vqvae", "--seed", "5", "--out", "run"])
    expected = (
        "run/codes.safetensors: codes of another VQ-VAE than run/vqvae.safetensors; encode anew with: python train.py"
    )
    for stage in ("prior", "sharpen"):
        assert expected in refusal(["--stage", stage, "--out", "run"], capsys)
    assert expected in refusal(["--run", "run", "--split", "validate"], capsys, evaluate)
    ran.clear()
    train.main(["--resume", "--out", "run"])
    assert ran == list(STAGES[1:])
    run = load_run("run")
    codes = load_file("run/codes.safetensors")
    images = load(DataOptions(DATA)).splits["validate"].batch(np.arange(4), run.frame)
    found = run.vqvae.encode(images)
    assert torch.equal(found.first, codes["validate"].long())
    assert torch.equal(found.detail, codes["detail.validate"].long())


def test_a_prior_and_a_decoder_of_another_vqvae_are_refused(ran, capsys):
    train.main([*FLAGS, "--data", DATA, "--no_detail", "--out", "one"])
    train.main([*FLAGS, "--data", DATA, "--stage", "vqvae", "--seed", "5", "--out", "other"])
    shutil.copy("other/vqvae.safetensors", "whole/vqvae.safetensors")
    with pytest.raises(UserError, match="detail.safetensors: trained on codes of another VQ-VAE than .*--stage detail"):
        load_run("whole")
    shutil.copy("other/vqvae.safetensors", "one/vqvae.safetensors")
    with pytest.raises(UserError, match="prior.safetensors: trained on codes of another VQ-VAE than .*--stage prior"):
        load_run("one")
    assert "prior.safetensors: trained on codes of another VQ-VAE" in refusal(["--run", "one"], capsys, generate)
    assert "--init one" not in refusal([*FLAGS, "--data", DATA, "--init", "one", "--out", "new"], capsys)
    Path("one/prior.safetensors").unlink()
    for decode in (
        partial(load_run, "one", decoder="sharp"),
        partial(with_sharp_decoder, load_run("one").vqvae, "one"),
    ):
        with pytest.raises(
            UserError, match="sharp.safetensors: trained on codes of another VQ-VAE than .*--stage sharpen"
        ):
            decode()
    for name in ("sharp", "codes"):
        without_hash(Path(f"one/{name}.safetensors"))
    assert decoder_to_use("one") == "sharp" and load_run("one", decoder="sharp") and read_codes(Path("one"))


def test_a_training_on_codes_of_another_vqvae_is_not_gone_on_with(ran, capsys):
    for name in ("detail", "prior", "detail_prior", "sharp"):
        Path(f"prior/{name}.safetensors").unlink(missing_ok=True)
    train.main(["--stage", "vqvae", "--seed", "5", "--out", "prior"])
    capsys.readouterr()
    train.main(["--resume", "--out", "prior"])
    printed = capsys.readouterr().out
    assert "note: the prior was being trained on codes of another VQ-VAE; it starts anew" in printed
    train.main([*FLAGS, "--data", DATA, "--seed", "5", "--out", "fresh"])
    assert weights("prior") == weights("fresh")


def test_what_belongs_to_another_second_level_is_refused_and_made_anew_by_resume(ran, capsys):
    """The first level and its prior are left as they are."""
    before = {name: Path(f"whole/{name}.safetensors").read_bytes() for name in WEIGHTS}
    train.main(["--stage", "detail", "--lr_detail", "0.01", "--out", "whole"])
    said = capsys.readouterr().out
    assert "out of date: encode, detail_prior, sharpen, sample, report; go on with" in said
    for arguments, program, stage in (
        (["--run", "whole"], generate, "detail_prior"),
        (["--run", "whole", "--split", "validate"], evaluate, "detail_prior"),
        (["--stage", "prior", "--out", "whole"], train, "encode"),
    ):
        said = refusal(arguments, capsys, program)
        assert "of another VQ-VAE than whole/vqvae.safetensors with detail.safetensors" in said and stage in said
    ran.clear()
    train.main(["--resume", "--out", "whole"])
    assert ran == ["encode", "detail_prior", "sharpen", "sample", "report"]
    after = {name: Path(f"whole/{name}.safetensors").read_bytes() for name in WEIGHTS}
    assert {name for name in WEIGHTS if after[name] == before[name]} == {"vqvae", "prior"}
    load_run("whole", decoder="sharp"), read_codes(Path("whole"))


def test_a_run_with_one_level_gets_a_second_and_stays_what_it_was(ran, capsys):
    """As versions before left it: its config does not know of a second level."""
    train.main([*FLAGS, "--data", DATA, "--no_detail", "--out", "one"])
    assert ran == [name for name in STAGES if not name.startswith("detail")]
    assert not list(Path("one").glob("detail*")) and set(load_file("one/codes.safetensors")) == {
        "train",
        "train_mirrored",
        "validate",
    }
    config = json.loads(Path("one/config.json").read_text())
    for name in [name for name in config["flags"] if "detail" in name]:
        del config["flags"][name]
    Path("one/config.json").write_text(json.dumps(config))
    state = torch.load("one/checkpoint.pt", weights_only=True)
    for made in state["made_from"].values():
        assert not made.pop("detail", ""), "no second level was there"
        made.pop("detail_prior", None)
    torch.save(state, "one/checkpoint.pt")
    ran.clear()
    capsys.readouterr()
    train.main(["--resume", "--out", "one"])
    assert not ran and "nothing to resume" in capsys.readouterr().out
    assert load_run("one").detail_prior is None
    assert "has no second level of codes; train it with" in refusal(["--stage", "detail_prior", "--out", "one"], capsys)
    before = {name: Path(f"one/{name}.safetensors").read_bytes() for name in ("vqvae", "prior")}
    train.main(["--stage", "detail", "--epoch_detail", "1", "--detail_k", "4", "--out", "one"])
    train.main(["--resume", "--out", "one"])
    assert ran == ["detail", "encode", "detail_prior", "sharpen", "sample", "report"]
    assert before == {name: Path(f"one/{name}.safetensors").read_bytes() for name in before}
    run = load_run("one", decoder="sharp")
    assert run.vqvae.detail.quantizer.num_codes == run.detail_prior.num_codes == 4


def test_the_hash_is_of_names_and_values(tmp_path):
    model = VQVAE(8, 4, 8, width=8, blocks=1)
    save_model(tmp_path / "a.safetensors", model, vqvae="of another")
    save_file(dict(reversed(load_file(tmp_path / "a.safetensors").items())), tmp_path / "b.safetensors")
    known = hash_of(model.state_dict())
    assert known == hash_of_file(tmp_path / "a.safetensors") == hash_of_file(tmp_path / "b.safetensors")
    assert known == hash_of(model.to(memory_format=torch.channels_last).state_dict())
    state = dict(model.state_dict())
    state["quantizer.countz"] = state.pop("quantizer.counts")  # in the same place in the order of names
    model.quantizer.codebook[0, 0] += 1e-6
    assert len({known, hash_of(state), hash_of(model.state_dict())}) == 3


# --------------------------------------------------------------------------- flags of another stage, more epochs


@pytest.mark.parametrize("flags", [["--k", "4"], ["--epoch", "3"], ["--lr_sharpen", "0.1"]])
def test_a_stage_alone_leaves_the_flags_of_the_others(flags, ran, capsys):
    assert "--stage prior leaves its" in refusal(["--stage", "prior", *flags, "--out", "whole"], capsys)


def test_codes_that_are_placed_stay_so_when_epochs_are_raised(ran, monkeypatch):
    """With ten times the epochs, the share of the steps without quantising reaches past where the run was stopped."""
    seen, losses = [], VQVAEStage.losses
    monkeypatch.setattr(VQVAEStage, "losses", lambda self, *args: seen.append(self.continuous) or losses(self, *args))
    with stopped_in("vqvae", 8):
        train.main([*FLAGS, "--data", DATA, "--epoch", "10", "--out", "run"])
    assert seen == [True] * 2 + [False] * 6
    codebook, counts = (
        torch.load("run/checkpoint.pt", weights_only=True)["model"][f"quantizer.{n}"] for n in ("codebook", "counts")
    )
    monkeypatch.setattr(VQVAEStage, "_place_codes", lambda self: pytest.fail("the codes were placed anew"))
    with stopped_in("vqvae", 2):
        train.main(["--resume", "--epoch", "100", "--out", "run"])
    assert seen[8:] == [False] * 2 and counts.any()
    after = torch.load("run/checkpoint.pt", weights_only=True)["model"]
    assert after["quantizer.updates"] == 8 and not torch.equal(after["quantizer.codebook"], codebook)


def test_codes_are_placed_where_the_raised_share_ends(slices):
    data = load(DataOptions(str(slices)))
    frame = find_frame(data.splits["train"].images, 8)
    stage = VQVAEStage(
        VQVAE(8, 4, 8, width=8, blocks=1), data.splits["train"], data.splits["validate"], frame, "float32"
    )
    placed: list[int] = []
    stage._place_codes = lambda: placed.append(len(placed))
    phases = []
    for step, steps in ((0, 20), (1, 20), (2, 60), (5, 60), (6, 60), (7, 60), (8, 200)):
        stage.before_step(step, steps)
        phases.append(stage.continuous)
    assert phases == [True, True, True, True, False, False, False] and placed == [0]


# --------------------------------------------------------------------------- where the data lies


def test_data_that_was_moved_is_gone_on_with(ran):
    Path(DATA).rename("elsewhere")
    train.main(["--resume", "--data", "elsewhere", "--cache", "another-cache", "--out", "prior"])
    assert weights("prior") == weights("whole")
    assert json.loads(Path("prior/config.json").read_text())["flags"]["data"] == "elsewhere"


def test_other_data_of_the_same_sizes_is_refused(ran, capsys):
    path = Path(DATA, "keras_png_slices_validate", "case_002_slice_1.nii.png")
    pixels = np.asarray(Image.open(path)).copy()
    pixels[8, 12] ^= 1
    Image.fromarray(pixels).save(path)
    said = "data: its validate split has other slices or subjects than those that the run in"
    for how in (["--resume"], ["--resume", "--data", DATA], ["--stage", "prior"]):
        assert said in refusal([*how, "--out", "prior"], capsys)
    config = json.loads(Path("prior/config.json").read_text())
    del config["data"]["content"]  # as version 0.1.0 left it: sizes alone can be compared
    Path("prior/config.json").write_text(json.dumps(config))
    train.main(["--resume", "--out", "prior"])


def test_renamed_slices_are_other_data(ran, capsys):
    folder = Path(DATA, "keras_png_slices_train")
    for path in sorted(folder.glob("case_001*")):
        path.rename(path.with_name(path.name.replace("001", "005")))
    assert "its train split has other slices" in refusal(["--resume", "--out", "prior"], capsys)


def with_table(path: str, ages: dict[str, str]) -> list[str]:
    Path(path).write_text("id,age\n" + "".join(f"{subject},{age}\n" for subject, age in ages.items()))
    return ["--table", path, "--condition", "age"]


def test_a_table_may_move_but_not_change(ran, capsys):
    ages = {"000": "30", "001": "70", "002": "50"}
    with stopped_in("prior", 1):
        train.main([*FLAGS, "--data", DATA, *with_table("ages.csv", ages), "--out", "run"])
    Path("ages.csv").rename("moved.csv")
    with_table("changed.csv", ages | {"001": "50"})
    assert "its train split has other conditions than" in refusal(
        ["--resume", "--table", "changed.csv", "--out", "run"], capsys
    )
    train.main(["--resume", "--table", "moved.csv", "--out", "run"])


def test_a_run_with_conditions_is_scored_without_its_table(ran, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "QUICK", Effort(4, 1, 4))
    train.main(
        [*FLAGS, "--data", DATA, *with_table("ages.csv", {"000": "30", "001": "70", "002": "50"}), "--out", "run"]
    )
    ask = ["--run", "run", "--split", "validate", "--quick", "--out", "scores.json"]
    draw_slices(Path("others"), "validate", range(40, 42), size=(16, 24))
    scores = {}
    for name, more in (("with", []), ("others", ["--data", "others"]), ("without", [])):
        if name == "without":
            Path("ages.csv").unlink()
        capsys.readouterr()
        evaluate.main([*ask, *more])
        scores[name] = json.loads(Path("scores.json").read_text())["validate"]
        said = "scored without the conditions age, as slices of which they are unknown" in capsys.readouterr().out
        noted = any("scored without the conditions age" in note for note in scores[name]["notes"])
        assert said == noted == (name != "with") and ("by_group" in scores[name]) == (name == "with")
    assert scores["with"]["bits_per_code"] != scores["without"]["bits_per_code"]
    assert scores["with"]["ssim"] == scores["without"]["ssim"]
    evaluate.main(ask[:-2])
    assert Path("run/scores.json").exists(), "the run's own slices, of which a table is gone, are no other data"
    for table, message in (("nowhere.csv", "not a readable table"), ("none.csv", "none of its subjects")):
        with_table("none.csv", {"900": "30"})
        assert message in refusal([*ask, "--table", table], capsys, evaluate)


# --------------------------------------------------------------------------- names that are hard to write down

HARD = ("a$b", "c$_{$", "d,e", 'f"g"', "h\ni", "j\rk", "$\\frac{l}$", "m\\$n", "漢字", " o ", "p\tq")


def test_names_that_no_formula_or_table_can_hold_do_not_end_a_run(tmp_path, monkeypatch):
    """The whole pipeline, pictures and scores included, on a folder and on subjects with such names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "SHOWN", 8)
    monkeypatch.setattr(pipeline, "QUICK", Effort(4, 1, 4))
    with_small_networks(monkeypatch.setattr)
    title = "x$_{$, y\\"  # between the dollars, no formula
    rng = np.random.default_rng(0)
    for number, subject in enumerate(HARD):
        folder = tmp_path / title / subject
        folder.mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 60, (16, 16), dtype=np.uint8)
            pixels[4:12, 4:12] += np.uint8(100 + number)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    with Path("splits.csv").open("w", newline="") as file:
        rows = [(subject, ("train", "validate", "test")[index % 3]) for index, subject in enumerate(HARD)]
        csv.writer(file).writerows([("subject", "split"), *rows])
    flags = [*FLAGS, "--epoch", "1", "--epoch_prior", "1", "--epoch_sharpen", "1", "--data", title]
    train.main([*flags, "--split_file", "splits.csv", "--out", "run"])
    with Path("run/split.csv").open(newline="") as file:
        assert sorted(map(tuple, csv.reader(file))) == sorted([("subject", "split"), *rows])
    again = load(DataOptions(title, split_file="run/split.csv"))
    assert {subject: name for name, split in again.splits.items() for subject in split.subjects} == dict(rows)
    generate.main(["--run", "run", "--n", "2"])


def test_a_preset_is_its_flags_but_for_those_given_beside_it(tmp_path, capsys):
    for name, flags in PRESETS.items():
        assert Settings(**with_preset({"preset": name})) == Settings(preset=name, **flags)
        assert Settings(**flags) != Settings(), "a name for something"
        Settings(**flags).check()
        wanted = with_preset({"preset": name, "epoch": 99, "out": "x"})
        assert wanted == flags | {"preset": name, "epoch": 99, "out": "x"}
    assert with_preset({"epoch": 3}) == {"epoch": 3}
    with pytest.raises(SystemExit):
        train.main(["-h"])
    assert all(" ".join(in_words(name).split()) in " ".join(capsys.readouterr().out.split()) for name in PRESETS)
    with pytest.raises(SystemExit):
        train.main(["--preset", "oasis"])
    assert "invalid choice: 'oasis'" in capsys.readouterr().err


def test_a_run_of_a_preset_goes_on_as_it_began(tmp_path):
    """The flags are kept, not the name: a later version's preset does not change a run."""
    flags = asdict(Settings(**with_preset({"preset": "oasis-f8", "epoch": 2})))
    Path(tmp_path, "config.json").write_text(
        json.dumps({"flags": flags, "data": {"frame": asdict(Frame(0, 0, 8, 8, 8, 8))}})
    )
    settings, _ = plan({"resume": True, "out": str(tmp_path)})
    assert (settings.preset, settings.epoch) == ("oasis-f8", 2)
    with pytest.raises(UserError, match="--batch is 9"):
        plan(with_preset({"resume": True, "out": str(tmp_path), "preset": "oasis-f8", "batch": 9}))
