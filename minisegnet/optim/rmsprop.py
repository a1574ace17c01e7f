"""RMSprop, as torch has it.

Tieleman and Hinton, "Lecture 6.5: rmsprop", COURSERA Neural Networks for Machine Learning (2012).
"""

import numpy as np

from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.optim.flat import THREADS, Optimizer

KERNELS = KernelFile(__file__)


class RMSprop(Optimizer):
    """RMSprop: each gradient is divided by the root of a running mean of its square.

    `s = alpha*s + (1-alpha)*g*g`, `update = g / (sqrt(s) + eps)`; with momentum,
    `buffer = momentum*buffer + update` takes the update's place; `p -= lr * update`. Weight decay
    is added to the gradient. Two traps: s starts at 0, so the first updates are 1/sqrt(1-alpha)
    (ten at alpha 0.99), and momentum mu multiplies a steady update by 1/(1-mu) (a thousand at
    0.999): together a known way to NaN. ValueError for a negative option, or alpha or momentum of
    1 or more.
    """

    def __init__(self, model, lr=1e-2, *, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
        for name, value in (("alpha", alpha), ("momentum", momentum)):
            if value >= 1:
                raise ValueError(f"{name} must be below 1, got {value}")
        super().__init__(
            model, lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum
        )
        self.alpha = alpha
        self.eps = eps
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.state = {"square_avg": self._zeros()}
        if momentum:
            self.state["momentum_buffer"] = self._zeros()

    def _update(self, block, lr):
        p, g = self.flat.data[block], self.flat.grad[block]
        square_avg = self.state["square_avg"][block]
        if self.weight_decay:
            g = g + self.weight_decay * p
        square_avg *= self.alpha
        square_avg += (1 - self.alpha) * g * g
        update = g / (np.sqrt(square_avg) + self.eps)
        if self.momentum:
            buffer = self.state["momentum_buffer"][block]
            buffer *= self.momentum
            buffer += update
            update = buffer
        p -= lr * update

    def _update_cuda(self, P, **arguments):
        KERNELS.launch(
            "rmsprop_update_kernel", (blocks(P, THREADS),), (THREADS,),
            square_avg=self.state["square_avg"], buffer=self.state.get("momentum_buffer"),
            alpha=self.alpha, eps=self.eps, weight_decay=self.weight_decay,
            momentum=self.momentum, P=P, **arguments)
