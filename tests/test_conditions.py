"""Whose row is whose: ids of tables and of the data, sessions, contradictions, and what cells say."""

import itertools
import random

import numpy as np
import pytest

from common.errors import UserError
from sources.columns import read_column
from sources.conditions import Condition, join, read_conditions
from sources.matching import match

PEOPLE = [f"sub-{number:02d}" for number in range(1, 13)]


def joined(tmp_path, lines, names, units, known=None):
    """The conditions of (subject, session) units from a table of these lines."""
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return join(read_conditions(tmp_path / "t.csv", names), names, *zip(*units), known=known)


# --------------------------------------------------------------------------- ids

MATCHES = [
    (["1", "2"], ["sub-01", "sub-02", "sub-03"], {"1": "sub-01", "2": "sub-02"}),
    (["SUB-01", "2.0"], ["sub-01", "sub-02"], {"SUB-01": "sub-01", "2.0": "sub-02"}),
    (["0", "1"], ["sub-000", "sub-001"], {"0": "sub-000", "1": "sub-001"}),
    (["12", "2"], ["IXI012", "IXI002", "IXI020"], {"12": "IXI012", "2": "IXI002"}),
    (["OAS1_0001_MR1", "OAS1_0001_MR2"], ["001", "002"], {"OAS1_0001_MR1": "001", "OAS1_0001_MR2": "001"}),
    (["002_S_0001"], ["ADNI_002_S_0001_MR_MPRAGE", "ADNI_002_S_0002_MR"], {"002_S_0001": "ADNI_002_S_0001_MR_MPRAGE"}),
    (["002_S_0001", "2"], ["sub-ADNI002S0001", "sub-ADNI002S0002"], {"002_S_0001": "sub-ADNI002S0001", "2": "sub-ADNI002S0002"}),
    (["OAS30001"], ["sub-OAS30001", "sub-OAS30002"], {"OAS30001": "sub-OAS30001"}),
    (["Subj1", "Subj2"], ["t1/Subj1_T1", "t1/Subj2_T1", "t1/Subj11_T1"], {"Subj1": "t1/Subj1_T1", "Subj2": "t1/Subj2_T1"}),
    (["4", "05"], ["case_004", "case_005"], {"4": "case_004", "05": "case_005"}),
    (["sub01", "Subject_3"], ["sub-01", "sub-02", "sub-03"], {"sub01": "sub-01", "Subject_3": "sub-03"}),
    (["HC20", "HC21"], ["sub-20", "sub-21"], {}),
    (["S_02"], ["sub-02"], {}),
    (["12", "1_2"], ["12", "1_2"], {"12": "12", "1_2": "1_2"}),
    # two people of the data for one id, or the other way round: the exact ones win, the others are nobody's
    (["sub-1", "sub-01"], ["sub-01", "sub-1"], {"sub-1": "sub-1", "sub-01": "sub-01"}),
    (["sub-1"], ["sub-01", "sub-1"], {"sub-1": "sub-1"}),
    (["1"], ["sub-01", "sub-1"], {}),
    (["1", "001"], ["sub-01"], {}),
    (["sub-01", "1"], ["sub-01"], {"sub-01": "sub-01"}),
    (["3"], ["HC3", "AD3"], {}),
]  # fmt: skip


@pytest.mark.parametrize("listed, people, expected", MATCHES)
def test_ids_mean_whom_they_can_only_mean_in_whatever_order(listed, people, expected):
    for seed in range(4):
        mixed = random.Random(seed)
        found = match(mixed.sample(listed, len(listed)), mixed.sample(people, len(people)))
        assert found.person == expected
        unsaid = set(listed) - found.person.keys() - found.unclear.keys() - found.outdone.keys()
        assert not unsaid & {text for several in found.rivals.values() for text in several} or found.sentences()


def test_what_is_not_clear_is_said():
    assert "such as 1, which may be sub-1 or sub-01" in match(["1"], ["sub-1", "sub-01"]).sentences()[0]
    assert "such as sub-01, who may be 1 or 001" in match(["1", "001"], ["sub-01"]).sentences()[0]
    assert "such as 1, not used" in match(["sub-01", "1"], ["sub-01"]).sentences()[0]


@pytest.mark.parametrize("column", ["participant_id", " ID ", "IXI_ID", "MRID", "Subject ID", "PTID", "who_it_is"])
def test_only_columns_that_name_subjects_join(tmp_path, column):
    lines = [f"SEX_ID,age,{column},score"]
    lines += [f"{1 + n % 2},{13 - n},{person},{n}.5" for n, person in enumerate(PEOPLE, 1)]
    found = joined(tmp_path, lines, ["score"], [(person, "") for person in PEOPLE])
    expected = (np.arange(12) / 11).astype(np.float32)
    assert np.allclose(found.values["score"], expected), "another row's value: by age, sub-01 is the last"
    assert f"its column {column.strip().lower()} names 12 of 12 subjects of the data" in found.notes[0]


