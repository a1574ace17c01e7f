"""Where the gradient comes from: beside each other for several losses, and over a run's steps."""

import numpy as np

from minisegnet.plots.figures import figure_of, styles_of

_COLUMNS = 60  # over the steps; more are too thin to follow
_LEAST_WITH_NUMBER = 0.035  # share of a bar that has room for its number


def ledgers_side_by_side(share, states, class_names, palette, rare, of="target class"):
    """Bars of the gradient's shares per loss beside those of the pixels, a row of axes per state.

    `share` (K,) are the shares of the pixels; `states` maps a title ("uniform prediction") to
    {name of a loss: shares (K,)}, and `rare` (K,) bool says which classes are rare. On the right,
    on a log axis, each share as a multiple of the class's share of the pixels: a class with one
    pixel in ten thousand is as visible there as the background.
    """
    order = np.argsort(-share, kind="stable")
    names = list(next(iter(states.values())))
    K = len(order)
    height = max(4.2, 0.9 + 0.27 * K)
    figure, axes = figure_of(len(states), 2, 7.2 + 0.85 * len(names), height * len(states) + 0.6,
                             width_ratios=(1.2 + 0.85 * len(names), 5))
    for (bars, multiples), (title, shares) in zip(axes, states.items()):
        _stacked_bars(bars, {"pixels": share, **shares}, order, palette, rare)
        bars.set_title(f"{title}: the gradient by {of}", pad=20)
        _multiples(multiples, shares, share, order, class_names)
    _legend_of_classes(figure, order, class_names, palette)
    return figure


def _stacked_bars(axes, bars, order, palette, rare):
    """Draw stacked bars {label: shares (K,)}, the rarest class at the bottom."""
    for x, shares in enumerate(bars.values()):
        bottom = 0.0
        for c in order[::-1]:
            colour = np.asarray(palette[c]) / 255
            axes.bar(x, shares[c], 0.8, bottom, color=colour, edgecolor="0.3", linewidth=0.5)
            if shares[c] > _LEAST_WITH_NUMBER:
                axes.text(x, bottom + shares[c] / 2, f"{100 * shares[c]:.0f}", ha="center",
                          va="center", fontsize=8, color=_ink_on(colour))
            bottom += shares[c]
        if rare.any():
            _above(axes, x, _percent(shares[rare].sum()), ha="center")
    if rare.any():
        _above(axes, -0.5, f"the {rare.sum()} rare ", ha="right")
    axes.set_xticks(range(len(bars)), [label.replace(":", ":\n") for label in bars], fontsize=8.5)
    axes.set(ylim=(0, 1), ylabel="share, %")
    axes.set_yticks(np.linspace(0, 1, 6), range(0, 101, 20))
    axes.axvline(0.5, color="0.6", linewidth=1, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)


def _above(axes, x, text, ha):
    axes.annotate(text, (x, 1), xytext=(0, 6), textcoords="offset points", ha=ha, fontsize=8)


def _multiples(axes, shares, of_pixels, order, class_names):
    """Draw each loss's shares / `of_pixels` (K,) as marks on a log axis, a line per class."""
    names, styles = list(shares), styles_of(shares)
    for i, (name, of_loss) in enumerate(shares.items()):
        there = [(y, of_loss[c] / of_pixels[c]) for y, c in enumerate(order)
                 if of_pixels[c] > 0 and of_loss[c] > 0]
        y, x = np.array(there, float).reshape(-1, 2).T
        # One below the other, so that equal ones are seen to be equal and not to be one.
        style = styles[name]
        axes.scatter(x, y + 0.74 * ((i + 0.5) / len(names) - 0.5), s=20, label=name,
                     facecolor="white" if style["hatch"] else style["color"],
                     edgecolor=style["color"], marker=style["marker"], linewidth=0.8, zorder=3)
    for y in range(0, len(order), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="0.95", linewidth=0, zorder=0)
    axes.axvline(1, color="0.3", linewidth=1, zorder=1)
    axes.set_xscale("log")
    _label_log(axes.xaxis)
    axes.set_yticks(range(len(order)), [f"{class_names[c]} {_percent(of_pixels[c])}"
                                        for c in order], fontsize=8.5)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlabel="share of the gradient / share of the pixels")
    axes.set_title("per pixel: 1 is as much as its pixels", fontsize="medium")
    axes.legend(fontsize=8, loc="best")
    axes.grid(axis="x", alpha=0.3)


