"""How real a set of slices is: distances between two sets, each beside what two sets of real slices are apart.

    scores = realism(samples, real, seed=0)         # {"swd_fine": Realism(score, floor), ...}

A distance of samples says nothing alone: two halves of the real subjects are apart too, by chance and because people differ. So
every score comes with its floor, the same distance between one half of the held-out subjects and the other, and both are means
over the same random halves.

Slices are compared within the content frame, as sets of equal size with equally many slices of each position.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from scoring.metrics import FOREGROUND, radial_power

PATCH, PATCHES, DIRECTIONS = 7, 64, 256  # side of a patch, patches a slice and level, projections of all patches
DIRECTIONS_AT_ONCE = 16  # whose projections are in memory together
COARSEST = 16  # pixels of the shorter side at the last level of the pyramid, at least
INTENSITIES = 2**16  # bins of the histograms that are compared
PAIRS = 256  # pairs of slices whose likeness says how varied a set is
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, fine to coarse
SMALLEST_SIDE, FEWEST_SUBJECTS = 22, 4  # pixels of slices, and subjects, that can be scored
CLASSIFIER_EPOCHS, CLASSIFIER_BATCH, CLASSIFIER_SEEDS = 10, 32, 3


@dataclass(frozen=True)
class SliceSet:
    """Slices to compare.

    images: `[N, H, W]` float32 in 0..1, within the content frame.
    groups: `[N]` what must not be torn apart: the subject of a real slice; a sample stands alone.
    numbers: `[N]` slice number in the volume, or None where the data says nothing of it.
    """

    images: Tensor
    groups: Sequence[str]
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: np.ndarray) -> "SliceSet":
        return SliceSet(
            self.images[torch.from_numpy(chosen)],
            [self.groups[i] for i in chosen],
            None if self.numbers is None else self.numbers[chosen],
        )


@dataclass(frozen=True)
class Realism:
    """A distance of samples from real slices, and the same between real slices: 0 or more, less is better."""

    score: float
    floor: float


def realism(
    samples: SliceSet,
    real: SliceSet,
    seed: int = 0,
    halvings: int = 4,
    progress: Callable[[int], None] | None = None,
    floors: Mapping[str, float] | None = None,
) -> dict[str, Realism]:
    """Every distance of the samples from real slices, beside its floor.

    Args:
        samples: generated slices.
        real: held-out real slices of at least 4 subjects.
        seed: of halves, patches, projections, pairs and classifiers.
        halvings: random halvings of the real subjects that the means are over.
        progress: called with 1 after each of the `2 * halvings` comparisons.
        floors: from an earlier call with the same real slices, seed and halvings, which are then not computed again.

    Returns:
        By name, all without unit unless said:
        swd_0, swd_1, ...: sliced Wasserstein distance of Laplacian pyramid patches, fine to coarse, times 1000; patches are
        standardised by the real ones (Karras et al. 2018, arXiv 1710.10196, section 5).
        variety: how far the distributions of the MS-SSIM of pairs within a set are apart (0..1): whether all slices look alike.
        histogram: how far foreground intensities are apart, in gray levels of 255.
        spectrum: mean distance of the radial power spectra, in decades.
        area: how far foreground areas are apart, as shares of the frame.
        symmetry: how far the distributions of left-right asymmetry are apart (`asymmetry`).
        classifier: 2 |AUC - 1/2| of small networks that tell the sets apart on slices they were not trained on, 0 (cannot) to 1.

    Raises:
        ValueError: for fewer than 4 real subjects.
    """
    subjects = sorted(set(real.groups))
    if len(subjects) < FEWEST_SUBJECTS:
        raise ValueError(f"realism needs real slices of at least {FEWEST_SUBJECTS} subjects, got {len(subjects)}")
    rng = np.random.default_rng(seed)
    mirror = find_mirror(real.images.mean(0))
    found: dict[str, dict[str, list[float]]] = {"floor": {}, "score": {}}
    for halving in range(halvings):
        first, second = halves(real, rng)
        for kind, compared in (("floor", first), ("score", samples)):
            compared, reference = matched(compared, second, rng)
            if kind == "score" or floors is None:
                for name, value in distances(compared, reference, mirror, seed + halving).items():
                    found[kind].setdefault(name, []).append(value)
            if progress is not None:
                progress(1)
    scores, own = (
        {name: float(np.mean(values)) for name, values in found[kind].items()} for kind in ("score", "floor")
    )
    return {name: Realism(scores[name], (floors or own)[name]) for name in scores}


def distances(compared: SliceSet, reference: SliceSet, mirror: "Mirror", seed: int) -> dict[str, float]:
    """All distances between two sets of equal size; names and units as in `realism`."""
    generator = torch.Generator().manual_seed(seed)
    images, others = compared.images, reference.images
    swd = sliced_wasserstein(images, others, generator)
    likeness = [pair_similarity(part, generator) for part in (compared, reference)]
    areas = [(part > FOREGROUND).double().mean((1, 2)) for part in (images, others)]
    return {
        **{f"swd_{level}": value for level, value in enumerate(swd)},
        "variety": wasserstein_distance(*likeness),
        "histogram": intensity_distance(images, others),
        "spectrum": float((mean_spectrum(images) - mean_spectrum(others)).abs().mean()),
        "area": wasserstein_distance(*areas),
        "symmetry": wasserstein_distance(*(asymmetry(part, mirror) for part in (images, others))),
        "classifier": float(np.mean([tell_apart(compared, reference, seed + i) for i in range(CLASSIFIER_SEEDS)])),
    }


# --------------------------------------------------------------------------- sets to compare


def halves(real: SliceSet, rng: np.random.Generator) -> tuple[SliceSet, SliceSet]:
    """Two halves of the subjects, each with all its slices."""
    subjects = rng.permutation(sorted(set(real.groups)))
    chosen = np.isin(real.groups, subjects[: len(subjects) // 2])
    return real[np.flatnonzero(chosen)], real[np.flatnonzero(~chosen)]


def matched(first: SliceSet, second: SliceSet, rng: np.random.Generator) -> tuple[SliceSet, SliceSet]:
    """As many slices of each as there are in the smaller, with equally many of each slice number."""
    sets = first, second
    if first.numbers is None or second.numbers is None:
        count = min(len(first), len(second))
        chosen = [[rng.permutation(len(one))[:count]] for one in sets]
    else:
        chosen = [[], []]
        for number in np.intersect1d(first.numbers, second.numbers):
            places = [rng.permutation(np.flatnonzero(one.numbers == number)) for one in sets]
            count = min(map(len, places))
            for kept, place in zip(chosen, places):
                kept.append(place[:count])
    return tuple(one[np.sort(np.concatenate(kept))] for one, kept in zip(sets, chosen))


# --------------------------------------------------------------------------- distances


def intensity_distance(first: Tensor, second: Tensor) -> float:
    """Wasserstein-1 distance of the foreground intensities of two sets of `[N, H, W]` slices, in gray levels of 255.

    Intensities are counted in `INTENSITIES` bins, so that neither time nor memory grows with the slices.
    """
    counts = [torch.histc(part[part > FOREGROUND], INTENSITIES, 0, 1).double().numpy() for part in (first, second)]
    levels = (np.arange(INTENSITIES) + 0.5) * 255 / INTENSITIES
    return float(wasserstein_distance(levels, levels, *counts))


def sliced_wasserstein(first: Tensor, second: Tensor, generator: torch.Generator) -> list[float]:
    """Sliced Wasserstein distance of the patches of each level of a Laplacian pyramid, fine to coarse, times 1000.

    `[N, H, W]` each, N the same. Patches are standardised by the mean and the standard deviation of the second set's.
    """
    values = []
    for level, other in zip(*(_all_levels(images) for images in (first, second))):
        patches, others = random_patches(level, generator), random_patches(other, generator)
        mean, deviation = others.mean(), others.std().clamp(min=1e-6)
        directions = torch.randn(patches.shape[1], DIRECTIONS, generator=generator)
        directions /= directions.norm(dim=0)
        sets = [(part - mean) / deviation for part in (patches, others)]
        distance = 0.0
        for some in directions.split(DIRECTIONS_AT_ONCE, dim=1):  # projections are many times as large as the slices
            first_sorted, second_sorted = ((part @ some).sort(dim=0).values for part in sets)
            distance += float((first_sorted - second_sorted).abs().mean()) * some.shape[1] / DIRECTIONS
        values.append(1000 * distance)
    return values


def _all_levels(images: Tensor) -> list[Tensor]:
    """The levels of `laplacian_pyramid` of many images, whose filters would take several times the memory of all at once."""
    return [torch.cat(parts) for parts in zip(*map(laplacian_pyramid, images.split(64)))]


def laplacian_pyramid(images: Tensor) -> Iterator[Tensor]:
    """`[N, H, W]` -> details of each scale, halving the sides, and what is left of the image as the last."""
    current = images[:, None]
    while min(current.shape[2:]) >= 2 * COARSEST:
        smaller = _smoothed(current)[:, :, ::2, ::2]
        larger = F.interpolate(smaller, size=current.shape[2:], mode="bilinear", align_corners=False)
        yield (current - larger)[:, 0]
        current = smaller
    yield current[:, 0]


def _smoothed(images: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 5, 1)), weights.view(1, 1, 1, 5))


def random_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """`[N, H, W]` -> `[N * PATCHES, PATCH * PATCH]`."""
    number, height, width = images.shape
    top = torch.randint(height - PATCH + 1, (number, PATCHES, 1, 1), generator=generator)
    left = torch.randint(width - PATCH + 1, (number, PATCHES, 1, 1), generator=generator)
    side = torch.arange(PATCH)
    index = (top + side[:, None]) * width + left + side
    return images.flatten(1).gather(1, index.flatten(1)).view(number * PATCHES, -1)


def pair_similarity(slices: SliceSet, generator: torch.Generator) -> Tensor:
    """MS-SSIM of pairs of slices of the same number and of different groups, `[pairs]` in 0..1."""
    numbers = np.zeros(len(slices), int) if slices.numbers is None else slices.numbers
    order = torch.randperm(len(slices), generator=generator).tolist()
    waiting: dict[int, list[int]] = {}
    pairs: list[tuple[int, int]] = []
    for index in order:
        others = waiting.setdefault(int(numbers[index]), [])
        partner = next((other for other in others if slices.groups[other] != slices.groups[index]), None)
        if partner is None:
            others.append(index)
        else:
            others.remove(partner)
            pairs.append((partner, index))
    first, second = torch.tensor(pairs[:PAIRS]).t()
    return ms_ssim(slices.images[first, None], slices.images[second, None])


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Multiscale SSIM of pairs: `[N, 1, H, W]` twice -> `[N]`; fewer scales, weights renormalised, where slices are small."""
    scales = max(1, min(len(MS_SSIM_WEIGHTS), int(math.log2(min(images.shape[2:]) / 11)) + 1))
    weights = MS_SSIM_WEIGHTS[:scales]
    betas = tuple(weight / sum(weights) for weight in weights)
    parts = [
        multiscale_structural_similarity_index_measure(
            one, other, data_range=1.0, betas=betas, reduction="none", normalize="relu"
        ).reshape(-1)
        for one, other in zip(images.split(32), others.split(32))
    ]
    return torch.cat(parts)


