"""How the first two stages take a batch: what is learned from what, and how much of it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset import Frame, Split, find_frame, spread_over
from inference.coding import encode_split
from pixelcnn import NUMBER, GatedPixelCNN
from scoring.metrics import code_lengths
from training.coded_slices import CodedSlices
from training.loop import scored_slices
from training.prior_stage import PriorStage
from training.reconstruction_loss import reconstruction_loss
from training.vqvae_stage import VQVAEStage, mirrored
from vqvae import VQVAE

STAYS, TURNS = 0.9, 0.1  # chances by which a slice is taken as it is, or mirrored


def heads(count: int = 12, symmetric: bool = True) -> Split:
    """Noise with a black border, a subject for every three slices."""
    images = np.zeros((count, 40, 48), np.uint8)
    images[:, 4:36, 8:40] = np.random.default_rng(0).integers(1, 256, (count, 32, 32))
    subjects = [f"s{index // 3}" for index in range(count)]
    numbers = np.arange(count) % 3
    return Split(images, subjects, [""] * count, numbers, (numbers / 2).astype(np.float32), symmetric)


def first_stage(split: Split) -> VQVAEStage:
    torch.manual_seed(0)
    model = VQVAE(16, 8, 8, width=8, blocks=1)
    stage = VQVAEStage(model, split, split, find_frame(split.images, 8), "float32")
    stage.start(np.arange(8))
    return stage


def chances(count: int, value: float) -> Tensor:
    return torch.full((count, 1), value, dtype=torch.float64)


def test_the_loss_is_reconstruction_and_a_quarter_of_commitment():
    """Not the other way round, which weighs the encoder four times too much."""
    stage = first_stage(heads())
    stage.before_step(50, 100)
    losses = stage.losses(np.arange(4), chances(4, STAYS))
    images = stage.train.batch(np.arange(4), stage.frame)
    out = stage.model(images)
    torch.testing.assert_close(losses["commitment"], out.commitment_loss.detach())
    torch.testing.assert_close(losses["reconstruction"], reconstruction_loss(out.images, images).detach())
    torch.testing.assert_close(losses["loss"] - losses["reconstruction"], 0.25 * losses["commitment"])
    assert losses["commitment"] > 0.01 and losses["loss"].requires_grad


def test_half_of_the_slices_are_mirrored_across_their_rows():
    images = torch.rand(4, 1, 6, 8)
    found = mirrored(images, torch.tensor([0.0, 0.49, 0.51, 1.0]))
    assert torch.equal(found[:2], images[:2, :, torch.arange(5, -1, -1)]) and torch.equal(found[2:], images[2:])


@pytest.mark.parametrize("symmetric", [True, False])
def test_slices_are_mirrored_only_where_that_gives_slices(symmetric):
    stage = first_stage(heads(symmetric=symmetric))
    stage.before_step(50, 100)
    as_they_are, turned = (stage.losses(np.arange(4), chances(4, chance))["loss"] for chance in (STAYS, TURNS))
    assert bool(as_they_are == turned) is not symmetric


def test_codes_of_mirrored_slices_are_those_of_slices_mirrored_within_the_frame():
    split = heads()
    stage = first_stage(split)
    turned = split.images.copy()
    turned[:, 4:36] = split.images[:, 35:3:-1]
    expected = encode_split(stage.model, Split(turned, split.subjects, split.names), stage.frame)
    assert stage.frame == Frame(4, 8, 32, 32, 40, 48)
    assert torch.equal(encode_split(stage.model, split, stage.frame, mirror=True), expected)
    assert not torch.equal(encode_split(stage.model, split, stage.frame), expected)


def test_a_tenth_of_the_steps_train_without_quantising_then_codes_are_placed_anew():
    stage = first_stage(heads())
    codebook = stage.model.quantizer.codebook.clone()
    for step in (0, 9):
        stage.before_step(step, 100)
        losses = stage.losses(np.arange(4), chances(4, STAYS))
        stage.after_step()
        images = stage.train.batch(np.arange(4), stage.frame)
        torch.testing.assert_close(losses["loss"], reconstruction_loss(stage.model.autoencode(images), images))
    assert torch.equal(stage.model.quantizer.codebook, codebook)
    stage.model.encoder.layers[-1].bias.data += 100  # latents have moved far from where the codes were placed
    far = stage.model(images).commitment_loss
    stage.before_step(10, 100)
    assert stage.model(images).commitment_loss < 1e-3 * far
    assert stage.losses(np.arange(4), chances(4, STAYS))["commitment"] > 0


def test_the_codebook_learns_from_all_parts_of_a_batch():
    codebooks = []
    for parts in ([np.arange(8)], [np.arange(3), np.arange(3, 8)]):
        stage = first_stage(heads())
        stage.before_step(50, 100)
        for part in parts:
            stage.losses(part, chances(len(part), STAYS))
        stage.after_step()
        codebooks.append(stage.model.quantizer.codebook.clone())
    torch.testing.assert_close(*codebooks)


def test_muon_leaves_the_kernels_that_meet_pixels_and_everything_that_is_no_kernel():
    model = first_stage(heads()).model
    muon = {id(weight) for weight in model.hidden_weights()}
    images = torch.rand(1, 1, 16, 16)
    seen: dict[str, list[torch.nn.Module]] = {"encoder": [], "decoder": []}
    for name, modules in seen.items():
        for layer in getattr(model, name).modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(lambda layer, *_, modules=modules: modules.append(layer))
    model(images)
    ends = [seen["encoder"][0], seen["decoder"][-1], model.flat_latent]
    assert not muon & {id(layer.weight) for layer in ends}
    kernels = {id(weight) for weight in model.parameters() if weight.dim() > 1}
    assert muon == kernels - {id(layer.weight) for layer in ends}


# --------------------------------------------------------------------------- the prior


def prior_stage(codes: Tensor, mirrored_codes: Tensor | None = None, dropout: float = 0.0, **changes) -> PriorStage:
    torch.manual_seed(0)
    split = heads(len(codes))
    conditions = {"position": NUMBER} | ({"neighbour": 2} if "context" in changes else {})
    told = {"conditions": conditions, "context": changes.get("context", 0)}
    model = GatedPixelCNN(4, 8, 2, dropout=dropout, marginal=tuple(codes.shape[1:]), **told).eval()
    if model.context is not None:
        torch.nn.init.normal_(model.context.network.out.weight)
    validation = changes.get("validation", split)
    data = CodedSlices(
        split,
        validation,
        codes,
        codes if mirrored_codes is None else mirrored_codes,
        changes.get("validation_codes", codes),
    )
    stage = PriorStage(model, data, torch.randn(4, 8), "float32")
    stage.start(np.arange(4))
    return stage


def prior_loss(stage: PriorStage, indices: list[int], mirror: float = STAYS, told: float = 0.9) -> Tensor:
    chance = torch.full((len(indices), stage.chances), told, dtype=torch.float64)
    chance[:, 0] = mirror
    return stage.losses(np.array(indices), chance)["loss"].detach()


def test_the_prior_is_not_told_how_often_a_code_stands_in_the_subjects_own_maps():
    """Four subjects, each with a code that nobody else has: a table that counts the subject gives it a third, one that does not
    a tenth."""
    codes = torch.arange(4).repeat_interleave(3)[:, None, None].expand(-1, 4, 4).contiguous()
    stage = prior_stage(codes)
    torch.nn.init.zeros_(stage.model.head[-1].weight), torch.nn.init.zeros_(stage.model.head[-1].bias)
    for subject in range(4):
        assert prior_loss(stage, [3 * subject, 3 * subject + 1]) > math.log(8)
    full = stage.model.log_marginal.exp()
    assert (full[:, 0, 0] > 0.2).all(), "the table that is drawn with counts everybody"


def test_half_of_the_maps_are_those_of_mirrored_slices():
    codes, turned = torch.randint(0, 4, (2, 12, 4, 4))
    stage, swapped = prior_stage(codes, turned), prior_stage(turned, codes)
    plain, mirror = prior_loss(stage, [0, 5, 7], 0.51), prior_loss(stage, [0, 5, 7], 0.49)
    assert plain != mirror
    torch.testing.assert_close(mirror, prior_loss(swapped, [0, 5, 7], 0.51))
    torch.testing.assert_close(plain, prior_loss(swapped, [0, 5, 7], 0.49))


def test_one_slice_in_twenty_is_learned_without_its_position():
    stage = prior_stage(torch.randint(0, 4, (12, 4, 4)))
    for parameter in stage.model.conditions.parameters():
        torch.nn.init.normal_(parameter)
    known, unknown = prior_loss(stage, [2], told=0.051), prior_loss(stage, [2], told=0.049)
    stage.data.train.positions[:] = 0.25
    assert prior_loss(stage, [2], told=0.051) != known and prior_loss(stage, [2], told=0.049) == unknown


def test_validation_bits_are_those_of_validation_maps_at_their_own_positions():
    split = heads(8)
    validation = Split(split.images, split.subjects, split.names, split.numbers, np.linspace(0, 1, 8, dtype=np.float32))
    codes, held_out = torch.randint(0, 4, (8, 4, 4)), torch.randint(0, 4, (8, 4, 4))
    stage = prior_stage(codes, validation=validation, validation_codes=held_out)
    for parameter in stage.model.conditions.parameters():
        torch.nn.init.normal_(parameter)
    bits = stage.validate(stage.model)["validate_bits"]
    each = [
        code_lengths(stage.model(held_out[i : i + 1], torch.tensor([position])), held_out[i : i + 1]).mean().item()
        for i, position in enumerate(validation.positions.tolist())
    ]
    assert bits == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("mirror", [STAYS, TURNS])
def test_a_map_is_learned_beside_its_neighbour_or_without(mirror):
    """Told 0.9, the slice above is the neighbour, and 9 % of its codes are wrong: none, where they are all alike."""
    codes, turned = torch.arange(12)[:, None, None].expand(2, 12, 4, 4) % torch.tensor([4, 3])[:, None, None, None]
    stage = prior_stage(codes, turned, context=1)
    found, given = {}, {}
    forward = stage.model.forward
    stage.model.forward = lambda *args, **more: given.update(more) or forward(*args, **more)
    for told in (0.9, 0.14):
        found[told] = prior_loss(stage, [3, 4, 5], mirror, told)
        side, context = given["conditions"]["neighbour"], given["context"]
        if told == 0.14:
            assert side.isnan().all() and (context == -1).all()
        else:
            of = codes if mirror == STAYS else turned
            assert side.tolist() == [1, 1, 0] and torch.equal(context[:, 0], of[[4, 5, 4]])
    assert found[0.9] != found[0.14]


def test_told_bits_are_those_of_maps_with_another_below_and_the_mean_of_both_is_chosen_by():
    codes = torch.randint(0, 4, (12, 4, 4))
    stage = prior_stage(codes, context=1)
    for parameter in stage.model.conditions.parameters():
        torch.nn.init.normal_(parameter)
    scores, split = stage.validate(stage.model), stage.data.validation
    stage.model.requires_grad_(False)
    each = [
        code_lengths(
            stage.model(
                codes[i : i + 1],
                torch.tensor([split.positions[i]]),
                {"neighbour": torch.tensor([0.0])},
                context=codes[i - 1 : i],
            ),
            codes[i : i + 1],
        ).mean()
        for i in range(12)
        if i % 3 and i in spread_over(12, scored_slices(12))
    ]
    assert scores["validate_told_bits"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)
    mean = (scores["validate_bits"] + scores["validate_told_bits"]) / 2
    assert stage.score == "validate_mean_bits" and scores[stage.score] == pytest.approx(mean)
    alone = prior_stage(codes)
    assert alone.score == "validate_bits" and set(alone.validate(alone.model)) == {"train_bits", "validate_bits"}


def test_chances_that_a_prior_without_context_needs_are_what_they_were():
    codes = torch.randint(0, 4, (12, 4, 4))
    assert prior_stage(codes, dropout=0.1).chances == 1 + 1 + 2 * 8
    assert prior_stage(codes, dropout=0.1, context=2).chances == 1 + 1 + 2 * 8 + 3 + 2 * 16


def test_in_the_prior_muon_leaves_the_kernels_that_meet_codes_logits_or_what_is_told_as_numbers():
    """The others are the kernels between them; every parameter has one optimizer."""
    prior = GatedPixelCNN(8, 6, 3, 5, conditions={"position": 0}, context=1, mirrored_half=True)
    others = {
        name for name, weight in prior.named_parameters() if all(weight is not one for one in prior.hidden_weights())
    }
    ends = {"layers.0.vertical", "layers.0.horizontal", "head.3"}
    ends |= {f"{told}.network.{end}" for told in ("context", "mirrored_half.encoder") for end in ("first", "out")}
    kernels = {name for name, module in prior.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {name for name in kernels if f"{name}.weight" in others} == ends
    codes = torch.randint(0, 4, (12, 4, 4))
    stage = prior_stage(codes, context=1)
    held = [each for optimizer in stage.optimizers(0.1) for group in optimizer.param_groups for each in group["params"]]
    assert len({id(each) for each in held}) == len(held) == len(list(stage.model.parameters()))
