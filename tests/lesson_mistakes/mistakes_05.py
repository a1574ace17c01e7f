"""Wrong answers to the exercises of lesson 5, and a part of the hint that each must get."""

_VALUE = """
def focal(logits, target, alpha, gamma):
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_pt = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    p_t = np.exp(log_pt)
    loss = {loss}
    return float(loss[is_valid].sum() / {size})
"""
_RIGHT = {"loss": "alpha[label] * (1 - p_t) ** gamma * -log_pt", "size": "is_valid.sum()"}

_GRADIENT = """
def focal_backward(dloss, logits, target, alpha, gamma):
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_prob = log_softmax(logits)
    log_pt = np.take_along_axis(log_prob, label[..., None], axis=-1)[..., 0]
    p_t, miss = np.exp(log_pt), -np.expm1(log_pt)
    ratio = -log_pt / np.where(miss > 0, miss, 1)
    with np.errstate(all="ignore"):
        g = {g}
    factor = {factor}
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    return factor[..., None] * (np.exp(log_prob) - onehot)
"""
_RIGHT_GRADIENT = {"g": "miss ** gamma * (1 + gamma * p_t * ratio)",
                   "factor": "dloss * alpha[label] * g * is_valid / is_valid.sum()"}


def _value(**parts):
    return _VALUE.format(**{**_RIGHT, **parts})


def _gradient(**parts):
    return _GRADIENT.format(**{**_RIGHT_GRADIENT, **parts})


MISTAKES = [
    ("5.1", _value(size="alpha[label][is_valid].sum()"), "focal's mean is over the pixels"),
    ("5.1", _value(size="target.size"), "P over the number of all pixels"),
    ("5.1", _value(loss="alpha[label] * p_t ** gamma * -log_pt"), "favours easy pixels"),
    ("5.1", _value(loss="(1 - p_t) ** gamma * -log_pt"), "alpha is missing"),
    ("5.1", _value(loss="alpha[label] * (1 - p_t) ** gamma * log_pt"), "sign"),
    ("5.1", _value(loss="(alpha[label] * (1 - p_t)) ** gamma * -log_pt"),
     "alpha is inside the power"),
    ("5.1", _value(loss="alpha[label] * (1 - p_t) * gamma * -log_pt"), "the exponent of 1 - p_t"),
    ("5.1", _value().replace("loss[is_valid].sum() / is_valid.sum()", "loss.mean()"),
     "The ignored pixels count here"),
    ("5.2", _gradient(g="miss ** gamma * (1 + p_t * ratio)"), "[1 + gamma p_t"),
    ("5.2", _gradient(g="miss ** gamma - gamma * miss ** (gamma - 1) * p_t * log_pt"),
     "second form of g"),
    ("5.2", _gradient(g="miss ** gamma"), "its derivative is missing"),
    ("5.2", _gradient(g="miss ** gamma * (1 - gamma * p_t * ratio)"), "wrong sign"),
    ("5.2", _gradient(factor="dloss * alpha[label] * g / is_valid.sum()"),
     "An ignored pixel moves nothing"),
    ("5.2", _gradient(factor="dloss * g * is_valid / is_valid.sum()"), "alpha is missing"),
    ("5.2", _gradient(factor="dloss * alpha[label] * g * is_valid / alpha[label][is_valid].sum()"),
     "focal's mean is over the pixels"),
    ("5.2", _gradient(factor="alpha[label] * g * is_valid / is_valid.sum()"),
     "(dloss) is not used"),
    ("5.2", """
def focal_backward(dloss, logits, target, alpha, gamma):
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    with np.errstate(all="ignore"):
        probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        p_t = np.take_along_axis(probs, label[..., None], axis=-1)[..., 0]
        g = (1 - p_t) ** gamma * (1 + gamma * p_t * -np.log(p_t) / (1 - p_t))
        factor = dloss * alpha[label] * g * is_valid / is_valid.sum()
    return factor[..., None] * (probs - (np.arange(logits.shape[-1]) == target[..., None]))
""", "Start from log_softmax"),
]
