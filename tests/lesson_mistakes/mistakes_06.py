"""Wrong answers to the exercises of lesson 6, and a part of the hint that each must get."""

_VALUE = """
def dice_loss(logits, target, s):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    probs = softmax(logits){valid}
    axes = {axes}
    intersection = (probs * onehot).sum(axis=axes)
    predicted, true = probs.sum(axis=axes), onehot.sum(axis=axes)
    dice = (2 * intersection + s) / (predicted + true + s)
    return float({result})
"""
_RIGHT = {"valid": " * (target != 255)[..., None]", "axes": "(0, 1, 2)",
          "result": "1 - dice[true > 0].mean()"}

_GRADIENT = """
def dice_backward(dloss, logits, target, s):
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    probs = softmax(logits){valid}
    intersection = (probs * onehot).sum(axis=(0, 1, 2))
    predicted, true = probs.sum(axis=(0, 1, 2)), onehot.sum(axis=(0, 1, 2))
    U = predicted + true + s
    share = {share}
    dprobs = {dprobs}
    return {result}
"""
_RIGHT_GRADIENT = {
    "valid": " * (target != 255)[..., None]",
    "share": "dloss * (true > 0) / (true > 0).sum()",
    "dprobs": "share * ((2 * intersection + s) / U ** 2 - 2 * onehot / U)",
    "result": "probs * (dprobs - (probs * dprobs).sum(axis=-1, keepdims=True))"}


def _value(**parts):
    return _VALUE.format(**{**_RIGHT, **parts})


def _gradient(**parts):
    return _GRADIENT.format(**{**_RIGHT_GRADIENT, **parts})


MISTAKES = [
    ("6.1", _value(result="1 - dice.mean()"), "Absent classes are in the mean"),
    ("6.1", _value(valid=""), "Ignored pixels are in S"),
    ("6.1", _value(axes="(1, 2)"), "The sums here are per image"),
    ("6.1", _value(result="dice[true > 0].mean()"), "1 minus it"),
    ("6.1", _value(result="1 - (intersection / (predicted + true))[true > 0].mean()"),
     "(2 I + s) / (S + T + s)"),
    ("6.1", _value(result="1 - dice[true > 0].sum() / true.size"), "divided by n and not by K"),
    ("6.1", _value(result="1 - dice[true > 0].sum()"), "not averaged over the n classes"),
    ("6.1", _value(result="1 - ((intersection + s) / (predicted + true - intersection + s))"
                          "[true > 0].mean()"), "This is soft IoU"),
    ("6.1", _value(axes="None", result="1 - dice"), "each has a score of its own"),
    ("6.2", _gradient(result="probs * (1 - probs) * dprobs"), "on its own class only"),
    ("6.2", _gradient(valid=""), "Ignored pixels are in S"),
    ("6.2", _gradient(result="probs * dprobs"), "The softmax has a second part"),
    ("6.2", _gradient(result="dprobs * (target != 255)[..., None]"), "through the softmax"),
    ("6.2", _gradient(share="dloss / true.size"), "Absent classes are averaged"),
    ("6.2", _gradient(share="dloss * (true > 0) / true.size"), "K over n"),
    ("6.2", _gradient(share="dloss * (true > 0)"), "the number of classes present"),
    ("6.2", _gradient(dprobs="-share * 2 * onehot / U"), "dL/dS is missing"),
    ("6.2", _gradient(dprobs="share * (2 * onehot / U - (2 * intersection + s) / U ** 2)"),
     "sign"),
    ("6.2", _gradient(share="(true > 0) / (true > 0).sum()"), "(dloss) is not used"),
]
