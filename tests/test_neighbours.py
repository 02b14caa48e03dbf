"""Which slice is whose neighbour, and what the prior is told of it while it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset import Split
from models.neighbours import ABOVE, BELOW, maps_at, neighbours, told_below
from training.told_neighbours import OF_A_MAP, ToldNeighbours

UP, DOWN = 0.9, 0.1  # chances by which the slice above is told, or the one below


def split_of(*scans: tuple[str, str, list[int]]) -> Split:
    """A subject, the name of a scan and its slice numbers, each."""
    subjects = [subject for subject, _, numbers in scans for _ in numbers]
    names = [f"{name}_slice_{number}.nii.png" for _, name, numbers in scans for number in numbers]
    count = [number for _, _, numbers in scans for number in numbers]
    return Split(np.zeros((len(names), 8, 8), np.uint8), subjects, names, np.array(count))


def test_neighbours_are_of_the_same_scan_and_one_number_apart():
    split = split_of(("a", "a_1", [0, 1, 2]), ("a", "a_2", [3, 4]), ("b", "b", [2, 3, 5]), ("b", "b", [4, 5]))
    above, below = split.neighbours(1), split.neighbours(-1)
    assert above.tolist() == [1, 2, -1, 4, -1, 6, -1, -1, 9, -1]
    assert below.tolist() == [-1, 0, 1, -1, 3, -1, 5, -1, -1, 8]
    assert split.neighbours(2).tolist() == [2, -1, -1, -1, -1, -1, 7, -1, -1, -1]


def test_visits_of_one_person_whose_numbers_run_on_are_two_scans():
    split = split_of(("a", "a", [0, 1]), ("a", "a", [2, 3]), ("b", "b", [4]))
    assert split.scans.tolist() == [0, 0, 0, 0, 1]
    split = replace(split, sessions=["MR1"] * 2 + ["MR2"] * 3)
    assert split.scans.tolist() == [0, 0, 1, 1, 2]
    assert split.neighbours(1).tolist() == [1, -1, 3, -1, -1]


def test_slices_without_numbers_have_no_neighbours():
    split = Split(np.zeros((3, 8, 8), np.uint8), ["a"] * 3, ["a_slice_0", "a_slice_1", "a_slice_2"])
    assert (neighbours(split, 2) < 0).all()
    assert (split_of(("a", "a", [3])).neighbours(1) < 0).all()


def test_images_named_by_nothing_but_a_number_are_one_scan_of_their_subject():
    names = ["1.png", "2.png", "3.png", "4.png"]
    split = Split(np.zeros((4, 8, 8), np.uint8), ["a", "a", "b", "b"], names, np.array([1, 2, 3, 4]))
    assert split.neighbours(1).tolist() == [1, -1, 3, -1]


def test_every_slice_of_a_cohort_has_those_beside_it():
    split = split_of(*((name, name, list(range(32))) for name in "abc"))
    below, above = neighbours(split, 2)
    assert below[:3].tolist() == [[-1, -1], [0, -1], [1, 0]] and above[29:32].tolist() == [[30, 31], [31, -1], [-1, -1]]
    assert (below[33:64, 0] == torch.arange(32, 63)).all() and below[32].tolist() == [-1, -1]


def test_a_map_beyond_a_missing_one_is_not_told():
    below, above = neighbours(split_of(("a", "a", [0, 2, 3])), 2)
    assert below.tolist() == [[-1, -1], [-1, -1], [1, -1]] and above.tolist() == [[-1, -1], [2, -1], [-1, -1]]


def test_what_is_told_below_is_the_map_below_and_that_it_lies_there():
    split, codes = split_of(("a", "a", [0, 1, 2]), ("b", "b", [0, 1])), torch.randint(0, 9, (5, 4, 5)).short()
    known, context = told_below(split, codes, 1)
    assert np.array_equal(known["neighbour"], [math.nan, BELOW, BELOW, math.nan, BELOW], equal_nan=True)
    assert torch.equal(context[[1, 2, 4], 0], codes[[0, 1, 3]].long()) and (context[[0, 3]] == -1).all()
    known, context = told_below(split, codes, 2, np.array([2, 4]))
    assert torch.equal(context[0], codes[[1, 0]].long()) and (context[1, 1] == -1).all()
    assert known["neighbour"].tolist() == [BELOW, BELOW] and context.dtype == torch.int64


def told(maps: int = 1, count: int = 12, height: int = 7, width: int = 5) -> ToldNeighbours:
    """Three slices a subject, whose every code says which slice it is of, negated less one where it is mirrored."""
    scans = [(f"s{index}", f"s{index}", [0, 1, 2]) for index in range(count // 3)]
    codes = torch.arange(count)[:, None, None].expand(-1, height, width)
    return ToldNeighbours(split_of(*scans), maps, codes, codes + 1000)


def chances(one: ToldNeighbours, count: int, told: float = 0.9, side: float = UP, wrong: float = 0.0) -> torch.Tensor:
    chance = torch.rand(count, one.chances, dtype=torch.float64)
    chance[:, :OF_A_MAP] = torch.tensor([told, side, wrong])
    return chance


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("side", [UP, DOWN])
def test_the_neighbour_is_on_either_side_or_on_the_only_one_and_mirrored_with_its_map(side, mirror):
    one = told(maps=2)
    mirrored = torch.full((12,), mirror)
    which, context = one.of(np.arange(12), mirrored, chances(one, 12, side=side))
    for index in range(12):
        number = index % 3
        up = number == 0 or (number == 1 and side == UP)
        assert which[index] == (ABOVE if up else BELOW)
        nearest = index + (1 if up else -1)
        assert (context[index, 0] == nearest + 1000 * mirror).all()
        beyond = nearest + (1 if up else -1)
        assert (context[index, 1] == (beyond + 1000 * mirror if number != 1 else -1)).all()


@pytest.mark.parametrize(("chance", "maps"), [(0.549, 0), (0.551, 1), (0.649, 1), (0.651, 2)])
def test_55_of_100_maps_are_told_nothing_and_10_the_nearest_alone(chance, maps):
    one = told(maps=2)
    side, context = one.of(np.arange(12), torch.zeros(12).bool(), chances(one, 12, chance))
    ends = np.arange(12) % 3 != 1  # of scans of three slices: the middle one has no second neighbour
    assert (side.isnan() == (maps == 0)).all()
    assert ((context[:, 0] >= 0).flatten(1).all(1) == (maps > 0)).all()
    assert ((context[:, 1] >= 0).flatten(1).all(1) == torch.from_numpy(ends & (maps > 1))).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_up_to_a_tenth_of_the_told_codes_are_those_of_other_places(share):
    """A map of 10,000 different codes: what is wrong shows, and is evenly of the same map."""
    codes = torch.arange(10000).view(1, 100, 100) + torch.tensor([0, 10000, 20000])[:, None, None]
    one = ToldNeighbours(split_of(("a", "a", [0, 1, 2])), 1, codes, codes)
    _, context = one.of(np.array([0]), torch.zeros(1).bool(), chances(one, 1, wrong=share))
    wrong = context[0, 0] != codes[1]
    assert wrong.double().mean() == pytest.approx(0.1 * share, abs=0.01)
    if share:
        found = (context[0, 0][wrong] - 10000).double()
        assert found.min() >= 0 and found.max() < 10000
        assert found.mean() == pytest.approx(5000, rel=0.15) and found.std() == pytest.approx(10000 / 12**0.5, rel=0.15)


def test_unknown_codes_stay_unknown():
    assert (maps_at(torch.ones(2, 3, 4), torch.tensor([[-1, 1]]))[0, 0] == -1).all()
    one = told(maps=2)
    _, context = one.of(np.array([1]), torch.zeros(1).bool(), chances(one, 1, wrong=1.0))
    assert (context[0, 0] == 2).all() and (context[0, 1] == -1).all()
