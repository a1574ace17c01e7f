"""Layers: what holds parameters, and calls an op's forward and backward.

A layer keeps what its backward needs from the last forward, and nothing else: no graph is
recorded. `backward(dout)` adds the parameters' gradients into `grads` in place, drops what was
kept, and returns `dx`.
"""

from contextlib import contextmanager

import numpy as np

from minisegnet import ops
from minisegnet.backend import asnumpy, get_array_module

_keeps_caches = True


@contextmanager
def inference_mode():
    """Within it, forwards keep nothing for a backward: prediction needs far less memory."""
    global _keeps_caches
    before, _keeps_caches = _keeps_caches, False
    try:
        yield
    finally:
        _keeps_caches = before


class BackwardError(RuntimeError):
    """A backward without its forward: none was run, or its cache is spent."""


class Layer:
    """A node of the model's tree: its own arrays, and the layers below it.

    `params` and `grads` have the same keys; `buffers` are arrays that training changes but no
    gradient does. A layer assigned as an attribute becomes one of `children` under that name.
    Parameters are only ever written in place, so that an optimizer may gather them in one buffer.

    `frozen` asks a layer to learn nothing: its forward keeps nothing, and its backward returns at
    once. The backbone of a model honours it; other layers have no use for it. Batch norms below
    go on following the batches, unless `freeze_batch_norm` stops them too.
    """

    def __init__(self):
        self.params, self.grads, self.buffers, self.children = {}, {}, {}, {}
        self.training = True
        self.frozen = False
        self._cache = None

    def __setattr__(self, name, value):
        if isinstance(value, Layer):
            self.children[name] = value
        super().__setattr__(name, value)

    def forward(self, x):
        """Return the output for `x`."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def backward(self, dout):
        """Add the gradients of the parameters into `grads` and return `dx`."""
        raise TypeError(f"{type(self).__name__} defines no backward")

    def _keep(self, cache):
        self._cache = cache if _keeps_caches else None

    def _spend(self):
        """Return what the last forward kept, and forget it."""
        cache, self._cache = self._cache, None
        if cache is None:
            raise BackwardError(f"{type(self).__name__}.backward needs a forward of its own: run "
                                f"forward (outside inference_mode) once per backward")
        return cache

    def add_parameter(self, name, array):
        """Own `array` as a parameter with a gradient of zeros."""
        self.params[name] = array
        self.grads[name] = np.zeros_like(array)

    def named_layers(self, prefix=""):
        """Yield (dotted name, layer) of this layer and all below, parents first."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_layers(f"{prefix}.{name}" if prefix else name)

    def _named(self, kind):
        for prefix, layer in self.named_layers():
            for name, array in getattr(layer, kind).items():
                yield (f"{prefix}.{name}" if prefix else name), array

    def named_parameters(self):
        """Yield (dotted name, array) of every parameter, in a fixed order."""
        return self._named("params")

    def named_gradients(self):
        """Yield (dotted name, array) of every gradient, in the order of the parameters."""
        return self._named("grads")

    def named_buffers(self):
        """Yield (dotted name, array) of every buffer."""
        return self._named("buffers")

    @property
    def num_parameters(self):
        """How many numbers training adjusts."""
        return sum(array.size for _, array in self.named_parameters())

    @property
    def xp(self):
        """The array module of the device that the parameters are on."""
        return get_array_module(next(self.named_parameters())[1])

    def zero_grad(self):
        """Set every gradient to zero, in place."""
        for _, gradient in self.named_gradients():
            gradient[...] = 0

    def train(self, training=True):
        """Set training (batch statistics, dropout) for this layer and all below; return self."""
        for _, layer in self.named_layers():
            layer.training = training
        return self

    def eval(self):
        """Set evaluation (running statistics, no dropout); return self."""
        return self.train(False)

    def to(self, xp):
        """Move every array to a device, named by its array module (numpy, cupy); return self.

        To be done before an optimizer gathers the parameters.
        """
        for _, layer in self.named_layers():
            layer._move(xp)
        return self

    def _move(self, xp):
        for arrays in (self.params, self.grads, self.buffers):
            arrays.update({name: xp.asarray(asnumpy(array)) for name, array in arrays.items()})

    def astype(self, dtype):
        """Convert every array to `dtype`; return self."""
        for _, layer in self.named_layers():
            for arrays in (layer.params, layer.grads, layer.buffers):
                arrays.update({name: array.astype(dtype) for name, array in arrays.items()})
        return self


