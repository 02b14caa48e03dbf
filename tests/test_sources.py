"""Whatever users have: volumes of every kind, folders of images, splits, conditions."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import generate
import train
from common.errors import UserError
from scoring.case import Effort
from scoring.evaluation import groups
from sources import DataOptions, load
from sources.conditions import Condition, join, parse_where, read_conditions
from sources.decoding import common_size
from sources.listed_splits import read_split_file
from sources.scans import recognised, survey
from sources.splits import assign_splits, split_table
from sources.volumes import Space, VolumeOptions, nifti_of, output_space, read_slices

OPTIONS = VolumeOptions(slices=4, slice_range=(0.0, 1.0))
SIZE = (9, 11)


def brain(seed: int = 0, shape: tuple[int, int, int] = (9, 11, 8)) -> np.ndarray:
    """A bright ellipsoid with texture on black, `[X, Y, Z]` in 0..1000, with nothing symmetric about it."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = (x / 0.9) ** 2 + (y / 0.95) ** 2 + (z / 1.2) ** 2 < 1
    return (inside * rng.integers(200, 1001, shape)).astype(np.float32)


def affine(spacing: float = 1.0, offset: tuple[float, float, float] = (-4, -5, -3)) -> np.ndarray:
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = offset
    return matrix


def save(path: Path, data: np.ndarray, where: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine() if where is None else where), path)
    return path


def expected_slices(data: np.ndarray, planes: list[int]) -> np.ndarray:
    """Axial slices, pixel by pixel: row x from left to right, column y from the back to the front."""
    dark = np.percentile(data, 1)
    bright = np.percentile(data[data > dark], 99.5)
    slices = np.zeros((len(planes), *data.shape[:2]), np.uint8)
    for index, plane in enumerate(planes):
        for x in range(data.shape[0]):
            for y in range(data.shape[1]):
                value = min(max((data[x, y, plane] - dark) / (bright - dark), 0), 1)
                slices[index, x, y] = round(255 * float(value))
    return slices


# --------------------------------------------------------------------------- volumes


def test_each_voxel_finds_its_pixel(tmp_path):
    data = brain()
    slices, planes = read_slices(save(tmp_path / "a.nii.gz", data), OPTIONS, SIZE)
    assert planes == [0, 2, 5, 7]
    assert np.abs(slices.astype(int) - expected_slices(data, planes)).max() <= 1


def orientations() -> list[np.ndarray]:
    found = [
        np.array(list(zip(order, signs)))
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    assert len(found) == 48
    return found


@pytest.mark.parametrize("axis, spacing", [("axial", 1.0), ("coronal", 1.0), ("sagittal", 1.0), ("axial", 0.7)])
def test_a_volume_in_any_orientation_gives_the_same_slices(tmp_path, axis, spacing):
    image = nib.Nifti1Image(brain(), affine())
    options = VolumeOptions(axis, spacing, 4)
    whole = save(tmp_path / "whole.nii", brain())
    size = output_space(whole, options).slice_size(axis)
    expected, planes = read_slices(whole, options, size)
    assert expected.max() == 255 and (expected > 0).mean() > 0.2
    for index, orientation in enumerate(orientations()):
        path = tmp_path / f"{index}.nii"
        nib.save(image.as_reoriented(orientation), path)
        assert output_space(path, options).slice_size(axis) == size
        found, found_planes = read_slices(path, options, size)
        assert found_planes == planes and np.array_equal(found, expected), orientation


def analyze(path: Path, data: np.ndarray) -> Path:
    """An Analyze pair, whose header has no orientation: its x is taken to run to the left, as the format has it."""
    nib.save(nib.AnalyzeImage(data[::-1, :, :, None].astype(np.int16), np.diag([-1.0, 1, 1, 1])), path)
    return path


def scaled(path: Path, data: np.ndarray) -> Path:
    image = nib.Nifti1Image((data / 4).round().astype(np.int16), affine())
    image.header.set_slope_inter(4.0, 0.0)
    nib.save(image, path)
    return path


def big_endian(path: Path, data: np.ndarray) -> Path:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(data.astype(">i2"), affine(), header), path)
    return path


def one_frame(path: Path, data: np.ndarray) -> Path:
    return save(path, data[..., None])


def with_nan(path: Path, data: np.ndarray) -> Path:
    return save(path, np.where(data == 0, np.nan, data).astype(np.float32))


