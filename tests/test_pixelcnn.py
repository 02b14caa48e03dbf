"""Laws of the prior and its sampler."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.adapting import for_maps_of, told_of, with_context
from models.marginal import PositionalMarginal, positional_marginal
from models.sampler import Draw, as_noise, uniform_noise
from pixelcnn import NUMBER, ConditionEncoder, GatedPixelCNN
from scoring.metrics import CodeUsage, code_lengths

POSITION = {"position": NUMBER}
SIZES = [(11, 7), (1, 6), (5, 1), (1, 1), (4, 9)]


def small(**changes) -> GatedPixelCNN:
    """A prior whose every parameter is random, biases and location maps included, so that nothing hides in a zero; the
    head's ReLUs are smooth, since a gradient that they happen to cut off would look like a blind spot."""
    model = GatedPixelCNN(**(dict(num_codes=6, channels=5, layers=3, first_kernel=5) | changes)).double().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    model.head[0] = model.head[2] = torch.nn.Softplus()
    if model.log_marginal is not None:
        model.log_marginal.copy_(torch.randn_like(model.log_marginal))
    return model


def influence(model: GatedPixelCNN, height: int, width: int, position: torch.Tensor | None) -> torch.Tensor:
    """`[h*w, h*w]` bool: does the logit at (row) change with the code embedding at (column)?"""
    codes = torch.randint(0, model.num_codes, (1, height, width))
    table = model.embedding.weight.detach()
    embedded = table[codes].requires_grad_()
    model.embedding.forward = lambda _: embedded  # gradients with respect to what stands at each place
    logits = model(codes, position)[0].sum(0)
    rows = []
    for place in range(height * width):
        (gradient,) = torch.autograd.grad(logits.flatten()[place], embedded, retain_graph=True, allow_unused=True)
        rows.append(
            torch.zeros(height * width, dtype=torch.bool)
            if gradient is None
            else (gradient[0].abs().sum(-1) > 0).flatten()
        )
    return torch.stack(rows)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("height, width", SIZES)
def test_no_future_code_leaks_and_no_past_code_is_blind(height, width, conditioned):
    model = small(layers=12, conditions=POSITION if conditioned else {}, location=conditioned)
    seen = influence(model, height, width, torch.tensor([0.3]).double() if conditioned else None)
    places = height * width
    expected = torch.ones(places, places).tril(-1).bool()
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("layers", range(1, 16))
def test_receptive_field_grows_without_a_blind_spot(layers, conditioned):
    height, width = 11, 7
    model = small(layers=layers, first_kernel=3, conditions=POSITION if conditioned else {}, location=conditioned)
    seen = influence(model, height, width, torch.tensor([0.3]).double() if conditioned else None)
    for place in range(height * width):
        row, column = divmod(place, width)
        for other in range(height * width):
            up, right = row - other // width, other % width - column
            # each layer reaches one row up and one column to either side; the first sees strictly above, strictly left
            reached = (up == 0 and -layers <= right < 0) or (0 < up <= layers and abs(right) <= layers)
            assert seen[place, other] == reached, (place, other)


def test_conditions_change_every_logit_and_can_be_switched_off():
    codes = torch.randint(0, 6, (2, 4, 5))
    model = small()
    low, high = (model(codes, torch.full((2,), value).double()) for value in (0.1, 0.9))
    assert ((low - high).abs() > 1e-9).all()
    nothing = model(codes)
    assert torch.equal(nothing, model(codes, torch.full((2,), math.nan).double()))
    mixed = model(codes, torch.tensor([0.1, math.nan]).double())
    assert torch.allclose(mixed[0], low[0]) and torch.allclose(mixed[1], nothing[1])
    plain = small(conditions={})
    assert torch.equal(plain(codes, torch.tensor([0.1, 0.2])), plain(codes))


def test_location_matters_and_can_be_switched_off():
    model, codes = small(layers=1, first_kernel=3), torch.zeros(1, 9, 9, dtype=torch.int64)
    inside = model(codes)[0, :, 3:6, 3:6].flatten(1)
    assert (inside - inside[:, :1]).abs()[:, 1:].min() > 1e-9
    inside = small(layers=1, first_kernel=3, location=False)(codes)[0, :, 3:6, 3:6].flatten(1)
    assert (inside - inside[:, :1]).abs().max() < 1e-12


