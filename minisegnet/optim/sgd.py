"""Stochastic gradient descent with momentum, as torch has it.

Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013).
"""

from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.optim.flat import THREADS, Optimizer

KERNELS = KernelFile(__file__)


class SGD(Optimizer):
    """SGD: `buffer = momentum * buffer + (g + weight_decay * p)`, `p -= lr * buffer`.

    With `nesterov`, the step is `g + weight_decay * p + momentum * buffer`: the gradient is looked
    at one momentum step ahead. The learning rate stands outside the buffer (torch's convention),
    so that a change of rate acts at once. ValueError for a negative option, momentum of 1 or
    more, or nesterov without momentum.
    """

    def __init__(self, model, lr=1e-3, *, momentum=0.0, weight_decay=0.0, nesterov=False):
        if momentum >= 1:
            raise ValueError(f"momentum must be below 1, got {momentum}: no step would ever fade")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        super().__init__(model, lr, momentum=momentum, weight_decay=weight_decay)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        if momentum:
            self.state = {"momentum_buffer": self._zeros()}

    def _update(self, block, lr):
        p, g = self.flat.data[block], self.flat.grad[block]
        direction = g + self.weight_decay * p
        if self.momentum:
            buffer = self.state["momentum_buffer"][block]
            buffer *= self.momentum
            buffer += direction
            direction = direction + self.momentum * buffer if self.nesterov else buffer
        p -= lr * direction

    def _update_cuda(self, P, **arguments):
        KERNELS.launch(
            "sgd_update_kernel", (blocks(P, THREADS),), (THREADS,),
            buffer=self.state.get("momentum_buffer"), momentum=self.momentum,
            weight_decay=self.weight_decay, nesterov=self.nesterov, P=P, **arguments)
