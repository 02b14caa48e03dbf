"""Slices that are stored as volumes of one plane: NIfTI, Analyze or MGH files of two dimensions.

pixels = read_plane(Path("case_004_week_0_slice_0.nii.gz"))     # [rows, columns], as they are stored
"""

from pathlib import Path

import nibabel as nib
import numpy as np


def is_plane(path: Path) -> bool:
    """Whether a file's header says that it holds one plane; not where it cannot be read."""
    try:
        shape = nib.load(path).shape
    except Exception:  # readers raise whatever a damaged file leads them to; reading the file says what is wrong
        return False
    return len([length for length in shape if length > 1]) == 2


def read_plane(path: Path) -> np.ndarray:
    """The pixels of a file of one plane, `[rows, columns]` in the file's own units."""
    pixels = np.asanyarray(nib.load(path).dataobj)
    return pixels.reshape([length for length in pixels.shape if length > 1])
