"""Can a network tell two sets of slices apart on subjects that it has not seen? A classifier two-sample test.

    auc = two_sample_auc(reconstructions, slices, seed=0)
    auc.slices      # 0.5 cannot, 1 always
    auc.patches     # from patches of 16x16 pixels alone: does not end at 1 where hardly anything is wrong everywhere

Lopez-Paz and Oquab 2017, arXiv 1610.06545, with the subjects kept whole *over both sets*: a slice and its reconstruction are of
one person, and a network that has learned the person from the one is wrong about the other for knowing the person.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from dataset import spread_over
from scoring.filters import BINOMIAL, filtered
from scoring.metrics import FOREGROUND
from scoring.sets import SliceSet, Untaken

FOLDS = 3  # parts of the groups that are tested in turn, by a network each
EPOCHS, PATIENCE, BATCH, RATE = 12, 6, 16, 1e-3
WIDTHS = (32, 64, 64)  # channels of the convolutions, each of which halves the resolution
CROP = 96  # pixels a side of what is trained on, at full resolution
MOST = 560  # slices of each set, spread over it: more cost time and find no more
FINE_GAIN = 10.0  # detail is a tenth as strong as anatomy, and would be learned last
SMALLEST_SIDE = 22  # pixels
PATCH, PATCHES = 16, 8  # pixels a side of the patches that are told apart too, and how many of each slice
HEAD = 0.75  # share of a patch's pixels that are brighter than the background, at least


class Auc(NamedTuple):
    """How often the answer to a slice of the second set is above that to one of the first, 0..1; 0.5 is chance.

    slices: of whole slices. patches: of patches from within the head. What is a little wrong all over a slice is always found
    from the whole of it; from a patch it is found the oftener, the more wrong it is. NaN where no slice holds such a patch.
    """

    slices: float
    patches: float


def tell_apart(first: SliceSet, second: SliceSet, seed: int) -> dict[str, float]:
    """2 |AUC - 1/2| of slices and of patches (`two_sample_auc`): 0 where the sets cannot be told apart, 1 where always."""
    auc = two_sample_auc(first, second, seed)
    apart = {"classifier": 2 * abs(auc.slices - 0.5), "patch_classifier": 2 * abs(auc.patches - 0.5)}
    return {name: value for name, value in apart.items() if np.isfinite(value)}


def two_sample_auc(first: SliceSet, second: SliceSet, seed: int) -> Auc:
    """Mean AUC of `FOLDS` small networks that tell the sets apart, each on the groups that it has not seen.

    Every slice is tested once, and `PATCHES` patches of it, at random places, by the same network. The mean is over the folds'
    own AUCs and not one AUC of all answers, because answers of different networks are on different scales. Each network is the
    one of its epoch with the least loss on groups that are neither trained on nor tested. Slices are compared as 8-bit grey
    levels, as they are written.

    Raises:
        Untaken: for fewer than `FOLDS` groups in either set, and for slices of fewer than `SMALLEST_SIDE` pixels a side.
    """
    first, second = (one[spread_over(len(one), MOST)] for one in (first, second))
    if min(first.images.shape[1:]) < SMALLEST_SIDE:
        raise Untaken(
            f"slices of {first.images.shape[1]}x{first.images.shape[2]} pixels, fewer than {SMALLEST_SIDE} a side"
        )
    rng = np.random.default_rng(seed)
    images = (torch.cat([first.images, second.images]) * 255).round()[:, None] / 255
    labels = torch.cat([torch.zeros(len(first)), torch.ones(len(second))])
    symmetric = first.symmetric and second.symmetric
    aucs: list[Auc] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for training, stopping, testing in folds(first.groups, second.groups, rng):
            network = _train(images, labels, training, stopping, symmetric)
            whole = area_under_curve(_answers(network, images[testing]), labels[testing])
            patches, of_slice = patches_within(images[testing], np.random.default_rng(seed))
            several = labels[testing][of_slice]
            both = len(several.unique()) == 2
            aucs.append(Auc(whole, area_under_curve(_answers(network, patches), several) if both else float("nan")))
    return Auc(*(float(np.mean(each)) for each in zip(*aucs)))


def patches_within(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`[N, 1, H, W]` -> `PATCHES` patches of each at random places within the head, `[P, 1, PATCH, PATCH]`, and the index of the
    slice of each, `[P]`; fewer of slices that hold fewer places, none of those without."""
    ones = torch.ones(PATCH)
    inside = filtered(filtered((images > FOREGROUND).float(), ones[:, None]), ones[None])[:, 0]
    places = [np.argwhere(each.numpy()) for each in inside >= HEAD * PATCH**2]
    chosen = [(i, *place) for i, each in enumerate(places) for place in each[rng.permutation(len(each))[:PATCHES]]]
    parts = [images[i, :, top : top + PATCH, left : left + PATCH] for i, top, left in chosen]
    of_slice = torch.tensor([i for i, *_ in chosen], dtype=torch.long)
    return torch.stack(parts) if parts else images[:0, :, :PATCH, :PATCH], of_slice


def folds(first: Sequence[str], second: Sequence[str], rng: np.random.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Indices of the slices of both sets, one after the other, to train on, to stop by and to test on, `FOLDS` times.

    A group is in one part, with its slices of both sets. Groups of only one set, as samples are, are dealt out separately from
    those of the other and from those of both, so that every part has slices of both sets.

    Raises:
        Untaken: where there are too few groups for that.
    """
    sets = set(first), set(second)
    kinds = sets[0] & sets[1], sets[0] - sets[1], sets[1] - sets[0]
    if len(kinds[0]) < FOLDS and min(len(kinds[1]), len(kinds[2])) < FOLDS:
        raise Untaken(
            f"{len(sets[0])} and {len(sets[1])} subjects or samples, and it needs {FOLDS} of each, or of both"
        )
    part_of: dict[str, tuple[int, bool]] = {}  # its third, and whether it stops where that third is not tested
    for kind in kinds:
        order = rng.permutation(sorted(kind))
        for third in range(FOLDS):
            dealt = order[third::FOLDS]
            part_of |= {group: (third, 2 * place < len(dealt)) for place, group in enumerate(dealt)}
    thirds, early = (np.array(values) for values in zip(*(part_of[group] for group in (*first, *second))))
    parts = []
    for fold in range(FOLDS):
        testing = thirds == fold
        stopping = (thirds == (fold + 1) % FOLDS) & early
        parts.append(tuple(torch.from_numpy(np.flatnonzero(one)) for one in (~testing & ~stopping, stopping, testing)))
    return parts


def area_under_curve(answers: Tensor, labels: Tensor) -> float:
    """How often the answer to a slice of label 1 is above that to one of label 0, ties for half: `[N]` each."""
    ones, zeros = (answers[labels == label].double().numpy() for label in (1, 0))
    return float(mannwhitneyu(ones, zeros).statistic) / (len(ones) * len(zeros))


class Classifier(nn.Module):
    """A slice, and its finest detail enlarged `FINE_GAIN` times, through convolutions to one logit."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 2 * 4  # of 2x2 pixels
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(0.1)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 1, H, W]` of even sides in 0..1 -> `[B]`."""
        smooth = filtered(F.pad(images, (2, 2, 2, 2), mode="replicate"), BINOMIAL[:, None] * BINOMIAL)
        both = torch.cat([images, FINE_GAIN * (images - smooth)], 1)
        return self.layers(F.pixel_unshuffle(both, 2).contiguous(memory_format=torch.channels_last))[:, 0]


def _train(images: Tensor, labels: Tensor, training: Tensor, stopping: Tensor, symmetric: bool) -> Classifier:
    """A network trained on some of the slices, of the epoch that is best on others."""
    network = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01, fused=True)
    steps = EPOCHS * -(-len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    least, best, waited = float("inf"), {}, 0
    for _ in range(EPOCHS):
        network.train()
        for batch in training[torch.randperm(len(training))].split(BATCH):
            loss = F.binary_cross_entropy_with_logits(network(_crops(images[batch], symmetric)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        answers = _answers(network, images[stopping])
        loss, waited = float(F.binary_cross_entropy_with_logits(answers, labels[stopping])), waited + 1
        if loss < least:
            least, waited = loss, 0
            best = {name: value.clone() for name, value in network.state_dict().items()}
        if waited == PATIENCE:
            break
    network.load_state_dict(best)
    return network


def _crops(images: Tensor, symmetric: bool) -> Tensor:
    """A random part of some `[B, 1, H, W]` slices, at full resolution, half of them mirrored where that is allowed."""
    sides = [min(CROP, side // 2 * 2) for side in images.shape[2:]]
    top, left = (int(torch.randint(whole - side + 1, ())) for whole, side in zip(images.shape[2:], sides))
    parts = images[:, :, top : top + sides[0], left : left + sides[1]]
    if not symmetric:
        return parts
    return torch.where(torch.rand(len(parts), 1, 1, 1) < 0.5, parts.flip(2), parts)


@torch.inference_mode()
def _answers(network: Classifier, images: Tensor) -> Tensor:
    """Logits of whole `[N, 1, H, W]` slices, `[N]`."""
    network.eval()
    height, width = (side // 2 * 2 for side in images.shape[2:])
    return torch.cat([network(part) for part in images[:, :, :height, :width].split(BATCH)])
