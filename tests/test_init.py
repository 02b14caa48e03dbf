"""Training that starts from the weights of another run."""

import copy
import json
from pathlib import Path

import pytest
import torch

import generate
import train
from common.errors import UserError
from training import pipeline
from training.prior_stage import PriorStage
from utils import load_run

SMALL = [
    "--epoch",
    "1",
    "--epoch_prior",
    "1",
    "--batch",
    "6",
    "--batch_prior",
    "5",
    "--k",
    "16",
    "--d",
    "8",
    "--no_detail",
    "--no_sharpen",
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    stages = ("vqvae", "encode", "prior")
    monkeypatch.setattr(pipeline, "PIPELINE", {name: pipeline.PIPELINE[name] for name in stages})
    for name in ("vqvae_status", "prior_status"):
        monkeypatch.setattr(f"reporting.figures.{name}", lambda *_: None)


def test_conditions_that_the_first_prior_was_not_told_are_learned_and_drawn_by(slices, capsys):
    ages = [20, 31, 42, 53, 64, 75, 86, 97]
    rows = [f"{subject:03d},{age},{'MF'[subject % 2]}" for subject, age in enumerate(ages)]
    Path("table.csv").write_text("\n".join(["id,age,sex", *rows]))
    data = ["--data", str(slices), "--table", "table.csv"]
    train.main([*SMALL, "--data", str(slices), "--out", "first"])
    train.main([*SMALL, *data, "--condition", "age,sex", "--init", "first", "--out", "second"])
    said = capsys.readouterr().out
    for name in ("age", "sex"):
        assert f"--init first: its prior was not told {name} as it is here" in said
    prior = load_run("second").prior
    assert set(prior.arguments["conditions"]) == {"position", "age", "sex", "neighbour"}
    generate.main(["--run", "second", "--n", "2", "--where", "age=53,sex=F", "--out", "drawn"])
    assert Path("drawn/generated_imgs.png").exists()
    train.main([*SMALL, *data, "--condition", "sex", "--init", "second", "--out", "third"])
    assert "was not told" not in capsys.readouterr().out
    assert set(load_run("third").prior.arguments["conditions"]) == {"position", "sex", "neighbour"}


def test_a_calibrated_prior_keeps_its_temperature_with_its_weights(slices, capsys):
    train.main([*SMALL, "--data", str(slices), "--out", "run"])
    said = capsys.readouterr().out
    temperature = load_run("run").prior.temperature
    assert f"prior: temperature {temperature:.3f}" in said and temperature != 1
    train.main([*SMALL, "--data", str(slices), "--init", "run", "--out", "again"])
    assert load_run("again").prior.temperature not in (1, temperature)
    assert json.loads(Path("run/config.json").read_text())["flags"]["epoch_prior"] == 1


def test_a_prior_is_told_neighbours_where_there_are_any_and_starts_from_one_that_was_not(slices, capsys):
    train.main([*SMALL, "--data", str(slices), "--out", "without", "--no_context", "--no_mirrored_half"])
    without = load_run("without").prior
    assert (
        without.context_maps == 0
        and without.mirrored_half is None
        and set(without.arguments["conditions"]) == {"position"}
    )
    started, start = [], PriorStage.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PriorStage, "start", lambda stage, _: started.append(copy.deepcopy(stage.model)) or start(stage, _)
        )
        train.main([*SMALL, "--data", str(slices), "--out", "told", "--init", "without"])
    assert "was not told neighbour" in capsys.readouterr().out
    (first,), told = started, load_run("told").prior
    kept = first.state_dict()
    for name, value in without.state_dict().items():
        assert torch.equal(kept[name], value), name
    for name, encoder in first.told_encoders().items():
        assert not encoder.network.out.weight.any() and told.told_encoders()[name].network.out.weight.any()
    assert first.told_encoders().keys() == {"context", "mirrored_half"}
    assert told.arguments["told_temperature"] not in (1, told.temperature)
    said = json.loads(Path("told/metrics.jsonl").read_text().splitlines()[-1])
    assert {"validate_bits", "validate_told_bits", "train_told_bits", "validate_mean_bits"} <= said.keys()
    train.main([*SMALL, "--data", str(slices), "--init", "told", "--out", "again", "--no_context"])
    assert load_run("again").prior.context_maps == 0


def test_the_side_of_a_neighbour_is_the_priors_own_condition(slices, capsys):
    for program, arguments, said in (
        (train, ["--table", "t.csv", "--condition", "neighbour"], "none of them called position or neighbour"),
        (generate, ["--run", "run", "--where", "neighbour=0"], "told nothing but the slice"),
    ):
        if program is generate:
            train.main([*SMALL, "--data", str(slices), "--out", "run"])
        with pytest.raises(UserError, match=said):
            program.main(arguments)
