"""What became of a few quantities while one knob was turned."""

from typing import NamedTuple

from minisegnet.plots.figures import figure_of, styles_of

MOST_LINES = 20  # in all panels together; more cannot be told apart
FEW_LINES = 7  # of a panel, whose legend has room in it


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
    if not panels or len(names) > MOST_LINES:
        raise ValueError(f"{len(panels)} panels with {len(names)} different lines; expected at "
                         f"least one panel and at most {MOST_LINES} lines")
    styles = styles_of(names)
    figure, (row,) = figure_of(1, len(panels), 5.5 * len(panels), 4.5)
    for axes, panel in zip(row, panels):
        for name, line in panel.lines.items():
            if len(line) != len(values):
                raise ValueError(f"{name!r} has {len(line)} numbers for {len(values)} positions "
                                 f"of the knob")
            style = {key: styles[name][key] for key in ("color", "linestyle", "marker")}
            axes.plot(range(len(values)), line, label=name, linewidth=2, **style)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set(title=panel.title, xlabel=label, ylabel=panel.ylabel)
        if panel.is_log:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        if len(panel.lines) <= FEW_LINES:
            axes.legend()
        else:
            axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure
