"""What happened over the epochs of a run."""

import numpy as np

from minisegnet.plots.figures import figure_of

# matplotlib's default cycle has ten colours; further classes repeat them in another line style.
_LINE_STYLES = ("-", "--", ":", "-.")


def curves(log, class_names):
    """Losses, mean IoU, active classes and per-class IoU over the epochs of a run's log."""
    figure, ((losses, mean), (active, per_class)) = figure_of(2, 2, 11, 7.5)
    epochs = [record["epoch"] for record in log]
    validated = [record for record in log if record.get("mean_iou") is not None]
    val_epochs = [record["epoch"] for record in validated]
    marker = "o" if len(log) < 3 else None  # a line of one point would be invisible

    losses.plot(epochs, [record["train_loss"] for record in log], label="train", marker=marker)
    losses.plot(val_epochs, [record["val_loss"] for record in validated], label="validation",
                marker=marker)
    losses.set(title="loss", xlabel="epoch", ylim=(0, None))
    losses.legend()

    for key, label in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        mean.plot(val_epochs, [record[key] for record in validated], label=label, marker=marker)
    mean.set(title="validation: accuracy hides what mean IoU shows", xlabel="epoch", ylim=(0, 1))
    mean.legend(loc="lower right")

    K = len(class_names)
    active.step(val_epochs, [record["active_classes"] for record in validated], where="mid",
                marker=marker)
    active.axhline(K, color="0.7", linestyle="--")
    active.set(title=f"active classes (IoU above 0.01) of {K}", xlabel="epoch",
               ylim=(0, K + 0.5))

    for c, name in enumerate(class_names):
        values = [np.nan if record["iou"][c] is None else record["iou"][c]
                  for record in validated]
        per_class.plot(val_epochs, values, label=name, marker=marker,
                       color=f"C{c % 10}", linestyle=_LINE_STYLES[c // 10 % 4])
    per_class.set(title="IoU per class", xlabel="epoch", ylim=(0, 1))
    per_class.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5),
                     ncols=1 + K // 25)
    for axes in (losses, mean, active, per_class):
        axes.grid(alpha=0.3)
    return figure
