"""Folders and tables as people have them: what is read of each, whose it is, what is said; or the sentence that refuses it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from layouts import LAYOUTS

from common.cli import parse_flags
from common.errors import UserError
from dataset import SPLITS, Dataset
from training.job import load_data
from training.settings import Settings


@dataclass(frozen=True)
class Row:
    """What becomes of a layout.

    people: in training, validation and test; slices: of each person, or None where they differ. said: words of what is printed.
    refused: words of the refusal. check: what else is to hold of the data.
    """

    people: tuple[int, int, int] = (6, 1, 1)
    slices: int | None = 4
    said: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    check: Callable[[Dataset], bool] = lambda data: True


def everything(data: Dataset) -> list[tuple[str, np.ndarray, dict[str, float]]]:
    """Subject, pixels and conditions of each slice."""
    return [
        (split.subjects[index], split.images[index], {name: values[index] for name, values in split.conditions.items()})
        for split in data.splits.values()
        for index in range(len(split))
    ]


def told(name: str, expected: Callable[[str, str], float | str | None]) -> Callable[[Dataset], bool]:
    """Whether each slice's condition is what is expected of its subject and session; None for one that is not known."""

    def check(data: Dataset) -> bool:
        condition = data.conditions[name]
        for split in data.splits.values():
            for subject, session, value in zip(split.subjects, split.sessions, split.conditions[name]):
                wanted = expected(subject, session)
                known = condition.encoded(str(wanted)) if wanted is not None else np.nan
                assert np.isclose(value, known, atol=1e-6, equal_nan=True), (subject, session, value, wanted)
        return True

    return check


def number(subject: str) -> int:
    return int("".join(filter(str.isdecimal, subject)) or -1)


def age(subject: str, session: str) -> int:
    return 20 + 5 * number(subject)


def sessions_apart(data: Dataset) -> bool:
    told("age", lambda subject, session: 20.5 + number(subject) + 10 * (session[-1] == "2"))(data)
    return told("group", lambda subject, session: "CN" if session[-1] == "1" else "MCI")(data)


def black_outside(data: Dataset) -> bool:
    return all(pixels[0, 0] == 0 and pixels.max() > 100 for _, pixels, _ in everything(data))


def grey_levels(data: Dataset) -> bool:
    """Whether slices use the whole range, in many levels."""
    return all(pixels.max() > 180 and len(np.unique(pixels)) > 25 for _, pixels, _ in everything(data))


def upright(data: Dataset) -> bool:
    """Whether the two slices of each person, of which one was stored turned, are alike."""
    return all(
        np.abs(first.astype(int) - second).mean() < 20
        for split in data.splits.values()
        for first, second in zip(split.images[::2], split.images[1::2])
    )


def positions_are(*expected: float) -> Callable[[Dataset], bool]:
    def check(data: Dataset) -> bool:
        return np.allclose(data.splits["train"].positions[: len(expected)], expected)

    return check


def nowhere(data: Dataset) -> bool:
    return all(split.positions is None for split in data.splits.values())


def in_split(split: str, *subjects: str) -> Callable[[Dataset], bool]:
    return lambda data: {*data.splits[split].subjects} == {*subjects}


def kaggle_class(subject: str, session: str) -> str:
    person = number(subject[5:])
    return "NonDemented" if person < 13 else "VeryMildDemented" if person < 19 else "ModerateDemented"


