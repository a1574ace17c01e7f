"""Which taps of a dilated kernel see the picture."""

import numpy as np

from minisegnet.plots.figures import figure_of

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
_HATCHES = ("", "///", "...", "xxx", "---")


def taps_on_maps(maps, cases, taps=9):
    """How many taps of a kernel fall on the map: by place for several rates, and on average.

    `maps` maps a rate to the counts (H, W), an int per place of the kernel; `cases` maps a label
    to {rate: the average number}. `taps` is the size of the kernel.
    """
    columns = -(-len(maps) // 2)
    rows = -(-len(maps) // columns)
    figure, axes = figure_of(rows, columns + 1, 4.2 + 3.3 * columns, 2.9 * rows + 0.4,
                             width_ratios=[1] * columns + [1.35])
    panels = [axes[r, c] for r in range(rows) for c in range(columns)]
    for axes_of_rate, (rate, seen) in zip(panels, maps.items()):
        _places(axes_of_rate, seen, taps)
        axes_of_rate.set_title(f"rate {rate}: {seen.mean():.2f} of {taps}", fontsize="medium")
    for unused in panels[len(maps):]:
        unused.set_axis_off()
    for below in axes[1:, columns]:
        below.remove()
    bars = axes[0, columns]
    bars.set_subplotspec(bars.get_gridspec()[:, columns])
    _bars(bars, cases, taps)
    H, W = next(iter(maps.values())).shape
    figure.suptitle(f"taps of a {taps}-tap kernel that see a map of {H}x{W}, by place")
    return figure


def _places(axes, seen, taps):
    axes.imshow(seen, cmap="cividis", vmin=0, vmax=taps, interpolation="nearest")
    axes.set(xticks=(), yticks=())
    # The counts are constant in rectangles: a number in each is enough.
    for top, bottom in _runs(seen):
        for left, right in _runs(seen[top].reshape(-1, 1)):
            axes.text((left + right - 1) / 2, (top + bottom - 1) / 2, seen[top, left],
                      ha="center", va="center", fontsize=10,
                      color="black" if seen[top, left] > 0.55 * taps else "white")


def _runs(rows):
    """Return (start, stop) of each run of equal rows of an array (R, ...)."""
    starts = [0, *(1 + np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)))]
    return list(zip(starts, [*starts[1:], len(rows)]))


def _bars(axes, cases, taps):
    rates = sorted({rate for of_case in cases.values() for rate in of_case})
    styles = {rate: {"color": _COLOURS[i % len(_COLOURS)], "hatch": _HATCHES[i % len(_HATCHES)]}
              for i, rate in enumerate(rates)}
    y, ticks, labelled = 0.0, [], set()
    for of_case in cases.values():
        first = y
        for rate, mean in of_case.items():
            axes.barh(y, mean, 0.8, edgecolor="white", linewidth=0,
                      label=None if rate in labelled else f"rate {rate}", **styles[rate])
            axes.text(mean + 0.1, y, f"{mean:.1f}  (rate {rate})", va="center", fontsize=9)
            labelled.add(rate)
            y += 1
        ticks.append((first + y - 1) / 2)
        y += 0.7
    axes.set_yticks(ticks, list(cases), fontsize=9)
    axes.invert_yaxis()
    axes.axvline(taps, color="0.5", linewidth=1, linestyle=":")
    axes.set(xlim=(0, taps + 0.3), xlabel=f"taps that see the picture, of {taps}, on average")
    axes.spines[["top", "right"]].set_visible(False)
