"""Small folders and tables like those that people have. Each function fills a folder and returns the flags to read it with.

To add one, write a function under `@layout` here and a row for it in the table of `test_layouts.py`. In the flags, `--data` names
another place than the folder.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

Layout = Callable[[Path], list[str]]
LAYOUTS: dict[str, Layout] = {}
SHAPE = (8, 10, 8)
COARSE = ["--slices", "4", "--spacing", "2"]
EIGHT = range(8)


def layout(make: Layout) -> Layout:
    LAYOUTS[make.__name__] = make
    return make


# --------------------------------------------------------------------------- what files hold


def head(seed: int = 0, shape: tuple[int, ...] = SHAPE, top: float = 1000) -> np.ndarray:
    """A bright ellipsoid on black, brighter on one side of each axis, `shape` in 0..top."""
    axes = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = sum((axis / 0.95) ** 2 for axis in axes) < 1
    tilt = sum(weight * (axis > 0) for weight, axis in zip((0.2, 0.15, 0.1), axes))
    return inside * (0.3 + tilt + 0.2 * np.random.default_rng(seed).random(shape)) * top


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    bright = head(0, shape)
    return (bright > 0).astype(np.int16) * (2 + 39 * (bright > 600))


def grid(spacing: Sequence[float] = (2, 2, 2)) -> np.ndarray:
    """An affine of this many mm a voxel, the origin near the middle."""
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = [-length * step / 2 for length, step in zip(SHAPE, spacing)]
    return matrix


def put(path: Path, data: np.ndarray | int = 0, where: np.ndarray | None = None, dtype: type | None = np.int16) -> Path:
    """A volume as a file of the kind that its name says; a number is the seed of a head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head(data) if isinstance(data, int) else data
    data = data if dtype is None else data.astype(dtype)
    where = grid() if where is None else where
    if path.suffix in (".mgz", ".mgh"):
        nib.save(nib.MGHImage(data.astype(np.float32), where), path)
    elif path.suffix == ".hdr":
        pair = nib.Nifti1Pair if path.name.endswith(".nifti.hdr") else nib.AnalyzeImage
        nib.save(pair(data[..., None], where), path)
        path.with_suffix(".mat").unlink(missing_ok=True)
    else:
        nib.save(nib.Nifti1Image(data, where), path)
    return path


def bids(root: Path, people: Iterable[object] = [f"{i:02d}" for i in range(1, 13)], kind: str = "T1w") -> Path:
    """`root` with an anatomical scan of each."""
    for seed, label in enumerate(people):
        put(root / f"sub-{label}/anat/sub-{label}_{kind}.nii.gz", seed)
    return root


def volumes(root: Path, people: Iterable[int] = EIGHT, ending: str = ".nii.gz") -> None:
    for seed in people:
        put(root / f"s{seed}{ending}", seed)


def gray(seed: int = 0, size: tuple[int, int] = (12, 12)) -> np.ndarray:
    return head(seed, size, 1.0)


def draw(path: Path, seed: int = 0, pixels: np.ndarray | None = None, **how: object) -> Path:
    """An image file; of `pixels`, or of a head with 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((gray(seed) * 255).astype(np.uint8) if pixels is None else pixels).save(path, **how)
    return path


def pictures(
    root: Path, name: str = "person{}/{}.png", people: Iterable[int] = EIGHT, slices: Iterable[int] = range(3)
) -> None:
    for person in people:
        for number in slices:
            draw(root / name.format(person, number), 9 * person + number)


def table(
    root: Path, text: str, column: str = "age", name: str = "participants.tsv", encoding: str = "utf-8"
) -> list[str]:
    (root / name).write_bytes(text.encode(encoding))
    return [*COARSE, "--table", str(root / name), "--condition", column]


def rows(header: str, line: str, numbers: Iterable[int] = range(1, 13)) -> str:
    """A table whose lines are `line` with N, the person's number in two digits, and A, an age."""
    return "\n".join([header, *(line.replace("N", f"{i:02d}").replace("A", str(20 + 5 * i)) for i in numbers)])


# --------------------------------------------------------------------------- whose scan is it


