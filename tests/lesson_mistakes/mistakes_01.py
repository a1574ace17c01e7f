"""Wrong answers to the exercises of lesson 1, and a part of the hint that each must get."""

MISTAKES = [
    ("1.1", """
def scores_of_constant(f, k):
    iou = np.zeros_like(f)
    iou[k] = 1.0
    return f[k], iou, iou.mean()
""", "that is its recall"),
    ("1.1", """
def scores_of_constant(f, k):
    iou = np.zeros_like(f)
    iou[k] = f[k]
    return f[k], iou, f[k]
""", "the mean is over all K classes"),
    ("1.1", """
def scores_of_constant(f, k):
    iou = np.zeros_like(f)
    iou[k] = f[k]
    return 1 / len(f), iou, iou.mean()
""", "accuracy of uniform guessing"),
    ("1.1", """
def scores_of_constant(f, k):
    iou = f.copy()
    return f[k], iou, iou.mean()
""", "only class k is ever hit"),
    ("1.1", """
def scores_of_constant(f, k):
    iou = np.full_like(f, np.nan)
    iou[k] = f[k]
    return f[k], iou, np.nanmean(iou)
""", "0 over something is 0"),
    ("1.1", """
def scores_of_constant(f, k):
    iou = np.zeros_like(f)
    iou[k] = f[k]
    return f[k], iou, 1 / len(f)
""", "take the mean of the IoUs"),
    ("1.2", """
def blind_iou(f, q):
    return f * q / f
""", "is the recall"),
    ("1.2", """
def blind_iou(f, q):
    return f * q / (f + q)
""", "take them away once"),
    ("1.2", """
def blind_iou(f, q):
    return 2 * f * q / (f + q)
""", "that is Dice"),
    ("1.2", """
def blind_iou(f, q):
    return np.minimum(f, q) / np.maximum(f, q)
""", "is the most that could be hit"),
    ("1.2", """
def blind_iou(f, q):
    return f / (2 - f)
""", "is right for q = f only"),
    ("1.2", """
def blind_iou(f, q):
    return f / (1 + (len(f) - 1) * f)
""", "is right for q = 1 / K only"),
    ("1.3", """
def what_follows(accuracy, iou):
    return accuracy, accuracy * iou, 1 - accuracy * iou
""", "you have multiplied"),
    ("1.3", """
def what_follows(accuracy, iou):
    return accuracy, accuracy / iou, 1 - accuracy
""", "1 - accuracy is all that is wrong"),
    ("1.3", """
def what_follows(accuracy, iou):
    return accuracy, accuracy / iou, accuracy / iou - accuracy
""", "but inside the union"),
    ("1.3", """
def what_follows(accuracy, iou):
    return accuracy, iou, 1 - iou
""", "that is the IoU"),
    ("1.3", """
def what_follows(accuracy, iou):
    return iou, accuracy / iou, 1 - accuracy / iou
""", "the hits are the accuracy"),
]
