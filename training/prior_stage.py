"""The second stage: how the prior takes a batch of code maps, and how it is scored after an epoch."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from common.runtime import at_a_time, autocast
from dataset import NEIGHBOUR, spread_over
from models.codes import as_taken
from models.marginal import PositionalMarginal
from pixelcnn import GatedPixelCNN
from scoring.bits import known_batch, mean_bits, told_bits
from training.coded_slices import CodedSlices
from training.loop import Stage, muon_and_adamw, scored_slices
from training.told_neighbours import ToldNeighbours

MUON_SCALE = 1.0  # size of Muon's steps as a share of the learning rate: five times AdamW's
UNKNOWN_SHARE = 0.05  # of the training maps whose slice position, or another condition, is withheld from the prior
POSITIONS = 24 * 22 * 26  # code-map positions whose activations are held at a time


class PriorStage(Stage):
    """Trains the prior on code maps; scored by bits per code on the validation maps.

    Half of the maps of an epoch are those of the mirrored slices, as the VQ-VAE saw them: twice as many heads to learn from.
    The prior's table of code frequencies by position counts all of these, but for the subject that it is learning from.

    A prior with context is told the maps of neighbouring slices (`told_neighbours`). It is scored both told nothing and told the
    slice below, and the best weights are those whose mean of the two is the least: the same prior draws single slices, the first
    of a head, and those after it.

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
        self.told = None
        if model.context_maps:
            model.told_temperature, self.score = 1.0, "validate_mean_bits"
            self.told = ToldNeighbours(data.train, model.context_maps, data.codes, data.mirrored_codes)
        self.precision, self.trained = precision, trained
        maps = [data.codes, data.mirrored_codes]
        device = model.embedding.weight.device
        self.marginal = PositionalMarginal(maps, model.num_codes, data.train.subjects, device=device)
        # chances of withholding something of the slice, of dropout, and of what is told of neighbours
        self.parts = [max(1, len(model.arguments["conditions"].keys() - {NEIGHBOUR})), model.chances]
        self.parts.append(0 if self.told is None else self.told.chances)
        self.size, self.chances = len(data.codes), 1 + sum(self.parts)
        self.micro_batch = max(1, at_a_time(POSITIONS, device) // math.prod(data.codes.shape[1:]))

    def optimizers(self, lr: float) -> list[torch.optim.Optimizer]:
        return muon_and_adamw(self.model, lr, MUON_SCALE)

    def start(self, indices: np.ndarray) -> None:
        if not self.trained:
            self.model.start_from_marginal(self.marginal.probabilities())
            self.model.start_from_codebook(self.codebook)
        elif self.model.log_marginal is not None:
            self.model.log_marginal.copy_(self.marginal.probabilities().log())

    def losses(self, indices: np.ndarray, chance: Tensor) -> dict[str, Tensor]:
        device = self.model.embedding.weight.device
        chosen = torch.from_numpy(indices)
        swap, (withheld, dropout, beside) = chance[:, 0] < 0.5, chance[:, 1:].split(self.parts, dim=1)
        codes, context = as_taken(self.data.maps(chosen, swap), device), None
        told = known_batch(self.data.train.known, indices, self.model)
        # now and then withheld, so that the prior also knows slices without
        for name, unlucky in zip(told, withheld.T):
            told[name] = torch.where((unlucky < UNKNOWN_SHARE).to(device), math.nan, told[name])
        if self.told is not None:
            told[NEIGHBOUR], context = (each.to(device) for each in self.told.of(indices, swap, beside))
        table = None if self.model.log_marginal is None else self.marginal.log_without(chosen)
        features = self.features(chosen, swap)
        with autocast(device, self.precision):
            logits = self.model(
                codes, conditions=told, log_marginal=table, chance=dropout, context=context, features=features
            )
        return {"loss": nn.functional.cross_entropy(logits.float(), codes)}

    def validate(self, model: GatedPixelCNN) -> dict[str, float]:
        data, scores = self.data, {}
        for name, split, codes, tables in (
            ("train", data.train, data.codes, partial(self._without_their_subjects, model)),
            ("validate", data.validation, data.validation_codes, lambda _: None),
        ):
            some = spread_over(len(codes), scored_slices(self.size))
            features, maps = self.scored_features(name), codes[torch.from_numpy(some)]
            nothing = mean_bits(model, maps, split.known_of(some), tables(some), features=features(some))
            told = told_bits(model, codes, split, some, tables, features)
            scores |= {f"{name}_bits": nothing} | ({} if told is None else {f"{name}_told_bits": told})
        if self.told is not None:
            scores[self.score] = (nothing + (nothing if told is None else told)) / 2
        return scores

    def features(self, chosen: Tensor, mirrored: Tensor) -> Tensor | None:
        """What the prior is told of a coarser level of training slices, mirrored ones where `[B]` bool says so; None: nothing."""

    def scored_features(self, name: str) -> Callable[[np.ndarray], Callable[[Tensor], Tensor] | None]:
        """The same of the slices that are scored, "train" or "validate", as `told_bits` takes it."""
        return lambda _: None

    def _without_their_subjects(self, model: GatedPixelCNN, some: np.ndarray) -> Callable[[Tensor], Tensor] | None:
        """The tables of code frequencies for some of the training maps: a map's own subject says nothing of how a prior does on
        others."""
        chosen = torch.from_numpy(some)
        return None if model.log_marginal is None else lambda indices: self.marginal.log_without(chosen[indices])
