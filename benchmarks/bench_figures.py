"""Pictures of the benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

STYLES = {
    "ours_brief": ("oasis-vqvae, brief", "#ff9896", "o"),
    "ours_float32": ("oasis-vqvae, brief, float32", "#ffbb78", "o"),
    "ours": ("oasis-vqvae", "#d62728", "s"),
    "monai": ("MONAI VQVAE", "#1f77b4", "^"),
    "reference": ("reference network", "#7f7f7f", "v"),
}


def curves(contenders: dict[str, list[dict[str, float]]], target: float, path: Path) -> None:
    """Validation SSIM by minutes of training, one line a contender; a line marks the target."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in contenders.items():
        label, colour, marker = STYLES[name]
        minutes, values = [p["seconds"] / 60 for p in curve], [p["ssim"] for p in curve]
        axes.plot(minutes, values, marker=marker, color=colour, label=label, markersize=5)
    axes.axhline(target, color="black", linestyle=":", label=f"the reference's published SSIM, {target}")
    axes.set(xlabel="minutes of training", ylabel="SSIM, whole validation slices", xscale="log", ylim=(0.4, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def rate_distortion(
    rates: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]], path: Path
) -> None:
    """SSIM by bits a slice: trainings of equal length joined by a line, longer runs and peers as points."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    lengths = sorted({rate["slices_seen"] for rate in rates})
    for rank, seen in enumerate(lengths):
        group = sorted((rate for rate in rates if rate["slices_seen"] == seen), key=lambda rate: rate["downsample"])
        colour = plt.get_cmap("Reds")(0.4 + 0.2 * rank)
        axes.plot(*_bits_and_ssim(group), marker="o", color=colour, label=f"oasis-vqvae, {seen:,} slices seen")
    if runs:
        axes.plot(*_bits_and_ssim(runs), "*", color="black", markersize=10, label="oasis-vqvae, longer (see the table)")
    for peer, marker in zip(peers, "^vDs"):
        axes.plot(peer["bits"], peer["ssim"], marker, color="#1f77b4", markersize=9, label=peer["name"])
    for downsample, bits in sorted({(run["downsample"], run["bits_per_slice_fixed"]) for run in (*rates, *runs)}):
        axes.annotate(f"f={downsample}", (bits, 1), (0, -12), textcoords="offset points", ha="center")
    axes.set(xlabel="bits a slice (9 a code)", ylabel="SSIM, whole validation slices", xscale="log", ylim=(None, 1))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path)
    plt.close(figure)


def _bits_and_ssim(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [run["bits_per_slice_fixed"] for run in runs], [run["ssim"] for run in runs]
