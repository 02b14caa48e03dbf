"""Headers that lie, files that are no scans, and readers that give up: refused by name, left out, or said; never a traceback."""

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_to_output
from scipy.ndimage import gaussian_filter

from common.errors import UserError
from sources import DataOptions, load
from sources.content import NotAScan
from sources.headers import AXES, open_volume
from sources.volumes import VolumeOptions, output_space, read_slices

SHAPE = (16, 18, 14)


def head(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A textured ellipsoid on zeros, 200..1000."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    return ((x**2 + y**2 + z**2 < 0.8) * rng.integers(200, 1001, shape)).astype(np.int16)


def write(path: Path, change: Callable[[nib.Nifti1Header], None], data: np.ndarray | None = None) -> Path:
    """A plain NIfTI file of 2 mm whose header is changed behind nibabel's back."""
    data = head() if data is None else data
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]))
    header = image.header
    header["vox_offset"], header["magic"] = 352, b"n+1"
    change(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    return path


def no_form(header: nib.Nifti1Header) -> None:
    header["sform_code"] = header["qform_code"] = 0


def zero_sform(header: nib.Nifti1Header) -> None:
    header["srow_x"] = header["srow_y"] = header["srow_z"] = 0


def flat_sform(header: nib.Nifti1Header) -> None:
    header["srow_z"] = header["srow_x"]


def nan_sform(header: nib.Nifti1Header) -> None:
    header["srow_y"] = np.nan


def zero_sizes(header: nib.Nifti1Header) -> None:
    no_form(header)
    header["pixdim"][1:4] = 0


def huge_sizes(header: nib.Nifti1Header) -> None:
    header["srow_x"][0], header["srow_y"][1], header["srow_z"][2] = 2000, 2000, 2000


def infinite_intercept(header: nib.Nifti1Header) -> None:
    header["scl_slope"], header["scl_inter"] = 1, np.inf


REFUSED = {
    zero_sform: "its header places no voxels",
    flat_sform: "its header places no voxels",
    nan_sform: "its header places no voxels",
    zero_sizes: "its header gives no voxel sizes",
    huge_sizes: r"voxels of 1 mm \(its header says voxels of 2000 x 2000 x 2000 mm\)",
    infinite_intercept: "not a readable volume",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_header_that_places_nothing_is_refused_by_name_or_left_out(tmp_path, change, capsys):
    for number in range(3):
        write(tmp_path / "data" / f"s{number}.nii", lambda header: None, head(number))
    path = write(tmp_path / "data" / "s1.nii", change)
    options = {"slices": 2, "split": "100,0,0"}
    with pytest.raises(UserError, match=rf"s1\.nii: .*{REFUSED[change]}"):
        load(DataOptions(str(path.parent), **options), tmp_path / "cache")
    rest = load(DataOptions(str(path.parent), skip_bad=True, **options), tmp_path / "cache")
    assert rest.splits["train"].subjects == ["s0", "s0", "s2", "s2"]
    assert capsys.readouterr().out.count("left out: ") == 1


def negative(header: nib.Nifti1Header) -> None:
    header["sform_code"], header["qform_code"] = 0, 1
    header["pixdim"][1] = -2


def metres(header: nib.Nifti1Header) -> None:
    header.set_xyzt_units("meter")


@pytest.mark.parametrize(
    "change, said",
    [
        (no_form, "2 files say no orientation (no form code)"),
        (negative, "2 files say negative voxel sizes, taken as positive"),
        (metres, "2 files say meters that cannot be, taken as millimetres"),
    ],
)
def test_what_is_guessed_is_said_once_with_a_count(tmp_path, change, said, capsys):
    plain = write(tmp_path / "plain.nii", lambda header: None)
    for number in range(3):
        write(tmp_path / "data" / f"s{number}.nii", change if number else lambda header: None, head(number))
    assert output_space(tmp_path / "data/s1.nii", VolumeOptions()).shape == output_space(plain, VolumeOptions()).shape
    for _ in range(2):  # the second time from the cache
        load(DataOptions(str(tmp_path / "data"), slices=2, split="100,0,0"), tmp_path / "cache")
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if " say" in line] == [line for line in lines if line.startswith(said)]
        assert len([line for line in lines if line.startswith(said) and line.endswith("such as s1.nii")]) == 1


@pytest.mark.parametrize("unit, size", [("micron", 2000.0), ("meter", 0.002), ("mm", 2.0), ("unknown", 2.0)])
def test_units_of_the_header_count(tmp_path, unit, size):
    image = nib.Nifti1Image(head(), np.diag([size, size, size, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    plain = write(tmp_path / "plain.nii", lambda header: None)
    options = VolumeOptions(slices=3)
    space, expected = output_space(tmp_path / "a.nii", options), output_space(plain, options)
    assert space.shape == expected.shape and np.allclose(space.affine, expected.affine) and not space.guessed
    size = expected.slice_size("axial")
    assert np.array_equal(read_slices(tmp_path / "a.nii", options, size)[0], read_slices(plain, options, size)[0])


def test_a_gzipped_file_that_is_none_is_named_with_its_right_name(tmp_path):
    plain = write(tmp_path / "a.nii", lambda header: None)
    plain.rename(tmp_path / "b.nii.gz")
    nib.save(nib.Nifti1Image(head(), np.eye(4)), tmp_path / "c.nii.gz")
    (tmp_path / "c.nii.gz").rename(tmp_path / "d.nii")
    for name, right in (("b.nii.gz", "call it b.nii"), ("d.nii", "call it d.nii.gz")):
        with pytest.raises(UserError, match=rf"{name}: .*{right}$"):
            output_space(tmp_path / name, VolumeOptions())


def test_whatever_a_reader_raises_is_one_sentence(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii", lambda header: None)
    for error in (MemoryError(), RecursionError("deep\nand deeper"), AttributeError("affine"), AssertionError()):
        with monkeypatch.context() as patch:
            patch.setattr("sources.headers.nib.load", lambda _, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(UserError, match=r"a\.nii: not a readable volume") as refusal:
                open_volume(path)
            assert "\n" not in str(refusal.value)


def test_every_file_that_nibabel_brings_is_read_or_named():
    folder, options = Path(nib.__file__).parent / "tests" / "data", VolumeOptions(slices=1)
    read, refused = 0, 0
    for path in sorted(folder.glob("*")):
        if path.name.endswith((".nii", ".nii.gz", ".hdr", ".mgz", ".mnc")):
            try:
                read_slices(path, options, output_space(path, options).slice_size("axial"))
                read += 1
            except UserError as refusal:
                assert path.name in str(refusal) and "\n" not in str(refusal)
                refused += 1
    assert read >= 3 and refused >= 5


def test_a_name_that_is_not_utf_8_is_named_or_left_out(tmp_path):
    for number in range(4):
        write(tmp_path / "data" / f"p{number}" / "a.nii", lambda header: None, head(number))
    odd = os.fsencode(tmp_path / "data") + b"/M\xfcller"
    try:
        os.rename(os.fsencode(tmp_path / "data" / "p2"), odd)
    except OSError:
        pytest.skip("this file system has no such names")
    options = {"slices": 2, "split": "100,0,0"}
    with pytest.raises(UserError, match="a name that is not UTF-8") as refusal:
        load(DataOptions(str(tmp_path / "data"), **options), tmp_path / "cache")
    str(refusal.value).encode()
    data = load(DataOptions(str(tmp_path / "data"), skip_bad=True, **options), tmp_path / "cache")
    assert set(data.splits["train"].subjects) == {"p0", "p1", "p3"}
    " ".join(data.notes).encode()


# --------------------------------------------------------------------------- what is no scan


def tissue_classes() -> np.ndarray:
    """Three classes and background, in stretches, as a segmentation has them."""
    smooth = gaussian_filter(np.random.default_rng(1).normal(size=(24, 26, 20)), 3)
    inside = head(shape=(24, 26, 20)) > 0
    return inside * np.digitize(smooth, np.quantile(smooth, [0.33, 0.66])) + inside


def many_labels() -> np.ndarray:
    """A parcellation: blocks whose numbers mean nothing."""
    blocks = np.random.default_rng(2).permutation(np.arange(1, 76)) * 27
    found = np.repeat(np.repeat(np.repeat(blocks.reshape(5, 5, 3), 8, 0), 8, 1), 8, 2)
    found[:2] = 0
    return found


def intent(code: int) -> nib.Nifti1Image:
    image = nib.Nifti1Image(head(), np.eye(4))
    image.header["intent_code"] = code
    return image


def plain(data: np.ndarray, dtype: type = np.int16) -> nib.Nifti1Image:
    return nib.Nifti1Image(data.astype(dtype), np.eye(4))


NO_SCANS = {
    "a mask": (lambda: plain(head() > 0, np.uint8), "labels or a mask"),
    "a mask of floats": (lambda: plain(head() > 0, np.float32), "labels or a mask"),
    "tissue classes": (lambda: plain(tissue_classes()), "labels or a mask"),
    "a parcellation": (lambda: plain(many_labels(), np.int32), "labels or a mask"),
    "called labels": (lambda: intent(1002), "labels"),
    "t values": (lambda: intent(3), "statistics"),
    "a deformation": (lambda: plain(np.random.default_rng(0).normal(size=(8, 9, 7, 1, 3)), np.float32), "vectors"),
    "a surface's values": (lambda: nib.MGHImage(np.random.rand(642, 1, 1).astype(np.float32), np.eye(4)), "surface"),
}


@pytest.mark.parametrize("kind", NO_SCANS)
def test_what_is_no_scan_is_left_out_with_a_count(tmp_path, kind, capsys):
    make, reason = NO_SCANS[kind]
    suffix = ".mgh" if isinstance(make(), nib.MGHImage) else ".nii"
    for number in range(3):
        write(tmp_path / "data" / f"scan{number}.nii", lambda header: None, head(number))
    for number in range(2):
        nib.save(make(), tmp_path / "data" / f"other{number}{suffix}")
    data = load(DataOptions(str(tmp_path / "data"), slices=2, split="100,0,0"), tmp_path / "cache")
    assert set(data.splits["train"].subjects) == {"scan0", "scan1", "scan2"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert len(lines) == 1 and lines[0].startswith("left out 2 files that hold ") and reason in lines[0]
    assert lines[0].endswith(f"such as other0{suffix}")
    with pytest.raises(NotAScan):
        read_slices(tmp_path / "data" / f"other0{suffix}", VolumeOptions(slices=1), (8, 8))


@pytest.mark.parametrize("levels", [6, 12, 40, 255])
def test_scans_of_few_grey_levels_are_scans(tmp_path, levels):
    """A brain of 8 bits that uses few of them, and one that is smooth."""
    noisy = head(3, (30, 32, 20)) / 1000
    smooth = gaussian_filter(noisy, 1)
    for number, data in enumerate((noisy, smooth / smooth.max())):
        if number and levels < 12:
            continue
        values = (data * levels).round().astype(np.uint8)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{number}.nii")
        slices, _ = read_slices(tmp_path / f"{number}.nii", VolumeOptions(slices=3), (30, 32))
        assert slices.max() == 255


# --------------------------------------------------------------------------- only the planes that are wanted


def resampled_whole(path: Path, options: VolumeOptions) -> tuple[np.ndarray, list[int]]:
    """The plain way: the whole volume resampled, its percentiles, then its planes."""
    whole = nib.as_closest_canonical(nib.load(path))
    whole = resample_to_output(
        nib.Nifti1Image(whole.get_fdata(dtype=np.float32), whole.affine), (options.spacing,) * 3, 1
    )
    data = whole.get_fdata(dtype=np.float32)
    dark = np.percentile(data, 1)
    bright = np.percentile(data[data > dark], 99.5)
    pixels = ((data - dark) / (bright - dark)).clip(0, 1) * 255
    across = np.moveaxis(pixels, AXES[options.axis], 0)
    filled = (across.round() > 25.5).mean((1, 2))
    held = np.flatnonzero(filled >= 0.25 * filled.max())
    planes = np.linspace(held[0], held[-1], options.slices).round().astype(int).tolist()
    rows, columns = {"axial": (1, 1), "coronal": (1, -1), "sagittal": (-1, -1)}[options.axis]
    return across[planes][:, ::rows, ::columns], planes


OBLIQUE = np.array([[0.02, -1.19, 0.1, 30], [1.0, 0.03, 0.2, -28], [-0.2, 0.11, 1.1, -20], [0, 0, 0, 1]])
STRAIGHT = np.array([[0, -1.2, 0, 30], [0, 0, 0.9, -28], [1.1, 0, 0, -20], [0, 0, 0, 1]])


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("turn, spacing", [(OBLIQUE, 0.7), (OBLIQUE, 3.0), (STRAIGHT, 0.7), (STRAIGHT, 2.5)])
def test_planes_that_are_wanted_are_those_of_the_whole_volume(tmp_path, axis, turn, spacing, monkeypatch):
    monkeypatch.setattr("sources.volumes.ENOUGH", 60_000)  # a small volume is looked at as coarsely as a large one
    rng = np.random.default_rng(5)
    data = gaussian_filter(head(5, (60, 66, 50)).astype(float), 1) + np.abs(rng.normal(0, 15, (60, 66, 50)))
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(data.astype(np.float32), turn), path)
    options = VolumeOptions(axis, spacing, 6)
    expected, planes = resampled_whole(path, options)
    found, found_planes = read_slices(path, options, expected.shape[1:])
    assert found_planes == planes
    assert np.abs(found - expected).max() <= 1.5, "within a grey level, half of one being the rounding"
