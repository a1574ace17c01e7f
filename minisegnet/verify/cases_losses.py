"""Every loss over its options, with ignored pixels, a class absent, and the fused head."""

import numpy as np

from minisegnet import losses
from minisegnet.verify.case import GradientCase

K = 5  # class 3 is in no target


def cases(on_device=False):
    """Return the `GradientCase`s of all losses; `on_device` those for arrays on a device."""
    both = (None,) if on_device else ("loops", "numpy")
    rng = np.random.default_rng(4)
    logits = 2 * rng.standard_normal((2, 4, 3, K))
    target = _target(rng, (2, 4, 3))
    no_zero = np.where(target == 255, 0, target)  # for ignore_index=0
    weight = rng.uniform(0.2, 5, K)
    prior = np.array([0.5, 0.2, 0.2, 0.0, 0.1])
    extreme = np.array([[[[1e4, -1e4, 0.0, 3.0, 9999.5]]], [[[-1e4, 1e4, 1e4, 0.0, 5.0]]]])
    extreme_target = np.array([[[4]], [[1]]])

    found = []

    def add(name, *, reference, inputs=logits, labels=target, note="", implementation=None,
            **options):
        found.append(_case(name, {"logits": inputs}, labels, reference, note, implementation,
                           options))

    for implementation in both:
        ce = {"reference": "torch", "implementation": implementation}
        add("cross_entropy", **ce)
        add("cross_entropy", weight=weight, **ce)
        add("cross_entropy", weight=weight, label_smoothing=0.1, **ce)
        add("cross_entropy", label_smoothing=1.0, **ce)
        add("cross_entropy", weight=weight, ignore_index=0, labels=no_zero, **ce)
        add("cross_entropy", inputs=extreme, labels=extreme_target, note="logits of 1e4", **ce)
    for gamma in (0.0, 0.5, 2.0):
        add("focal", reference="autograd", gamma=gamma)
    add("focal", reference="autograd", alpha=weight, gamma=1.5)
    add("focal", reference="autograd", alpha=0.25)
    add("focal", reference="autograd", inputs=extreme, labels=extreme_target, note="logits of 1e4")
    add("dice", reference="autograd")
    add("dice", reference="autograd", smooth=0.0)
    add("dice", reference="autograd", classes="all")
    add("dice", reference="autograd", weight=weight)
    add("dice", reference="autograd", log=True)
    add("dice", reference="autograd", mode="smp")
    add("combined", reference="autograd")
    add("combined", reference="autograd", note="every option changed", lambda_focal=0.7,
        lambda_dice=1.8, alpha=weight, gamma=1.5, smooth=0.5, dice_mode="smp")
    add("tversky", reference="autograd")
    add("tversky", reference="autograd", alpha=0.8, beta=0.1, smooth=0.0)
    add("tversky", reference="autograd", classes="all", weight=weight)
    for implementation in () if on_device else both:  # it sorts, on the host alone
        lovasz = {"reference": "autograd", "implementation": implementation}
        add("lovasz", **lovasz)
        add("lovasz", classes="all", weight=weight, **lovasz)
    if not on_device:
        add("ohem", reference="torch")
        add("ohem", reference="torch", thresh=0.2, min_kept=0.6, weight=weight)
        add("ohem", reference="torch", inputs=extreme, labels=extreme_target,
            note="logits of 1e4")
    add("logit_adjusted", reference="autograd", prior=prior)
    add("logit_adjusted", reference="autograd", prior=prior, tau=0.5, weight=weight)

    coarse = 2 * rng.standard_normal((2, 3, 4, K))
    fine = _target(rng, (2, 10, 13))
    for loss, options in (("ce", {"weight": weight, "label_smoothing": 0.1}),
                          ("focal", {"alpha": weight}), ("dice", {}),
                          ("combined", {"alpha": weight}), ("tversky", {}), ("lovasz", {}),
                          ("ohem", {}), ("logit_adjusted", {"prior": prior})):
        if on_device and loss in ("lovasz", "ohem"):
            continue
        found.append(_case("upsampled_loss", {"coarse": coarse}, fine,
                           "torch" if loss in ("ce", "ohem") else "autograd", "", None,
                           {"loss": loss, **options}))
    return found


def _target(rng, shape):
    """Return labels of all classes but 3, a fifth of the pixels ignored."""
    target = rng.choice([0, 1, 2, 4], shape, p=[0.5, 0.2, 0.2, 0.1])
    target[rng.random(shape) < 0.2] = 255
    return target


def _case(name, inputs, target, reference, note, implementation, options):
    chosen = {"implementation": implementation} if implementation else {}

    # Looked up when called, so that what is verified is what the package holds at that moment.
    def forward(**arguments):
        return getattr(losses, f"{name}_forward")(**arguments, **chosen)

    def backward(dloss, cache):
        return [getattr(losses, f"{name}_backward")(dloss, cache)]

    words = [key if isinstance(value, np.ndarray) else f"{key}={value}"
             for key, value in options.items()]
    return GradientCase("loss", name, inputs, {"target": target, **options}, forward, backward,
                        name, implementation or "numpy", reference, note or ", ".join(words))