def test_ages_and_scores_never_name_anybody(tmp_path):
    units = [(person, "") for person in PEOPLE]
    lines = ["participant_id,age,score", *(f"HC{n},{n},{n}" for n in range(1, 13))]
    with pytest.raises(UserError, match="none of its subjects is in the data: column participant_id holds HC1, HC2"):
        joined(tmp_path, lines, ["score"], units)
    for name in ("age", "age_patient", "Age of subject", "SEX_ID", "nr"):
        rows = [f"{name},score", *(f"{1 + n % 2 if name == 'SEX_ID' else n},{n}" for n in range(1, 13))]
        with pytest.raises(UserError, match=rf"none of its columns \({name.lower()} and score\) names subjects"):
            joined(tmp_path, rows, ["score"], units)


def test_few_known_subjects_are_counted_with_examples_of_both_sides(tmp_path):
    lines = ["participant_id,age", "sub-01,20", *(f"S_{n:02d},{20 + n}" for n in range(2, 13))]
    notes = joined(tmp_path, lines, ["age"], [(person, "") for person in PEOPLE]).notes
    assert "names 1 of 12 subjects of the data, and not sub-02, sub-03" in notes[0] and "it names S_02" in notes[0]


# --------------------------------------------------------------------------- sessions


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_a_scan_has_its_own_row_and_a_subject_without_sessions_that_of_its_first(tmp_path, order):
    rows = ["OAS1_0001_MR1,40", "OAS1_0001_MR2,44", "OAS1_0002_MR1,70"]
    lines = ["ID,Age", *(rows[i] for i in order)]
    found = joined(tmp_path, lines, ["age"], [("OAS1_0001", "MR1"), ("OAS1_0001", "MR2"), ("OAS1_0002", "MR1")])
    assert found.conditions["age"].classes == ("40", "44", "70") and found.values["age"].tolist() == [0, 1, 2]
    units = [("001", ""), ("002", ""), ("003", "")]
    plain = joined(tmp_path, lines, ["age"], units, found.conditions)
    assert plain.values["age"][:2].tolist() == [0, 2] and np.isnan(plain.values["age"][2])
    assert any("the first is taken, such as MR1 of 001" in note for note in plain.notes)


@pytest.mark.parametrize(
    "column, listed, sessions",
    [
        ("session_id", ("ses-01", "ses-02"), ("ses-01", "ses-02")),
        ("session", ("1", "2"), ("ses-01", "ses-02")),
        ("Visit", ("1", "2"), ("MR1", "MR2")),
        ("VISCODE", ("bl", "m12"), ("ses-M000", "ses-M012")),
        ("visit", ("baseline", "month 12"), ("baseline", "month12")),
        ("EXAMDATE", ("2006-04-18", "2007-05-02"), ("2006-04-18_08_20_30.0", "2007-05-02_09_01_00.0")),
        ("MR ID", ("OAS30001_MR_d0129", "OAS30001_MR_d0757"), ("d0129", "d0757")),
    ],
)
def test_session_rows_join_by_session_however_it_is_written(tmp_path, column, listed, sessions):
    person = "OAS30001"
    lines = [f"id,{column},age", f"{person},{listed[1]},31", f"{person},{listed[0]},30"]
    found = joined(tmp_path, lines, ["age"], [(person, session) for session in sessions])
    assert found.values["age"].tolist() == [0, 1]
    assert any(f"by session too, from its column {column.lower()}" in note for note in found.notes)


def test_a_row_of_the_session_comes_before_the_subjects_and_another_sessions_is_nobodys(tmp_path):
    lines = ["id,session,age", "1,,20", "1,2,25", "2,1,30"]
    units = [("sub-1", "ses-1"), ("sub-1", "ses-2"), ("sub-2", "ses-1"), ("sub-2", "ses-2")]
    found = joined(tmp_path, lines, ["age"], units)
    assert found.values["age"][:3].tolist() == [0, 1, 2] and np.isnan(found.values["age"][3])
    assert any("it has no row of 1 session of the data, such as ses-2 of sub-2" in note for note in found.notes)


