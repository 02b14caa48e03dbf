"""Several processes train what one would."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import draw_slices
from torch.distributed.run import get_args_parser

from common.cli import parse_flags
from training.loop import read_metrics
from training.settings import Settings

ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
FLAGS = [
    "--precision",
    "float32",
    "--epoch",
    "3",
    "--epoch_prior",
    "2",
    "--epoch_sharpen",
    "1",
    "--batch",
    "5",
    "--batch_prior",
    "7",
]
FLAGS += [
    "--batch_sharpen",
    "5",
    "--k",
    "8",
    "--lr",
    "0.0003",
]  # small steps, in which rounding does not grow to other codes
TRAINING_ALONE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import train
from reporting import figures
from training import pipeline
pipeline.PIPELINE = {{name: pipeline.PIPELINE[name] for name in ("vqvae", "encode", "prior", "sharpen")}}
for name in ("vqvae_status", "prior_status", "sharp_status", "sharpness"):
    setattr(figures, name, lambda *_: None)
train.main()
"""


def script(folder: Path) -> str:
    """`train.py` without its pictures and samples, which take longer than such a small training."""
    path = folder / "training_alone.py"
    path.write_text(TRAINING_ALONE)
    return str(path)


def run(command: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of the same training by one process and by two, on slices that no batch divides. The later stages of the two
    start from what the first stage of the one left."""
    root = tmp_path_factory.mktemp("ranks")
    for split, subjects in (("train", range(4)), ("validate", range(4, 6))):
        draw_slices(root / "data", split, subjects)
    program, common = script(root), ["--data", str(root / "data"), "--cache", str(root / "cache")]

    def train(processes: list[str], folder: str, *more: str) -> None:
        done = run([*processes, program, *FLAGS, *common, "--out", str(root / folder), *more])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("content frame") == 1, "one process speaks for all"

    train(ONE, "one")
    train(TWO, "two", "--stage", "vqvae")
    shutil.copytree(root / "one", root / "later")
    for stage in ("prior", "sharpen"):
        train(TWO, "later", "--stage", stage)
    return root / "one", root / "two", root / "later"


def curves(folder: Path, *stages: str) -> list[dict[str, float]]:
    records = [record for record in read_metrics(folder) if record["stage"] in stages]
    return [{name: value for name, value in record.items() if name not in ("stage", "seconds")} for record in records]


def test_two_processes_follow_the_curves_of_one(both):
    one, two, later = both
    alone = curves(one, "vqvae", "prior", "sharp")
    together = curves(two, "vqvae") + curves(later, "prior", "sharp")
    assert len(alone) == len(together) == 6
    for expected, found in zip(alone, together):
        for name in expected:
            tolerance = 0.02 if "codes" in name or "perplexity" in name else 1e-4  # codes on the edge may flip
            assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


def test_two_processes_stop_together(both, tmp_path):
    data = str(both[0].parent / "data")
    flags = [
        *FLAGS,
        "--epoch",
        "400",
        "--data",
        data,
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        [*TWO, script(tmp_path), *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert "go on with: python train.py --resume" in said
    epochs = len(read_metrics(tmp_path / "run"))
    assert 0 < epochs < 400


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_torchrun_leaves_every_flag_to_the_training(field):
    """Each by its name or its other one: torchrun takes what begins like a flag of its own for that flag."""
    value = [] if field.type is bool or field.type == "bool" else ["4"]
    understood = []
    for name in filter(None, (field.name, field.name.replace("_", "-"), field.metadata["alias"])):
        try:
            asked = get_args_parser().parse_args(["--nproc_per_node=2", "train.py", f"--{name}", *value])
        except SystemExit:
            continue
        assert asked.training_script_args == [f"--{name}", *value]
        understood.append(name)
    assert understood


def test_the_dimension_has_a_name_that_torchrun_leaves_alone():
    assert parse_flags(Settings, "", ["--dim", "4"]) == parse_flags(Settings, "", ["--d", "4"]) == {"d": 4}
