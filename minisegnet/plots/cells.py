"""Numbers in memory as cells: what a matrix was copied from, which thread reads what."""

import numpy as np

from minisegnet.plots.figures import figure_of

MOST_CELLS = 400  # of one array; more have no room for their numbers
_TITLE_CELLS = 7  # that a title is as wide as
_USED = (0.0, 0.447, 0.698)
_IN_VAIN = (0.98, 0.85, 0.65)


def copied_matrices(arrays, count):
    """Several 2-D arrays of indices side by side, each cell with its number and its colour.

    `arrays` maps a title to an array of ints from 0 to `count` - 1, the places that its elements
    were copied from: the same place has the same colour everywhere. Raises ValueError for an
    array with other axes or more than `MOST_CELLS` cells, and for an index out of range.
    """
    for title, array in arrays.items():
        array = np.asarray(array)
        if array.ndim != 2 or not 0 < array.size <= MOST_CELLS:
            raise ValueError(f"{title!r} is {array.shape}; expected two axes and at most "
                             f"{MOST_CELLS} cells")
        if array.min() < 0 or array.max() >= count:
            raise ValueError(f"{title!r} has indices from {array.min()} to {array.max()}; "
                             f"expected 0 to {count - 1}")
    height = max(len(array) for array in arrays.values())
    widths = [max(_TITLE_CELLS, np.shape(array)[1]) for array in arrays.values()]
    figure, (row,) = figure_of(1, len(arrays), 0.5 * sum(widths), 0.8 + 0.42 * height,
                               width_ratios=widths)
    for axes, width, (title, array) in zip(row, widths, arrays.items()):
        _cells(axes, np.asarray(array), np.asarray(array) / max(1, count - 1))
        # Cells of one size in all of them.
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_title(title, fontsize=11, loc="left")
    return figure


def thread_addresses(readings, sector, columns=32):
    """Memory in rows of `columns` cells, and in it what the threads of one warp read at once.

    `readings` maps a title to the places, in elements, that thread 0, 1, ... read: their cells
    carry the thread's number. Memory is fetched in sectors of `sector` elements, between thick
    lines; a dash marks what is fetched and not used. Raises ValueError for places that are
    negative or beyond `MOST_CELLS`, and for rows that are not whole sectors.
    """
    if columns % sector:
        raise ValueError(f"rows of {columns} cells are not whole sectors of {sector}")
    rows = {title: -(-(max(places) + 1) // columns) for title, places in readings.items()}
    for title, places in readings.items():
        if min(places) < 0 or rows[title] * columns > MOST_CELLS:
            raise ValueError(f"{title!r} has places from {min(places)} to {max(places)}; expected "
                             f"0 to {MOST_CELLS - 1}")
    height = max(rows.values())
    figure, axes = figure_of(len(readings), 1, 11, len(readings) * (0.7 + 0.3 * height))
    for (each,), (title, places) in zip(axes, readings.items()):
        _memory(each, np.asarray(places), sector, (height, columns))
        sectors, used = len(np.unique(np.asarray(places) // sector)), len(np.unique(places))
        each.set_title(
            f"{title}: {sectors} {'sector is' if sectors == 1 else 'sectors are'} fetched, {used} "
            f"{'element' if used == 1 else 'elements'} of {sectors * sector} "
            f"{'is' if used == 1 else 'are'} used", fontsize=11)
    return figure


def _memory(axes, places, sector, shape):
    """Draw memory: what is read, what is fetched with it, and the borders of the sectors."""
    is_fetched = np.isin(np.arange(np.prod(shape)) // sector, places // sector).reshape(shape)
    colours = np.where(is_fetched[..., None], _IN_VAIN, 1.0)
    texts = np.where(is_fetched, "-", "").astype(object)
    for thread, place in enumerate(places):
        colours[np.unravel_index(place, shape)] = _USED
        texts[np.unravel_index(place, shape)] = str(thread)
    axes.imshow(colours, interpolation="nearest")
    for (row, column), text in np.ndenumerate(texts):
        is_used = text not in ("", "-")
        axes.text(column, row, text, ha="center", va="center", fontsize=8,
                  color="white" if is_used else "black")
    _grid(axes, shape)
    for border in range(0, shape[1] + 1, sector):
        axes.axvline(border - 0.5, color="black", linewidth=2)
    axes.set_yticks(range(shape[0]), [str(row * shape[1]) for row in range(shape[0])])
    axes.set_ylabel("first element\nof the row")


def _cells(axes, numbers, shades):
    """Draw a cell per element: its number, on a colour by its shade 0..1."""
    axes.imshow(shades, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for (row, column), number in np.ndenumerate(numbers):
        axes.text(column, row, str(number), ha="center", va="center", fontsize=8,
                  color="white" if shades[row, column] < 0.6 else "black")
    _grid(axes, numbers.shape)


def _grid(axes, shape):
    """Draw lines between the cells, and no ticks."""
    rows, columns = shape
    axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color="0.75", linewidth=0.8)
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color="0.75", linewidth=0.8)
    axes.tick_params(length=0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
