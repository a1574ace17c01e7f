"""What became of a few quantities while one knob was turned."""

from typing import NamedTuple

from minisegnet.plots.figures import figure_of

# Okabe and Ito's colours without yellow; a marker and a line style of its own for each line.
_STYLES = (
    {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    {"color": "#d55e00", "marker": "s", "linestyle": "--"},
    {"color": "#009e73", "marker": "D", "linestyle": "-."},
    {"color": "#cc79a7", "marker": "^", "linestyle": ":"},
    {"color": "#000000", "marker": "v", "linestyle": (0, (6, 1, 1, 1))},
    {"color": "#56b4e9", "marker": "P", "linestyle": (0, (8, 2))},
)


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    ylabel: str
    lines: dict  # a name to one number per position of the knob
    is_log: bool = False


def over_a_knob(label, values, panels):
    """One pair of axes per `Panel`, its lines over the positions `values` of a knob.

    The positions stand at equal distances, whatever their numbers: they were chosen, not measured.
    A name has the same style in every panel. Raises ValueError for a line that is not as long as
    `values`, for no panel at all, and for more names than there are styles.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    if not panels or len(names) > len(_STYLES):
        raise ValueError(f"{len(panels)} panels with {len(names)} different lines; expected at "
                         f"least one panel and at most {len(_STYLES)} lines")
    figure, (row,) = figure_of(1, len(panels), 5.5 * len(panels), 4.5)
    for axes, panel in zip(row, panels):
        for name, line in panel.lines.items():
            if len(line) != len(values):
                raise ValueError(f"{name!r} has {len(line)} numbers for {len(values)} positions "
                                 f"of the knob")
            axes.plot(range(len(values)), line, label=name, linewidth=2,
                      **_STYLES[names.index(name)])
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set(title=panel.title, xlabel=label, ylabel=panel.ylabel)
        if panel.is_log:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
