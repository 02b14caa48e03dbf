"""New slices from a trained run: which slice positions to draw, the code maps, the decoded slices."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset import spread_over
from scoring import decode
from utils import Progress, Run, UserError

BATCH = 64  # maps drawn at a time


@dataclass(frozen=True)
class Samples:
    """Drawn slices: `codes` `[N, h, w]` int64, `images` `[N, H, W]` float in 0..1, `labels` a short name each."""

    codes: Tensor
    images: Tensor
    labels: list[str]

    def __len__(self) -> int:
        return len(self.codes)

    def first(self, count: int) -> "Samples":
        return Samples(self.codes[:count], self.images[:count], self.labels[:count])


def spread_numbers(count: int, slices: int) -> np.ndarray:
    """`count` slice numbers of a volume of `slices`: all of them, lowest first, again and again; spread evenly if fewer."""
    return np.arange(count) % slices if count >= slices else spread_over(slices, count)


def draw_samples(
    run: Run, numbers: np.ndarray | None, count: int, temperature: float = 1.0, seed: int = 0, title: str = "sampling"
) -> Samples:
    """Draw code maps from the prior and decode them.

    Args:
        run: with a prior.
        numbers: `[count]` slice numbers, or None for slices of unknown position.
        count: slices to draw.
        temperature: above 0; below 1 draws likelier, smoother slices.
        seed: the same seed draws the same slices.
        title: of the progress bar.

    Raises:
        UserError: when the run has no prior or knows no slice positions.
    """
    if run.prior is None:
        raise UserError(
            "this run has no prior to sample from (prior.safetensors is missing); "
            "train it with: python train.py --resume --out RUN"
        )
    slices = run.config["data"]["slices_per_subject"]
    if numbers is not None and slices is None:
        raise UserError("this run's data had no slice numbers, so a slice position cannot be chosen; leave out --slice")
    position = None if numbers is None else torch.from_numpy(numbers / max(slices - 1, 1)).float()
    height, width = run.frame.height // run.vqvae.downsample, run.frame.width // run.vqvae.downsample
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with Progress(height * -(-count // BATCH), title, "row") as progress:
        for start in range(0, count, BATCH):
            part = None if position is None else position[start : start + BATCH]
            parts.append(
                run.prior.sample(
                    min(BATCH, count - start),
                    height,
                    width,
                    part,
                    temperature=temperature,
                    generator=generator,
                    progress=progress.update,
                ).cpu()
            )
    codes = torch.cat(parts)
    images = decode(run.vqvae, codes, run.frame)[:, 0]
    return Samples(codes, images, [""] * count if numbers is None else [f"slice {number}" for number in numbers])
