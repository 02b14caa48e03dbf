"""What the stages after the first learn from."""

from dataclasses import dataclass

from torch import Tensor

from dataset import Split


@dataclass(frozen=True)
class CodedSlices:
    """Slices of the training and the validation split, and their code maps, `[N, h, w]` integers each.

    mirrored_codes: of the training slices mirrored, where a mirrored slice may stand for one; otherwise as `codes`.
    """

    train: Split
    validation: Split
    codes: Tensor
    mirrored_codes: Tensor
    validation_codes: Tensor
