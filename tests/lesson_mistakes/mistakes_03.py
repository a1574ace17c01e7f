"""Wrong answers to the exercises of lesson 3, and a part of the hint that each must get."""

MISTAKES = [
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return float(-log_prob[target != 255].sum() / target.size)
""", "P over the number of all pixels"),
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return float(-log_prob[target != 255].sum())
""", "the number of valid pixels"),
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return float(log_prob[target != 255].mean())
""", "sign"),
    ("3.2", """
def cross_entropy_backward(dloss, logits, target):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    return dloss * (np.exp(log_softmax(logits)) - onehot) / (target != 255).sum()
""", "ignored pixel moves nothing"),
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return float(-log_prob.mean())
""", "the class that stands in for 255"),
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    return float(-log_prob[target != 255].mean())
""", "take log_softmax of them first"),
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return -np.exp(log_prob)[target != 255].mean()
""", "the logarithm is missing"),
    ("3.1", """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return -log_prob * (target != 255) / (target != 255).sum()
""", "summed over axes 0, 1, 2 it would be right"),
    ("3.2", """
def cross_entropy_backward(dloss, logits, target):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    dlogits = (np.exp(log_softmax(logits)) - onehot) * onehot
    return dloss * dlogits / (target != 255).sum()
""", "the true class is not alone"),
    ("3.2", """
def cross_entropy_backward(dloss, logits, target):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    dlogits = (log_softmax(logits) - onehot) * (target != 255)[..., None]
    return dloss * dlogits / (target != 255).sum()
""", "with p = exp(log_softmax(logits))"),
    ("3.2", """
def cross_entropy_backward(dloss, logits, target):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    dlogits = onehot - np.exp(log_softmax(logits))
    dlogits[target == 255] = 0
    return dloss * dlogits / (target != 255).sum()
""", "sign"),
    ("3.2", """
def cross_entropy_backward(dloss, logits, target):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    dlogits = np.exp(log_softmax(logits)) - onehot
    dlogits[target == 255] = 0
    return dlogits / (target != 255).sum()
""", "(dloss) is not used"),
]
