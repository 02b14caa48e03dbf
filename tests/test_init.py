"""Training that starts from the weights of another run."""

import json
from pathlib import Path

import pytest
import torch

import generate
import train
from training import pipeline
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
    assert set(prior.arguments["conditions"]) == {"position", "age", "sex"}
    generate.main(["--run", "second", "--n", "2", "--where", "age=53,sex=F", "--out", "drawn"])
    assert Path("drawn/generated_imgs.png").exists()
    train.main([*SMALL, *data, "--condition", "sex", "--init", "second", "--out", "third"])
    assert "was not told" not in capsys.readouterr().out
    assert set(load_run("third").prior.arguments["conditions"]) == {"position", "sex"}


def test_a_calibrated_prior_keeps_its_temperature_with_its_weights(slices, capsys):
    train.main([*SMALL, "--data", str(slices), "--out", "run"])
    said = capsys.readouterr().out
    temperature = load_run("run").prior.temperature
    assert f"prior: temperature {temperature:.3f}" in said and temperature != 1
    train.main([*SMALL, "--data", str(slices), "--init", "run", "--out", "again"])
    assert load_run("again").prior.temperature not in (1, temperature)
    assert json.loads(Path("run/config.json").read_text())["flags"]["epoch_prior"] == 1
