"""Class imbalance, the subject: how to see it, and what each cure does about it."""

from minisegnet.imbalance.weighting import SCHEMES, ClassStatistics, class_weights

__all__ = ["SCHEMES", "ClassStatistics", "class_weights"]
