"""Image files as slices.

pixels = decode_image(Path("anna/12.png"), image_size=None)     # uint8 [H, W]
images = decode_images(files, None, np.empty, "decoding")       # uint8 [N, H, W]
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from common.runtime import ProgressFactory, silent

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DECODING = 1  # version: raise it when the decoding changes, so that old caches are made anew
SLICE_NAME = re.compile(r"case_(?P<subject>.+)_slice_(?P<number>\d+)(\.nii)?\.png")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # an image past Pillow's limit is refused
warnings.filterwarnings("ignore", message="Invalid APNG")  # of a broken animation its first image is taken


def decode_image(path: Path, image_size: int | None) -> np.ndarray:
    """One image file as `[H, W]` uint8; colour is averaged to gray, 16 bits are scaled to 8."""
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                gray = _gray_of_floats(np.asarray(image))
            elif image.mode.startswith("I"):
                gray = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            else:
                gray = image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}); replace or remove it") from None
    if image_size is not None and gray.size != (image_size, image_size):
        gray = gray.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(gray)


def _gray_of_floats(pixels: np.ndarray) -> Image.Image:
    """`[H, W]` floats, 0..1 or 0..255, as an 8-bit image."""
    if not np.isfinite(pixels).all():
        raise ValueError("it holds NaN or infinite pixels")
    scale = 255 if pixels.max() <= 1 else 1
    return Image.fromarray((pixels * scale).clip(0, 255).round().astype(np.uint8))


def load_image(path: str | Path, image_size: int | None = None) -> tuple[Tensor, int | None]:
    """One slice, `[1, 1, H, W]` float32 in 0..1, and its slice number where the file's name says it.

    Raises:
        UserError: when the file is missing or no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    match = SLICE_NAME.fullmatch(path.name)
    pixels = torch.from_numpy(decode_image(path, image_size).copy())
    return pixels[None, None].float().div_(255), int(match["number"]) if match else None


def decode_images(
    files: Sequence[Path],
    image_size: int | None,
    make: Callable[[tuple[int, ...]], np.ndarray],
    title: str,
    progress: ProgressFactory | None = None,
) -> None:
    """Decode files of one size in parallel into the `[N, H, W]` uint8 array that `make(shape)` gives.

    Raises:
        UserError: for a file that is no readable image or has another size than the first.
    """
    first = decode_image(files[0], image_size)
    images = make((len(files), *first.shape))

    def decode(index: int) -> None:
        image = decode_image(files[index], image_size)
        if image.shape != first.shape:
            raise UserError(
                f"{files[index]}: {image.shape[0]}x{image.shape[1]} pixels, but {files[0].name} has "
                f"{first.shape[0]}x{first.shape[1]}; give --image_size to resample all to one size"
            )
        images[index] = image

    in_parallel(decode, len(files), progress, title, "image")


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An 8-bit image at another (rows, columns)."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def in_parallel(
    work: Callable[[int], None], count: int, progress: ProgressFactory | None, title: str, unit: str
) -> None:
    """Do it for 0..count-1, as many at a time as there are processors."""
    with (progress or silent)(count, title, unit) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, range(count)):
            bar.update(1)
