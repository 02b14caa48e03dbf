"""The second stage: how the prior takes a batch of code maps, and how it is scored after an epoch."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common.runtime import at_a_time, autocast
from dataset import spread_over
from models.marginal import PositionalMarginal
from pixelcnn import GatedPixelCNN
from scoring.bits import known_batch, mean_bits
from training.coded_slices import CodedSlices
from training.loop import Stage, scored_slices

UNKNOWN_SHARE = 0.05  # of the training maps whose slice position, or another condition, is withheld from the prior
POSITIONS = 24 * 22 * 26  # code-map positions whose activations are held at a time


class PriorStage(Stage):
    """Trains the prior on code maps; scored by bits per code on the validation maps.

    Half of the maps of an epoch are those of the mirrored slices, as the VQ-VAE saw them: twice as many heads to learn from.
    The prior's table of code frequencies by position counts all of these, but for the subject that it is learning from.

    codebook: `[K, D]`, the codes' vectors, which the prior starts from. trained: it has been trained before and starts from what
    it knows, but for that table.
    """

    name, score, higher_is_better = "prior", "validate_bits", False
    average_decay = 0.999

    def __init__(
        self, model: GatedPixelCNN, data: CodedSlices, codebook: Tensor, precision: str, trained: bool = False
    ):
        self.model, self.data, self.codebook = model, data, codebook
        model.temperature = 1.0  # of an earlier calibration; it learns as it is
        self.precision, self.trained = precision, trained
        maps = [data.codes, data.mirrored_codes]
        device = model.embedding.weight.device
        self.marginal = PositionalMarginal(maps, model.num_codes, data.train.subjects, device=device)
        self.withheld = max(1, len(model.arguments["conditions"]))  # chances of withholding something
        self.size, self.chances = len(data.codes), 1 + self.withheld + model.chances
        self.micro_batch = max(1, at_a_time(POSITIONS, device) // math.prod(data.codes.shape[1:]))

    def start(self, indices: np.ndarray) -> None:
        if not self.trained:
            self.model.start_from_marginal(self.marginal.probabilities())
            self.model.start_from_codebook(self.codebook)
        elif self.model.log_marginal is not None:
            self.model.log_marginal.copy_(self.marginal.probabilities().log())

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        device = self.model.embedding.weight.device
        chosen = torch.from_numpy(indices)
        swap = chance[:, 0, None, None] < 0.5
        codes = torch.where(swap, self.data.mirrored_codes[chosen], self.data.codes[chosen]).long().to(device)
        told = known_batch(self.data.train.known, indices, self.model)
        for number, name in enumerate(told, 1):  # now and then withheld, so that the prior also knows slices without
            told[name] = torch.where((chance[:, number] < UNKNOWN_SHARE).to(device), math.nan, told[name])
        table = None if self.model.log_marginal is None else self.marginal.log_without(chosen)
        dropout = chance[:, 1 + self.withheld :]
        with autocast(device, self.precision):
            logits = self.model(codes, conditions=told, log_marginal=table, chance=dropout)
        return {"loss": nn.functional.cross_entropy(logits.float(), codes)}

    def validate(self, model: GatedPixelCNN) -> dict[str, float]:
        data, some = self.data, spread_over(self.size, scored_slices(self.size))
        maps, tables = data.codes[torch.from_numpy(some)], self._without_their_subjects(model, some)
        train = mean_bits(model, maps, data.train.known_of(some), tables)
        some = spread_over(len(data.validation_codes), scored_slices(self.size))
        maps = data.validation_codes[torch.from_numpy(some)]
        return {"train_bits": train, "validate_bits": mean_bits(model, maps, data.validation.known_of(some))}

    def _without_their_subjects(self, model: GatedPixelCNN, some: np.ndarray) -> Callable[[Tensor], Tensor] | None:
        """The tables of code frequencies for some of the training maps: a map's own subject says nothing of how a prior does on
        others."""
        chosen = torch.from_numpy(some)
        return None if model.log_marginal is None else lambda indices: self.marginal.log_without(chosen[indices])
