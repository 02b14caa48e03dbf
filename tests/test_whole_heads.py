"""Whole heads: in which order their slices are drawn, what each is told, and how volumes are completed and written."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import generate
import inference.heads as module
from common.errors import UserError
from common.files import save_model
from common.runtime import derive_seed
from dataset import NEIGHBOUR, Frame
from inference.coding import decode
from inference.completion import missing_numbers, read_given
from inference.geometry import Geometry
from inference.heads import HeadRequest, decode_head, draw_heads, noise_along, walk
from models.neighbours import ABOVE, BELOW
from models.sampler import Draw
from models.sharp_decoder import SharpDecoder
from pixelcnn import GatedPixelCNN
from reporting.volumes import completed_sheet, viewer_page
from sources.cohort import _slice_grid
from sources.gaps import read_with_gaps
from sources.volumes import Space, VolumeOptions, nifti_of, read_slices
from utils import Run
from vqvae import VQVAE

SLICES, CODES = 6, 16
FRAME = Frame(4, 4, 32, 40, 40, 56)
DATA = {"title": "ellipses", "kind": "slices", "slices_per_subject": SLICES, "geometry": None, "conditions": {}}


def prior(context: int = 1, **conditions: int) -> GatedPixelCNN:
    """A small one, whose context says something."""
    told = {"position": 0} | conditions | ({NEIGHBOUR: 2} if context else {})
    model = GatedPixelCNN(CODES, 16, 3, 3, conditions=told, context=context).eval()
    if context:
        torch.nn.init.normal_(model.context.network.out.weight, std=0.5)
    return model.requires_grad_(False)


def run_of(model: GatedPixelCNN | None, **data: object) -> Run:
    """data: what its config says otherwise."""
    torch.manual_seed(1)
    flags = {"image_size": None}
    return Run(VQVAE(CODES, 8, 8, width=16, blocks=1).eval(), model, FRAME, {"data": DATA | data, "flags": flags})


@pytest.fixture
def run() -> Run:
    return run_of(prior(age=0))


def spied(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the prior is asked from now on."""
    asked, real = [], run.prior.draw_maps

    def draw(size, how, known, generators, progress):
        asked.append(SimpleNamespace(size=size, how=how, known=known, seeds=[g.initial_seed() for g in generators]))
        asked[-1].drawn = real(size, how, known, generators, progress)
        return asked[-1].drawn

    monkeypatch.setattr(run.prior, "draw_maps", draw)
    return asked


# ------------------------------------------------------------------------------------------------ the order


def check_walk(numbers: np.ndarray, known: np.ndarray, maps: int) -> list[list[module.Step]]:
    """The laws of any walk."""
    rounds, stand = walk(numbers, known, maps), known.copy()
    for steps in rounds:
        for step in steps:
            assert not stand[step.slot], "once each, and none that is known"
            assert all(stand[slot] for slot in step.beside), "what is told stands before the round"
            toward = {None: 0, BELOW: -1, ABOVE: 1}[step.side]
            assert (toward == 0) == (not step.beside)
            for place, slot in enumerate(step.beside, 1):
                assert slot == step.slot + toward * place and numbers[slot] == numbers[step.slot] + toward * place
            distances = np.abs(numbers - numbers[step.slot])
            near = min((distances[i] for i in np.flatnonzero(known) if reached(numbers, i, step.slot)), default=None)
            if near is not None:
                held = int(np.flatnonzero(known & (numbers == numbers[step.slot] + toward * near))[0])
                assert reached(numbers, held, step.slot), "it grows from the nearest known slice"
                assert known[step.beside[0]] == (near == 1), "no drawn one is told where a known one is nearer"
        stand[[step.slot for step in steps]] = True
    assert stand.all()
    return rounds


def reached(numbers: np.ndarray, one: int, other: int) -> bool:
    return abs(numbers[one] - numbers[other]) == abs(one - other)


