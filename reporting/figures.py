"""Every matplotlib picture. Functions take plain arrays and records and write one PNG each.

Slices are `[N, H, W]` floats in 0..1, code maps `[N, h, w]` integers.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator
from PIL import Image

CODE_COLOURS = "viridis"  # perceptually even
TRAIN, VALIDATION, REFERENCE = "#1f77b4", "#d62728", "#7f7f7f"
DPI = 110
CELL = 1.15  # inches of one slice in a grid

plt.rcParams["figure.dpi"] = DPI


def vqvae_status(
    records: Sequence[dict[str, Any]], path: Path, title: str, num_codes: int, validation: str = "validation"
) -> None:
    """Curves of the first stage: loss, SSIM, and use of the codebook by epoch.

    Args:
        records: lines of `metrics.jsonl` of the VQ-VAE.
        path: of the PNG. title: of the figure. num_codes: K.
        validation: how to call the scored split in the legend.
    """
    epochs = [record["epoch"] for record in records]
    figure, (loss, similarity, usage) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, style in (("loss", "-"), ("reconstruction", "--"), ("commitment", ":")):
        loss.plot(
            epochs,
            [record[name] or np.nan for record in records],  # no commitment before the codes are placed
            style,
            color=TRAIN,
            label=f"train {name}",
            marker=_marker(epochs),
        )
    loss.set(title="Training loss", ylabel="loss", yscale="log")
    for split, colour, label in (("train", TRAIN, "train"), ("validate", VALIDATION, f"{validation}, scored")):
        similarity.plot(
            epochs, [record[f"{split}_ssim"] for record in records], color=colour, label=label, marker=_marker(epochs)
        )
        usage.plot(
            epochs, [record[f"{split}_codes_used"] for record in records], color=colour, label=f"{label}: codes used"
        )
        usage.plot(
            epochs,
            [record[f"{split}_perplexity"] for record in records],
            "--",
            color=colour,
            label=f"{label}: perplexity",
        )
    similarity.set(title="Reconstruction", ylabel="SSIM, whole slice")
    usage.axhline(num_codes, color=REFERENCE, linewidth=1, label=f"K = {num_codes}")
    usage.set(title="Codebook", ylabel="codes", ylim=(0, None))
    _finish_curves(figure, (loss, similarity, usage), path, title)


def prior_status(
    records: Sequence[dict[str, Any]],
    path: Path,
    title: str,
    num_codes: int,
    marginal_bits: float | None = None,
    validation: str = "validation",
) -> None:
    """Curves of the second stage: bits per code by epoch, told nothing and, of a prior with context, told the slice below; beside
    what knowing nothing and knowing only the position would cost.

    Args:
        records: lines of `metrics.jsonl` of the prior.
        path, title, num_codes, validation: as in `vqvae_status`.
        marginal_bits: bits per code of the positional marginal on the validation maps.
    """
    epochs = [record["epoch"] for record in records]
    figure, (bits, rate) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(2, 1))
    best = min(records, key=lambda record: record.get("validate_mean_bits", record["validate_bits"]))
    for told, style, about in (("", "-", ""), ("_told", ":", ", told the slice below")):
        for split, colour, label in (("train", TRAIN, "train"), ("validate", VALIDATION, f"{validation}, scored")):
            if f"{split}{told}_bits" in best:
                values = [record[f"{split}{told}_bits"] for record in records]
                bits.plot(epochs, values, style, color=colour, label=f"{label}{about}", marker=_marker(epochs))
        if f"validate{told}_bits" in best:
            label = None if told else "kept weights"
            bits.plot(best["epoch"], best[f"validate{told}_bits"], "*", color=VALIDATION, markersize=13, label=label)
    bits.axhline(np.log2(num_codes), color=REFERENCE, linewidth=1, label=f"uniform, log2 K = {np.log2(num_codes):.2f}")
    if marginal_bits is not None:
        bits.axhline(
            marginal_bits,
            color=REFERENCE,
            linestyle="--",
            linewidth=1,
            label=f"positional marginal {marginal_bits:.2f}",
        )
    bits.set(title="Code length under the prior", ylabel="bits per code")
    rate.plot(epochs, [record["lr"] for record in records], color=REFERENCE, label="learning rate")
    rate.set(title="Schedule", ylabel="learning rate", ylim=(0, None))
    _finish_curves(figure, (bits, rate), path, title)


def sharp_status(records: Sequence[dict[str, Any]], path: Path, title: str, validation: str = "validation") -> None:
    """Curves of the third stage: losses, and what the weights are chosen by. Arguments as in `vqvae_status`."""
    epochs = [record["epoch"] for record in records]
    figure, (loss, similarity, power) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, style in (("texture", "-"), ("recoding", ":"), ("spectrum", "--")):
        loss.plot(
            epochs,
            [record.get(name, math.nan) for record in records],
            style,
            color=TRAIN,
            label=f"train {name}",
            marker=_marker(epochs),
        )
    loss.set(title="Training losses", ylabel="loss")
    for axis, names in ((similarity, ("ssim", "mixture")), (power, ("sharpness",))):
        for name, style in zip(names, ("-", "--")):
            axis.plot(
                epochs,
                [record[f"validate_{name}"] for record in records],
                style,
                color=VALIDATION,
                label=f"{validation}, scored: {name}",
                marker=_marker(epochs),
            )
    best = max(records, key=lambda record: record["validate_mixture"])
    similarity.plot(best["epoch"], best["validate_mixture"], "*", color=VALIDATION, markersize=13, label="kept weights")
    similarity.set(title="SSIM, and the mixture that decides", ylabel="score")
    power.axhline(1, color=REFERENCE, linewidth=1, label="real slices")
    power.set(title="Sharpness", ylabel="fine power, decoded / real", ylim=(0, None))
    _finish_curves(figure, (loss, similarity, power), path, title)


def sharpness(images: dict[str, np.ndarray], spectra: dict[str, np.ndarray], path: Path, title: str) -> None:
    """One slice several ways, whole and a corner of it enlarged, and radial power spectra.

    images: `[H, W]` each by name, real first. spectra: `[bins]` each, up to half of the sampling frequency, by the same names.
    """
    height, width = next(iter(images.values())).shape
    side = min(height, width) // 3
    top, left = (height - side) // 2, (width - side) // 5
    count = len(images)
    panel = 2.9
    figure, axes = plt.subplots(
        2,
        count + 1,
        figsize=((count + 1.35) * panel, panel * (height / width + 1)),
        layout="constrained",
        width_ratios=[1] * count + [1.35],
        height_ratios=(height / width, 1),
    )
    for (name, image), axis, corner in zip(images.items(), axes[0], axes[1]):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.add_patch(plt.Rectangle((left, top), side, side, fill=False, edgecolor=VALIDATION))
        axis.set_title(name, fontsize=10)
        corner.imshow(image[top : top + side, left : left + side], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.axis("off"), corner.axis("off")
    grid = axes[0, count].get_gridspec()
    for axis in axes[:, count]:
        axis.remove()
    curve = figure.add_subplot(grid[:, count])
    for (name, power), colour in zip(spectra.items(), ("black", REFERENCE, VALIDATION)):
        frequency = (np.arange(len(power)) + 0.5) / (2 * len(power))
        curve.plot(frequency, power, color=colour, label=name)
    curve.axvspan(0.25, 0.5, color=REFERENCE, alpha=0.12, label="sharpness is measured here")
    curve.set(yscale="log", xlabel="cycles a pixel", ylabel="power", title="Radial power spectrum")
    curve.grid(alpha=0.3)
    curve.legend(fontsize=8)
    headline(figure, title)
    save_figure(figure, path)


def _marker(epochs: Sequence[int]) -> str | None:
    return "o" if len(epochs) < 5 else None  # a line through one point would be empty


def _finish_curves(figure: Figure, axes: Sequence[Axes], path: Path, title: str) -> None:
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    save_figure(figure, path)


def headline(figure: Figure, title: str) -> None:
    """A title broken into lines that the figure has room for."""
    characters = int(13 * figure.get_figwidth())  # an inch holds about 13 of this size
    figure.suptitle("\n".join(textwrap.wrap(title, characters)), fontsize=10)


def slice_grid(
    images: np.ndarray,
    path: Path,
    title: str,
    labels: Sequence[str] | None = None,
    columns: int = 8,
    cell: float = CELL,
) -> None:
    """A grid of gray slices on black, each with its label. cell: inches of one slice."""
    _grid(images, path, title, labels, columns, dict(cmap="gray", vmin=0, vmax=1), cell=cell)


def code_grid(
    codes: np.ndarray,
    path: Path,
    title: str,
    ranks: np.ndarray,
    labels: Sequence[str] | None = None,
    columns: int = 8,
    detail: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """A grid of code maps; a code's colour is its rank along the codebook's first principal axis.

    ranks: `[K]` from `code_ranks`, so that similar codes have similar colours. detail: maps and ranks of a second level, shown to
    the right of the first.
    """
    bar, highest = "code, ranked along the codebook's first principal axis", len(ranks) - 1
    shown = ranks[codes]
    if detail is not None:
        shown, highest, columns = levels_beside(codes, ranks, *detail), 1, max(1, columns // 2)
        bar = (
            "rank of the code along its codebook's first principal axis, 0 to 1; left the first level, right the second"
        )
    colours = dict(cmap=CODE_COLOURS, vmin=0, vmax=highest, interpolation="nearest")
    _grid(shown, path, title, labels, columns, colours, bar=bar, cell=CELL if detail is None else 2 * CELL)


def levels_beside(codes: np.ndarray, ranks: np.ndarray, detail: np.ndarray, detail_ranks: np.ndarray) -> np.ndarray:
    """Maps of the first level, enlarged, and to their right those of the second: `[N, h, w]` and `[N, rh, rw]` ->
    `[N, rh, 2rw + 1]` ranks as shares of the highest, NaN between them."""
    factor = detail.shape[1] // codes.shape[1]
    coarse = (ranks[codes] / (len(ranks) - 1)).repeat(factor, 1).repeat(factor, 2)
    return np.concatenate(
        [coarse, np.full((*coarse.shape[:2], 1), np.nan), detail_ranks[detail] / (len(detail_ranks) - 1)], 2
    )


def _grid(
    images: np.ndarray,
    path: Path,
    title: str,
    labels: Sequence[str] | None,
    columns: int,
    how: dict[str, Any],
    bar: str | None = None,
    cell: float = CELL,
) -> None:
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    aspect = images.shape[1] / images.shape[2]
    label_height = 0.17 if labels else 0.0
    width, height = columns * cell, rows * (cell * aspect + label_height)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(width, 4.0), height + 0.35 + (0.45 if bar else 0)),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    drawn = None
    for index, axis in enumerate(axes.flat):
        axis.axis("off")
        if index < len(images):
            drawn = axis.imshow(images[index], **how)
            if labels:
                axis.set_title(labels[index], fontsize=6.5, pad=1.5)
    headline(figure, title)
    if bar:
        colour_bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", fraction=0.05, aspect=50, pad=0.01)
        colour_bar.set_label(bar, fontsize=7)
        colour_bar.ax.tick_params(labelsize=6)
    save_figure(figure, path)


def code_ranks(codebook: np.ndarray) -> np.ndarray:
    """Rank of each code along the first principal axis of the `[K, D]` codebook, `[K]` integers 0..K-1."""
    centred = codebook - codebook.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])  # the sign of a singular vector is arbitrary
    return (centred @ axis).argsort(kind="stable").argsort(kind="stable")


def by_slice(
    numbers: np.ndarray, titles: dict[str, str], values: dict[str, Sequence[float]], path: Path, title: str
) -> None:
    """A curve over slice numbers for each kind of value. titles: of the axes, by the names in `values`."""
    figure, axes = plt.subplots(1, len(values), figsize=(4.2 * len(values), 3.2), squeeze=False, layout="constrained")
    for axis, (name, each) in zip(axes[0], values.items()):
        axis.plot(numbers, each, color=VALIDATION, marker=_marker(numbers))
        axis.set(xlabel="slice number", ylabel=titles[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    headline(figure, title)
    save_figure(figure, path)


def bits_by_position(bits: np.ndarray, path: Path, title: str) -> None:
    """A map of `[h, w]` bits."""
    figure, axis = plt.subplots(figsize=(5.5, 5.5 * bits.shape[0] / bits.shape[1]), layout="constrained")
    drawn = axis.imshow(bits, cmap=CODE_COLOURS, vmin=0)
    axis.axis("off")
    figure.colorbar(drawn, ax=axis, label="bits per code", shrink=0.8)
    headline(figure, title)
    save_figure(figure, path)


def realism(values: dict[str, tuple[float, float]], path: Path, title: str) -> None:
    """Scores over their floors, one bar each. values: name -> (score, floor)."""
    names = list(values)
    ratios = [score / max(floor, 1e-12) for score, floor in values.values()]
    figure, axis = plt.subplots(figsize=(7, 0.34 * len(names) + 1.2), layout="constrained")
    axis.barh(names[::-1], ratios[::-1], color=VALIDATION, height=0.6)
    axis.axvline(1, color="black", linestyle=":", label="real slices from other real slices")
    axis.set(xscale="log", xlabel="times as far apart as real slices are from each other")
    axis.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for form in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        form(FormatStrFormatter("%g"))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    headline(figure, title)
    save_figure(figure, path)


def rows_of_slices(rows: Sequence[tuple[str, np.ndarray]], path: Path, title: str, columns: Sequence[str]) -> None:
    """Named rows of slices under common column titles, for comparing what stands above each other.

    rows: (name, `[N, H, W]`) each. columns: N titles.
    """
    count, aspect = len(columns), rows[0][1].shape[1] / rows[0][1].shape[2]
    figure, axes = plt.subplots(
        len(rows),
        count,
        figsize=(count * CELL + 0.5, len(rows) * CELL * aspect + 0.6),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for (name, images), line in zip(rows, axes):
        for image, axis in zip(images, line):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=8)
    for axis, column in zip(axes[0], columns):
        axis.set_title(column, fontsize=7, pad=2)
    headline(figure, title)
    save_figure(figure, path)


def codes_beside_slices(
    codes: np.ndarray,
    images: np.ndarray,
    path: Path,
    title: str,
    ranks: np.ndarray,
    labels: Sequence[str],
    detail: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Code maps and, beside each, the slice it decodes to, two of these to a row. detail: as in `code_grid`."""
    levels = [(codes, ranks), *([] if detail is None else [detail])]
    abreast, panels = 2, len(levels) + 1
    rows = -(-len(codes) // abreast)
    aspect = images.shape[1] / images.shape[2]
    figure, axes = plt.subplots(
        rows,
        panels * abreast,
        figsize=(2 * panels * abreast, rows * 2 * aspect + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, (image, label) in enumerate(zip(images, labels)):
        first = panels * (index % abreast)
        *maps, last = axes[index // abreast, first : first + panels]
        for axis, (level, its_ranks) in zip(maps, levels):
            shown = its_ranks[level[index]]
            axis.imshow(shown, cmap=CODE_COLOURS, vmin=0, vmax=len(its_ranks) - 1, interpolation="nearest")
            axis.set_title(f"codes {shown.shape[0]}x{shown.shape[1]}", fontsize=8)
        maps[0].set_title(f"{label}: {maps[0].get_title()}", fontsize=8)
        last.imshow(image, cmap="gray", vmin=0, vmax=1)
        last.set_title("decoded", fontsize=8)
    headline(figure, title)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure with a palette of 256 colours, a third of the size of full colour and no different to the eye.

    Its text is drawn as it stands: names of subjects and folders may hold what would be a formula.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in _written(figure):
        text.set_parse_math(False)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    try:
        pixels.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    except OSError as error:  # Pillow does not say which file
        path.unlink(missing_ok=True)  # a half of it
        error.filename = str(path)
        raise


def _written(artist: Artist) -> Iterator[Text]:
    """All text of a figure but the numbers at its axes, whose powers of ten matplotlib itself writes as formulas. Asking an axis
    for its numbers would make them anew, which takes as long as a fifth of the picture."""
    if isinstance(artist, Text):
        yield artist
    for child in [artist.label, artist.offsetText] if isinstance(artist, Axis) else artist.get_children():
        yield from _written(child)
