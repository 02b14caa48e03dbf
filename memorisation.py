"""Are samples copies of somebody's scan? The nearest training slice of every sample, in pixels and in codes.

    audit = audit_copies(samples, held_out, train)

That a sample has a near training slice says nothing alone: slices of all people are alike. So the distances of samples are
held against those of held-out real slices, which cannot be copies. A sample that is nearer to the training set than all but 1 %
of them is listed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PERCENTILE = 1.0  # of the held-out slices' distances, below which a sample is listed
CHUNK = 256  # slices compared at a time


@dataclass(frozen=True)
class Slices:
    """Slices in both spaces: `images` `[N, H, W]` float32 in 0..1 within the content frame, `codes` `[N, h, w]` integers."""

    images: Tensor
    codes: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Nearest:
    """The nearest training slice of each slice. distance: `[N]`. index: `[N]` int64, of the training slice."""

    distance: Tensor
    index: Tensor


@dataclass(frozen=True)
class Audit:
    """What `audit_copies` finds, by "pixels" and by "codes".

    samples, held_out: nearest training slices. threshold: the held-out slices' 1st percentile. listed: `[N]` bool, samples nearer
    than that in both spaces.
    """

    samples: dict[str, Nearest]
    held_out: dict[str, Nearest]
    threshold: dict[str, float]
    listed: Tensor

    def closest(self, count: int) -> Tensor:
        """The `count` samples nearest to a training slice in both spaces, relative to the thresholds, nearest first."""
        relative = [nearest.distance / max(self.threshold[space], 1e-12) for space, nearest in self.samples.items()]
        return torch.stack(relative).amax(0).argsort()[:count]


def audit_copies(
    samples: Slices, held_out: Slices, train: Slices, progress: Callable[[int], None] | None = None
) -> Audit:
    """Find samples that are nearer to a training slice than real slices come.

    All slices must have passed the same codec, the training and held-out ones as reconstructions: a smooth image is nearer to
    any other than a noisy one. The training set should hold the mirrored slices too where the model has seen them.

    Args:
        samples, held_out, train: what to compare.
        progress: called with the number of slices just compared; `len(samples) + len(held_out)` in all.

    Returns:
        Distances are root mean square differences of pixels (0..1) and shares of differing codes (0..1).
    """
    near: dict[str, dict[str, Nearest]] = {}
    for name, slices in (("samples", samples), ("held_out", held_out)):
        near[name] = {
            "pixels": nearest_images(slices.images, train.images),
            "codes": nearest_codes(slices.codes, train.codes),
        }
        if progress is not None:
            progress(len(slices))
    threshold = {
        space: float(nearest.distance.quantile(PERCENTILE / 100)) for space, nearest in near["held_out"].items()
    }
    listed = torch.stack([nearest.distance < threshold[space] for space, nearest in near["samples"].items()]).all(0)
    return Audit(near["samples"], near["held_out"], threshold, listed)


def nearest_images(images: Tensor, train: Tensor) -> Nearest:
    """By root mean square difference: `[N, H, W]` against `[M, H, W]`."""
    return _nearest(images.flatten(1), train.flatten(1), _squared_distance, lambda d, size: (d / size).sqrt())


def nearest_codes(codes: Tensor, train: Tensor) -> Nearest:
    """By the share of places whose codes differ (Hamming): `[N, h, w]` against `[M, h, w]`."""
    return _nearest(codes.flatten(1), train.flatten(1), _differing, lambda d, size: d / size)


def _nearest(
    slices: Tensor,
    train: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    scaled: Callable[[Tensor, int], Tensor],
) -> Nearest:
    best, index = [], []
    for part in slices.split(CHUNK):
        found = torch.full((len(part),), float("inf")), torch.zeros(len(part), dtype=torch.int64)
        for start in range(0, len(train), CHUNK):
            value, place = distance(part, train[start : start + CHUNK]).min(1)
            nearer = value < found[0]
            found = torch.where(nearer, value, found[0]), torch.where(nearer, place + start, found[1])
        best.append(found[0])
        index.append(found[1])
    return Nearest(scaled(torch.cat(best), slices.shape[1]), torch.cat(index))


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """`[N, P]`, `[M, P]` -> `[N, M]`; of equal slices, 0 but for rounding."""
    return torch.cdist(first.float(), second.float(), compute_mode="use_mm_for_euclid_dist").square()


def _differing(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first.float(), second.float(), p=0)
