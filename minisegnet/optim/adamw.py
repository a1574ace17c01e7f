"""AdamW: Adam with the weight decay taken out of the gradient.

Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1; Loshchilov and
Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2. The order is torch's.
"""

import math

import numpy as np

from minisegnet.cuda.launch import KernelFile
from minisegnet.optim.flat import THREADS, Optimizer, grid

KERNELS = KernelFile(__file__)


def adamw_update_plain(p, g, m, v, *, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """Return the parameters and both moments after step `t` (from 1) of AdamW, as new arrays.

    The definition, to read beside `adamw_update_inplace`. `p, g, m, v` are arrays of one shape;
    `weight_decay` is a number, or an array of that shape.
    """
    beta1, beta2 = betas
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g  # running mean of the gradient
    v = beta2 * v + (1 - beta2) * g * g  # running mean of its square
    # Both averages start at 0, hence too small at first; dividing by 1 - beta^t corrects that.
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def adamw_update_inplace(p, g, m, v, *, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """Do `adamw_update_plain` in place on `p`, `m` and `v`, with two temporaries of `g`'s size.

    Called on cache-sized blocks, so that each array is read from memory once.
    """
    beta1, beta2 = betas
    p *= 1 - lr * weight_decay
    update = g * (1 - beta1)
    m *= beta1
    m += update
    denominator = g * g
    denominator *= 1 - beta2
    v *= beta2
    v += denominator
    np.sqrt(v, out=denominator)
    denominator /= math.sqrt(1 - beta2**t)
    denominator += eps
    np.divide(m, denominator, out=update)
    update *= lr / (1 - beta1**t)
    p -= update


class AdamW(Optimizer):
    """AdamW over all parameters of `model`, with torch's names, defaults and numbers.

    `decay_norm_and_bias=False` leaves biases and batch-norm parameters undecayed: a common choice,
    not torch's default. ValueError for a negative option or a beta outside [0, 1).
    """

    def __init__(self, model, lr=1e-3, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
                 decay_norm_and_bias=True):
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        super().__init__(model, lr, eps=eps, weight_decay=weight_decay)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.decayed = None if decay_norm_and_bias else ~self.flat.is_norm_or_bias  # (P,) bool
        self.state = {"exp_avg": self._zeros(), "exp_avg_sq": self._zeros()}
        self._tickets = self.flat.xp.zeros((1,), np.uint32)

    def _update(self, block, lr):
        weight_decay = self.weight_decay
        if self.decayed is not None:
            weight_decay = self.decayed[block] * self.flat.data.dtype.type(weight_decay)
        adamw_update_inplace(
            self.flat.data[block], self.flat.grad[block],
            self.state["exp_avg"][block], self.state["exp_avg_sq"][block],
            t=self.num_steps, lr=lr, betas=self.betas, eps=self.eps,
            weight_decay=weight_decay,
        )

    def _update_cuda(self, P, **arguments):
        KERNELS.launch(
            "adamw_update_kernel", grid(P), (THREADS,),
            m=self.state["exp_avg"], v=self.state["exp_avg_sq"], tickets=self._tickets,
            beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            weight_decay=self.weight_decay, decay_norm_and_bias=self.decayed is None, P=P,
            **arguments)
