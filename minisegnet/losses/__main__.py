"""`python -m minisegnet.losses`: the losses on a few pixels, side by side, with every number.

    python -m minisegnet.losses
    python -m minisegnet.losses --probs 0.9 0.1 / 0.6 0.4 --target 0 1 --weights 1 10
    python -m minisegnet.losses --logits 2 0 -1 / 0 1 0 --target 0 2 --times 900 4 --weights sqrt
    python -m minisegnet.losses --plot

Without a prediction: an easy and a hard pixel of a frequent and of a rare class, most of them of
the frequent one, some ignored, and a class that is not there. The first table is ours, compared
with torch where it is installed; the last shows what other projects call the same loss.
"""

import sys
import textwrap

import numpy as np

from minisegnet.cli import ArgumentParser, fraction, number, positive_int
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.weighting import SCHEMES, ClassStatistics, class_weights
from minisegnet.losses.conventions import conventions
from minisegnet.losses.worked_example import Example, explanations, lessons, work_out
from minisegnet.tables import aligned, percent_text, ruled

# What is printed is read by eye.
MOST_ROWS, MOST_CLASSES, MOST_PIXELS = 12, 6, 10 ** 6
WIDTH = 99  # characters of a line
LARGEST = 1e6  # of what is typed, so that nothing overflows
SUM_TOLERANCE = 0.02  # probabilities as people type them: 0.33 0.33 0.33
PROBS = "0.95 0.03 0.02 / 0.40 0.35 0.25 / 0.08 0.90 0.02 / 0.80 0.15 0.05 / 0.50 0.30 0.20"
TARGET, TIMES, IGNORED = (0, 0, 1, 1), (900, 80, 10, 10), 200
OF_PIXELS = tuple(scheme for scheme in SCHEMES if scheme != "effective")  # that counts images
SHARES = 10 ** 9  # shares of a class become counts of so many pixels


def build_parser():
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.losses",
        description="Print cross-entropy, weighted cross-entropy, focal, dice and combined loss "
                    "of a few pixels: values, gradients, shares of the classes, and the "
                    "conventions of other projects.",
        epilog="Type a row per kind of pixel, its numbers separated by blanks, the rows by a "
               "slash between blanks: --probs 0.9 0.1 / 0.6 0.4 --target 0 1. Quotes around "
               "all the rows do no harm, and help with a number like -1e-3.")
    add = parser.add_argument
    add("--probs", nargs="+", metavar="P",
        help="probabilities, a row per kind of pixel, see below")
    add("--logits", nargs="+", metavar="Z", help="logits in place of probabilities")
    add("--target", nargs="+", type=number(int, least=-100), metavar="CLASS",
        help="the label of each row")
    add("--times", nargs="+", type=positive_int, metavar="N",
        help="how many pixels each row stands for (default: 1)")
    add("--weights", nargs="+", metavar="W",
        help=f"a weight per class, or one of {', '.join(OF_PIXELS)} (default: sqrt)")
    add("--frequency", nargs="+", type=number(float, least=0, most=1e12), metavar="F",
        help="shares or counts of the classes, for a scheme of weights (default: those of these "
             "pixels)")
    add("--gamma", type=number(float, least=0, most=100), default=2.0, help="of focal")
    add("--alpha", nargs="+", metavar="A",
        help="of focal: a number per class, one number, or none (default: the weights, as in "
             "minisegnet.train)")
    add("--smooth", type=number(float, least=0, most=LARGEST), default=1.0, help="of dice")
    add("--label-smoothing", type=fraction, default=0.0, help="of cross-entropy")
    add("--ignore-index", type=number(int, least=-100), default=255,
        help="the label that is ignored")
    add("--plot", nargs="?", const="loss_functions.png", metavar="FILE.png",
        help="draw loss and gradient over the probability of the true class (without a name: "
             "loss_functions.png)")
    add("--gammas", nargs="+", type=number(float, least=0, most=100), metavar="N",
        help="of the curves in the plot (default: 0 0.5 1 2 5)")
    return parser