def he_normal(rng, shape, fan):
    """float32 weights from N(0, 2 / fan) (He et al., "Delving deep into rectifiers", 2015)."""
    return (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)


class Conv2d(Layer):
    """Convolution of (N, H, W, in_channels) to (N, OH, OW, out_channels); square kernel.

    He initialisation by fan-out from the Generator `rng`, as torchvision's MobileNetV3, or normal
    with deviation `weight_std`; zero bias.
    """

    def __init__(self, in_channels, out_channels, kernel_size, *, stride=1, padding=0, dilation=1,
                 bias=True, weight_std=None, rng):
        super().__init__()
        self.window = {"stride": stride, "padding": padding, "dilation": dilation}
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        if weight_std is None:
            weight = he_normal(rng, shape, kernel_size ** 2 * out_channels)
        else:
            weight = (weight_std * rng.standard_normal(shape)).astype(np.float32)
        self.add_parameter("weight", weight)
        if bias:
            self.add_parameter("bias", np.zeros(out_channels, np.float32))

    def forward(self, x):
        out, cache = ops.conv2d_forward(x, self.params["weight"], self.params.get("bias"),
                                        **self.window)
        self._keep(cache)
        return out

    def backward(self, dout, *, input_gradient=True):
        dx, _, _ = ops.conv2d_backward(dout, self._spend(), input_gradient=input_gradient,
                                       dweight=self.grads["weight"],
                                       dbias=self.grads.get("bias"))
        return dx


class ConvTranspose2d(Layer):
    """Transposed convolution of (N, H, W, in_channels) to (N, OH, OW, out_channels), with bias.

    OH = (H - 1) * stride - 2 * padding + kernel_size. He initialisation by the number of products
    that add up in an output, in_channels * (kernel_size / stride)^2; zero bias.
    """

    def __init__(self, in_channels, out_channels, kernel_size, *, stride=1, padding=0, rng):
        super().__init__()
        self.window = {"stride": stride, "padding": padding}
        shape = (kernel_size, kernel_size, out_channels, in_channels)
        fan = in_channels * (kernel_size / stride) ** 2
        self.add_parameter("weight", he_normal(rng, shape, fan))
        self.add_parameter("bias", np.zeros(out_channels, np.float32))

    def forward(self, x):
        out, cache = ops.conv_transpose2d_forward(x, self.params["weight"], self.params["bias"],
                                                  **self.window)
        self._keep(cache)
        return out

    def backward(self, dout):
        dx, _, _ = ops.conv_transpose2d_backward(
            dout, self._spend(), dweight=self.grads["weight"], dbias=self.grads["bias"])
        return dx


class DepthwiseConv2d(Layer):
    """One square kernel per channel: (N, H, W, channels) to (N, OH, OW, channels), no bias."""

    def __init__(self, channels, kernel_size, *, stride=1, padding=0, dilation=1, rng):
        super().__init__()
        self.window = {"stride": stride, "padding": padding, "dilation": dilation}
        shape = (kernel_size, kernel_size, channels)
        self.add_parameter("weight", he_normal(rng, shape, kernel_size ** 2))

    def forward(self, x):
        out, cache = ops.depthwise_conv2d_forward(x, self.params["weight"], **self.window)
        self._keep(cache)
        return out

    def backward(self, dout):
        dx, _ = ops.depthwise_conv2d_backward(dout, self._spend(), dweight=self.grads["weight"])
        return dx


