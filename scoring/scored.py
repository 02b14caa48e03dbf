"""One scan, scored beside the held-out ones of a run: all that `score.py` writes of it.

scored = Scorer(run, held_out).score(scan)                  # scan: a `Split` of one scan's slices
scored.slices["bits"], scored.percentiles["bits"]           # [S] each
scored.findings                                             # what is wrong with the input, in words
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dataset import Split
from inference.restoring import Recipe, Restored, restore
from models.codes import CodeMaps, first_level
from scoring.held_out import HeldOut
from scoring.input_checks import features_of, findings
from scoring.unusual import at_size, beside_of, coded, maps_of, of_scan, slice_scores, standard, tissue_of
from utils import Run


@dataclass(frozen=True)
class Scored:
    """A scan and its scores.

    maps: `unusual.maps_of` it, and "standard", `unusual.standard`. slices, percentiles: by score, `[S]` each. unusual: `[S]`.
    scan, scan_percentiles, scan_unusual: of the whole. findings: of the input, in words. known: whether the scan is one of the
    held-out ones, and was compared to the others. restored: where it was asked for.
    """

    maps: Mapping[str, Tensor]
    slices: Mapping[str, np.ndarray]
    percentiles: Mapping[str, np.ndarray]
    unusual: np.ndarray
    scan: Mapping[str, float]
    scan_percentiles: Mapping[str, float]
    scan_unusual: float
    findings: list[str]
    known: bool
    restored: Restored | None = None

    def pixels(self, run: Run, name: str) -> Tensor:
        """A map as whole slices, `[S, H, W]` float32; zeros where nothing is known."""
        return run.frame.pad(at_size(self.maps[name].nan_to_num(0.0), run.frame.height, run.frame.width))

    def anomaly(self, run: Run) -> Tensor:
        """The map that is held against masks, `[S, H, W]`: that of the restorations where it was asked for, else "standard"."""
        return self.pixels(run, "standard") if self.restored is None else self.restored.map


@dataclass(frozen=True)
class Scorer:
    """Scores scans by a run, beside held-out ones. recipe: how slices are restored; `times` 0: they are not."""

    run: Run
    held_out: HeldOut
    recipe: Recipe = field(default_factory=Recipe)

    @cached_property
    def tissue(self) -> Tensor:
        """Where brain is expected, `unusual.tissue_of`."""
        return tissue_of(self.held_out.mean_slices.images, self.run.frame)

    def score(self, scan: Split) -> Scored:
        """Score the slices of one scan. One that is itself held out has the scores that it has among the others."""
        groups, own = self.held_out.groups_of(scan), self.held_out.own(scan)
        codes = coded(self.run, scan)
        maps = maps_of(self.run, scan, codes)
        high, usual, beside = self.held_out.highs, self.held_out.usual, beside_of(scan)
        about = (usual, groups, beside, self.tissue)
        slices = slice_scores(maps, high, *about) if own is None else self.held_out.scores_of(own)
        whole, unusual = of_scan(slices), standard(maps, *about)
        return Scored(
            maps | {"standard": unusual},
            slices,
            self.held_out.percentiles(slices, groups, own),
            self.held_out.unusual(slices, groups, own),
            whole,
            self.held_out.scan_percentiles(whole, own),
            self.held_out.scan_unusual(whole, own),
            self._findings(scan, groups, own),
            own is not None,
            self._restored(scan, codes["as it is"], unusual) if self.recipe.times else None,
        )

    def _findings(self, scan: Split, groups: np.ndarray, own: int | None) -> list[str]:
        features, others = features_of(scan.images, groups, self.held_out.mean_slices), self.held_out.features.numpy()
        return findings(features, others if own is None else np.delete(others, own, 0))

    def _restored(self, scan: Split, codes: CodeMaps, unusual: Tensor) -> Restored:
        """The slices with codes drawn anew where the map `standard` passes the threshold anywhere in their patch."""
        unlikely = F.adaptive_max_pool2d(unusual, first_level(codes).shape[1:]) > self.recipe.threshold
        return restore(self.run, scan, codes, unlikely, self.recipe)
