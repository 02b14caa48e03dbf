"""The prior of the second level of codes: it learns as the first one's does, and is told the first level.

It sees whole maps, a few at a time. Windows with exact borders would need the codes that its layers reach beyond them on three
sides, which for windows of half a map a side is more than twice the work; nor is there a need, since the map is no larger than
what one slice's activations fill.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from models.codes import as_taken, first_level, last_level
from models.detail import TwoLevelVQVAE
from pixelcnn import GatedPixelCNN
from scoring.bits import told_of_first
from training.coded_slices import CodedSlices
from training.prior_stage import PriorStage


class DetailPriorStage(PriorStage):
    """Trains the prior of the second level. What it is told of the first (`TwoLevelVQVAE.context`) is made anew for each batch:
    for all slices it would fill a disk.

    Args:
        model: made with `context_features`. levels: the trained VQ-VAE. data: with maps of both levels.
        precision, trained: as in `PriorStage`.
    """

    name = "detail_prior"

    def __init__(
        self, model: GatedPixelCNN, levels: TwoLevelVQVAE, data: CodedSlices, precision: str, trained: bool = False
    ):
        super().__init__(model, data.of(last_level), levels.detail.quantizer.codebook, precision, trained)
        self.levels, self.first = levels.eval(), data.of(first_level)

    def features(self, chosen: Tensor, mirrored: Tensor) -> Tensor:
        device = self.levels.first.quantizer.codebook.device
        return self.levels.context(as_taken(self.first.maps(chosen, mirrored), device))

    def scored_features(self, name: str) -> Callable[[np.ndarray], Callable[[Tensor], Tensor]]:
        return told_of_first(self.levels, self.first.codes if name == "train" else self.first.validation_codes)
