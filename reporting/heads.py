"""Pictures of whole heads, from plain arrays: `[S, H, W]` floats in 0..1, slices from the lowest to the highest, rows from one
side of the head to the other.

Columns of the OASIS slice set run from the back of the head to the front: the splenium and the tentorium are on the left, the
frontal horns on the right, as is the marker that OASIS-1 put on every left forehead, in the upper rows. Axial slices that
`sources.volumes` cuts lie the same way.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reporting.figures import REFERENCE, TRAIN, VALIDATION, headline, save_figure, slice_grid

BAND = (0.1, 0.9)  # quantiles that a band reaches from and to
COLOURS = {"drawn": (VALIDATION, "-"), "real": (TRAIN, "-"), "reconstructed": (REFERENCE, "--")}
WIDTH = 1.9  # inches of one head: about a dot a pixel of OASIS slices


def contact_sheet(
    head: np.ndarray, path: Path, title: str, numbers: Sequence[int] | None = None, columns: int = 8
) -> None:
    """All slices of a head, each with its number. numbers: `[S]`; from 0 where they are not given."""
    labels = [f"slice {number}" for number in (range(len(head)) if numbers is None else numbers)]
    slice_grid(head, path, title, labels, columns, WIDTH)


def orthogonal_views(head: np.ndarray, front_first: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts through the middle of an `[S, H, W]` head as one looks at them: the axial slice `[W, H]`, front up; the coronal cut
    `[S, H]`, top up; the sagittal one `[S, W]`, top up and front to the right. The first rows are on the left.

    front_first: whether columns run from the front to the back.
    """
    slices, rows, columns = head.shape
    head = head[..., ::-1] if front_first else head
    return head[slices // 2].T[::-1], head[::-1, :, columns // 2], head[::-1, rows // 2]


def three_views(
    rows: Mapping[str, Sequence[np.ndarray]],
    path: Path,
    title: str,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    planes: tuple[str, str, str] = ("axial", "coronal", "sagittal"),
    front_first: bool = False,
) -> None:
    """Three cuts through the middle of each head, a column a head, with the heads of each name in a row of their own.

    Args:
        rows: by name, such as "real" and "drawn", heads of one size.
        path: of the PNG. title: of the figure.
        spacing: of slices, of rows and of columns, in mm or any other unit: cuts are shown as wide and high as they are.
        planes: what the slices are and what the cuts across columns and across rows are, where slices are not axial.
        front_first: as in `orthogonal_views`.
    """
    count = max(map(len, rows.values()))
    between, row, column = spacing
    slices, height, width = next(iter(rows.values()))[0].shape
    sizes = ((width * column, height * row), (slices * between, height * row), (slices * between, width * column))
    scale = WIDTH / max(wide for _, wide in sizes)  # inches a unit
    figure, axes = plt.subplots(
        len(rows) * len(planes),
        count,
        figsize=(
            max(count * WIDTH + 0.5, 4.0),
            len(rows) * scale * sum(high for high, _ in sizes) + 0.05 * len(rows) * len(planes) + 0.5,
        ),
        squeeze=False,
        layout="constrained",
        height_ratios=[high for high, _ in sizes] * len(rows),
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for axis in axes.flat:
        _bare(axis)
    for line, (name, heads) in enumerate(rows.items()):
        own = axes[line * len(planes) : (line + 1) * len(planes)]
        for index, head in enumerate(heads):
            for axis, image, (high, wide) in zip(own[:, index], orthogonal_views(head, front_first), sizes):
                axis.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(0, wide, 0, high))
        characters = int(17 * scale * sizes[0][0])  # an inch holds about 17 of this size
        own[0, 0].set_ylabel("\n".join(textwrap.wrap(name, max(characters, 8))), fontsize=8)
        for axis, plane in zip(own[:, 0], planes):  # inside the cuts, which are too low for a label beside them
            axis.text(0.01, 0.98, plane, color="white", fontsize=5, va="top", transform=axis.transAxes)
    headline(figure, title)
    save_figure(figure, path)


def continuity_bands(
    numbers: np.ndarray,
    values: Mapping[str, Mapping[str, np.ndarray]],
    kinds: Mapping[str, str],
    path: Path,
    title: str,
) -> None:
    """What is measured between neighbouring slices, along the slice numbers: of each set of heads the median, and a band that
    holds the middle 80 % of them. Bands that lie apart are wrong on either side: slices may be too alike as well.

    Args:
        numbers: `[S]` slice numbers. values: by set of heads ("drawn", "real", "reconstructed") and kind, `[N, S - 1]`.
        kinds: titles of the axes, by kind.
        path: of the PNG. title: of the figure.
    """
    between = (numbers[:-1] + numbers[1:]) / 2
    figure, axes = plt.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 3.8), squeeze=False, layout="constrained")
    for axis, (kind, about) in zip(axes[0], kinds.items()):
        for name, measured in ((name, each) for name, each in values.items() if kind in each):
            low, middle, high = np.quantile(measured[kind], (BAND[0], 0.5, BAND[1]), axis=0)
            axis.plot(between, middle, COLOURS[name][1], marker=".", color=COLOURS[name][0], label=name)
            axis.fill_between(between, low, high, color=COLOURS[name][0], alpha=0.2, linewidth=0)
        axis.set(xlabel="slice number", ylabel=about)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    headline(figure, title)
    save_figure(figure, path)


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
