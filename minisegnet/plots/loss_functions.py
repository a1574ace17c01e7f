"""What a loss makes of one pixel: the loss and its gradient, over the true class's probability."""

import numpy as np

from minisegnet.losses.focal import focal_backward, focal_forward
from minisegnet.plots.figures import LOSS_STYLES, figure_of

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
MOST_GAMMAS = 8  # more curves have no line of their own
_POINTS = 199  # from p_t = 0.005 to 0.995
# Of gammas that are neither 0, which is cross-entropy, nor 2, focal loss as it is usually taken:
# no two of these, or of those, have a line or a colour in common.
_OTHER_STYLES = (
    {"color": "#cc79a7", "linestyle": ":"},
    {"color": "#e69f00", "linestyle": "--"},
    {"color": "#000000", "linestyle": (0, (1, 3))},
    {"color": "#56b4e9", "linestyle": (0, (8, 3))},
    {"color": "#d55e00", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
    {"color": "#7f7f7f", "linestyle": (0, (3, 1))},
    {"color": "#8c510a", "linestyle": (0, (2, 1, 6, 1))},
    {"color": "#01665e", "linestyle": (0, (1, 1, 4, 1, 1, 1))},
)


def loss_against_probability(gammas=GAMMAS, marked=None):
    """Focal loss of one pixel, and its gradient, over the probability p_t of the true class.

    A curve per gamma of `gammas`; 0 is cross-entropy. On the right |dL/dz| of the logit z of the
    true class, on a log axis: how much less an easy pixel says is a distance there. `marked` maps
    a label to the p_t of a pixel, which both panels show as a thin line. Raises ValueError for
    more than `MOST_GAMMAS` gammas, for the same one twice, or for one below 0.
    """
    gammas = [float(gamma) for gamma in gammas]
    if len(gammas) > MOST_GAMMAS or len(set(gammas)) < len(gammas):
        raise ValueError(f"the gammas are {', '.join(f'{gamma:g}' for gamma in gammas)}; expected "
                         f"at most {MOST_GAMMAS}, each once")
    p = np.linspace(0.005, 0.995, _POINTS)
    figure, ((values, gradients),) = figure_of(1, 2, 11, 4.8)
    others = iter(_OTHER_STYLES)
    for gamma in gammas:
        style = style_of_gamma(gamma) or next(others)
        loss, gradient = focal_of_one_pixel(p, gamma)
        label = f"γ = {gamma:g}" + (" (cross-entropy)" if gamma == 0 else "")
        values.plot(p, loss, label=label, linewidth=2.2, **style)
        gradients.plot(p, gradient, label=label, linewidth=2.2, **style)
    values.set(ylabel="loss", ylim=(0, 4))
    gradients.set(ylabel="|dL/dz|, log scale", yscale="log", ylim=(1e-5, 2))
    for axes, title in ((values, "loss of one pixel"),
                        (gradients, "gradient at the logit of the true class")):
        axes.set_title(title, pad=8 + 5 * max(map(len, marked or [""])))
        axes.set(xlabel="probability of the true class, $p_t$", xlim=(0, 1))
        axes.grid(alpha=0.3)
        _mark(axes, marked or {})
    values.legend(loc="upper right")
    return figure


def style_of_gamma(gamma):
    """Return the line of a gamma that is a loss of its own, else None."""
    name = {0.0: "ce", 2.0: "focal"}.get(gamma)
    return name and {key: LOSS_STYLES[name][key] for key in ("color", "linestyle")}


def focal_of_one_pixel(p, gamma):
    """Return focal loss and |dL/dz| of the true class's logit z, at each probability of p (P,).

    They come from `focal_forward` and `focal_backward`, a pixel at a time. How the rest is shared
    out among the other classes does not matter: here there is one.
    """
    target = np.zeros((1, 1, 1), int)
    found = []
    for value in p:
        logits = np.log([[[[value, 1 - value]]]])  # (1, 1, 1, 2)
        loss, cache = focal_forward(logits, target, gamma=gamma)
        found.append((loss, abs(focal_backward(1.0, cache)[0, 0, 0, 0])))
    return np.array(found).T


def _mark(axes, marked):
    """Draw a thin line at each p_t, with its label at the top; one line where several meet."""
    by_place = {}
    for label, p_t in marked.items():
        by_place.setdefault(round(float(p_t), 3), []).append(label)
    for p_t, labels in by_place.items():
        axes.axvline(p_t, color="0.4", linewidth=0.8, linestyle=":")
        axes.annotate(", ".join(labels), (p_t, 1), (0, 2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="center", va="bottom", rotation=90,
                      fontsize=8)