def main(argv=None):
    arguments = build_parser().parse_args(argv)
    example = read_example(arguments)
    figure = None if arguments.plot is None else draw(arguments, example)
    if arguments.gammas is not None and figure is None:
        raise UserError("--gammas goes with --plot; add it")
    columns = work_out(example)
    blocks = (
        (what_is_given(arguments, example), rows_table(example)),
        ("What each loss makes of it", [
            *losses_table(example, columns), *reading(example, columns)]),
        ("How each value comes about", with_titles(explanations(example, columns))),
        ("What the numbers show", paragraphs(lessons(example, columns))),
        ("What other projects make of it", [
            *conventions_table(example, one_alpha(arguments.alpha)),
            *letters(example, from_probs=arguments.logits is None)]))
    print("\n\n".join("\n".join([heading, "", *lines]) for heading, lines in blocks if lines))
    if figure is not None:
        from minisegnet import plots

        plots.save(figure, arguments.plot)
        print(f"\nsee {arguments.plot}")
    return 0


# What is asked for

def read_example(arguments):
    """Return the `Example` of the arguments; UserError where they do not fit each other."""
    rows, labels, times = read_prediction(arguments)
    K = rows.shape[1]
    if arguments.times is not None:
        times = fitting("--times", arguments.times, len(rows), "row")
    if sum(times) > MOST_PIXELS:
        raise UserError(f"--times adds up to {sum(times)} pixels; {MOST_PIXELS} at most")
    labels, times = np.array(labels), np.array(times)
    ignored = labels == arguments.ignore_index
    wrong = sorted(set(labels[~ignored & ((labels < 0) | (labels >= K))].tolist()))
    if wrong:
        raise UserError(f"--target {wrong[0]} is neither a class 0..{K - 1} nor --ignore-index "
                        f"{arguments.ignore_index}")
    if ignored.all():
        raise UserError("every row of --target is ignored; give one of them a class")
    counts = np.bincount(labels[~ignored], times[~ignored], K).astype(np.int64)
    weight = read_weights(arguments, counts)
    if not weight[counts > 0].any():
        raise UserError("every class in --target has weight 0; give one of them a weight")
    alpha = read_alpha(arguments.alpha, weight)
    return Example(rows, labels, times, weight, alpha, arguments.gamma, arguments.smooth,
                   arguments.label_smoothing, arguments.ignore_index)


def read_prediction(arguments):
    """Return logits (R, K), and for each row its label and the number of its pixels."""
    if arguments.probs is not None and arguments.logits is not None:
        raise UserError("--probs and --logits are two ways to say the same; give one of them")
    given = arguments.probs or arguments.logits
    if given is None:
        if arguments.target is not None:
            raise UserError("--target goes with --probs or --logits; add one of them")
        rows = read_rows("--probs", PROBS.split())
        return np.log(rows), [*TARGET, arguments.ignore_index], [*TIMES, IGNORED]
    flag = "--logits" if arguments.probs is None else "--probs"
    rows = read_rows(flag, given)
    if arguments.probs is not None:
        check_probabilities(rows)
        rows = np.log(rows)
    if arguments.target is None:
        raise UserError(f"{flag} needs --target, the label of each row")
    labels = fitting("--target", arguments.target, len(rows), "row")
    return rows, labels, [1] * len(rows)


def read_rows(flag, words):
    """Return the rows (R, K) of numbers that are separated by slashes."""
    rows = []
    for r, text in enumerate(" ".join(words).split("/")):
        rows.append([read_number(f"{flag}, row {r}", word) for word in text.split()])
        if len(rows[r]) != len(rows[0]) or not rows[r]:
            raise UserError(f"{flag}: numbers in row {r}: {len(rows[r])}, in row 0: "
                            f"{len(rows[0])}; give each row one per class, and a slash between "
                            f"rows")
    K = len(rows[0])
    if len(rows) > MOST_ROWS or not 2 <= K <= MOST_CLASSES:
        raise UserError(f"{flag}: {len(rows)} x {K} numbers; this is for reading by eye: up to "
                        f"{MOST_ROWS} rows, 2 to {MOST_CLASSES} classes")
    return np.array(rows)


def read_number(what, word, least=-LARGEST):
    """Return a number from `least` to LARGEST."""
    try:
        value = float(word)
    except ValueError:
        value = np.nan
    if not least <= value <= LARGEST:
        raise UserError(f"{what}: {word!r} is not a number from {least:g} to {LARGEST:g}")
    return value


def check_probabilities(rows):
    """Refuse rows that are no probabilities, or have no logarithm."""
    for r, row in enumerate(rows):
        if (row < 0).any() or abs(row.sum() - 1) > SUM_TOLERANCE:
            raise UserError(f"--probs: row {r} is {' '.join(f'{p:g}' for p in row)}, with the sum "
                            f"{row.sum():g}; probabilities are at least 0 and add up to 1 (any "
                            f"numbers go with --logits)")
        if (row == 0).any():
            raise UserError(f"--probs: row {r} has a probability of 0, whose logarithm no logit "
                            f"can be; write a small one such as 1e-6, or use --logits")


