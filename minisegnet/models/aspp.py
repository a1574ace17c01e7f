"""Atrous spatial pyramid pooling: one input, several fields of view, side by side.

Source: Chen et al., "Rethinking atrous convolution for semantic image segmentation" (2017).
"""

from minisegnet import ops
from minisegnet.blocks import conv_norm_activation
from minisegnet.layers import Concatenate, Dropout, GlobalAveragePool, Layer


class ASPP(Layer):
    """1x1, atrous 3x3 at each of `rates`, and image pooling, joined and projected to `channels`.

    (N, H, W, in_channels) to (N, H, W, channels). In training the image-pooling branch has one
    value per image and channel, so its batch norm refuses a batch of 1, unless its statistics are
    frozen.
    """

    def __init__(self, in_channels, channels, rates, *, dropout, rng, momentum):
        super().__init__()
        norm = {"rng": rng, "momentum": momentum}
        self.pointwise = conv_norm_activation(in_channels, channels, 1, **norm)
        self.atrous = Layer()
        for rate in rates:
            self.atrous.children[f"rate{rate}"] = conv_norm_activation(
                in_channels, channels, 3, dilation=rate, **norm)
        self.pool = GlobalAveragePool()
        self.pooled = conv_norm_activation(in_channels, channels, 1, **norm)
        self.concatenate = Concatenate()
        self.project = conv_norm_activation((2 + len(rates)) * channels, channels, 1, **norm)
        self.dropout = Dropout(dropout, rng=rng)

    def forward(self, x):
        if self.pooled.norm.uses_batch_statistics and x.shape[0] == 1:
            raise ValueError("image pooling leaves one value per channel at batch size 1, and "
                             "batch norm in training needs two: use a batch of at least 2 "
                             "(drop_last where one is left over), eval(), or freeze_batch_norm")
        branches = [self.pointwise.forward(x)]
        branches += [conv.forward(x) for conv in self.atrous.children.values()]
        # Bilinear upsampling of a 1x1 map repeats it at every pixel.
        pooled = self.pooled.forward(self.pool.forward(x))  # (N, 1, 1, channels)
        repeated, cache = ops.repeat_pixels_forward(pooled, branches[0].shape[1:3])
        self._keep(cache)
        branches.append(repeated)
        return self.dropout.forward(self.project.forward(self.concatenate.forward(branches)))

    def backward(self, dout):
        dbranches = self.concatenate.backward(self.project.backward(self.dropout.backward(dout)))
        # Every branch read the same x: dx is the sum of what each sends back.
        dx = self.pointwise.backward(dbranches[0])
        for conv, dbranch in zip(self.atrous.children.values(), dbranches[1:-1]):
            ops.add_into(dx, conv.backward(dbranch))
        dpooled = ops.repeat_pixels_backward(dbranches[-1], self._spend())
        return self.pool.backward(self.pooled.backward(dpooled), add_to=dx)
