"""Slices to code maps and back, by a trained VQ-VAE."""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.runtime import Progress
from dataset import Dataset, Frame, Split
from models.codes import CodeMaps, as_taken, each_level
from models.detail import Codec
from vqvae import VectorQuantizer

BATCH = 16  # slices at a time: they stay in cache; fixed, so that a score can be reproduced to the last digit


def encode(model: Codec, images: Tensor, frame: Frame) -> CodeMaps:
    """Code maps of whole slices, on the CPU: `[B, 1, H, W]` in 0..1 -> `[B, h, w]` int64, of each level."""
    device = next(model.parameters()).device
    codes = model.encode(frame.crop(images).to(device, memory_format=torch.channels_last))
    return each_level(lambda maps: maps.cpu(), codes)


def decode(model: Codec, codes: CodeMaps, frame: Frame, noise: Tensor | None = None) -> Tensor:
    """Whole slices of code maps, on the CPU: `[B, h, w]` of each level, or of the first alone -> `[B, 1, H, W]` in 0..1. noise:
    `[B, 1, h*f, w*f]`, of a decoder that makes texture of it; None: each slice has its own."""
    device = next(model.parameters()).device
    noises = [None] * len(codes) if noise is None else noise.split(BATCH)
    decoded = []
    for part, its in zip(codes.split(BATCH), noises):
        decoded.append(frame.pad(model.decode(as_taken(part, device), its).cpu()))
    return torch.cat(decoded)


def encode_split(model: Codec, split: Split, frame: Frame, title: str | None = None, mirror: bool = False) -> CodeMaps:
    """Code maps `[N, h, w]` of all slices of a split, of each level, int16 where K fits, else int32.

    title: names the progress bar, None shows none. mirror: encode the slices mirrored left to right within the frame.
    """
    most = max(module.num_codes for module in model.modules() if isinstance(module, VectorQuantizer))
    maps, kind = [], torch.int16 if most <= 2**15 else torch.int32
    with Progress(len(split), title or "", "slice", quiet=title is None) as progress:
        for indices, images in split.batches(BATCH):
            codes = encode(model, frame.pad(frame.crop(images).flip(2)) if mirror else images, frame)
            maps.append(each_level(lambda level: level.to(kind), codes))
            progress.update(len(indices))
    return each_level(lambda *parts: torch.cat(parts), *maps)


def encode_splits(model: Codec, data: Dataset, frame: Frame, *names: str) -> dict[str, CodeMaps]:
    """Code maps by split, as a run's `codes.safetensors` has them: of the named splits, and of the training slices mirrored as
    "train_mirrored", where a mirrored slice may stand for one; otherwise as they are."""
    codes = {name: encode_split(model, data.splits[name], frame, f"encoding {name}") for name in names}
    if "train" in names:
        train = data.splits["train"]
        codes["train_mirrored"] = encode_split(model, train, frame, "encoding train, mirrored", train.symmetric)
    return codes


def reconstructions(model: Codec, split: Split, codes: CodeMaps, frame: Frame) -> Iterator[tuple[Tensor, Tensor]]:
    """All slices of a split in order as (slices, reconstructions), `[B, 1, H, W]` in 0..1 each."""
    for indices, images in split.batches(BATCH):
        yield images, decode(model, codes[torch.from_numpy(indices)], frame)