TWELVE = (10, 1, 1)
HEADER = "mend the header, or leave such files out with --skip_bad"
TABLE: dict[str, Row] = {
    # whose scan is it
    "freesurfer": Row(
        said=(
            "8 people by folder names",
            "8 labels or masks (such as subj00/mri/aseg.mgz)",
            "took 8 T1, left out",
            "8 T1 (brain)",
            "--contrast",
        )
    ),
    "freesurfer_surf": Row((4, 1, 1), said=("6 people",)),
    "oasis2": Row(
        (4, 1, 1),
        16,
        (
            "6 people by ids in their names",
            "`OAS2_0001` <- OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1.nifti.hdr and 3 more",
        ),
    ),
    "adni": Row(slices=8, said=("8 people by ids", "`002_S_0001` <- ADNI/")),
    "brats": Row(said=("8 people", "8 labels or masks", "took 8 T1, left out 8 FLAIR", "8 T1CE", "8 T2")),
    "appledouble_nii": Row(said=("recognised as BIDS",)),
    "appledouble_png": Row(slices=3, said=("`person0` <- person0/0.png and 2 more",)),
    "appledouble_png_skipbad": Row(slices=3, said=("`person0` <- person0/0.png and 2 more",)),
    "bids_both_gz": Row(said=("8 copies of a file of another kind beside them (such as sub-1/anat/sub-1_T1w.nii)",)),
    "bids_flair_only": Row(refused=("FLAIR of 8 people", "T2 of 8 people", "say which with --contrast NAME")),
    "bids_in_subfolder": Row(said=("recognised as BIDS", "left out 8 volumes that are no part of BIDS")),
    "datalad_present": Row(said=("`case00` <- scans/case00.nii.gz",)),
    "datalad_dropped_bids": Row(
        refused=("2 of 8 files are links to what is not there, such as sub-3/anat", "datalad get", "--skip_bad")
    ),
    "datalad_dropped_images": Row(
        refused=("1 of 24 files are links to what is not there, such as person3/1.png", "git annex get")
    ),
    "linked_folders": Row(slices=3, said=("8 people by folder names",)),
    "ixi_table": Row(TWELVE, said=("12 people by ids",), check=told("AGE", lambda subject, _: 20.5 + number(subject))),
    "study": Row(
        (20, 1, 2),
        said=("23 people", "23 tissue or probability maps", "23 labels or masks", "left out 23 FLAIR"),
        check=told("age", lambda subject, _: 40 + number(subject)),
    ),
    # images
    "kaggle_classes": Row(
        (21, 4, 1), said=("26 people by ids", "condition folder: 3 classes"), check=told("folder", kaggle_class)
    ),
    "classes_of_numbers": Row(
        (16, 3, 1), 1, ("each file counts as one", "slices of one person may be in several splits"), check=nowhere
    ),
    "kaggle_flat": Row(TWELVE, 8, ("12 people by ids",), check=positions_are(0, 1, 0, 1)),
    "split_folders": Row(
        (12, 4, 4),
        1,
        ("splits are those that the folders state: train 12, validate 4, test 4 people",),
        check=in_split("test", "img16", "img17", "img18", "img19"),
    ),
    "split_folders_volumes": Row(
        (6, 2, 2), said=("splits are those that the folders state",), check=in_split("test", "case08", "case09")
    ),
    "split_folders_twice": Row(refused=("case02 is in both the test and the train split", "--split_file")),
    "split_folders_counted_anew": Row(
        (7, 1, 3),
        said=("train 8, test 3 people; 1 of those for training validate",),
        check=in_split("test", "test/case1", "test/case2", "test/case3"),
    ),
    "hipmri": Row(
        (5, 2, 1),
        3,
        ("recognised as images", "splits are those that the folders state"),
        check=in_split("test", "case_011"),
    ),
    "lgg": Row(said=("8 people by ids", "32 labels or masks"), check=positions_are(0, 1 / 3, 2 / 3, 1)),
    "numbers_only": Row(
        (1, 0, 0), 12, ("1 person by numbered images that lie together", "no subject"), check=positions_are(0, 1 / 11)
    ),
    "ids_as_names": Row(slices=1, said=("8 people by ids",)),
    "dicom_uid_names": Row(slices=3, said=("8 people", "do not look like slice numbers"), check=nowhere),
    "png16_12bit": Row(slices=3, check=grey_levels),
    "float_tiff": Row(slices=3, check=grey_levels),
    "tiff_stack": Row(slices=5),
    "exif": Row(slices=2, check=upright),
    "rgba": Row(slices=2, check=black_outside),
    "one_row": Row(slices=2),
    "upper_case": Row(slices=2),
    "non_utf8_name": Row(refused=("ller", "UTF-8", "--skip_bad")),
    "unicode_space": Row(slices=2, check=positions_are(0, 1)),
    "comma_name": Row(slices=2),
    "dollar_names": Row(slices=2),
    "one_bad_png": Row(slices=None, said=("left out", "person3/1.png")),
    "many_png": Row((6, 4, 0), 13, check=positions_are(0, 1 / 12)),
    # no kind that is read
    "a_zip": Row(refused=("slices.zip: a zip archive", "unzip")),
    "a_single_volume": Row((1, 0, 0), said=("1 person",)),
    "dicoms": Row(refused=("4 DICOM files, such as ser/IM0000", "dcm2niix")),
    # odd volumes
    "rgb_nifti": Row(check=black_outside),
    "rgb_one": Row(),
    "complex_nifti": Row(check=black_outside),
    "zero_pixdim": Row(refused=("s3.nii: its header gives no voxel sizes", HEADER)),
    "zero_sform": Row(refused=("s3.nii: its header places no voxels", HEADER)),
    "zero_sform_skip": Row((5, 1, 1), said=("left out", "s3.nii: its header places no voxels")),
    "negative_pixdim": Row(),
    "nan_slope": Row(),
    "micron_units": Row(),
    "nan_zscore": Row(check=black_outside),
    "ct_oblique": Row(check=black_outside),
    "few_planes": Row(slices=32),
    "partial_fov": Row(refused=("planes of 1 mm hold brain, fewer than the 16 slices wanted", "--slices")),
    "four_d": Row(refused=("4-D of 8 x 10 x 8 x 2 voxels; expected one 3-D volume",)),
    "outlier": Row(check=lambda data: all(np.median(pixels[pixels > 0]) > 40 for _, pixels, _ in everything(data))),
    "wrong_gz": Row(refused=("s3.nii.gz", "call it s3.nii")),
    "wrong_gz2": Row(refused=("s3.nii", "call it s3.nii.gz")),
    "upper_nii": Row(said=("`S0` <- S0.NII.GZ",)),
    "upper_analyze": Row(said=("`S0` <- S0.HDR",)),
    "oasis_raw": Row(slices=12, said=("8 people by ids", "8 labels or masks")),
    "oasis_raw_bad": Row(
        slices=None,
        said=("8 people by ids", "OAS1_0002_MR1_mpr-2_anon.hdr"),
        check=lambda data: Counter(s for s, _, _ in everything(data))["OAS1_0002"] == 8,
    ),
    "oasis_full": Row(said=("recognised as OASIS-1 discs", "left out 40 volumes that are no part of OASIS-1 discs")),
    "odd_dtypes": Row(check=black_outside),
    "many_slices": Row((6, 4, 0), 8),
    "bids_t2_forced": Row((5, 2, 1), said=("took 8 T1, left out 8 T2",)),
    # tables
    "table_sessions": Row(TWELVE, 8, check=sessions_apart),
    "table_wrong_column": Row(refused=("none of its subjects is in the data", "HC20", "sub-2")),
    "table_ten_vs_ten": Row(TWELVE, check=told("site", lambda subject, _: "B" if "-0" in subject else "A")),
    "table_semicolon": Row(
        TWELVE, said=("separated by semicolons", "decimal commas"), check=told("age", lambda *who: age(*who) + 0.5)
    ),
    "table_90plus": Row(
        TWELVE, said=("89+ read as 89",), check=told("age", lambda *who: 89 if age(*who) == 45 else age(*who))
    ),
    "table_dash": Row(
        TWELVE, said=("unknown of 1 of 12",), check=told("age", lambda *who: None if age(*who) == 45 else age(*who))
    ),
    "table_latin1": Row(TWELVE, said=("latin-1",), check=told("age", age)),
    "table_utf16": Row(TWELVE, check=told("age", age)),
    "table_constant": Row(TWELVE, said=("tells nothing",)),
    "table_tab_in_csv": Row(TWELVE, said=("separated by tabs",), check=told("age", age)),
    "table_few_known": Row(TWELVE, said=("names 1 of 12 subjects", "unknown of 11 of 12")),
    "table_id_000": Row(TWELVE, check=told("age", lambda subject, _: 20 + number(subject))),
    "table_underscore_words": Row(
        TWELVE, check=told("visit", lambda subject, _: "1_2" if number(subject) % 2 else "12")
    ),
    "table_xlsx": Row(refused=("t.xlsx: a spreadsheet", ".csv")),
    "table_images_uid": Row(TWELVE, 2, check=told("age", lambda subject, _: 40 + number(subject[5:]))),
    "split_file_prefix": Row((6, 3, 3), check=in_split("validate", "sub-07", "sub-08", "sub-09")),
    "split_file_twice": Row(refused=("puts sub-08 into train", "into test")),
    "split_file_slices": Row((4, 0, 4), 3, check=in_split("train", "004", "005", "006", "007")),
}


def test_every_layout_is_in_the_table():
    assert TABLE.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_what_becomes_of_a_layout(name, tmp_path, capsys):
    row, root = TABLE[name], tmp_path / "data"
    root.mkdir()
    flags = ["--data", str(root), *LAYOUTS[name](root)]
    settings = Settings(**parse_flags(Settings, "", flags))
    settings.check()
    if row.refused:
        with pytest.raises(UserError) as refusal:
            load_data(settings.data_options, str(tmp_path / "cache"))
        said = str(refusal.value)
        assert all(words in said for words in row.refused) and "\n" not in said, said
        return
    data = load_data(settings.data_options, str(tmp_path / "cache"))
    said = capsys.readouterr().out
    assert not [words for words in row.said if words not in said], said
    slices = {name: Counter(split.subjects) for name, split in data.splits.items()}
    assert tuple(len(slices.get(split, ())) for split in SPLITS) == row.people
    assert sum(map(len, slices.values())) == len(set().union(*slices.values())), "a person is in two splits"
    if row.slices is not None:
        assert {count for people in slices.values() for count in people.values()} == {row.slices}
    assert row.check(data)