def naive_sample(
    model, batch, height, width, draw, seed, position=None, codes=None, keep=None, conditions=None, context=None
):
    """One full forward pass a code."""
    uniform = uniform_noise(batch, height, width, torch.Generator().manual_seed(seed))
    drawn = torch.zeros(batch, height, width, dtype=torch.int64)
    for row in range(height):
        for column in range(width):
            logits = model(drawn, position, conditions, context=context)[:, :, row, column]
            code = draw(logits, uniform[:, row, column, None])[:, 0]
            if keep is not None:
                keeps = keep.expand(batch, height, width)[:, row, column]
                code = torch.where(keeps, codes.expand(batch, height, width)[:, row, column], code)
            drawn[:, row, column] = code
    return drawn


@pytest.mark.parametrize(
    "layers, height, width, conditioned",
    [(layers, *size, conditioned) for layers in (1, 2, 4) for size in SIZES for conditioned in (False, True)],
)
def test_cached_sampler_equals_the_naive_loop(layers, height, width, conditioned):
    table = {"marginal": (height, width)} if conditioned else {}
    model = small(layers=layers, conditions=POSITION if conditioned else {}, location=conditioned, **table)
    position = torch.tensor([0.0, 0.4, math.nan]).double() if conditioned else None
    known = torch.randint(0, 6, (3, height, width))
    every_other, one_region = torch.rand(3, height, width) < 0.5, torch.zeros(height, width, dtype=torch.bool)
    one_region[: height // 2], one_region[:, : width // 2] = True, True
    for draw, completion in (
        ({}, {}),
        ({"temperature": 0.7}, {}),
        ({"top_k": 2}, {"codes": known, "keep": every_other}),
        ({"top_p": 0.6}, {"codes": known[0], "keep": one_region}),
        ({"temperature": 1.5, "top_k": 4, "top_p": 0.9}, {}),
    ):
        expected = naive_sample(model, 3, height, width, Draw(**draw), 3, position, **completion)
        generator = torch.Generator().manual_seed(3)
        sampled = model.sample(3, height, width, position, generator=generator, **draw, **completion)
        assert torch.equal(sampled, expected), (draw, completion)


def test_every_condition_takes_the_same_road():
    """A number and a class, known and unknown, change the logits and are sampled with as they score."""
    model = small(conditions={"position": NUMBER, "age": NUMBER, "sex": 2})
    codes, position = torch.randint(0, 6, (2, 4, 5)), torch.tensor([0.2, 0.8]).double()
    nothing = model(codes, position)
    for name, values in (("age", [0.3, 0.9]), ("sex", [0, 1])):
        known = {name: torch.tensor(values).double()}
        changed = model(codes, position, known)
        assert ((changed - nothing).abs().amax((1, 2, 3)) > 1e-9).all()
        swapped = model(codes, position, {name: known[name].flip(0)})
        assert ((changed - swapped).abs().amax((1, 2, 3)) > 1e-9).all()
        one = model(codes, position, {name: torch.tensor([math.nan, values[1]]).double()})
        assert torch.allclose(one[0], nothing[0]) and torch.allclose(one[1], changed[1])
    both = {"age": torch.tensor([0.3, math.nan]), "sex": torch.tensor([1.0, 0.0])}
    expected = naive_sample(model, 2, 4, 5, Draw(), 0, position, conditions=both)
    sampled = model.sample(2, 4, 5, position, conditions=both, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampled, expected)
    with pytest.raises(ValueError, match="diagnosis"):
        model(codes, position, {"diagnosis": position})
    with pytest.raises(ValueError, match="sex is a class of 0 to 1"):
        model(codes, position, {"sex": torch.tensor([0.0, 2.0])})


def test_a_number_is_shown_at_many_scales():
    """What rises along the volume, and what turns within an eighth of it, are both linear in what the prior is shown."""
    encoder, shown = ConditionEncoder({"age": NUMBER}, 8, 8), []
    encoder.first["age"].register_forward_pre_hook(lambda _, given: shown.append(given[0].double()))
    numbers = torch.linspace(0, 1, 128).double()
    encoder.double()({"age": numbers})
    for wanted in (numbers, (2 * math.pi * numbers).cos(), (8 * math.pi * numbers).cos()):
        fit = torch.linalg.lstsq(shown[0], wanted[:, None]).solution
        assert (shown[0] @ fit - wanted[:, None]).square().mean() < 0.02 * wanted.var()


@torch.no_grad()
@pytest.mark.parametrize("dropout", [0.1, 0.4])
def test_dropout_leaves_the_mean_of_features_as_it_is(dropout):
    model = small(layers=1, dropout=dropout)
    model.head = torch.nn.Identity()  # features, in which what is kept counts linearly
    codes, many = torch.randint(0, 6, (1, 4, 5)), 8000
    expected = model(codes)
    dropped = model.train()(codes.expand(many, -1, -1), chance=torch.rand(many, model.chances))
    assert (dropped - expected).abs().amax(1).min() > 0, "something is dropped nearly everywhere, or this shows nothing"
    error = (dropped.mean(0) - expected[0]).square().mean() / expected.var()
    assert error < 0.001
    chance = torch.full((1, model.chances), dropout).double()
    assert torch.equal(model(codes, chance=chance), model(codes, chance=chance + 0.5)), "kept from this chance on"
    assert not torch.equal(model(codes, chance=chance), model(codes, chance=chance - 0.01))


@pytest.mark.parametrize("maps", [1, 2])
def test_context_is_seen_everywhere_within_its_reach_and_shows_nothing_of_the_map_itself(maps):
    """The convolutions reach 5 places to all sides."""
    model, height, width = small(layers=12, context=maps), 11, 7
    context = torch.randint(0, 6, (1, maps, height, width))
    embedded = model.context.embedding(context).detach().requires_grad_()
    model.context.embedding.forward = lambda _: embedded
    codes = torch.randint(0, 6, (1, height, width))
    logits = model(codes, context=context)[0].sum(0)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for row, column in ((0, 0), (6, 3), (10, 6), (3, 5)):
        (gradient,) = torch.autograd.grad(logits[row, column], embedded, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0  # [M, h, w]
        assert seen[:, ((rows - row).abs() <= 5) & ((columns - column).abs() <= 5)].all()
        assert not seen[:, rows > row + 5].any(), "nothing below is seen through what was drawn"
        beside = ((rows - row).abs() <= 5) & (columns < column)
        assert seen[:, beside].all(), "farther to the left, through the features of the row"
    forward = model.forward
    model.forward = lambda codes, position: forward(codes, position, context=context)
    places = height * width
    assert torch.equal(influence(model, height, width, None), torch.ones(places, places).tril(-1).bool())


@torch.no_grad()
@pytest.mark.parametrize("height, width", [*SIZES, (6, 3)])
def test_the_mirrored_half_tells_the_second_half_of_the_first_and_of_nothing_else(height, width):
    """A kernel of 3 and one layer, so that nothing else tells a code of what lies beyond the rows next to it."""
    model, codes = small(layers=1, first_kernel=3, mirrored_half=True), torch.randint(0, 6, (1, height, width))
    logits, first = model(codes)[0], height - height // 2
    places = [divmod(place, width) for place in range(height * width)]
    for changed in places:
        other = codes.clone()
        other[0][changed] = (other[0][changed] + 1) % 6
        seen = ((model(other)[0] - logits).abs() > 1e-12).any(0)
        for row, column in places:
            up, right = row - changed[0], changed[1] - column
            around = (up == 0 and right == -1) or (up == 1 and abs(right) <= 1)
            across = abs(height - 1 - row - changed[0])  # rows from the partner to the changed code
            told = row >= first > changed[0] and max(across, abs(right)) <= 5
            assert seen[row, column] == (around or told), (changed, row, column)


@pytest.mark.parametrize("height, width", [*SIZES, (6, 3)])
def test_the_cached_sampler_equals_the_naive_loop_told_its_mirrored_half(height, width):
    model = small(layers=3, mirrored_half=True, marginal=(height, width), temperature=0.7)
    model.mirrored_half.encoder.network.out.weight.data.mul_(10)  # so that other codes come of it
    plain = with_context(model, 0, mirrored_half=False).double().eval()
    plain.head[0] = plain.head[2] = torch.nn.Softplus()
    position = torch.tensor([0.2, math.nan]).double()
    codes, keep = torch.randint(0, 6, (2, height, width)), torch.rand(2, height, width) < 0.4
    for completion in ({}, {"codes": codes, "keep": keep}):
        expected = naive_sample(model, 2, height, width, Draw(), 5, position, **completion)
        drawn = [
            each.sample(2, height, width, position, generator=torch.Generator().manual_seed(5), **completion)
            for each in (model, plain)
        ]
        assert torch.equal(drawn[0], expected)
        first = height - height // 2
        assert torch.equal(drawn[1][:, :first], expected[:, :first]), "of the first half it tells nothing"
    assert height * width < 20 or not torch.equal(*drawn)


@pytest.mark.parametrize("mirrored_half", [False, True])
@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("height, width", [(5, 7), (1, 6), (4, 3)])
def test_the_cached_sampler_equals_the_naive_loop_beside_other_maps(height, width, maps, mirrored_half):
    told_as = {"conditions": {"position": NUMBER, "neighbour": 2}, "context": maps, "mirrored_half": mirrored_half}
    model = small(layers=3, marginal=(height, width), temperature=1.3, **told_as)
    model.told_temperature = 0.6
    position = torch.tensor([0.0, 0.4, math.nan]).double()
    conditions = {"neighbour": torch.tensor([0, 1, math.nan])}
    context = torch.randint(-1, 6, (3, maps, height, width))
    codes, keep = torch.randint(0, 6, (3, height, width)), torch.rand(3, height, width) < 0.4
    context[:2, 0, 0, 0] = 1
    context[2] = -1  # nothing: of the other temperature
    for part in (slice(3), slice(2), slice(2, 3)):
        many = len(position[part])
        told = {"conditions": {"neighbour": conditions["neighbour"][part]}, "context": context[part]}
        for draw, completion in (
            ({"temperature": 0.8}, {}),
            ({"top_k": 3}, {"codes": codes[part], "keep": keep[part]}),
        ):
            expected = naive_sample(model, many, height, width, Draw(**draw), 3, position[part], **completion, **told)
            generator = torch.Generator().manual_seed(3)
            sampled = model.sample(
                many, height, width, position[part], generator=generator, **draw, **completion, **told
            )
            assert torch.equal(sampled, expected), (draw, completion)
    nothing = naive_sample(model, 3, height, width, Draw(), 3, position)
    assert torch.equal(nothing, model.sample(3, height, width, position, generator=torch.Generator().manual_seed(3)))
    if height > 1:
        generator = torch.Generator().manual_seed(3)
        assert not torch.equal(nothing, model.sample(3, height, width, position, generator=generator, context=context))


def test_context_that_is_not_told_is_that_of_unknown_codes_and_a_told_map_has_a_temperature_of_its_own():
    model, codes = small(context=1), torch.randint(0, 6, (2, 4, 5))
    context = torch.randint(0, 6, (2, 4, 5))
    context[1] = -1
    told, nothing = model(codes, context=context), model(codes)
    torch.testing.assert_close(told[1], nothing[1])
    assert ((told[0] - nothing[0]).abs() > 1e-9).any(0).all(), "it says something at every place"
    torch.testing.assert_close(model(codes, context=context[:, None]), told)
    model.temperature, model.told_temperature = 2.0, 0.5
    cooled = model(codes, context=context)
    torch.testing.assert_close(cooled[0], told[0] / 0.5)
    torch.testing.assert_close(cooled[1], told[1] / 2)


def test_a_prior_that_gets_context_keeps_what_it_knows_and_is_told_nothing_yet():
    plain = small(marginal=(4, 5), conditions={"position": NUMBER})
    codes, position = torch.randint(0, 6, (2, 4, 5)), torch.tensor([0.1, 0.8]).double()
    told = with_context(plain, 1).double().eval()
    told.head[0] = told.head[2] = torch.nn.Softplus()
    told = told_of(told, {"position": NUMBER, "neighbour": 2}, ["position"]).double().eval()
    told.head[0] = told.head[2] = torch.nn.Softplus()
    given = {"conditions": {"neighbour": torch.tensor([0.0, 1.0])}, "context": torch.randint(-1, 6, (2, 4, 5))}
    torch.testing.assert_close(told(codes, position, **given), plain(codes, position))
    torch.testing.assert_close(told.context.embedding.weight, plain.embedding.weight)
    torch.nn.init.normal_(told.context.network.out.weight)
    for kept in (for_maps_of(told, 8, 6), told_of(told, {"position": NUMBER}, ["position"])):
        assert kept.context_maps == 1
        for name, value in told.context.state_dict().items():
            torch.testing.assert_close(kept.context.state_dict()[name].to(value), value)
    without = with_context(told, 0)
    assert without.context_maps == 0 and without.arguments.keys() == plain.arguments.keys()
    assert with_context(told, 2).context_maps == 2


def test_a_prior_that_is_told_its_mirrored_half_keeps_what_it_knows_and_is_told_nothing_yet():
    plain, codes = small(context=1, told_temperature=0.8), torch.randint(0, 6, (2, 4, 5))
    told, context = with_context(plain, 1, mirrored_half=True).double().eval(), torch.randint(-1, 6, (2, 4, 5))
    told.head[0] = told.head[2] = torch.nn.Softplus()
    torch.testing.assert_close(told(codes, context=context), plain(codes, context=context))
    torch.testing.assert_close(told.mirrored_half.encoder.embedding.weight, plain.embedding.weight)
    torch.nn.init.normal_(told.mirrored_half.encoder.network.out.weight)
    assert (told(codes)[:, :, 2:] - plain(codes)[:, :, 2:]).abs().min() > 0
    assert with_context(told, 1) is told and with_context(told, 1, mirrored_half=True) is told
    assert with_context(told, 0).mirrored_half is not None, "as it is"
    back = with_context(told, 1, mirrored_half=False)
    assert back.arguments == plain.arguments and back.state_dict().keys() == plain.state_dict().keys()


def test_context_that_does_not_fit_is_refused():
    model, codes, plain = small(context=2), torch.zeros(1, 4, 5, dtype=torch.int64), small()
    assert "context" not in plain.arguments and "told_temperature" not in plain.arguments
    with pytest.raises(ValueError, match="without context"):
        plain(codes, context=codes)
    for wrong, said in ((codes, "expected 2 maps"), (codes.expand(2, 2, 4, 5), "expected 2 maps")):
        with pytest.raises(ValueError, match=said):
            model(codes, context=wrong)
    for code in (-2, 6):
        with pytest.raises(ValueError, match="none of -1"):
            model.sample(1, 4, 5, context=codes.expand(1, 2, 4, 5) + code)


def test_completion_refuses_what_makes_no_sense():
    model, codes = small(), torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="go together"):
        model.sample(1, 4, 5, codes=codes)
    with pytest.raises(ValueError, match="known code is 6"):
        model.sample(1, 4, 5, codes=codes + 6, keep=torch.ones(4, 5, dtype=torch.bool))
    nowhere = model.sample(2, 4, 5, codes=codes - 1, keep=codes.bool(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(nowhere, model.sample(2, 4, 5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the captured sampler is not tested")
def test_captured_sampler_equals_the_naive_loop_on_cuda():
    model = small(layers=3).cuda()
    position, keep = torch.tensor([0.1, 0.9]).double().cuda(), (torch.rand(2, 5, 6) < 0.3).cuda()
    known = torch.randint(0, 6, (2, 5, 6)).cuda()
    model = with_context(model.cpu(), 1).double().cuda()
    torch.nn.init.normal_(model.context.network.out.weight)
    beside = {"context": torch.randint(-1, 6, (2, 5, 6)).cuda()}
    for options in ({}, {"top_k": 3}, {"top_p": 0.7}, {"codes": known, "keep": keep}, beside):
        sampled = model.sample(2, 5, 6, position, generator=torch.Generator().manual_seed(0), **options).cpu()
        plain = model.cpu().sample(
            2,
            5,
            6,
            position.cpu(),
            generator=torch.Generator().manual_seed(0),
            **{name: value.cpu() if torch.is_tensor(value) else value for name, value in options.items()},
        )
        model.cuda()
        assert torch.equal(sampled, plain), options


def test_sampled_map_scores_the_same_logits_when_recomputed(monkeypatch):
    model = small(num_codes=20, channels=16, layers=6).float()
    seen, original = [], Draw.__call__
    monkeypatch.setattr(
        Draw, "__call__", lambda self, logits, uniform: seen.append(logits) or original(self, logits, uniform)
    )
    position = torch.tensor([0.2, 0.8])
    codes = model.sample(2, 6, 8, position)
    recomputed = model(codes, position)
    assert torch.allclose(torch.stack(seen, 2).view(2, 20, 6, 8), recomputed, atol=1e-4)


def test_sampling_is_seeded_and_leaves_the_model_as_it_was():
    model = small().train()
    first, again, other = (model.sample(2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert model.training


def test_samples_follow_the_distribution():
    probabilities = torch.tensor([[0.5, 0.0, 0.3, 0.2]])
    uniform = torch.linspace(0, 1, 10001, dtype=torch.float64)
    drawn = Draw()(probabilities.log().expand(len(uniform), 4), as_noise(uniform, torch.float32)[:, None])
    shares = drawn[:, 0].bincount(minlength=4) / len(uniform)
    assert torch.allclose(shares, probabilities[0], atol=1e-3)
    assert shares[1] == 0
    without_end = torch.tensor([[0.3, 0.7, 0.0, 0.0]]).log().expand(3, 4)
    highest = torch.tensor([[1.0], [1 - 1e-9], [1 - 1e-6]], dtype=torch.float64)
    assert (Draw()(without_end, as_noise(highest, torch.float32)) == 1).all()


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()
    assert (Draw(top_k=2).probabilities(logits)[0] > 0).tolist() == [True, False, True, False]
    assert (Draw(top_p=0.65).probabilities(logits)[0] > 0).tolist() == [True, False, True, False]
    assert (Draw(top_p=0.01).probabilities(logits)[0] > 0).tolist() == [True, False, False, False]
    sharp = Draw(temperature=0.01)(logits.expand(100, 4), torch.rand(100, 1))
    assert (sharp == 0).all()
    for wrong in ({"temperature": 0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}):
        with pytest.raises(ValueError):
            Draw(**wrong)


def test_temperature_divides_what_codes_are_apart_before_anything_is_cut_off():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature in (0.5, 1.0, 3.0):
        apart = Draw(temperature).probabilities(logits).log().diff() * temperature
        torch.testing.assert_close(apart, logits.diff())
    kept = [int((Draw(temperature, top_p=0.8).probabilities(logits) > 0).sum()) for temperature in (0.3, 1.0, 10.0)]
    assert kept == [1, 2, 4], "of .96, .64 + .24 and .29 + .26 + .24 + .21"


def test_positional_marginal_is_a_distribution_near_the_counts():
    codes = torch.randint(0, 5, (200, 3, 4))
    codes[:, 1, 2] = 4
    marginal = positional_marginal(codes, 5, smoothing=1)
    assert torch.allclose(marginal.sum(0), torch.ones(3, 4))
    assert marginal[4, 1, 2] > 0.99 and (marginal > 0).all()


def test_counts_of_one_subject_weigh_as_much_as_what_all_maps_tell():
    """32 maps, as one subject has, are smoothed by 32 draws of the codes' overall frequencies."""
    codes = torch.zeros(64, 1, 2, dtype=torch.int64)
    codes[:, 0, 1] = 1  # overall, each of the two codes has a half
    marginal = positional_marginal(codes[:32], 2)
    assert marginal[0, 0, 0].item() == pytest.approx(0.75, abs=0.01)
    assert positional_marginal(codes, 2)[0, 0, 0].item() == pytest.approx((64 + 16) / 96, abs=0.01)
    subjects = PositionalMarginal([codes], 2, ["a"] * 32 + ["b"] * 32)
    torch.testing.assert_close(subjects.probabilities(), positional_marginal(codes, 2))


def test_start_from_marginal_scores_as_the_marginal():
    codes = torch.randint(0, 6, (500, 4, 5)) % torch.randint(1, 7, (4, 5))
    marginal = positional_marginal(codes, 6, smoothing=0.01)
    by_place = -(marginal * marginal.log2()).sum(0).mean().item()
    overall = CodeUsage.of(codes, 6).entropy
    assert by_place < overall - 0.1
    for table, expected in ((None, overall), ((4, 5), by_place)):
        model = GatedPixelCNN(num_codes=6, channels=4, layers=2, marginal=table).eval()
        torch.nn.init.zeros_(model.head[-1].weight)
        model.start_from_marginal(marginal)
        assert code_lengths(model(codes), codes).mean().item() == pytest.approx(expected, abs=1e-2)
    wider = model(torch.zeros(1, 8, 10, dtype=torch.int64))
    assert wider.shape == (1, 6, 8, 10) and not torch.equal(wider[0, :, 0, 0], wider[0, :, 7, 9])


@pytest.mark.parametrize("dims", [4, 7])
def test_start_from_codebook_makes_similar_codes_similar(dims):
    codebook = torch.randn(6, dims)
    codebook[5] = codebook[4] + 1e-4
    model = GatedPixelCNN(num_codes=6, channels=4, layers=2).eval()
    scale = model.head[-1].weight.std()
    model.start_from_codebook(codebook)
    codes = torch.randint(0, 6, (3, 4, 5))
    swapped = torch.where(codes == 4, 5, codes)
    logits = model(codes) - model.head[-1].bias[:, None, None]
    torch.testing.assert_close(logits, model(swapped) - model.head[-1].bias[:, None, None], atol=1e-3, rtol=0)
    torch.testing.assert_close(logits[:, 4], logits[:, 5], atol=1e-3, rtol=0)
    assert (logits[:, 3] - logits[:, 5]).abs().max() > 0.01
    torch.testing.assert_close(model.head[-1].weight.std(), scale)


def test_the_marginal_without_a_subject_is_that_of_the_others():
    codes, subjects = torch.randint(0, 5, (12, 3, 4)), list("aaabbbbccddd")
    marginal = PositionalMarginal([codes], 5, subjects)
    some = torch.tensor([0, 8, 4, 1])
    found = marginal.log_without(some)
    for table, index in zip(found, some.tolist()):
        others = torch.tensor([subject != subjects[index] for subject in subjects])
        counts = torch.nn.functional.one_hot(codes[others], 5).sum(0).permute(2, 0, 1).float()
        overall = (codes.flatten().bincount(minlength=5) + 1) / (codes.numel() + 5)
        expected = (counts + 3 * overall[:, None, None]) / (int(others.sum()) + 3)  # 12 maps of 4 subjects
        torch.testing.assert_close(table.exp(), expected)
    torch.testing.assert_close(found[0], found[3])
    assert torch.equal(marginal.log_without(some), found), "nothing is left over from the call before"
    both = PositionalMarginal([codes, codes.flip(1)], 5, subjects)
    together = PositionalMarginal([torch.cat([codes, codes.flip(1)])], 5, subjects * 2)
    torch.testing.assert_close(both.log_without(some), together.log_without(some), rtol=0, atol=0)
    torch.testing.assert_close(both.probabilities(), together.probabilities(), rtol=0, atol=0)


def test_training_learns_a_pattern_that_needs_above_left_and_position():
    torch.manual_seed(1)
    position = torch.rand(256)
    codes = torch.zeros(256, 6, 6, dtype=torch.int64)
    codes[:, 0], codes[:, :, 0] = torch.randint(0, 4, (256, 6)), torch.randint(0, 4, (256, 6))
    for row in range(1, 6):
        for column in range(1, 6):
            codes[:, row, column] = (codes[:, row - 1, column] + codes[:, row, column - 1] + (position > 0.5)) % 4
    model = GatedPixelCNN(num_codes=4, channels=24, layers=3, first_kernel=3, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 8e-3)
    for step in range(60):
        some = slice(step % 4 * 64, step % 4 * 64 + 64)
        loss = F.cross_entropy(model(codes[some], position[some]), codes[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inside = F.cross_entropy(model(codes, position), codes, reduction="none")[:, 1:, 1:] / math.log(2)
    assert inside.mean() < 0.2, "2 bits when nothing is learned"
    assert inside[:, 0, 0].mean() < 0.2, "1 bit where the position is not learned: codes further on show it too"
