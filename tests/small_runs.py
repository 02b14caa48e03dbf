"""Trainings that take a second: small networks, no pictures or samples, and processes that have imported PyTorch already."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial, update_wrapper
from pathlib import Path

import torch
from torch import nn

import train
from reporting import figures
from training import pipeline

TRAINED = (
    "vqvae",
    "detail",
    "encode",
    "prior",
    "detail_prior",
    "sharpen",
)  # the stages that train, and what they train on
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train"])

Change = Callable[[object, str, object], None]  # `setattr`, or a monkeypatch's, which takes it back


def resized(model: type[nn.Module], **sizes: int) -> Callable[..., nn.Module]:
    """A model whose sizes are these where nobody says others."""
    return update_wrapper(partial(model, **sizes), model)


def with_small_networks(change: Change) -> None:
    """Networks of a tenth of the weights: most of a small training is spent on large networks."""
    change(pipeline, "VQVAE", resized(pipeline.VQVAE, width=16, blocks=1))
    change(pipeline, "DetailLevel", resized(pipeline.DetailLevel, width=16))
    change(pipeline, "GatedPixelCNN", resized(pipeline.GatedPixelCNN, channels=16, layers=3))
    change(pipeline, "DETAIL_PRIOR", {})


def without_pictures(change: Change) -> None:
    """Leave out sampling, scoring and pictures, which take most of the time of a small run."""
    change(pipeline, "PIPELINE", {name: pipeline.PIPELINE[name] for name in TRAINED})
    without_curves(change)


def without_curves(change: Change) -> None:
    for name in ("vqvae_status", "prior_status", "sharp_status", "sharpness"):
        change(figures, name, lambda *_: None)


def train_quietly(arguments: list[str], said: str, small: bool = True, **environment: str) -> None:
    """`train.py` on its own, for the whole of a process; it prints into a file."""
    os.environ |= environment
    sys.stdout = sys.stderr = open(said, "a")  # noqa: SIM115
    torch.set_num_threads(1)
    if small:
        with_small_networks(setattr)
    without_pictures(setattr)
    train.main(arguments)


def start(folder: Path, *arguments: str, **more: bool | str) -> multiprocessing.Process:
    """Begin a training into this folder; it prints into a file beside it. more: of `train_quietly`."""
    said = str(folder.parent / f"{folder.name}.txt")
    process = PROCESSES.Process(target=train_quietly, args=([*arguments, "--out", str(folder)], said), kwargs=more)
    process.start()
    return process
