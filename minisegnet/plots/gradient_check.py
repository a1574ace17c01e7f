"""How far a difference quotient is from the derivative, over its step."""

import numpy as np

from minisegnet.plots.figures import STYLES, figure_of


def error_over_step(steps, errors, marked=None):
    """Relative errors over the step, both on log axes, a curve per entry of `errors`.

    `steps` are (S,), `errors` maps a label to (S,); an error of 0 or one that is not finite is
    left out. `marked` maps a label to a step, drawn as a thin line. Raises ValueError for more
    than seven curves, or one that has another length than `steps`.
    """
    steps = np.asarray(steps, np.float64)
    if len(errors) > len(STYLES):
        raise ValueError(f"{len(errors)} curves; expected at most {len(STYLES)}")
    figure, ((axes,),) = figure_of(1, 1, 9, 5)
    for (label, of_label), style in zip(errors.items(), STYLES):
        of_label = np.asarray(of_label, np.float64)
        if of_label.shape != steps.shape:
            raise ValueError(f"the curve {label!r} has shape {of_label.shape}, the steps "
                             f"{steps.shape}")
        drawn = np.isfinite(of_label) & (of_label > 0)
        axes.plot(steps[drawn], of_label[drawn], label=label, linewidth=2, markersize=5,
                  markevery=4, **style)
    axes.set(xscale="log", yscale="log", xlabel="step h (coarse on the right)",
             ylabel="relative error",
             title="left arm: rounding; right arm: the curve of the function")
    for label, step in (marked or {}).items():
        axes.axvline(step, color="0.4", linewidth=0.8, linestyle=":")
        axes.annotate(label, (step, 0.02), (4, 0), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=9, color="0.3")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
