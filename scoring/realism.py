"""How real a set of slices is: distances between two sets, each beside what other real slices are apart.

    scores = realism(samples, real, seed=0)         # {"swd_0": Realism(score, floor), ...}

A distance of samples says nothing alone: two sets of real subjects are apart too, by chance and because people differ. So every
score comes with its floor: how far *other real subjects* would be, as many as the samples are. It is taken between one half of
the held-out subjects and the other. Halves have the chance of who is in them on both sides, and hundreds of samples that are
drawn one by one have next to none, so the distance of halves is scaled by what chance leaves (`sets.chance_apart`): samples
that are drawn from the population of the real slices lie at 1 times the floor on average, not at 0.7 (`tests/test_realism.py`
simulates it).

Slices are compared within the content frame, as sets of equal size with equally many slices of each position. A score that the
slices do not allow is left out, and a note says why.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from scoring.classifier import SMALLEST_SIDE, tell_apart
from scoring.filters import BINOMIAL, filtered
from scoring.metrics import FOREGROUND, radial_power
from scoring.sets import GroupedSet, SliceSet, Untaken, chance_apart, halves, matched
from scoring.texture import NAMES, texture_apart, texture_summary, texture_values

PATCH, PATCHES, DIRECTIONS = 7, 64, 256  # side of a patch, patches a slice and level, projections of all patches
DIRECTIONS_AT_ONCE = 16  # whose projections are in memory together
COARSEST = 16  # pixels of the shorter side at the last level of the pyramid, at least
INTENSITIES = 2**16  # bins of the histograms that are compared
PAIRS, FEWEST_PAIRS = 128, 4  # pairs of slices whose likeness says how varied a set is
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, fine to coarse
FEWEST_SUBJECTS = 4  # that can be halved
TEXTURE_HALVINGS = 64  # of the subjects, for the figures of where fine detail lies
CLASSIFIED = 2  # halvings for classifiers, at most: every slice is tested in each, and most of the time goes into them


@dataclass(frozen=True)
class Realism:
    """A distance of samples from real slices, and how far other real subjects would be: 0 or more, less is better."""

    score: float
    floor: float


def realism(
    samples: SliceSet,
    real: SliceSet,
    seed: int = 0,
    halvings: int = 4,
    progress: Callable[[int], None] | None = None,
    floors: Mapping[str, float] | None = None,
    notes: list[str] | None = None,
) -> dict[str, Realism]:
    """Every distance of the samples from real slices, beside its floor.

    Args:
        samples: generated slices.
        real: held-out real slices of at least 4 subjects.
        seed: of halves, patches, projections, pairs and classifiers.
        halvings: of the real subjects, that means are over; at most `CLASSIFIED` for classifiers, `TEXTURE_HALVINGS` for texture.
        progress: called after each comparison with how many of `2 * halvings` it stands for.
        floors: from an earlier call with the same real slices and seed and with samples in groups of the same sizes,
            which are then not computed again.
        notes: gets a sentence on each score that is left out because these slices do not allow it.

    Returns:
        By name, all without unit unless said:
        swd_0, swd_1, ...: sliced Wasserstein distance of Laplacian pyramid patches, fine to coarse, times 1000; patches are
        standardised by the real ones (Karras et al. 2018, arXiv 1710.10196, section 5).
        variety: how far the distributions of the MS-SSIM of pairs within a set are apart (0..1): whether all slices look alike.
        histogram: how far foreground intensities are apart, in gray levels of 255.
        spectrum: mean distance of the radial power spectra, in decades.
        area: how far foreground areas are apart, as shares of the frame.
        symmetry: how far the distributions of left-right asymmetry are apart (`asymmetry`).
        texture_kurtosis, edge_to_smooth, tissue_noise: |ln of the ratio| of the sets' figures of where fine detail lies,
        `texture`. classifier, patch_classifier: 2 |AUC - 1/2| of small networks that tell the sets apart on subjects that they
        have not seen, by a whole slice and by a small patch of it, 0 (cannot) to 1, `classifier.two_sample_auc`.

    Raises:
        ValueError: for fewer than 4 real subjects.
    """
    subjects = sorted(set(real.groups))
    if len(subjects) < FEWEST_SUBJECTS:
        raise ValueError(f"realism needs real slices of at least {FEWEST_SUBJECTS} subjects, got {len(subjects)}")
    samples, real = (
        one if one.texture is not None else replace(one, texture=texture_values(one.images)) for one in (samples, real)
    )
    untaken: dict[str, str] = {}
    kinds = ("score",) if floors is not None else ("score", "floor")
    try:
        found = _distances_over_halves(samples, real, seed, halvings, kinds, progress, untaken)
        texture = _texture_over_halves(samples, real, seed, kinds, untaken)
        found = {kind: found[kind] | texture[kind] for kind in kinds}
    except Untaken as reason:  # no two slices to compare
        found, untaken["realism"] = {}, str(reason)
    scores, own = (
        {name: float(np.mean(each)) for name, each in found.get(kind, {}).items()} for kind in ("score", "floor")
    )
    floors = own if floors is None else floors
    values = {name: Realism(scores[name], floors[name]) for name in scores if name in floors}
    if notes is not None:
        missing = [name for name in untaken if not any(f"{score}_".startswith(f"{name}_") for score in values)]
        notes += [f"{name} is not scored: {untaken[name]}" for name in missing]
    return values


def over_halves(
    samples: GroupedSet,
    real: GroupedSet,
    seed: int,
    halvings: int,
    compare: Callable[[GroupedSet, GroupedSet, int], dict[str, float]],
    kinds: Sequence[str],
    match: Callable[[GroupedSet, GroupedSet, np.random.Generator], tuple[GroupedSet, GroupedSet]] = matched,
) -> dict[str, dict[str, list[float]]]:
    """What `compare` says of each halving, by name: under "score" of the samples and one half of the real subjects, and under
    "floor" of the other half and that half, scaled as the module says. kinds: which of the two. match: makes two sets of them
    that can be compared."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for halving in range(halvings):
        first, second = halves(real, rng)
        pairs = {"score": match(samples, second, rng), "floor": match(first, second, rng)}
        apart = {kind: chance_apart(*pair) for kind, pair in pairs.items()}
        for kind in kinds:
            for name, value in compare(*pairs[kind], halving).items():
                found[kind].setdefault(name, []).append(value * apart["score"] / apart[kind])
    return found


