"""A run draws the slices that it was trained on, and reads other data as it read its own."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import generate
from common.errors import UserError
from inference import run_data
from inference.drawing import Request, Samples
from inference.geometry import Geometry, data_options_of
from sources import DataOptions, load
from utils import Run

OLD = {"slices_per_subject": 32, "title": "old"}  # what version 0.1.0 recorded


def run_of(data: dict, flags: dict | None = None) -> Run:
    return Run(None, None, None, {"data": data, "flags": flags or {}})


def image_folder(root, numbers, subjects=4):
    for subject in range(subjects):
        for number in numbers:
            path = root / f"person{subject}" / f"slice_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), number % 200 + subject, np.uint8)).save(path)
    return root


@pytest.mark.parametrize("numbers", [range(100, 111), [0, 5, 10, 15], [3, 4, 5, 9, 10]])
def test_only_slices_that_were_trained_on_are_offered(tmp_path, numbers):
    data = load(DataOptions(str(image_folder(tmp_path / "d", numbers)), split="99,1,0"), tmp_path / "cache")
    run, train = run_of(data.summary()), data.splits["train"]
    assert run.slice_numbers.tolist() == list(numbers) == np.unique(train.numbers).tolist()
    spread, _ = generate.slice_numbers(generate.Settings(n=4), run)
    all_of_them, columns = generate.slice_numbers(generate.Settings(slice="all", n=2), run)
    assert {*spread.tolist()} <= {*numbers} and {min(numbers), max(numbers)} <= {*spread.tolist()}
    assert all_of_them.tolist() == [number for number in numbers for _ in range(2)] and columns == 2
    for missing in {*range(max(numbers) + 2)} - {*numbers}:
        with pytest.raises(UserError, match=f"--slice is {missing}; this run has slices {min(numbers)}"):
            generate.slice_numbers(generate.Settings(slice=str(missing)), run)
    drawn = Request(len(train), train.numbers).known(0, len(train), run.slice_ends).position
    assert np.allclose(drawn, train.positions), "a slice is drawn at the position that it was learned at"


def test_runs_of_the_first_version_have_all_slices_from_0():
    assert run_of(OLD).slice_numbers.tolist() == list(range(32)) and run_of(OLD).slice_ends == (0, 31)
    assert run_of(OLD | {"slices_per_subject": None}).slice_numbers is None


def test_other_data_is_placed_as_the_runs_own(tmp_path):
    own = load(DataOptions(str(image_folder(tmp_path / "own", range(100, 161, 10))), split="99,1,0"), tmp_path / "c")
    ends = run_of(own.summary()).slice_ends
    options = DataOptions(str(image_folder(tmp_path / "other", [110, 120])), split="99,1,0")
    other = load(options, tmp_path / "c", slices_per_subject=own.slices_per_subject, slice_ends=ends)

    def places(data):
        return {number: place for s in data.splits.values() for number, place in zip(s.numbers, s.positions)}

    assert places(other).items() <= places(own).items() and places(other)


FLAGS = {"data": "own", "format": "volumes", "axis": "coronal", "spacing": 2.0, "slices": 4, "split": "60,40,0"}


def test_other_data_is_read_with_the_runs_flags_and_those_given_win(tmp_path):
    run = run_of(OLD, FLAGS)
    read = run_data.options_of(evaluate.Settings(data="other"), run, tmp_path)
    assert read == DataOptions(**FLAGS | {"data": "other"})
    given = evaluate.Settings(data="other", format="bids", split_file="mine.csv", skip_bad=True, split="test")
    assert run_data.options_of(given, run, tmp_path) == DataOptions(
        **FLAGS | {"data": "other", "format": "bids", "split_file": "mine.csv", "skip_bad": True}
    )


def test_a_runs_split_file_holds_for_those_it_names_and_for_nobody_else(tmp_path, capsys):
    root = image_folder(tmp_path / "d", range(2))
    (tmp_path / "split.csv").write_text(
        "subject,split\nperson0,validate\nperson1,train\nperson2,train\nperson3,train\n"
    )
    flags = {"data": str(root), "split_file": str(tmp_path / "gone.csv"), "split": "99,1,0"}
    run = run_of(OLD | {"slices_per_subject": 2}, flags)
    settings = SimpleNamespace(data=str(root), split_file=None, split=None, cache=str(tmp_path / "c"))
    options = run_data.options_of(settings, run, tmp_path)
    assert options.split_file == str(tmp_path / "split.csv"), "the run's own copy, where the file itself is gone"
    data, notes = run_data.load_slices(settings, run, options)
    assert set(data.splits["validate"].subjects) == {"person0"} and not notes
    (tmp_path / "split.csv").write_text("subject,split\nanna,train\n")
    data, notes = run_data.load_slices(settings, run, options)
    assert sum(map(len, data.splits.values())) == 8 and "does not fit this data" in notes[0]
    assert f"note: {notes[0]}" in capsys.readouterr().out
    settings.split_file = options.split_file
    with pytest.raises(UserError, match="none of its subjects is in the data"):
        run_data.load_slices(settings, run, options)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("image_size", [None, 12, 48])
def test_slices_of_any_size_come_out_where_the_volume_lay(tmp_path, axis, image_size):
    shape, centre = (20, 26, 22), np.array([6, 17, 12])
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    blob = 1000 * np.exp(-((places - centre) ** 2).sum(-1) / 18)
    where = np.diag([2.0, 2, 2, 1])
    where[:3, 3] = (-30, 10, 5)
    (tmp_path / "d").mkdir()
    nib.save(nib.Nifti1Image(blob.astype(np.float32), where), tmp_path / "d" / "a.nii")
    options = DataOptions(
        str(tmp_path / "d"), axis=axis, spacing=2.0, slices=20, slice_range="0:1", image_size=image_size
    )
    data = load(options, tmp_path / "cache", required=None)
    split = next(iter(data.splits.values()))
    images = torch.from_numpy(split.images[:20] / 255.0)
    drawn, geometry = Samples(images, images, split.numbers[:20]), Geometry.read(data.geometry)
    generate.write_volumes(drawn, geometry, tmp_path / "out", together=True)
    written = nib.load(tmp_path / "out" / "sample_0000.nii.gz")
    weights = np.where(written.get_fdata() > 0.3, written.get_fdata(), 0)
    mean = [
        (weights * np.arange(weights.shape[i]).reshape([-1 if j == i else 1 for j in range(3)])).sum() for i in range(3)
    ]
    found = nib.affines.apply_affine(written.affine, np.array(mean) / weights.sum())
    assert found == pytest.approx(nib.affines.apply_affine(where, centre), abs=0.35), "millimetres"
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    extent = np.abs(np.diag(written.affine)[:3]) * written.shape
    expected = [2.0 * length for index, length in enumerate(shape) if index != across]
    assert [size for index, size in enumerate(extent) if index != across] == pytest.approx(expected)


def test_nifti_is_refused_where_nobody_knows_where_slices_lie():
    with pytest.raises(UserError, match="not trained on volumes"):
        generate.check_geometry(run_of(OLD | {"kind": "images", "geometry": None}))
    with pytest.raises(UserError, match="with --image_size by an older version"):
        generate.check_geometry(run_of(OLD | {"kind": "bids", "geometry": None}))


def test_a_run_on_volumes_of_an_older_version_is_read_as_it_was(tmp_path):
    data = np.random.default_rng(0).uniform(100, 200, (10, 14, 12)).astype(np.float32)
    (tmp_path / "d").mkdir()
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "d" / "a.nii")

    def read(options: DataOptions) -> np.ndarray:
        return np.array(next(iter(load(options, tmp_path / "cache", required=None).splits.values())).images)

    for axis, other_way in (("axial", True), ("coronal", False)):
        options = DataOptions(str(tmp_path / "d"), axis=axis, slices=8)
        config = {"flags": {"data": options.data, "axis": axis, "slices": 8, "epoch": 1}}
        now = load(options, tmp_path / "cache", required=None).geometry
        before = {name: value for name, value in now.items() if name != "front_first"}
        same, old = (read(data_options_of(config | {"data": {"geometry": each}})) for each in (now, before))
        assert np.array_equal(same, read(options)) and np.array_equal(old, same[..., ::-1] if other_way else same)
    assert not data_options_of({"flags": {}, "data": {}}).front_first, "images, and version 0.1.0's slice set"