def mgh(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.MGHImage(data.astype(np.float32), affine()), path)
    return path


def of_type(dtype: str):
    return lambda path, data: save(path, data.astype(dtype))


@pytest.mark.parametrize(
    "name, write",
    [
        ("a.hdr", analyze),
        ("a.img.hdr", lambda path, data: analyze(path.with_name("b.hdr"), data)),
        ("a.nii", scaled),
        ("a.nii.gz", big_endian),
        ("a.nii", one_frame),
        ("a.nii.gz", with_nan),
        ("a.mgz", mgh),
        ("a.mgh", mgh),
        *[("a.nii.gz", of_type(dtype)) for dtype in ("int16", "uint16", "int32", "float32", "float64")],
    ],
)
def test_every_file_format_and_data_type_gives_the_same_slices(tmp_path, name, write):
    data = 4 * (brain() / 4).round()
    slices, planes = read_slices(write(tmp_path / name, data), OPTIONS, SIZE)
    assert np.abs(slices.astype(int) - expected_slices(data, planes)).max() <= 1


def test_spacing_is_respected(tmp_path):
    coarse = save(tmp_path / "coarse.nii", brain(shape=(9, 11, 8)), np.diag([2.0, 1.0, 3.0, 1.0]))
    space = output_space(coarse, VolumeOptions(spacing=1.0))
    assert space.shape == (17, 11, 22) and np.allclose(space.affine[:3, :3], np.eye(3))
    slices, planes = read_slices(coarse, VolumeOptions(slices=22, slice_range=(0, 1)), (17, 11))
    assert planes == list(range(22))
    plain, _ = read_slices(
        save(tmp_path / "plain.nii", brain(shape=(9, 11, 8))), VolumeOptions(slices=8, slice_range=(0, 1)), (9, 11)
    )
    assert (
        np.abs(slices[::3, ::2].astype(int) - plain).max() < 60
    )  # the voxels of both lie here, but not the percentiles


def test_planes_are_spread_over_the_part_that_holds_brain(tmp_path):
    data = brain(shape=(9, 11, 40))
    data[:, :, :10] = data[:, :, 30:] = 0
    path = save(tmp_path / "a.nii", data)
    planes = read_slices(path, VolumeOptions(slices=5), SIZE)[1]
    assert planes[0] >= 10 and planes[-1] < 30 and np.ptp(np.diff(planes)) <= 1
    assert read_slices(path, VolumeOptions(slices=5, slice_range=(0.5, 0.75)), SIZE)[1] == [20, 22, 24, 27, 29]
    with pytest.raises(UserError, match="fewer than the 32 slices wanted; lower --slices"):
        read_slices(path, VolumeOptions(slices=32), SIZE)


@pytest.mark.parametrize(
    "axis, front_first", [("axial", False), ("axial", True), ("coronal", False), ("sagittal", False)]
)
@pytest.mark.parametrize("spacing, change", [(1.0, (0, 0)), (1.0, (3, 4)), (1.0, (-3, -2)), (2.0, (1, -1))])
def test_a_nifti_of_slices_lies_where_the_volume_lay(tmp_path, axis, spacing, change, front_first):
    where = affine(spacing, (-7.5, 3, 11))
    path = save(tmp_path / "a.nii", brain(), where)
    options = VolumeOptions(axis, spacing, 4, (0.0, 1.0), front_first=front_first)
    space = output_space(path, options)
    size = tuple(length + more for length, more in zip(space.slice_size(axis), change))
    slices, planes = read_slices(path, options, size)
    written = nifti_of(slices / 255, planes, space, axis, front_first=front_first)
    values, source = written.get_fdata(), brain()
    bright = np.percentile(source[source > 0], 99.5)
    across, met = {"sagittal": 0, "coronal": 1, "axial": 2}[axis], 0
    for index in np.ndindex(*values.shape):
        place = nib.affines.apply_affine(written.affine, index)
        voxel = np.linalg.inv(where) @ [*place, 1]
        voxel[across] = planes[index[across]]  # whole planes, which the mean distance only comes near
        voxel = voxel[:3].round().astype(int)
        if all(0 <= v < length for v, length in zip(voxel, source.shape)):
            met += source[tuple(voxel)] > 0
            assert values[index] == pytest.approx(min(source[tuple(voxel)] / bright, 1), abs=0.01), index
        else:
            assert values[index] == 0
    assert met > 50
    ends = [nib.affines.apply_affine(written.affine, [0] * across + [i] + [0] * (2 - across))[across] for i in (0, 3)]
    assert ends == pytest.approx([where[across, 3] + spacing * plane for plane in (planes[0], planes[-1])])