@layout
def freesurfer(root: Path) -> list[str]:
    for person in EIGHT:
        for name in ("orig", "T1", "brain", "nu", "orig/001"):
            put(root / f"subj{person:02d}/mri/{name}.mgz", person)
        put(root / f"subj{person:02d}/mri/aseg.mgz", labels())
    return COARSE


@layout
def freesurfer_surf(root: Path) -> list[str]:
    for person in range(6):
        put(root / f"subj{person:02d}/mri/T1.mgz", person)
        put(root / f"subj{person:02d}/surf/lh.thickness.mgh", np.random.rand(20, 1, 1), np.eye(4), np.float32)
    return COARSE


@layout
def oasis2(root: Path) -> list[str]:
    for person in range(1, 7):
        for visit in (1, 2):
            for repeat in (1, 2):
                put(root / f"OAS2_RAW_PART1/OAS2_{person:04d}_MR{visit}/RAW/mpr-{repeat}.nifti.hdr", person)
    return COARSE


@layout
def adni(root: Path) -> list[str]:
    for person in range(1, 9):
        for date, image in (("2006-04-18_08_20_30.0", 100), ("2007-05-02_09_01_00.0", 200)):
            place = root / f"ADNI/002_S_{person:04d}/MPRAGE/{date}/I{image}{person}"
            put(
                place / f"ADNI_002_S_{person:04d}_MR_MPRAGE_br_raw_2007{image}_S{image}{person}_I{image}{person}.nii",
                person,
            )
    return COARSE


@layout
def brats(root: Path) -> list[str]:
    for person in range(1, 9):
        name = f"BraTS20_Training_{person:03d}"
        for contrast in ("t1", "t1ce", "t2", "flair"):
            put(root / name / f"{name}_{contrast}.nii.gz", person)
        put(root / name / f"{name}_seg.nii.gz", labels())
    return COARSE


@layout
def appledouble_nii(root: Path) -> list[str]:
    for path in list(bids(root, range(1, 9)).rglob("*.nii.gz")):
        path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7 of a Mac")
    return COARSE


@layout
def appledouble_png(root: Path) -> list[str]:
    pictures(root)
    for name in ("._0.png", ".DS_Store", "Thumbs.db"):
        (root / "person1" / name).write_bytes(b"\0\5\x16\7 of a Mac")
    return []


@layout
def appledouble_png_skipbad(root: Path) -> list[str]:
    return [*appledouble_png(root), "--skip_bad"]


@layout
def bids_both_gz(root: Path) -> list[str]:
    for path in list(bids(root, range(1, 9)).rglob("*.nii.gz")):
        put(path.with_suffix(""))
    return COARSE


@layout
def bids_flair_only(root: Path) -> list[str]:
    for kind in ("FLAIR", "T2w"):
        bids(root, range(1, 9), kind)
    put(root / "sub-1/func/sub-1_task-rest_bold.nii.gz", np.stack([head(1)] * 3, -1))
    return COARSE


@layout
def bids_in_subfolder(root: Path) -> list[str]:
    bids(root / "rawdata", range(1, 9))
    for person in range(1, 9):
        put(root / f"derivatives/bet/sub-{person}/anat/sub-{person}_desc-brain_mask.nii.gz", head() > 0, dtype=np.uint8)
    return COARSE


def annexed(root: Path, name: str, there: bool) -> None:
    """A link as git-annex makes it, to content that is there or is not."""
    path, content = root / name, root / ".git/annex/objects" / name.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    if there:
        put(content, len(name))
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(content, path.parent))


@layout
def datalad_present(root: Path) -> list[str]:
    for person in EIGHT:
        annexed(root, f"scans/case{person:02d}.nii.gz", True)
    return COARSE


@layout
def datalad_dropped_bids(root: Path) -> list[str]:
    bids(root, range(1, 9))
    for person in (3, 4):
        annexed(root, f"sub-{person}/anat/sub-{person}_T1w.nii.gz", False)
    return COARSE


@layout
def datalad_dropped_images(root: Path) -> list[str]:
    pictures(root)
    annexed(root, "person3/1.png", False)
    return []


