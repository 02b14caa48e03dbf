"""Trained models over data: encode a split, decode code maps, score both stages."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from dataset import Frame, Split
from metrics import (
    FOREGROUND,
    PERFECT_PSNR,
    CodeUsage,
    bootstrap_interval,
    code_lengths,
    fine_power,
    mae,
    psnr,
    ssim,
    ssim_map,
)
from pixelcnn import GatedPixelCNN, positional_marginal
from utils import Progress
from vqvae import VQVAE

BATCH = 32  # slices at a time; fixed, so that a score can be reproduced to the last digit
MARGINAL_PART = 1024  # code maps at a time


def encode(model: VQVAE, images: Tensor, frame: Frame) -> Tensor:
    """Code maps of whole slices, on the CPU: `[B, 1, H, W]` in 0..1 -> `[B, h, w]` int64."""
    device = next(model.parameters()).device
    return model.encode(frame.crop(images).to(device, memory_format=torch.channels_last)).cpu()


def decode(model: VQVAE, codes: Tensor, frame: Frame) -> Tensor:
    """Whole slices of code maps, on the CPU: `[B, h, w]` -> `[B, 1, H, W]` in 0..1."""
    device = next(model.parameters()).device
    parts = [frame.pad(model.decode(part.long().to(device)).cpu()) for part in codes.split(BATCH)]
    return torch.cat(parts)


def encode_split(model: VQVAE, split: Split, frame: Frame, title: str | None = None, mirror: bool = False) -> Tensor:
    """Code maps `[N, h, w]` of all slices of a split, int16 where K fits, else int32.

    title: names the progress bar, None shows none. mirror: encode the slices mirrored left to right within the frame.
    """
    maps = []
    with Progress(len(split), title or "", "slice", quiet=title is None) as progress:
        for indices, images in split.batches(BATCH):
            codes = encode(model, frame.pad(frame.crop(images).flip(2)) if mirror else images, frame)
            maps.append(codes.to(torch.int16 if model.quantizer.num_codes <= 2**15 else torch.int32))
            progress.update(len(indices))
    return torch.cat(maps)


def reconstructions(model: VQVAE, split: Split, codes: Tensor, frame: Frame) -> Iterator[tuple[Tensor, Tensor]]:
    """All slices of a split in order as (slices, reconstructions), `[B, 1, H, W]` in 0..1 each."""
    for indices, images in split.batches(BATCH):
        yield images, decode(model, codes[torch.from_numpy(indices)], frame)


def mean_ssim(model: VQVAE, split: Split, codes: Tensor, frame: Frame) -> float:
    """SSIM of the reconstructions on whole slices."""
    values = [ssim(decoded, images) for images, decoded in reconstructions(model, split, codes, frame)]
    return float(torch.cat(values).double().mean())


def slice_scores(
    vqvae: VQVAE, split: Split, codes: Tensor, frame: Frame, title: str | None = None
) -> dict[str, np.ndarray]:
    """Scores of each slice's reconstruction, `[N]` float64 each.

    ssim, psnr (dB), mae (0..1): on whole slices; with _frame, on the content frame; with _foreground, over the pixels of the real
    slice that are brighter than air (`metrics.FOREGROUND`), SSIM by its map. power, decoded_power: between a quarter and half of
    the sampling frequency, of the slice and of its reconstruction.
    """
    parts: dict[str, list[Tensor]] = {}
    with Progress(len(split), f"score {title}", "slice", quiet=title is None) as progress:
        for images, decoded in reconstructions(vqvae, split, codes, frame):
            for name, values in _slice_scores(images, decoded, frame).items():
                parts.setdefault(name, []).append(values.double())
            progress.update(len(images))
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def _slice_scores(images: Tensor, decoded: Tensor, frame: Frame) -> dict[str, Tensor]:
    inside, decoded_inside = frame.crop(images), frame.crop(decoded)
    similarity = ssim_map(decoded, images)
    foreground = images > FOREGROUND
    foreground |= ~foreground.any(dim=(2, 3), keepdim=True)  # all of a slice that is nothing but air

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
    vqvae: VQVAE,
    prior: GatedPixelCNN | None,
    split: Split,
    frame: Frame,
    train_codes: Tensor | None = None,
    title: str | None = None,
) -> dict[str, float]:
    """Scores of a run over all slices of a split.

    Args:
        vqvae, prior: in eval mode; without a prior its scores are left out.
        split: what to score.
        frame: the run's.
        train_codes: `[N, h, w]` code maps of the training split, for the positional marginal; None leaves it out.
        title: of the progress bar; None shows none.

    Returns:
        As `reconstruction_summary` and `codes_summary`; and
        bits_per_code, bits_per_slice: of the prior. bits_per_code_marginal: of a model that knows only the place.
    """
    codes = encode_split(vqvae, split, frame, title and f"encode {title}")
    scores = reconstruction_summary(slice_scores(vqvae, split, codes, frame, title), split.subjects)
    scores |= codes_summary(codes, vqvae.quantizer.num_codes)
    if prior is not None:
        bits = mean_bits(prior, codes, split.known)
        scores |= {"bits_per_code": bits, "bits_per_slice": bits * codes[0].numel()}
    if train_codes is not None:
        scores["bits_per_code_marginal"] = marginal_bits(train_codes, codes, vqvae.quantizer.num_codes)
    return scores


def reconstruction_summary(values: dict[str, np.ndarray], subjects: list[str]) -> dict[str, float]:
    """Means over slices of what `slice_scores` gives, under the same names, each with its 95 % interval over subjects as _low and
    _high; slices and subjects: numbers scored; sharpness: fine power of the reconstructions as a share of the slices'."""
    scores: dict[str, float] = {"slices": len(subjects), "subjects": len(set(subjects))}
    for name, each in values.items():
        if not name.endswith("power"):
            low, high = bootstrap_interval(each, subjects)
            scores |= {name: float(each.mean()), f"{name}_low": low, f"{name}_high": high}
    return scores | {"sharpness": float(values["decoded_power"].sum() / max(values["power"].sum(), 1e-12))}


