"""A split decoded once, for its scores and for sets to compare; memory that is used again."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import Frame, Split
from inference.coding import decode, encode_split
from scoring import decoders
from scoring.decoders import codes_kept, decode_split
from scoring.slices import slice_scores
from vqvae import VQVAE

FRAME = Frame(8, 8, 32, 32, 48, 48)


@pytest.fixture
def split() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (37, 48, 48)).astype(np.uint8)
    return Split(images, [str(i // 4) for i in range(37)], [""] * 37)


@pytest.mark.parametrize("most", [5, 37, 100])
def test_what_is_kept_of_a_decoded_split_is_spread_over_it(split, most, monkeypatch):
    monkeypatch.setattr(decoders, "COMPARED", most)
    vqvae = VQVAE(16, 8, 8, width=16, blocks=1).eval()
    codes = encode_split(vqvae, split, FRAME)
    decoded = decode_split(vqvae, split, codes, FRAME, "test")
    chosen = np.unique(np.linspace(0, 36, min(most, 37)).round().astype(int))
    every = FRAME.crop(decode(vqvae, codes, FRAME))[:, 0]
    assert torch.equal(decoded.images, every[torch.from_numpy(chosen)])
    for name, values in slice_scores(vqvae, split, codes, FRAME).items():
        assert np.array_equal(values, decoded.values[name])


def test_codes_kept_counts_codes_of_what_is_encoded_again(split):
    vqvae = VQVAE(16, 8, 8, width=16, blocks=1).eval()
    codes = encode_split(vqvae, split, FRAME)
    slices = FRAME.crop(split.batch(np.arange(37)))[:, 0]
    assert codes_kept(vqvae, codes, slices, FRAME) == 1
    wrong = codes.clone()
    wrong[:, 0] = (wrong[:, 0] + 1) % 16
    assert codes_kept(vqvae, wrong, slices, FRAME) == pytest.approx(0.75)


MAPPED = """
import ctypes, os, sys
sys.path.insert(0, os.getcwd())
import torch
from common.runtime import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
class Info(ctypes.Structure):  # mallinfo2, malloc.h: hblks is the number of regions asked of the system, one a block
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
info = ctypes.CDLL(None).mallinfo2
info.restype = Info
before = info().hblks
tensors = [torch.empty(megabytes, 2**18) for megabytes in (1, 10, 20, 40)]
print(info().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="a recent glibc alone says what it maps")
def test_tensors_of_up_to_32_mib_are_made_in_memory_that_others_leave():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def mapped(how: str) -> int:
        command, place = [sys.executable, "-c", MAPPED, how], Path(__file__).parent.parent
        return int(subprocess.run(command, check=True, capture_output=True, cwd=place, env=environment).stdout)

    assert (mapped("keep"), mapped("as it is")) == (1, 4)
