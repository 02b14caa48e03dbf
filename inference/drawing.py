"""New slices from a trained run: which slice positions to draw, the code maps, the decoded slices.

Of a run with two levels of codes the first is drawn, then the second, told the first (`with_detail`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.runtime import Progress, derive_seed
from dataset import Frame, spread_over
from inference.coding import decode
from models.codes import CodeMaps, Codes, each_level, finer, first_level
from models.sampler import Draw, Generators
from pixelcnn import Known
from sources.matching import some
from utils import Run

BATCH = 64  # maps drawn at a time


@dataclass(frozen=True)
class Samples:
    """Drawn slices: `codes` `[N, h, w]` int64 of each level, `images` `[N, H, W]` float in 0..1, `numbers` `[N]` slice numbers or
    None."""

    codes: CodeMaps
    images: Tensor
    numbers: np.ndarray | None

    @property
    def labels(self) -> list[str]:
        """A short name each."""
        return [""] * len(self) if self.numbers is None else [f"slice {number}" for number in self.numbers]

    def __len__(self) -> int:
        return len(self.codes)

    def first(self, count: int) -> "Samples":
        numbers = None if self.numbers is None else self.numbers[:count]
        return Samples(self.codes[:count], self.images[:count], numbers)


def spread_numbers(count: int, numbers: np.ndarray) -> np.ndarray:
    """`count` of the slice numbers: all of them, lowest first, again and again; spread evenly if fewer."""
    some = np.arange(count) % len(numbers) if count >= len(numbers) else spread_over(len(numbers), count)
    return numbers[some]


def stretches_of(numbers: np.ndarray) -> str:
    """Slice numbers, lowest first, in words: 0 to 31; 100 to 160 and 170."""
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return some([f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts])


@dataclass(frozen=True)
class Request:
    """The slices to draw from a run.

    count: how many. numbers: `[count]` slice numbers, or None for slices of unknown position.
    draw: temperature, top-k and top-p. seed: the same seed draws the same slices.
    where: conditions of all slices, as the prior takes them (`sources.conditions.parse_where`); those not given are unknown.
    codes, keep: `[h, w]` known codes, of each level, and where those of the first stand, in every map; None draws all. What is
        drawn anew of the first level has its details drawn anew.
    """

    count: int
    numbers: np.ndarray | None = None
    draw: Draw = Draw()
    seed: int = 0
    where: Mapping[str, float] = field(default_factory=dict)
    codes: CodeMaps | None = None
    keep: Tensor | None = None

    def known(self, start: int, size: int, ends: tuple[int, int] | None) -> Known:
        """What is known of `size` of the maps, from number `start` on. ends: slice numbers whose positions are 0 and 1."""
        position = None
        if self.numbers is not None:
            lowest, highest = ends
            numbers = self.numbers[start : start + size]
            position = torch.from_numpy((numbers - lowest) / max(highest - lowest, 1)).float()
        conditions = {name: torch.full((size,), value) for name, value in self.where.items()}
        return Known(position, conditions, None if self.codes is None else first_level(self.codes), self.keep)

    def of_detail(self, known: Known) -> Known:
        """The same of the second level."""
        if isinstance(self.codes, Codes):
            return replace(known, codes=self.codes.detail, keep=finer(self.keep))
        return replace(known, codes=None, keep=None)


def draw_samples(run: Run, request: Request, title: str = "sampling") -> Samples:
    """Draw code maps from the prior of a run and decode them. title: of the progress bar.

    Raises:
        UserError: when the run has no prior or knows no slice positions.
    """
    check_prior(run)
    if request.numbers is not None and run.slice_ends is None:
        raise UserError("this run's data had no slice numbers, so a slice position cannot be chosen; leave out --slice")
    seeds = (
        request.seed,
        derive_seed(request.seed, "detail"),
    )  # the first level is the same with a second one or without
    generator, of_detail = (torch.Generator().manual_seed(seed) for seed in seeds)
    parts = []
    with Progress(rows_of(run) * -(-request.count // BATCH), title, "row") as progress:
        for start in range(0, request.count, BATCH):
            size = min(BATCH, request.count - start)
            known = request.known(start, size, run.slice_ends)
            maps = run.prior.draw_maps((size, *run.map_size), request.draw, known, generator, progress.update).cpu()
            told = request.of_detail(known)
            parts.append(with_detail(run, maps, request.draw, told, of_detail, progress.update))
    drawn = each_level(lambda *maps: torch.cat(maps), *parts)
    return Samples(drawn, decode(run.vqvae, drawn, run.frame)[:, 0], request.numbers)


def rows_of(run: Run) -> int:
    """How many rows of codes a slice is drawn in, of all levels."""
    return run.map_size[0] + (run.detail_size or (0,))[0]


def with_detail(
    run: Run,
    first: Tensor,
    draw: Draw,
    known: Known,
    generator: Generators,
    progress: Callable[[int], None] | None = None,
) -> CodeMaps:
    """Maps of the first level `[B, h, w]`, on the CPU, with details drawn for them; of a run with one level, as they are.

    known: of the second level's maps. The other arguments as in `GatedPixelCNN.draw_maps`.
    """
    if run.detail_size is None:
        return first
    device = next(run.detail_prior.parameters()).device
    known = replace(known, features=run.vqvae.context(first.to(device)))
    size = (len(first), *run.detail_size)
    return Codes(first, run.detail_prior.draw_maps(size, draw, known, generator, progress).cpu())


def check_prior(run: Run) -> None:
    """Raise UserError for a run without a prior of each of its levels."""
    if run.prior is None:
        raise UserError(
            "this run has no prior to sample from (prior.safetensors is missing); "
            "train it with: python train.py --resume --out RUN"
        )
    if run.detail_size is not None and run.detail_prior is None:
        raise UserError(
            "this run has a second level of codes and no prior of it (detail_prior.safetensors is missing); train it with: "
            "python train.py --resume --out RUN, or draw the first level alone with: python generate.py --level first"
        )


def region_of(text: str, frame: Frame) -> tuple[slice, slice]:
    """The rows and columns, in pixels of a whole slice, that `--region` names.

    Args:
        text: top, bottom, left or right (that half of the content frame), or r0:r1,c0:c1.

    Raises:
        UserError: when the text is none of these or the region lies outside the slice.
    """
    top, left, bottom, right = frame.top, frame.left, frame.top + frame.height, frame.left + frame.width
    middle_row, middle_column = (top + bottom) // 2, (left + right) // 2
    halves = {
        "top": (top, middle_row, left, right),
        "bottom": (middle_row, bottom, left, right),
        "left": (top, bottom, left, middle_column),
        "right": (top, bottom, middle_column, right),
    }
    given = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", text)
    if text not in halves and given is None:
        raise UserError(f"--region is {text}; expected top, bottom, left, right or rows and columns as r0:r1,c0:c1")
    r0, r1, c0, c1 = halves.get(text) or (int(number) for number in given.groups())
    if not (r0 < r1 <= frame.image_height and c0 < c1 <= frame.image_width):
        raise UserError(
            f"--region {text} is empty or leaves the slice; slices have {frame.image_height}x{frame.image_width} pixels"
        )
    return slice(r0, r1), slice(c0, c1)


def kept_positions(region: tuple[slice, slice], run: Run) -> Tensor:
    """Where on the code map codes are kept, `[h, w]` bool: those whose pixels all lie outside the region.

    Raises:
        UserError: when nothing is left to draw.
    """
    redrawn = torch.zeros(run.frame.image_height, run.frame.image_width)
    redrawn[region] = 1
    keep = torch.nn.functional.max_pool2d(run.frame.crop(redrawn)[None, None], run.vqvae.downsample)[0, 0] == 0
    if keep.all():
        raise UserError("--region lies outside the part of a slice that has content; nothing is to be drawn there")
    return keep
