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
        device: where the counts are kept and the tables are made.
    """

    def __init__(
        self,
        sets: Sequence[Tensor],
        num_codes: int,
        groups: Sequence[object],
        smoothing: float | None = None,
        device: torch.device | str = "cpu",
    ):
        self.shape = num_codes, *sets[0].shape[1:]
        self.maps = sum(map(len, sets))
        self.members: dict[object, list[int]] = {}
        for index, group in enumerate(groups):
            self.members.setdefault(group, []).append(index)
        self.groups, self.device = list(groups), torch.device(device)
        self.smoothing = self.maps / len(self.members) if smoothing is None else smoothing
        counts = torch.zeros(num_codes, sets[0][0].numel())
        for part in (part for maps in sets for part in maps.flatten(1).split(1024)):
            self._add(counts, part.cpu().long(), 1.0)
        totals = counts.double().sum(1, keepdim=True)
        extra = (self.smoothing * (totals + 1) / (totals.sum() + num_codes)).float()  # [K, 1]
        self.counts, self.extra = counts.to(device), extra.to(device)
        self.sets = [maps.flatten(1).to(device) for maps in sets]
        self.log_all = (self.counts + self.extra).log_()
        self.own = torch.zeros_like(self.counts)  # zero between calls

    def probabilities(self) -> Tensor:
        """`[K, h, w]` float32."""
        return ((self.counts + self.extra) / (self.maps + self.smoothing)).view(self.shape)

    def log_without(self, indices: Tensor) -> Tensor:
        """The log frequencies without the subject of each of these maps: `[B]` -> `[B, K, h, w]`."""
        tables = self.log_all.repeat(len(indices), 1, 1)
        for table, index in zip(tables, indices.tolist()):
            members = torch.tensor(self.members[self.groups[index]], device=self.device)
            maps = torch.cat([each[members] for each in self.sets]).long()
            self._add(self.own, maps, 1.0)
            left = (self.counts.gather(0, maps) - self.own.gather(0, maps) + self.extra[:, 0][maps]).log_()
            table.scatter_(0, maps, left)
            table -= math.log(self.maps - len(maps) + self.smoothing)
            self.own.scatter_(0, maps, 0.0)
        return tables.view(len(indices), *self.shape)

    @staticmethod
    def _add(counts: Tensor, maps: Tensor, value: float) -> None:
        counts.scatter_add_(0, maps, torch.full_like(maps, value, dtype=counts.dtype))