def test_common_size_leaves_giants_out():
    assert common_size([(10, 20), (12, 18), (11, 19)]) == (12, 20)
    assert common_size([(10, 20)] * 9 + [(90, 21)]) == (13, 21)


# --------------------------------------------------------------------------- folders of volumes


def truncated(path: Path) -> None:
    save(path, brain())
    path.write_bytes(path.read_bytes()[:200])


def wrong_header(path: Path) -> None:
    path.write_bytes(b"no header at all" * 40)


def zero_size(path: Path) -> None:
    path.write_bytes(b"")


def all_zeros(path: Path) -> None:
    save(path, np.zeros((9, 11, 8), np.float32))


def flat(path: Path) -> None:
    save(path, brain()[:, :, 0])


def two_frames(path: Path) -> None:
    save(path, np.stack([brain(), brain()], -1))


SMALL = {"slices": 4, "split": "60,40,0"}


def volumes(root: Path, count: int = 12) -> Path:
    for subject in range(count):
        save(root / f"person{subject:02d}.nii.gz", brain(subject))
    return root


@pytest.mark.parametrize("spoil", [truncated, wrong_header, zero_size, all_zeros, flat, two_frames])
def test_a_bad_volume_is_named_or_left_out_and_the_rest_is_unharmed(tmp_path, spoil, capsys):
    root = volumes(tmp_path / "data")
    whole = load(DataOptions(str(root), **SMALL), tmp_path / "cache")
    spoil(root / "person03.nii.gz")
    with pytest.raises(UserError, match="person03.nii.gz"):
        load(DataOptions(str(root), **SMALL), tmp_path / "cache")
    for _ in range(2):  # the second time from the cache
        rest = load(DataOptions(str(root), skip_bad=True, **SMALL), tmp_path / "cache")
        assert "left out: " in capsys.readouterr().out and "left out person03" in " ".join(rest.notes)
        for name, split in whole.splits.items():
            kept = np.array([subject != "person03" for subject in split.subjects])
            assert np.array_equal(rest.splits[name].images, split.images[kept])
            assert rest.splits[name].subjects == [s for s in split.subjects if s != "person03"]


def test_no_readable_volume_at_all_is_said(tmp_path):
    wrong_header(save(tmp_path / "data" / "a.nii", brain()))
    with pytest.raises(UserError, match="none of its 1 volumes can be read"):
        load(DataOptions(str(tmp_path / "data"), skip_bad=True, **SMALL), tmp_path / "cache")


def test_volumes_are_read_once_and_splits_keep_subjects_whole(tmp_path, monkeypatch):
    root = volumes(tmp_path / "data")
    options = DataOptions(str(root), **SMALL)
    data = load(options, tmp_path / "cache")
    assert data.kind == "volumes" and data.slices_per_subject == 4
    assert {len(split) % 4 for split in data.splits.values()} == {0}
    monkeypatch.setattr("sources.decoding.read_slices", lambda *_: pytest.fail("it was read again"))
    again = load(options, tmp_path / "cache")
    for name, split in data.splits.items():
        assert isinstance(again.splits[name].images, np.memmap)
        assert np.array_equal(split.images, again.splits[name].images)
        assert split.positions[:4].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for index, subject in enumerate(data.splits["train"].subjects[::4]):
        slices, _ = read_slices(root / f"{subject}.nii.gz", options.volumes, (9, 11))
        assert np.array_equal(data.splits["train"].images[4 * index : 4 * index + 4], slices)


