"""SIGKILL at any moment loses nothing: the resumed run ends with the weights of the one that was never stopped.

`OASIS_VQVAE_KILLS=20` kills as often (twice otherwise), and two processes under torchrun a quarter as often (not at all
otherwise: each start of those takes seconds).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import draw_slices
from small_runs import start

import train
from common.files import UNFINISHED

KILLS = int(os.environ.get("OASIS_VQVAE_KILLS", "2"))
FLAGS = ["--epoch", "4", "--epoch_prior", "4", "--epoch_sharpen", "2", "--batch", "4", "--batch_prior", "4", "--k", "8"]
FLAGS += ["--batch_sharpen", "4", "--save_every", "0.0005"]
FLAGS += ["--epoch_detail", "2", "--batch_detail", "4", "--epoch_detail_prior", "2", "--batch_detail_prior", "4"]
WEIGHTS = ("vqvae", "detail", "codes", "prior", "detail_prior", "sharp")
ROOT = Path(train.__file__).parent


def weights(folder: Path) -> list[bytes]:
    return [(folder / f"{name}.safetensors").read_bytes() for name in WEIGHTS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(flags, folder of a run that was never stopped, the seconds it took)."""
    root = tmp_path_factory.mktemp("kill")
    for split, subjects in (("train", range(4)), ("validate", range(4, 6))):
        draw_slices(root / "data", split, subjects)
    flags = [*FLAGS, "--data", str(root / "data"), "--cache", str(root / "cache")]
    for name in ("warm", "whole"):  # the first one starts the server and fills the cache
        began = time.monotonic()
        process = start(root / name, *flags)
        process.join(200)
        assert process.exitcode == 0, (root / f"{name}.txt").read_text()
    return flags, root / "whole", time.monotonic() - began


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_ends_with_the_same_weights(whole, kill, tmp_path):
    flags, expected, seconds = whole
    process = start(tmp_path / "run", *flags)
    process.join(random.Random(kill).uniform(0.05, 0.95) * seconds)
    process.kill()
    process.join(60)
    begun = (tmp_path / "run" / "config.json").exists()
    process = start(tmp_path / "run", *(["--resume", "--cache", flags[-1]] if begun else flags))
    process.join(200)
    assert process.exitcode == 0, (tmp_path / "run.txt").read_text()
    assert weights(tmp_path / "run") == weights(expected)
    assert not list((tmp_path / "run").glob(f"{UNFINISHED}*"))


def family(pid: int) -> list[int]:
    """A process and all that it and its children have started (Linux): torchrun's workers outlive it for a while."""
    found = [pid]
    for one in found:
        found += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
    return found


@pytest.mark.skipif(KILLS < 20, reason="OASIS_VQVAE_KILLS=20 kills two processes under torchrun as well")
@pytest.mark.parametrize("kill", range(KILLS // 4))
def test_two_killed_processes_end_with_the_same_weights(kill, tmp_path, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "kill-two"
    script = root / "quiet.py"
    flags = [*FLAGS, "--data", str(root / "data"), "--cache", str(root / "cache")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

    def begin(folder: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
        return subprocess.Popen(
            [*command, *arguments, "--out", str(folder)],
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
        )

    if not root.exists():
        for split, subjects in (("train", range(4)), ("validate", range(4, 6))):
            draw_slices(root / "data", split, subjects)
        script.write_text("import os, sys, small_runs\nsmall_runs.train_quietly(sys.argv[1:], os.devnull)\n")
        began = time.monotonic()
        assert begin(root / "whole", *flags).wait(200) == 0
        (root / "seconds").write_text(str(time.monotonic() - began))
    process = begin(tmp_path / "run", *flags)
    time.sleep(random.Random(100 + kill).uniform(0.3, 0.95) * float((root / "seconds").read_text()))
    for pid in family(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(60)
    begun = (tmp_path / "run" / "config.json").exists()
    assert begin(tmp_path / "run", *(["--resume", "--cache", flags[-1]] if begun else flags)).wait(200) == 0
    assert weights(tmp_path / "run") == weights(root / "whole")
