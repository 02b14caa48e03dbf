"""The built-in cohort: a seeded population of synthetic brain slices that needs no download.

Every subject is the MNI152 template (its T1 image and its grey- and white-matter maps, as the nilearn package carries them)
seen through a random affine map, smooth random deformations at several scales and ventricles of its own size, with its own
tissue contrast, gain field and noise. The slices are as OASIS-1's: axial, the head on its side (but its front to the
left and its right side above), slice 0 the lowest, zero padding to a square. None of it is a scan of a person, and none of it
is OASIS.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import cached_array, digest
from common.runtime import ProgressFactory, silent
from dataset import Dataset, Split
from sources.images import DECODING

VERSION = 1  # raise it when the slices change
SUBJECTS = {"train": 12, "validate": 4, "test": 4}
IMAGE_SIZE = 112
SLICES = 32
FIELD_OF_VIEW = 256.0  # mm a side, OASIS-1's
LOWEST, HIGHEST = -18.0, 44.0  # mm above the anterior commissure, of the first and the last slice
CENTRE = (0.0, -18.0)  # mm, of the slice plane: left-right and back-front
MASK_LEVEL = 0.12  # T1 value under which a voxel is outside the head
DEFORMATIONS = ((4, 2.0), (8, 1.2), (16, 0.6))  # nodes a side over the field of view, mm
VENTRICLES = ((-16.0, -4.0, 14.0), (16.0, -4.0, 14.0))  # mm, left and right


def load_cohort(
    image_size: int | None = None,
    cache: str | Path = ".cache",
    progress: ProgressFactory | None = None,
    subjects: dict[str, int] | None = None,
) -> Dataset:
    """The built-in synthetic cohort made once and cached. The same slices on every call.

    Args:
        image_size: pixels a side, over a field of view of 256 mm; `IMAGE_SIZE` when None.
        cache: folder for the finished arrays.
        progress: makes the bar shown while drawing, such as `common.runtime.Progress`.
        subjects: how many of each split; `SUBJECTS` when None.
    """
    size, subjects = image_size or IMAGE_SIZE, subjects or SUBJECTS
    splits, first = {}, 0
    for name, count in subjects.items():
        seeds = range(first, first + count)
        first += count

        def draw(make: Callable[[tuple[int, ...]], np.ndarray], name: str = name, seeds: range = seeds) -> None:
            images = make((len(seeds) * SLICES, size, size))
            with (progress or silent)(len(seeds), f"drawing the built-in cohort, {name}", "subject") as bar:
                for subject, start in zip(seeds, range(0, len(images), SLICES)):
                    images[start : start + SLICES] = draw_subject(subject, size)
                    bar.update(1)

        images = cached_array(Path(cache) / f"cohort-{name}-{size}.npy", digest(DECODING, VERSION, size, seeds), draw)
        names = [f"case_{seed:03d}_slice_{number}.nii.png" for seed in seeds for number in range(SLICES)]
        numbers = np.tile(np.arange(SLICES), count)
        splits[name] = Split(
            images,
            [f"{seed:03d}" for seed in seeds for _ in range(SLICES)],
            names,
            numbers,
            (numbers / (SLICES - 1)).astype(np.float32),
        )
    return Dataset("built-in synthetic cohort", splits, SLICES, kind="cohort")


def draw_subject(seed: int, size: int) -> np.ndarray:
    """The slices of one subject, `[SLICES, size, size]` uint8; the same for the same seed."""
    rng = np.random.default_rng([seed, VERSION])
    millimetres = _slice_grid(size)  # [S, size, size, 3] template coordinates (right, front, up)
    displaced = (
        _affine(millimetres, rng) + _deformation(rng, millimetres.shape[:3]) + _ventricle_growth(millimetres, rng)
    )
    t1, grey, white = _sample_template(displaced)
    head = t1 > MASK_LEVEL
    image = (
        t1
        + rng.uniform(0.5, 0.8) * grey.clamp(min=0) ** 1.5 * 0.6
        + rng.uniform(1.0, 1.3) * white.clamp(min=0) ** 1.2 * 0.6
    )
    image = image * _gain(rng, millimetres.shape[:3])
    image = image / np.quantile(image[head].numpy(), 0.999)
    image = image + torch.from_numpy(rng.normal(0, rng.uniform(0.008, 0.016), image.shape)).float()
    return (image.clamp(0.01, 1) * head * 255).round().to(torch.uint8).numpy()


@lru_cache(1)
def _template() -> tuple[Tensor, np.ndarray]:
    """T1, grey and white matter `[1, 3, X, Y, Z]` in 0..1, and the map from mm to voxels."""
    from nilearn import datasets  # slow to import, and only this function needs it

    volumes = [
        load(resolution=1)
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    ]
    data = np.stack([np.asarray(volume.get_fdata(), np.float32) for volume in volumes])
    return torch.from_numpy(data)[None], np.linalg.inv(volumes[0].affine)


def _slice_grid(size: int) -> Tensor:
    """Where each pixel lies in the template: rows run right to left, columns front to back, slices upwards."""
    offsets = (torch.arange(size) + 0.5) * FIELD_OF_VIEW / size - FIELD_OF_VIEW / 2
    up, right, front = torch.meshgrid(
        torch.linspace(LOWEST, HIGHEST, SLICES), CENTRE[0] - offsets, CENTRE[1] - offsets, indexing="ij"
    )
    return torch.stack([right, front, up], -1)


def _affine(points: Tensor, rng: np.random.Generator) -> Tensor:
    """Random scale (3 %), shear (1 %), rotation (about 1 degree) and shift (about 1 mm): what is left after registration."""
    matrix = np.eye(3) + rng.normal(0, 0.01, (3, 3)) + np.diag(rng.normal(0, 0.03, 3))
    angle = rng.normal(0, 0.02)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return points @ torch.from_numpy(matrix @ rotation).float() + torch.from_numpy(rng.normal(0, 1, 3)).float()


def _deformation(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Smooth random displacement at several scales, `[*shape, 3]` in mm."""
    return sum(_smooth_noise(rng, nodes, shape) * millimetres for nodes, millimetres in DEFORMATIONS)


