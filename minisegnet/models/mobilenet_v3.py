"""MobileNetV3 as a backbone: inverted residual blocks, read off a table.

Source: Howard et al., "Searching for MobileNetV3" (2019), table 2; details as in torchvision
(batch norm eps 1e-3, squeeze to a quarter rounded to 8, dilation instead of the last stride).
"""

from typing import NamedTuple

from minisegnet import ops
from minisegnet.blocks import SqueezeExcite, conv_norm_activation, depthwise_norm_activation
from minisegnet.layers import Hardswish, Layer, ReLU, inference_mode

NORM_EPS = 1e-3


class Block(NamedTuple):
    """One row of the table."""

    kernel_size: int
    expanded: int  # channels between expansion and projection
    out: int
    squeeze_excite: bool
    activation: type
    stride: int
    dilation: int = 1


# Output stride 16: the last stride of 2 is replaced by dilation 2 from there on.
SMALL = (
    Block(3, 16, 16, True, ReLU, 2),
    Block(3, 72, 24, False, ReLU, 2),
    Block(3, 88, 24, False, ReLU, 1),
    Block(5, 96, 40, True, Hardswish, 2),
    Block(5, 240, 40, True, Hardswish, 1),
    Block(5, 240, 40, True, Hardswish, 1),
    Block(5, 120, 48, True, Hardswish, 1),
    Block(5, 144, 48, True, Hardswish, 1),
    Block(5, 288, 96, True, Hardswish, 1, 2),
    Block(5, 576, 96, True, Hardswish, 1, 2),
    Block(5, 576, 96, True, Hardswish, 1, 2),
)

# The same shape of network for a lesson: half the blocks, fewer channels.
MINI = (
    Block(3, 16, 16, False, ReLU, 2),
    Block(3, 64, 24, False, ReLU, 2),
    Block(3, 72, 24, False, ReLU, 1),
    Block(5, 96, 32, True, Hardswish, 2),
    Block(5, 128, 32, True, Hardswish, 1),
    Block(5, 128, 32, True, Hardswish, 1, 2),
)


def multiple_of_8(channels):
    """Nearest multiple of 8, at least 8 and not below 90 % of `channels` (as torchvision)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(Layer):
    """Expand by 1x1, filter depthwise, squeeze-excite, project by 1x1; plus the input if it fits.

    (N, H, W, in_channels) to (N, H/stride, W/stride, block.out).
    """

    def __init__(self, in_channels, block, *, rng, momentum):
        super().__init__()
        norm = {"momentum": momentum, "eps": NORM_EPS, "rng": rng}
        self.expand = self.squeeze_excite = None
        if block.expanded != in_channels:
            self.expand = conv_norm_activation(in_channels, block.expanded, 1, block.activation,
                                               **norm)
        self.depthwise = depthwise_norm_activation(
            block.expanded, block.kernel_size, block.activation, stride=block.stride,
            dilation=block.dilation, **norm)
        if block.squeeze_excite:
            self.squeeze_excite = SqueezeExcite(block.expanded,
                                                multiple_of_8(block.expanded // 4), rng=rng)
        self.project = conv_norm_activation(block.expanded, block.out, 1, None, **norm)
        self.is_residual = block.stride == 1 and in_channels == block.out

    def forward(self, x):
        out = x
        if self.expand is not None:
            out = self.expand.forward(out)
        out = self.depthwise.forward(out)
        if self.squeeze_excite is not None:
            out = self.squeeze_excite.forward(out)
        return self.project.forward(out, x if self.is_residual else None)

    def backward(self, dout):
        dx = self.project.backward(dout)
        if self.squeeze_excite is not None:
            dx = self.squeeze_excite.backward(dx)
        dx = self.depthwise.backward(dx)
        if self.expand is not None:
            dx = self.expand.backward(dx)
        if self.is_residual:
            ops.add_into(dx, dout)
        return dx


class MobileNetV3(Layer):
    """The blocks of `table` between a stride-2 stem and, if `last_channels`, a last 1x1.

    `forward(images)` returns the features at strides 4 (after the first block), 8 (after the
    third) and 16 (the end). `backward` takes the gradient of each; what is None was not used.
    While `frozen`, the forward keeps nothing and the backward does nothing: no gradient, no time.
    """

    LOW, MID = 1, 3  # layers after which the strides 4 and 8 are handed out

    def __init__(self, table, *, last_channels=None, rng, momentum):
        super().__init__()
        norm = {"momentum": momentum, "eps": NORM_EPS, "rng": rng}
        stem_channels = 16
        self.features = Layer()
        self.features.children["0"] = conv_norm_activation(3, stem_channels, 3, Hardswish,
                                                           stride=2, **norm)
        channels = stem_channels
        for i, block in enumerate(table, start=1):
            self.features.children[str(i)] = InvertedResidual(channels, block, rng=rng,
                                                              momentum=momentum)
            channels = block.out
        if last_channels is not None:
            self.features.children[str(len(table) + 1)] = conv_norm_activation(
                channels, last_channels, 1, Hardswish, **norm)
        self.low_channels, self.mid_channels = table[0].out, table[2].out
        self.high_channels = last_channels or channels

    def forward(self, images):
        if self.frozen:
            with inference_mode():
                return self._forward(images)
        return self._forward(images)

    def _forward(self, images):
        x = images
        for i, layer in enumerate(self.features.children.values()):
            x = layer.forward(x)
            if i == self.LOW:
                low = x
            elif i == self.MID:
                mid = x
        return low, mid, x

    def backward(self, dlow, dmid, dhigh):
        """Add the gradients of all parameters; the pictures themselves need none."""
        if self.frozen:
            return
        layers = list(self.features.children.values())
        dx = dhigh
        for i in range(len(layers) - 1, 0, -1):
            # A feature that was handed out has two users: their gradients add up.
            if i == self.MID and dmid is not None:
                dx = ops.add(dx, dmid)
            elif i == self.LOW and dlow is not None:
                dx = ops.add(dx, dlow)
            dx = layers[i].backward(dx)
        layers[0].backward(dx, input_gradient=False)
