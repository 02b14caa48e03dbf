"""What a call of `train.py` means: a new run, going on with one, or one stage of one anew."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.cli import require
from training.settings import EPOCHS, LEFT_OUT_BY, OF_STAGE, WHILE_RESUMING, Settings
from training.standing import is_finished
from utils import newest_run, read_config


def plan(given: dict[str, Any]) -> tuple[Settings, Path]:
    """Settings and run folder.

    A new run has the defaults and what was given. An existing one keeps what it was started with: `--resume` accepts no
    other value for a flag that would change the result, `--stage` does, since it makes its stage anew, but not for a flag of
    another stage. Where the data lies may change; `job.check_data` compares what it holds. A stage other than the first is
    refused where there is no run.
    """
    settings = Settings(**given)
    require(not (settings.resume and settings.stage != "all"), "--resume goes on with every stage; leave out --stage")
    folder = Path(settings.out) if settings.out else None
    if settings.resume or (settings.stage != "all" and folder is None):
        folder = folder or newest_run("config.json")
    if folder is None:
        return settings, new_folder(settings)
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; expected a folder or a new name")
    started = (folder / "config.json").exists()
    require(
        started or settings.stage in ("all", "vqvae"),
        f"--stage {settings.stage}: {folder} holds no run whose stage it could be; name the folder of one with --out, or leave "
        "out --stage to train a new one",
    )
    if not (settings.resume or (settings.stage != "all" and started)):
        require(
            not started, f"{folder} already holds a run; go on with it by --resume, or name another folder with --out"
        )
        return settings, folder
    stored = read_config(folder)["flags"]
    known = {field.name for field in fields(Settings)}
    require(
        stored.keys() <= known,
        f"{folder / 'config.json'}: this version has no such flags: {', '.join(sorted(stored.keys() - known))}",
    )
    for name, value in given.items():
        if value != stored.get(name, value):
            check_changed(settings, folder, name, stored[name], value)
    if settings.resume:
        for name in ("no_context", "no_mirrored_half"):
            stored.setdefault(name, True)  # a run of a version whose priors had none goes on as it began
    stored.setdefault("no_detail", True)  # so does one whose runs had one level of codes
    for flag, stages in LEFT_OUT_BY.items():
        if settings.stage in stages:
            stored[flag] = False
    return Settings(**(stored | given)), folder


def check_changed(settings: Settings, folder: Path, name: str, before: Any, value: Any) -> None:
    """Raise UserError for a flag that is to be another than the run in the folder was started with, where it may not be."""
    if not settings.resume:
        require(
            OF_STAGE.get(name, settings.stage) == settings.stage,
            f"--{name} is {value}, but the run in {folder} has {before}, and --stage {settings.stage} leaves its "
            f"{OF_STAGE.get(name)} as it is; leave it out, or start a new run with another --out",
        )
    elif name in EPOCHS and value > before:
        check_raised(folder, name, before, value)
    else:
        require(
            name in WHILE_RESUMING,
            f"--{name} is {value}, but the run in {folder} was started with {before}; "
            "leave it out, or start a new run with another --out",
        )


def check_raised(folder: Path, name: str, before: int, value: int) -> None:
    """More epochs than the run was started with: possible as long as their stage is not finished."""
    require(
        not is_finished(folder, EPOCHS[name]),
        f"--{name} is {value}, but that stage of {folder} has ended after {before} epochs at most; "
        "leave it out, or start a new run with another --out",
    )
    print(f"note: --{name} raised from {before} to {value}; the learning rate's schedule is stretched over all of them")


def new_folder(settings: Settings) -> Path:
    name = Path(settings.data).resolve().name if settings.data else "cohort"
    return Path("runs") / f"{name}-f{settings.downsample}-{time.strftime('%Y%m%d-%H%M%S')}"