@layout
def linked_folders(root: Path) -> list[str]:
    store = root.with_name("store")
    pictures(store, people=range(1, 8, 2))
    pictures(root, people=range(0, 8, 2))
    for person in range(1, 8, 2):
        (root / f"person{person}").symlink_to(store / f"person{person}")
    (root / "person0/again").symlink_to(root)  # a loop
    return []


@layout
def ixi_table(root: Path) -> list[str]:
    people = (2, *range(12, 18), *range(19, 24))
    for person in people:
        put(root / f"IXI{person:03d}-Guys-{700 + person:04d}-T1.nii.gz", person)
    lines = [f"{person},{1 + person % 2},{20 + person}.5" for person in people]
    return table(root, "\n".join(["IXI_ID,SEX_ID (1=m, 2=f),AGE", *lines]), "AGE", "IXI.csv")


@layout
def study(root: Path) -> list[str]:
    for person in range(1, 24):
        for folder, name in (("t1", "T1"), ("fl", "FL"), ("seg", "T1_seg"), ("maps", "map")):
            put(root / folder / f"Subj{person}_{name}.nii.gz", labels() if folder == "seg" else person)
    text = "\n".join(["MRID,Age", *(f"Subj{person},{40 + person}" for person in range(1, 24))])
    return table(root, text, "age", "participants.csv")


# --------------------------------------------------------------------------- images


@layout
def kaggle_classes(root: Path) -> list[str]:
    classes = {"NonDemented": range(1, 13), "VeryMildDemented": range(13, 19), "ModerateDemented": range(19, 27)}
    for name, people in classes.items():
        for repeat in (1, 2):
            pictures(root / name, f"OAS1_{{:04d}}_MR1_mpr-{repeat}_{{}}.jpg", people, (100, 101))
    return ["--condition", "folder"]


@layout
def classes_of_numbers(root: Path) -> list[str]:
    for name, start in (("yes", "Y"), ("no", "no ")):
        for number in range(1, 11):
            draw(root / name / f"{start}{number}.jpg", number + len(name))
    return []


@layout
def kaggle_flat(root: Path) -> list[str]:
    for repeat in (1, 2, 3, 4):
        pictures(root, f"OAS1_{{:04d}}_MR1_mpr-{repeat}_{{}}.jpg", range(1, 13), (100, 101))
    return []


@layout
def split_folders(root: Path) -> list[str]:
    for split, numbers in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 20))):
        pictures(root / split, "img{1}.png", [0], numbers)
    return []


@layout
def split_folders_volumes(root: Path) -> list[str]:
    for split, numbers in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9))):
        for number in numbers:
            put(root / split / f"case{number:02d}.nii.gz", number)
    return COARSE


@layout
def split_folders_twice(root: Path) -> list[str]:
    split_folders_volumes(root)
    put(root / "test/case02.nii.gz", 2)
    return COARSE


@layout
def split_folders_counted_anew(root: Path) -> list[str]:
    for split, numbers in (("Training", range(1, 9)), ("Testing", range(1, 4))):
        for number in numbers:
            put(root / split / f"case{number}.nii.gz", number)
    return COARSE


@layout
def hipmri(root: Path) -> list[str]:
    for split, people in (("train", range(4, 9)), ("validate", (9, 10)), ("test", (11,))):
        for person in people:
            for number in range(3):
                name = f"keras_slices_data/keras_slices_{split}/case_{person:03d}_week_0_slice_{number}.nii.gz"
                put(root / name, gray(5 * person + number, (16, 8)) * 500, np.eye(4))
    return []


@layout
def lgg(root: Path) -> list[str]:
    for person in EIGHT:
        name = f"TCGA_CS_{4941 + person}_19960909"
        for number in range(1, 5):
            draw(root / name / f"{name}_{number}.tif", 9 * person + number)
            draw(root / name / f"{name}_{number}_mask.tif", pixels=((gray() > 0.5) * 255).astype(np.uint8))
    return []


@layout
def numbers_only(root: Path) -> list[str]:
    pictures(root, "{1}.png", [0], range(12))
    return []


