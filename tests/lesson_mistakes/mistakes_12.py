"""Wrong answers to the exercises of lesson 12, and a part of the hint that each must get."""

_STEP = """
def adamw_step(p, g, m, v, t, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
"""


def _changed(old, new):
    assert old in _STEP
    return _STEP.replace(old, new)


_CLIP = """
def clip_by_global_norm(dweight, dbias, max_norm):
    norm = {norm}
    scale = {scale}
    return scale * dweight, scale * dbias
"""
_NORM = "np.sqrt((dweight**2).sum() + (dbias**2).sum())"

MISTAKES = [
    ("12.1", _changed("p = p * (1 - lr * weight_decay)", "g = g + weight_decay * p"),
     "adds the decay to the gradient"),
    ("12.1", _changed("m_hat = m / (1 - beta1**t)\n    v_hat = v / (1 - beta2**t)",
                      "m_hat, v_hat = m, v"), "no bias correction"),
    ("12.1", _changed("(np.sqrt(v_hat) + eps)", "np.sqrt(v_hat + eps)"), "below the root"),
    ("12.1", _changed("p = p * (1 - lr * weight_decay)", "pass"), "no weight decay"),
    ("12.1", _changed("m_hat = m / (1 - beta1**t)\n    v_hat = v / (1 - beta2**t)",
                      "m_hat = m = m / (1 - beta1**t)\n    v_hat = v = v / (1 - beta2**t)"),
     "for the step only"),
    ("12.1", _changed("**t", "**(t + 1)"), "count from 1"),
    ("12.1", _changed("p - lr * m_hat / (np.sqrt(v_hat) + eps)",
                      "p - lr * m_hat / np.sqrt(v_hat)"), "eps keeps the division finite"),
    ("12.1", _changed("p = p * (1 - lr * weight_decay)", "p *= 1 - lr * weight_decay"),
     "changes its input p"),
    ("12.1", _changed("(1 - beta2) * g * g", "(1 - beta2) * g"), "v is the mean of g * g"),
    ("12.1", _changed("(np.sqrt(v_hat) + eps)", "(v_hat + eps)"), "the root is missing"),
    ("12.1", _changed("v_hat = v / (1 - beta2**t)", "v_hat = v"), "v is not corrected"),
    ("12.1", _changed("(1 - lr * weight_decay)", "(1 - weight_decay)"), "is times the rate"),
    ("12.1", _changed("    p = p * (1 - lr * weight_decay)\n", "").replace(
        "p - lr * m_hat / (np.sqrt(v_hat) + eps)",
        "(p - lr * m_hat / (np.sqrt(v_hat) + eps)) * (1 - lr * weight_decay)"),
     "shrinks the step as well"),
    ("12.2", """
def clip_by_global_norm(dweight, dbias, max_norm):
    return tuple(min(1.0, max_norm / (np.linalg.norm(each) + 1e-6)) * each
                 for each in (dweight, dbias))
""", "norm of its own"),
    ("12.2", _CLIP.format(norm=_NORM, scale="max_norm / (norm + 1e-6)"), "at most 1"),
    ("12.2", _CLIP.format(norm="(dweight**2).sum() + (dbias**2).sum()",
                          scale="min(1.0, max_norm / (norm + 1e-6))"), "root is missing"),
    ("12.2", """
def clip_by_global_norm(dweight, dbias, max_norm):
    return np.clip(dweight, -max_norm, max_norm), np.clip(dbias, -max_norm, max_norm)
""", "each element is cut off"),
    ("12.2", _CLIP.format(norm="np.linalg.norm(dweight) + np.linalg.norm(dbias)",
                          scale="min(1.0, max_norm / (norm + 1e-6))"),
     "right answer times"),
]
