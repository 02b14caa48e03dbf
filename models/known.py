"""What is known of code maps before they are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What is known of code maps before they are drawn.

    position: `[batch]` slice position in 0..1, NaN or None where unknown.
    conditions: the others by name, as in `GatedPixelCNN.forward`.
    codes: known codes, `[height, width]` or `[batch, height, width]` int64; read where `keep` is true alone.
    keep: bool of the same shape or `[height, width]`: which codes are known. Known codes stay where they stand and condition all
        that are drawn after them, below and to the right.
    context, features: code maps beside these and features of them, as in `GatedPixelCNN.forward`.

    Raises:
        ValueError: when only one of `codes` and `keep` is given.
    """

    position: Tensor | None = None
    conditions: Mapping[str, Tensor] | None = None
    codes: Tensor | None = None
    keep: Tensor | None = None
    context: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) != (self.keep is None):
            raise ValueError("codes and keep go together: which codes are known, and where")

    def kept(self, size: tuple[int, int, int], num_codes: int) -> tuple[Tensor, Tensor] | None:
        """Known codes and where they stand, `[batch, height, width]` each; whatever stands elsewhere is made a valid code. None
        where nothing is known.

        Raises:
            ValueError: when a known code is not in 0..K-1.
        """
        if self.codes is None:
            return None
        codes, keep = self.codes.expand(size), self.keep.expand(size).bool()
        wrong = codes[keep & ((codes < 0) | (codes >= num_codes))]
        if len(wrong):
            raise ValueError(f"a known code is {int(wrong[0])}; expected 0 to {num_codes - 1}")
        return codes.masked_fill(~keep, 0), keep
