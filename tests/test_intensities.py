"""Which intensities become black and white, of volumes and of images, and what is background."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from common.errors import UserError
from sources import DataOptions, load
from sources.images import decode_image, load_image, pages_in, read_pages
from sources.intensities import Range, Scale, scale_of
from sources.volumes import VolumeOptions, read_slices


def picture(seed: int = 0, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """A textured box on zeros, 0..1, asymmetric."""
    pixels = np.zeros(size)
    pixels[4:15, 3:17] = np.random.default_rng(seed).uniform(0.2, 1, (11, 14))
    pixels[5, 5] = 1
    return pixels


def folder(root: Path, change, suffix: str = "png", subjects: int = 4, **save: object) -> Path:
    """Three images of each subject: `change(picture in 0..1)` as an array."""
    for subject in range(subjects):
        for number in range(3):
            path = root / f"p{subject}" / f"slice{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(change(picture(9 * subject + number))).save(path, **save)
    return root


def read(root: Path, cache: Path, **options: object) -> dict[str, np.ndarray]:
    """Slices by subject and name."""
    data = load(DataOptions(str(root), split="100,0,0", **options), cache)
    (split,) = data.splits.values()
    return {f"{subject}/{name}": image for subject, name, image in zip(split.subjects, split.names, split.images)}


@pytest.mark.parametrize("artefact", [0, 1e4, -1e4])
def test_a_few_voxels_do_not_decide_how_bright_a_volume_is(tmp_path, artefact):
    """A bright vessel in one volume, or a dark edge, leaves its tissue as it is in the others."""
    rng = np.random.default_rng(0)
    data = np.zeros((20, 22, 12), np.float32)
    data[4:16, 4:18, 2:10] = rng.uniform(60, 100, (12, 14, 8))
    data[6, 6, 4:6] = artefact
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    slices, _ = read_slices(tmp_path / "a.nii", VolumeOptions(slices=4), (20, 22))
    tissue = slices[:, 8:14, 8:16]
    assert tissue.mean() == pytest.approx(255 * 0.8, rel=0.05) and slices[:, :4].max() == 0


def test_sixteen_bits_become_eight_without_a_step_lost_at_either_end(tmp_path):
    levels = np.arange(256, dtype=np.uint16) * 257
    Image.fromarray(levels.reshape(16, 16)).save(tmp_path / "a.png")
    assert np.array_equal(decode_image(tmp_path / "a.png", None).flatten(), np.arange(256))


WIDE = {
    "12 bits in 16": (lambda p: (p * 4095).astype(np.uint16), "png"),
    "floats in scanner units": (lambda p: (p * 1800).astype(np.float32), "tif"),
    "floats to 1": (lambda p: p.astype(np.float32), "tif"),
    "negative numbers": (lambda p: (p * 1400 - 1000).astype(np.int32), "tif"),
}


@pytest.mark.parametrize("kind", WIDE)
def test_more_than_8_bits_fill_the_range_and_keep_their_order(tmp_path, kind, capsys):
    change, suffix = WIDE[kind]
    found = read(folder(tmp_path / "data", change, suffix), tmp_path / "cache")
    assert "become black to white" in capsys.readouterr().out
    for subject in range(4):
        for number in range(3):
            source = picture(9 * subject + number)
            decoded = found[f"p{subject}/slice{number}.{suffix}"]
            assert np.abs(decoded - 255 * source).max() < 1, (
                "one scale for all: the same number is the same grey everywhere"
            )


def test_one_scale_holds_for_a_whole_data_set_and_for_what_is_completed_later(tmp_path, capsys):
    """An image that is half as bright as the others stays so, alone as in its folder."""
    root = folder(tmp_path / "data", lambda p: (p * 3000).astype(np.uint16))
    dim = root / "p1" / "slice1.png"
    Image.fromarray((picture() * 1500).astype(np.uint16)).save(dim)
    found = read(root, tmp_path / "cache")["p1/slice1.png"]
    said = capsys.readouterr().out
    assert int(found.max()) in (127, 128) and "grey values: 0 to 3000 become black to white" in said
    data = load(DataOptions(str(root), split="100,0,0"), tmp_path / "cache")
    assert "grey values: 0 to 3000" in capsys.readouterr().out, "from the cache too"
    recorded = json.loads(json.dumps(data.summary()))["grey"]
    alone, _ = load_image(dim, scale=Scale(**recorded))
    assert np.array_equal((alone[0, 0] * 255).round().numpy(), found)


def test_a_bright_pixel_does_not_decide_the_scale_of_a_data_set():
    ranges = [Range.of(picture(seed)[None] * 1000, 4096) for seed in range(20)]
    odd = picture()[None] * 1000
    odd[0, 0, 0] = 60000
    assert scale_of(ranges).high == 1000 and scale_of([*ranges, Range.of(odd, 4096)]).high <= 1000


def test_eight_bits_keep_their_values(tmp_path, capsys):
    root = folder(tmp_path / "data", lambda p: (p * 90).astype(np.uint8))
    for name, image in read(root, tmp_path / "cache").items():
        assert np.array_equal(image, np.asarray(Image.open(root / name)))
    assert "grey values" not in capsys.readouterr().out


def test_a_window_holds_for_images_and_volumes(tmp_path, capsys):
    root = folder(tmp_path / "data", lambda p: (p * 200).astype(np.uint8))
    image = read(root, tmp_path / "cache", window="50:150")["p0/slice0.png"]
    source = np.asarray(Image.open(root / "p0" / "slice0.png")).astype(float)
    assert np.abs(image - (255 * (source - 50) / 100).clip(0, 255)).max() <= 1
    data = np.random.default_rng(0).uniform(-1000, 2000, (9, 11, 8)).astype(np.float32)
    (tmp_path / "ct").mkdir()
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "ct" / "a.nii")
    ct = read(tmp_path / "ct", tmp_path / "cache", window="-100:300", slices=8, slice_range="0:1")
    expected = 255 * ((data + 100) / 400).clip(0, 1)
    assert np.abs(np.stack(list(ct.values())).transpose(1, 2, 0) - expected).max() <= 1
    assert capsys.readouterr().out.count("grey values: -100 to 300") == 1


def test_nan_and_zeros_around_scores_are_black(tmp_path):
    inside = picture() > 0
    scores = np.where(inside, (picture() - 0.6) * 5, np.nan).astype(np.float32)
    for background in (np.nan, 0):
        root = tmp_path / str(background)
        folder(root, lambda p, b=background: np.where(inside, scores, np.float32(b)).astype(np.float32), "tif")
        image = read(root, tmp_path / "cache")["p0/slice0.tif"]
        assert image[~inside].max() == 0 and image.max() == 255
        assert np.array_equal(np.argsort(scores[inside]), np.argsort(scores[inside], kind="stable"))
        assert np.corrcoef(image[inside].astype(float), scores[inside])[0, 1] > 0.999
    whole = np.full((20, 24, 10), np.nan, np.float32)
    whole[..., 1:9] = scores[..., None]
    for name, data in (("nan", whole), ("zeros", np.nan_to_num(whole))):
        nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / f"{name}.nii")
        slices, _ = read_slices(tmp_path / f"{name}.nii", VolumeOptions(slices=4, spacing=1.5), (20, 24))
        assert slices[:, ~inside].max() == 0 and np.median(slices[:, inside]) > 80
        assert (slices[:, inside] > 0).mean() > 0.97, "dark tissue is no background"


def test_what_lies_outside_of_a_ct_is_air(tmp_path):
    """Turned by 20 degrees, its corners are as black as the air within."""
    turn = np.eye(4)
    turn[:2, :2] = [[0.94, -0.342], [0.342, 0.94]]
    data = np.full((20, 22, 12), -1000, np.int16)
    data[5:15, 5:17, 2:10] = np.random.default_rng(0).integers(0, 80, (10, 12, 8))
    nib.save(nib.Nifti1Image(data, turn), tmp_path / "a.nii")
    options = VolumeOptions(slices=4)
    slices, _ = read_slices(tmp_path / "a.nii", options, (26, 28))
    assert slices[:, 0].max() == slices[:, -1].max() == slices[:, :, 0].max() == slices[:, 4:6, 13].max() == 0
    assert slices.max() == 255


def test_white_is_zero_is_reversed(tmp_path):
    source = (picture() * 65535).astype(np.uint16)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray(65535 - source).save(tmp_path / "a.tif", tiffinfo=tags)
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    at = raw.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01")  # the tag of what zero is, a short, one of it, 1: black
    raw[at + 8] = 0
    (tmp_path / "a.tif").write_bytes(raw)
    assert np.abs(decode_image(tmp_path / "a.tif", None) - source / 257.0).max() <= 0.5


def test_exif_turns_images_and_transparency_is_black(tmp_path):
    upright = Image.fromarray((picture() * 255).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=turned)
    assert np.array_equal(decode_image(tmp_path / "a.png", None), np.asarray(upright))
    alpha = (picture() > 0).astype(np.uint8) * 255
    white = np.where(alpha > 0, np.asarray(upright), 255).astype(np.uint8)
    for mode, bands in (("RGBA", [white, white, white, alpha]), ("LA", [white, alpha])):
        Image.merge(mode, [Image.fromarray(band) for band in bands]).save(tmp_path / "b.png")
        assert np.array_equal(decode_image(tmp_path / "b.png", None), np.asarray(upright))
    palette = Image.fromarray((alpha > 0).astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 200, 200, 200])
    palette.save(tmp_path / "c.png", transparency=0)
    assert np.array_equal(decode_image(tmp_path / "c.png", None), np.where(alpha > 0, 200, 0))


def test_all_pages_of_a_tiff_are_slices_in_order_and_an_animation_is_its_first(tmp_path):
    frames = [Image.fromarray(np.full((9, 8), 10 * number, np.uint8)) for number in range(1, 13)]
    for subject in ("anna", "bert"):
        (tmp_path / "data" / subject).mkdir(parents=True)
        frames[0].save(tmp_path / "data" / subject / "stack.tif", save_all=True, append_images=frames[1:])
    data = load(DataOptions(str(tmp_path / "data"), split="100,0,0"), tmp_path / "cache")
    train = data.splits["train"]
    assert train.images[:, 0, 0].tolist() == [10 * number for number in range(1, 13)] * 2
    assert train.numbers.tolist() == [*range(12), *range(12)] and len(set(train.names[:12])) == 12
    assert pages_in(tmp_path / "data" / "anna" / "stack.tif") == 12
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    (only,) = read_pages(tmp_path / "moving.png")
    assert (only == 10).all() and pages_in(tmp_path / "moving.png") == 1


def test_complex_volumes_are_magnitudes_and_colours_gray_or_refused(tmp_path):
    data = np.zeros((10, 12, 8), np.float32)
    data[2:8, 2:10] = np.random.default_rng(0).integers(100, 250, (6, 8, 8))
    colours = np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name in "RGB":
        colours[name] = data
    phase = np.exp(1j * np.linspace(0, 6, 12))[None, :, None]
    options = VolumeOptions(slices=4, slice_range=(0, 1))
    found = []
    for number, values in enumerate((data, (data * phase).astype(np.complex64), colours)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{number}.nii")
        found.append(read_slices(tmp_path / f"{number}.nii", options, (10, 12))[0])
    assert np.abs(found[1].astype(int) - found[0]).max() <= 1 and np.array_equal(found[2], found[0])
    colours["G"] = 0
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(UserError, match=r"c\.nii: not a readable volume \(it holds colours"):
        read_slices(tmp_path / "c.nii", options, (10, 12))


def test_a_bad_image_costs_itself_alone(tmp_path, capsys):
    root = folder(tmp_path / "data", lambda p: (p * 255).astype(np.uint8))
    whole = read(root, tmp_path / "cache")
    (root / "p2" / "slice1.png").write_bytes(b"no image")
    rest = read(root, tmp_path / "cache", skip_bad=True)
    assert set(whole) - set(rest) == {"p2/slice1.png"}
    assert all(np.array_equal(image, whole[name]) for name, image in rest.items())
    assert capsys.readouterr().out.count("left out: ") == 1
    data = load(DataOptions(str(root), split="100,0,0", skip_bad=True), tmp_path / "cache")
    numbers = [n for n, subject in zip(data.splits["train"].numbers, data.splits["train"].subjects) if subject == "p2"]
    assert numbers == [0, 2] and "left out p2/slice1.png" in data.notes
