"""Which row of a table speaks of a slice."""

import numpy as np
import pytest

from sources.conditions import join, read_conditions


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_a_scan_has_its_own_row_and_a_subject_without_scans_that_of_its_first(tmp_path, order):
    lines = ["OAS1_0001_MR1,40", "OAS1_0001_MR2,44", "OAS1_0002_MR1,70"]
    (tmp_path / "t.csv").write_text("\n".join(["ID,Age", *(lines[i] for i in order)]))
    table = read_conditions(tmp_path / "t.csv", ["age"])
    found, values, _ = join(table, ["age"], ["OAS1_0001", "OAS1_0001", "OAS1_0002"], ["MR1", "MR2", "MR1"])
    assert found["age"].classes == ("40", "44", "70") and values["age"].tolist() == [0, 1, 2]
    _, of_slices, notes = join(table, ["age"], ["001", "002", "003"], ["", "", ""], found)
    assert of_slices["age"][:2].tolist() == [0, 2] and np.isnan(of_slices["age"][2])
    assert any("the first is taken, such as MR1 of 001" in note for note in notes)