def mean_spectrum(images: Tensor) -> Tensor:
    """Decimal logarithm of the mean radial power spectrum: `[N, H, W]` -> `[bins]`."""
    power = sum(radial_power(part[:, None]).double().sum(0) for part in images.split(64)) / len(images)
    return power.clamp(min=1e-12).log10()


# --------------------------------------------------------------------------- symmetry


@dataclass(frozen=True)
class Mirror:
    """The line that a head is mirrored at: `dim` of `[H, W]` images that is reversed, and by how much the result is shifted:
    twice the line's distance from the middle."""

    dim: int
    shift: int

    def __call__(self, images: Tensor) -> Tensor:
        """`[..., H, W]` mirrored."""
        dim = images.dim() - 2 + self.dim
        return images.flip(dim).roll(self.shift, dim)


def find_mirror(image: Tensor) -> Mirror:
    """The mirror under which an `[H, W]` image changes least: across rows or columns, at most an eighth of them off centre."""
    candidates = [
        Mirror(dim, shift) for dim in (0, 1) for shift in range(-(image.shape[dim] // 4), image.shape[dim] // 4 + 1)
    ]
    return min(candidates, key=lambda mirror: float((mirror(image) - image).abs().mean()))


def asymmetry(images: Tensor, mirror: Mirror) -> Tensor:
    """Mean difference of each slice from its mirror image as a share of its mean intensity: `[N, H, W]` -> `[N]`."""
    return (mirror(images) - images).abs().mean((1, 2)) / images.mean((1, 2)).clamp(min=1e-6)


# --------------------------------------------------------------------------- classifier two-sample test


def tell_apart(first: SliceSet, second: SliceSet, seed: int) -> float:
    """2 |AUC - 1/2|, `two_sample_auc`: 0 where the sets cannot be told apart, 1 where they always are."""
    return 2 * abs(two_sample_auc(first, second, seed) - 0.5)


def two_sample_auc(first: SliceSet, second: SliceSet, seed: int) -> float:
    """AUC of a small network trained on half of both sets (by group) and scored on the other halves; 0.5 is chance.

    Lopez-Paz and Oquab 2017, arXiv 1610.06545.
    """
    rng = np.random.default_rng(seed)
    parts = [halves(one, rng) for one in (first, second)]
    training, testing = zip(*parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _train_classifier(torch.cat([part.images for part in training]), _labels(training))
    network.eval()
    with torch.inference_mode():
        scores = torch.cat([network(part[:, None]) for one in testing for part in one.images.split(64)])[:, 0]
    # ranks, not logits: torchmetrics would squash large ones into ties
    ranks = scores.unique(return_inverse=True)[1] / len(scores)
    return float(binary_auroc(ranks, _labels(testing).long()))


def _labels(sets: Sequence[SliceSet]) -> Tensor:
    return torch.cat([torch.full((len(part),), float(index)) for index, part in enumerate(sets)])


def _train_classifier(images: Tensor, labels: Tensor) -> nn.Module:
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)] if all(side % 2 == 0 for side in images.shape[1:]) else []
    channels = 4 if layers else 1
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
        channels = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(CLASSIFIER_EPOCHS):
        for batch in torch.randperm(len(images)).split(CLASSIFIER_BATCH):
            loss = F.binary_cross_entropy_with_logits(network(images[batch, None])[:, 0], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network
