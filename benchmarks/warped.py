"""More code maps from the same slices: those of warped copies, which the prior is told are warped.

A part of `benchmarks/prior_choices.py`. Slices of small data sets are shifted, turned and scaled a little, and encoded: their
codes are new ones, since a code map knows nothing of what lies between two codes. The prior learns them under a condition that is
never given when it draws.
"""

import math

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from dataset import Split
from inference.coding import encode_split
from models.codes import first_level
from models.marginal import PositionalMarginal
from training.coded_slices import CodedSlices
from training.prior_stage import PriorStage
from utils import Run

WARPED = "warped"  # the condition
SHIFT, TURN, SCALE = 7.0, 3.0, 0.04  # pixels, degrees, share: at most


def with_warped(run: Run, data: CodedSlices, seed: int) -> CodedSlices:
    """The training slices, and as many warped ones: all slices of a scan by the same warp."""
    train, rng = data.train, np.random.default_rng(seed)
    images = np.empty_like(train.images)
    for scan in np.unique(train.scans):
        warp = _warp(rng, train.images.shape[1:])
        for index in np.flatnonzero(train.scans == scan):
            images[index] = affine_transform(train.images[index], **warp, order=1)
    copies = Split(images, train.subjects, [f"{WARPED}_{name}" for name in train.names], train.numbers, train.positions)
    both = Split(
        np.concatenate([train.images, images]),
        train.subjects * 2,
        train.names + copies.names,
        *(np.tile(values, 2) for values in (train.numbers, train.positions)),
        conditions={WARPED: np.repeat(np.float32([math.nan, 1.0]), len(train))},
    )
    codes, mirrored = (
        torch.cat([maps, first_level(encode_split(run.vqvae, copies, run.frame, "encoding warped slices", mirror))])
        for maps, mirror in ((data.codes, False), (data.mirrored_codes, True))
    )
    return CodedSlices(both, data.validation, codes, mirrored, data.validation_codes)


def _warp(rng: np.random.Generator, size: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Matrix and offset of `scipy.ndimage.affine_transform`: a shift, a turn about the middle and a scale."""
    angle, scale = math.radians(rng.uniform(-TURN, TURN)), 1 + rng.uniform(-SCALE, SCALE)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
    middle = (np.array(size) - 1) / 2
    return {"matrix": matrix, "offset": middle - matrix @ middle + rng.uniform(-SHIFT, SHIFT, 2)}


class OfTheFirst:
    """The table of code frequencies of the slices that are not warped, for them and for their copies.

    stage: of a prior that learns `with_warped` slices.
    """

    def __init__(self, stage: PriorStage):
        self.count = len(stage.data.codes) // 2
        maps = [stage.data.codes[: self.count], stage.data.mirrored_codes[: self.count]]
        self.table = PositionalMarginal(maps, stage.model.num_codes, stage.data.train.subjects[: self.count])
        self.probabilities = self.table.probabilities

    def log_without(self, indices: Tensor) -> Tensor:
        return self.table.log_without(indices % self.count)
