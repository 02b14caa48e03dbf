"""Slices as they would be were their codes likely: unlikely codes are drawn anew given the rest, and decoded.

    restored = restore(run, scan, codes, unlikely, Recipe(times=8))       # a scan's slices, [S, h, w] codes and bool
    restored.map        # [S, H, W]: how far the slices lie from their restorations
    restored.nearest    # [S, H, W]: the restoration that stays nearest to each slice

The recipe is that of Marimont and Tarroni (arXiv 2012.06765) for the MOOD challenge: unlikely codes are drawn anew, several
times; the absolute difference of the slice from its restorations, a mean weighted by how near each stays, is the map; its minimum
over 3x3 pixels takes edges away that no decoder paints, a mean makes it smooth. The prior is told the neighbouring slice too,
without that one's own unlikely codes. Theirs are the codes that cost more bits than a threshold; those of
`score.py` lie where its map of what is unusual lies above one, since bits alone say little of what is small (docs/score.md).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli import require
from common.runtime import derive_seed
from dataset import Split
from inference.coding import decode
from inference.drawing import BATCH
from models.codes import CodeMaps, first_level
from models.known import Known
from models.neighbours import told_a_side
from models.sampler import Draw
from utils import Run

EDGES = 3  # pixels a side of the minimum


@dataclass(frozen=True)
class Recipe:
    """How slices are restored.

    times: restorations of each slice. threshold: standard deviations on the map of what is unusual (`scoring.unusual.standard`)
    from which a code is drawn anew. sharpness: of the weights,
    which are exp(sharpness / d) for a mean absolute difference of d. smooth: pixels a side of the mean. seed: of the draws.
    """

    times: int = 0
    threshold: float = 4.5
    sharpness: float = 0.3
    smooth: int = 7
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for a value that cannot work."""
        require(0 <= self.times <= 64, f"--restore is {self.times}; expected 0 to 64 times")
        require(
            self.threshold >= 0 and math.isfinite(self.threshold),
            f"--threshold is {self.threshold:g}; expected standard deviations, 0 or more",
        )
        require(
            self.sharpness >= 0 and math.isfinite(self.sharpness),
            f"--sharpness is {self.sharpness:g}; expected 0 or more",
        )
        require(
            self.smooth >= 1 and self.smooth % 2 == 1, f"--smooth is {self.smooth}; expected an odd number of pixels"
        )


@dataclass(frozen=True)
class Restored:
    """map, nearest: `[S, H, W]` float32, of whole slices. codes: `[S, times, h, w]`, drawn."""

    map: Tensor
    nearest: Tensor
    codes: Tensor


def restore(run: Run, scan: Split, codes: CodeMaps, unlikely: Tensor, recipe: Recipe) -> Restored:
    """Restore the slices of one scan.

    Args:
        run: with a prior. scan: the slices.
        codes: `[S, h, w]` of each level. Codes of the first alone are drawn; of a run with two levels, what the change does to
            the first level's picture is added to the picture of both.
        unlikely: `[S, h, w]` bool, the codes to draw anew.
        recipe: how.
    """
    first = first_level(codes).long()
    drawn = draw_unlikely(run, scan, first, unlikely, recipe)
    images = run.frame.crop(scan.batch(np.arange(len(scan))))[:, 0]
    painted, of_first = (run.frame.crop(decode(run.vqvae, each, run.frame))[:, 0] for each in (codes, first))
    maps, nearest = [], []
    for index in range(len(scan)):
        again = run.frame.crop(decode(run.vqvae, drawn[index], run.frame))[:, 0]
        restored = (painted[index] + again - of_first[index]).clamp(0, 1)  # [times, H, W]
        apart = (images[index] - restored).abs()
        near = apart.mean((1, 2)).clamp(min=1e-6)
        maps.append((torch.softmax(recipe.sharpness / near, 0)[:, None, None] * apart).sum(0))
        nearest.append(restored[near.argmin()])
    return Restored(
        run.frame.pad(smoothed(torch.stack(maps), recipe.smooth)), run.frame.pad(torch.stack(nearest)), drawn
    )


def draw_unlikely(run: Run, scan: Split, codes: Tensor, unlikely: Tensor, recipe: Recipe) -> Tensor:
    """Code maps with the unlikely codes drawn anew, `[S, times, h, w]` int64: each map is seeded by the recipe's seed and its
    slice's name."""
    known, context = scan.known, None
    if run.prior.context_maps:
        known, context = told_a_side(scan, codes.masked_fill(unlikely, -1), run.prior.context_maps)
    drawn = codes[:, None].repeat(1, recipe.times, 1, 1)
    some = unlikely.flatten(1).any(1).nonzero()[:, 0].tolist()
    todo = [(index, time) for index in some for time in range(recipe.times)]
    for start in range(0, len(todo), BATCH):
        part = todo[start : start + BATCH]
        which = torch.tensor([index for index, _ in part])
        drawn[which, torch.tensor([time for _, time in part])] = _draw(
            run, scan, part, known, context, codes, unlikely, recipe
        )
    return drawn


def _draw(
    run: Run,
    scan: Split,
    part: list[tuple[int, int]],
    known: dict[str, np.ndarray],
    context: Tensor | None,
    codes: Tensor,
    unlikely: Tensor,
    recipe: Recipe,
) -> Tensor:
    device, rows = run.prior.embedding.weight.device, np.array([index for index, _ in part])
    taken = run.prior.arguments["conditions"]
    told = Known(
        conditions={name: torch.from_numpy(values[rows]).to(device) for name, values in known.items() if name in taken},
        codes=codes[rows].to(device),
        keep=~unlikely[rows].to(device),
        context=None if context is None else context[rows].to(device),
    )
    seeds = [derive_seed(recipe.seed, "restore", scan.names[index], time) for index, time in part]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return run.prior.draw_maps((len(part), *codes.shape[1:]), Draw(), told, generators).cpu()


def smoothed(maps: Tensor, smooth: int) -> Tensor:
    """The minimum over 3x3 pixels, then the mean over `smooth` pixels a side: `[S, H, W]` -> the same."""
    least = -F.max_pool2d(-maps[:, None], EDGES, 1, EDGES // 2)
    return F.avg_pool2d(least, smooth, 1, smooth // 2, count_include_pad=False)[:, 0]
