"""Volumes with missing slices: what is known of them, read as the run's own data was.

given = read_given("scan.nii.gz", run, missing="8:15")
heads = draw_heads(run, HeadRequest(1, codes=given.codes(run), known=given.known))      # [1, S, h, w]
images = given.completed(decode_head(run, heads[0], seed=0, head=0))                    # [S, H, W], known slices as they were
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from inference.coding import encode
from inference.drawing import stretches_of
from inference.geometry import VOLUMES, Geometry, data_options_of
from models.codes import CodeMaps
from sources.gaps import read_with_gaps
from sources.headers import open_volume
from sources.images import SLICE_NAME, SUFFIXES, decode_image, resized
from sources.intensities import Scale, numbers_of
from utils import Run

WHITE = 255.0  # of volumes whose values are not 0..1


@dataclass(frozen=True)
class Given:
    """A volume to complete.

    images: `[S, H, W]` float in 0..1, of the run's slice numbers; black where there is none. there: `[S]` bool, which slices the
    volume has. known: `[S]` bool, which of them are to be kept. geometry: where they lie.
    """

    images: Tensor
    there: np.ndarray
    known: np.ndarray
    geometry: Geometry

    def codes(self, run: Run) -> CodeMaps:
        """Code maps of all slices, `[S, h, w]` int64 of each level; those that are not known mean nothing."""
        return encode(run.vqvae, self.images[:, None], run.frame)

    def completed(self, drawn: Tensor) -> Tensor:
        """The volume with drawn slices, `[S, H, W]`, where none are known."""
        return self.images.where(torch.from_numpy(self.known)[:, None, None], drawn)


def read_given(path: str | Path, run: Run, missing: str | None = None) -> Given:
    """Read a volume as the run's data was read.

    Args:
        path: of a run on volumes, a volume; else a folder of the slices of one subject, by their numbers, or a volume such as
            `Geometry.nifti` makes. What has one grey value alone is missing.
        missing: numbers of slices that are missing too, as `--missing` has them.

    Raises:
        UserError: when it cannot be read, has other slices than the run, or has none or all of them.
    """
    path, numbers = Path(path), run.slice_numbers
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    geometry = Geometry.of(run)
    if path.is_dir():
        if run.config["data"].get("kind") in VOLUMES:
            raise UserError(f"{path} is a folder; this run was trained on volumes, so give a file")
        images = _from_folder(path, run)
    elif run.config["data"].get("kind") in VOLUMES:
        images, geometry = _from_scan(path, run, geometry)
    else:
        images = _from_volume(path, run, geometry)
    flat = images.flatten(1)
    there = (flat.amax(1) > flat.amin(1)).numpy()
    known = there & ~np.isin(numbers, missing_numbers(missing, numbers))
    if known.all():
        raise UserError(
            f"{path}: it has every slice of the run; say with --missing which of them to draw, such as 8:15"
        )
    if not known.any():
        raise UserError(f"{path}: it has none of the run's slices, so there is nothing to complete; use --volumes")
    return Given(images, there, known, geometry)


def missing_numbers(text: str | None, numbers: np.ndarray) -> np.ndarray:
    """The slice numbers that `--missing` names: numbers, and stretches first:end without their ends, by commas.

    Raises:
        UserError: when it is no such text, or names numbers that the run does not have.
    """
    if text is None:
        return np.empty(0, int)
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?::(\d+))?\s*", part)
        named = range(int(match[1]), int(match[2] or int(match[1]) + 1)) if match else range(0)
        if not named:
            raise UserError(f"--missing is {text}; expected slice numbers, such as 3 or 8:15 (8 to 14), by commas")
        found += named
    wrong = sorted(set(found) - set(numbers.tolist()))
    if wrong:
        raise UserError(f"--missing names slice {wrong[0]}; this run has slices {stretches_of(numbers)}")
    return np.array(found)


def _from_folder(path: Path, run: Run) -> Tensor:
    """Slices of one subject by the numbers in their names."""
    size, grey = run.config["flags"]["image_size"], run.config["data"].get("grey")
    shape = (run.frame.image_height, run.frame.image_width)
    slots = {number: slot for slot, number in enumerate(run.slice_numbers.tolist())}
    found: dict[int, Path] = {}
    subjects = set()
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in SUFFIXES:
            continue
        match = SLICE_NAME.fullmatch(file.name)
        number = match["number"] if match else (re.findall(r"\d+", file.name.split(".")[0]) or [None])[-1]
        if match:
            subjects.add(match["subject"])
        if number is None or int(number) not in slots:
            raise UserError(f"{file}: its name gives no number of this run's slices, {stretches_of(run.slice_numbers)}")
        if len(subjects) > 1 or int(number) in found:
            raise UserError(f"{path}: slices of several subjects, such as {file.name}; expected those of one")
        found[int(number)] = file
    if not found:
        raise UserError(f"{path}: no images in it; expected slices of one subject, such as case_001_slice_0.nii.png")
    images = torch.zeros(len(slots), *shape)
    for number, file in found.items():
        image = torch.from_numpy(decode_image(file, size, Scale(**grey) if grey else None).copy())
        if image.shape != shape:
            raise UserError(
                f"{file} has {_by(image.shape)} pixels; this run's slices have {_by(shape)}; leave it out or resample it"
            )
        images[slots[number]] = image.float() / WHITE
    return images


def _from_scan(path: Path, run: Run, trained: Geometry) -> tuple[Tensor, Geometry]:
    """A volume, of a run on volumes; and where its own slices lie."""
    options, shape = data_options_of(run.config), (run.frame.image_height, run.frame.image_width)
    size = trained.size or shape
    space = open_volume(path).space(options.spacing, path)
    slices, planes, there = read_with_gaps(path, options.volumes, size)
    if size != shape:
        slices = np.stack([resized(image, shape) for image in slices])
    slices = slices * there[:, None, None].astype(np.uint8)
    if len(slices) != len(run.slice_numbers):
        raise UserError(f"{path}: cut into {len(slices)} slices; this run has {len(run.slice_numbers)}")
    return torch.from_numpy(slices).float() / WHITE, Geometry(space, options.axis, planes, size, trained.front_first)


def _from_volume(path: Path, run: Run, geometry: Geometry) -> Tensor:
    """A volume such as `Geometry.nifti` makes, of a run on slices."""
    image = open_volume(path).image
    numbers, frame = run.slice_numbers, run.frame
    shape = (int(numbers[-1] - numbers[0]) + 1, frame.image_height, frame.image_width)
    data = np.nan_to_num(numbers_of(np.asanyarray(image.dataobj)).astype(np.float32)).reshape(image.shape[:3])
    slices = geometry.slices(nib.Nifti1Image(data, image.affine))
    if slices.shape != shape:
        raise UserError(
            f"{path}: {_by(slices.shape)} slices, rows and columns; this run was trained on slices, and its volumes have "
            f"{_by(shape)}"
        )
    if not (slices.min() >= 0 and slices.max() <= WHITE):
        raise UserError(
            f"{path}: values from {slices.min():g} to {slices.max():g}; expected 0 to 1, or 0 to 255 as in images"
        )
    scale = 1.0 if slices.max() <= 1 else WHITE
    return torch.from_numpy(slices[numbers - numbers[0]].copy()) / scale


def _by(lengths: tuple[int, ...]) -> str:
    return "x".join(map(str, lengths))
