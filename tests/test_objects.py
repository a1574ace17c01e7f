"""Connected regions, against a flood fill that does one pixel at a time."""

import numpy as np
import pytest

from minisegnet.imbalance.objects import connected_regions


def flood_fill(mask, connectivity):
    """Return (value, size) of every region, by the definition."""
    H, W = mask.shape
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
             if (dy or dx) and (connectivity == 8 or not (dy and dx))]
    seen, regions = np.zeros((H, W), bool), []
    for y, x in np.ndindex(H, W):
        if seen[y, x]:
            continue
        seen[y, x], stack, size = True, [(y, x)], 0
        while stack:
            size, (cy, cx) = size + 1, stack.pop()
            for ny, nx in ((cy + dy, cx + dx) for dy, dx in steps):
                if 0 <= ny < H and 0 <= nx < W and not seen[ny, nx] \
                        and mask[ny, nx] == mask[y, x]:
                    seen[ny, nx] = True
                    stack.append((ny, nx))
        regions.append((int(mask[y, x]), size))
    return regions


def regions_of(mask, connectivity):
    values, sizes = connected_regions(mask, connectivity)
    return list(zip(values.tolist(), sizes.tolist()))


def drawn(text):
    """Return the mask that rows of digits draw."""
    return np.array([[int(digit) for digit in row] for row in text.split()], np.uint8)


def spiral(side):
    """Return a spiral of 1, one pixel wide, in 0: one run below another for ever."""
    mask = np.zeros((side, side), np.uint8)
    top, left, bottom, right = 0, 0, side - 1, side - 1
    while top < bottom and left < right:
        mask[top, max(0, left - 2):right + 1] = 1
        mask[top:bottom + 1, right] = 1
        mask[bottom, left:right + 1] = 1
        mask[top + 2:bottom + 1, left] = 1
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    return mask


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 11), (16, 5)])
def test_regions_of_noise_are_those_of_a_flood_fill(rng, shape, connectivity):
    for num_values in (1, 2, 3, 40):
        for _ in range(12):
            mask = rng.integers(0, num_values, shape).astype(np.uint8)
            assert regions_of(mask, connectivity) == flood_fill(mask, connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("mask", [
    spiral(31),
    np.kron(np.eye(6, dtype=np.uint8), np.ones((3, 3), np.uint8)),  # blocks that touch at corners
    np.indices((12, 13)).sum(axis=0) % 2,  # a chessboard
    np.repeat(np.arange(20) % 2, 15).reshape(20, 15).T,  # a comb without its back
    np.vstack([np.tile([1, 0], (9, 10)), np.ones((1, 20), int)]),  # and with it, joined at last
], ids=["spiral", "blocks", "chessboard", "stripes", "comb"])
def test_shapes_that_join_late_are_joined(mask, connectivity):
    assert regions_of(mask, connectivity) == flood_fill(mask, connectivity)
    turned = mask[::-1, ::-1]
    assert regions_of(turned, connectivity) == flood_fill(turned, connectivity)


def test_corners_join_with_8_and_not_with_4():
    mask = drawn("100 010 100")
    assert regions_of(mask, 8) == [(1, 3), (0, 6)]
    assert regions_of(mask, 4) == [(1, 1), (0, 5), (0, 1), (1, 1), (1, 1)]


def test_the_right_edge_does_not_touch_the_left_of_the_next_row():
    mask = drawn("0001 1000 0000")
    assert regions_of(mask, 8) == [(0, 10), (1, 1), (1, 1)]


def test_other_types_and_layouts_give_the_same():
    mask = spiral(21)
    expected = regions_of(mask, 8)
    large = mask.astype(np.uint32) * 70000
    assert [(value // 70000, size) for value, size in regions_of(large, 8)] == expected
    wide = np.zeros((42, 63), np.uint8)
    wide[::2, ::3] = mask
    assert regions_of(wide[::2, ::3], 8) == expected
    assert regions_of(np.asfortranarray(mask), 8) == expected


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="2, 2, 3"):
        connected_regions(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="connectivity is 4 or 8, not 6"):
        connected_regions(np.zeros((2, 2), np.uint8), 6)
