"""The second level of codes: what it is told, what it leaves alone, how it learns and is drawn."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.runtime import derive_seed
from dataset import NEIGHBOUR, Frame, Split, find_frame
from inference.coding import decode, encode, encode_split
from inference.drawing import Request, draw_samples
from inference.heads import HeadRequest, draw_heads
from models.adapting import with_context
from models.codes import Codes, each_level, finer, first_level, last_level
from models.detail import DetailLevel, TwoLevelVQVAE, sizes_upon
from models.neighbours import ABOVE, BELOW
from models.sampler import Draw, uniform_noise
from pixelcnn import NUMBER, GatedPixelCNN
from scoring.bits import mean_bits, told_of_first
from scoring.levels import Coded, frequency_bits, rate_distortion, second_level
from scoring.metrics import code_lengths
from training.coded_slices import CodedSlices
from training.detail_prior_stage import DetailPriorStage
from training.detail_stage import DetailStage
from training.loop import FitSettings, fit
from training.settings import Settings
from utils import Run
from vqvae import VQVAE

K, DETAIL_K = 12, 10
FRAME = Frame(4, 4, 32, 40, 40, 56)
STAYS, TURNS = 0.9, 0.1  # chances by which a slice is taken as it is, or mirrored


def levels(downsample: int = 8) -> TwoLevelVQVAE:
    """Two small levels of which nothing is zero, so that nothing hides."""
    torch.manual_seed(0)
    first = VQVAE(K, 8, downsample, width=16, blocks=1).eval()
    detail = DetailLevel(DETAIL_K, 8, width=16, **sizes_upon(first)).eval()
    for parameter in [*first.parameters(), *detail.parameters()]:
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return TwoLevelVQVAE(first, detail).eval().requires_grad_(False)


def prior(num_codes: int, context: int = 0, **more: int) -> GatedPixelCNN:
    conditions = {"position": NUMBER} | ({NEIGHBOUR: 2} if context else {})
    model = GatedPixelCNN(num_codes, 12, 3, 3, conditions=conditions, context=context, **more).eval()
    if model.context is not None:
        torch.nn.init.normal_(model.context.network.out.weight, std=0.5)
    return model.requires_grad_(False)


def run(context: int = 0, detail_context: int = 0) -> Run:
    both = levels()
    data = {"title": "noise", "kind": "slices", "slices_per_subject": 6, "geometry": None, "conditions": {}}
    config = {"data": data, "flags": {"image_size": None}}
    of_detail = prior(DETAIL_K, detail_context, context_features=both.context_channels)
    return Run(both, prior(K, context), FRAME, config, of_detail)


def slices(count: int = 12) -> Split:
    """Noise with a black border, a subject for every three slices."""
    images = np.zeros((count, 40, 56), np.uint8)
    images[:, 4:36, 4:44] = np.random.default_rng(0).integers(1, 256, (count, 32, 40))
    numbers = np.arange(count) % 3
    subjects = [f"s{index // 3}" for index in range(count)]
    return Split(images, subjects, [""] * count, numbers, (numbers / 2).astype(np.float32))


# --------------------------------------------------------------------------- the level


@pytest.mark.parametrize("downsample", [4, 8, 16, 32])
def test_the_second_level_has_twice_as_many_codes_a_side_whatever_the_first_has(downsample):
    both, images = levels(downsample), torch.rand(2, 1, 64, 96)
    codes = both.encode(images)
    assert torch.equal(codes.first, both.first.encode(images))
    assert codes.detail.shape == (2, *(2 * side for side in codes.first.shape[1:]))
    assert codes.detail.min() >= 0 and codes.detail.max() < DETAIL_K
    assert both.decode(codes).shape == images.shape
    assert both.context(codes.first).shape == (2, both.context_channels, *codes.detail.shape[1:])
    with pytest.raises(ValueError, match="at least 2 pixels a side, got 1"):
        DetailLevel(**sizes_upon(VQVAE(K, 8, 2, width=16)))


def test_codes_of_two_pixels_have_no_finer_ones():
    assert Settings(downsample=2).left_out == {"detail", "detail_prior"} == Settings(no_detail=True).left_out
    assert Settings(downsample=4).left_out == set() and Settings(no_sharpen=True).left_out == {"sharpen"}
    with pytest.raises(UserError, match="--stage detail: --downsample 2 leaves no room for a second level"):
        Settings(downsample=2, stage="detail").check()


def test_the_first_level_alone_is_painted_as_before_and_an_untrained_second_one_adds_nothing():
    both = levels()
    codes = both.encode(torch.rand(3, 1, 32, 40))
    assert torch.equal(both.decode(codes.first), both.first.decode(codes.first))
    assert not torch.equal(both.decode(codes), both.first.decode(codes.first))
    untrained = TwoLevelVQVAE(both.first, DetailLevel(DETAIL_K, 8, width=16, **sizes_upon(both.first))).eval()
    assert torch.equal(untrained.decode(codes), both.first.decode(codes.first))


def test_both_sides_of_the_second_level_are_told_what_the_first_paints():
    """The same slices and the same codes mean something else beside another picture."""
    both, images = levels(), torch.rand(1, 1, 32, 40)
    first, other = (both.paint_first(torch.randint(K, (1, 4, 5))) for _ in range(2))
    vectors = both.detail.quantizer.lookup(torch.randint(DETAIL_K, (1, 8, 10)))
    assert (both.detail.latents(images, first) - both.detail.latents(images, other)).abs().min() > 0
    added = [both.detail.paint(vectors, each).picture - each.picture for each in (first, other)]
    assert (added[0] - added[1]).abs().amax() > 1e-3


def test_a_slice_has_the_same_codes_in_any_batch_and_a_uniform_patch_wherever_it_lies():
    both, images = levels(), torch.rand(4, 1, 64, 64)
    images[:, :, 8:24, 32:48] = 0
    images[1, :, 40:56, 8:24] = 0
    together = both.encode(images)
    alone = [both.encode(images[i : i + 1]) for i in range(4)]
    assert torch.equal(together.detail, torch.cat([codes.detail for codes in alone]))
    flat = torch.cat([together.detail[:, 2:6, 8:12].flatten(), together.detail[1, 10:14, 2:6].flatten()])
    assert len(flat.unique()) == 1 and len(together.detail.unique()) > 1


def test_code_maps_of_both_levels_stay_together():
    codes = Codes(torch.arange(6)[:, None, None].expand(6, 2, 3), torch.arange(6)[:, None, None].expand(6, 4, 6))
    some = codes[torch.tensor([4, 1])]
    assert len(codes) == 6 and some.first[:, 0, 0].tolist() == some.detail[:, 0, 0].tolist() == [4, 1]
    assert [len(part) for part in codes.split(4)] == [4, 2] and codes.split(4)[1].detail[0, 0, 0] == 4
    joined = each_level(lambda *parts: torch.cat(parts), *codes.split(4))
    assert torch.equal(joined.first, codes.first) and torch.equal(joined.detail, codes.detail)
    assert first_level(codes) is codes.first and last_level(codes) is codes.detail
    assert first_level(codes.first) is last_level(codes.first) is codes.first
    marked = finer(torch.tensor([[[1, 2], [3, 4]]]))
    assert marked[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


# --------------------------------------------------------------------------- how it learns


def test_training_it_makes_reconstructions_better_and_leaves_the_first_level_alone(tmp_path):
    split = slices(24)
    frame, both = find_frame(split.images, 8), levels()
    before = {name: tensor.clone() for name, tensor in both.first.state_dict().items()}
    both.detail.requires_grad_(True)
    stage = DetailStage(both, split, split, frame, "float32")

    def error(codes: Callable[[Codes], object]) -> float:
        images = split.batch(np.arange(24))
        return float((decode(both, codes(encode_split(both, split, frame)), frame) - images).square().mean())

    fit(stage, FitSettings(12, 6, 0.01, 0, 0, 5.0), tmp_path, resume=False)
    assert error(lambda codes: codes) < 0.8 * error(first_level)
    assert all(torch.equal(before[name], tensor) for name, tensor in both.first.state_dict().items())


def detail_prior_stage(codes: Codes, mirrored: Codes, validation: Codes | None = None) -> DetailPriorStage:
    both, split = levels(), slices(len(codes))
    model = prior(DETAIL_K, context=1, context_features=both.context_channels, dropout=0.0)
    data = CodedSlices(split, split, codes, mirrored, validation or codes)
    return DetailPriorStage(model, both, data, "float32", trained=True)


def maps(count: int = 12) -> Codes:
    return Codes(torch.randint(K, (count, 4, 5)), torch.randint(DETAIL_K, (count, 8, 10)))


def loss(stage: DetailPriorStage, indices: list[int], mirror: float) -> Tensor:
    """Told no neighbour."""
    chance = torch.full((len(indices), stage.chances), 0.1, dtype=torch.float64)
    chance[:, 0] = mirror
    return stage.losses(np.array(indices), chance)["loss"].detach()


def test_the_prior_learns_mirrored_details_beside_the_mirrored_first_level():
    codes, turned = maps(), maps()
    stage, swapped = detail_prior_stage(codes, turned), detail_prior_stage(turned, codes)
    half = detail_prior_stage(codes, Codes(codes.first, turned.detail))
    plain, mirror = loss(stage, [0, 5, 7], STAYS), loss(stage, [0, 5, 7], TURNS)
    assert plain != mirror
    torch.testing.assert_close(mirror, loss(swapped, [0, 5, 7], STAYS))
    torch.testing.assert_close(plain, loss(swapped, [0, 5, 7], TURNS))
    assert loss(half, [0, 5, 7], TURNS) != mirror, "or the first level would not matter"


def test_bits_of_the_second_level_are_those_of_its_maps_beside_their_own_first_level():
    codes, split = maps(9), slices(9)
    stage = detail_prior_stage(maps(9), maps(9), codes)
    scores, model = stage.validate(stage.model), stage.model
    each = [
        code_lengths(
            model(
                codes.detail[i : i + 1],
                torch.tensor([split.positions[i]]),
                features=stage.levels.context(codes.first[i : i + 1]),
            ),
            codes.detail[i : i + 1],
        ).mean()
        for i in np.unique(np.linspace(0, 8, 8).round().astype(int))
    ]
    assert scores["validate_bits"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)
    known, some = split.known, np.arange(9)
    right, wrong = (
        mean_bits(model, codes.detail, known, features=told_of_first(stage.levels, first)(some))
        for first in (codes.first, codes.first.flip(0))
    )
    assert right != wrong
    found = second_level(
        Run(stage.levels, None, FRAME, {}, model), Coded(split, codes), codes, Coded(split, codes), most=4
    )
    assert found["bits_per_code"] == pytest.approx(right) and found["bits_per_slice"] == pytest.approx(80 * right)
    assert found["generalisation_gap"] == pytest.approx(right - found["bits_per_code_train"])
    assert {"bits_per_code_told", "bits_per_code_told_train"} <= found.keys()


def test_frequencies_cost_their_entropy_and_a_rate_is_the_sum_of_both_levels():
    codes = torch.tensor([0, 0, 0, 1]).repeat(4096).view(64, 16, 16)
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert frequency_bits(codes, codes, 4) == pytest.approx(entropy, abs=1e-3)
    assert frequency_bits(torch.zeros(1, 0, 0, dtype=torch.int16), codes, 8) == pytest.approx(3)
    summary = {"ssim": 0.9, "ssim_frame": 0.8, "psnr": 30.0, "mae": 0.1, "sharpness": 0.5}
    better = summary | {"ssim": 0.95}
    scores = {"decoders": {"first": summary, "faithful": better}, "bits_per_slice": 100.0}
    assert rate_distortion(scores | {"detail": {}}) == {}
    rates = rate_distortion(scores | {"detail": {"bits_per_slice": 400.0}})
    assert rates == {"first": {"bits_per_slice": 100.0} | summary, "both": {"bits_per_slice": 500.0} | better}


# --------------------------------------------------------------------------- drawing


def naive(model: GatedPixelCNN, size: tuple[int, int, int], draw: Draw, seed: int, **told: object) -> Tensor:
    """One full forward pass a code."""
    uniform, drawn = uniform_noise(*size, torch.Generator().manual_seed(seed)), torch.zeros(size, dtype=torch.int64)
    known, keep = told.pop("codes", drawn), told.pop("keep", torch.zeros(size, dtype=torch.bool))
    for row in range(size[1]):
        for column in range(size[2]):
            code = draw(model(drawn, **told)[:, :, row, column], uniform[:, row, column, None])[:, 0]
            drawn[:, row, column] = torch.where(keep[:, row, column], known[:, row, column], code)
    return drawn


@pytest.mark.parametrize("maps_told", [0, 1])
def test_a_map_drawn_beside_features_equals_the_naive_loop(maps_told):
    model = prior(6, maps_told, context_features=7).double()
    features = torch.randn(3, 7, 5, 6).double()
    told = {"position": torch.tensor([0.0, 0.4, math.nan]).double(), "features": features}
    if maps_told:
        told |= {"context": torch.randint(-1, 6, (3, 5, 6)), "conditions": {NEIGHBOUR: torch.tensor([0.0, 1.0, 0.0])}}
    completion = {"codes": torch.randint(6, (3, 5, 6)), "keep": torch.rand(3, 5, 6) < 0.4}
    for draw, more in ((Draw(), {}), (Draw(0.7, 4), completion)):
        expected = naive(model, (3, 5, 6), draw, 3, **told, **more)
        how = dict(temperature=draw.temperature, top_k=draw.top_k, generator=torch.Generator().manual_seed(3))
        assert torch.equal(model.sample(3, 5, 6, **how, **told, **more), expected)
    swapped = model.sample(3, 5, 6, generator=torch.Generator().manual_seed(3), **told | {"features": features.flip(0)})
    assert not torch.equal(swapped, naive(model, (3, 5, 6), Draw(), 3, **told))


def test_features_are_always_told_and_have_to_fit():
    model, plain, codes = prior(6, context_features=7), prior(6), torch.zeros(2, 4, 5, dtype=torch.int64)
    for features, said in (
        (None, "features are nothing; expected \\[2, 7, 4, 5\\]"),
        (torch.zeros(2, 6, 4, 5), "features are \\[2, 6, 4, 5\\]"),
        (torch.zeros(1, 7, 4, 5), "features are \\[1, 7, 4, 5\\]"),
    ):
        with pytest.raises(ValueError, match=said):
            model(codes, features=features)
    with pytest.raises(ValueError, match="without context"):
        plain(codes, features=torch.zeros(2, 7, 4, 5))
    assert "context_features" not in plain.arguments and with_context(model, 1) is model


def doubled(it: Run) -> Run:
    return Run(it.vqvae.double(), it.prior.double(), it.frame, it.config, it.detail_prior.double())


def test_slices_of_both_levels_equal_the_naive_loop_code_for_code():
    """The first level as it is drawn alone, then the second, told the first and as much of the slice."""
    it, numbers = doubled(run()), np.array([0, 3, 5])
    draw = Draw(0.9, top_p=0.95)
    samples = draw_samples(it, Request(3, numbers, draw, seed=4))
    position = torch.from_numpy(numbers / 5).float()
    first = naive(it.prior, (3, 4, 5), draw, 4, position=position)
    told = {"position": position, "features": it.vqvae.context(first)}
    detail = naive(it.detail_prior, (3, 8, 10), draw, derive_seed(4, "detail"), **told)
    assert torch.equal(samples.codes.first, first) and torch.equal(samples.codes.detail, detail)
    assert torch.equal(samples.images, decode(it.vqvae, samples.codes, FRAME)[:, 0])


def test_what_is_drawn_anew_of_the_first_level_has_its_details_drawn_anew():
    it, keep = doubled(run()), torch.zeros(4, 5, dtype=torch.bool)
    keep[:2], keep[:, 0] = True, True
    known = encode(it.vqvae.float(), torch.rand(1, 1, 40, 56), FRAME)[0]
    it.vqvae.double()
    samples = draw_samples(it, Request(6, np.arange(6), seed=1, codes=known, keep=keep))
    kept = {"codes": known.detail.expand(6, -1, -1), "keep": finer(keep).expand(6, -1, -1)}
    told = {"position": torch.arange(6) / 5, "features": it.vqvae.context(samples.codes.first)}
    expected = naive(it.detail_prior, (6, 8, 10), Draw(), derive_seed(1, "detail"), **told, **kept)
    assert torch.equal(samples.codes.detail, expected)
    assert (samples.codes.first[:, keep] == known.first[keep]).all()
    assert (samples.codes.detail[:, ~finer(keep)] != known.detail[~finer(keep)]).any()
    alone = draw_samples(it, Request(6, np.arange(6), seed=1, codes=known.first, keep=keep))
    assert torch.equal(alone.codes.first, samples.codes.first), "known codes of the first level alone"


@pytest.mark.parametrize("detail_context", [0, 1])
def test_details_of_a_head_are_told_their_own_first_level_and_the_details_beside(detail_context):
    it = doubled(run(context=1, detail_context=detail_context))
    heads = draw_heads(it, HeadRequest(2, seed=5))
    assert heads.first.shape == (2, 6, 4, 5) and heads.detail.shape == (2, 6, 8, 10)
    assert torch.equal(draw_heads(it, HeadRequest(1, seed=5)).detail, heads.detail[:1])
    for number in range(6):
        beside = {3: None}.get(number, number + (1 if number < 3 else -1))
        side = torch.tensor([math.nan if beside is None else float(ABOVE if number < 3 else BELOW)])
        told = {"features": it.vqvae.context(heads.first[1, number][None])}
        if detail_context:
            told |= {"conditions": {NEIGHBOUR: side}}
            told |= {} if beside is None else {"context": heads.detail[1, beside][None, None]}
        drawn = it.detail_prior.sample(
            *(1, 8, 10, torch.tensor([number / 5], dtype=torch.float32)),
            generator=torch.Generator().manual_seed(derive_seed(5, "detail of a head", 1, number)),
            **told,
        )
        assert torch.equal(drawn[0], heads.detail[1, number])


def test_known_slices_of_a_head_keep_the_codes_of_both_levels():
    it, known = run(context=1, detail_context=1), np.array([True, False, True, True, False, True])
    codes = it.vqvae.encode(torch.rand(6, 1, 32, 40))
    heads = draw_heads(it, HeadRequest(2, seed=5, codes=codes, known=known))
    for found, given in ((heads.first, codes.first), (heads.detail, codes.detail)):
        assert torch.equal(found[1][known], given[known]) and not torch.equal(found[1], given)
