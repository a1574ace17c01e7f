"""Wrong answers to the exercises of lesson 4, and a part of the hint that each must get."""

_VALUE = """
def smoothed_cross_entropy(logits, target, weight, e):
    is_valid = target != 255
    log_prob, label = log_softmax(logits)[is_valid], target[is_valid]
    own = weight[label] * -log_prob[np.arange(label.size), label]
    every = {every}
    K = logits.shape[-1]
    return float(({rest} * own + e / K * every).sum() / {size})
"""
_RIGHT = {"every": "-log_prob @ weight", "rest": "(1 - e)", "size": "weight[label].sum()"}

_GRADIENT = """
def smoothed_cross_entropy_backward(dloss, logits, target, weight, e):
    K = logits.shape[-1]
    is_valid = target != 255
    w = weight[np.where(is_valid, target, 0)] * is_valid
    onehot = np.arange(K) == target[..., None]
    a = (1 - e) * w[..., None] * onehot + e / K * {price} * is_valid[..., None]
    dlogits = {dlogits}
    return {result}
"""
_RIGHT_GRADIENT = {"price": "weight", "result": "dloss * dlogits / w.sum()",
                   "dlogits": "a.sum(axis=-1, keepdims=True) * np.exp(log_softmax(logits)) - a"}


def _value(**parts):
    return _VALUE.format(**{**_RIGHT, **parts})


def _gradient(**parts):
    return _GRADIENT.format(**{**_RIGHT_GRADIENT, **parts})


MISTAKES = [
    ("4.1", """
def median_weights(counts):
    pixels = counts.sum(axis=0)
    share = pixels / pixels.sum()
    weights = np.zeros(counts.shape[1])
    weights[share > 0] = np.median(share[share > 0]) / share[share > 0]
    return weights
""", "shares of all pixels"),
    ("4.1", """
def median_weights(counts):
    with np.errstate(all="ignore"):
        share = counts.sum(axis=0) / (counts.sum(axis=1) @ (counts > 0))
        return np.nanmedian(share) / share
""", "A class without a pixel has weight 0"),
    ("4.1", """
def median_weights(counts):
    pixels, image_pixels = counts.sum(axis=0), counts.sum(axis=1) @ (counts > 0)
    share = pixels / np.maximum(image_pixels, 1)
    weights = np.zeros(counts.shape[1])
    weights[share > 0] = np.median(share) / share[share > 0]
    return weights
""", "leave the absent one out"),
    ("4.1", """
def median_weights(counts):
    has = counts > 0
    pixels, image_pixels = counts.sum(axis=0), counts.sum(axis=1) @ has
    share = pixels / np.maximum(image_pixels, 1)
    weights = np.zeros(counts.shape[1])
    weights[share > 0] = np.mean(share[share > 0]) / share[share > 0]
    return weights
""", "the median of those over each"),
    ("4.1", """
def median_weights(counts):
    weights, share = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for c in np.flatnonzero(counts.sum(axis=0)):
        mine = counts[counts[:, c] > 0]
        share[c] = (mine[:, c] / mine.sum(axis=1)).mean()
    present = share > 0
    weights[present] = np.median(share[present]) / share[present]
    return weights
""", "This is the mean of the images' shares"),
    ("4.2", _value(size="label.size"), "the mean is weighted"),
    ("4.2", _value(size="target.size"), "D over the number of all pixels"),
    ("4.2", _value(every="weight[label] * -log_prob.sum(axis=1)"), "Class c costs w[c]"),
    ("4.2", _value(every="-log_prob.sum(axis=1)"), "has no weights here"),
    ("4.2", _value(rest="1"), "keeps 1 - e of its weight"),
    ("4.2", _value(every="K * -log_prob @ weight").replace("    own", "    K = 5\n    own"),
     "each of them gets e/K"),
    ("4.2", _value(size="weight.sum()"), "D has a weight per valid pixel"),
    ("4.3", _gradient(dlogits="np.exp(log_softmax(logits)) * is_valid[..., None] - a"),
     "multiplied by the sum of a"),
    ("4.3", _gradient(price="w[..., None]"), "Class c costs w[c]"),
    ("4.3", _gradient(result="dloss * dlogits / is_valid.sum()"), "the mean is weighted"),
    ("4.3", _gradient(result="dlogits / w.sum()"), "(dloss) is not used"),
    ("4.3", _gradient(
        dlogits="a - a.sum(axis=-1, keepdims=True) * np.exp(log_softmax(logits))"), "sign"),
    ("4.3", """
def smoothed_cross_entropy_backward(dloss, logits, target, weight, e):
    K = logits.shape[-1]
    w = weight[np.where(target != 255, target, 0)] * (target != 255)
    a = (1 - e) * w[..., None] * (np.arange(K) == target[..., None]) + e / K * weight
    dlogits = a.sum(axis=-1, keepdims=True) * np.exp(log_softmax(logits)) - a
    return dloss * dlogits / w.sum()
""", "An ignored pixel moves nothing"),
    ("4.3", _gradient(dlogits=_RIGHT_GRADIENT["dlogits"][:-1] + "(1 - e) * w[..., None] * onehot"),
     "subtract all of it"),
]
