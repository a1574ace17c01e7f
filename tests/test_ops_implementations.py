"""Every op that has implementations refuses a name it does not know, and says which there are."""

import numpy as np
import pytest

from minisegnet import ops
from minisegnet.losses import cross_entropy_forward

X = np.ones((1, 4, 4, 2))
OPS = {
    "conv2d": (X, np.ones((1, 1, 2, 3))),
    "conv_transpose2d": (X, np.ones((2, 2, 3, 2))),
    "depthwise_conv2d": (X, np.ones((3, 3, 2))),
    "batch_norm": (X, np.ones(2), np.ones(2), np.ones(2), np.ones(2)),
    "max_pool2d": (X, 2),
    "upsample_bilinear": (X, (8, 8)),
}


@pytest.mark.parametrize("name", OPS)
def test_an_unknown_implementation_is_refused_with_the_choices(name):
    forward, backward = (getattr(ops, f"{name}_{way}") for way in ("forward", "backward"))
    options = {"training": True} if name == "batch_norm" else {}
    out, cache, *_ = forward(*OPS[name], **options)
    for call in (lambda: forward(*OPS[name], **options, implementation="fast"),
                 lambda: backward(out, cache, implementation="fast")):
        with pytest.raises(ValueError, match="'fast' is not one of loops, numpy"):
            call()


def test_so_does_cross_entropy():
    with pytest.raises(ValueError, match="'fast' is not one of loops, numpy"):
        cross_entropy_forward(X, np.zeros((1, 4, 4), int), implementation="fast")