@layout
def ids_as_names(root: Path) -> list[str]:
    pictures(root, "sub-{:02d}.png", slices=[0])
    return []


@layout
def dicom_uid_names(root: Path) -> list[str]:
    pictures(root, "pat{0}/1.3.12.2.1107.5.2.32.35177.30000006041808203012345{0}{1:03d}.png")
    return []


def sixteen_bits(top: float, dtype: type, ending: str) -> Layout:
    def make(root: Path) -> list[str]:
        for person in EIGHT:
            for number in range(3):
                draw(root / f"p{person}/{number}{ending}", pixels=(gray(9 * person + number) * top).astype(dtype))
        return []

    return make


LAYOUTS["png16_12bit"] = sixteen_bits(4095, np.uint16, ".png")
LAYOUTS["float_tiff"] = sixteen_bits(1800, np.float32, ".tif")


@layout
def tiff_stack(root: Path) -> list[str]:
    for person in EIGHT:
        black = Image.new("L", (12, 12))
        pages = [Image.fromarray((gray(9 * person + i) * 255).astype(np.uint8)) for i in range(1, 5)]
        black.save(root / f"sub{person}.tif", save_all=True, append_images=pages)
    return []


@layout
def exif(root: Path) -> list[str]:
    for person in EIGHT:
        upright = Image.fromarray((gray(person) * 255).astype(np.uint8))
        turned = Image.Exif()
        turned[0x0112] = 6
        (root / f"p{person}").mkdir()
        upright.save(root / f"p{person}/0.jpg", quality=95)
        upright.rotate(90, expand=True).save(root / f"p{person}/1.jpg", exif=turned, quality=95)
    return []


@layout
def rgba(root: Path) -> list[str]:
    for person in EIGHT:
        for number in range(2):
            shown = (gray(9 * person + number) * 255).astype(np.uint8)
            under = np.where(shown > 0, shown, 255).astype(np.uint8)
            draw(
                root / f"p{person}/{number}.png",
                pixels=np.stack([under] * 3 + [(shown > 0).astype(np.uint8) * 255], -1),
            )
    return []


@layout
def one_row(root: Path) -> list[str]:
    for person in EIGHT:
        for number in range(2):
            draw(root / f"p{person}/{number}.png", pixels=(gray(person, (3, 64))[1:2] * 255).astype(np.uint8))
    return []


@layout
def upper_case(root: Path) -> list[str]:
    for person in EIGHT:
        draw(root / f"p{person}/0.PNG", person, format="png")
        draw(root / f"p{person}/1.JPEG", person, format="jpeg")
    return []


@layout
def non_utf8_name(root: Path) -> list[str]:
    pictures(root, "p{}/{}.png", slices=range(2))
    os.rename(os.fsencode(root / "p3"), os.fsencode(root) + b"/M\xfcller")
    return []


@layout
def unicode_space(root: Path) -> list[str]:
    pictures(root, "Данные 患者 {} é/Schicht {}.png", slices=range(2))
    return []


@layout
def comma_name(root: Path) -> list[str]:
    pictures(root, "Doe, Jane {}/{}.png", slices=range(2))
    return []


@layout
def dollar_names(root: Path) -> list[str]:
    pictures(root, "a$b_{}^{{$c/{}.png", slices=range(2))
    return []


@layout
def one_bad_png(root: Path) -> list[str]:
    pictures(root)
    path = root / "person3/1.png"
    path.write_bytes(path.read_bytes()[:80])
    return ["--skip_bad"]


@layout
def many_png(root: Path) -> list[str]:
    pictures(root, "sub{:02d}/slice_{}.png", range(10), range(100, 161, 5))
    splits = [f"sub{person:02d},{'train' if person < 6 else 'validate'}" for person in range(10)]
    (root / "split.csv").write_text("\n".join(["subject,split", *splits]))
    return ["--split_file", str(root / "split.csv")]


# --------------------------------------------------------------------------- no kind that is read