def read_weights(arguments, counts):
    """Return the weights (K,) of --weights; `counts` (K,) are the pixels of the prediction."""
    words, K = arguments.weights or ["sqrt"], counts.size
    if words[0] not in OF_PIXELS:
        if words[0][:1].isalpha():
            raise UserError(f"--weights {words[0]!r} is neither a number nor one of "
                            f"{', '.join(OF_PIXELS)}")
        if arguments.frequency is not None:
            raise UserError("--frequency goes with a scheme of --weights, not with numbers; leave "
                            "it out")
        return np.array(fitting("--weights", [read_number("--weights", word, 0) for word in words],
                                K, "class"))
    if len(words) > 1:
        raise UserError(f"--weights {words[0]} stands alone; leave out {' '.join(words[1:])}")
    if arguments.frequency is not None:
        shares = np.array(fitting("--frequency", arguments.frequency, K, "class"))
        if shares.sum() == 0:
            raise UserError("--frequency is 0 for every class; give one of them a share")
        counts = np.rint(SHARES * shares / shares.sum()).astype(np.int64)
    return class_weights(ClassStatistics(counts[None]), words[0])


def read_alpha(words, weight):
    """Return the alpha of focal: a number per class (K,), one number, or None."""
    if words is None:
        return weight
    if words == ["none"]:
        return None
    alpha = [read_number("--alpha", word, 0) for word in words]
    return alpha[0] if len(alpha) == 1 else np.array(fitting("--alpha", alpha, weight.size,
                                                             "class"))


def one_alpha(words):
    """Return the one number of --alpha if it can be that of a yes-or-no question, else None."""
    if words is None or len(words) > 1 or words == ["none"] or float(words[0]) > 1:
        return None
    return float(words[0])


def fitting(flag, values, count, each):
    """Return `values`; UserError unless they are `count`, one for `each`."""
    if len(values) != count:
        raise UserError(f"{flag}: {len(values)} given, {count} expected, one per {each}")
    return values


def draw(arguments, example):
    """Return the figure of --plot, in which the rows of the example are marked."""
    from minisegnet.plots.loss_functions import GAMMAS, loss_against_probability

    if not arguments.plot.lower().endswith(".png"):
        raise UserError(f"--plot {arguments.plot} is not the name of a .png file")
    rows = {f"row {r}": example.p_true(r) for r in range(len(example.rows))}
    try:
        return loss_against_probability(
            GAMMAS if arguments.gammas is None else arguments.gammas,
            {label: p_t for label, p_t in rows.items() if p_t is not None})
    except ValueError as error:
        raise UserError(f"--gammas: {error}") from error


# What is printed

def what_is_given(arguments, example):
    """Return the heading of the prediction: how many pixels, and where the weights come from."""
    e, words = example, arguments.weights or ["sqrt"]
    weights = "as given"
    if words[0] in OF_PIXELS:
        weights = f"{words[0]}, by " + ("these pixels" if arguments.frequency is None else
                                        "--frequency")
    ignored = f", {e.ignored} more ignored" if e.ignored else ""
    return f"{e.counts.sum()} pixels of {len(e.counts)} classes{ignored}; weights: {weights}"


def rows_table(example):
    """Return the prediction as lines."""
    e, K = example, example.rows.shape[1]
    rows = [("row", "pixels", "target", "weight", *(f"p {c}" for c in range(K)), "p_t", "says")]
    for r, label in enumerate(e.labels):
        p_t = e.p_true(r)
        rows.append((str(r), str(e.times[r]),
                     *(("ignored", "-") if p_t is None else
                       (f"class {label}", f"{e.weight[label]:.4g}")),
                     *(f"{p:.4f}" for p in e.probs[r]), "-" if p_t is None else f"{p_t:.4f}",
                     f"class {e.probs[r].argmax()}"))
    return ruled(rows)