def test_a_head_grows_from_its_middle_upwards_and_downwards_at_once():
    rounds = check_walk(np.arange(32), np.zeros(32, bool), 1)
    assert len(rounds) == 17, "drawings one after another"
    assert [step.slot for step in rounds[0]] == [16] and rounds[0][0].side is None
    assert [(step.slot, step.beside, step.side) for step in rounds[2]] == [(14, (15,), ABOVE), (18, (17,), BELOW)]


@pytest.mark.parametrize("maps", [1, 2])
def test_any_walk_tells_each_slice_what_stands_and_is_nearest(maps):
    rng = np.random.default_rng(0)
    for _ in range(60):
        numbers = np.cumsum(rng.choice([1, 1, 1, 1, 3], 14))
        check_walk(numbers, rng.random(14) < rng.choice([0, 0.15, 0.5]), maps)


def test_a_gap_is_filled_from_both_sides_and_its_middle_from_below():
    known = np.ones(12, bool)
    known[3:8] = False
    steps = {step.slot: step for steps in walk(np.arange(12), known) for step in steps}
    assert {slot: step.side for slot, step in steps.items()} == {3: BELOW, 4: BELOW, 5: BELOW, 6: ABOVE, 7: ABOVE}
    rounds = walk(np.arange(13), np.arange(13) % 4 == 0)
    assert [len(steps) for steps in rounds] == [6, 3], "a thick-slice acquisition takes two drawings"


def test_across_a_gap_of_numbers_nobody_is_a_neighbour():
    rounds = walk(np.array([3, 4, 5, 9, 10]), np.zeros(5, bool))
    assert [(step.slot, step.beside) for step in rounds[0]] == [(2, ()), (3, ())]
    assert [(step.slot, step.beside) for step in rounds[1]] == [(1, (2,)), (4, (3,))]


# ------------------------------------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("batch", [64, 3])
def test_every_slice_is_told_its_own_neighbour_position_and_all_that_is_asked(run, monkeypatch, batch):
    asked = spied(run, monkeypatch)
    monkeypatch.setattr(module, "BATCH", batch)
    how = Draw(0.9, 5, 0.95)
    heads = draw_heads(run, HeadRequest(4, how, 7, {"age": 0.25}))
    assert heads.shape == (4, SLICES, 4, 5) and len(asked) == (4 if batch == 64 else 10)
    by_seed = {derive_seed(7, "head", head, number): (head, number) for head in range(4) for number in range(SLICES)}
    met = set()
    for call in asked:
        assert (
            call.how == how and call.size[0] <= batch and call.known.conditions["age"].tolist() == [0.25] * call.size[0]
        )
        for index, seed in enumerate(call.seeds):
            head, number = by_seed[seed]
            met.add((head, number))
            assert torch.equal(call.drawn[index], heads[head, number])
            assert call.known.position[index].item() == pytest.approx(number / (SLICES - 1))
            side, context = call.known.conditions[NEIGHBOUR][index].item(), call.known.context[index, 0]
            if number == 3:
                assert np.isnan(side) and (context == -1).all()
            else:
                assert side == (ABOVE if number < 3 else BELOW)
                assert torch.equal(context, heads[head, number + (1 if number < 3 else -1)])
    assert len(met) == 4 * SLICES


def test_a_head_equals_its_slices_drawn_one_by_one_and_is_the_same_among_any_number():
    run = run_of(prior().double())
    three, two = (draw_heads(run, HeadRequest(count, seed=5)) for count in (3, 2))
    assert torch.equal(three[:2], two) and len({tuple(head.flatten().tolist()) for head in three}) == 3
    assert not torch.equal(draw_heads(run, HeadRequest(2, seed=6)), two)
    for head in range(2):
        slices: dict[int, Tensor] = {}
        for number in (3, 4, 5, 2, 1, 0):
            beside = {3: None}.get(number, number + (1 if number < 3 else -1))
            side = torch.tensor([np.nan if beside is None else float(ABOVE if number < 3 else BELOW)])
            slices[number] = run.prior.sample(
                *(1, 4, 5, torch.tensor([number / 5], dtype=torch.float32)),
                generator=torch.Generator().manual_seed(derive_seed(5, "head", head, number)),
                conditions={NEIGHBOUR: side},
                context=None if beside is None else slices[beside][:, None],
            )
        assert torch.equal(torch.cat([slices[number] for number in range(SLICES)]), two[head])


