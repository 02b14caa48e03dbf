"""Progress, safe files, weights from strangers."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.files import (
    load_checkpoint,
    load_model,
    previous_checkpoint,
    replacing,
    save_checkpoint,
    save_model,
    write_text,
)
from common.runtime import Progress, derive_seed, resolve_precision
from pixelcnn import GatedPixelCNN
from utils import newest_run
from vqvae import VQVAE


def test_progress_prints_plain_lines_with_rate_and_time_left(capsys):
    with Progress(100, "encoding", "slice", interval=0) as progress:
        progress.update(25, loss=0.5)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("  encoding: 25/100 slices, ") and "/s, " in line and " s left, loss 0.5" in line


def test_progress_is_quiet_when_asked(capsys):
    with Progress(10, "x", interval=0, quiet=True) as progress:
        progress.update(10)
    assert capsys.readouterr().out == ""


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("model", [VQVAE(16, 8, 8, width=8, blocks=1), GatedPixelCNN(16, 8, 2, location=False)])
def test_weights_rebuild_the_model_and_are_the_same_bytes_each_time(tmp_path, model):
    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for path in paths:
        save_model(path, model)
    assert len({path.read_bytes() for path in paths}) == 1
    loaded = load_model(paths[0], type(model))
    assert loaded.arguments == model.arguments and not loaded.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_foreign_weights_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(path, VQVAE(16, 8, 8, width=8, blocks=1))
    with pytest.raises(UserError, match="it holds VQVAE, not GatedPixelCNN"):
        load_model(path, GatedPixelCNN)
    huge = {"class": "VQVAE", "arguments": {"num_codes": 2**40, "code_dim": 2**20}}
    save_file({"x": torch.zeros(1)}, path, {"model": json.dumps(huge)})
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(path, VQVAE)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="not weights of this toolkit"):
        load_model(path, VQVAE)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2, 3):
        save_checkpoint(path, {"place": {"epoch": epoch}, "tensor": torch.full((1000,), float(epoch))})
    assert load_checkpoint(path)["place"]["epoch"] == 3 and capsys.readouterr().err == ""
    whole = path.read_bytes()
    middle = whole.index(torch.full((1000,), 3.0).numpy().tobytes()) + 2000
    for damaged in (whole[: len(whole) // 2], whole[:middle] + b"?" + whole[middle + 1 :], b""):
        path.write_bytes(damaged)
        state = load_checkpoint(path)
        assert state["place"]["epoch"] == 2 and (state["tensor"] == 2).all()
        assert "damaged" in capsys.readouterr().err
    previous_checkpoint(path).write_bytes(b"no checkpoint either")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.previous.pt"}


def test_checkpoints_never_run_a_pickle(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"stage": "vqvae", "tensor": torch.ones(2), "place": {"epoch": 1}})
    assert load_checkpoint(path)["place"] == {"epoch": 1}

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_seeds_depend_on_every_part():
    assert len({derive_seed(*parts) for parts in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1)]}) == 4
    assert derive_seed(0, "a") == derive_seed(0, "a")


def test_precision_and_newest_run(tmp_path):
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert resolve_precision("auto", torch.device("cpu")) in ("bf16", "float32")
    with pytest.raises(UserError, match="no run under"):
        newest_run(root=tmp_path)
    for number, name in enumerate(("old", "new", "unfinished")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        if name != "unfinished":
            (tmp_path / name / "vqvae.safetensors").write_text("")
            os.utime(tmp_path / name / "vqvae.safetensors", (number, number))
    assert newest_run(root=tmp_path).name == "new"
