"""Where do slices come from? The OASIS PNG slice set, OASIS-1 discs, BIDS, folders of volumes or images, the built-in cohort.

data = load(DataOptions(data="data/bids"), cache=".cache")     # a `dataset.Dataset`
"""

from sources.loading import load
from sources.options import DataOptions

__all__ = ["DataOptions", "load"]
