"""How optimizers walk: the lengths of their steps, their paths over a bowl, the way left to go."""

import numpy as np

from minisegnet.plots.figures import figure_of

# Okabe and Ito's colours without yellow; line styles, so that no line needs its colour.
STYLES = tuple({"color": color, "linestyle": linestyle} for color, linestyle in (
    ("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", "-."), ("#cc79a7", (0, (1, 1))),
    ("#000000", (0, (6, 1, 1, 1, 1, 1)))))
NEAR = 1e-3  # distances below are not shown: who is there has arrived


def walks(steps, paths, curvature, shown=150):
    """Three panels: the steps up a steady slope, paths over a bowl, and the way left to its floor.

    `steps` maps each label to (T,), the length of each step in units of the learning rate.
    `paths` maps labels to (T + 1, 2), the points on the bowl `x @ curvature @ x / 2`, whose floor
    is at 0; of each path the first `shown` steps are drawn. `curvature` is (2, 2), symmetric.
    Both have the same labels, at most five; ValueError for more, or for other ones.
    """
    if list(steps) != list(paths) or len(steps) > len(STYLES):
        raise ValueError(f"steps and paths need the same labels, at most {len(STYLES)}; got "
                         f"{list(steps)} and {list(paths)}")
    figure, ((slope, bowl, distance),) = figure_of(1, 3, 13, 4.4, width_ratios=(3, 4, 3))
    drawn = np.concatenate([path[:shown + 1] for path in paths.values()])
    (low_x, low_y), (high_x, high_y) = drawn.min(axis=0) - 0.15, drawn.max(axis=0) + 0.15
    x, y = np.meshgrid(np.linspace(low_x, high_x, 160), np.linspace(low_y, high_y, 160))
    points = np.stack([x, y], axis=-1)  # (160, 160, 2)
    height = np.einsum("...i,ij,...j->...", points, curvature, points) / 2
    bowl.contour(x, y, height, height.max() * np.geomspace(1e-4, 1, 9), colors="0.75",
                 linewidths=0.8)
    for style, label in zip(STYLES, steps):
        slope.plot(1 + np.arange(len(steps[label])), steps[label], label=label, **style)
        path = np.asarray(paths[label])
        bowl.plot(*path[:shown + 1].T, linewidth=1.2, **style)
        distance.plot(np.linalg.norm(path, axis=1), linewidth=1.2, **style)
    bowl.plot(*next(iter(paths.values()))[0], "o", color="black")
    bowl.annotate("start", next(iter(paths.values()))[0], (4, 6), textcoords="offset points")
    bowl.plot(0, 0, "*", color="black", markersize=12)
    slope.set(xscale="log", yscale="log", xlabel="step", title="on a steady slope",
              ylabel="length of the step, in learning rates")
    bowl.set(title=f"in a bowl: the first {shown} steps", xlabel="first weight",
             ylabel="second weight", aspect="equal")
    distance.set(yscale="log", xlabel="step", title="the way left to the floor",
                 ylabel="distance", ylim=(NEAR, None))
    for axes in (slope, distance):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(steps), handlelength=4)
    return figure
