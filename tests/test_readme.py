"""Every command and snippet of the README runs, at small sizes."""

import re
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import draw_slices
from small_runs import with_small_networks

import evaluate
import generate
import score
import train
from scoring.case import Effort

README = (Path(__file__).parent.parent / "README.md").read_text()
DETAIL = ("--epoch_detail", "1", "--epoch_detail_prior", "1")
PROGRAMS = {"train.py": train.main, "generate.py": generate.main, "evaluate.py": evaluate.main, "score.py": score.main}
SMALL = {
    "train.py": ["--epoch", "1", "--epoch_prior", "1", "--epoch_sharpen", "1", *DETAIL, "--k", "16", "--d", "8"],
    "generate.py": ["--n", "4"],
    "evaluate.py": ["--quick", "--samples", "4"],
    "score.py": [],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every `python ...` line in the README's bash blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python ")]


def test_readme_has_its_two_commands_on_the_first_screen():
    first_screen = "\n".join(README.splitlines()[:30])
    setup = "python3 -m venv .venv && . .venv/bin/activate && pip install -r"
    assert f"{setup} requirements.txt && python train.py" in first_screen
    assert f"{setup} requirements-dev.txt && python -m pytest" in first_screen


def test_pictures_of_the_readme_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        path = Path(__file__).parent.parent / picture
        assert path.stat().st_size < 300_000, picture


def test_every_command_and_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    monkeypatch.setitem(plt.rcParams, "figure.dpi", 30)  # small pictures, drawn in a third of the time
    with_small_networks(monkeypatch.setattr)
    monkeypatch.setattr("training.pipeline.SHOWN", 4)
    monkeypatch.setattr("training.pipeline.QUICK", Effort(8, 1, 8))
    monkeypatch.setattr("sources.cohort.SUBJECTS", {"train": 2, "validate": 1, "test": 1})
    monkeypatch.setattr("sources.cohort.IMAGE_SIZE", 32)
    data = tmp_path / "data" / "keras_png_slices_data"
    for split, subjects in (("train", range(2)), ("validate", range(402, 404)), ("test", range(3, 4))):
        draw_slices(data, split, subjects, slices=17, size=(16, 24))
    found = commands()
    assert {words[1] for words in found} == set(PROGRAMS)
    for words in found:
        small = [] if "--resume" in words or "--stage" in words else SMALL[words[1]]
        if "--volumes" in words:
            small = []
        if "--n" in words:
            small = []
            words[words.index("--n") + 1] = "4"
        try:
            PROGRAMS[words[1]]([*words[2:], *small])
        except SystemExit as stop:
            pytest.fail(f"{' '.join(words)} ended with status {stop.code}")
    for snippet in blocks("python"):
        names: dict[str, object] = {}
        exec(snippet, names)
        assert names["slices"].shape == (4, 1, 16, 24)
