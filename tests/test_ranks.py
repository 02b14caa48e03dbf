"""Several processes train what one would."""

import dataclasses
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import draw_slices
from small_runs import PROCESSES, start
from torch.distributed.run import get_args_parser

from common.cli import parse_flags
from training.loop import read_metrics
from training.settings import Settings
from vqvae import VectorQuantizer

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
FLAGS += ["--epoch_detail", "1", "--batch_detail", "5", "--lr_detail", "0.0003"]
FLAGS += ["--epoch_detail_prior", "1", "--batch_detail_prior", "5"]
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
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
import small_runs, train
small_runs.with_small_networks(setattr)
small_runs.without_pictures(setattr)
train.main()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ended(processes: list[multiprocessing.Process], said: Path) -> str:
    """What processes printed that all ended well."""
    for process in processes:
        process.join(200)
    printed = said.read_text()
    assert [process.exitcode for process in processes] == [0] * len(processes), printed
    return printed


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of the same training by one process and by two, on slices that no batch divides. The later stages of the two
    start from what the stages before them of the one left."""
    root = tmp_path_factory.mktemp("ranks")
    for split, subjects in (("train", range(4)), ("validate", range(4, 6))):
        draw_slices(root / "data", split, subjects)

    def train(count: int, folder: str, *more: str) -> None:
        """As torchrun starts them, but from a process that has imported PyTorch already."""
        arguments = [*FLAGS, "--data", str(root / "data"), "--cache", str(root / "cache"), *more]
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} | common for rank in range(count)]
        printed = ended([start(root / folder, *arguments, small=False, **one) for one in ranks], root / f"{folder}.txt")
        (root / f"{folder}.txt").unlink()
        assert printed.count("content frame") == 1, "one process speaks for all"

    train(1, "one")
    train(2, "two", "--stage", "vqvae")
    for folder, stages in (("level", ("detail",)), ("later", ("prior", "detail_prior", "sharpen"))):
        shutil.copytree(root / "one", root / folder)
        for stage in stages:
            train(2, folder, "--stage", stage)
    return tuple(root / name for name in ("one", "two", "level", "later"))


def curves(folder: Path, *stages: str) -> list[dict[str, float]]:
    records = [record for record in read_metrics(folder) if record["stage"] in stages]
    return [{name: value for name, value in record.items() if name not in ("stage", "seconds")} for record in records]


def test_two_processes_follow_the_curves_of_one(both):
    one, two, level, later = both
    alone = curves(one, "vqvae", "detail", "prior", "detail_prior", "sharp")
    together = curves(two, "vqvae") + curves(level, "detail") + curves(later, "prior", "detail_prior", "sharp")
    assert len(alone) == len(together) == 8
    for expected, found in zip(alone, together):
        for name in expected:
            tolerance = 0.02 if "codes" in name or "perplexity" in name else 1e-4  # codes on the edge may flip
            assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


def _codebook_of_a_process(rank: int, count: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    torch.manual_seed(rank)
    torch.save(_trained_codebook(rank, count), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _trained_codebook(rank: int, count: int) -> dict[str, torch.Tensor]:
    """State of a quantiser that this process and its like have trained, each on its share of every batch."""
    latents = torch.randn(6, 8, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 3
    quantizer = VectorQuantizer(32, 4, revive_every=10**9)
    quantizer.codebook.copy_(latents[0].permute(0, 2, 3, 1).reshape(-1, 4)[:32])
    for batch in latents:
        share = batch[rank::count]
        quantizer.update(share, quantizer.nearest(share))
    learned = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.revive_every = 1
    quantizer.codebook[:9] = 1e3
    quantizer.counts[:9] = 0
    quantizer.update(share, quantizer.nearest(share))
    revived = quantizer.codebook.clone()
    quantizer.start(share)
    return learned | {"revived": revived, "started": quantizer.codebook}


def test_processes_learn_one_codebook_together(tmp_path):
    where = (2, free_port(), str(tmp_path))
    processes = [PROCESSES.Process(target=_codebook_of_a_process, args=(rank, *where)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = _trained_codebook(0, 1)
    for name in first:
        assert torch.equal(first[name], second[name]), name
        if name not in ("revived", "started"):
            assert torch.allclose(first[name], alone[name], atol=1e-5), name
    assert first["revived"].abs().max() < 100, "dead codes came back to the data"
    assert len(first["started"].unique(dim=0)) == 32


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
    program = tmp_path / "training_alone.py"
    program.write_text(TRAINING_ALONE)
    process = subprocess.Popen(
        [*TWO, str(program), *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