def test_generators_are_one_a_map(run):
    with pytest.raises(ValueError, match="1 generators for 2 maps"):
        run.prior.sample(2, 4, 5, generator=[torch.Generator()])


def test_who_cannot_draw_heads_is_told_what_to_do():
    for bad, message in (
        (run_of(None), "no prior to sample from"),
        (run_of(prior(), slices_per_subject=None), "no slice numbers"),
        (run_of(prior(context=0)), "is not told the slice next to the one that it draws.* --init RUN"),
    ):
        with pytest.raises(UserError, match=message):
            draw_heads(bad, HeadRequest(1))


def test_texture_changes_along_a_head_as_real_texture_does():
    noise = noise_along(200, (24, 24), torch.Generator().manual_seed(0))[:, 0]
    assert noise.std().item() == pytest.approx(1, abs=0.03) and noise[-20:].std().item() == pytest.approx(1, abs=0.1)
    for lag in (1, 2, 4):
        assert (noise[lag:] * noise[:-lag]).mean().item() == pytest.approx(module.LIKE_THE_LAST**lag, abs=0.04)
    run = run_of(prior())
    codes = torch.randint(CODES, (SLICES, 4, 5))
    codes[:] = codes[0]
    assert torch.equal(decode_head(run, codes, 0, 0), decode(run.vqvae, codes, FRAME)[:, 0]), "no texture, no noise"
    sharp = SharpDecoder.after(run.vqvae).eval()
    sharp.texture.full_out.weight.data.mul_(30)
    run = replace(run, vqvae=run.vqvae.with_decoder(sharp))
    one, again, other = (decode_head(run, codes, 0, head) for head in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    alike = [np.corrcoef(*(FRAME.crop(one[i]).flatten().numpy() for i in pair))[0, 1] for pair in ((0, 1), (0, 5))]
    assert alike[1] < alike[0] < 1 - 1e-6, "neighbours are the most alike, and not the same"


# ------------------------------------------------------------------------------------------------ where they lie


def millimetres(image: nib.Nifti1Image, *voxel: int) -> np.ndarray:
    return nib.affines.apply_affine(image.affine, voxel)


def marked() -> np.ndarray:
    """Slices of 40x56 of which no two rows, columns or planes are alike."""
    return np.random.default_rng(0).random((SLICES, 40, 56)).astype(np.float32)


def test_the_png_set_has_its_left_and_front_and_the_way_back_is_exact():
    slices, numbers = marked(), np.arange(SLICES)
    geometry = Geometry.of(run_of(prior()))
    assert "pixels of 1 mm, slices 1 mm apart" in geometry.assumed
    image = geometry.nifti(slices, numbers)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S") and image.shape == (40, 56, SLICES)
    assert np.array_equal(image.get_fdata(dtype=np.float32)[3, 50, 2], slices[2, 3, 50]), (
        "row 3 is left, column 50 in front"
    )
    assert millimetres(image, 0, 0, 0) == pytest.approx([-19.5, -27.5, -2.5])
    assert nib.affines.voxel_sizes(image.affine) == pytest.approx([1, 1, 1])
    assert np.array_equal(geometry.slices(image), slices)
    stored_otherwise = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert np.array_equal(geometry.slices(stored_otherwise), slices)
    assert geometry.spacing(slices.shape) == (1, 1, 1) and not geometry.front_first
    run = run_of(prior())
    run.config["flags"]["image_size"] = 56
    assert Geometry.of(run).spacing(slices.shape)[1:] == pytest.approx((256 / 56, 256 / 56))


def test_a_volume_is_cut_as_the_png_set_lies(tmp_path):
    """So that weights of the one are of use for the other."""
    slices = np.random.default_rng(0).random((SLICES, 40, 56)).astype(np.float32)
    nib.save(Geometry.of(run_of(prior())).nifti(slices, np.arange(SLICES)), tmp_path / "a.nii")
    options = VolumeOptions("axial", 1.0, SLICES, (0.0, 1.0), window=(0.0, 1.0))
    cut, _ = read_slices(tmp_path / "a.nii", options, (40, 56))
    assert cut / 255 == pytest.approx(slices, abs=0.003)


def test_numbers_that_are_missing_between_others_are_black_planes():
    run = run_of(prior(), slices_per_subject=10, slice_numbers=[[0, 1], [4, 7]])
    image = Geometry.of(run).nifti(marked(), run.slice_numbers)
    assert image.shape[2] == 8 and not image.get_fdata()[:, :, 2:4].any() and image.get_fdata()[:, :, 4].any()


def test_the_cohort_lies_where_its_template_was_cut():
    frame = Frame(0, 0, 24, 24, 24, 24)
    run = replace(run_of(prior(), kind="cohort", slices_per_subject=32), frame=frame)
    geometry, slices = Geometry.of(run), np.random.default_rng(0).random((32, 24, 24)).astype(np.float32)
    image, grid = geometry.nifti(slices, np.arange(32)), _slice_grid(24).numpy()
    assert geometry.assumed == "" and geometry.front_first
    for slot, row, column in ((0, 0, 0), (31, 23, 5), (12, 7, 23)):
        voxel = np.linalg.inv(image.affine) @ [*grid[slot, row, column], 1]
        assert image.get_fdata(dtype=np.float32)[tuple(voxel[:3].round().astype(int))] == slices[slot, row, column]
        assert voxel == pytest.approx(voxel.round(), abs=1e-3)
    assert np.array_equal(geometry.slices(image), slices)


def test_volumes_lie_where_those_of_the_training_data_do_and_old_runs_are_refused():
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-30, 10, 5)
    place = {"shape": [40, 56, 30], "affine": affine.tolist(), "axis": "axial", "planes": [3, 7, 11, 15, 19, 23]}
    for said, front_first in (({"front_first": False}, False), ({}, True)):  # what version 0.1.0 did not say
        geometry = Geometry.of(run_of(prior(), kind="bids", geometry=place | said))
        image = geometry.nifti(marked(), np.arange(SLICES))
        space = Space((40, 56, 30), affine)
        expected = nifti_of(marked(), place["planes"], space, "axial", front_first=front_first)
        assert np.array_equal(image.affine, expected.affine) and np.array_equal(image.get_fdata(), expected.get_fdata())
        assert image.get_fdata(dtype=np.float32)[3, 5 if front_first else 50, 2] == marked()[2, 3, 50]
        assert np.array_equal(geometry.slices(image), marked()) and geometry.front_first is front_first
        assert geometry.spacing((SLICES, 40, 56)) == (8, 2, 2) and geometry.assumed == ""
    with pytest.raises(UserError, match="by an older version"):
        Geometry.of(run_of(prior(), kind="bids"))


