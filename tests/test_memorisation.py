"""What the search for copies lists."""

from dataclasses import replace

import torch

from scoring.memorisation import Slices, audit_copies, euclidean

SIDE = 20


def at_distance(pixels: torch.Tensor, codes: torch.Tensor) -> Slices:
    """Slices as far from `nothing` as is said: root mean square of pixels, and number of differing codes of 400."""
    images = pixels.float()[:, None, None].expand(-1, 8, 8)
    differing = torch.arange(SIDE * SIDE) < codes[:, None]
    return Slices(images.clone(), differing.long().view(-1, SIDE, SIDE))


NOTHING = at_distance(torch.zeros(3), torch.zeros(3))
HELD_OUT = at_distance(torch.arange(1, 401) / 400, torch.arange(1, 401))


def test_one_in_a_hundred_real_slices_would_be_listed():
    listed = audit_copies(HELD_OUT, HELD_OUT, [NOTHING]).listed
    assert listed.nonzero().flatten().tolist() == [0, 1, 2, 3], "the nearest four of 400"


def test_a_copy_is_near_in_pixels_and_in_codes():
    near, far = 1 / 400, 200 / 400
    samples = at_distance(torch.tensor([near, near, far, far]), torch.tensor([1, 200, 1, 200]))
    audit = audit_copies(samples, HELD_OUT, [NOTHING])
    assert audit.listed.tolist() == [True, False, False, False]
    assert audit.closest(1).tolist() == [0]


def test_parts_that_say_where_they_start_may_come_in_any_order():
    train = at_distance(torch.arange(1, 301), torch.arange(1, 301))
    samples = at_distance(torch.tensor([1, 280, 299]), torch.tensor([1, 280, 299]))
    parts = [Slices(train.images[some], train.codes[some]) for some in (slice(0, 270), slice(270, 300))]
    turned = [replace(part, start=start) for part, start in zip(parts[::-1], (270, 0))]
    for order in (parts, turned):
        audit = audit_copies(samples, HELD_OUT, order)
        assert [audit.samples[space].index.tolist() for space in ("pixels", "codes")] == [[0, 279, 298]] * 2


def test_distances_by_products_are_distances():
    first, second = torch.rand(5, 300), torch.rand(7, 300)
    first[2] = second[4]
    found = euclidean(first, second)
    assert torch.allclose(found, torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist"), atol=0.02)
    assert found[2, 4] < 0.02 and found[2, :4].min() > 3