def _smooth_noise(rng: np.random.Generator, nodes: int, shape: tuple[int, int, int], channels: int = 3) -> Tensor:
    """Unit Gaussian noise on a coarse grid over the field of view, blended smoothly to `[*shape, channels]`."""
    depth = max(4, round(nodes * (HIGHEST - LOWEST) / FIELD_OF_VIEW) + 3)
    noise = torch.from_numpy(rng.normal(0, 1, (channels, depth, nodes + 3, nodes + 3))).float()
    for length in shape:  # each turn blends the first spatial axis and moves it to the end
        noise = torch.tensordot(noise, _spline_weights(noise.shape[1], length), dims=([1], [0]))
    return noise.permute(1, 2, 3, 0)


def _spline_weights(nodes: int, length: int) -> Tensor:
    """Cubic B-spline weights `[nodes, length]` of each node at `length` even places; smooth to the second derivative."""
    places = torch.linspace(1, nodes - 2, length)
    distance = (torch.arange(nodes)[:, None] - places).abs()
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    return weights / weights.square().sum(0).sqrt()  # independent nodes blend to unit variance


def _ventricle_growth(points: Tensor, rng: np.random.Generator) -> Tensor:
    """Displacement that makes the lateral ventricles larger or smaller by a few mm, as ages differ, `[..., 3]`."""
    amount = rng.normal(-0.5, 1.5)
    growth = torch.zeros_like(points)
    for centre in VENTRICLES:
        away = points - torch.tensor(centre)
        scaled = away / torch.tensor([12.0, 28.0, 18.0])
        growth -= (
            amount
            * away
            / away.norm(dim=-1, keepdim=True).clamp(min=1)
            * torch.exp(-scaled.square().sum(-1, keepdim=True))
        )
    return growth


def _gain(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Slowly varying coil sensitivity, a few per cent, `[*shape]`."""
    return torch.exp(0.04 * _smooth_noise(rng, 2, shape, channels=1)[..., 0])


def _sample_template(points: Tensor) -> Tensor:
    """The template's maps at `[S, H, W, 3]` mm, trilinear, zero outside: `[3, S, H, W]`."""
    volume, to_voxels = _template()
    voxels = points @ torch.from_numpy(to_voxels[:3, :3].T).float() + torch.from_numpy(to_voxels[:3, 3]).float()
    last = torch.tensor(volume.shape[2:]) - 1
    grid = (voxels / last * 2 - 1).flip(-1)  # grid_sample wants the last axis first
    return F.grid_sample(volume, grid[None], align_corners=True)[0]
