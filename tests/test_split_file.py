"""A file that says who is in which split: ids match as those of tables do, nothing contradicts, everything unused is told."""

import shutil

import numpy as np
import pytest

from common.errors import UserError
from sources import DataOptions, load
from sources.listed_splits import read_split_file

PEOPLE = [f"sub-{number:02d}" for number in range(1, 7)]
SPLITS = dict(zip(PEOPLE, ["train", "train", "train", "validate", "validate", "test"]))


@pytest.mark.parametrize(
    "spelled", [str, str.upper, lambda s: s[4:], lambda s: str(int(s[4:])), lambda s: f"{int(s[4:])}.0"]
)
@pytest.mark.parametrize(
    "separator, encoding, end", [(",", "utf-8", "\n"), (";", "utf-8-sig", "\r\n"), ("\t", "utf-16", "\n")]
)
def test_a_split_file_says_the_same_however_it_is_written(tmp_path, spelled, separator, encoding, end):
    rows = [("Subject", "Split"), *((spelled(person), split.upper()) for person, split in SPLITS.items())]
    (tmp_path / "s.csv").write_bytes(end.join(map(separator.join, rows)).encode(encoding))
    splits, notes = read_split_file(tmp_path / "s.csv", PEOPLE)
    assert splits == SPLITS and not [note for note in notes if "name" in note]


@pytest.mark.parametrize(
    "rows, said",
    [
        ("sub-01,train\nsub-02,test\nsub-01,test", "line 2 puts sub-01 into train, line 4 puts sub-01 into test"),
        ("sub-01,train\n01,test", "line 2 puts sub-01 into train, line 3 puts 01 into test, and both mean sub-01"),
        ("1,train\n001,test", "line 2 puts 1 into train, line 3 puts 001 into test, and both mean sub-01"),
        ("sub-01,train\nZ,train\nZ,test", "line 3 puts Z into train, line 4 puts Z into test"),
        ("anna,train", "none of its subjects is in the data: column subject holds anna; the data has sub-01"),
        ("sub-01,fold3", "subject sub-01 has the split fold3; expected train, validate, test"),
    ],
)
def test_contradictions_are_refused_with_both_rows(tmp_path, rows, said):
    (tmp_path / "s.csv").write_text(f"subject,split\n{rows}\n")
    with pytest.raises(UserError, match=said):
        read_split_file(tmp_path / "s.csv", PEOPLE)


def test_rows_and_people_that_are_not_used_are_told(tmp_path):
    (tmp_path / "s.csv").write_text("subject,split\n1,val\n2,train\n2,train\nX9,test\n")
    splits, notes = read_split_file(tmp_path / "s.csv", PEOPLE)
    assert splits == {"sub-01": "validate", "sub-02": "train"}
    assert "rows that name nobody of the data: 1 of 4, X9 (line 5)" in notes[0]
    assert "does not name 4 subjects of 6 (sub-03, sub-04, sub-05 and 1 more)" in notes[1]
    (tmp_path / "s.csv").write_text("subject,split\n1,train\nsub-02,test\n")
    splits, notes = read_split_file(tmp_path / "s.csv", ["sub-1", "sub-01", "sub-02"])
    assert splits == {"sub-02": "test"} and "such as 1, which may be sub-1 or sub-01" in notes[0]


def test_it_decides_over_the_folders_of_the_png_set_for_those_it_names(slices, tmp_path):
    before = load(DataOptions(str(slices)), tmp_path / "cache")
    (tmp_path / "s.csv").write_text("subject,split\n0,test\n6,train\n4,validate\n")
    after = load(DataOptions(str(slices), split_file=str(tmp_path / "s.csv")), tmp_path / "cache")
    assert {name: sorted(set(split.subjects)) for name, split in after.splits.items()} == {
        "train": ["001", "002", "003", "006"],
        "validate": ["004", "005"],
        "test": ["000", "007"],
    }
    assert any("does not name 5 subjects of 8" in note for note in after.notes)

    def by_name(data):
        return {name: image for split in data.splits.values() for name, image in zip(split.names, split.images)}

    pictures = by_name(after)
    assert pictures.keys() == by_name(before).keys()
    assert all(np.array_equal(pictures[name], image) for name, image in by_name(before).items())
    folders = [slices / f"keras_png_slices_{name}" for name in ("validate", "train")]
    for path in folders[0].glob("case_005_*"):
        shutil.copy(path, folders[1] / path.name)
    with pytest.raises(UserError, match="subject 005 is in both"):
        load(DataOptions(str(slices), split_file=str(tmp_path / "s.csv")), tmp_path / "cache")
