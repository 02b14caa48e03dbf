"""Decoders beside each other: what each makes of the codes of the same slices."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset import Frame, Split, spread_over
from inference.coding import BATCH, encode
from models.codes import CodeMaps, first_level
from models.detail import Codec, first_of
from scoring.classifier import two_sample_auc
from scoring.realism import intensity_distance, sliced_wasserstein
from scoring.sets import SliceSet, Untaken
from scoring.slices import reconstruction_summary, slice_scores
from scoring.texture import texture_summary, texture_values

COMPARED = 2048  # slices, spread over the split, that are compared as sets, at most: they are held in memory
ENCODED = 280  # of these, that are encoded again, at most
NAMES = ("ssim", "ssim_frame", "psnr", "mae", "sharpness")


class Decoded(NamedTuple):
    """What a decoder makes of the codes of a split. values: `slices.slice_scores`. images: of at most `COMPARED` of the slices,
    spread over the split, `[S, H, W]` in 0..1 within the frame."""

    values: Mapping[str, np.ndarray]
    images: Tensor


def decode_split(model: Codec, split: Split, codes: CodeMaps, frame: Frame, title: str) -> Decoded:
    """Decode a split once, for its scores and for what is compared as sets. title: of the progress bar."""
    wanted, kept, seen = spread_over(len(split), COMPARED), [], 0

    def keep(decoded: Tensor) -> None:
        nonlocal seen
        some = wanted[(wanted >= seen) & (wanted < seen + len(decoded))] - seen
        kept.append(frame.crop(decoded[torch.from_numpy(some)])[:, 0].clone())
        seen += len(decoded)

    values = slice_scores(model, split, codes, frame, title, keep)
    return Decoded(values, torch.cat(kept))


def compare_decoders(
    decoders: Mapping[str, tuple[Codec, CodeMaps]],
    split: Split,
    title: str,
    frame: Frame,
    seed: int,
    known: Mapping[str, Decoded],
    leave_out: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Scores of reconstructions by decoder; and as "real" what of it the slices themselves have.

    ssim, ssim_frame, psnr, mae, sharpness: as for the split. swd_0, swd_1, ...: sliced Wasserstein distance to the slices
    themselves, fine to coarse, times 1000. classifier_auc, patch_auc: of small networks that tell reconstructions from slices on
    subjects that they have not seen, by whole slices and by small patches, 0.5 (cannot) to 1. codes_kept: share of the first
    level's codes that stay the same when the reconstruction is encoded again, of at most `ENCODED` slices. histogram: how far
    foreground intensities are from the slices', in gray levels of 255. texture_kurtosis, edge_to_smooth, tissue_noise: where
    fine detail lies, `texture.texture_summary`.

    Args:
        decoders: by name, such as "faithful", "sharp", or "first" for the first of two levels alone: what paints, and the codes
            of all slices that it paints. split, title, frame: whose slices those are. seed: of what is drawn.
        known: what has been decoded already, by decoder. leave_out: is told what cannot be scored.
    """
    some = split.evenly(COMPARED)
    images = some.batch(np.arange(len(some)), frame)[:, 0]
    real, found = SliceSet(images, some.subjects, symmetric=some.symmetric, texture=texture_values(images)), {}
    for name, (model, codes) in decoders.items():
        decoded = known.get(name) or decode_split(model, split, codes, frame, f"{title}, {name}")
        summary = reconstruction_summary(decoded.values, split.subjects)
        found[name] = {key: summary[key] for key in NAMES}
        first = first_level(codes)[torch.from_numpy(spread_over(len(split), COMPARED))]
        found[name]["codes_kept"] = codes_kept(model, first, decoded.images, frame)
        found[name] |= likeness_to_slices(decoded.images, real, seed, leave_out)
    return found | {"real": texture_summary(real.texture)}


def codes_kept(model: Codec, codes: Tensor, images: Tensor, frame: Frame) -> float:
    """The share of the first level's codes `[S, h, w]` that stay the same when what was decoded from them, `[S, H, W]` within the
    frame, is encoded again; of at most `ENCODED` slices, spread over them."""
    some = torch.from_numpy(spread_over(len(codes), ENCODED))
    again = [encode(first_of(model), frame.pad(images[part, None]), frame) for part in some.split(BATCH)]
    return float((torch.cat(again) == codes[some]).double().mean())


def likeness_to_slices(images: Tensor, real: SliceSet, seed: int, leave_out: Callable[[str], None]) -> dict[str, float]:
    """How like the real slices a decoder's reconstructions of them `[S, H, W]` are as a set; keys as in `compare_decoders`."""
    compared, scores = replace(real, images=images, texture=None), {}
    ways: dict[str, Callable[[], float | list[float] | dict[str, float]]] = {
        "histogram": lambda: intensity_distance(compared.images, real.images),
        "swd": lambda: sliced_wasserstein(compared.images, real.images, torch.Generator().manual_seed(seed)),
        "classifier": lambda: classifier_aucs(compared, real, seed),
    }
    for name, way in ways.items():
        try:
            value = way()
        except Untaken as reason:
            leave_out(f"{name} of reconstructions is not scored: {reason}")
            continue
        if isinstance(value, list):
            value = {f"{name}_{level}": each for level, each in enumerate(value)}
        scores |= value if isinstance(value, dict) else {name: value}
    return scores | texture_summary(texture_values(compared.images))


def classifier_aucs(compared: SliceSet, real: SliceSet, seed: int) -> dict[str, float]:
    """`two_sample_auc` by the keys of `compare_decoders`."""
    auc = two_sample_auc(compared, real, seed)
    return {"classifier_auc": auc.slices} | ({"patch_auc": auc.patches} if np.isfinite(auc.patches) else {})
