"""The diagram of both stages."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from models.codes import FINER
from reporting.figures import plt, save_figure

UPPER, LOWER, BOX_HEIGHT = 2.9, 0.6, 1.1  # lower edges of the boxes of each stage, and their height
BOTTOM = -1.6  # of those of the second level
DARK = "#444444"


def architecture(
    path: Path,
    downsample: int,
    num_codes: int,
    code_dim: int,
    frame: tuple[int, int],
    channels: int,
    layers: int,
    detail: tuple[int, int, int] | None = None,
) -> None:
    """Draw the diagram with the shapes of a run. frame: (height, width) that the networks see. detail: codes, their dimension and
    layers of the prior of a second level; None: there is none."""
    lowest = 0.2 if detail is None else BOTTOM - 0.2
    figure, axis = plt.subplots(figsize=(13, 4.4 + 0.2 - lowest), layout="constrained")
    axis.set(xlim=(0, 13), ylim=(lowest, 4.5))
    axis.axis("off")
    height, width = frame
    maps = f"{height // downsample}x{width // downsample}"
    prior = f"gated PixelCNN\n{layers} layers, {channels} channels\np(code | above, left, location)"
    for box in (  # left edge, lower edge, width, text, colour
        (0.1, UPPER, 1.7, f"slice\n1x{height}x{width}\n(content frame)", "#f0f0f0"),
        (2.3, UPPER, 1.7, f"encoder\nspace-to-depth,\nresidual blocks, /{downsample}", "#cfe2f3"),
        (4.5, UPPER, 1.7, f"latents\n{code_dim}x{maps}", "#f0f0f0"),
        (6.7, UPPER, 1.7, f"nearest of\nK = {num_codes} codes\n(EMA codebook)", "#fff2cc"),
        (8.9, UPPER, 1.7, f"decoder\nresidual blocks,\nsub-pixel, x{downsample}", "#cfe2f3"),
        (11.1, UPPER, 1.8, f"reconstruction\n1x{height}x{width}\nL1 + windowed SSIM", "#f0f0f0"),
        (0.1, LOWER, 1.7, "slice position\n0 (lowest) .. 1", "#f0f0f0"),
        (2.9, LOWER, 2.7, prior, "#d9ead3"),
        (6.7, LOWER, 1.7, f"code map\n{maps}\nindices 0..{num_codes - 1}", "#fff2cc"),
        (8.9, LOWER, 1.7, "sampled code map\n(code by code,\nrows cached)", "#f4cccc"),
        (11.1, LOWER, 1.8, "new slice", "#f4cccc"),
    ):
        _box(axis, *box)
    _arrows(axis)
    axis.text(0.1, UPPER + BOX_HEIGHT + 0.2, "Stage 1: VQ-VAE", fontsize=11, weight="bold")
    axis.text(0.1, LOWER + BOX_HEIGHT + 0.2, "Stage 2: prior over code maps", fontsize=11, weight="bold")
    if detail is not None:
        _second_level(axis, downsample // FINER, frame, *detail)
    save_figure(figure, path)


def _second_level(
    axis: Axes, downsample: int, frame: tuple[int, int], num_codes: int, code_dim: int, layers: int
) -> None:
    """The row of the second level. downsample: pixels that its codes cover along each side."""
    maps = f"{frame[0] // downsample}x{frame[1] // downsample}"
    for left, width, text, colour in (
        (0.1, 1.7, "first level's\npicture, and what\nis missing there", "#f0f0f0"),
        (2.3, 1.7, f"second encoder\nresidual blocks,\n/{downsample}", "#cfe2f3"),
        (4.5, 1.7, f"latents\n{code_dim}x{maps}", "#f0f0f0"),
        (6.7, 1.7, f"nearest of\nK = {num_codes} codes\n(EMA codebook)", "#fff2cc"),
        (8.9, 1.7, f"second decoder\ntold the first,\nsub-pixel, x{downsample}", "#cfe2f3"),
        (11.1, 1.8, "added to the\nfirst level's\npicture", "#f0f0f0"),
    ):
        _box(axis, left, BOTTOM, width, text, colour)
    for left in (1.85, 4.05, 6.25, 8.45, 10.65):
        _arrow(axis, (left, BOTTOM + BOX_HEIGHT / 2), (left + 0.4, BOTTOM + BOX_HEIGHT / 2))
    title = (
        f"Second level of codes; its maps are drawn by a gated PixelCNN of {layers} layers that is told the first level"
    )
    axis.text(0.1, BOTTOM + BOX_HEIGHT + 0.2, title, fontsize=11, weight="bold")


def _box(axis: Axes, left: float, bottom: float, width: float, text: str, colour: str) -> None:
    how = dict(boxstyle="round,pad=0.03", facecolor=colour, edgecolor=DARK)
    axis.add_patch(FancyBboxPatch((left, bottom), width, BOX_HEIGHT, **how))
    axis.text(left + width / 2, bottom + BOX_HEIGHT / 2, text, ha="center", va="center", fontsize=9.5)


def _arrows(axis: Axes) -> None:
    middle, below, above = UPPER + BOX_HEIGHT / 2, UPPER - 0.05, LOWER + BOX_HEIGHT + 0.05
    for left in (1.85, 4.05, 6.25, 8.45, 10.65):
        _arrow(axis, (left, middle), (left + 0.4, middle))
    _arrow(axis, (7.55, below), (7.55, above), "indices", at=(7.95, 2.25))
    middle = LOWER + BOX_HEIGHT / 2
    _arrow(axis, (1.85, middle), (2.85, middle), "in every\ngate", at=(2.35, middle + 0.12))
    _arrow(axis, (6.65, middle), (5.65, middle), "train on", at=(6.15, middle + 0.12))
    _arrow(axis, (4.3, LOWER - 0.05), (9.7, LOWER - 0.05), "sample", bend=0.06, at=(6.1, 0.22))
    _arrow(axis, (9.9, above), (9.9, below), "decode", at=(9.5, 2.25))
    _arrow(axis, (10.3, below), (11.9, above))


def _arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    label: str = "",
    bend: float = 0.0,
    at: tuple[float, float] | None = None,
) -> None:
    how = dict(arrowstyle="-|>", mutation_scale=13, color=DARK, connectionstyle=f"arc3,rad={bend}")
    axis.add_patch(FancyArrowPatch(start, end, **how))
    if label:
        axis.text(*at, label, fontsize=8.5, color=DARK, ha="center")
