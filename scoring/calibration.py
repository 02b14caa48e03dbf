"""How sure of itself a prior should be: one temperature for all its logits, fitted on maps that it has not learned from.

C. Guo et al. 2017, "On calibration of modern neural networks", arXiv 1706.04599, section 4.2.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from pixelcnn import GatedPixelCNN
from scoring.bits import BATCH, known_batch

CODES = 32768  # that a temperature is fitted on, at most, spread over the maps
COLDEST, HOTTEST = 0.5, 2.0


@torch.inference_mode()
def fit_temperature(
    prior: GatedPixelCNN,
    codes: Tensor,
    known: Mapping[str, np.ndarray],
    context: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """The temperature at which the prior spends the fewest bits on `[N, h, w]` code maps that it has not learned from.

    known: what it is told of each slice, by name, `Split.known`. context: as in `bits.code_bits`, something for each slice.
    features: as there.
    The prior stays as it is.
    """
    each = min(codes[0].numel(), math.ceil(CODES / len(codes)))
    generator = torch.Generator().manual_seed(0)
    applied = prior.temperature if context is None else prior.told_temperature
    device, logits, chosen = prior.embedding.weight.device, [], []
    for part in np.array_split(np.arange(len(codes)), math.ceil(len(codes) / BATCH)):
        batch = codes[torch.from_numpy(part)].long().to(device)
        beside = None if context is None else context[torch.from_numpy(part)].to(device)
        coarser = None if features is None else features(torch.from_numpy(part))
        told = known_batch(known, part, prior)
        found = prior(batch, conditions=told, context=beside, features=coarser).float() * applied
        positions = torch.rand(len(batch), codes[0].numel(), generator=generator).argsort(1)[:, :each].to(device)
        at = positions[:, None].expand(-1, prior.num_codes, -1)
        logits.append(found.flatten(2).gather(2, at).transpose(1, 2).flatten(0, 1).cpu())
        chosen.append(batch.flatten(1).gather(1, positions).flatten().cpu())
    at_one, target = torch.cat(logits), torch.cat(chosen)

    def nats(log_temperature: float) -> float:
        return float(F.cross_entropy(at_one / math.exp(log_temperature), target))

    return math.exp(minimize_scalar(nats, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded").x)
