"""Blocks: small fixed compositions of layers that every model here is made of."""

import numpy as np

from minisegnet import ops
from minisegnet.backend import get_array_module
from minisegnet.layers import (
    BatchNorm2d,
    Conv2d,
    DepthwiseConv2d,
    GlobalAveragePool,
    Hardsigmoid,
    Layer,
    ReLU,
)


class ConvNormActivation(Layer):
    """Convolution without bias, batch norm, activation (a Layer class, or None).

    A `residual` given to forward is added to the output; its gradient is that of the output.
    """

    def __init__(self, conv, channels, activation=ReLU, *, momentum=0.1, eps=1e-5):
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm2d(channels, momentum=momentum, eps=eps)
        self.activation = activation() if activation is not None else None

        self._is_fused = False  # whether the last forward did all but the convolution in one

    def forward(self, x, residual=None):
        x = self.conv.forward(x)
        # On a GPU memory traffic decides: norm and activation share their passes, and the norm's
        # output is never stored. On a CPU the second computation of it would cost more.
        self._is_fused = get_array_module(x) is not np
        if self._is_fused:
            return self.norm.forward(x, self.activation and self.activation.name, residual)
        x = self.norm.forward(x)
        if self.activation is not None:
            x = self.activation.forward(x)
        return x if residual is None else ops.add_into(x, residual)

    def backward(self, dout, **conv_options):
        if self.activation is not None and not self._is_fused:
            dout = self.activation.backward(dout)
        return self.conv.backward(self.norm.backward(dout), **conv_options)


def conv_norm_activation(in_channels, out_channels, kernel_size, activation=ReLU, *, stride=1,
                         dilation=1, rng, momentum=0.1, eps=1e-5):
    """A dense ConvNormActivation that keeps the size at stride 1 ("same" padding)."""
    conv = Conv2d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation,
                  padding=dilation * (kernel_size - 1) // 2, bias=False, rng=rng)
    return ConvNormActivation(conv, out_channels, activation, momentum=momentum, eps=eps)


def depthwise_norm_activation(channels, kernel_size, activation=ReLU, *, stride=1, dilation=1,
                              rng, momentum=0.1, eps=1e-5):
    """A depthwise ConvNormActivation that keeps the size at stride 1."""
    conv = DepthwiseConv2d(channels, kernel_size, stride=stride, dilation=dilation,
                           padding=dilation * (kernel_size - 1) // 2, rng=rng)
    return ConvNormActivation(conv, channels, activation, momentum=momentum, eps=eps)


class SeparableConv2d(Layer):
    """Depthwise kernel, then a 1x1 convolution, each with batch norm and ReLU.

    Source: Chollet, "Xception" (2017); batch norm and ReLU after both, as in DeepLabV3+.
    """

    def __init__(self, in_channels, out_channels, kernel_size, *, dilation=1, rng, momentum=0.1):
        super().__init__()
        self.depthwise = depthwise_norm_activation(in_channels, kernel_size, dilation=dilation,
                                                   rng=rng, momentum=momentum)
        self.pointwise = conv_norm_activation(in_channels, out_channels, 1, rng=rng,
                                              momentum=momentum)

    def forward(self, x):
        return self.pointwise.forward(self.depthwise.forward(x))

    def backward(self, dout):
        return self.depthwise.backward(self.pointwise.backward(dout))


class SqueezeExcite(Layer):
    """Scale each channel by a gate computed from all channels' means.

    gate = hardsigmoid(fc2(relu(fc1(mean of x over the pixels)))), out = x * gate.
    Source: Hu et al., "Squeeze-and-excitation networks" (2018); hardsigmoid as in MobileNetV3.
    """

    def __init__(self, channels, squeezed_channels, *, rng):
        super().__init__()
        self.pool = GlobalAveragePool()
        self.fc1 = Conv2d(channels, squeezed_channels, 1, rng=rng)
        self.relu = ReLU()
        self.fc2 = Conv2d(squeezed_channels, channels, 1, rng=rng)
        self.hardsigmoid = Hardsigmoid()

    def forward(self, x):
        if get_array_module(x) is not np:
            return self._forward_fused(x)
        gate = self.fc1.forward(self.pool.forward(x))
        gate = self.hardsigmoid.forward(self.fc2.forward(self.relu.forward(gate)))
        out, cache = ops.channel_scale_forward(x, gate)
        self._keep(cache)
        return out

    def backward(self, dout):
        if get_array_module(dout) is not np:
            return self._backward_fused(dout)
        # x reaches the output twice, as the factor and through the gate: its gradients add up.
        dx, dgate = ops.channel_scale_backward(dout, self._spend())
        dgate = self.fc2.backward(self.hardsigmoid.backward(dgate))
        dgate = self.fc1.backward(self.relu.backward(dgate))
        return self.pool.backward(dgate, add_to=dx)

    # On a GPU a layer on one number per channel takes longer to start than to run: those between
    # pool and product are one op there, with the parameters of fc1 and fc2. On a CPU they stay
    # apart, for summaries and the search for a number that is not finite look at each of them.

    def _forward_fused(self, x):
        pooled, _ = ops.global_average_pool_forward(x)
        fc1, fc2 = self.fc1.params, self.fc2.params
        gate, gate_cache = ops.squeeze_excite_gate_forward(
            pooled, fc1["weight"], fc1["bias"], fc2["weight"], fc2["bias"])
        out, cache = ops.channel_scale_forward(x, gate)
        self._keep((cache, gate_cache))
        return out

    def _backward_fused(self, dout):
        cache, gate_cache = self._spend()
        dgate = ops.channel_scale_backward_gate(dout, cache)
        fc1, fc2 = self.fc1.grads, self.fc2.grads
        dpooled, *_ = ops.squeeze_excite_gate_backward(
            dgate, gate_cache, dweight1=fc1["weight"], dbias1=fc1["bias"],
            dweight2=fc2["weight"], dbias2=fc2["bias"])
        return ops.channel_scale_backward_input(dout, cache, dmean=dpooled)
