"""Drawn heads as files: volumes, and what a person sees of them: sheets, cuts, pages to scroll through.

write_heads(run, heads, 0, Geometry.of(run), Path("samples/volumes"), "seed 0")     # codes [N, S, h, w]
"""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes

from common.files import write_text
from common.runtime import Progress
from inference.completion import Given
from inference.geometry import Geometry
from inference.heads import decode_head
from models.codes import CodeMaps
from reporting.figures import CELL, REFERENCE, VALIDATION, headline, save_figure
from reporting.heads import contact_sheet, three_views
from utils import Run

OUTSIDE = re.compile(r"<link\b[^>]*\bhref=[\"']?https?:[^>]*>")  # nilearn's pages fetch an icon
WIDTH = 900  # pixels of the three cuts beside each other
COLUMNS = 8  # of slices beside each other
IN_A_PICTURE = 16  # heads whose cuts are shown beside each other, at most
CUTS = {  # what the slices of a volume are, and what cuts across their columns and rows are
    "axial": ("axial", "coronal", "sagittal"),
    "coronal": ("coronal", "axial", "sagittal"),
    "sagittal": ("sagittal", "axial", "coronal"),
}


def write_heads(run: Run, heads: CodeMaps, seed: int, geometry: Geometry, folder: Path, how: str) -> None:
    """Decode heads and write of each the volume, a sheet of its slices and a page (`head_0000.nii.gz`, `.png`, `.html`); and
    three cuts through the middle of all of them (`heads.png`).

    Args:
        heads: code maps, `[N, S, h, w]` of each level. seed: of the texture. geometry: where they lie. how: they were drawn, for
            the titles.
    """
    shown: list[np.ndarray] = []
    numbers, trained = run.slice_numbers, f"{how} (trained on {run.config['data']['title']})"
    with Progress(len(heads), "decoding and writing", "head") as progress:
        for index in range(len(heads)):
            images, place = decode_head(run, heads[index], seed, index), folder / f"head_{index:04d}"
            title, content = f"Head {index}, {trained}", run.frame.crop(images).numpy()
            write_volume(images.numpy(), numbers, geometry, place, f"Head {index}")
            contact_sheet(content, place.with_suffix(".png"), title, numbers)
            shown += [content] if len(shown) < IN_A_PICTURE else []
            progress.update(1)
    spacing = geometry.spacing((len(numbers), run.frame.image_height, run.frame.image_width))
    title = f"Cuts through the middle of {len(shown)} of {len(heads)} heads, {trained}"
    three_views({"drawn": shown}, folder / "heads.png", title, spacing, CUTS[geometry.axis], geometry.front_first)


def write_completed(run: Run, heads: CodeMaps, seed: int, given: Given, folder: Path, how: str) -> None:
    """Decode the drawn slices of completions and write of each the volume, its slices beside what was there, and a page
    (`completed_0000.nii.gz`, `.png`, `.html`). Arguments as of `write_heads`."""
    numbers = run.slice_numbers
    with Progress(len(heads), "decoding and writing", "volume") as progress:
        for index in range(len(heads)):
            images, place = (
                given.completed(decode_head(run, heads[index], seed, index)),
                folder / f"completed_{index:04d}",
            )
            title = f"Completion {index} (red frames: drawn) of {how} (trained on {run.config['data']['title']})"
            write_volume(images.numpy(), numbers, given.geometry, place, f"Completion {index}")
            before, after = (run.frame.crop(each).numpy() for each in (given.images, images))
            completed_sheet(before, after, given.known, place.with_suffix(".png"), title, numbers.tolist())
            progress.update(1)


def write_volume(images: np.ndarray, numbers: np.ndarray, geometry: Geometry, place: Path, title: str) -> None:
    """Slices `[S, H, W]` in 0..1 as a NIfTI file and as a page to scroll through, at a path whose endings are added."""
    place.parent.mkdir(parents=True, exist_ok=True)
    volume = geometry.nifti(images, numbers)
    nib.save(volume, place.with_suffix(".nii.gz"))
    write_text(place.with_suffix(".html"), viewer_page(volume, title))


def viewer_page(image: nib.Nifti1Image, title: str) -> str:
    """An HTML page that shows three cuts through a volume with values in 0..1, moved by clicking into them: nilearn's viewer.

    It is complete in itself and needs no network.
    """
    from nilearn.plotting import view_img  # slow to import, and only this function needs it

    centre = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    view = view_img(
        image,
        bg_img=False,
        cut_coords=tuple(centre),
        colorbar=False,
        title=title,
        threshold=None,
        draw_cross=True,
        black_bg=True,
        cmap="gray",
        symmetric_cmap=False,
        vmin=0,
        vmax=1,
        resampling_interpolation="nearest",
        width_view=WIDTH,
    )
    return OUTSIDE.sub("", view.get_standalone())


def completed_sheet(
    before: np.ndarray, after: np.ndarray, known: np.ndarray, path: Path, title: str, numbers: Sequence[int]
) -> None:
    """A completed volume beside what was there: a row of slices as they were given, below them the same ones completed, and so
    on. Known slices have gray frames, drawn ones red ones.

    Args:
        before, after: `[S, H, W]` in 0..1; black where there was none. known: `[S]` bool. numbers: `[S]`.
    """
    count, height, width = after.shape
    columns = min(COLUMNS, count)
    bands = -(-count // columns)
    figure, axes = plt.subplots(
        2 * bands,
        columns,
        figsize=(max(columns * CELL + 0.5, 4.0), 2 * bands * (CELL * height / width + 0.1) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for axis in axes.flat:
        axis.axis("off")
    for index in range(count):
        row, column = 2 * (index // columns), index % columns
        drawn = not known[index]
        _framed(axes[row, column], before[index], REFERENCE)
        _framed(axes[row + 1, column], after[index], VALIDATION if drawn else REFERENCE)
        axes[row, column].set_title(f"slice {numbers[index]}{', drawn' if drawn else ''}", fontsize=6.5, pad=1.5)
    for row, first in enumerate(axes[:, 0]):
        first.axis("on")
        first.set_ylabel("completed" if row % 2 else "given", fontsize=7)
    headline(figure, title)
    save_figure(figure, path)


def _framed(axis: Axes, image: np.ndarray, colour: str) -> None:
    axis.axis("on")
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=colour, linewidth=1.5)