# ------------------------------------------------------------------------------------------------ completing


def slices_in(folder: Path, numbers: list[int]) -> np.ndarray:
    """Write slices of a subject; `[SLICES, 40, 56]` uint8 of all of them."""
    folder.mkdir()
    pixels = (255 * marked()).astype(np.uint8)
    for number in numbers:
        Image.fromarray(pixels[number]).save(folder / f"case_007_slice_{number}.nii.png")
    return pixels


def test_known_slices_stay_as_they_were_and_only_they_are_told_of_first(run, tmp_path, monkeypatch):
    pixels = slices_in(tmp_path / "case", [0, 1, 3, 4, 5])
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(tmp_path / "case" / "case_007_slice_4.nii.png")
    given = read_given(tmp_path / "case", run, "3")
    assert given.there.tolist() == [True, True, False, True, False, True]
    assert given.known.tolist() == [True, True, False, False, False, True]
    asked = spied(run, monkeypatch)
    heads = draw_heads(run, HeadRequest(2, codes=given.codes(run), known=given.known))
    assert torch.equal(heads[1][given.known], given.codes(run)[given.known])
    assert [call.size[0] for call in asked] == [4, 2]
    assert asked[0].known.conditions[NEIGHBOUR].tolist() == [BELOW, ABOVE] * 2, "slices 2 and 4"
    assert torch.equal(asked[0].known.context[:2, 0], heads[0, [1, 5]])
    assert torch.equal(asked[1].known.context[:, 0], heads[:, 2]), "the middle of the gap, from below"
    images = given.completed(decode_head(run, heads[0], 0, 0))
    assert np.array_equal((images * 255).round().byte().numpy()[[0, 1, 5]], pixels[[0, 1, 5]])
    assert torch.equal(images[2:5], decode_head(run, heads[0], 0, 0)[2:5])


