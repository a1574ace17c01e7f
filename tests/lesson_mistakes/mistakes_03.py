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
""", "all where target is 255"),
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