def _distances_over_halves(
    samples: SliceSet,
    real: SliceSet,
    seed: int,
    halvings: int,
    kinds: Sequence[str],
    progress: Callable[[int], None] | None,
    untaken: dict[str, str],
) -> dict[str, dict[str, list[float]]]:
    """As `over_halves`, of `distances`."""
    mirror = find_mirror(real.images.mean(0))

    def compare(first: SliceSet, second: SliceSet, halving: int) -> dict[str, float]:
        found = distances(first, second, mirror, seed + halving, untaken, halving < CLASSIFIED)
        if progress is not None:
            progress(2 // len(kinds))
        return found

    return over_halves(samples, real, seed, halvings, compare, kinds)


def _texture_over_halves(
    samples: SliceSet, real: SliceSet, seed: int, kinds: Sequence[str], untaken: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """As `over_halves`, of where fine detail lies, over many more halvings: each slice has been measured already, and the
    distance of two figures is near 0 by chance too often for a mean of few."""

    def compare(first: SliceSet, second: SliceSet, halving: int) -> dict[str, float]:
        found = texture_apart(*(texture_summary(one.texture) for one in (first, second)))
        untaken.update({name: "too little tissue in the slices" for name in NAMES if name not in found})
        return found

    bare = (replace(one, images=one.images[:, :0, :0]) for one in (samples, real))
    return over_halves(*bare, seed, TEXTURE_HALVINGS, compare, kinds)


def distances(
    compared: SliceSet,
    reference: SliceSet,
    mirror: "Mirror",
    seed: int,
    untaken: dict[str, str],
    classified: bool = True,
) -> dict[str, float]:
    """The distances between two sets of equal size that they allow, all but texture's; names and units as in `realism`.

    untaken: gets the reasons why others are not there, by name. classified: whether classifiers are trained.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = images, others = compared.images, reference.images

    ways: dict[str, Callable[[], float | list[float] | dict[str, float]]] = {
        "swd": lambda: sliced_wasserstein(images, others, generator),
        "variety": lambda: wasserstein_distance(*(pair_similarity(one, generator) for one in (compared, reference))),
        "histogram": lambda: intensity_distance(images, others),
        "spectrum": lambda: float((mean_spectrum(images) - mean_spectrum(others)).abs().mean()),
        "area": lambda: wasserstein_distance(*((one > FOREGROUND).double().mean((1, 2)) for one in sets)),
        "symmetry": lambda: wasserstein_distance(*(asymmetry(one, mirror) for one in sets)),
    }
    if classified:
        ways["classifier"] = lambda: tell_apart(compared, reference, seed)
    found: dict[str, float] = {}
    for name, way in ways.items():
        try:
            value = way()
        except Untaken as reason:
            untaken[name] = str(reason)
            continue
        if isinstance(value, list):
            value = {f"{name}_{level}": each for level, each in enumerate(value)}
        found |= value if isinstance(value, dict) else {name: float(value)}
    return found


# --------------------------------------------------------------------------- distances


def _check_size(images: Tensor) -> None:
    if min(images.shape[1:]) < SMALLEST_SIDE:
        raise Untaken(f"slices of {images.shape[1]}x{images.shape[2]} pixels, fewer than {SMALLEST_SIDE} a side")


def intensity_distance(first: Tensor, second: Tensor) -> float:
    """Wasserstein-1 distance of the foreground intensities of two sets of `[N, H, W]` slices, in gray levels of 255.

    Intensities are counted in `INTENSITIES` bins, so that neither time nor memory grows with the slices.

    Raises:
        Untaken: where one of the sets is all background.
    """
    counts = [torch.histc(part[part > FOREGROUND], INTENSITIES, 0, 1).double().numpy() for part in (first, second)]
    if not all(each.any() for each in counts):
        raise Untaken("one of the sets shows nothing but background")
    levels = (np.arange(INTENSITIES) + 0.5) * 255 / INTENSITIES
    return float(wasserstein_distance(levels, levels, *counts))


def sliced_wasserstein(first: Tensor, second: Tensor, generator: torch.Generator) -> list[float]:
    """Sliced Wasserstein distance of the patches of each level of a Laplacian pyramid, fine to coarse, times 1000.

    `[N, H, W]` each, N the same. Patches are standardised by the mean and the standard deviation of the second set's.

    Raises:
        Untaken: for slices of fewer than `SMALLEST_SIDE` pixels a side.
    """
    _check_size(first)
    values = []
    for level, other in zip(*(_all_levels(images) for images in (first, second))):
        patches, others = random_patches(level, generator), random_patches(other, generator)
        mean, deviation = others.mean(), others.std().clamp(min=1e-6)
        directions = torch.randn(patches.shape[1], DIRECTIONS, generator=generator)
        directions /= directions.norm(dim=0)
        sets = [(part - mean) / deviation for part in (patches, others)]
        distance = 0.0
        for some in directions.split(DIRECTIONS_AT_ONCE, dim=1):  # projections are many times as large as the slices
            ones, twos = (np.sort((some.t() @ part.t()).numpy(), axis=1) for part in sets)  # faster than torch's
            distance += float(np.abs(ones - twos).mean()) * some.shape[1] / DIRECTIONS
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
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    return filtered(filtered(padded, BINOMIAL[:, None]), BINOMIAL[None])


def random_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """`[N, H, W]` -> `[N * PATCHES, PATCH * PATCH]`."""
    number, height, width = images.shape
    top = torch.randint(height - PATCH + 1, (number, PATCHES, 1, 1), generator=generator)
    left = torch.randint(width - PATCH + 1, (number, PATCHES, 1, 1), generator=generator)
    side = torch.arange(PATCH)
    index = (top + side[:, None]) * width + left + side
    return images.flatten(1).gather(1, index.flatten(1)).view(number * PATCHES, -1)


def pair_similarity(slices: SliceSet, generator: torch.Generator) -> Tensor:
    """MS-SSIM of pairs of slices of the same number and of different groups, `[pairs]` in 0..1.

    Raises:
        Untaken: for fewer than `FEWEST_PAIRS` of them, and for slices of fewer than `SMALLEST_SIDE` pixels a side.
    """
    _check_size(slices.images)
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
    if len(pairs) < FEWEST_PAIRS:
        raise Untaken(
            f"{len(pairs)} pairs of slices of the same number and different subjects, and it needs {FEWEST_PAIRS}"
        )
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
