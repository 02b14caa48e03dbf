"""Slices to code maps and back, by a trained VQ-VAE."""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.runtime import Progress
from dataset import Dataset, Frame, Split
from vqvae import VQVAE

BATCH = 32  # slices at a time; fixed, so that a score can be reproduced to the last digit


def encode(model: VQVAE, images: Tensor, frame: Frame) -> Tensor:
    """Code maps of whole slices, on the CPU: `[B, 1, H, W]` in 0..1 -> `[B, h, w]` int64."""
    device = next(model.parameters()).device
    return model.encode(frame.crop(images).to(device, memory_format=torch.channels_last)).cpu()


def decode(model: VQVAE, codes: Tensor, frame: Frame, noise: Tensor | None = None) -> Tensor:
    """Whole slices of code maps, on the CPU: `[B, h, w]` -> `[B, 1, H, W]` in 0..1. noise: `[B, 1, h*f, w*f]`, of a decoder that
    makes texture of it; None: each slice has its own."""
    device = next(model.parameters()).device
    noises = [None] * len(codes) if noise is None else noise.split(BATCH)
    pairs = zip(codes.split(BATCH), noises)
    return torch.cat([frame.pad(model.decode(part.long().to(device), its).cpu()) for part, its in pairs])


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


def encode_splits(model: VQVAE, data: Dataset, frame: Frame, *names: str) -> dict[str, Tensor]:
    """Code maps by split, as a run's `codes.safetensors` has them: of the named splits, and of the training slices mirrored as
    "train_mirrored", where a mirrored slice may stand for one; otherwise as they are."""
    codes = {name: encode_split(model, data.splits[name], frame, f"encoding {name}") for name in names}
    if "train" in names:
        train = data.splits["train"]
        codes["train_mirrored"] = encode_split(model, train, frame, "encoding train, mirrored", train.symmetric)
    return codes


def reconstructions(model: VQVAE, split: Split, codes: Tensor, frame: Frame) -> Iterator[tuple[Tensor, Tensor]]:
    """All slices of a split in order as (slices, reconstructions), `[B, 1, H, W]` in 0..1 each."""
    for indices, images in split.batches(BATCH):
        yield images, decode(model, codes[torch.from_numpy(indices)], frame)
