"""The first stage: how the VQ-VAE takes a batch, and how it is scored after an epoch."""

import numpy as np
import torch
from torch import Tensor

from common.runtime import at_a_time, autocast
from dataset import Frame, Split, spread_over
from inference.coding import encode_split
from models.codes import last_level
from models.detail import DetailLevel
from scoring.metrics import CodeUsage
from scoring.slices import mean_ssim
from training.loop import Stage, muon_and_adamw, scored_slices
from training.reconstruction_loss import reconstruction_loss
from vqvae import VQVAE

MUON_SCALE = 0.4  # size of Muon's steps as a share of the learning rate: twice AdamW's
COMMITMENT = 0.25  # beta of arXiv 1711.00937
CONTINUOUS_SHARE, CONTINUOUS_STEPS = 0.1, 200  # share of the VQ-VAE's steps, and steps at most, without quantising
PLACING_SLICES = 128  # training slices whose latents the codes are placed among
PIXELS = 32 * 208 * 176  # pixels whose activations are held at a time


class VQVAEStage(Stage):
    """Trains the VQ-VAE on the frames of the training slices; scored by SSIM on whole validation slices.

    The first steps train a plain autoencoder: the codes are then placed among latents that already mean something, and
    nearly all of them find use.
    """

    name, score, higher_is_better = "vqvae", "validate_ssim", True
    chances = 1

    def __init__(
        self, model: VQVAE, train: Split, validation: Split, frame: Frame, precision: str, trained: bool = False
    ):
        """`trained`: the model has been trained before, so its codes stay where they are."""
        self.codec = model  # what encodes and decodes; a stage of another level replaces it by all levels
        self.model, self.train, self.frame, self.precision, self.trained = model, train, frame, precision, trained
        self.size = len(train)
        device = next(model.parameters()).device
        self.micro_batch = max(1, at_a_time(PIXELS, device) // (frame.height * frame.width))
        self.scored = {
            "train": train.evenly(scored_slices(self.size) // 2),
            "validate": validation.evenly(scored_slices(self.size)),
        }
        self.continuous = False  # whether this step trains without quantising
        self.placed: bool | None = None  # whether the codes have their places for good; None before the first step
        self.pending: list[tuple[Tensor, Tensor]] = []  # latents and codes of the parts of this batch

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        return muon_and_adamw(self.model, lr, MUON_SCALE)

    def start(self, indices: np.ndarray) -> None:
        if not self.trained:
            self.codec.start(self._images(indices))

    def before_step(self, step: int, steps: int) -> None:
        if self.placed is None:  # codes that have moved are never placed again, though `steps` was raised since
            self.placed = self.trained or bool(self.model.quantizer.updates > 0)
        self.continuous = not self.placed and step < min(CONTINUOUS_STEPS, round(CONTINUOUS_SHARE * steps))
        if not (self.placed or self.continuous):
            self._place_codes()
            self.placed = True

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        images = self._images(indices)
        if self.train.symmetric:
            images = mirrored(images, chance[:, 0])
        with autocast(images.device, self.precision):
            out = None if self.continuous else self.codec(images)
            decoded = self.codec.autoencode(images) if out is None else out.images
        reconstruction = reconstruction_loss(decoded, images)
        if out is None:
            return {
                "loss": reconstruction,
                "reconstruction": reconstruction.detach(),
                "commitment": reconstruction.new_zeros(()),
            }
        self.pending.append((out.latents, out.codes))
        return {
            "loss": reconstruction + COMMITMENT * out.commitment_loss,
            "reconstruction": reconstruction.detach(),
            "commitment": out.commitment_loss.detach(),
        }

    def after_step(self) -> dict[str, float]:
        if self.continuous:
            return {}
        if not self.pending:  # this process had no share of the batch
            none = torch.empty(0, 1, 1, dtype=torch.int64, device=self.model.quantizer.codebook.device)
            self.pending = [(self.model.quantizer.codebook.new_empty(0, self.model.quantizer.code_dim, 1, 1), none)]
        latents, codes = (torch.cat(parts) for parts in zip(*self.pending))
        self.pending.clear()
        self.model.quantizer.update(latents, codes)
        usage = CodeUsage.of(codes.cpu(), self.model.quantizer.num_codes)
        return {"codes": usage.used, "perplexity": usage.perplexity}

    def before_validation(self) -> None:
        if self.continuous:
            self._place_codes()  # so that an early score is one of codes too

    def validate(self, model: VQVAE | DetailLevel) -> dict[str, float]:
        scores = {}
        for name, split in self.scored.items():
            codes = encode_split(self.codec, split, self.frame)
            usage = CodeUsage.of(last_level(codes), model.quantizer.num_codes)
            scores |= {
                f"{name}_ssim": mean_ssim(self.codec, split, codes, self.frame),
                f"{name}_codes_used": usage.used,
                f"{name}_perplexity": usage.perplexity,
            }
        return scores

    @torch.no_grad()
    def _place_codes(self) -> None:
        """Put the codes among the latents of slices spread over the training split."""
        chosen = spread_over(self.size, PLACING_SLICES)
        parts = [
            self.codec.latents(self._images(part)).float()
            for part in np.array_split(chosen, -(-len(chosen) // self.micro_batch))
        ]
        self.model.quantizer.start(torch.cat(parts))

    def _images(self, indices: np.ndarray) -> Tensor:
        device = next(self.model.parameters()).device
        return self.train.batch(indices, self.frame).to(device, memory_format=torch.channels_last)


def mirrored(images: Tensor, chance: Tensor) -> Tensor:
    """Each slice of `[B, 1, H, W]` mirrored left to right (its rows, as the head lies on its side) where its chance is below a
    half."""
    return torch.where((chance < 0.5)[:, None, None, None].to(images.device), images.flip(2), images)
