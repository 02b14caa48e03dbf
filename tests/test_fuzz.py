"""Damaged and hostile files: whatever is in them, they are read or refused by name, and nothing else happens.

`OASIS_VQVAE_FUZZ=20000` tries as many images and a quarter as many of each other kind; 400 and 100 otherwise.
"""

import io
import json
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from common.files import load_checkpoint, load_model, save_checkpoint, save_model
from sources.images import load_image
from utils import read_codes, read_config
from vqvae import VQVAE

IMAGES = int(os.environ.get("OASIS_VQVAE_FUZZ", "400"))
QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))
PNG_START = 8  # bytes before the first chunk


def mutations(most: int = 6) -> st.SearchStrategy:
    """What is done to a file: where, as a share of its length, what, and with which bytes."""
    one = st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(("set", "insert", "cut", "repeat")),
        st.binary(min_size=1, max_size=8),
    )
    return st.tuples(st.lists(one, max_size=most), st.floats(0, 1) | st.just(1.0))


def mutated(data: bytes, changes: tuple) -> bytes:
    edits, kept = changes
    for share, what, new in edits:
        at = int(share * len(data))
        if what == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif what == "insert":
            data = data[:at] + new + data[at:]
        elif what == "cut":
            data = data[:at] + data[at + new[0] :]
        else:
            data = data[:at] + data[at : at + new[0]] * 2 + data[at:]
    return data[: max(1, int(kept * len(data)))]


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks say that they are whole, so that damage gets past the first check."""
    parts, at = [data[:PNG_START]], PNG_START
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(parts) + data[at:]


def pngs() -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for mode in ("L", "RGB", "RGBA", "P", "LA", "1", "I;16"):
        image = Image.fromarray(rng.integers(0, 255, (9, 13), dtype=np.uint8))
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        files.append(io.BytesIO())
        image.save(files[-1], "PNG")
    frames = [Image.fromarray(rng.integers(0, 255, (9, 13), dtype=np.uint8)) for _ in range(3)]
    files.append(io.BytesIO())
    frames[0].save(files[-1], "PNG", save_all=True, append_images=frames[1:])
    return [file.getvalue() for file in files]


@settings(max_examples=IMAGES, **QUIET)
@given(st.sampled_from(pngs()), mutations(), st.booleans())
def test_images_are_read_or_refused(tmp_path_factory, data, changes, mend):
    path = tmp_path_factory.getbasetemp() / "fuzzed.png"
    damaged = mutated(data, changes)
    path.write_bytes(with_right_checksums(damaged) if mend else damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Invalid APNG")  # as `dataset` has it: the first image is taken
        try:
            image, _ = load_image(path)
        except UserError as refusal:
            assert str(path) in str(refusal) and "\n" not in str(refusal)
        else:
            assert image.dim() == 4 and float(image.min()) >= 0 and float(image.max()) <= 1


def trained_file(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    if kind == "weights":
        save_model(folder / "vqvae.safetensors", VQVAE(4, 2, 4, width=4, blocks=1))
        return folder / "vqvae.safetensors"
    if kind == "checkpoint":
        state = {"stage": "vqvae", "finished": [], "model": {"weight": torch.randn(3, 4)}, "place": {"epoch": 1}}
        save_checkpoint(folder / "checkpoint.pt", state)
        return folder / "checkpoint.pt"
    if kind == "codes":
        from safetensors.torch import save_file

        save_file({"train": torch.zeros(2, 3, 4, dtype=torch.int16)}, folder / "codes.safetensors")
        return folder / "codes.safetensors"
    frame = dict(top=0, left=0, height=8, width=8, image_height=8, image_width=8)
    (folder / "config.json").write_text(json.dumps({"data": {"frame": frame}, "flags": {}}))
    return folder / "config.json"


READERS = {
    "weights": lambda path: load_model(path, VQVAE),
    "checkpoint": load_checkpoint,
    "codes": lambda path: read_codes(path.parent),
    "config": lambda path: read_config(path.parent),
}


@pytest.mark.parametrize("kind", READERS)
def test_other_files_are_read_or_refused(kind, tmp_path):
    path = trained_file(tmp_path, kind)
    whole = path.read_bytes()

    @settings(max_examples=IMAGES // 4, **QUIET)
    @given(mutations())
    def attempt(changes):
        path.write_bytes(mutated(whole, changes))
        try:
            READERS[kind](path)
        except UserError as refusal:
            assert path.name in str(refusal)

    attempt()
