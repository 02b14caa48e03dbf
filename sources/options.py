"""Where slices come from and how they are read, as options that are checked before anything is read."""

import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from common.errors import UserError
from dataset import NEIGHBOUR
from sources.splits import shares_of
from sources.volumes import VolumeOptions

FOLDER = "folder"  # the condition that is the class which a slice's folders name


@dataclass(frozen=True)
class DataOptions:
    """Where slices come from and how; the flags of `train.py` of the same names. front_first: as in `VolumeOptions`."""

    data: str | None = None
    format: str = "auto"
    image_size: int | None = None
    axis: str = "axial"
    spacing: float = 1.0
    slices: int = 32
    slice_range: str | None = None
    split: str = "85,10,5"
    split_file: str | None = None
    skip_bad: bool = False
    window: str | None = None
    table: str | None = None
    condition: str | None = None
    contrast: str | None = None
    subject: str | None = None
    front_first: bool = False

    @classmethod
    def of(cls, flags: dict[str, Any]) -> "DataOptions":
        """From a run's flags; those that are not about data are left out."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in flags.items() if name in names})

    @property
    def volumes(self) -> VolumeOptions:
        ends = None if self.slice_range is None else range_of(self.slice_range)
        window = None if self.window is None else window_of(self.window)
        return VolumeOptions(self.axis, self.spacing, self.slices, ends, window, self.front_first)

    @property
    def conditions(self) -> list[str]:
        return [name.strip() for name in (self.condition or "").split(",") if name.strip()]

    def check(self) -> None:
        """Raise UserError for a value that cannot work."""
        if not 0.1 <= self.spacing <= 20:
            raise UserError(f"--spacing is {self.spacing:g}; expected 0.1 to 20 mm")
        if not 1 <= self.slices <= 1024:
            raise UserError(f"--slices is {self.slices}; expected 1 to 1024 of each volume")
        if (self.table is None) != (not set(self.conditions) - {FOLDER}):
            raise UserError(
                "--table and --condition go together: a file, and which of its columns to use; without a table there is "
                f"--condition {FOLDER}"
            )
        own = ("position", NEIGHBOUR)  # what the prior is told without a table
        if len(set(self.conditions)) < len(self.conditions) or set(own) & set(self.conditions):
            raise UserError(
                f"--condition is {self.condition}; expected different columns, none of them called {' or '.join(own)}"
            )
        if self.subject is not None:
            check_pattern(self.subject)
        shares_of(self.split)
        if self.slice_range is not None:
            range_of(self.slice_range)
        if self.window is not None:
            window_of(self.window)


def range_of(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise UserError(f"--slice_range is {text}; expected two shares of the axis, low to high, such as 0.3:0.7")
    return low, high


def check_pattern(text: str) -> None:
    """Raise UserError for --subject that is no regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(
            f"--subject {text}: no regular expression ({error}); expected one whose first group is the person, such as ([^/]+)/"
        ) from None


def window_of(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not -np.inf < low < high < np.inf:
        raise UserError(f"--window is {text}; expected two grey values, low to high, such as -100:300")
    return low, high
