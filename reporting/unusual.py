"""What a person looks at of scores of unusual scans: maps as pictures and as volumes, the page of the worst, the CSV tables."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from common.files import replacing, write_text
from inference.geometry import Geometry
from reporting.figures import rows_of_slices


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of the same columns as CSV: numbers with six digits, nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


def write_map_pictures(maps: np.ndarray, names: Sequence[str], folder: Path, white: float) -> None:
    """Maps `[S, H, W]` of slices as 8-bit PNG files of these names, 0 black and `white` white."""
    for values, name in zip(maps, names):
        pixels = (255 * (np.nan_to_num(values) / white).clip(0, 1)).round().astype(np.uint8)
        with replacing(folder / f"{name}.png") as temporary:
            Image.fromarray(pixels).save(temporary)


def write_map_volume(maps: np.ndarray, numbers: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Maps `[S, H, W]` of the slices of a volume of these numbers, rising, as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(geometry.nifti(np.nan_to_num(maps).astype(np.float32), numbers), path)


def worst_page(rows: Mapping[str, np.ndarray], path: Path, title: str, labels: Sequence[str]) -> None:
    """The most unusual slices, and below each its maps: by name, `[N, H, W]` each, of which 0 is black and 1 white."""
    shown = [(name, np.nan_to_num(each).clip(0, 1)) for name, each in rows.items()]
    rows_of_slices(shown, path, title, labels)
