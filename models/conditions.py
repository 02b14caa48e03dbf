"""What is known of a whole slice, numbers and classes, as features of the prior."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

NUMBER = 0  # in place of a number of classes: the condition is a number in 0..1
FREQUENCIES = 8  # of the sines that show a number to the prior


class ConditionEncoder(nn.Module):
    """What is known of a slice as features: numbers as sines of several frequencies, classes as vectors, through a small MLP.

    Args:
        conditions: each name with its number of classes, or `NUMBER`.
        hidden: width of the MLP. out: features.
    """

    def __init__(self, conditions: Mapping[str, int], hidden: int, out: int):
        super().__init__()
        if any(classes < 0 for classes in conditions.values()):
            raise ValueError(f"a condition is a number (0) or has a number of classes, got {dict(conditions)}")
        self.first = nn.ModuleDict(
            {
                name: nn.Embedding(classes, hidden) if classes else nn.Linear(2 * FREQUENCIES, hidden)
                for name, classes in conditions.items()
            }
        )
        self.unknown = nn.ParameterDict({name: nn.Parameter(torch.zeros(hidden)) for name in conditions})
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(hidden, out))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """`[N]` each, NaN where unknown -> `[N, out]`.

        Raises:
            ValueError: for a class that does not exist.
        """
        hidden = 0
        for name, layer in self.first.items():
            known, value = ~values[name].isnan(), values[name].nan_to_num(0)
            if isinstance(layer, nn.Embedding):
                value = value.long()
                if ((value < 0) | (value >= layer.num_embeddings)).any():
                    raise ValueError(f"{name} is a class of 0 to {layer.num_embeddings - 1}, got {value.tolist()}")
            else:
                value = _sines(value)
            hidden = hidden + torch.where(known[:, None], layer(value), self.unknown[name])
        return self.last(hidden)


def _sines(values: Tensor) -> Tensor:
    """`[N]` numbers in 0..1 -> `[N, 2 * FREQUENCIES]`."""
    half_octaves = torch.arange(FREQUENCIES, device=values.device, dtype=values.dtype) / 2
    angles = values[:, None] * math.pi * 2**half_octaves
    return torch.cat([angles.sin(), angles.cos()], dim=1)