@layout
def a_zip(root: Path) -> list[str]:
    with zipfile.ZipFile(root / "slices.zip", "w") as archive:
        archive.writestr("1.png", b"")
    return ["--data", str(root / "slices.zip")]


@layout
def a_single_volume(root: Path) -> list[str]:
    return ["--data", str(put(root / "t1.nii.gz")), *COARSE]


@layout
def dicoms(root: Path) -> list[str]:
    (root / "ser").mkdir()
    for number in range(4):
        (root / f"ser/IM{number:04d}").write_bytes(bytes(128) + b"DICM" + bytes(64))
    return []


# --------------------------------------------------------------------------- odd volumes


def colour(seed: int) -> np.ndarray:
    data = np.zeros(SHAPE, [(channel, "u1") for channel in "RGB"])
    for channel in "RGB":
        data[channel] = head(seed, top=250)
    return data


@layout
def rgb_nifti(root: Path) -> list[str]:
    for person in EIGHT:
        put(root / f"s{person}.nii.gz", colour(person), dtype=None)
    return COARSE


@layout
def rgb_one(root: Path) -> list[str]:
    volumes(root)
    put(root / "s7.nii.gz", colour(7), dtype=None)
    return [*COARSE, "--skip_bad"]


@layout
def complex_nifti(root: Path) -> list[str]:
    for person in EIGHT:
        phase = np.exp(1j * np.linspace(0, 6.3, SHAPE[1]))[None, :, None]
        put(root / f"s{person}.nii.gz", head(person) * phase, dtype=np.complex64)
    return COARSE


def odd_header(**fields: object) -> Layout:
    """Eight volumes of which one has these header fields, as they are."""

    def make(root: Path) -> list[str]:
        volumes(root, ending=".nii")
        image = nib.Nifti1Image(head(3).astype(np.int16), grid())
        for name, value in {"vox_offset": 352, "magic": b"n+1", **fields}.items():
            if name == "pixdim":
                image.header[name][1:4] = value
            else:
                image.header[name] = value
        voxels = np.asarray(image.dataobj).tobytes(order="F")
        (root / "s3.nii").write_bytes(image.header.binaryblock + bytes(4) + voxels)
        return COARSE

    return make


LAYOUTS["zero_pixdim"] = odd_header(sform_code=0, qform_code=0, pixdim=0)
LAYOUTS["zero_sform"] = odd_header(sform_code=1, srow_x=0, srow_y=0, srow_z=0)
LAYOUTS["negative_pixdim"] = odd_header(sform_code=0, qform_code=1, pixdim=(-2, 2, 2))
LAYOUTS["nan_slope"] = odd_header(scl_slope=np.nan, scl_inter=np.nan)


@layout
def zero_sform_skip(root: Path) -> list[str]:
    return [*LAYOUTS["zero_sform"](root), "--skip_bad"]


@layout
def micron_units(root: Path) -> list[str]:
    for person in EIGHT:
        image = nib.Nifti1Image(head(person).astype(np.int16), grid((2000, 2000, 2000)))
        image.header.set_xyzt_units("micron")
        nib.save(image, root / f"s{person}.nii.gz")
    return COARSE


def heads_of(
    change: Callable[[np.ndarray], np.ndarray],
    dtype: type = np.int16,
    where: np.ndarray | None = None,
    flags: Sequence[str] = COARSE,
) -> Layout:
    """Eight volumes of heads that are changed."""

    def make(root: Path) -> list[str]:
        for person in EIGHT:
            put(root / f"s{person}.nii.gz", change(head(person)), where, dtype)
        return list(flags)

    return make


def z_scored(data: np.ndarray) -> np.ndarray:
    inside = data > 0
    return np.where(inside, (data - data[inside].mean()) / data[inside].std(), np.nan)


def tilted() -> np.ndarray:
    angle = np.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ grid()


def with_one_bright(data: np.ndarray) -> np.ndarray:
    data[4, 5, 4] = 32000
    return data