def losses_table(example, columns):
    """Return as lines what each loss makes of it."""
    e, P = example, int(example.counts.sum())
    rows = [("", *(column.title for column in columns)),
            ("value", *(f"{column.value:.4f}" for column in columns))]
    if columns[0].value_apart is not None:
        rows += [("  apart from torch's value", *(rounding(c.value_apart) for c in columns)),
                 ("  apart from torch's gradient", *(rounding(c.gradient_apart) for c in columns))]
    rows.append(("share of the gradient, %", *[""] * len(columns)))
    for c, count in enumerate(e.counts):
        rows.append((f"  class {c}, {percent_text(count / P)} of pixels",
                     *(f"{100 * column.shares[c]:.2f}" for column in columns)))
    rows.append((f"{P} x dL/dlogit of one pixel", *[""] * len(columns)))
    for r, label in enumerate(e.labels):
        if label != e.ignore_index:
            for c in range(e.rows.shape[1]):
                name = f"  row {r}, class {label}:"
                rows.append((f"{name if c == 0 else ' ' * len(name)} logit {c}",
                             *(signed(P * column.gradient[r, c]) for column in columns)))
    return ruled(rows)


def reading(example, columns):
    """Return lines that say how to read the table."""
    P = int(example.counts.sum())
    with_torch = columns[0].value_apart is not None
    sentences = [
        "Torch: its own cross_entropy, and for the others their formulas written in torch; all in "
        "float64, differentiated by autograd." if with_torch else
        "torch is not installed, hence no comparison: pip install 'minisegnet[torch]'",
        "Share: the sum of |dL/dlogit| over the pixels of a class, of that over all pixels.",
        f"dL/dlogit: times {P}, so that ce's is p - 1 at the true class and p at the others"
        + (", but for the smoothing" if example.label_smoothing else "")
        + "; an ignored pixel has 0."]
    if with_torch and any(np.isnan(column.gradient_apart) for column in columns):
        sentences.append("nan: where p_t is 1, autograd has no gradient of this formula; ours "
                         "has one, 0.")
    return paragraphs(sentences)


def conventions_table(example, alpha):
    """Return as lines what each project makes of it."""
    e = example
    rows, first = [("loss", "as in", "value", "/ first", "formula")], {}
    for row in conventions(e.logits, e.target, weight=e.weight, gamma=e.gamma, alpha=alpha,
                           smooth=e.smooth, label_smoothing=e.label_smoothing,
                           ignore_index=e.ignore_index):
        is_new = row.loss not in first
        ours = first.setdefault(row.loss, row.value)
        value, ratio = ("stops", "-") if row.value is None else (
            f"{row.value:.4f}", f"{row.value / ours:.3f}" if ours else "-")
        rows.append((row.loss if is_new else "", row.project, value, ratio, row.formula))
    numbers = aligned([row[:4] for row in rows], left=2)
    width = len(max(numbers, key=len))
    lines = [f"{cells:<{width}}  {row[4]}" for cells, row in zip(numbers, rows)]
    return [lines[0], "-" * len(max(lines, key=len)), *lines[1:]]


def letters(example, from_probs):
    """Return lines that say what the letters of the formulas are."""
    e, P = example, int(example.counts.sum())
    smoothing = "; e: label smoothing" if e.label_smoothing else ""
    return paragraphs([
        f"P = {P}: the valid pixels; A = {P + e.ignored}: all, ignored ones too; K = "
        f"{len(e.counts)}; g = {e.gamma:g}; s = {e.smooth:g}{smoothing}. "
        "q_t: the sigmoid of one logit where its class is the true one, else 1 minus that.",
        "A sigmoid sees one logit alone: the same number added to all logits changes these rows "
        "and no others." + (" Here the logits are log p." if from_probs else ""),
        "smp is segmentation_models.pytorch, mmseg mmsegmentation; as in the sources of smp 0.3.4 "
        "to 0.6.0, mmseg 0.30.0 and 1.2.2, MONAI 1.6.1."])


def rounding(value):
    """Return a difference that is, or should be, of rounding alone."""
    return f"{value:.0e}" if value else "0"


def signed(value):
    """Return a gradient with four decimals, or as much as it takes to show that it is not 0."""
    if value == 0:
        return "0"
    return f"{value:.4f}" if abs(value) >= 5e-4 else f"{value:.0e}"


def paragraphs(sentences):
    """Return each sentence as lines, the later ones indented."""
    return [line for sentence in sentences
            for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")]


def with_titles(pairs):
    """Return (title, text) as lines, the texts below each other and wrapped."""
    margin = max(len(title) for title, _ in pairs) + 2
    lines = []
    for title, text in pairs:
        first, *more = textwrap.wrap(text, WIDTH - margin, subsequent_indent="  ")
        lines += [f"{title:<{margin}}{first}", *(" " * margin + line for line in more)]
    return lines


if __name__ == "__main__":
    sys.exit(run_command(main))
