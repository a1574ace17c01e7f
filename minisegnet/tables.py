"""Plain text for the terminal: numbers, lists of names, and tables."""

import math

MANY_NAMES = 4  # of a longer list the rest is only counted


def number_text(value, spec=".3f"):
    """Return a number in the format `spec`, and a dash for nan, the number that there is not."""
    return "-" if math.isnan(value) else format(value, spec)


def ratio_text(value):
    """Return a ratio with three digits, and without an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def percent_text(share):
    """Return a share as a percentage of two decimals, of two digits where that would be 0."""
    return f"{100 * share:.2f}%" if share >= 0.0005 or not share else f"{100 * share:.2g}%"


def percent(share):
    """Return a share in words: 0.0034 is 0.34 %, and what is there is never called 0 %."""
    if not math.isfinite(share):
        return "-"
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-4 else f"{100 * share:.1g} %"


def listed(names, most=MANY_NAMES):
    """Return names as one text, the rest of a long list as a count."""
    names = [str(name) for name in names]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def aligned(rows, left=1):
    """Return rows of texts as lines with columns of one width.

    The first `left` columns stand to the left, the others, numbers, to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(width) if c < left else text.rjust(width)
                      for c, (text, width) in enumerate(zip(row, widths))).rstrip()
            for row in rows]


def ruled(rows, left=1):
    """Return `aligned` rows with a line of dashes below the first, the heading."""
    dashes = ["-" * max(map(len, column)) for column in zip(*rows)]
    return aligned([rows[0], dashes, *rows[1:]], left)
