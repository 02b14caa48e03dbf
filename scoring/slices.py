"""Scores of reconstructions over all slices of a split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.runtime import Progress
from dataset import Frame, Split
from inference.coding import encode_split, reconstructions
from models.codes import CodeMaps, first_level
from models.detail import Codec, first_of
from pixelcnn import GatedPixelCNN
from scoring.bits import marginal_bits, mean_bits, told_bits
from scoring.metrics import (
    FOREGROUND,
    PERFECT_PSNR,
    CodeUsage,
    fine_power,
    mae,
    mean_interval,
    psnr,
    ssim,
    ssim_map,
)


def mean_ssim(model: Codec, split: Split, codes: CodeMaps, frame: Frame) -> float:
    """SSIM of the reconstructions on whole slices."""
    values = [ssim(decoded, images) for images, decoded in reconstructions(model, split, codes, frame)]
    return float(torch.cat(values).double().mean())


def slice_scores(
    vqvae: Codec,
    split: Split,
    codes: CodeMaps,
    frame: Frame,
    title: str | None = None,
    look: Callable[[Tensor], None] | None = None,
) -> dict[str, np.ndarray]:
    """Scores of each slice's reconstruction, `[N]` float64 each.

    ssim, psnr (dB), mae (0..1): on whole slices; with _frame, on the content frame; with _foreground, over the pixels of the real
    slice that are brighter than background (`metrics.FOREGROUND`), SSIM by its map. power, decoded_power: between 1/4 and 1/2 of
    the sampling frequency, of the slice and of its reconstruction.

    look: is shown all reconstructions in order, `[B, 1, H, W]` at a time.
    """
    parts: dict[str, list[Tensor]] = {}
    with Progress(len(split), f"score {title}", "slice", quiet=title is None) as progress:
        for images, decoded in reconstructions(vqvae, split, codes, frame):
            for name, values in _slice_scores(images, decoded, frame).items():
                parts.setdefault(name, []).append(values.double())
            if look is not None:
                look(decoded)
            progress.update(len(images))
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def _slice_scores(images: Tensor, decoded: Tensor, frame: Frame) -> dict[str, Tensor]:
    inside, decoded_inside = frame.crop(images), frame.crop(decoded)
    similarity = ssim_map(decoded, images)
    foreground = images > FOREGROUND
    foreground |= ~foreground.any(dim=(2, 3), keepdim=True)  # all of a slice that is nothing but background

    def over_foreground(values: Tensor) -> Tensor:
        return (values * foreground).sum((1, 2, 3)) / foreground.sum((1, 2, 3))

    squared = over_foreground((decoded - images).square())
    return {
        "ssim": similarity.mean((1, 2, 3)),
        "psnr": psnr(decoded, images),
        "mae": mae(decoded, images),
        "ssim_frame": ssim(decoded_inside, inside),
        "psnr_frame": psnr(decoded_inside, inside),
        "mae_frame": mae(decoded_inside, inside),
        "ssim_foreground": over_foreground(similarity),
        "psnr_foreground": (-10 * squared.clamp(min=1e-20).log10()).clamp(max=PERFECT_PSNR),
        "mae_foreground": over_foreground((decoded - images).abs()),
        "power": fine_power(images),
        "decoded_power": fine_power(decoded),
    }


def score_split(
    vqvae: Codec,
    prior: GatedPixelCNN | None,
    split: Split,
    frame: Frame,
    train_codes: CodeMaps | None = None,
    title: str | None = None,
    codes: CodeMaps | None = None,
) -> dict[str, float]:
    """Scores of a run over all slices of a split: reconstructions by all levels of codes, codes and bits of the first.

    Args:
        vqvae, prior: in eval mode; without a prior its scores are left out.
        split: what to score.
        frame: the run's.
        train_codes: `[N, h, w]` code maps of the training split, for the positional marginal; None leaves it out.
        title: of the progress bar; None shows none.
        codes: the split's code maps, where they are known already.

    Returns:
        As `reconstruction_summary` and `codes_summary`; and
        bits_per_code, bits_per_slice: of the prior. bits_per_code_told: of one with context, `bits.told_bits`.
        bits_per_code_marginal: of a model that knows only the position.
    """
    if codes is None:
        codes = encode_split(vqvae, split, frame, title and f"encode {title}")
    scores = reconstruction_summary(slice_scores(vqvae, split, codes, frame, title), split.subjects)
    first, num_codes = first_level(codes), first_of(vqvae).quantizer.num_codes
    scores |= codes_summary(first, num_codes)
    if prior is not None:
        bits = mean_bits(prior, first, split.known)
        scores |= {"bits_per_code": bits, "bits_per_slice": bits * first[0].numel()}
        told = told_bits(prior, first, split)
        scores |= {} if told is None else {"bits_per_code_told": told}
    if train_codes is not None:
        scores["bits_per_code_marginal"] = marginal_bits(first_level(train_codes), first, num_codes)
    return scores


def reconstruction_summary(values: dict[str, np.ndarray], subjects: list[str]) -> dict[str, float]:
    """Means over slices of what `slice_scores` gives, under the same names, each with its 95 % interval over subjects as _low
    and _high, where there are several; slices and subjects: numbers scored; sharpness: fine power of the reconstructions as a
    share of the slices'."""
    scores: dict[str, float] = {"slices": len(subjects), "subjects": len(set(subjects))}
    for name, each in values.items():
        if not name.endswith("power"):
            scores[name] = float(each.mean())
            interval = mean_interval(each, subjects)
            if interval is not None:
                scores[f"{name}_low"], scores[f"{name}_high"] = interval
    return scores | {"sharpness": float(values["decoded_power"].sum() / max(values["power"].sum(), 1e-12))}


def codes_summary(codes: Tensor, num_codes: int) -> dict[str, float]:
    """codes_used, perplexity, entropy (bits): of the codebook over `[N, h, w]` maps. codes_per_slice.
    bits_per_slice_fixed: at log2 K a code."""
    usage, positions = CodeUsage.of(codes, num_codes), codes[0].numel()
    return {
        "codes_used": usage.used,
        "perplexity": usage.perplexity,
        "entropy": usage.entropy,
        "codes_per_slice": positions,
        "bits_per_slice_fixed": positions * float(np.log2(num_codes)),
    }
