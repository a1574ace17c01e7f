"""Predict a picture of any size through windows of one size, in bounded memory.

Windows overlap, and where they do their probabilities are averaged, each with a weight that falls
to the window's border: there the network sees the least of what is around a pixel. The picture is
worked off from top to bottom. Only one row of windows is in memory, on the network's own grid (a
quarter of the window's side for most models), and what leaves is enlarged row by row.
"""

import math

import numpy as np

from minisegnet.ops.upsample import source_positions

# Share of a window's side. Every pixel, but for the picture's border, lies in the middle half of a
# window, and is predicted four times.
OVERLAP = 0.5


def window_origins(length, window, stride):
    """Return where the windows that cover a line of `length` begin, in order, `stride` apart.

    The last one ends where the line ends, so it may begin less than a stride after the one before
    it. A line no longer than `window` has one.
    """
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def blend_weights(size):
    """Return the weight (h, w) float32 of each pixel of a window: sin^2 from border to border.

    Positive everywhere. At an overlap of half a window neighbours add up to 1.
    """
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in size)
    return np.outer(rows, columns).astype(np.float32)


def scaled_size(size, window, scale, cell=1):
    """Return (H, W) of a picture of `size` brought to `scale` (vertical, horizontal) for windows.

    At least `window` (h, w); beyond it rounded to whole cells of the network's grid, so that all
    windows share one grid.
    """
    return tuple(w + cell * max(0, round((length * factor - w) / cell))
                 for length, w, factor in zip(size, window, scale))


def grid_windows(size, window, overlap=OVERLAP, cell=1):
    """Return (tops, lefts) of the windows of a picture of `size`, counted in cells of the grid.

    Raises ValueError if the picture is smaller than a window, or not whole cells larger.
    """
    if any(length < w or (length - w) % cell for length, w in zip(size, window)):
        raise ValueError(f"a picture of {size} cannot be covered by windows of {window} on a grid "
                         f"of {cell} px; bring it to scaled_size first")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; expected a share of the window, 0 to below 1")
    origins = []
    for length, w in zip(size, window):
        cells = math.ceil(w / cell)
        stride = max(1, int((1 - overlap) * cells))  # rounded down: no less overlap than asked for
        origins.append(window_origins(math.ceil(length / cell), cells, stride))
    return tuple(origins)


def predict_windows(predict, image, window, *, overlap=OVERLAP, cell=1, batch_size=2):
    """Yield the blended prediction of `image` (H, W, 3), of a `scaled_size`, from top to bottom.

    `predict` takes windows (N, h, w, 3) of the image's dtype and returns float32 values
    (N, ceil(h / cell), ceil(w / cell), C) that may be averaged: probabilities. The ceil(H / cell)
    rows are (ceil(W / cell), C), each a new array.

    At once in memory: the image, `batch_size` windows with what `predict` needs for them, and as
    many rows as a window has.
    """
    tops, lefts = grid_windows(image.shape[:2], window, overlap, cell)
    h, w = (math.ceil(side / cell) for side in window)
    GH, GW = (math.ceil(side / cell) for side in image.shape[:2])
    blend = blend_weights((h, w))[..., None]
    total, weight = None, np.zeros((h, GW, 1), np.float32)  # of the grid's rows top to top + h
    for top, next_top in zip(tops, [*tops[1:], GH]):
        for start in range(0, len(lefts), batch_size):
            batch = lefts[start:start + batch_size]
            windows = np.stack([image[cell * top:cell * top + window[0],
                                      cell * left:cell * left + window[1]] for left in batch])
            for left, values in zip(batch, predict(windows)):
                if total is None:
                    total = np.zeros((h, GW, values.shape[2]), np.float32)
                total[:, left:left + w] += blend * values
                weight[:, left:left + w] += blend
        # No window further down reaches above its own top: these rows are complete.
        done = next_top - top
        for y in range(done):
            yield total[y] / weight[y]
        for array in (total, weight):
            for y in range(h):  # row by row: NumPy would copy all of them first where they overlap
                array[y] = array[y + done] if y + done < h else 0


def enlarged_rows(rows, height, size):
    """Yield the H rows (C, W) of a grid enlarged bilinearly to `size` (H, W), from top to bottom.

    `rows` are the `height` rows (grid width, C) of the grid. Positions are those of
    `upsample_bilinear_forward`; two enlarged rows are in memory at a time.
    """
    rows = iter(rows)
    above, below, read = None, None, 0
    columns = None
    for first, second, share in zip(*source_positions(height, size[0])):
        while read <= second:
            row = np.ascontiguousarray(next(rows).T)  # (C, grid width)
            if columns is None:
                left, right, u = source_positions(row.shape[1], size[1])
                columns = left, right, u.astype(row.dtype)
            left, right, u = columns
            above, below = below, row[:, left] * (1 - u) + row[:, right] * u
            read += 1
        if first == second:  # the last row of the grid
            yield below.copy()
        else:
            v = below.dtype.type(share)
            yield above * (1 - v) + below * v