def test_a_volume_of_a_run_on_slices_is_read_back(run, tmp_path):
    slices = marked()
    slices[2] = 0
    image = Geometry.of(run).nifti(slices, np.arange(SLICES))
    nib.save(image, tmp_path / "head.nii.gz")
    given = read_given(tmp_path / "head.nii.gz", run)
    assert np.array_equal(given.images, slices) and given.known.tolist() == [True, True, False, True, True, True]
    nib.save(nib.Nifti1Image(np.round(255 * image.get_fdata()).astype(np.uint8), image.affine), tmp_path / "bytes.nii")
    assert read_given(tmp_path / "bytes.nii", run).images.numpy() == pytest.approx(slices, abs=0.5 / 255)


def ball(shape: tuple[int, int, int]) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij"), -1)
    rng = np.random.default_rng(0)
    return (1000 * ((places**2).sum(-1) < 1.3) * rng.uniform(0.5, 1, shape)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_of_one_value_are_missing_and_so_is_what_is_mixed_of_them(tmp_path, axis):
    data, name = ball((20, 20, 20)), ("sagittal", "coronal", "axial")[axis]
    data[(slice(None),) * axis + (slice(8, 11),)] = 0
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    slices, planes, there = read_with_gaps(tmp_path / "a.nii", VolumeOptions(name, 1.0, 20, (0.0, 1.0)), (20, 20))
    assert planes == list(range(20)) and np.flatnonzero(~there).tolist() == [8, 9, 10]
    assert [bool(one.any()) for one in slices] == there.tolist()
    flipped = np.diag([-1.0 if index == axis else 1.0 for index in range(3)] + [1.0])
    nib.save(nib.Nifti1Image(data, flipped), tmp_path / "a.nii")
    there = read_with_gaps(tmp_path / "a.nii", VolumeOptions(name, 1.0, 20, (0.0, 1.0)), (20, 20))[2]
    assert np.flatnonzero(~there).tolist() == [9, 10, 11], "in RAS+ order"
    twice = np.diag([2.0 if index == axis else 1.0 for index in range(3)] + [1.0])
    nib.save(nib.Nifti1Image(data, twice), tmp_path / "a.nii")
    _, planes, there = read_with_gaps(tmp_path / "a.nii", VolumeOptions(name, 1.0, 28, (0.0, 1.0)), (20, 20))
    assert 15 in planes and [p for p, t in zip(planes, there) if not t] == [p for p in planes if 14 < p < 22], (
        "mixed with an empty one"
    )


def test_of_a_thick_slice_acquisition_each_plane_is_one_slice_and_the_rest_is_missing(tmp_path):
    data = ball((20, 24, 8))
    data[:, :, 5] = 0
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1, 4, 1])), tmp_path / "thick.nii")
    slices, planes, there = read_with_gaps(
        tmp_path / "thick.nii", VolumeOptions("axial", 1.0, 14, (0.0, 1.0)), (20, 24)
    )
    at = np.array([0, 4, 8, 12, 16, 24, 28])
    assert there.sum() == 7 and all(np.abs(np.array(planes)[there] - at) <= 1) and not slices[~there].any()
    bright = np.percentile(data[data > 0], 99.5)
    for found, plane in zip(slices[there], at // 4):  # the plane itself, not a mixture of two
        assert found / 255 == pytest.approx(np.clip(data[:, :, plane] / bright, 0, 1), abs=0.02)


def test_a_scan_is_completed_in_its_own_place(tmp_path):
    affine = np.diag([1.0, 1, 1, 1])
    place = {"shape": [40, 56, 30], "affine": affine.tolist(), "axis": "axial", "planes": [0, 2, 4, 6, 8, 10]}
    run = run_of(prior(), kind="volumes", geometry=place)
    run.config["flags"] |= {"axis": "axial", "spacing": 1.0, "slices": SLICES, "slice_range": "0:1"}
    data = ball((40, 56, 16))
    data[:, :, 6] = 0
    own = affine.copy()
    own[:3, 3] = (5, 6, 7)
    nib.save(nib.Nifti1Image(data, own), tmp_path / "scan.nii")
    given = read_given(tmp_path / "scan.nii", run)
    assert given.geometry.planes == [0, 3, 6, 9, 12, 15] and np.flatnonzero(~given.known).tolist() == [2]
    image = given.geometry.nifti(given.images.numpy(), np.arange(SLICES))
    bright = np.percentile(data[data > 0], 99.5)
    assert image.get_fdata()[..., 1] == pytest.approx(np.clip(data[..., 3] / bright, 0, 1), abs=0.02)
    assert millimetres(image, 3, 4, 1) == pytest.approx([8, 10, 10])


def test_what_cannot_be_completed_is_said_in_a_sentence(run, tmp_path):
    slices_in(tmp_path / "case", list(range(SLICES)))
    slices_in(tmp_path / "none", [])
    (tmp_path / "two").mkdir()
    for name in ("case_1_slice_0.nii.png", "case_2_slice_1.nii.png"):
        shutil.copy(tmp_path / "case" / "case_007_slice_0.nii.png", tmp_path / "two" / name)
    shutil.copytree(tmp_path / "case", tmp_path / "more")
    shutil.copy(tmp_path / "case" / "case_007_slice_0.nii.png", tmp_path / "more" / "case_007_slice_9.nii.png")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), tmp_path / "small.nii")
    for path, missing, message in (
        ("nowhere.nii", None, "nowhere.nii: no such file or folder"),
        ("case", None, "it has every slice of the run; say with --missing"),
        ("case", "0:6", "it has none of the run's slices"),
        ("case", "4:9", "--missing names slice 6; this run has slices 0 to 5"),
        ("case", "4-9", "--missing is 4-9; expected slice numbers"),
        ("case", "4:4", "--missing is 4:4; expected slice numbers"),
        ("none", None, "no images in it"),
        ("two", None, "slices of several subjects"),
        ("more", None, "its name gives no number of this run's slices, 0 to 5"),
        ("small.nii", None, "its volumes have 6x40x56"),
    ):
        with pytest.raises(UserError, match=message):
            read_given(tmp_path / path, run, missing)
    assert missing_numbers("1, 3:5", np.arange(6)).tolist() == [1, 3, 4]