LAYOUTS["nan_zscore"] = heads_of(z_scored, np.float32)
LAYOUTS["ct_oblique"] = heads_of(lambda data: np.where(data > 0, data / 10, -1000), where=tilted())
LAYOUTS["few_planes"] = heads_of(lambda data: data, where=grid((2, 2, 6)), flags=["--slices", "32"])
LAYOUTS["partial_fov"] = heads_of(lambda data: data[..., 3:5], flags=["--slices", "16"])
LAYOUTS["four_d"] = heads_of(lambda data: np.stack([data] * 2, -1))
LAYOUTS["outlier"] = heads_of(with_one_bright)


def renamed(before: str, after: str) -> Layout:
    """Eight volumes of which one has another ending than it should."""

    def make(root: Path) -> list[str]:
        volumes(root, ending=before)
        (root / f"s3{before}").rename(root / f"s3{after}")
        return COARSE

    return make


LAYOUTS["wrong_gz"] = renamed(".nii", ".nii.gz")
LAYOUTS["wrong_gz2"] = renamed(".nii.gz", ".nii")


@layout
def upper_nii(root: Path) -> list[str]:
    volumes(root)
    for path in list(root.iterdir()):
        path.rename(root / path.name.upper())
    return COARSE


@layout
def upper_analyze(root: Path) -> list[str]:
    volumes(root, ending=".hdr")
    for path in list(root.iterdir()):
        path.rename(root / path.name.upper())
    return COARSE


def disc(root: Path, whole: bool) -> None:
    """An OASIS-1 disc of eight people; whole: with the processed images too."""
    for person in range(1, 9):
        name = f"OAS1_{person:04d}_MR1"
        for repeat in (1, 2, 3):
            put(root / f"disc1/{name}/RAW/{name}_mpr-{repeat}_anon.hdr", person)
        put(root / f"disc1/{name}/FSL_SEG/{name}_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr", labels())
        for processed in (
            ("T88_111/{}_mpr_n4_anon_111_t88_masked_gfc", "T88_111/{}_mpr_n4_anon_111_t88_gfc") if whole else ()
        ):
            put(root / f"disc1/{name}/PROCESSED/MPRAGE/{processed.format(name)}.hdr", person)


@layout
def oasis_raw(root: Path) -> list[str]:
    disc(root, False)
    return COARSE


@layout
def oasis_raw_bad(root: Path) -> list[str]:
    disc(root, False)
    (root / "disc1/OAS1_0002_MR1/RAW/OAS1_0002_MR1_mpr-2_anon.img").write_bytes(b"x")
    return [*COARSE, "--skip_bad"]


@layout
def oasis_full(root: Path) -> list[str]:
    disc(root, True)
    return COARSE


@layout
def odd_dtypes(root: Path) -> list[str]:
    kinds = (np.int8, np.uint64, np.int64, np.uint32, np.uint8, np.float64, np.int16, np.int32)
    for person, kind in enumerate(kinds):
        nib.save(nib.Nifti1Image(head(person, top=100).astype(kind), grid(), dtype=kind), root / f"s{person}.nii.gz")
    return COARSE


@layout
def many_slices(root: Path) -> list[str]:
    volumes(root, range(10))
    splits = [f"s{person},{'train' if person < 6 else 'validate'}" for person in range(10)]
    (root / "split.csv").write_text("\n".join(["subject,split", *splits]))
    return ["--spacing", "2", "--slices", "8", "--slice_range", "0:1", "--split_file", str(root / "split.csv")]


@layout
def bids_t2_forced(root: Path) -> list[str]:
    for kind in ("T1w", "T2w"):
        bids(root, range(53, 61), kind)
    return [*COARSE, "--format", "volumes"]


# --------------------------------------------------------------------------- tables


@layout
def table_sessions(root: Path) -> list[str]:
    lines = ["participant_id\tsession_id\tage\tgroup"]
    for person in range(1, 13):
        for visit, more in (("01", 0), ("02", 10)):
            put(root / f"sub-{person:02d}/ses-{visit}/anat/sub-{person:02d}_ses-{visit}_T1w.nii.gz", person)
            lines.append(f"sub-{person:02d}\tses-{visit}\t{20 + person + more}.5\t{'MCI' if more else 'CN'}")
    return table(root, "\n".join(lines), "age,group")


