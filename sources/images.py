"""Image files as slices.

pixels = decode_image(Path("anna/12.png"), image_size=None)                 # uint8 [H, W]
found = survey(files, None, False, Path(".cache/about.json"))               # what all of them have in common
images = decode_images(files, None, np.empty, "decoding", found=found)      # uint8 [N, H, W]
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.errors import UserError, printable
from common.files import digest, write_json
from common.runtime import ProgressFactory, silent
from sources.intensities import Range, Scale, numbers_of, scale_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI = (".nii", ".nii.gz")  # of single planes
STACKS = (".tif", ".tiff")  # may hold several slices, one a page
DECODING = 2  # version: raise it when the decoding changes, so that old caches are made anew
SAMPLES = 2**22  # numbers of a whole data set by which its scale is found, beside the smallest and the largest ...
FEWEST = 64  # ... and of each file
WHITE_IS_ZERO = 0  # of TIFF's tag "photometric interpretation"
PHOTOMETRIC, BITS, KIND = 262, 258, 254  # tags of TIFF
REDUCED = 1  # of its tag "kind of page": a smaller copy of another page
SLICE_NAME = re.compile(r"case_(?P<subject>.+)_slice_(?P<number>\d+)(\.nii)?\.png")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # an image past Pillow's limit is refused
warnings.filterwarnings("ignore", message="Invalid APNG")  # of a broken animation its first image is taken


@dataclass(frozen=True)
class Survey:
    """What image files have in common. scale: of those of more than 8 bits, None where there is none; pages: of each file, 0 for
    one that was left out; left_out: the reason by the index of the file."""

    scale: Scale | None
    pages: list[int]
    left_out: dict[int, str] = field(default_factory=dict)


def survey(
    files: Sequence[Path],
    window: tuple[float, float] | None,
    skip_bad: bool,
    place: Path,
    progress: ProgressFactory | None = None,
) -> Survey:
    """Look through files before they are decoded: headers alone, but for those of more than 8 bits, whose range is needed.

    Args:
        window: grey values that become black and white; None: the range of what has more than 8 bits.
        skip_bad: read every file, and leave out those that cannot be read, instead of stopping at the first.
        place: a JSON file that keeps what was found, until a file changes.

    Raises:
        UserError: when a file cannot be read.
    """
    stats = [file.stat() for file in files]
    about = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats)]
    key = digest("survey", DECODING, window, skip_bad, about)
    try:
        kept = json.loads(place.read_text())
        if kept["key"] == key:
            scale = None if kept["scale"] is None else Scale(**kept["scale"])
            return Survey(scale, kept["pages"], {int(index): reason for index, reason in kept["left_out"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a damaged one
    found = _survey(files, window, skip_bad, progress)
    left_out = {str(index): reason for index, reason in found.left_out.items()}
    scale = None if found.scale is None else found.scale.as_json()
    try:
        write_json(place, {"key": key, "scale": scale, "pages": found.pages, "left_out": left_out})
    except OSError as error:
        raise UserError(f"{place.parent}: cannot write the slice cache there ({error.strerror})") from None
    return found


def _survey(
    files: Sequence[Path], window: tuple[float, float] | None, skip_bad: bool, progress: ProgressFactory | None
) -> Survey:
    pages, left_out, ranges = [0] * len(files), {}, [None] * len(files)
    samples = max(FEWEST, SAMPLES // max(len(files), 1))

    def look(index: int) -> None:
        try:
            check_name(files[index])
            pages[index], wide = _count(files[index])
            if skip_bad or (wide and window is None):
                found = [page for page in read_pages(files[index]) if page.dtype != np.uint8]
                ranges[index] = Range.of(np.stack(found), samples) if found else None
        except UserError as error:
            if not skip_bad:
                raise
            left_out[index], pages[index] = str(error), 0

    in_parallel(look, len(files), progress, "looking through the images", "image")
    known = [each for each in ranges if each is not None]
    scale = Scale(*window, everything=True) if window else scale_of(known) if known else None
    return Survey(scale, pages, dict(sorted(left_out.items())))


def check_name(path: Path) -> None:
    """Raise UserError for a path that is no UTF-8, and could not be written to the files of a run."""
    if printable(path) != str(path):
        raise UserError(
            f"{printable(path)}: a name that is not UTF-8; rename it, or leave such files out with --skip_bad"
        )


def unreadable_image(path: Path, error: Exception) -> UserError:
    """The sentence for a file that its reader gave up on."""
    said = str(error).splitlines() or [type(error).__name__]
    return UserError(f"{path}: not a readable image ({said[0]}); replace or remove it, or leave it out with --skip_bad")


def _count(path: Path) -> tuple[int, bool]:
    """How many slices a file holds, and whether they have more than 8 bits, by its headers."""
    try:
        if path.name.lower().endswith(NIFTI):
            return 1, nib.load(path).get_data_dtype() != np.uint8
        with Image.open(path) as image:
            return len(_page_numbers(path, image)), image.mode.startswith(("F", "I"))
    except Exception as error:  # whatever the reader of a foreign file raises
        raise unreadable_image(path, error) from None


def _page_numbers(path: Path, image: Image.Image) -> list[int]:
    """The frames of an opened file that are slices: all pages of a TIFF but smaller copies; of an animation the first."""
    if path.suffix.lower() not in STACKS or getattr(image, "n_frames", 1) == 1:
        return [0]
    numbers = []
    for number in range(image.n_frames):
        image.seek(number)
        if number == 0 or not image.tag_v2.get(KIND, 0) & REDUCED:
            numbers.append(number)
    image.seek(0)
    return numbers


def pages_in(path: Path) -> int:
    """How many slices an image file holds: the pages of a TIFF, else one.

    Raises:
        UserError: when it cannot be read.
    """
    return _count(path)[0] if path.suffix.lower() in STACKS else 1


def read_pages(path: Path, first: bool = False) -> list[np.ndarray]:
    """The slices of an image file, or the first alone: `[H, W]` uint8, colour as gray, or numbers where it has more than 8 bits.

    Images are turned as their EXIF says, what is transparent is black.

    Raises:
        UserError: when the file is no readable image.
    """
    pages = []
    try:
        if path.name.lower().endswith(NIFTI):
            return [_plane_of(path)]
        with Image.open(path) as image:
            for number in [0] if first else _page_numbers(path, image):
                if number:
                    image.seek(number)
                pages.append(_numbers_of(image) if image.mode.startswith(("F", "I")) else _gray_of(image))
    except Exception as error:  # whatever the reader of a foreign file raises
        raise unreadable_image(path, error) from None
    if any(page.shape != pages[0].shape for page in pages):
        raise UserError(f"{path}: its pages have several sizes; expected slices of one size")
    return pages


def _plane_of(path: Path) -> np.ndarray:
    """A NIfTI file of one plane, which lies as axial slices of volumes do."""
    data = numbers_of(np.asanyarray(nib.load(path).dataobj))
    shape = [length for length in data.shape if length != 1]
    if len(shape) != 2:
        raise ValueError(f"it has {'x'.join(map(str, data.shape))} voxels; expected one plane")
    plane = data.reshape(shape)[:, ::-1]
    return plane if plane.dtype == np.uint8 else plane.astype(np.float32)


def _gray_of(image: Image.Image) -> np.ndarray:
    image = _upright(image)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, (0, 0, 0, 255)), shown)
    return np.asarray(image.convert("L"))


def _numbers_of(image: Image.Image) -> np.ndarray:
    """The numbers of an image of more than 8 bits as float32; in a TIFF whose zero is white they are reversed."""
    tags = getattr(image, "tag_v2", {})
    reverse, bits = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO, tags.get(BITS, (16,))[0]
    whole = image.mode != "F"
    numbers = np.asarray(_upright(image)).astype(np.float32)
    return (2.0**bits - 1 if whole else 0.0) - numbers if reverse else numbers


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing of how the image lies; a broken image shows when it is read
        return image


def decode_pages(path: Path, image_size: int | None, scale: Scale | None, first: bool = False) -> np.ndarray:
    """The slices of an image file, or the first alone, `[P, H, W]` uint8. scale: as in `decode_image`."""
    pages = read_pages(path, first)
    wide = [page for page in pages if page.dtype != np.uint8]
    if scale is None and wide:
        found = Range.of(np.stack(wide), SAMPLES)
        scale = Scale(0, 0) if found is None else scale_of([found])
    pixels = [
        scale.bytes_of(page) if page.dtype != np.uint8 or (scale and scale.everything) else page for page in pages
    ]
    size = pixels[0].shape if image_size is None else (image_size, image_size)
    return np.stack([page if page.shape == size else resized(page, size) for page in pixels])


def decode_image(path: Path, image_size: int | None, scale: Scale | None = None) -> np.ndarray:
    """One image file as `[H, W]` uint8, the first page of several.

    scale: of the data set that it belongs to; None: what has more than 8 bits is scaled by its own range.
    """
    return decode_pages(path, image_size, scale, first=True)[0]


def load_image(
    path: str | Path, image_size: int | None = None, scale: Scale | None = None
) -> tuple[Tensor, int | None]:
    """One slice, `[1, 1, H, W]` float32 in 0..1, and its slice number where the file's name says it. scale: as in `decode_image`.

    Raises:
        UserError: when the file is missing or no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    match = SLICE_NAME.fullmatch(path.name)
    pixels = torch.from_numpy(decode_image(path, image_size, scale).copy())
    return pixels[None, None].float().div_(255), int(match["number"]) if match else None


