"""Wrong answers to the exercises of lesson 2, and a part of the hint that each must get."""

MISTAKES = [
    ("2.1", """
def confusion_matrix(target, prediction, K):
    counts = target != 255
    cell = target[counts] * K + prediction[counts]
    return np.bincount(cell, minlength=K * K).reshape(K, K)
""", "uint8 wraps round at 256"),
    ("2.1", """
def confusion_matrix(target, prediction, K):
    counts = target != 255
    cell = prediction[counts].astype(np.int64) * K + target[counts]
    return np.bincount(cell, minlength=K * K).reshape(K, K)
""", "Rows are the truth"),
    ("2.1", """
def confusion_matrix(target, prediction, K):
    cell = target.astype(np.int64) * K + prediction
    return np.bincount(cell.ravel(), minlength=K * K).reshape(K, K)
""", "whose target is not 255"),
    ("2.1", """
def confusion_matrix(target, prediction, K):
    counts = target != 255
    cell = target[counts].astype(np.int64) * K + prediction[counts]
    return np.bincount(cell).reshape(K, K)
""", "minlength=K * K"),
    ("2.1", """
def confusion_matrix(target, prediction, K):
    target = np.where(target == 255, 0, target).astype(np.int64)
    return np.bincount((target * K + prediction).ravel(), minlength=K * K).reshape(K, K)
""", "counted as class 0"),
    ("2.1", """
def confusion_matrix(target, prediction, K):
    M = np.zeros((K, K))
    counts = target != 255
    np.add.at(M, (target[counts], prediction[counts]), 1)
    return M
""", "dtype float64, expected int64"),
    ("2.1", """
def confusion_matrix(target, prediction, K):
    M = np.zeros((K, K), np.int64)
    counts = target != 255
    M[target[counts], prediction[counts]] += 1
    return M
""", "however often it occurs"),
    ("2.2", """
def iou_and_dice(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    both = truth + called
    nan = np.full(both.shape, np.nan)
    return (np.divide(hits, both, out=nan.copy(), where=both != 0),
            np.divide(2 * hits, both, out=nan, where=both != 0))
""", "take them away once from the union"),
    ("2.2", """
def iou_and_dice(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    return (hits / np.maximum(truth + called - hits, 1),
            2 * hits / np.maximum(truth + called, 1))
""", "you gave it 0"),
    ("2.2", """
def iou_and_dice(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    both = (truth > 0) & (called > 0)
    iou, dice = np.full(len(M), np.nan), np.full(len(M), np.nan)
    iou[both] = (hits / np.maximum(truth + called - hits, 1))[both]
    dice[both] = (2 * hits / np.maximum(truth + called, 1))[both]
    return iou, dice
""", "one that is never called has 0 over something"),
    ("2.2", """
def iou_and_dice(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    union, both = truth + called - hits, truth + called
    iou = np.divide(hits, union, out=np.full(union.shape, np.nan), where=union != 0)
    return iou, np.divide(hits, both, out=np.full(both.shape, np.nan), where=both != 0)
""", "Dice counts the hits twice"),
    ("2.2", """
def iou_and_dice(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    both, nan = truth + called, np.full(len(M), np.nan)
    return (np.divide(hits, truth, out=nan.copy(), where=truth != 0),
            np.divide(2 * hits, both, out=nan, where=both != 0))
""", "that is the recall"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    present = truth + called > 0
    iou = hits[present] / (truth + called - hits)[present]
    return hits.sum() / M.sum(), (truth[present] * iou).sum(), iou.mean(), iou.sum() / len(M)
""", "which is the number of pixels"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    found = hits > 0
    iou = hits[found] / (truth + called - hits)[found]
    fw_iou = (truth[found] * iou).sum() / truth.sum()
    return hits.sum() / M.sum(), fw_iou, iou.mean(), iou.sum() / len(M)
""", "has the IoU 0, and counts"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    iou = hits / np.maximum(truth + called - hits, 1)
    return (hits.sum() / M.sum(), (truth * iou).sum() / truth.sum(), iou.mean(), iou.mean())
""", "K over the number of classes present"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    union = truth + called - hits
    iou = np.divide(hits, union, out=np.full(union.shape, np.nan), where=union != 0)
    fw_iou = (truth * iou).sum() / truth.sum()
    return hits.sum() / M.sum(), fw_iou, np.nanmean(iou), np.nansum(iou) / len(M)
""", "One nan in a sum"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    present = truth + called > 0
    iou = hits[present] / (truth + called - hits)[present]
    accuracy = (hits[present] / truth[present]).mean()
    fw_iou = (truth[present] * iou).sum() / truth.sum()
    return accuracy, fw_iou, iou.mean(), iou.sum() / len(M)
""", "the mean recall"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    present = truth + called > 0
    iou = hits[present] / (truth + called - hits)[present]
    fw_iou = (called[present] * iou).sum() / called.sum()
    return hits.sum() / M.sum(), fw_iou, iou.mean(), iou.sum() / len(M)
""", "shares of the truth"),
    ("2.3", """
def summary(M):
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    present = truth + called > 0
    iou = hits[present] / (truth + called - hits)[present]
    fw_iou = (truth[present] * iou).sum() / truth.sum()
    return hits.sum() / M.sum(), fw_iou, iou.mean(), iou.mean()
""", "K over the number of classes present"),
]
