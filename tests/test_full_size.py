"""Pictures at full size: which slices are where, pixel by pixel."""

import numpy as np
from PIL import Image

from reporting.full_size import GAP, TEXT, beside, shuffled

HEIGHT, WIDTH = 24, 30


def test_the_key_of_the_shuffled_picture_says_which_are_real(tmp_path):
    """Real slices are darker here than drawn ones; every pixel of each is one of the picture."""
    levels = np.arange(20) / 255
    slices = np.ones((20, HEIGHT, WIDTH)) * levels[:, None, None]
    slices[:, 0, 0] = 1
    key = shuffled(slices[:12], slices[12:], tmp_path / "a.png", seed=3)
    assert sorted(key["real"] + key["drawn"]) == list(range(1, 21)) and len(key["real"]) == 12
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    found = {"real": set(), "drawn": set()}
    for name, numbers in key.items():
        for number in numbers:
            row, column = divmod(number - 1, 5)
            top, left = row * (HEIGHT + TEXT + 2 * GAP) + TEXT + GAP, GAP + column * (WIDTH + GAP)
            tile = pixels[top : top + HEIGHT, left : left + WIDTH]
            assert tile[0, 0] == 255 and (tile == tile[1, 1]).sum() == tile.size - 1
            found[name].add(int(tile[1, 1]))
    assert found == {"real": set(range(12)), "drawn": set(range(12, 20))}
    assert key["real"] != list(range(1, 13)), "an order of chance"
    assert shuffled(slices[:12], slices[12:], tmp_path / "b.png", seed=4) != key


def test_slices_beside_each_other_are_enlarged_without_smoothing(tmp_path):
    board = np.indices((HEIGHT, WIDTH)).sum(0) % 2
    beside({"one": board, "other": 1 - board}, tmp_path / "a.png", scale=3)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    tile = pixels[TEXT + GAP : TEXT + GAP + 3 * HEIGHT, GAP : GAP + 3 * WIDTH]
    np.testing.assert_array_equal(tile, np.kron(board, np.ones((3, 3))) * 255)
