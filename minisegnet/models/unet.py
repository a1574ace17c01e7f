"""UNet: down four times by max pooling, up four times by transposed convolution, skips between.

Source: Ronneberger et al., "U-Net" (2015), in the widespread form of the repository Pytorch-UNet:
padded convolutions with batch norm. Its layers are named as there, so its weights load as they
are. Each backward is its forward read upside down.
"""

from minisegnet import ops
from minisegnet.backend import get_array_module
from minisegnet.blocks import conv_norm_activation
from minisegnet.errors import UserError
from minisegnet.layers import Concatenate, Conv2d, ConvTranspose2d, Layer, MaxPool2d
from minisegnet.models.deeplab import CLASSIFIER_STD

LEAST_SIDE = 16  # px: four halvings leave one


class DoubleConv(Layer):
    """3x3 convolution, batch norm and ReLU, twice: (N, H, W, in) to (N, H, W, out)."""

    def __init__(self, in_channels, out_channels, *, rng, momentum):
        super().__init__()
        # A tuple is no child: by name the tree knows the six layers, in a row, as Pytorch-UNet.
        self._halves = tuple(conv_norm_activation(channels, out_channels, 3, rng=rng,
                                                  momentum=momentum)
                             for channels in (in_channels, out_channels))
        steps = [step for half in self._halves for step in half.children.values()]
        self.double_conv = Layer()
        self.double_conv.children.update({str(i): step for i, step in enumerate(steps)})

    def forward(self, x):
        first, second = self._halves
        return second.forward(first.forward(x))

    def backward(self, dout, **conv_options):
        """`conv_options` go to the first convolution's backward."""
        first, second = self._halves
        return first.backward(second.backward(dout), **conv_options)


class Down(Layer):
    """Max pooling to half the size, then a DoubleConv."""

    def __init__(self, in_channels, out_channels, *, rng, momentum):
        super().__init__()
        self.maxpool_conv = Layer()
        self.maxpool_conv.children.update({
            "0": MaxPool2d(2),
            "1": DoubleConv(in_channels, out_channels, rng=rng, momentum=momentum)})

    def forward(self, x):
        pool, conv = self.maxpool_conv.children.values()
        return conv.forward(pool.forward(x))

    def backward(self, dout):
        pool, conv = self.maxpool_conv.children.values()
        return pool.backward(conv.backward(dout))


class Up(Layer):
    """Transposed convolution to twice the size, joined with the skip, then a DoubleConv."""

    def __init__(self, in_channels, out_channels, *, rng, momentum):
        super().__init__()
        self.up = ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2, rng=rng)
        self.concatenate = Concatenate()
        self.conv = DoubleConv(in_channels, out_channels, rng=rng, momentum=momentum)

    def forward(self, x, skip):
        """`x` (N, h, w, in), `skip` (N, H, W, in / 2), h = H // 2 -> (N, H, W, out)."""
        x = self.up.forward(x)
        self._keep(x.shape)
        # An odd side lost a row or column to the pooling: zeros take its place, below and right.
        x = _padded(x, skip.shape[1:3])
        return self.conv.forward(self.concatenate.forward([skip, x]))

    def backward(self, dout):
        """Return `(dx, dskip)`."""
        _, h, w, _ = self._spend()
        dskip, dx = self.concatenate.backward(self.conv.backward(dout))
        return self.up.backward(dx[:, :h, :w]), dskip


def _padded(x, size):
    N, h, w, C = x.shape
    if (h, w) == size:
        return x
    padded = get_array_module(x).zeros((N, *size, C), x.dtype)
    padded[:, :h, :w] = x
    return padded


class UNet(Layer):
    """images (N, H, W, 3), H and W at least 16, to logits (N, H, W, K).

    `width` is the number of channels at full size; each halving of the size doubles it. Takes the
    same calls as the DeepLabs, but its logits have the images' size from the start: coarse and
    full are one.
    """

    def __init__(self, name, num_classes, *, width=64, rng, momentum):
        super().__init__()
        self.name, self.num_classes = name, num_classes
        norm = {"rng": rng, "momentum": momentum}
        self.inc = DoubleConv(3, width, **norm)
        self.down1 = Down(width, 2 * width, **norm)
        self.down2 = Down(2 * width, 4 * width, **norm)
        self.down3 = Down(4 * width, 8 * width, **norm)
        self.down4 = Down(8 * width, 16 * width, **norm)
        self.up1 = Up(16 * width, 8 * width, **norm)
        self.up2 = Up(8 * width, 4 * width, **norm)
        self.up3 = Up(4 * width, 2 * width, **norm)
        self.up4 = Up(2 * width, width, **norm)
        self.outc = Layer()
        self.outc.conv = Conv2d(width, num_classes, 1, weight_std=CLASSIFIER_STD, rng=rng)

    def forward(self, images):
        return self.forward_coarse(images)

    def backward(self, dlogits):
        self.backward_coarse(dlogits)

    def forward_coarse(self, images):
        """Return logits (N, H, W, K). Raises UserError for images below 16x16."""
        if images.ndim == 4 and min(images.shape[1:3]) < LEAST_SIDE:
            raise UserError(f"a UNet halves its images four times and needs at least "
                            f"{LEAST_SIDE}x{LEAST_SIDE} pixels, not {images.shape[1]}x"
                            f"{images.shape[2]}; use a larger --image-size")
        x1 = self.inc.forward(images)
        x2 = self.down1.forward(x1)
        x3 = self.down2.forward(x2)
        x4 = self.down3.forward(x3)
        x = self.down4.forward(x4)
        x = self.up1.forward(x, x4)
        x = self.up2.forward(x, x3)
        x = self.up3.forward(x, x2)
        x = self.up4.forward(x, x1)
        return self.outc.conv.forward(x)

    def backward_coarse(self, dcoarse):
        """Add all parameters' gradients; the pictures themselves need none."""
        dx = self.outc.conv.backward(dcoarse)
        dx, dx1 = self.up4.backward(dx)
        dx, dx2 = self.up3.backward(dx)
        dx, dx3 = self.up2.backward(dx)
        dx, dx4 = self.up1.backward(dx)
        # Each x went two ways, down and across: its gradients add up.
        dx4 = ops.add(dx4, self.down4.backward(dx))
        dx3 = ops.add(dx3, self.down3.backward(dx4))
        dx2 = ops.add(dx2, self.down2.backward(dx3))
        dx1 = ops.add(dx1, self.down1.backward(dx2))
        self.inc.backward(dx1, input_gradient=False)
