"""Heads of nobody, for tests of what makes slices a head."""

import numpy as np
from scipy import ndimage

SLICES, SIZE = 12, (32, 40)


def person(seed: int) -> np.ndarray:
    """An ellipsoid of smooth texture with a dark core, `[SLICES, *SIZE]`, nearly symmetric across rows."""
    rng = np.random.default_rng(seed)
    z, rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in (SLICES, *SIZE)), indexing="ij")
    texture = ndimage.gaussian_filter(rng.normal(size=z.shape), 1.5)
    texture = texture / texture.std() + 0.5 * (texture + texture[:, ::-1]) / texture.std()
    height, width, core = rng.uniform((0.72, 0.8, 0.3), (0.82, 0.9, 0.4))
    depth = (rows / height) ** 2 + (columns / width) ** 2 + 0.3 * z**2
    dark = (rows / core) ** 2 + (columns / core) ** 2 + 1.5 * (z - 0.1) ** 2 < 1
    return np.where(depth < 1, np.where(dark, 0.08, 0.5 + 0.06 * texture), 0).clip(0, 1)