@layout
def table_wrong_column(root: Path) -> list[str]:
    bids(root, range(20, 32))
    lines = [f"HC{person}\t{51 - person}\t{person}.25" for person in range(20, 32)]
    return table(root, "\n".join(["participant_id\tage\tscore", *lines]), "score")


@layout
def table_ten_vs_ten(root: Path) -> list[str]:
    bids(root, [f"{zero}{person}" for person in range(1, 7) for zero in ("", "0")])
    lines = [f"sub-{zero}{person}\t{'B' if zero else 'A'}" for person in range(1, 7) for zero in ("", "0")]
    return table(root, "\n".join(["participant_id\tsite", *lines]), "site")


@layout
def table_semicolon(root: Path) -> list[str]:
    bids(root)
    text = rows("participant_id;age;sex", "sub-N;A,5;F").replace("\n", "\r\n")
    return table(root, text, name="t.csv", encoding="utf-8-sig")


@layout
def table_90plus(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tage", "sub-N\tA").replace("\t45", "\t89+"))


@layout
def table_dash(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tage", "sub-N\tA").replace("\t45", "\t-"))


@layout
def table_latin1(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tage\tcity", "sub-N\tA\tKöln"), encoding="latin-1")


@layout
def table_utf16(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tage", "sub-N\tA"), encoding="utf-16")


@layout
def table_constant(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tgroup", "sub-N\tHC"), "group")


@layout
def table_tab_in_csv(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tage", "sub-N\tA"), name="t.csv")


@layout
def table_few_known(root: Path) -> list[str]:
    bids(root)
    return table(root, rows("participant_id\tage", "other_N\tA").replace("other_01", "sub-01"))


@layout
def table_id_000(root: Path) -> list[str]:
    bids(root, [f"{person:03d}" for person in range(12)])
    return table(root, "\n".join(["id,age", *(f"{person},{20 + person}" for person in range(12))]), name="t.csv")


@layout
def table_underscore_words(root: Path) -> list[str]:
    bids(root)
    lines = [f"sub-{person:02d}\t{'1_2' if person % 2 else '12'}" for person in range(1, 13)]
    return table(root, "\n".join(["participant_id\tvisit", *lines]), "visit")


@layout
def table_xlsx(root: Path) -> list[str]:
    bids(root)
    with zipfile.ZipFile(root / "t.xlsx", "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<worksheet/>")
    return [*COARSE, "--table", str(root / "t.xlsx"), "--condition", "age"]


@layout
def table_images_uid(root: Path) -> list[str]:
    pictures(root, "OAS1_{:04d}_MR1_mpr-1_{}.jpg", range(1, 13), (100, 101))
    text = "\n".join(["ID,Age", *(f"OAS1_{person:04d}_MR1,{40 + person}" for person in range(1, 13))])
    return table(root, text, name="oasis.csv")


@layout
def split_file_prefix(root: Path) -> list[str]:
    bids(root)
    splits = [
        f"{person:02d},{'train' if person < 7 else 'validate' if person < 10 else 'test'}" for person in range(1, 13)
    ]
    (root / "split.csv").write_text("\r\n".join(["subject,split", *splits]))
    return [*COARSE, "--split_file", str(root / "split.csv")]


@layout
def split_file_twice(root: Path) -> list[str]:
    bids(root)
    text = [f"sub-{person:02d},train" for person in range(1, 10)] + [
        f"sub-{person:02d},test" for person in range(8, 13)
    ]
    (root / "split.csv").write_text("\n".join(["subject,split", *text]))
    return [*COARSE, "--split_file", str(root / "split.csv")]


@layout
def split_file_slices(root: Path) -> list[str]:
    for split, people in (("train", range(6)), ("validate", range(6, 8))):
        pictures(root / f"keras_png_slices_{split}", "case_{:03d}_slice_{}.nii.png", people)
    splits = [f"{person:03d},{'train' if person > 3 else 'test'}" for person in range(8)]
    (root / "split.csv").write_text("\n".join(["subject,split", *splits]))
    return ["--split_file", str(root / "split.csv")]
