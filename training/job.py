"""What the stages of one run share, and how it is made ready: data, frame, checks before anything is written."""

import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from common import ranks
from common.cli import require
from common.files import digest, write_json, write_text
from common.runtime import Progress, resolve_precision, versions
from dataset import Dataset, Frame, Split, find_frame
from inference.geometry import data_options_of
from inference.run_data import SPLIT_TABLE, content_of
from models.codes import FINER, CodeMaps
from models.detail import Codec, TwoLevelVQVAE, first_of
from sources import DataOptions, load
from sources.loading import describe
from sources.splits import split_table
from training.coded_slices import CodedSlices
from training.settings import Settings
from utils import (
    CODES,
    decoder_to_use,
    load_codec,
    load_run,
    read_codes,
    read_config,
    run_folder,
    slice_ends_of,
)


@dataclass
class Job:
    """What the stages of one run share."""

    settings: Settings
    folder: Path
    data: Dataset
    frame: Frame
    device: torch.device
    precision: str
    started: float = field(default_factory=time.monotonic)

    @property
    def pictures(self) -> Path:
        return self.folder / "images"

    @property
    def map_size(self) -> tuple[int, int]:
        """(h, w) of a code map."""
        return self.frame.map_size(self.settings.downsample)

    @cached_property
    def content(self) -> dict[str, dict[str, str]]:
        """`content_of` and `condition_values_of` each split, for `config.json`; of none of the built-in cohort, which this
        program draws itself."""
        splits = {} if self.data.kind == "cohort" else self.data.splits
        return {
            "content": {name: content_of(split) for name, split in splits.items()},
            "condition_values": {name: condition_values_of(split) for name, split in splits.items()},
        }

    def validation(self) -> tuple[str, Split]:
        """Name and slices of the split that the best weights are chosen on: never the test split."""
        return self.data.best_split("validate", "train")

    def codes(self) -> dict[str, CodeMaps]:
        """Code maps `[N, h, w]` of each split and level, from the encode stage."""
        codes = read_codes(self.folder)
        require(
            bool(codes),
            f"{self.folder}: no {CODES}; encode with: python train.py --stage encode --out {self.folder}",
        )
        return codes

    def coded_slices(self) -> CodedSlices:
        """What the stages after the first learn from."""
        codes, (scored, validation) = self.codes(), self.validation()
        train = self.data.splits["train"]
        return CodedSlices(train, validation, codes["train"], codes["train_mirrored"], codes[scored])

    def vqvae(self, level: str = "both") -> Codec:
        """The trained VQ-VAE of the run folder: both levels of codes where it has two, or the first alone."""
        return load_codec(self.folder, level).to(self.device, memory_format=torch.channels_last)


def prepare(settings: Settings, folder: Path, device: torch.device) -> Job:
    """Load the data and see that it fits the run."""
    precision = resolve_precision(settings.precision, device)
    config = read_config(folder) if (folder / "config.json").exists() else None
    stored, options = config and config["data"], settings.data_options
    ends = slice_ends_of(stored) if stored else None
    if config:
        options = replace(options, front_first=data_options_of(config).front_first)
    data = ranks.first_before_others(lambda: load_data(options, settings.cache, ends))
    frame = find_frame(data.splits["train"].images, settings.downsample)
    job = Job(settings, folder, data, frame, device, precision)
    print(
        f"content frame {frame.height}x{frame.width} of {frame.image_height}x{frame.image_width} pixels, "
        f"code maps {job.map_size[0]}x{job.map_size[1]}; {device}, {precision}; run folder {folder}",
        flush=True,
    )
    height, width = job.map_size
    positions = len(data.splits["train"]) * height * width
    require(
        settings.k <= positions,
        f"--k is {settings.k}, but the training slices have only {positions} positions of {settings.downsample}x"
        f"{settings.downsample} pixels to be given a code; lower --k or --downsample",
    )
    require(
        "detail" in settings.left_out or (settings.detail_k or settings.k) <= FINER**2 * positions,
        f"--detail_k is {settings.detail_k}, but the training slices have only {FINER**2 * positions} positions of the second "
        "level; lower it, or leave the second level out with --no_detail",
    )
    if settings.init is not None:
        check_init(settings)
    if stored:
        check_data(job)
    return job


def check_data(job: Job) -> None:
    """Raise UserError when the data is not what the existing run was trained on."""
    stored = read_config(job.folder)["data"]
    found = data_summary(job)
    for name in ("splits", "frame", "slices_per_subject"):
        require(
            found[name] == stored[name],
            f"{job.data.title}: its {name.replace('_', ' ')} are {found[name]}, but the run in "
            f"{job.folder} was trained on {stored[name]}; start a new run with another --out",
        )
    for key, what, flag in (("content", "slices or subjects", "--data"), ("condition_values", "conditions", "--table")):
        for name, content in stored.get(key, {}).items():  # runs of version 0.1.0 have neither
            require(
                found[key].get(name) == content,
                f"{job.data.title}: its {name} split has other {what} than those that the run in {job.folder} was trained on; "
                f"say where those are with {flag}, or start a new run with another --out",
            )


def data_summary(job: Job) -> dict[str, Any]:
    return job.data.summary() | {"frame": asdict(job.frame)} | job.content


def condition_values_of(split: Split) -> str:
    """SHA-256 of what is known of each slice of a split beside its position."""
    return digest(sorted((name, values.tobytes()) for name, values in split.conditions.items()))


def load_data(options: DataOptions, cache: str, slice_ends: tuple[int, int] | None = None) -> Dataset:
    """The slices that the options name; says what was found and what is missing. slice_ends: of the run that they are for."""
    data = load(options, cache, Progress, slice_ends=slice_ends)
    sizes = ", ".join(
        f"{name} {len(split)} slices of {len(set(split.subjects))} subjects" for name, split in data.splits.items()
    )
    print(f"data: {data.title}: {sizes}")
    if describe(data):
        print(f"data: {describe(data)}")
    for note in data.notes:
        print(f"note: {note}")
    return data


def check_init(settings: Settings) -> None:
    """Raise UserError unless the networks of the `--init` run fit this one, and each other."""
    folder = run_folder(settings.init)
    codec = load_run(folder, decoder=decoder_to_use(folder)).vqvae
    first = first_of(codec).arguments
    its = {"k": first["num_codes"], "d": first["code_dim"], "downsample": first["downsample"]}
    own = {name: getattr(settings, name) for name in its}
    if isinstance(codec, TwoLevelVQVAE) and "detail" not in settings.left_out:
        detail = codec.detail.arguments
        its |= {"detail_k": detail["num_codes"], "detail_d": detail["code_dim"]}
        own |= {"detail_k": settings.detail_k or settings.k, "detail_d": settings.detail_d}
    for name, value in its.items():
        require(
            own[name] == value,
            f"--init {settings.init}: its --{name} is {value}, this run's {own[name]}; make them equal",
        )


def write_config(job: Job) -> None:
    """Write `config.json` and `split.csv`, unless they say all this already."""
    config = {
        "flags": asdict(job.settings) | {"resume": False, "stage": "all", "out": str(job.folder)},
        "data": data_summary(job),
        "versions": versions() | {"device": str(job.device), "precision": job.precision},
    }
    path = job.folder / "config.json"
    if not path.exists() or read_config(job.folder) != config:
        write_json(path, config)
        write_text(job.folder / SPLIT_TABLE, split_table(job.data))
