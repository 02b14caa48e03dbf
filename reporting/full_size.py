"""Pictures at full size: every pixel of a slice is one of the picture, or a square of them; a plot would resample it.

Slices are `[H, W]` floats in 0..1.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.files import replacing

GAP, TEXT = 8, 16  # pixels between slices, and of the letters


def shuffled(real: np.ndarray, drawn: np.ndarray, path: Path, seed: int = 0, columns: int = 5) -> dict[str, list[int]]:
    """Real and drawn slices in an order of chance, numbered from 1: for people to say which is which.

    Args:
        real, drawn: `[N, H, W]` and `[M, H, W]`.
        path: of the PNG. seed: of the order.

    Returns:
        The numbers that "real" and "drawn" slices have in the picture.
    """
    slices, order = np.concatenate([real, drawn]), np.random.default_rng(seed).permutation(len(real) + len(drawn))
    rows = [slices[order[start : start + columns]] for start in range(0, len(order), columns)]
    _lay_out(rows, path, [str(number + 1) for number in range(len(order))])
    numbers = {"real": np.flatnonzero(order < len(real)), "drawn": np.flatnonzero(order >= len(real))}
    return {name: (which + 1).tolist() for name, which in numbers.items()}


def beside(named: dict[str, np.ndarray], path: Path, scale: int = 2) -> None:
    """Slices beside each other under their names, each pixel a square of `scale` pixels."""
    enlarged = [np.kron(image, np.ones((scale, scale))) for image in named.values()]
    _lay_out([np.stack(enlarged)], path, list(named))


def _lay_out(rows: Sequence[np.ndarray], path: Path, names: Sequence[str]) -> None:
    """Rows of slices `[N, H, W]`, each slice below its name, on black."""
    height, width = rows[0].shape[1:]
    down, across = height + TEXT + 2 * GAP, width + GAP
    sheet = Image.new("L", (GAP + across * max(map(len, rows)), down * len(rows)))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    left = iter(names)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            place = GAP + column * across, row * down
            pen.text((place[0], place[1] + GAP // 2), next(left), 255, font)
            pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (place[0], place[1] + TEXT + GAP))
    with replacing(path) as temporary:
        sheet.save(temporary)
