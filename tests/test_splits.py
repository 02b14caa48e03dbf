"""Splits: hashes decide, nobody moves without need, no split with a share stays empty, and folders are believed."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from layouts import pictures
from PIL import Image

from common.errors import UserError
from dataset import SPLITS
from sources import DataOptions, load
from sources.splits import assign_splits, stated_splits

SHARES = "85,10,5"


def by_thresholds(subject: str) -> str:
    """The split of version 0.1.0."""
    share = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.85 else "validate" if share < 0.95 else "test"


def people(count: int, name: str = "sub-{:02d}") -> list[str]:
    return [name.format(number) for number in range(1, count + 1)]


@pytest.mark.parametrize("name", ["sub-{:02d}", "OAS1_{:04d}", "person{}"])
def test_splits_are_those_of_the_hashes_but_for_whom_an_empty_split_needs(name):
    met = Counter()
    for count in range(1, 120):
        subjects = people(count, name)
        expected = {subject: by_thresholds(subject) for subject in subjects}
        found = assign_splits(subjects, SHARES, {})
        moved = [subject for subject in subjects if found[subject] != expected[subject]]
        empty = {*SPLITS[:count]} - {*expected.values()}
        assert len(moved) == len({found[subject] for subject in moved}) <= len(empty) + (count < 3)
        assert {*found.values()} == {*SPLITS[:count]}, "as many splits as there can be, training first"
        met[len(moved)] += 1
    assert met[0] > 40, "from some number of people on nobody is moved"


def test_all_of_sub_01_to_sub_52_hash_to_training_and_two_of_them_are_held_out():
    assert {by_thresholds(subject) for subject in people(52)} == {"train"}
    assert Counter(assign_splits(people(52), SHARES, {}).values()) == {"train": 50, "validate": 1, "test": 1}


def test_a_person_stays_when_others_come():
    for count in range(3, 100):
        before, after = (assign_splits(people(number), SHARES, {}) for number in (count, count + 1))
        moved = [subject for subject in before if before[subject] != after[subject]]
        assert len(moved) <= 2, "one who was lent to an empty split comes back, or is relieved by another one"


def test_who_is_lent_is_who_was_nearest():
    subjects = people(52)
    nearness = sorted(subjects, key=lambda subject: hashlib.sha256(subject.encode()).hexdigest())
    found = assign_splits(subjects, SHARES, {})
    assert {found[subject] for subject in nearness[-2:]} == {"validate", "test"}


def test_a_split_without_a_share_stays_empty():
    assert {*assign_splits(people(60), "60,40,0", {}).values()} == {"train", "validate"}
    assert {*assign_splits(people(60), "100,0,0", {}).values()} == {"train"}


def test_folders_are_believed_and_validation_is_cut_from_training_alone():
    subjects = people(60)
    stated = dict.fromkeys(subjects[:10], "test") | dict.fromkeys(subjects[10:50], "train")
    found = assign_splits(subjects, SHARES, {}, stated)
    assert all(found[subject] == "test" for subject in subjects[:10])
    assert {*(found[subject] for subject in subjects[10:])} == {"train", "validate"}, "nobody else is tested on"
    stated |= dict.fromkeys(subjects[45:50], "validate")
    found = assign_splits(subjects, SHARES, {}, stated)
    assert {subject: found[subject] for subject in stated} == stated
    assert {found[subject] for subject in subjects[50:]} == {"train"}
    assert assign_splits(subjects, SHARES, {subjects[0]: "train"}, stated)[subjects[0]] == "train", "a file decides"


def test_a_person_in_two_stated_splits_is_refused():
    scans = [
        ("anna", "train", Path("train/anna.nii")),
        ("bert", "", Path("bert.nii")),
        ("anna", "test", Path("test/a.nii")),
    ]
    assert stated_splits(scans[:2]) == {"anna": "train"}
    with pytest.raises(
        UserError, match="anna is in both the train and the test split .* train/anna.nii and test/a.nii"
    ):
        stated_splits(scans)
    assert stated_splits(scans, {"anna"}), "unless a file decides whose split it is"


def test_who_is_left_out_leaves_no_split_empty(tmp_path):
    root = tmp_path / "data"
    pictures(root)
    whole = load(DataOptions(str(root)), tmp_path / "cache")
    (alone,) = {*whole.splits["validate"].subjects}
    for path in (root / alone).iterdir():
        path.write_bytes(b"no image")
    for _ in range(2):  # the second time from the cache
        rest = load(DataOptions(str(root), skip_bad=True), tmp_path / "cache")
        assert [len({*split.subjects}) for split in rest.splits.values()] == [5, 1, 1]
        for split in rest.splits.values():
            for subject, name, pixels in zip(split.subjects, split.names, split.images):
                assert np.array_equal(pixels, np.asarray(Image.open(root / subject / name)))
