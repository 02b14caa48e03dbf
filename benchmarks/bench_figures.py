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


def rate_distortion(runs: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]], path: Path) -> None:
    """SSIM by bits a slice: our runs joined by training time, peers as points."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    by_time: dict[int, list[dict[str, Any]]] = {}
    for downsample in {run["downsample"] for run in runs}:
        group = sorted((run for run in runs if run["downsample"] == downsample), key=lambda run: run["minutes"])
        for rank, run in enumerate(group):
            by_time.setdefault(rank, []).append(run)
    for rank, group in sorted(by_time.items()):
        group.sort(key=lambda run: run["bits_per_slice_fixed"])
        bits, values = [run["bits_per_slice_fixed"] for run in group], [run["ssim"] for run in group]
        label = f"oasis-vqvae, {sum(run['minutes'] for run in group) / len(group):.0f} min"
        axes.plot(bits, values, marker="o", color=plt.get_cmap("Reds")(0.45 + 0.25 * rank), label=label)
    for run in by_time.get(0, []):
        axes.annotate(
            f"f={run['downsample']}", (run["bits_per_slice_fixed"], run["ssim"]), (6, -14), textcoords="offset points"
        )
    for peer, marker in zip(peers, "^vDs"):
        axes.plot(peer["bits"], peer["ssim"], marker, color="#1f77b4", markersize=9, label=peer["name"])
    axes.set(xlabel="bits a slice (9 a code)", ylabel="SSIM, whole validation slices", xscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path)
    plt.close(figure)