def test_formats_and_subjects_are_recognised(tmp_path):
    bids, discs, tree = tmp_path / "bids", tmp_path / "oasis", tmp_path / "tree"
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"):
        save(bids / name, brain())
    save(bids / "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz", brain())
    save(bids / "sub-02/ses-b/func/sub-02_ses-b_bold.nii.gz", brain())
    for scan in ("OAS1_0001_MR1", "OAS1_0002_MR1", "OAS1_0002_MR2"):
        folder = discs / "disc1" / scan / "PROCESSED/MPRAGE/T88_111"
        folder.mkdir(parents=True)
        analyze(folder / f"{scan}_mpr_n4_anon_111_t88_masked_gfc.hdr", brain())
        analyze(folder / f"{scan}_mpr_n4_anon_111_t88_gfc.hdr", brain())
    for name in ("anna/t1.mgz", "bert/t1.nii", "group/carl.nii", "group/dora.nii.gz"):
        (save if "nii" in name else mgh)((tree / name), brain()) if (tree / name).parent.mkdir(
            parents=True, exist_ok=True
        ) is None else None
    expected = {
        bids: ("bids", ["sub-01", "sub-02", "sub-02"]),
        discs: ("oasis1", ["OAS1_0001", "OAS1_0002", "OAS1_0002"]),
        tree: ("volumes", ["anna", "bert", "group/carl", "group/dora"]),
    }
    for root, (kind, subjects) in expected.items():
        assert recognised(root) == kind
        scans = survey(root, kind, "all").scans
        assert [scan.subject for scan in scans] == subjects and len({scan.name for scan in scans}) == len(scans)
    assert len(survey(bids, "volumes", "all").scans) == 4, "forced to, it takes every volume"
    with pytest.raises(UserError, match="--format oasis1 finds nothing there"):
        survey(tree, "oasis1", "all")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="expected the OASIS PNG slice set.*BIDS"):
        recognised(tmp_path / "nothing")


# --------------------------------------------------------------------------- folders of images