# ------------------------------------------------------------------------------------------------ files and pictures


@pytest.fixture
def here(tmp_path, monkeypatch, run) -> Path:
    """A folder with a run on the slice set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run/vqvae.safetensors", run.vqvae)
    save_model(tmp_path / "run/prior.safetensors", run.prior)
    (tmp_path / "run/config.json").write_text(
        json.dumps({"data": DATA | {"frame": FRAME.__dict__}, "flags": {"image_size": None}})
    )
    return tmp_path


def test_heads_come_out_as_volumes_pages_and_pictures(here, capsys, monkeypatch):
    monkeypatch.setattr("reporting.volumes.viewer_page", lambda image, title: title)
    generate.main(["--run", "run", "--volumes", "2", "--seed", "3", "--top_k", "4", "--out", "out"])
    said = capsys.readouterr().out
    assert "drew 2 heads of 6 slices" in said and "slices 1 mm apart" in said
    names = {path.name for path in (here / "out/volumes").iterdir()}
    assert names == {"heads.png", *(f"head_000{i}{end}" for i in (0, 1) for end in (".nii.gz", ".png", ".html"))}
    loaded = generate.load_run("run")
    codes = draw_heads(loaded, HeadRequest(2, Draw(1.0, 4), 3))
    image = nib.load(here / "out/volumes/head_0001.nii.gz")
    assert image.get_fdata() == pytest.approx(decode_head(loaded, codes[1], 3, 1).permute(1, 2, 0).numpy(), abs=1e-6)
    slices_in(here / "case", [0, 1, 2, 4, 5])
    generate.main(["--run", "run", "--complete-volume", "case", "--missing", "1", "--n", "2", "--out", "out"])
    assert "drawing slices 1 and 3; 4 others are kept" in capsys.readouterr().out
    completed = nib.load(here / "out/volumes/completed_0001.nii.gz").get_fdata()
    assert completed[..., [0, 2, 4, 5]] == pytest.approx(
        (255 * marked()).astype(np.uint8)[[0, 2, 4, 5]].transpose(1, 2, 0) / 255, abs=1e-6
    )
    assert (here / "out/volumes/completed_0000.png").exists() and (here / "out/volumes/completed_0000.html").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--volumes", "0"], "--volumes is 0; expected 1 to 1000 heads"),
        (["--volumes", "1", "--slice", "3"], "--volumes makes whole volumes of every slice; leave out --slice"),
        (["--volumes", "1", "--n", "3"], "leave out --n"),
        (["--complete_volume", "x", "--nifti", "--png"], "--complete_volume .* leave out --png --nifti"),
        (["--volumes", "1", "--complete_volume", "x"], "two things to do"),
        (["--missing", "3"], "--missing goes with --complete_volume"),
    ],
)
def test_flags_of_single_slices_do_not_go_with_whole_heads(flags, message):
    with pytest.raises(UserError, match=message):
        generate.main(flags)


def test_drawn_slices_are_framed_otherwise_than_known_ones(tmp_path):
    slices, known = np.zeros((SLICES, 40, 56)), np.arange(SLICES) != 2
    completed_sheet(slices, slices, known, tmp_path / "a.png", "completed", range(SLICES))
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 90)
    columns = np.flatnonzero(red.any(0)) / pixels.shape[1]
    assert red.sum() > 100 and 2 / 6 - 0.05 < columns.min() < columns.max() < 3 / 6 + 0.05


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    volume = np.zeros((40, 56, SLICES), np.float32)
    volume[8:32, 10:46] = np.random.default_rng(0).uniform(0.3, 1, (24, 36, SLICES))
    path = tmp_path_factory.mktemp("page") / "head.html"
    path.write_text(viewer_page(nib.Nifti1Image(volume, np.eye(4)), "Head 0"))
    return path


def test_a_page_needs_nothing_but_itself(page):
    text = page.read_text()
    assert "<canvas" in text and "http:" not in text and "https:" not in text
    assert not {part.split('"')[0] for part in text.split('src="')[1:] if not part.startswith("data:")}


def test_a_browser_without_a_network_shows_the_volume(page):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or chrome on PATH")
    shot = page.parent / "shot.png"
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    size = ["--window-size=1000,500", "--virtual-time-budget=5000"]
    call = [browser, *quiet, *offline, *size, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(call, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    gray = (np.ptp(pixels, axis=2) == 0) & (pixels[..., 0] > 60) & (pixels[..., 0] < 250)
    assert all(part.sum() > 500 for part in np.array_split(gray, 3, axis=1)), "tissue in each of the three cuts"
    assert len(np.unique(pixels[gray])) > 50
