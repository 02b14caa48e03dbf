"""Whose scan it is, by names alone: people, visits, classes and splits of folders as they are downloaded."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.errors import UserError
from sources.identity import identify
from sources.scans import Found, survey

ROOT = Path("/data")
TWO = range(1, 3)
FIVE = range(1, 6)


def people_of(names: Sequence[str], **options: object) -> dict[str, set[str]]:
    """The names by person."""
    images = names[0].endswith((".png", ".jpg"))
    found: dict[str, set[str]] = {}
    for one in identify([ROOT / name for name in names], ROOT, images, **options):
        found.setdefault(one.person, set()).add(one.path.relative_to(ROOT).as_posix())
    return found


def each(pattern: str, people: Sequence[object] = FIVE, *others: Sequence[object]) -> list[str]:
    """The pattern with each person for @, and each of the others for # and for %."""
    names = [pattern.replace("@", str(person)) for person in people]
    for letter, several in zip("#%", others):
        names = [name.replace(letter, str(one)) for name in names for one in several]
    return names


# names, and how many people; each person has as many files as every other
KNOWN: list[tuple[str, list[str], int]] = [
    ("BIDS", each("sub-@/ses-#/anat/sub-@_ses-#_run-%_T1w.nii.gz", ["01", "1", "a7"], "ab", TWO), 3),
    ("BIDS ids of files alone", each("scans/sub-@_T1w.nii.gz", ["01", "02"]), 2),
    ("BIDS ids of images", each("sub-@_#.png", ["01", "02"], TWO), 2),
    ("an image a person", each("sub-@.png", ["01", "02"]), 2),
    ("BIDS ids with slice numbers", each("sub-@-#.png", ["01", "02"], TWO), 2),
    ("OASIS-1", each("OAS1_000@_MR#_mpr-%_100.jpg", FIVE, TWO, TWO), 5),
    ("OASIS-1 in classes", each("NonDemented/oas1_000@_MR1_mpr-#_100.jpg", FIVE, TWO), 5),
    ("OASIS-2", each("part1/OAS2_000@_MR#/RAW/mpr-%.nifti.hdr", FIVE, TWO, TWO), 5),
    ("OASIS-3", each("OAS3000@_MR_d0#/anat%/T1.nii.gz", FIVE, [129, 757], TWO), 5),
    ("ADNI", each("ADNI/002_S_000@/MPRAGE/200#-04-18_08_20_30.0/I1000%/ADNI_002_S_000@_MR_MPRAGE.nii", FIVE, [6, 7], TWO), 5),
    ("ADNI, files alone", each("ADNI_002_S_000@_MR_#_S1000%.nii", FIVE, ["MPRAGE"], TWO), 5),
    ("IXI", each("IXI-#/IXI00@-Guys-070@-#.nii.gz", FIVE, ["T1", "T2", "PD"]), 5),
    ("TCGA", each("TCGA_CS_494@_19960909/TCGA_CS_494@_19960909_#.png", FIVE, TWO), 5),
    ("BraTS", each("BraTS20_Training_00@/BraTS20_Training_00@_#.nii.gz", FIVE, ["t1", "flair"]), 5),
    ("BraTS with time points", each("BraTS-GLI-0000@-00#/BraTS-GLI-0000@-00#-t1n.nii.gz", FIVE, TWO), 5),
    ("UK Biobank", each("100000@_20252_#_0/T1/T1.nii.gz", FIVE, [2, 3]), 5),
    ("words for people", each("case_00@_week_#_slice_%.png", FIVE, TWO, TWO), 5),
    ("words for people, no separator", each("Subj@_#.nii.gz", FIVE, ["T1", "FL"]), 5),
    ("patients of ACDC", each("training/patient00@/patient00@_frame0#.nii.gz", FIVE, [1, 12]), 5),
    ("folders of contrasts", each("#/anna@_#.nii.gz", FIVE, ["t1", "fl"]), 5),
    ("folders of visits", each("#/anna@.nii.gz", FIVE, ["baseline", "month12", "week_4", "visit1", "ses-2"]), 5),
    ("visits inside people", each("anna@/#/T1.nii.gz", FIVE, ["2019-01-02", "2020-03-04"]), 5),
    ("visits in names", each("anna@_#_T1.nii.gz", FIVE, ["baseline", "followup"]), 5),
    ("dates in names", each("anna@_20190#01.nii.gz", FIVE, TWO), 5),
    ("people of sites", each("NYU/001000@/session_#/anat_1/mprage.nii.gz", FIVE, TWO), 5),
    ("FreeSurfer", each("p0@/mri/#.mgz", FIVE, ["T1", "orig", "brain", "nu", "norm"]), 5),
    ("channels", each("imagesTr/BRATS_00@_000#.nii.gz", FIVE, range(4)), 5),
    ("scans of people in folders", each("anna@/scan_#.nii.gz", FIVE, "ab"), 5),
    ("people whose files never repeat", [f"P00{p}/IM_{10 * p + i}.nii" for p in FIVE for i in TWO], 5),
    ("repeats in names", each("p0@_#.nii.gz", FIVE, "ab"), 5),
    ("unknown folders of one and the same", each("#/hans_@.nii.gz", [f"{i:02d}x" for i in FIVE], ["raw2", "filtered2"]), 5),
    ("what SPM makes", each("#anna@.nii", FIVE, ["", "m", "wm"]), 5),
    ("numbers in a folder", each("@.png"), 1),
    ("words and numbers in a folder", each("img@.png"), 1),
    ("numbers in visits", each("#/@.png", FIVE, ["baseline", "month12"]), 1),
    ("folders of images", each("anna@/#.png", FIVE, TWO), 5),
    ("folders of folders of images", each("anna@/T1/#.png", FIVE, TWO), 5),
    ("folders of contrasts of images", each("#/anna@_%.png", FIVE, ["T1", "FLAIR"], TWO), 5),
    ("names of images", each("@_#.png", ["anna", "bert"], FIVE), 2),
    ("z of images", each("@_z#.png", ["anna", "bert"], FIVE), 2),
    ("scans as folders", each("scan@/#.png", FIVE, TWO), 5),
    ("exports of series", each("Doe_John@/1.2.840.113.4.5@/IMG-0001-0000#.png", FIVE, TWO), 5),
    ("pictures without numbers", each("photo@.png", "abcde"), 5),
]  # fmt: skip


