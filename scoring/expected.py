"""What a prior expects of code maps, in bits and in pixels.

    bits, pictures = expected(run, codes, scan.known)       # [S, h, w], [S, H, W] within the frame

A code that costs many bits may still paint what was expected, since many codes look alike, and a cheap one may not. So the
distribution at each place, given the codes read before it, is made a picture too: the decoder's, of the mean code vectors. The
difference of a slice from it is large where the slice looks unlike what its other codes promise.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from models.detail import first_of
from scoring.bits import BATCH, known_batch
from scoring.metrics import code_lengths
from utils import Run


@torch.inference_mode()
def expected(run: Run, codes: Tensor, known: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Bits of every code under the prior, told nothing of other slices, and the pictures that it expects.

    Args:
        run: with a prior. codes: `[S, h, w]`, of the first level. known: what the prior is told of each slice, `Split.known`.

    Returns:
        `[S, h, w]` and `[S, h*f, w*f]` float32 in 0..1, on the CPU.
    """
    first, device = first_of(run.vqvae), run.prior.embedding.weight.device
    bits, pictures = [], []
    for start in range(0, len(codes), BATCH):
        batch = codes[start : start + BATCH].long().to(device)
        logits = run.prior(batch, conditions=known_batch(known, np.arange(start, start + len(batch)), run.prior))
        bits.append(code_lengths(logits, batch).cpu())
        vectors = torch.einsum("bkhw,kd->bdhw", logits.softmax(1), first.quantizer.codebook)
        pictures.append(first.decoder(vectors)[:, 0].float().clamp(0, 1).cpu())
    return torch.cat(bits), torch.cat(pictures)
