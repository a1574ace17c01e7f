"""Connected regions of a mask: how many objects there are, and how large each is.

Row by row the mask is cut into runs of one value; runs of neighbouring rows that touch are joined
(Rosenfeld and Pfaltz 1966, with whole runs in the place of pixels). Everything is done to all
runs at once, so that NumPy has few and large steps to do.
"""

import numpy as np

CONNECTIVITY = 8  # pixels that share a side or a corner belong together: thin things slant


def connected_regions(mask, connectivity=CONNECTIVITY):
    """Return the value and the size in pixels of every connected region of `mask` (H, W).

    Two arrays (R,), the regions in the order of their first pixels. `connectivity` is 8, or 4 for
    sides only. Raises ValueError for another one, or a mask that is not two-dimensional.
    """
    mask = np.ascontiguousarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), not {mask.shape}")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is 4 or 8, not {connectivity}")
    if not mask.size:
        return mask.ravel(), np.zeros(0, np.int64)
    starts = _run_starts(mask)  # (n,)
    values = mask.ravel()[starts]
    lengths = np.diff(starts, append=mask.size)
    upper, lower = _touching(starts, lengths, mask.shape[1], reach=connectivity == 8)
    same = values[upper] == values[lower]
    root = _joined(len(starts), upper[same], lower[same])
    is_root = root == np.arange(len(root))
    region = np.cumsum(is_root) - 1  # of a root
    sizes = np.bincount(region[root], weights=lengths)  # float64, exact up to 2**53 pixels
    return values[is_root], sizes.astype(np.int64)


def _run_starts(mask):
    """Return the flat index of the first pixel of every run of one value, rising."""
    flat = mask.ravel()
    is_start = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[::mask.shape[1]] = True  # no run goes on in the next row
    return np.flatnonzero(is_start)


def _touching(starts, lengths, W, reach):
    """Return two arrays: a run, and one of the next row that touches it, sorted by the latter.

    `reach` is how many pixels further to each side a run touches: 1 at corners, else 0.
    """
    first_of_second_row = np.searchsorted(starts, W)
    lower = np.arange(first_of_second_row, len(starts))
    column = starts[lower] % W
    row_above = starts[lower] - column - W
    left = row_above + np.maximum(column - reach, 0)
    right = row_above + np.minimum(column + lengths[lower] - 1 + reach, W - 1)
    # From the run above its first pixel to the one above its last, all touch it.
    first, last = (np.searchsorted(starts, each, side="right") - 1 for each in (left, right))
    count = last - first + 1
    ends = np.cumsum(count)
    upper = np.arange(count.sum()) + np.repeat(first - ends + count, count)
    return upper, np.repeat(lower, count)


def _joined(n, a, b):
    """Return for each of `n` things the smallest that the pairs `a`, `b` (P,) connect it to."""
    root = np.arange(n)
    while a.size:
        # Whatever has a smaller neighbour hangs itself on the smallest of them; then everyone
        # asks its parent for the parent's parent, until all hang on something that hangs on
        # nothing. Each round joins every group that is not whole to another.
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            further = root[root]
            if (further == root).all():
                break
            root = further
        a, b = root[a], root[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return root
