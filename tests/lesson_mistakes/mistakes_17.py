"""Wrong answers to the exercises of lesson 17, and a part of the hint that each must get."""

MISTAKES = [
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    scores = []
    for draw in draws:
        pooled = matrices[draw].sum(axis=0)
        hits = np.diagonal(pooled)
        union = pooled.sum(axis=0) + pooled.sum(axis=1) - hits
        scores.append((hits / np.maximum(union, 1)).mean())
    return np.array(scores)
""", "leave it out of that draw's mean"),
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    def iou(matrix):
        hits = np.diagonal(matrix)
        union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
        return (hits[union > 0] / union[union > 0]).mean()

    return np.array([iou(matrix) for matrix in matrices])[draws].mean(axis=1)
""", "pool the matrices first"),
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    pooled = matrices[draws].sum(axis=1)
    hits = np.diagonal(pooled, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):
        iou = hits / (pooled.sum(axis=1) + pooled.sum(axis=2) - hits)
    return iou.mean(axis=1)
""", "divides 0 by 0"),
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    pooled = matrices[draws].sum(axis=1)
    hits = np.diagonal(pooled, axis1=1, axis2=2)
    both = pooled.sum(axis=1) + pooled.sum(axis=2)
    return np.array([(2 * h[b > 0] / b[b > 0]).mean() for h, b in zip(hits, both)])
""", "that is dice"),
    ("17.2", """
def difference_interval(first, second):
    return np.quantile(second, [0.025, 0.975]) - np.quantile(first, [0.025, 0.975])
""", "has not been taken out"),
    ("17.2", """
def difference_interval(first, second):
    return np.quantile(first - second, [0.025, 0.975])
""", "second minus first"),
    ("17.2", """
def difference_interval(first, second):
    return np.quantile(second - first, [0.05, 0.95])
""", "2.5 % on either side"),
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    scores = []
    for draw in draws:
        pooled = matrices[draw].sum(axis=0)
        hits = np.diagonal(pooled)
        union = pooled.sum(axis=0) + pooled.sum(axis=1) - hits
        there = pooled.sum(axis=1) > 0
        scores.append((hits[there] / union[there]).mean())
    return np.array(scores)
""", "its IoU is 0"),
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    scores = []
    for draw in draws:
        pooled = matrices[np.unique(draw)].sum(axis=0)
        hits = np.diagonal(pooled)
        union = pooled.sum(axis=0) + pooled.sum(axis=1) - hits
        there = union > 0
        scores.append((hits[there] / union[there]).mean())
    return np.array(scores)
""", "drawn twice counts twice"),
    ("17.1", """
def resampled_mean_iou(matrices, draws):
    scores = []
    for draw in draws:
        pooled = matrices[draw].sum(axis=0)
        hits = np.diagonal(pooled)
        union = pooled.sum(axis=0) + pooled.sum(axis=1)
        there = union > 0
        scores.append((hits[there] / union[there]).mean())
    return np.array(scores)
""", "counts the hits twice"),
    ("17.2", """
def difference_interval(first, second):
    return np.percentile(second - first, [0.025, 0.975])
""", "takes per cents"),
    ("17.2", """
def difference_interval(first, second):
    return np.quantile(np.sort(second) - np.sort(first), [0.025, 0.975])
""", "takes the pairs apart"),
    ("17.2", """
def difference_interval(first, second):
    difference = second - first
    error = difference.std() / np.sqrt(len(difference))
    return np.array([difference.mean() - 1.96 * error, difference.mean() + 1.96 * error])
""", "are no more pictures"),
]