def codes_summary(codes: Tensor, num_codes: int) -> dict[str, float]:
    """codes_used, perplexity, entropy (bits): of the codebook over `[N, h, w]` maps. codes_per_slice.
    bits_per_slice_fixed: at log2 K a code."""
    usage, places = CodeUsage.of(codes, num_codes), codes[0].numel()
    return {
        "codes_used": usage.used,
        "perplexity": usage.perplexity,
        "entropy": usage.entropy,
        "codes_per_slice": places,
        "bits_per_slice_fixed": places * float(np.log2(num_codes)),
    }


@torch.inference_mode()
def code_bits(
    prior: GatedPixelCNN, codes: Tensor, known: Mapping[str, np.ndarray], title: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Bits per code of `[N, h, w]` code maps under the prior, computed in float32: means of each map, `[N]`, and of each place
    over the maps, `[h, w]`, float64. known: what the prior is told of each slice, by name, `Split.known`."""
    device, of_maps, of_places = prior.embedding.weight.device, [], 0.0
    with Progress(len(codes), f"bits of {title}", "map", quiet=title is None) as progress:
        for start in range(0, len(codes), BATCH):
            batch = codes[start : start + BATCH].long().to(device)
            told = known_batch(known, np.arange(start, start + len(batch)), prior)
            bits = code_lengths(prior(batch, conditions=told), batch).cpu().double()
            of_maps.append(bits.mean((1, 2)))
            of_places = of_places + bits.sum(0)
            progress.update(len(batch))
    return torch.cat(of_maps).numpy(), (of_places / len(codes)).numpy()


def mean_bits(prior: GatedPixelCNN, codes: Tensor, known: Mapping[str, np.ndarray]) -> float:
    """Bits per code of `[N, h, w]` code maps under the prior."""
    return float(code_bits(prior, codes, known)[0].mean())


def marginal_bits(train_codes: Tensor, codes: Tensor, num_codes: int) -> float:
    """Bits per code of `[N, h, w]` maps when each place has the (smoothed) code frequencies of the training maps there."""
    lengths = -positional_marginal(train_codes, num_codes).flatten(1).double().log2()  # [K, h*w]
    total = sum(float(lengths.gather(0, part.long().flatten(1)).sum()) for part in codes.split(MARGINAL_PART))
    return total / codes.numel()


def known_batch(known: Mapping[str, np.ndarray], indices: np.ndarray, prior: GatedPixelCNN) -> dict[str, Tensor]:
    """What the prior takes of what is known of some slices, by name `[B]` each, on its device."""
    device, taken = prior.embedding.weight.device, prior.arguments["conditions"]
    return {name: torch.from_numpy(values[indices]).to(device) for name, values in known.items() if name in taken}
