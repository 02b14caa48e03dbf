"""The second level of codes beside the first: what its codes cost, and what is had for it.

Keys of `detail` in the scores of a split: codes_used, perplexity, entropy, codes_per_slice, bits_per_slice_fixed:
`slices.codes_summary`. bits_per_code, bits_per_slice, temperature, bits_per_code_told, told_temperature, bits_per_code_train,
bits_per_code_told_train, generalisation_gap: of its prior, as those of the first level's. bits_per_code_uniform: log2 K.
bits_per_code_frequencies, bits_per_code_marginal: code frequencies of the training maps, over all positions and by position.

Keys of `rate_distortion`: "first" and "both" levels -> bits_per_slice, at the priors' bits, and the ssim, ssim_frame, psnr, mae
and sharpness of the reconstructions that are had for them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import Split, spread_over
from models.codes import Codes
from scoring.bits import marginal_bits, mean_bits, told_bits, told_of_first
from scoring.slices import codes_summary
from utils import Run

MOST_SCORED = 280  # slices, spread over the split, that the second level's prior is scored on, at most
DISTORTION = ("ssim", "ssim_frame", "psnr", "mae", "sharpness")


@dataclass(frozen=True)
class Coded:
    """A split and the code maps of its slices."""

    split: Split
    codes: Codes


def second_level(run: Run, held_out: Coded, train: Codes | None, training: Coded | None, most: int) -> dict[str, float]:
    """Scores of the second level's codes; keys as in this module's docstring.

    Args:
        run: with two levels. held_out: the split that is scored.
        train: code maps of the training split, where they are known. training: the same with its slices, where the data holds
            them and they are not what is scored. most: training maps that the prior is scored on, at most.
    """
    num_codes, detail = run.vqvae.detail.quantizer.num_codes, held_out.codes.detail
    scores = codes_summary(detail, num_codes) | {"bits_per_code_uniform": float(np.log2(num_codes))}
    if train is not None:
        scores["bits_per_code_frequencies"] = frequency_bits(train.detail, detail, num_codes)
        scores["bits_per_code_marginal"] = marginal_bits(train.detail, detail, num_codes)
    if run.detail_prior is None:
        return scores
    scores |= _prior_bits(run, held_out, spread_over(len(held_out.split), MOST_SCORED))
    prior = run.detail_prior
    scores |= {"bits_per_slice": scores["bits_per_code"] * detail[0].numel(), "temperature": prior.temperature}
    scores |= {"told_temperature": prior.told_temperature} if "bits_per_code_told" in scores else {}
    if training is not None:
        found = _prior_bits(run, training, spread_over(len(training.split), most))
        scores |= {f"{name}_train": value for name, value in found.items()}
        scores["generalisation_gap"] = scores["bits_per_code"] - scores["bits_per_code_train"]
    return scores


def _prior_bits(run: Run, coded: Coded, some: np.ndarray) -> dict[str, float]:
    """Bits per code of some slices under the prior of the second level, told no neighbour and told the slice below."""
    features, maps = told_of_first(run.vqvae, coded.codes.first), coded.codes.detail
    known = coded.split.known_of(some)
    scores = {
        "bits_per_code": mean_bits(run.detail_prior, maps[torch.from_numpy(some)], known, features=features(some))
    }
    told = told_bits(run.detail_prior, maps, coded.split, some, features=features)
    return scores | ({} if told is None else {"bits_per_code_told": told})


def frequency_bits(train: Tensor, codes: Tensor, num_codes: int) -> float:
    """Bits per code of maps when every position has the (add-one) code frequencies of the training maps."""
    counts = torch.bincount(train.flatten().int(), minlength=num_codes).double() + 1
    used = torch.bincount(codes.flatten().int(), minlength=num_codes).double()
    return float(-(used * (counts / counts.sum()).log2()).sum() / used.sum())


def rate_distortion(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What each level costs and what is had for it, of a split's scores; empty where a prior's bits are not among them."""
    if not ("bits_per_slice" in scores and "bits_per_slice" in scores["detail"]):
        return {}
    bits = {"first": scores["bits_per_slice"], "both": scores["bits_per_slice"] + scores["detail"]["bits_per_slice"]}
    decoders = {"first": scores["decoders"]["first"], "both": scores["decoders"]["faithful"]}
    return {
        name: {"bits_per_slice": bits[name]} | {key: decoders[name][key] for key in DISTORTION}
        for name in ("first", "both")
    }
