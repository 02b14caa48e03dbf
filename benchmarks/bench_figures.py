"""Pictures of the benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter

REFERENCE = "#7f7f7f"
STYLES = {
    "ours_brief": ("oasis-vqvae, brief", "#ff9896", "o"),
    "ours_float32": ("oasis-vqvae, brief, float32", "#ffbb78", "o"),
    "ours": ("oasis-vqvae", "#d62728", "s"),
    "monai": ("MONAI VQVAE", "#1f77b4", "^"),
    "reference": ("reference network", REFERENCE, "v"),
}
PLAIN = FormatStrFormatter("%g")


def curves(contenders: dict[str, list[dict[str, float]]], target: float, path: Path) -> None:
    """Validation SSIM by minutes of training, one line a contender; a line marks the target."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in contenders.items():
        label, colour, marker = STYLES[name]
        minutes, values = [p["seconds"] / 60 for p in curve], [p["ssim"] for p in curve]
        axes.plot(minutes, values, marker=marker, color=colour, label=label, markersize=5)
    axes.axhline(target, color="black", linestyle=":", label=f"the student project, as published: {target}")
    axes.set(xlabel="minutes of training", ylabel="SSIM, whole validation slices", xscale="log", ylim=(0, 1))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def reference_curves(
    trainings: dict[str, list[dict[str, float]]],
    published: Sequence[tuple[int, float]],
    ours: dict[str, Any] | None,
    target: float,
    path: Path,
) -> None:
    """SSIM by slices seen and codebook loss by minutes of the reference network. published: (slices, SSIM) after each of its
    epochs. ours: of a training of our own, drawn as a point."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, curve in trainings.items():
        line = left.plot([p["slices"] for p in curve], [p["ssim"] for p in curve], label=name)[0]
        minutes, losses = [p["seconds"] / 60 for p in curve], [p["codebook_loss"] for p in curve]
        right.plot(minutes, losses, color=line.get_color(), label=name)
    left.plot(*zip(*published), "--.", color=REFERENCE, label="as published: validation split, of grids")
    left.axhline(target, color="black", linestyle=":", label=f"as published: test split, of grids: {target}")
    if ours is not None:
        label = f"oasis-vqvae, {ours['slices_seen']:,} slices: {ours['ssim']:.2f}"
        left.plot(ours["slices_seen"], ours["ssim"], "s", color=STYLES["ours"][1], label=label)
    left.set(xlabel="slices seen", ylabel="SSIM, whole validation slices", xscale="log", ylim=(0, 1))
    right.set(xlabel="minutes of training on 2 cores", ylabel="codebook loss", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def rate_distortion(
    rates: Sequence[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    peers: Sequence[dict[str, Any]],
    target: float,
    path: Path,
) -> None:
    """SSIM by bits a slice: trainings of equal length joined by a line, longer runs, peers and the published SSIM as points."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    lengths = sorted({rate["slices_seen"] for rate in rates})
    for rank, seen in enumerate(lengths):
        group = sorted((rate for rate in rates if rate["slices_seen"] == seen), key=lambda rate: rate["downsample"])
        colour = plt.get_cmap("Reds")(0.4 + 0.2 * rank)
        axes.plot(*_bits_and_ssim(group), marker="o", color=colour, label=f"oasis-vqvae, {seen:,} slices seen")
    if runs:
        axes.plot(*_bits_and_ssim(runs), "*", color="black", markersize=10, label="oasis-vqvae, longer (see the table)")
    axes.plot(36864, target, "D", color=REFERENCE, markersize=8, label=f"the student project, as published: {target}")
    lowest = min([run["ssim"] for run in (*rates, *runs)] + [target]) - 0.02
    for peer, marker in zip(peers, "^vXPs"):
        shown = max(peer["ssim"], lowest + 0.004)
        below = "" if shown == peer["ssim"] else " (below)"
        label = f"{peer['name']}: {peer['ssim']:.2f}{below}"
        axes.plot(peer["bits"], shown, marker, color="#1f77b4", markersize=9, label=label)
    sizes = sorted({(run["bits_per_slice_fixed"], run["downsample"]) for run in (*rates, *runs)})
    axes.set(xlabel="bits a slice (9 a code)", ylabel="SSIM, whole validation slices", xscale="log", ylim=(lowest, 1))
    axes.set_xticks([*(bits for bits, _ in sizes), 36864])
    axes.set_xticklabels([*(f"{bits:,.0f}\nf={f}" for bits, f in sizes), "36,864\n64x64 codes"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(0.93, 0), fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def _bits_and_ssim(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [run["bits_per_slice_fixed"] for run in runs], [run["ssim"] for run in runs]
