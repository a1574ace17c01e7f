"""Wrong answers to the exercises of lesson 15, and a part of the hint that each must get."""

MISTAKES = [
    ("15.1", """
def diversity(prediction, target):
    counts = np.bincount(prediction.ravel())
    return np.count_nonzero(counts), len(np.unique(target)), float(counts.max() / counts.sum())
""", "pixels with target 255 are counted"),
    ("15.1", """
def diversity(prediction, target):
    is_valid = target != 255
    counts = np.bincount(prediction[is_valid])
    return (np.count_nonzero(counts), len(np.unique(target[is_valid])),
            float(counts.max() / target.size))
""", "of the valid pixels, not of all"),
    ("15.2", """
def renamed_accuracy(matrix):
    return float(np.trace(matrix) / matrix.sum()), float(matrix.max(axis=1).sum() / matrix.sum())
""", "you rename the truth"),
    ("15.2", """
def renamed_accuracy(matrix):
    return float(np.trace(matrix)), float(matrix.max(axis=0).sum())
""", "divide by the sum of the matrix"),
    ("15.2", """
def renamed_accuracy(matrix):
    return float(np.trace(matrix) / matrix.sum())
""", "expected 2"),
    ("15.1", """
def diversity(prediction, target):
    is_valid = target != 255
    counts = np.bincount(prediction[is_valid])
    return (len(np.unique(target[is_valid])), np.count_nonzero(counts),
            float(counts.max() / counts.sum()))
""", "first the classes of the prediction"),
    ("15.1", """
def diversity(prediction, target):
    is_valid = target != 255
    counts = np.bincount(prediction[is_valid])
    return len(counts), len(np.unique(target[is_valid])), float(counts.max() / counts.sum())
""", "count those that are not 0"),
    ("15.1", """
def diversity(prediction, target):
    is_valid = target != 255
    counts = np.bincount((prediction * is_valid).ravel())
    return (np.count_nonzero(counts), len(np.unique(target * is_valid)),
            float(counts.max() / counts.sum()))
""", "select, do not multiply"),
    ("15.1", """
def diversity(prediction, target):
    is_valid = target != 255
    return (len(np.unique(prediction[is_valid])), len(np.unique(target[is_valid])),
            float((prediction == target)[is_valid].mean()))
""", "that is the accuracy"),
    ("15.2", """
def renamed_accuracy(matrix):
    from itertools import permutations
    K = len(matrix)
    best = max(matrix[list(order), range(K)].sum() for order in permutations(range(K)))
    return float(np.trace(matrix) / matrix.sum()), float(best / matrix.sum())
""", "no two columns get the same row"),
    ("15.2", """
def renamed_accuracy(matrix):
    of_columns = matrix.max(axis=0) / matrix.sum(axis=0)
    return float(np.trace(matrix) / matrix.sum()), float(of_columns.mean())
""", "a column with more pixels counts more"),
]