def test_rows_of_one_subject_and_session_that_differ_are_refused_with_both(tmp_path):
    lines = ["id,session,age,site", "1,a,20,X", "2,a,30,X", "1,a,20.0,Y", "1,b,21,X"]
    units = [("sub-01", "a"), ("sub-01", "b"), ("sub-02", "a")]
    assert joined(tmp_path, lines, ["age"], units).values["age"].tolist() == [0, 1, 2], "they agree on the age"
    with pytest.raises(UserError, match="lines 2 and 4 are both of sub-01 a, but site is X in one and Y in the other"):
        joined(tmp_path, lines, ["age", "site"], units)


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_a_table_says_the_same_in_every_spelling_of_the_file(tmp_path, encoding):
    for separator, end, name in itertools.product(",;\t", ("\n", "\r\n", "\r"), ("t.csv", "t.tsv")):
        rows = [[" Participant_ID ", "AGE", "City"], *([f"sub-{n:02d}", str(20 + n), "Köln"] for n in range(1, 13))]
        (tmp_path / name).write_bytes(end.join(map(separator.join, rows)).encode(encoding))
        table = read_conditions(tmp_path / name, ["age", "CITY"])
        found = join(table, ["age", "CITY"], PEOPLE, [""] * 12)
        assert found.conditions == {"age": Condition((), 21, 32), "CITY": Condition(("Köln",))}
        assert any("separated by" in note for note in found.notes) == (separator != {"t.csv": ",", "t.tsv": "\t"}[name])


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("t.ods", b"anything", "a spreadsheet; save it as .csv"),
        ("t.xlsx", b"anything", "a spreadsheet; save it as .csv"),
        ("t.csv", b"PK\x03\x04 renamed", "a spreadsheet, not text; save it as .csv"),
        ("t.csv", b"", "it has no rows"),
        ("t.csv", b"id,age\n1,20,5\n2,30", "line 2 has 3 cells, the line of column names 2"),
        ("t.csv", b"id,weight\n1,20", "no column age; it has id, weight"),
    ],
)
def test_files_that_are_no_tables_are_refused_in_one_sentence(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_conditions(tmp_path / name, ["age"])


def test_a_line_of_names_that_is_split_otherwise_than_the_rows_is_understood(tmp_path):
    ixi = ["IXI_ID,SEX_ID (1=m, 2=f),AGE", "2,1,20.5", "12,2,30.5"]
    found = joined(tmp_path, ixi, ["AGE"], [("IXI002", ""), ("IXI012", "")])
    assert found.values["AGE"].tolist() == [0, 1] and found.conditions["AGE"].classes == ("20.5", "30.5")
    kept = ["id,age", '="001",20', '="002",30']  # as Excel keeps the zeros
    assert joined(tmp_path, kept, ["age"], [("sub-001", ""), ("sub-002", "")]).values["age"].tolist() == [0, 1]
    row_names = ["age,sex", "sub-01,20,F", "sub-02,30,M"]  # as R writes them
    assert joined(tmp_path, row_names, ["age"], [("sub-01", ""), ("sub-02", "")]).values["age"].tolist() == [0, 1]


# --------------------------------------------------------------------------- cells

TWELVE = [str(number) for number in range(20, 32)]
COLUMNS = [
    ([*TWELVE, "-"], [*TWELVE, ""], "1 of 13 cells missing ('-')"),
    ([*TWELVE, "89+"], [*TWELVE, "89"], "89+ read as 89"),
    ([*TWELVE, ">= 90", "N/A"], [*TWELVE, "90", ""], ">= 90 read as 90"),
    ([*TWELVE, "-999"], [*TWELVE, ""], "codes taken as missing: -999"),
    ([*TWELVE, "999"], [*TWELVE, ""], "codes taken as missing: 999"),
    ([*TWELVE, "refused"], [*TWELVE, ""], "words taken as missing: 'refused'"),
    ([f"{text},5" for text in TWELVE], [f"{text}.5" for text in TWELVE], "decimal commas: 20,5 was read as 20.5"),
    (["025Y", "031Y"], ["25", "31"], "025Y read as 25"),
    (["-1.2", "0.3", "-9"], ["-1.2", "0.3", "-9"], ""),  # a score below zero, not a code
    (["0.50", "1", "1.0"], ["0.5", "1", "1"], ""),
    (["20240101", "20240102"], ["20240101", "20240102"], ""),
    (["1_2", "12", "12"], ["1_2", "12", "12"], ""),  # words to a person, though Python takes 1_2 for 12
    (["60+", "70+"], ["60+", "70+"], ""),
    (["1", "2", "HC", "unknown"], ["1", "2", "HC", ""], "1 of 4 cells missing ('unknown')"),
]


@pytest.mark.parametrize("cells, expected, said", COLUMNS, ids=[" ".join(cells[-2:]) for cells, _, _ in COLUMNS])
def test_cells_are_read_as_a_person_would_and_what_was_read_as_what_is_said(cells, expected, said):
    found = read_column("age", cells)
    assert list(found.texts) == expected
    assert said in "; ".join(found.notes) and bool(found.notes) == bool(said)
    again = read_column("age", found.texts)
    assert again.texts == found.texts and again.numbers == found.numbers, "reading what was read changes nothing"


@pytest.mark.parametrize(
    "cells, said",
    [
        (["1,5", "2.5"], "some cells have commas"),
        (["1,234", "2,345"], "a thousand or a fraction"),
        (["1", "inf"], "infinite"),
    ],
)
def test_numbers_that_may_be_two_things_are_refused(cells, said):
    with pytest.raises(UserError, match=said):
        read_column("age", cells)


def test_a_constant_column_is_said_to_tell_nothing_and_a_runs_own_classes_stand(tmp_path):
    units = [("sub-01", ""), ("sub-02", "")]
    assert any("it is HC wherever" in n for n in joined(tmp_path, ["id,g", "1,HC", "2,HC"], ["g"], units).notes)
    known = {"g": Condition(("AD", "HC"))}
    found = joined(tmp_path, ["id,g", "1,HC", "2,XX"], ["g"], units, known)
    assert found.values["g"][0] == 1 and np.isnan(found.values["g"][1])
    assert any("the run knows no XX" in note for note in found.notes)