@pytest.mark.parametrize("names, count", [case[1:] for case in KNOWN], ids=[case[0] for case in KNOWN])
def test_people_are_found_in_names(names, count):
    stems = frozenset(Path(name).name.split(".")[0].lower() for name in names)
    found = people_of(names, stems=stems)
    assert len(found) == count, sorted(found)
    assert {len(files) for files in found.values()} == {len(names) // count}


def files(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def surveyed(root: Path, names: Sequence[str], **options: object) -> Found:
    return survey(files(root, names), **options)


def test_a_group_is_no_person_and_names_it_where_people_of_one_name_are_counted_anew(tmp_path):
    classes = people_of([*each("AD/@.nii", range(1, 9)), *each("CN/@.nii", range(1, 7))])
    assert len(classes) == 14 and {"AD/1", "CN/1"} <= classes.keys()
    assert len(people_of([*each("AD/p@.nii", [3, 9, 12]), *each("MCI/p@.nii", [9, 31])])) == 4, "p9 has become ill"
    assert people_of(["AD/002_S_0001/a.nii", "CN/002_S_0001/b.nii"]).keys() == {"002_S_0001"}
    assert len(people_of(each("site#/p@.nii", FIVE, "AB"))) == 5, "in doubt one person"
    assert people_of(["anna/t1.mgz", "bert/t1.nii", "group/carl.nii", "group/dora.nii"]).keys() == {
        "anna", "bert", "group/carl", "group/dora"
    }  # fmt: skip


def test_classes_visits_and_splits_are_told(tmp_path):
    names = [f"{split}/{label}/sub-{person}/ses-{visit}/anat/sub-{person}_ses-{visit}_T1w.nii"
             for split, label, person in (("train", "AD", 1), ("train", "CN", 2), ("Testing", "CN", 3)) for visit in
             "ab"]  # fmt: skip
    told = {(one.person, one.session, one.split, one.label) for one in identify([ROOT / n for n in names], ROOT, False)}
    assert told == {
        (f"sub-{person}", f"ses-{visit}", split, label)
        for person, split, label in ((1, "train", "AD"), (2, "train", "CN"), (3, "test", "CN"))
        for visit in "ab"
    }
    scans = surveyed(tmp_path, each("NYU/p@/x.nii", FIVE) + each("KKI/q@/x.nii", FIVE)).scans
    assert {(scan.subject[0], scan.label) for scan in scans} == {("K", "KKI"), ("N", "NYU")}


@pytest.mark.parametrize(
    "train, test",
    [("train", "test"), ("Training", "Testing"), ("imagesTr", "imagesTs"), ("OASIS_train", "OASIS_test"),
     ("keras_slices_train", "keras_slices_test"), ("a/train", "a/test"), ("TrainData", "TestData")],
)  # fmt: skip
def test_splits_are_read_from_folders(train, test):
    found = identify([ROOT / name for name in each(f"{train}/a@.nii") + each(f"{test}/b@.nii")], ROOT, False)
    assert [one.split for one in found] == ["train"] * 5 + ["test"] * 5


@pytest.mark.parametrize("folder", ["test_retest", "latest", "training01", "BraTS20_Training_001", "valeria"])
def test_other_folders_state_no_split(folder):
    assert {one.split for one in identify([ROOT / folder / "a.nii", ROOT / "other/b.nii"], ROOT, False)} == {""}


def test_where_nobody_is_named_in_stated_splits_each_file_is_one():
    found = people_of([*each("train/img@.png"), *each("test/img@.png")])
    assert found.keys() == {f"{split}/img{i}" for split in ("train", "test") for i in FIVE}
    found = people_of([*each("Training/glioma/Tr-gl_@.jpg"), *each("Testing/glioma/Te-gl_@.jpg")])
    assert len(found) == 10
    unknown = identify(
        [ROOT / name for name in each("#/%/im_@.png", FIVE, ["train", "test"], ["foo", "bar"])], ROOT, True
    )
    assert {one.label for one in unknown} == {"foo", "bar"} and len({one.person for one in unknown}) == 20


def test_the_user_can_say_who_it_is():
    assert people_of(each("x_@_y/#.png", FIVE, TWO), pattern=r"x_(\d)").keys() == {*"12345"}
    with pytest.raises(UserError, match=r"--subject z_\(\\d\): it finds nobody in x_1_y"):
        people_of(each("x_@_y/#.png", FIVE, TWO), pattern=r"z_(\d)")


def test_the_grouping_is_said_with_examples(tmp_path):
    notes = surveyed(tmp_path, each("anna@/visit#.nii", FIVE, TWO)).notes
    assert notes[0] == (
        "whose scan: 5 people by folder names, such as `anna1` <- anna1/visit1.nii and 1 more, `anna2` <- anna2/visit1.nii and 1 "
        "more; wrong? name the person by folder, or give --subject REGEX"
    )


# --------------------------------------------------------------------------- what is taken


def taken(root: Path, names: Sequence[str], **options: object) -> set[str]:
    """The files that are taken, without the person."""
    found = surveyed(root, names, **options)
    return {path.relative_to(root).as_posix().replace("anna1", "P") for scan in found.scans for path in scan.files}


def all_of(pattern: str, *words: str) -> list[str]:
    return [pattern.replace("@", word) for word in words]


BIDS = "sub-1/anat/sub-1_@.nii"
TAKEN: list[tuple[str, list[str], set[str]]] = [
    (
        "fmriprep",
        all_of(BIDS, "desc-preproc_T1w", "space-MNI_desc-preproc_T1w", "dseg", "label-GM_probseg", "desc-brain_mask"),
        {"sub-1/anat/sub-1_desc-preproc_T1w.nii"},
    ),
    (
        "repeats of BIDS",
        all_of(BIDS, "run-1_T1w", "run-2_T1w", "T2w"),
        {"sub-1/anat/sub-1_run-1_T1w.nii", "sub-1/anat/sub-1_run-2_T1w.nii"},
    ),
    (
        "HCP",
        all_of("anna1/T1w/@.nii", "T1w_acpc_dc", "T1w_acpc_dc_restore", "T2w_acpc_dc", "ribbon", "aparc+aseg")
        + all_of("anna1/MNINonLinear/@.nii", "T1w", "xfms/acpc2standard"),
        {"P/T1w/T1w_acpc_dc.nii"},
    ),
    (
        "FSL",
        all_of("anna1/T1@.nii", "", "_brain", "_to_MNI", "_fast_seg", "_brain_mask", "_brain_pve_0", "_warp"),
        {"P/T1.nii"},
    ),
    ("SPM", all_of("@anna1.nii", "", "c1", "c2", "c3", "rc1", "mwp1", "m", "wm", "y_", "iy_"), {"P.nii"}),
    ("people called c1", each("c@.nii"), {*each("c@.nii")}),
    ("people called p1", each("p@_#.nii", FIVE, ["T1", "T2"]), {*each("p@_T1.nii")}),
    (
        "FreeSurfer",
        all_of("anna1/mri/@.mgz", "orig", "nu", "brain", "aseg", "wm", "ribbon", "orig/001")
        + ["anna1/surf/lh.thickness.mgh", "fsaverage/mri/T1.mgz"],
        {"P/mri/orig.mgz"},
    ),
    ("statistics", ["anna1_T1.nii", "anna1_zstat1.nii", "stats/anna1.nii", "anna1_cope1.nii"], {"P_T1.nii"}),
    ("labels in folders", all_of("@/la_1.nii", "imagesTr", "labelsTr", "seg", "masks", "maps"), {"imagesTr/la_1.nii"}),
    ("one contrast of anatomy", ["anna1_T2.nii", "anna1_bold.nii", "anna1_adc.nii"], {"P_T2.nii"}),
    ("hidden", ["anna1.nii", "._anna1.nii", ".git/anna1.nii", "__MACOSX/anna1.nii"], {"P.nii"}),
    ("twice", ["anna1.nii", "anna1.nii.gz"], {"P.nii.gz"}),
    ("masks", ["anna1/1.png", "anna1/1_mask.png", "anna1/2.png", "label/1.png"], {"P/1.png", "P/2.png"}),
    ("contrast agent", ["anna1_T1ce.nii", "anna1_T1.nii", "anna1_T2_FLAIR.nii"], {"P_T1.nii"}),
]


@pytest.mark.parametrize("names, expected", [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_one_scan_of_one_kind_is_taken(tmp_path, names, expected):
    assert taken(tmp_path, names) == expected


def test_what_was_not_taken_is_said_and_can_be_asked_for(tmp_path):
    names = [f"p{i}/{name}.nii" for i in FIVE for name in ("T1", "FLAIR", "T1_MNI", "T1_seg")]
    notes = " ".join(surveyed(tmp_path, names).notes)
    for words in (
        "left out by name: 5 labels or masks (such as p1/T1_seg.nii)",
        "took 5 T1, left out 5 FLAIR",
        "5 T1 (mni)",
    ):
        assert words in notes
    for wanted, name in (("flair", "FLAIR"), ("FLAIR", "FLAIR"), ("MNI", "T1_MNI"), ("seg", "T1_seg")):
        assert taken(tmp_path, names, contrast=wanted) == {f"p{i}/{name}.nii" for i in FIVE}
    assert len(taken(tmp_path, names, contrast="all")) == 15
    with pytest.raises(UserError, match="--contrast PET: no scan in .* is called that; it holds FLAIR of 5 people"):
        taken(tmp_path, names, contrast="PET")


@pytest.mark.parametrize(
    "names, said",
    [
        (each("p@_#.nii", FIVE, ["T2", "FLAIR"]), "scans of several contrasts.*T2 of 5 people.*--contrast NAME"),
        (each("imagesTr/la_0@_000#.nii", FIVE, TWO), "channel 0001 of 5 people.*channel 0002 of 5 people"),
        (["p1_T1.nii", *each("p@.nii", range(2, 9))], "T1 of 1 person .*none that is named of 7 people"),
        (each("p@_seg.nii"), "every file there is left out by its name: 5 labels or masks .*--contrast seg"),
        (["a/1.dcm"], "1 DICOM file, such as a/1.dcm; .*dcm2niix"),
        (["a.tar.gz", "b.zip", "c.tgz"], "2 tar archives, such as a.tar.gz; unpack first"),
        (["a.mha"], "1 NRRD or MetaImage file, such as a.mha; make NIfTI files"),
        (["readme.txt"], "no train slices found; expected the OASIS PNG slice set"),
    ],
)
def test_what_cannot_be_decided_or_read_is_asked(tmp_path, names, said):
    with pytest.raises(UserError, match=said):
        surveyed(tmp_path, names)


def test_links_are_followed_once_and_dangling_ones_named(tmp_path):
    root = files(tmp_path / "data", each("anna@/1.png"))
    store = files(tmp_path / "store", ["zoe/1.png"])
    (root / "zoe").symlink_to(store / "zoe")
    (root / "anna1/loop").symlink_to(root)
    (root / "again").symlink_to(root / "anna2")
    (root / "itself").symlink_to(root / "itself")
    assert len(survey(root).scans) == 6
    (root / "anna3/2.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match="1 of 7 files are links to what is not there, such as anna3/2.png; .*datalad get"
    ):
        survey(root)
    found = survey(root, skip_bad=True)
    assert sum(len(scan.files) for scan in found.scans) == 6 and "left out: 1 of 7 files are links" in " ".join(
        found.notes
    )


# --------------------------------------------------------------------------- slice numbers


@pytest.mark.parametrize(
    "names, numbers",
    [
        (each("anna@/slice_#.png", FIVE, [100, 120, 160]), (100, 120, 160)),
        (each("anna@_#.png", FIVE, [3, 7]), (3, 7)),
        (each("anna@/IM-0001-000#.png", FIVE, [3, 7]), (3, 7)),
        (each("anna@/z7_T1_#.png", FIVE, ["a"]), None),
        (each("anna@/20060418082030#.png", FIVE, [3, 7]), None),
        (each("anna@/1.2.3.4.500000000#.png", FIVE, [3, 7]), None),
        ([f"anna{p}/{10 * p + i}.png" for p in FIVE for i in range(10)], None),
        ([f"anna{p}/{p * 37 % 11}{i}000.png" for p in FIVE for i in TWO], None),
    ],
)
def test_numbers_that_look_like_slices_are_slice_numbers(tmp_path, names, numbers):
    found = surveyed(tmp_path, names)
    assert {scan.numbers for scan in found.scans} == {numbers}


# --------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    "pattern",
    [
        "sub-@/ses-#/anat/sub-@_ses-#_%.nii.gz",
        "ADNI/002_S_@/%/200#-04-18_08_20_30.0/I1@/ADNI_002_S_@_MR_%.nii",
        "p@/visit#/%.nii",
    ],
)  # fmt: skip
def test_large_studies_are_recognised_without_reading_a_voxel(tmp_path, pattern):
    """With OASIS_VQVAE_LARGE=1 300 people at 3 visits with 4 files; else a tenth of the people."""
    count = 300 if os.environ.get("OASIS_VQVAE_LARGE") else 30
    names = each(pattern, [f"{1000 + i}" for i in range(count)], range(1, 4), ["T1w", "T2w", "FLAIR", "PD"])
    files(tmp_path, names)
    started = time.process_time()
    found = survey(tmp_path)
    assert len(found.scans) == 3 * count and len({scan.subject for scan in found.scans}) == count
    assert time.process_time() - started < 20 * count / 300 + 1


def test_names_of_folders_and_files_stay_as_they_are():
    names = [" o ", "$x_{$", "a,b", "-", "T", "Ünal", "x\ty", "50% _"]
    assert people_of([f"{name}/{number}.png" for name in names for number in TWO]).keys() == {*names}
    assert people_of([f"{name}.nii" for name in names]).keys() == {*names}
