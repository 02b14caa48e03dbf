"""What the stages after the first learn from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dataset import Split
from models.codes import CodeMaps, each_level


@dataclass(frozen=True)
class CodedSlices:
    """Slices of the training and the validation split, and their code maps, `[N, h, w]` integers of each level.

    mirrored_codes: of the training slices mirrored, where a mirrored slice may stand for one; otherwise as `codes`.
    """

    train: Split
    validation: Split
    codes: CodeMaps
    mirrored_codes: CodeMaps
    validation_codes: CodeMaps

    def of(self, level: Callable[[CodeMaps], Tensor]) -> "CodedSlices":
        """The same slices with the maps of one level, such as `models.codes.first_level`."""
        codes = (self.codes, self.mirrored_codes, self.validation_codes)
        return CodedSlices(self.train, self.validation, *map(level, codes))

    def maps(self, chosen: Tensor, mirrored: Tensor) -> CodeMaps:
        """The maps of training slices at `[B]` indices, mirrored ones where `[B]` bool says so."""

        def taken(codes: Tensor, turned: Tensor) -> Tensor:
            return turned[chosen].where(mirrored[:, None, None], codes[chosen])

        return each_level(taken, self.codes, self.mirrored_codes)
