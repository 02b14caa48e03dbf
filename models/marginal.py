"""How often each code stands at each position of the training maps: what a prior need not learn."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def positional_marginal(codes: Tensor, num_codes: int, smoothing: float = 32.0) -> Tensor:
    """How often each code stands at each position: `[N, h, w]` integers -> `[K, h, w]` float32 probabilities.

    Smoothed by `smoothing` draws of the code's overall (add-one) frequency: by default as many as a subject has slices, since
    the slices of one subject are alike and their counts say little about another.
    """
    return PositionalMarginal([codes], num_codes, [0] * len(codes), smoothing).probabilities()


class PositionalMarginal:
    """Code frequencies by position, and what they are without the subject that a map is of.

    A prior that is given frequencies which count the very map it learns from would trust them more than it should.

    Args:
        sets: training maps, `[N, h, w]` integers each: sets of as many maps of the same slices, such as the mirrored ones.
        num_codes: K.
        groups: `[N]` the subject of each map of a set.
        smoothing: as in `positional_marginal`; None: as many as a subject has maps.
    """

    def __init__(
        self, sets: Sequence[Tensor], num_codes: int, groups: Sequence[object], smoothing: float | None = None
    ):
        self.shape = num_codes, *sets[0].shape[1:]
        self.sets, self.maps = [maps.flatten(1) for maps in sets], sum(map(len, sets))
        names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
        self.group = torch.tensor([names[name] for name in groups])
        self.smoothing = self.maps / len(names) if smoothing is None else smoothing
        self.counts = torch.zeros(num_codes, self.sets[0].shape[1])
        for maps in self.sets:
            for part in maps.split(1024):
                self._add(self.counts, part.long(), 1.0)
        totals = self.counts.double().sum(1, keepdim=True)
        self.extra = (self.smoothing * (totals + 1) / (totals.sum() + num_codes)).float()  # [K, 1]
        self.log_all = (self.counts + self.extra).log_()
        self.own = torch.zeros_like(self.counts)  # zero between calls

    def probabilities(self) -> Tensor:
        """`[K, h, w]` float32."""
        return ((self.counts + self.extra) / (self.maps + self.smoothing)).view(self.shape)

    def log_without(self, indices: Tensor) -> Tensor:
        """The log frequencies without the subject of each of these maps: `[B]` -> `[B, K, h, w]`."""
        tables = self.log_all.repeat(len(indices), 1, 1)
        for table, index in zip(tables, indices.tolist()):
            own = self.group == self.group[index]
            maps = torch.cat([each[own] for each in self.sets]).long()
            self._add(self.own, maps, 1.0)
            left = (self.counts.gather(0, maps) - self.own.gather(0, maps) + self.extra[:, 0][maps]).log_()
            table.scatter_(0, maps, left)
            table -= math.log(self.maps - len(maps) + self.smoothing)
            self.own.scatter_(0, maps, 0.0)
        return tables.view(len(indices), *self.shape)

    @staticmethod
    def _add(counts: Tensor, maps: Tensor, value: float) -> None:
        counts.scatter_add_(0, maps, torch.full_like(maps, value, dtype=counts.dtype))
