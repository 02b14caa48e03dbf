"""Code lengths: how many bits a model spends on code maps."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from common.runtime import Progress
from dataset import Split
from models.codes import as_taken
from models.detail import TwoLevelVQVAE
from models.marginal import positional_marginal
from models.neighbours import told_below
from pixelcnn import GatedPixelCNN
from scoring.metrics import code_lengths

BATCH = 16  # maps at a time: they stay in cache; fixed, so that a score can be reproduced to the last digit
MARGINAL_PART = 1024  # code maps at a time


def code_bits(
    prior: GatedPixelCNN,
    codes: Tensor,
    known: Mapping[str, np.ndarray],
    title: str | None = None,
    tables: Callable[[Tensor], Tensor] | None = None,
    context: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Bits per code of `[N, h, w]` code maps under the prior: means of each map, `[N]`, and of each position over the maps,
    `[h, w]`, float64. Arguments as in `bits_of_maps`; title: of the progress bar, None shows none."""
    of_maps, by_position = [], 0.0
    with Progress(len(codes), f"bits of {title}", "map", quiet=title is None) as progress:
        for bits in bits_of_maps(prior, codes, known, tables, context, features):
            of_maps.append(bits.double().mean((1, 2)))
            by_position = by_position + bits.double().sum(0)
            progress.update(len(bits))
    return torch.cat(of_maps).numpy(), (by_position / len(codes)).numpy()


def bits_of_maps(
    prior: GatedPixelCNN,
    codes: Tensor,
    known: Mapping[str, np.ndarray],
    tables: Callable[[Tensor], Tensor] | None = None,
    context: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Bits of every code of `[N, h, w]` code maps under the prior, computed in float32: `[B, h, w]` of a batch at a time.

    known: what the prior is told of each slice, by name, `Split.known`.
    tables: from the indices of maps to log frequencies in place of the prior's own: of training maps, those without the map's
    subject (`PositionalMarginal.log_without`).
    context: `[N, M, h, w]` int64, of a prior that is told neighbouring maps (`models.neighbours.told_below`); None tells nothing.
    features: from the indices of maps to what a prior is told of a coarser level (`told_of_first`).
    """
    device = prior.embedding.weight.device
    for start in range(0, len(codes), BATCH):
        batch = codes[start : start + BATCH].long().to(device)
        told = known_batch(known, np.arange(start, start + len(batch)), prior)
        given = {}
        if tables is not None:
            given["log_marginal"] = tables(torch.arange(start, start + len(batch))).to(device)
        if context is not None:
            given["context"] = context[start : start + len(batch)].to(device)
        if features is not None:
            given["features"] = features(torch.arange(start, start + len(batch)))
        with torch.inference_mode():
            bits = code_lengths(prior(batch, conditions=told, **given), batch)
        yield bits.cpu()


def mean_bits(
    prior: GatedPixelCNN,
    codes: Tensor,
    known: Mapping[str, np.ndarray],
    tables: Callable[[Tensor], Tensor] | None = None,
    context: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Bits per code of `[N, h, w]` code maps under the prior; arguments as in `code_bits`."""
    return float(code_bits(prior, codes, known, None, tables, context, features)[0].mean())


def told_bits(
    prior: GatedPixelCNN,
    codes: Tensor,
    split: Split,
    some: np.ndarray | None = None,
    tables: Callable[[np.ndarray], Callable[[Tensor], Tensor] | None] = lambda _: None,
    features: Callable[[np.ndarray], Callable[[Tensor], Tensor] | None] = lambda _: None,
) -> float | None:
    """Bits per code of slices that have another below them, under a prior that is told the map of that one.

    codes: `[N, h, w]` of all slices of the split. some: the slices asked for, by their indices; None: all.
    tables, features: from the indices of slices to those of `code_bits`.

    None for a prior without context, or where no slice has one below.
    """
    below = with_one_below(split, np.arange(len(split)) if some is None else some)
    if not (prior.context_maps and len(below)):
        return None
    known, context = told_below(split, codes, prior.context_maps, below)
    return mean_bits(prior, codes[torch.from_numpy(below)], known, tables(below), context, features(below))


def told_of_first(levels: TwoLevelVQVAE, first: Tensor) -> Callable[[np.ndarray], Callable[[Tensor], Tensor]]:
    """From the indices of slices to what a prior of the second level is told of the first one's `[N, h, w]` maps of them, as
    `code_bits` takes it."""
    device = levels.first.quantizer.codebook.device

    def of(some: np.ndarray) -> Callable[[Tensor], Tensor]:
        chosen = torch.from_numpy(some)
        return lambda indices: levels.context(as_taken(first[chosen[indices]], device))

    return of


def with_one_below(split: Split, some: np.ndarray) -> np.ndarray:
    """Those of some slices that have another below them."""
    return some[split.neighbours(-1)[some] >= 0]


def marginal_bits(train_codes: Tensor, codes: Tensor, num_codes: int) -> float:
    """Bits per code of `[N, h, w]` maps when each position has the (smoothed) code frequencies of the training maps there."""
    lengths = -positional_marginal(train_codes, num_codes).flatten(1).double().log2()  # [K, h*w]
    total = sum(float(lengths.gather(0, part.long().flatten(1)).sum()) for part in codes.split(MARGINAL_PART))
    return total / codes.numel()


def lossless_bits(codes: Tensor, num_codes: int, compress: Callable[[bytes], bytes]) -> float:
    """Bits per code of all maps, as bytes one after the other, through a general compressor."""
    data = codes.numpy().astype(np.uint8 if num_codes <= 256 else np.uint16).tobytes()
    return 8 * len(compress(data)) / codes.numel()


def known_batch(known: Mapping[str, np.ndarray], indices: np.ndarray, prior: GatedPixelCNN) -> dict[str, Tensor]:
    """What the prior takes of what is known of some slices, by name `[B]` each, on its device."""
    device, taken = prior.embedding.weight.device, prior.arguments["conditions"]
    return {name: torch.from_numpy(values[indices]).to(device) for name, values in known.items() if name in taken}
