"""DeepLabV3+ in two sizes: the baseline, and a light one with separable convolutions.

Source: Chen et al., "Encoder-decoder with atrous separable convolution" (2018), on MobileNetV3.
Each backward is its forward read upside down.
"""

from minisegnet.blocks import SeparableConv2d, conv_norm_activation
from minisegnet.layers import Concatenate, Conv2d, Layer, Upsample
from minisegnet.models.aspp import ASPP

# Small enough that an untrained model finds all classes about equally likely: its first
# cross-entropy is ln K, which anyone can check.
CLASSIFIER_STD = 0.01


class _SegmentationModel(Layer):
    """images (N, H, W, 3) to logits (N, H, W, K), the last step a bilinear upsampling.

    `forward_coarse` and `backward_coarse` leave that step out: the loss can do it band by band
    (`minisegnet.losses.upsampled`), so that full-resolution logits never exist.
    """

    def __init__(self, name, num_classes):
        super().__init__()
        self.name, self.num_classes = name, num_classes
        self.upsample = Upsample()

    def forward(self, images):
        return self.upsample.forward(self.forward_coarse(images), images.shape[1:3])

    def backward(self, dlogits):
        self.backward_coarse(self.upsample.backward(dlogits))


class DeepLabBaseline(_SegmentationModel):
    """ASPP at stride 16, upsampled to stride 4, joined with low features, two dense 3x3."""

    def __init__(self, name, backbone, num_classes, *, rng, momentum):
        super().__init__(name, num_classes)
        norm = {"rng": rng, "momentum": momentum}
        self.backbone = backbone
        self.aspp = ASPP(backbone.high_channels, 256, (6, 12, 18), dropout=0.3, **norm)
        self.upsample_to_low = Upsample()
        self.low_project = conv_norm_activation(backbone.low_channels, 48, 1, **norm)
        self.concatenate = Concatenate()
        self.stage1 = conv_norm_activation(256 + 48, 256, 3, **norm)
        self.stage2 = conv_norm_activation(256, 256, 3, **norm)
        self.classifier = Conv2d(256, num_classes, 1, weight_std=CLASSIFIER_STD, rng=rng)

    def forward_coarse(self, images):
        """Return logits at stride 4, (N, ceil(H/4), ceil(W/4), K)."""
        low, _, high = self.backbone.forward(images)
        x = self.upsample_to_low.forward(self.aspp.forward(high), low.shape[1:3])
        x = self.concatenate.forward([x, self.low_project.forward(low)])
        x = self.stage2.forward(self.stage1.forward(x))
        return self.classifier.forward(x)

    def backward_coarse(self, dcoarse):
        """Add all parameters' gradients, given that of the stride-4 logits."""
        dx = self.classifier.backward(dcoarse)
        dx = self.stage1.backward(self.stage2.backward(dx))
        dx, dlow = self.concatenate.backward(dx)
        dlow = self.low_project.backward(dlow)
        dhigh = self.aspp.backward(self.upsample_to_low.backward(dx))
        self.backbone.backward(dlow, None, dhigh)


class DeepLabLight(_SegmentationModel):
    """ASPP at stride 16, then two separable stages, at stride 8 with mid and 4 with low features.

    `width` is that of the ASPP and the stages, `skip_width` that of both projected skips.
    """

    def __init__(self, name, backbone, num_classes, *, width=128, skip_width=32, rates=(6, 12),
                 rng, momentum):
        super().__init__(name, num_classes)
        norm = {"rng": rng, "momentum": momentum}
        self.backbone = backbone
        self.aspp = ASPP(backbone.high_channels, width, rates, dropout=0.1, **norm)
        self.upsample_to_mid = Upsample()
        self.mid_project = conv_norm_activation(backbone.mid_channels, skip_width, 1, **norm)
        self.concatenate_mid = Concatenate()
        self.stage1 = SeparableConv2d(width + skip_width, width, 3, **norm)
        self.upsample_to_low = Upsample()
        self.low_project = conv_norm_activation(backbone.low_channels, skip_width, 1, **norm)
        self.concatenate_low = Concatenate()
        self.stage2 = SeparableConv2d(width + skip_width, width, 3, **norm)
        self.classifier = Conv2d(width, num_classes, 1, weight_std=CLASSIFIER_STD, rng=rng)

    def forward_coarse(self, images):
        """Return logits at stride 4, (N, ceil(H/4), ceil(W/4), K)."""
        low, mid, high = self.backbone.forward(images)
        x = self.upsample_to_mid.forward(self.aspp.forward(high), mid.shape[1:3])
        x = self.concatenate_mid.forward([x, self.mid_project.forward(mid)])
        x = self.upsample_to_low.forward(self.stage1.forward(x), low.shape[1:3])
        x = self.concatenate_low.forward([x, self.low_project.forward(low)])
        return self.classifier.forward(self.stage2.forward(x))

    def backward_coarse(self, dcoarse):
        """Add all parameters' gradients, given that of the stride-4 logits."""
        dx = self.stage2.backward(self.classifier.backward(dcoarse))
        dx, dlow = self.concatenate_low.backward(dx)
        dlow = self.low_project.backward(dlow)
        dx = self.stage1.backward(self.upsample_to_low.backward(dx))
        dx, dmid = self.concatenate_mid.backward(dx)
        dmid = self.mid_project.backward(dmid)
        dhigh = self.aspp.backward(self.upsample_to_mid.backward(dx))
        self.backbone.backward(dlow, dmid, dhigh)
