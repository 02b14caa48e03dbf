"""Slices that are stored as volumes of one plane: NIfTI files of two dimensions."""

from pathlib import Path

import nibabel as nib

from sources.images import NIFTI


def is_plane(path: Path) -> bool:
    """Whether a NIfTI file's header says that it holds one plane; not where it cannot be read."""
    if not path.name.lower().endswith(NIFTI):
        return False
    try:
        shape = nib.load(path).shape
    except Exception:  # readers raise whatever a damaged file leads them to; reading the file says what is wrong
        return False
    return len([length for length in shape if length > 1]) == 2
