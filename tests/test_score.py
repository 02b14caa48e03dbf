"""How usual scans are: maps, held-out scans to compare with, restorations, and what score.py writes."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from synthetic_heads import SIZE, SLICES, person

import score
from common.errors import UserError
from common.files import hash_of, save_model, write_json
from dataset import NEIGHBOUR, Frame, Split, find_frame
from inference.restoring import Recipe, restore
from inference.run_data import content_of
from models.marginal import positional_marginal
from models.neighbours import ABOVE, BELOW, told_a_side
from pixelcnn import NUMBER, GatedPixelCNN
from scoring.expected import expected
from scoring.held_out import HELD_OUT, Pool, load, measure, save, scans_of
from scoring.masks import Folder
from scoring.scored import Scorer
from scoring.unusual import HIGH, beside_of, coded, maps_of, standard
from sources import DataOptions
from sources import load as load_data
from training import shipping
from training.settings import Settings
from utils import Run, load_run
from vqvae import VQVAE


def small_run(context: int = 1, frame: Frame | None = None) -> Run:
    """Networks without training, that know what is usual at each place all the same."""
    torch.manual_seed(0)
    vqvae, images = VQVAE(16, 8, 4, 16, 1), scans(range(20, 26)).batch(np.arange(6 * SLICES))
    vqvae.start(images)
    frame, told = frame or Frame(0, 0, *SIZE, *SIZE), {"position": NUMBER} | ({NEIGHBOUR: 2} if context else {})
    prior = GatedPixelCNN(16, 8, 2, conditions=told, context=context, marginal=(8, 10))
    prior.start_from_marginal(positional_marginal(vqvae.encode(images), 16))
    if context:
        torch.nn.init.normal_(prior.context.network.out.weight, std=0.1)
    return Run(vqvae.eval(), prior.eval(), frame, {"data": {"title": "heads"}})


def scans(people: range) -> Split:
    images = np.concatenate([(255 * person(seed)).astype(np.uint8) for seed in people])
    names = [f"case_{seed:03d}_slice_{number}" for seed in people for number in range(SLICES)]
    numbers = np.tile(np.arange(SLICES), len(people))
    subjects = [f"{seed:03d}" for seed in people for _ in range(SLICES)]
    return Split(images, subjects, names, numbers, (numbers / (SLICES - 1)).astype(np.float32))


def test_maps_of_a_mirrored_scan_are_mirrored():
    run, scan = small_run(), scans(range(1))
    maps = maps_of(run, scan, coded(run, scan))
    mirrored = replace(scan, images=np.ascontiguousarray(scan.images[:, ::-1]))
    others = maps_of(run, mirrored, coded(run, mirrored))
    for name in ("bits", "bits_told"):
        assert torch.allclose(others[name].flip(1), maps[name], atol=1e-4), name
        assert not torch.allclose(others[name], maps[name], atol=1e-2), "the maps say where"


def test_the_lowest_slice_is_told_the_one_above_and_a_lone_one_nothing():
    scan = scans(range(1)).at(np.array([0, 1, 2, 6]))
    codes = torch.arange(4)[:, None, None].expand(4, 2, 3)
    known, context = told_a_side(scan, codes, 1)
    assert context[:, 0, 0, 0].tolist() == [1, 0, 1, -1]
    assert known[NEIGHBOUR][:3].tolist() == [ABOVE, BELOW, BELOW] and np.isnan(known[NEIGHBOUR][3])
    run = small_run()
    told = maps_of(run, scan, coded(run, scan))["bits_told"]
    assert told[3].isnan().all() and not told[:3].isnan().any()


def test_percentiles_of_a_place_leave_out_the_scan_that_they_are_about():
    maps = [{"bits": torch.rand(6, 2, 3) + (index == 3)} for index in range(20)]
    groups = [np.arange(6)] * 20
    pool = Pool(maps, groups, 6, symmetric=True)
    for without in (None, 3):
        kept = torch.stack([each["bits"] for index, each in enumerate(maps) if index != without])
        near = kept[:, 1:4].flatten(0, 1)  # of group 2 and those beside it
        near = torch.cat([near, near.flip(1)]).sort(0, descending=True).values
        rank = max(1, round((1 - HIGH) * len(near)))
        assert torch.equal(pool.high("bits", without)[2], near[rank - 1])
        assert torch.allclose(pool.usual("bits", without)[0][2], near.mean(0), atol=1e-6)
    assert (pool.high("bits")[2] > pool.high("bits", 3)[2]).all()


def test_what_the_prior_expects_is_painted_from_what_lies_before(monkeypatch):
    """A prior that is sure of every code expects the reconstruction; one that knows nothing, the picture of the mean code."""
    run, scan = small_run(), scans(range(1)).at(np.arange(2))
    codes = coded(run, scan)["as it is"].long()

    def sure(codes: torch.Tensor, conditions=None) -> torch.Tensor:
        return 50 * torch.nn.functional.one_hot(codes, 16).permute(0, 3, 1, 2).float()

    monkeypatch.setattr(run.prior, "forward", sure)
    bits, pictures = expected(run, codes, scan.known)
    assert torch.allclose(pictures, run.vqvae.decode(codes)[:, 0], atol=1e-5) and bits.max() < 1e-3
    monkeypatch.setattr(run.prior, "forward", lambda codes, conditions=None: torch.zeros(2, 16, *codes.shape[1:]))
    bits, pictures = expected(run, codes, scan.known)
    mean = run.vqvae.quantizer.codebook.mean(0)[None, :, None, None].expand(2, -1, *codes.shape[1:])
    assert torch.allclose(pictures, run.vqvae.decoder(mean)[:, 0].clamp(0, 1), atol=1e-5)
    assert torch.allclose(bits, torch.full_like(bits, 4.0))


def test_the_map_is_of_the_inner_head_and_a_slice_counts_twice_what_those_beside_it_do():
    run, split = small_run(), scans(range(4))
    scan = scans(range(8, 9))
    maps, usual = maps_of(run, scan, coded(run, scan)), measure(run, split).usual
    inner = maps["inner"].bool()
    assert 0.1 < inner.float().mean() < 0.9 and not inner[:, 0].any() and inner[6, 8, 10]
    found = standard(maps, usual, np.arange(SLICES), beside_of(scan))
    alone = standard(maps, usual, np.arange(SLICES))
    assert not found[~inner].any() and (found >= 0).all()
    here = inner[4:7].all(0)
    assert torch.allclose(found[5][here], ((alone[4] + 2 * alone[5] + alone[6]) / 4)[here], atol=1e-5)
    here = inner[:2].all(0)
    assert torch.allclose(found[0][here], ((2 * alone[0] + alone[1]) / 3)[here], atol=1e-5)


def test_brain_that_is_missing_is_unusual_and_the_rest_is_as_without_it():
    run, split = small_run(), scans(range(4))
    held_out = measure(run, split)
    scorer, whole = Scorer(run, held_out), scans(range(8, 9))
    images = np.array(whole.images)
    images[5, :, images.shape[2] * 3 // 5 :] = 0
    cut = replace(whole, images=images)
    before, after = (scorer.score(scan) for scan in (whole, cut))
    missing = (before.maps["inner"] * (1 - after.maps["head"])).bool()
    grey = before.maps["head"].new_tensor(images[5].max() / 255.0)
    assert missing[5].sum() > 20 and not missing[[4, 6]].any()
    assert scorer.tissue.max() <= grey and (scorer.tissue[5][missing[5]] > 0).float().mean() > 0.7
    assert after.maps["standard"][5][missing[5]].median() > 5 * before.maps["standard"][5].quantile(0.99)
    plain = standard(after.maps, held_out.usual, np.arange(SLICES), beside_of(cut))
    lacking = ((1 - after.maps["head"]) * scorer.tissue).bool()
    assert torch.equal(plain[~lacking], after.maps["standard"][~lacking]) and not plain[lacking].any()


def test_what_is_usual_of_pixels_is_their_mean_and_the_widest_spread_nearby():
    rng = torch.Generator().manual_seed(0)
    maps = [{"residual": torch.rand(6, 8, 10, generator=rng) + 5 * (index == 3)} for index in range(20)]
    pool = Pool(maps, [np.arange(6)] * 20, 6, symmetric=True)
    for without in (None, 3):
        kept = torch.stack([each["residual"] for index, each in enumerate(maps) if index != without])
        near = kept[:, 1:4].flatten(0, 1)  # of group 2 and those beside it
        near = torch.cat([near, near.flip(1)])
        mean, spread = pool.usual("residual", without)
        assert torch.allclose(mean[2], near.mean(0), atol=1e-6)
        widest = near.std(0, correction=0)[2:7, 3:8].max()
        assert widest < spread[2, 4, 5] < 2.1 * widest
    assert pool.usual("residual")[0][2].mean() > pool.usual("residual", 3)[0][2].mean() + 0.2


def test_what_is_usual_is_kept_with_the_weights_that_measured_it(tmp_path):
    run, split = small_run(), scans(range(4))
    held_out = measure(run, split, scans(range(4, 8)))
    save(tmp_path / HELD_OUT, held_out, run)
    again = load(tmp_path / HELD_OUT, run)
    for name, value in held_out.__dict__.items():
        assert torch.equal(value, getattr(again, name)) if torch.is_tensor(value) else value == getattr(again, name)
    run.prior.temperature = 1.5
    assert load(tmp_path / HELD_OUT, run) is None, "calibrated anew"
    (tmp_path / HELD_OUT).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / HELD_OUT, run)


@pytest.mark.parametrize("context", [0, 1])
def test_a_spoilt_slice_is_the_most_unusual_one_and_a_held_out_scan_is_not_compared_to_itself(context):
    run, split = small_run(context), scans(range(6))
    scorer = Scorer(run, measure(run, split))
    scan = scans(range(8, 9))
    usual = scorer.score(scan)
    images = scan.images.copy()
    images[5, 8:24, 10:30] = np.random.default_rng(0).integers(0, 255, (16, 20))
    spoilt = scorer.score(replace(scan, images=images))
    assert spoilt.unusual.argmax() == 5 and spoilt.unusual[5] > usual.unusual.max()
    assert spoilt.percentiles["above"][5] == 100 and spoilt.scan_unusual > usual.scan_unusual
    assert spoilt.slices["peak"].argmax() == 5 and spoilt.slices["peak"][5] > 1.2 * usual.slices["peak"].max()
    assert np.isnan(spoilt.slices["bits_told"]).all() == (not context)
    own = scorer.score(split.at(np.arange(SLICES)))
    assert own.known and not usual.known
    table = scorer.held_out.scans[1:, 0].numpy()  # of the others
    assert own.scan_percentiles["bits"] == pytest.approx(100 * (table < own.scan["bits"]).mean())


def test_restorations_keep_what_is_likely_and_are_drawn_from_the_seed():
    run, scan = small_run(), scans(range(1)).at(np.arange(3))
    codes = coded(run, scan)["as it is"]
    unlikely = torch.zeros(codes.shape, dtype=torch.bool)
    unlikely[1, 1:3, 2:4] = True
    restored = restore(run, scan, codes, unlikely, Recipe(3, seed=1))
    there = restored.codes != codes[:, None]
    assert there[1].any() and not (there & ~unlikely[:, None]).any()
    assert torch.equal(restored.codes, restore(run, scan, codes, unlikely, Recipe(3, seed=1)).codes)
    assert not torch.equal(restored.codes, restore(run, scan, codes, unlikely, Recipe(3, seed=2)).codes)
    alone = restore(run, scan.at(np.array([0])), codes[:1], unlikely[:1], Recipe(3)).map
    assert torch.allclose(alone[0], restored.map[0], atol=1e-6), (
        "of a slice with nothing to restore, its own reconstruction"
    )
    assert restored.map.shape == restored.nearest.shape == (3, *SIZE)


def test_codes_are_drawn_anew_where_the_map_passes_the_threshold_and_nowhere_else():
    run, split = small_run(), scans(range(4))
    scan, held_out = scans(range(8, 9)), measure(run, split)
    codes = coded(run, scan)["as it is"]
    unusual = Scorer(run, held_out).score(scan).maps["standard"]
    high = float(unusual.quantile(0.98))
    there = torch.nn.functional.adaptive_max_pool2d(unusual, codes.shape[1:]) > high
    drawn = Scorer(run, held_out, Recipe(4, threshold=high)).score(scan).restored.codes != codes[:, None]
    assert drawn.any() and not (drawn & ~there[:, None]).any()
    beyond = Recipe(2, threshold=float(unusual.max()) + 1)
    assert torch.equal(Scorer(run, held_out, beyond).score(scan).restored.codes[:, 0], codes.long())


@pytest.fixture
def run_folder(tmp_path: Path, slices: Path, monkeypatch) -> Path:
    """A run of untrained networks on the slices of the tests."""
    monkeypatch.chdir(tmp_path)
    data = load_data(DataOptions(data=str(slices)), tmp_path / ".cache")
    frame = find_frame(data.splits["train"].images, 4)
    run, folder = small_run(1, frame), tmp_path / "run"
    save_model(folder / "vqvae.safetensors", run.vqvae)
    save_model(folder / "prior.safetensors", run.prior, vqvae=hash_of(run.vqvae.state_dict()))
    content = {name: content_of(split) for name, split in data.splits.items()}
    about = data.summary() | {"frame": asdict(frame), "content": content}
    write_json(folder / "config.json", {"flags": asdict(Settings(data=str(slices))), "data": about})
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_score_writes_tables_maps_and_the_page_of_the_worst(run_folder, slices, capsys):
    masks = Path("masks")
    masks.mkdir()
    for number in range(4):
        Image.fromarray(np.pad(np.full((8, 8), number % 2 * 255, np.uint8), ((16, 16), (24, 24)))).save(
            masks / f"case_006_slice_{number}.png"
        )
    asked = ["--run", "run", "--data", str(slices), "--split", "test", "--maps", "--restore", "2", "--threshold", "1"]
    score.main([*asked, "--masks", "masks", "--out", "first"])
    said = capsys.readouterr().out
    assert "what is usual, of 2 held-out scans" in said and "voxels: average precision" in said
    scans_, slices_ = rows(Path("first/scans.csv")), rows(Path("first/slices.csv"))
    assert [row["rank"] for row in scans_] == ["1", "2"] and len(slices_) == 8
    unusual = [float(row["unusual"]) for row in slices_]
    assert unusual == sorted(unusual, reverse=True)
    assert all(0 <= float(row["bits_percentile"]) <= 100 for row in slices_)
    for place in (
        "worst.png",
        "masks.json",
        *(f"maps/{name}/case_006_slice_0.png" for name in ("bits", "bits_told", "restored")),
    ):
        assert (Path("first") / place).exists(), place
    score.main([*asked, "--out", "second"])
    assert "what is usual, of" not in capsys.readouterr().out, "measured once"
    for name in ("scans.csv", "slices.csv", "maps/restored/case_007_slice_2.png"):
        assert (Path("first") / name).read_bytes() == (Path("second") / name).read_bytes(), name


def stored(voxels: np.ndarray, path: Path, way: str = "RAS", every: int = 1) -> None:
    """Voxels in RAS+ order as a NIfTI that stores them another way, or every so many of them."""
    image = nib.Nifti1Image(voxels[::every, ::every, ::every], np.diag([every, every, every, 1.0]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(way))
    nib.save(image.as_reoriented(turn), path)


def test_masks_of_volumes_are_cut_where_their_scans_are(run_folder):
    """A mask is a file of zeros and ones, of which most slices have none, on whichever grid; the run was trained on images."""
    Path("volumes").mkdir()
    Path("masks").mkdir()
    size = 40, 56, 40
    block = np.zeros(size, np.int16)
    block[10:22, 18:30, 14:22] = 1
    for name, way, every in (("a", "RAS", 1), ("b", "LPS", 1), ("c", "SRA", 2)):
        head = person(ord(name)).transpose(1, 2, 0)
        head = ndimage.zoom(head, np.divide(size, head.shape), order=1)
        noise = np.random.default_rng(0).integers(0, 60, head.shape)
        stored(np.where(block, 4000, 1000 * head + noise).astype(np.int16), Path(f"volumes/{name}.nii.gz"))
        stored(block, Path(f"masks/{name}.nii.gz"), way, every)
    asked = ["--run", "run", "--data", "volumes", "--split", "test", "--maps"]
    Path("split.csv").write_text("subject,split\na,test\nb,test\nc,test\n")
    score.main([*asked, "--split_file", "split.csv", "--masks", "masks", "--out", "out"])
    found = json.loads(Path("out/masks.json").read_text())
    assert found["voxels"].keys() >= {"auroc", "dice"} and found["slices"].keys() == found["voxels"].keys()
    files = {path.name.split(".")[0]: path for path in Path("volumes").glob("*")}
    masks = Folder(Path("masks"), load_run(run_folder), files)
    data = load_data(DataOptions(data="volumes", split_file="split.csv"), ".cache", required="test").splits["test"]
    for indices in scans_of(data):
        scan = data.at(indices)
        bright = np.asarray(scan.images) > 200
        marked, there = masks.of(scan)
        assert there.all() and bright.any((1, 2)).sum() >= 6 and marked.any((1, 2)).sum() >= 6
        assert (marked & bright).sum() > (0.7 if scan.subjects[0] == "c" else 0.99) * (marked | bright).sum(), (
            scan.subjects[0]
        )
    Path("masks/a.nii.gz").write_bytes(b"none")
    with pytest.raises(UserError, match="masks/a.nii.gz"):
        score.main([*asked, "--split_file", "split.csv", "--masks", "masks", "--out", "again"])


def test_weights_that_are_handed_on_bring_what_is_usual_along(run_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shipping", "run", "to"])
    shipping.main()
    assert "held_out.safetensors" in capsys.readouterr().out
    run = load_run(Path("to"))
    held_out = load(Path("to") / HELD_OUT, run)
    assert held_out is not None and len(held_out.marks) == 2
    (Path("run") / "prior.safetensors").unlink()
    shipping.main()
    assert "note: without held_out.safetensors" in capsys.readouterr().out
    assert not (Path("to") / HELD_OUT).exists(), "of other weights"


def test_score_leaves_out_what_the_run_was_trained_on(run_folder, slices, capsys):
    score.main(["--run", "run"])
    assert "which is left out" in capsys.readouterr().out
    found = {row["subject"]: row["held_out"] for row in rows(Path("scores/scans.csv"))}
    assert found == {"004": "yes", "005": "yes", "006": "", "007": ""}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--restore", "-1"], "--restore is -1"),
        (["--smooth", "4"], "--smooth is 4"),
        (["--masks", "nowhere"], "--masks nowhere: no such folder"),
        (["--split", "test", "--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_sentence(run_folder, flags, message):
    with pytest.raises(UserError, match=message):
        score.main(["--run", "run", *flags])
    assert not Path("scores").exists()


def test_planted_anomalies_are_scored_beside_simple_scores(run_folder, slices, monkeypatch):
    """On slices too small for what needs a place in the brain: what changes a slice, and a wedge."""
    monkeypatch.syspath_prepend(str(Path(score.__file__).parent / "benchmarks"))
    import anomaly

    kinds = "missing wedge,slice of another position,intensity scale"
    asked = ["--run", "run", "--data", str(slices), "--kinds", kinds, "--steps", "2", "--batch", "2", "--out", "out"]
    anomaly.main(asked)
    found = json.loads(Path("out/anomaly.json").read_text())
    assert found["slices: auroc"]["missing wedge, 16"]["score.py"]["auroc"] > 0.9
    assert list(found["voxels: average_precision"]) == ["missing wedge, 16"], "what has no place has no voxels"
    assert Path("out/anomaly.png").exists()
    before = Path("out/report.md").read_text()
    monkeypatch.setattr(anomaly, "score_planted", None)
    anomaly.main(asked)
    assert Path("out/report.md").read_text() == before, "what was scored is kept"
    with pytest.raises(UserError, match="--kinds a stroke: expected some of"):
        anomaly.main([*asked[:4], "--kinds", "a stroke"])
