"""Whole heads: slices drawn one after another, each told the code map of a neighbour that stands already.

    request = HeadRequest(count=16, seed=0)
    codes = draw_heads(run, request)          # [16, S, h, w]: maps of every slice number that the run was trained on

A head begins with a middle slice, which is told nothing, and grows upwards and downwards at the same time. Known slices take its
place where a head is to be completed: what is missing grows from the nearest of them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.runtime import Progress, derive_seed
from dataset import NEIGHBOUR
from inference.coding import decode
from inference.drawing import BATCH, check_prior, rows_of, with_detail
from models.codes import CodeMaps, Codes, first_level, last_level
from models.known import Known
from models.neighbours import ABOVE, BELOW
from models.sampler import Draw
from models.sharp_decoder import makes_texture
from pixelcnn import GatedPixelCNN
from utils import Run

LIKE_THE_LAST = (
    0.8  # correlation of the texture's noise between neighbouring slices, at which fine detail runs on as in real heads
)


@dataclass(frozen=True)
class Step:
    """A slice to be drawn.

    slot: which of the head's slices. beside: the slots whose maps it is told, the nearest first. side: on which side of it they
    lie, `BELOW` or `ABOVE`; None where it is told nothing.
    """

    slot: int
    beside: tuple[int, ...] = ()
    side: int | None = None


@dataclass(frozen=True)
class HeadRequest:
    """The heads to draw from a run.

    count: how many. draw: temperature, top-k and top-p of every slice. seed: the same seed draws the same heads.
    where: conditions of all slices, as the prior takes them (`sources.conditions.parse_where`); those not given are unknown.
    codes, known: `[S, h, w]` code maps of each level and which of them stand, `[S]` bool, in every head; None draws all.
    """

    count: int
    draw: Draw = Draw()
    seed: int = 0
    where: Mapping[str, float] = field(default_factory=dict)
    codes: CodeMaps | None = None
    known: np.ndarray | None = None

    def generators(self, slices: Sequence[tuple[int, int]], what: str = "head") -> list[torch.Generator]:
        """Of each (head, slice number). A slice has its own, so that head i is the same however many are drawn: but for codes
        whose noise falls within rounding of the border between two, since a product rounds with the size of its batch."""
        return [torch.Generator().manual_seed(derive_seed(self.seed, what, *each)) for each in slices]


def stretches(numbers: np.ndarray) -> list[np.ndarray]:
    """Slots of slices whose numbers follow one another; across a gap nobody is a neighbour, since none was in training."""
    return np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) > 1) + 1)


def walk(numbers: np.ndarray, known: np.ndarray, maps: int = 1) -> list[list[Step]]:
    """In which order the slices of a head are drawn: rounds of steps, which may be drawn at once.

    Each slice grows from the nearest known one in its stretch of numbers, the lower one of two that are as near, and is told the
    maps on that side. A stretch without a known slice begins with the one nearest to the middle of the head.

    Args:
        numbers: `[S]` slice numbers, rising. known: `[S]` bool. maps: M that the prior may be told.
    """
    rounds: dict[int, list[Step]] = defaultdict(list)
    for stretch in stretches(numbers):
        starts = stretch[known[stretch]]
        if not len(starts):
            starts = stretch[[np.abs(stretch - len(numbers) // 2).argmin()]]
            rounds[0].append(Step(int(starts[0])))
        for slot in np.setdiff1d(stretch, starts).tolist():
            nearest = int(starts[np.abs(starts - slot).argmin()])
            away, toward = abs(nearest - slot), 1 if nearest > slot else -1
            beside = tuple(slot + toward * step for step in range(1, min(maps, away) + 1))
            rounds[away].append(Step(slot, beside, ABOVE if toward > 0 else BELOW))
    return [rounds[number] for number in sorted(rounds)]


def draw_heads(run: Run, request: HeadRequest, title: str = "drawing heads") -> CodeMaps:
    """Draw code maps of whole heads, on the CPU, `[N, S, h, w]` int64 of each level: S slices, of `run.slice_numbers`.

    All heads are drawn side by side, upwards and downwards at once: 32 slices take 17 drawings one after another, however many
    heads there are. title: of the progress bar.

    Raises:
        UserError: when the run has no prior, its prior is told no neighbour, or its data had no slice numbers.
    """
    check_heads(run)
    numbers = run.slice_numbers
    known = np.zeros(len(numbers), bool) if request.known is None else request.known
    heads = _begun(run, request, known)
    rounds = [
        [(head, step) for head in range(request.count) for step in steps]
        for steps in walk(numbers, known, run.prior.context_maps)
    ]
    parts = [some[start : start + BATCH] for some in rounds for start in range(0, len(some), BATCH)]
    with Progress(rows_of(run) * len(parts), title, "row") as progress:
        for part in parts:
            which, slots = [head for head, _ in part], [step.slot for _, step in part]
            slices, first = list(zip(which, numbers[slots].tolist())), first_level(heads)
            generators, size = request.generators(slices), (len(part), *run.map_size)
            told = _told(run, request, first, part, run.prior)
            maps = run.prior.draw_maps(size, request.draw, told, generators, progress.update).cpu()
            first[which, slots] = maps
            if isinstance(heads, Codes):
                told = _told(run, request, heads.detail, part, run.detail_prior)
                generators = request.generators(slices, "detail of a head")
                drawn = with_detail(run, maps, request.draw, told, generators, progress.update)
                heads.detail[which, slots] = drawn.detail
    return heads


def _begun(run: Run, request: HeadRequest, known: np.ndarray) -> CodeMaps:
    """Maps of all heads, of which the known slices alone mean something."""

    def begun(size: tuple[int, int], level: Callable[[CodeMaps], Tensor]) -> Tensor:
        maps = torch.zeros(request.count, len(known), *size, dtype=torch.int64)
        if known.any():
            maps[:, known] = level(request.codes)[known].long()
        return maps

    first = begun(run.map_size, first_level)
    return first if run.detail_size is None else Codes(first, begun(run.detail_size, last_level))


def check_heads(run: Run) -> None:
    """Raise UserError for a run that cannot draw whole heads."""
    check_prior(run)
    if run.slice_numbers is None:
        raise UserError("this run's data had no slice numbers, so nobody knows which slices make a head")
    if not run.prior.context_maps:
        raise UserError(
            "this run's prior is not told the slice next to the one that it draws, so slices would not fit each other; train one "
            "that is, from this run's weights, with: python train.py --data DIR --init RUN"
        )


def _told(
    run: Run, request: HeadRequest, maps: Tensor, part: Sequence[tuple[int, Step]], prior: GatedPixelCNN
) -> Known:
    """What a prior is told of the slices of a part. maps: of all heads, `[N, S, h, w]`, of its level."""
    numbers, (lowest, highest) = run.slice_numbers, run.slice_ends
    own = numbers[[step.slot for _, step in part]]
    conditions = {name: torch.full((len(part),), value) for name, value in request.where.items()}
    position = torch.from_numpy((own - lowest) / max(highest - lowest, 1)).float()
    if not prior.context_maps:
        return Known(position, conditions)
    sides = torch.tensor([math.nan if step.side is None else float(step.side) for _, step in part])
    context = torch.full((len(part), prior.context_maps, *maps.shape[2:]), -1)
    for index, (head, step) in enumerate(part):
        for place, slot in enumerate(step.beside):
            context[index, place] = maps[head, slot]
    return Known(position, conditions | {NEIGHBOUR: sides}, context=context)


def decode_head(run: Run, codes: CodeMaps, seed: int, head: int) -> Tensor:
    """The slices of a head, `[S, H, W]` in 0..1, of its code maps `[S, h, w]` of each level.

    Texture that a sharp decoder makes of noise changes along the head as that of real ones does (`noise_along`), by seed and
    number of the head.
    """
    noise = None
    if makes_texture(run.vqvae):
        generator = torch.Generator().manual_seed(derive_seed(seed, "texture", head))
        noise = noise_along(len(codes), (run.frame.height, run.frame.width), generator)
    return decode(run.vqvae, codes, run.frame, noise)[:, 0]


def noise_along(slices: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Standard normal noise of neighbouring slices, `[S, 1, H, W]`: each is like the one before it by `LIKE_THE_LAST`."""
    noise = torch.randn(slices, 1, *size, generator=generator)
    for slot in range(1, slices):
        noise[slot] = LIKE_THE_LAST * noise[slot - 1] + math.sqrt(1 - LIKE_THE_LAST**2) * noise[slot]
    return noise