def ledger_over_steps(records, class_names, palette):
    """The shares of a run's gradient over its steps: by target class, per pixel, and by logit.

    `records` are those of a ledger.jsonl, in order. A column is the mean of as many records as it
    takes for 60 columns; the narrow bar on the left holds the shares of the pixels.
    """
    steps = np.array([record["step"] for record in records], float)
    pixels = np.array([record["pixels"] for record in records], float)  # (R, K)
    share = pixels.sum(axis=0) / max(1, pixels.sum())
    order = np.argsort(-share, kind="stable")
    figure, axes = figure_of(3, 2, 11, 11, width_ratios=(1, 25), sharex="col")
    edges, groups = _columns(steps)
    by_target, by_logit = (_means([record[key] for record in records], groups)
                           for key in ("by_target", "by_logit"))
    of_pixels = _means(pixels / np.maximum(1, pixels.sum(axis=1, keepdims=True)), groups)

    for (bar, panel), means, title in (
            (axes[0], by_target, "which class's pixels the gradient comes from"),
            (axes[2], by_logit, "which class's logit it goes to")):
        _stack(bar, np.array([0, 1]), share[None], order, palette)
        _stack(panel, edges, means, order, palette)
        bar.set(ylabel="share, %", xlim=(0, 1), xticks=())
        bar.set_title("pixels", fontsize="medium")
        bar.set_yticks(np.linspace(0, 1, 6), range(0, 101, 20))
        panel.set(title=title, yticks=(), xlim=(edges[0], edges[-1]))
    _lines_per_pixel(axes[1, 1], edges, by_target, of_pixels, order, palette)
    axes[1, 0].set_axis_off()
    axes[2, 1].set_xlabel("step")
    _mark_switches(axes[:, 1], records)
    _legend_of_classes(figure, order, class_names, palette)
    return figure


def _columns(steps):
    """Return the edges (B+1,) of columns over the steps, and the records (a slice) in each."""
    size = -(-len(steps) // _COLUMNS)
    starts = range(0, len(steps), size)
    apart = (steps[-1] - steps[0]) / (len(steps) - 1) if steps[-1] > steps[0] else 1
    edges = np.array([steps[start] for start in starts] + [steps[-1] + apart])
    return edges, [slice(start, start + size) for start in starts]


def _means(shares, groups):
    """Return the means (B, K) of groups of shares (R, K); one that is missing counts as 0."""
    shares = np.nan_to_num(np.array(shares, float))
    return np.stack([shares[group].mean(axis=0) for group in groups])


def _stack(axes, edges, shares, order, palette):
    """Stack shares (B, K) over columns between edges (B+1,), the rarest class at the bottom."""
    bottom = np.zeros(len(edges))
    for c in order[::-1]:
        top = bottom + np.append(shares[:, c], shares[-1, c])
        axes.fill_between(edges, bottom, top, step="post", facecolor=np.asarray(palette[c]) / 255,
                          edgecolor="0.3", linewidth=0.4)
        bottom = top
    axes.set_ylim(0, 1)


def _lines_per_pixel(axes, edges, shares, of_pixels, order, palette):
    """Draw shares / `of_pixels`, (B, K) each, on a log axis, a line per class over its columns."""
    from matplotlib.patheffects import withStroke

    middle = (edges[:-1] + edges[1:]) / 2
    for c in order:
        there = (shares[:, c] > 0) & (of_pixels[:, c] > 0)  # a rare class is not in every batch
        axes.plot(middle[there], shares[there, c] / of_pixels[there, c], linewidth=1.4, marker="o",
                  markersize=2.5, color=np.asarray(palette[c]) / 255,
                  path_effects=[withStroke(linewidth=2.4, foreground="0.25")])
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set_yscale("log")
    _label_log(axes.yaxis)
    axes.set(title="per pixel: share of the gradient / share of the pixels")
    axes.grid(alpha=0.3)


def _mark_switches(panels, records):
    """Mark the steps from which on another loss was trained, with its name in the first panel."""
    for before, record in zip(records, records[1:]):
        if record["loss"] != before["loss"]:
            for axes in panels:
                axes.axvline(record["step"], color="black", linewidth=1.2, linestyle="--")
            panels[0].annotate(
                record["loss"], (record["step"], 1), xytext=(4, -4), textcoords="offset points",
                va="top", fontsize=8, bbox={"facecolor": "white", "linewidth": 0, "pad": 1.5})


def _label_log(axis):
    """Put plain numbers at every decade, and where they are few, at the threes between them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 3) if high < 2e3 * low else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend_of_classes(figure, order, class_names, palette):
    """Put the classes on the right, in the order of the stack from the top down."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=np.asarray(palette[c]) / 255, edgecolor="0.3", linewidth=0.5,
                     label=class_names[c]) for c in order]
    figure.legend(handles=handles, loc="outside right center", fontsize="small", frameon=False,
                  ncols=-(-len(handles) // 40))


def _ink_on(colour):
    """Return black or white, whichever is read better on `colour` (3,) in 0..1."""
    return "black" if colour @ (0.299, 0.587, 0.114) > 0.5 else "white"


def _percent(share):
    """Return a share as a percentage with two digits."""
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:#.2g}%"