class BatchNorm2d(Layer):
    """Batch normalisation per channel; `momentum` is the share of the new batch, as in torch.

    With `frozen_statistics` training, too, uses the running statistics and leaves them as they
    are; weight and bias still train.
    """

    def __init__(self, channels, *, momentum=0.1, eps=1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.frozen_statistics = False
        self.add_parameter("weight", np.ones(channels, np.float32))
        self.add_parameter("bias", np.zeros(channels, np.float32))
        self.buffers["running_mean"] = np.zeros(channels, np.float32)
        self.buffers["running_var"] = np.ones(channels, np.float32)

    @property
    def uses_batch_statistics(self):
        """Whether the next forward normalises by the batch, and not by the running statistics."""
        return self.training and not self.frozen_statistics

    def forward(self, x, activation=None, residual=None):
        """Return the output for `x`.

        `activation` is the name of one to apply in the same pass, `residual` a map to add in it.
        """
        running = self.buffers["running_mean"], self.buffers["running_var"]
        out, cache, _, _ = ops.batch_norm_forward(
            x, self.params["weight"], self.params["bias"], *running, running_out=running,
            training=self.uses_batch_statistics, momentum=self.momentum, eps=self.eps,
            activation=activation, residual=residual)
        self._keep(cache)
        return out

    def backward(self, dout):
        dx, _, _ = ops.batch_norm_backward(dout, self._spend(), dweight=self.grads["weight"],
                                           dbias=self.grads["bias"])
        return dx


def freeze_batch_norm(layer, frozen=True):
    """Set `frozen_statistics` of every BatchNorm2d in `layer` and below; return `layer`.

    For batches too small to estimate a mean and a variance, and for fine-tuning.
    """
    for _, below in layer.named_layers():
        if isinstance(below, BatchNorm2d):
            below.frozen_statistics = frozen
    return layer


class _Activation(Layer):
    def forward(self, x):
        out, cache = self._forward_op(x)
        self._keep(cache)
        return out

    def backward(self, dout):
        return self._backward_op(dout, self._spend())


class ReLU(_Activation):
    """max(x, 0)."""

    name = "relu"
    _forward_op = staticmethod(ops.relu_forward)
    _backward_op = staticmethod(ops.relu_backward)


class ReLU6(_Activation):
    """min(max(x, 0), 6)."""

    name = "relu6"
    _forward_op = staticmethod(ops.relu6_forward)
    _backward_op = staticmethod(ops.relu6_backward)


class Hardswish(_Activation):
    """x * clip(x + 3, 0, 6) / 6."""

    name = "hardswish"
    _forward_op = staticmethod(ops.hardswish_forward)
    _backward_op = staticmethod(ops.hardswish_backward)


class Hardsigmoid(_Activation):
    """clip(x + 3, 0, 6) / 6."""

    name = "hardsigmoid"
    _forward_op = staticmethod(ops.hardsigmoid_forward)
    _backward_op = staticmethod(ops.hardsigmoid_backward)


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    name = "sigmoid"
    _forward_op = staticmethod(ops.sigmoid_forward)
    _backward_op = staticmethod(ops.sigmoid_backward)


class GlobalAveragePool(Layer):
    """Mean over the pixels: (N, H, W, C) to (N, 1, 1, C)."""

    def forward(self, x):
        out, cache = ops.global_average_pool_forward(x)
        self._keep(cache)
        return out

    def backward(self, dout, *, add_to=None):
        """Return `dx`; where the gradient of x by another way is given, `add_to` with dx added."""
        return ops.global_average_pool_backward(dout, self._spend(), add_to=add_to)


class MaxPool2d(Layer):
    """Maximum over square windows; the stride defaults to the kernel size."""

    def __init__(self, kernel_size, *, stride=None, padding=0):
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x):
        out, cache = ops.max_pool2d_forward(x, self.kernel_size, stride=self.stride,
                                            padding=self.padding)
        self._keep(cache)
        return out

    def backward(self, dout):
        return ops.max_pool2d_backward(dout, self._spend())


class Dropout(Layer):
    """Zero with probability `p` in training, scaled to keep the mean; nothing in evaluation.

    It draws from the Generator `rng`, and on a device from `device_rng`, seeded by it.
    """

    def __init__(self, p, *, rng):
        super().__init__()
        self.p, self.rng, self.device_rng = p, rng, None

    def _move(self, xp):
        super()._move(xp)
        if xp is not np and self.device_rng is None:
            self.device_rng = ops.DeviceRandom(int(self.rng.integers(2 ** 63)), xp)

    def forward(self, x):
        if not self.training or self.p == 0:
            self._keep("nothing was dropped")
            return x
        rng = self.rng if get_array_module(x) is np else self.device_rng
        out, cache = ops.dropout_forward(x, self.p, rng)
        self._keep(cache)
        return out

    def backward(self, dout):
        cache = self._spend()
        return dout if isinstance(cache, str) else ops.dropout_backward(dout, cache)


class Upsample(Layer):
    """Bilinear resize to `size` = (OH, OW), given at the call since skips decide it."""

    def forward(self, x, size):
        out, cache = ops.upsample_bilinear_forward(x, size)
        self._keep(cache)
        return out

    def backward(self, dout):
        return ops.upsample_bilinear_backward(dout, self._spend())


class Concatenate(Layer):
    """Join inputs along the channels; backward returns the list of their gradients."""

    def forward(self, inputs):
        out, channels = ops.concatenate_forward(inputs)
        self._keep(channels)
        return out

    def backward(self, dout):
        return ops.concatenate_backward(dout, self._spend())