def image(path: Path, seed: int, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def test_folders_of_images_are_subjects_or_names_are(tmp_path):
    for subject, suffix in enumerate(("png", "jpg", "tif", "bmp", "png", "png")):
        for number in (1, 2, 10):
            image(tmp_path / "below" / f"person{subject}" / f"slice{number}.{suffix}", 10 * subject + number)
            image(tmp_path / "beside" / f"person{subject}_z{number}.png", 10 * subject + number)
        image(tmp_path / "plain" / f"photo{'abcdef'[subject]}.png", subject)
    for name in ("below", "beside"):
        data = load(DataOptions(str(tmp_path / name), split="50,50,0"), tmp_path / "cache")
        subjects = [subject for split in data.splits.values() for subject in split.subjects]
        assert data.kind == "images" and sorted(set(subjects)) == [f"person{i}" for i in range(6)]
        assert data.splits["train"].numbers[:3].tolist() == [1, 2, 10] and data.slices_per_subject == 11
        assert not data.splits["train"].symmetric, "nobody says which way they lie"
    first = data.splits["train"].names[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "beside" / first)), data.splits["train"].images[0])
    plain = load(DataOptions(str(tmp_path / "plain"), split="50,50,0"), tmp_path / "cache")
    assert plain.slices_per_subject is None and plain.splits["train"].positions is None
    (tmp_path / "plain" / "photoa.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="photoa.png: not a readable image"):
        load(DataOptions(str(tmp_path / "plain"), split="50,50,0"), tmp_path / "cache")
    rest = load(DataOptions(str(tmp_path / "plain"), split="50,50,0", skip_bad=True), tmp_path / "cache")
    assert sum(map(len, rest.splits.values())) == 5


# --------------------------------------------------------------------------- splits


def test_a_subjects_split_hangs_on_its_name_alone_and_can_be_given(tmp_path):
    subjects = [f"s{i}" for i in range(2000)]
    splits = assign_splits(subjects, "85,10,5", {})
    counts = {name: list(splits.values()).count(name) for name in ("train", "validate", "test")}
    assert 1640 < counts["train"] < 1760 and 150 < counts["validate"] < 250 and 60 < counts["test"] < 140
    assert assign_splits([*subjects[500:], "new"], "85,10,5", {}).items() >= dict(list(splits.items())[500:]).items()
    root = volumes(tmp_path / "data")
    data = load(DataOptions(str(root), **SMALL), tmp_path / "cache")
    (tmp_path / "split.csv").write_text(split_table(data))
    given = load(
        DataOptions(str(root), slices=4, split="0.1,99.9,0", split_file=str(tmp_path / "split.csv")), tmp_path / "cache"
    )
    assert {n: s.subjects for n, s in given.splits.items()} == {n: s.subjects for n, s in data.splits.items()}
    for text in ("85,10", "85,10,6", "a,b,c", "-1,96,5", "0,50,50"):
        with pytest.raises(UserError, match="--split is"):
            DataOptions(split=text).check()
    (tmp_path / "wrong.csv").write_text("subject,split\ns1,training\n")
    with pytest.raises(UserError, match="subject s1 has the split training; expected train, validate, test"):
        read_split_file(tmp_path / "wrong.csv", subjects)


# --------------------------------------------------------------------------- conditions


def test_tables_are_joined_by_subject_and_kinds_are_inferred(tmp_path):
    rows = ["ID,M/F,Age,CDR", "OAS1_0001_MR1,F,74,0", "OAS1_0002_MR1,M,55,0.5", "OAS1_0002_MR2,M,56,1"]
    rows += [f"OAS1_{i:04d}_MR1,F,{20 + i}," for i in range(3, 15)]
    (tmp_path / "oasis.csv").write_text("\n".join(rows))
    table = read_conditions(tmp_path / "oasis.csv", ["cdr", "Age", "m/f"])
    subjects = ["OAS1_0001", "OAS1_0002", "OAS1_0002", "OAS1_0003", *(f"{i:03d}" for i in range(4, 15)), "999"]
    sessions = ["MR1", "MR1", "MR2", "MR1", *[""] * len(subjects[4:])]
    found, values, _ = join(table, ["cdr", "Age", "m/f"], subjects, sessions)
    assert found["cdr"] == Condition(("0", "0.5", "1")) and found["m/f"] == Condition(("F", "M"))
    assert found["Age"] == Condition((), 23.0, 74.0)
    assert values["cdr"][:3].tolist() == [0, 1, 2] and np.isnan(values["cdr"][3:]).all()
    assert values["Age"][0] == 1 and values["Age"][3] == 0 and np.isnan(values["Age"][-1])
    assert values["m/f"][:4].tolist() == [0, 1, 1, 0]
    assert parse_where("cdr=.50, Age=48.5", found) == {"cdr": 1.0, "Age": 0.5}
    assert np.isnan(parse_where("cdr=n/a", found)["cdr"])
    for text, said in (("cdr=3", "expected one of 0, 0.5, 1"), ("age=7", "NAME of cdr, Age"), ("Age=old", "a number")):
        with pytest.raises(ValueError, match=said):
            parse_where(text, found)
    again = Condition.from_json(json.loads(json.dumps(found["Age"].as_json())))
    assert again == found["Age"] and Condition.from_json(found["cdr"].as_json()) == found["cdr"]
    with pytest.raises(UserError, match="no column weight; it has id, m/f, age, cdr"):
        read_conditions(tmp_path / "oasis.csv", ["weight"])
    with pytest.raises(UserError, match="none of its subjects"):
        join(table, ["cdr"], ["nobody"], [""])
    known = join(table, ["cdr"], subjects, sessions, {"cdr": Condition(("0", "1"))}).values["cdr"]
    assert known[:1].tolist() == [0] and np.isnan(known[1]) and known[2] == 1


def test_groups_are_classes_or_thirds_and_the_unknown():
    classes = dict(groups(Condition(("a", "b")), np.array([0, 1, 1, np.nan])))
    assert {name: inside.tolist() for name, inside in classes.items()} == {
        "a": [True, False, False, False],
        "b": [False, True, True, False],
        "unknown": [False, False, False, True],
    }
    ages = np.array([*np.linspace(0, 1, 9), np.nan])
    thirds = dict(groups(Condition((), 20, 80), ages))
    assert [int(inside.sum()) for inside in thirds.values()] == [3, 3, 3, 1]
    assert next(iter(thirds)).startswith("20 to") and list(thirds)[2].endswith("to 80")


# --------------------------------------------------------------------------- end to end


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    monkeypatch.setattr("training.pipeline.SHOWN", 4)
    monkeypatch.setattr("training.pipeline.QUICK", Effort(8, 1, 8))
    return tmp_path


TRAINING = ["--epoch", "1", "--epoch_prior", "1", "--epoch_sharpen", "1", "--k", "8", "--d", "4", "--batch", "8"]
TRAINING += ["--epoch_detail", "1", "--epoch_detail_prior", "1"]


def test_volumes_and_a_table_train_and_come_out_as_nifti(here, capsys):
    rows = ["participant_id\tage\tsex"]
    for subject in range(14):
        save(
            here / f"bids/sub-{subject:02d}/anat/sub-{subject:02d}_T1w.nii.gz", brain(subject, (24, 28, 20)), affine(2)
        )
        rows.append(f"sub-{subject:02d}\t{20 + 3 * subject}\t{'FM'[subject % 2] if subject else 'n/a'}")
    (here / "bids/participants.tsv").write_text("\n".join(rows))
    told = ["--table", "bids/participants.tsv", "--condition", "age,sex"]
    train.main(
        [*TRAINING, "--data", "bids", "--spacing", "2", "--slices", "4", "--split", "60,40,0", *told, "--out", "run"]
    )
    said = capsys.readouterr().out
    assert "recognised as BIDS" in said and "condition sex: 2 classes (F, M); unknown of 1 of 14" in said
    config = json.loads((here / "run/config.json").read_text())
    assert config["data"]["geometry"]["axis"] == "axial"
    assert len((here / "run/split.csv").read_text().splitlines()) == 15
    evaluate.main(["--run", "run", "--quick", "--samples", "4"])
    assert "| age |" in capsys.readouterr().out
    by_group = json.loads((here / "run/scores.json").read_text())["validate"]["by_group"]
    assert set(by_group) == {"age", "sex"} and sum(g["subjects"] for g in by_group["age"].values()) > 1
    flags = ["--run", "run", "--slice", "all", "--n", "2", "--nifti", "--seed", "3"]
    generate.main([*flags, "--where", "age=30,sex=F", "--out", "old"])
    generate.main([*flags, "--where", "age=59,sex=M", "--out", "young"])
    first, _ = (nib.load(here / out / "volumes/sample_0000.nii.gz") for out in ("old", "young"))
    assert first.shape == (24, 28, 4) and np.allclose(np.abs(np.diag(first.affine))[:2], 2)
    generate.main(["--run", "run", "--slice", "1", "--n", "2", "--nifti", "--out", "single"])
    assert nib.load(here / "single/volumes/sample_0001_slice_1.nii.gz").shape == (24, 28, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reporting.volumes.viewer_page", lambda *_: "")
        generate.main(["--run", "run", "--volumes", "1", "--where", "age=30", "--out", "whole"])
        scan = brain(0, (24, 28, 20))
        scan[:, :, 5:14] = 0
        save(here / "lacking.nii.gz", scan, affine(2))
        generate.main(["--run", "run", "--complete-volume", "lacking.nii.gz", "--out", "whole"])
    head = nib.load(here / "whole/volumes/head_0000.nii.gz")
    assert head.shape == first.shape and np.allclose(head.affine, first.affine)
    completed = nib.load(here / "whole/volumes/completed_0000.nii.gz").get_fdata()
    own = read_slices(here / "lacking.nii.gz", VolumeOptions(spacing=2, slices=4), (24, 28))[0] / 255
    lacks = [index for index, one in enumerate(own) if not one.any()]
    assert 0 < len(lacks) < 4 and completed[..., lacks].any()
    for index in {*range(4)} - {*lacks}:
        assert completed[..., index] == pytest.approx(own[index], abs=1e-6)
    for wrong, message in (("age=30,cdr=1", "NAME of age, sex"), ("sex=X", "expected one of F, M")):
        with pytest.raises(Exception, match=message):
            generate.main(["--run", "run", "--where", wrong])


def test_images_of_nobody_knows_where_train_unconditionally(here):
    for seed in range(16):
        image(here / "photos" / f"{'abcdefghijklmnop'[seed]}.png", seed)
    train.main([*TRAINING, "--data", "photos", "--split", "60,40,0", "--out", "run"])
    assert json.loads((here / "run/config.json").read_text())["data"]["slices_per_subject"] is None
    generate.main(["--run", "run", "--n", "2"])
    with pytest.raises(Exception, match="not trained on volumes"):
        generate.main(["--run", "run", "--n", "2", "--nifti"])


def test_space_of_a_header_is_that_of_its_voxels(tmp_path):
    turned = np.array([[0, -1.5, 0.2, 3], [1.2, 0, 0, 4], [0, 0.1, 2, 5], [0, 0, 0, 1]])
    path = save(tmp_path / "oblique.nii", brain(), turned)
    for spacing in (1.0, 1.7):
        options = VolumeOptions(spacing=spacing, slices=3, slice_range=(0.2, 0.8))
        space = output_space(path, options)
        assert isinstance(space, Space)
        slices, _ = read_slices(path, options, space.slice_size("axial"))
        assert slices.shape[1:] == space.slice_size("axial") and slices.any()