def decode_images(
    files: Sequence[Path],
    image_size: int | None,
    make: Callable[[tuple[int, ...]], np.ndarray],
    title: str,
    progress: ProgressFactory | None = None,
    found: Survey | None = None,
) -> None:
    """Decode files of one size in parallel into the `[N, H, W]` uint8 array that `make(shape)` gives, the pages of each in order.

    found: what `survey` says of these files; None: they have one page of 8 bits each.

    Raises:
        UserError: for a file that is no readable image or has another size than the first.
    """
    scale, pages = (None, [1] * len(files)) if found is None else (found.scale, found.pages)
    starts = np.cumsum([0, *pages]).tolist()
    used = [index for index, count in enumerate(pages) if count]
    first = decode_pages(files[used[0]], image_size, scale)
    images = make((starts[-1], *first.shape[1:]))

    def decode(number: int) -> None:
        file, start = files[used[number]], starts[used[number]]
        decoded = decode_pages(file, image_size, scale)
        if decoded.shape[1:] != first.shape[1:]:
            raise UserError(
                f"{file}: {decoded.shape[1]}x{decoded.shape[2]} pixels, but {files[used[0]].name} has "
                f"{first.shape[1]}x{first.shape[2]}; give --image_size to resample all to one size"
            )
        images[start : start + len(decoded)] = decoded

    in_parallel(decode, len(used), progress, title, "image")


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
