"""What stands under a picture is true of it: labels, curves and bars against what was given."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dataset import Frame, Split
from reporting import figures, pictures
from reporting.pictures import HeldOut
from scoring.evaluation import picture_reconstructions
from vqvae import VQVAE


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were finished, in place of their files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    yield kept
    plt.close("all")


@pytest.fixture
def rows(monkeypatch):
    """The rows of slices, and the titles of their columns, that were asked for."""
    asked: list[tuple[list[tuple[str, np.ndarray]], list[str]]] = []
    monkeypatch.setattr(figures, "rows_of_slices", lambda rows, path, title, columns: asked.append((rows, columns)))
    return asked


def grey(count: int) -> np.ndarray:
    """Slices of one grey level each, `[count, 8, 8]`, by which they are told apart."""
    return np.linspace(0, 1, count)[:, None, None] * np.ones((1, 8, 8))


def labelled(figure: Figure) -> dict[str, float]:
    """The mean of the picture under each label."""
    axes = [axis for axis in figure.axes if axis.images and axis.get_title()]
    return {axis.get_title(): float(np.mean(axis.images[0].get_array())) for axis in axes}


def test_each_slice_of_a_grid_has_its_own_label(drawn):
    figures.slice_grid(grey(11), Path("x.png"), "title", [f"{level:.1f}" for level in np.linspace(0, 1, 11)], columns=4)
    found = labelled(drawn[0])
    assert len(found) == 11 and all(float(label) == pytest.approx(value) for label, value in found.items())


def test_each_code_map_stands_beside_its_slice(drawn):
    codes = np.arange(5)[:, None, None] * np.ones((1, 2, 2), int)
    figures.codes_beside_slices(codes, grey(5), Path("x.png"), "title", np.arange(5), list("abcde"))
    shown = [axis for axis in drawn[0].axes if axis.images]
    for index, (left, right) in enumerate(zip(shown[::2], shown[1::2])):
        assert left.get_title().startswith("abcde"[index]) and np.all(left.images[0].get_array() == index)
        assert np.mean(right.images[0].get_array()) == pytest.approx(index / 4)


def test_codes_are_ranked_along_the_line_they_lie_on():
    order = np.random.default_rng(0).permutation(20)
    ranks = figures.code_ranks(order[:, None] * np.array([[3.0, -1.0, 0.5]]))
    assert ranks.tolist() in (order.tolist(), (19 - order).tolist())


def test_the_star_is_at_the_epoch_whose_weights_are_kept(drawn):
    bits = [5.0, 4.0, 3.5, 3.7, 3.9]
    records = [{"epoch": i + 1, "train_bits": b, "validate_bits": b, "lr": 0.1} for i, b in enumerate(bits)]
    figures.prior_status(records, Path("x.png"), "title", 64, 4.5)
    mixture = [
        {"epoch": i + 1, "validate_ssim": 0.5, "validate_mixture": -b, "validate_sharpness": 1}
        for i, b in enumerate(bits)
    ]
    figures.sharp_status(mixture, Path("x.png"), "title")
    for figure in drawn:
        (star,) = [line for axis in figure.axes for line in axis.lines if line.get_label() == "kept weights"]
        assert star.get_xdata() == [3]
    told = [record | {"validate_told_bits": 2 + i, "train_told_bits": 1.0} for i, record in enumerate(records)]
    means = [record | {"validate_mean_bits": b} for record, b in zip(told, [3, 1, 2, 2, 2])]
    figures.prior_status(means, Path("x.png"), "title", 64)
    stars = [line for line in drawn[-1].axes[0].lines if line.get_marker() == "*"]
    assert [(*star.get_xdata(), *star.get_ydata()) for star in stars] == [(2, 4.0), (2, 3)]
    heights = {line.get_label(): np.unique(line.get_ydata()) for line in drawn[0].axes[0].lines}
    assert heights["uniform, log2 K = 6.00"] == [6] and heights["positional marginal 4.50"] == [4.5]


def test_each_bar_is_as_long_as_its_score_over_its_floor(drawn):
    figures.realism({"a": (6.0, 2.0), "b": (1.0, 2.0), "c": (10.0, 1.0)}, Path("x.png"), "title")
    axis = drawn[0].axes[0]
    names = dict(zip(axis.get_yticks(), [label.get_text() for label in axis.get_yticklabels()]))
    lengths = {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.patches}
    assert lengths == {"a": 3.0, "b": 0.5, "c": 10.0}


def test_spectra_end_at_half_of_the_sampling_frequency(drawn):
    images = {"real": np.random.default_rng(0).random((24, 30)), "sharp": np.zeros((24, 30))}
    figures.sharpness(images, {"real": np.ones(12), "sharp": np.full(12, 0.5)}, Path("x.png"), "title")
    (curve,) = [axis for axis in drawn[0].axes if axis.lines]
    for line, height in zip(curve.lines, (1, 0.5)):
        assert line.get_xdata()[[0, -1]] == pytest.approx([1 / 48, 0.5 - 1 / 48]) and set(line.get_ydata()) == {height}
    whole = drawn[0].axes[0]
    (marked,) = whole.patches
    corner = drawn[0].axes[2].images[0].get_array()
    top, left, side = round(marked.get_y()), round(marked.get_x()), round(marked.get_height())
    assert np.array_equal(corner, images["real"][top : top + side, left : left + side])


# --------------------------------------------------------------------------- which slices


def split_of(images: np.ndarray) -> Split:
    count = len(images)
    pixels = (images * 255).round().astype(np.uint8)
    return Split(pixels, [f"s{i}" for i in range(count)], [f"slice{i}.png" for i in range(count)], np.arange(count))


def test_real_and_generated_slices_of_one_column_have_the_number_above_it(rows, tmp_path):
    images = torch.from_numpy(grey(31)).float()[:, None]
    shown = HeldOut("validate", split_of(grey(31)), "data", images, torch.zeros(31, 2, 2), images / 2, images / 4)
    samples = SimpleNamespace(images=images[:, 0] / 8)
    pictures.side_by_side(shown, samples, tmp_path)
    [(named, columns)] = rows
    numbers = np.array([int(column.removeprefix("slice ")) for column in columns])
    assert numbers[0] == 0 and numbers[-1] == 30 and len(set(numbers)) == 8
    for (name, line), factor in zip(named, (1, 2, 4, 8)):
        assert line.mean((1, 2)) * factor == pytest.approx(numbers / 30, abs=1e-6), name
    assert [name.split()[0] for name, _ in named] == ["real", "reconstructed", "reconstructed,", "generated"]


def test_the_worst_reconstructions_stand_under_their_slices(rows):
    real = grey(6)
    worst, quality = np.array([4, 1]), np.linspace(0.5, 0.9, 6)
    decoded = torch.from_numpy(real[worst] + 0.1).float()[:, None]
    pictures.worst_reconstructions(split_of(real), decoded, worst, quality, Path("x.png"), "title")
    [(named, columns)] = rows
    lines = dict(named)
    assert lines["real"].mean((1, 2)) == pytest.approx([0.8, 0.2], abs=0.01)
    assert lines["reconstructed"].mean((1, 2)) == pytest.approx([0.9, 0.3], abs=0.01)
    assert lines["difference x4"].mean((1, 2)) == pytest.approx([0.4, 0.4], abs=0.02)
    assert columns == ["slice4\nSSIM 0.820", "slice1\nSSIM 0.580"]


def test_the_codes_used_most_come_first_with_their_shares(monkeypatch):
    asked: list[tuple[np.ndarray, list[str]]] = []
    monkeypatch.setattr(
        figures, "slice_grid", lambda images, path, title, labels, columns: asked.append((images, labels))
    )
    model = VQVAE(6, 4, 4, width=8, blocks=1).eval()
    pictures.codebook(model, torch.tensor([5, 0, 60, 25, 0, 10]), Path("x.png"), "title")
    [(images, labels)] = asked
    assert labels == ["60 %", "25 %", "10 %", "5 %"]
    alone = model.decode(torch.tensor([2, 3, 5, 0])[:, None, None].expand(-1, 5, 5))[:, 0, 8:12, 8:12]
    assert np.allclose(images, alone.numpy(), atol=1e-6)


def test_neighbours_are_cropped_to_the_frame_and_labelled_by_their_distances(rows):
    model, frame = VQVAE(6, 4, 4, width=8, blocks=1).eval(), Frame(4, 8, 8, 12, 20, 24)
    run = SimpleNamespace(vqvae=model, frame=frame)
    samples, nearest = torch.randint(0, 6, (2, 3, 2, 3))
    pictures.neighbours(run, samples, nearest, [(0.01, 0.5), (0.02, 0.25), (0.03, 1.0)], Path("x.png"), "title")
    [(named, columns)] = rows
    for (_, line), codes in zip(named, (samples, nearest)):
        assert np.allclose(line, model.decode(codes)[:, 0].numpy(), atol=1e-6)
    assert columns[1] == "pixels 0.020\ncodes 25 %"


def test_the_worst_reconstructions_are_those_of_least_ssim(monkeypatch):
    asked: list[tuple[np.ndarray, torch.Tensor]] = []
    monkeypatch.setattr(
        pictures, "worst_reconstructions", lambda split, decoded, worst, *_: asked.append((worst, decoded))
    )
    monkeypatch.setattr(pictures, "codebook", lambda *_: None)
    model, frame = VQVAE(6, 4, 4, width=8, blocks=1).eval(), Frame(0, 0, 8, 8, 8, 8)
    case = SimpleNamespace(
        name="validate",
        data=SimpleNamespace(title="data"),
        run=SimpleNamespace(vqvae=model, frame=frame),
        split=split_of(grey(40)),
        num_codes=6,
        pictures=Path("images"),
    )
    codes, quality = torch.randint(0, 6, (40, 2, 2)), np.random.default_rng(0).random(40)
    picture_reconstructions(case, codes, quality)
    [(worst, decoded)] = asked
    assert quality[worst].tolist() == sorted(quality.tolist())[: len(worst)] and len(worst) < 20
    assert torch.equal(decoded, model.decode(codes[torch.from_numpy(worst)]))
