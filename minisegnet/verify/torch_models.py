"""The same networks in torch.nn, as an oracle for tests and benchmarks. Needs torch.

Names match `minisegnet.models.to_torch_state_dict`, so that its weights load strictly.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from minisegnet.models.mobilenet_v3 import MINI, NORM_EPS, SMALL, multiple_of_8
from minisegnet.models.torch_layout import to_torch_state_dict

_ACTIVATIONS = {"ReLU": nn.ReLU, "Hardswish": nn.Hardswish}


def _conv_norm(in_channels, out_channels, kernel_size, activation=nn.ReLU, *, stride=1,
               dilation=1, groups=1, momentum=0.1, eps=1e-5):
    layers = [nn.Conv2d(in_channels, out_channels, kernel_size, stride,
                        dilation * (kernel_size - 1) // 2, dilation, groups, bias=False),
              nn.BatchNorm2d(out_channels, momentum=momentum, eps=eps)]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class _SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        gate = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        # Not F.hardsigmoid: its backward multiplies by 1/6 rounded to float32 (3e-8 off, whatever
        # the dtype), too coarse for an oracle in float64.
        return x * (F.relu6(self.fc2(gate) + 3) / 6)


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels, block, momentum):
        super().__init__()
        activation = _ACTIVATIONS[block.activation.__name__]
        norm = {"momentum": momentum, "eps": NORM_EPS}
        steps = []
        if block.expanded != in_channels:
            steps.append(_conv_norm(in_channels, block.expanded, 1, activation, **norm))
        steps.append(_conv_norm(block.expanded, block.expanded, block.kernel_size, activation,
                                stride=block.stride, dilation=block.dilation,
                                groups=block.expanded, **norm))
        if block.squeeze_excite:
            steps.append(_SqueezeExcite(block.expanded, multiple_of_8(block.expanded // 4)))
        steps.append(_conv_norm(block.expanded, block.out, 1, None, **norm))
        self.block = nn.Sequential(*steps)
        self.is_residual = block.stride == 1 and in_channels == block.out

    def forward(self, x):
        return self.block(x) + x if self.is_residual else self.block(x)


class _MobileNetV3(nn.Module):
    def __init__(self, table, last_channels, momentum):
        super().__init__()
        norm = {"momentum": momentum, "eps": NORM_EPS}
        layers, channels = [_conv_norm(3, 16, 3, nn.Hardswish, stride=2, **norm)], 16
        for block in table:
            layers.append(_InvertedResidual(channels, block, momentum))
            channels = block.out
        if last_channels:
            layers.append(_conv_norm(channels, last_channels, 1, nn.Hardswish, **norm))
        self.features = nn.Sequential(*layers)
        self.channels = (table[0].out, table[2].out, last_channels or channels)

    def forward(self, x):
        outputs = []
        for layer in self.features:
            x = layer(x)
            outputs.append(x)
        return outputs[1], outputs[3], x


class _ASPP(nn.Module):
    def __init__(self, in_channels, channels, rates, dropout, momentum):
        super().__init__()
        norm = {"momentum": momentum}
        self.pointwise = _conv_norm(in_channels, channels, 1, **norm)
        self.atrous = nn.ModuleDict({f"rate{rate}": _conv_norm(in_channels, channels, 3,
                                                               dilation=rate, **norm)
                                     for rate in rates})
        self.pooled = _conv_norm(in_channels, channels, 1, **norm)
        self.project = _conv_norm((2 + len(rates)) * channels, channels, 1, **norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        branches = [self.pointwise(x)] + [conv(x) for conv in self.atrous.values()]
        pooled = self.pooled(F.adaptive_avg_pool2d(x, 1))
        branches.append(_resize(pooled, x.shape[2:]))
        return self.dropout(self.project(torch.cat(branches, 1)))


def _resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class _Separable(nn.Module):
    def __init__(self, in_channels, out_channels, momentum):
        super().__init__()
        self.depthwise = _conv_norm(in_channels, in_channels, 3, groups=in_channels,
                                    momentum=momentum)
        self.pointwise = _conv_norm(in_channels, out_channels, 1, momentum=momentum)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class _Baseline(nn.Module):
    def __init__(self, backbone, num_classes, dropout, momentum):
        super().__init__()
        low, _, high = backbone.channels
        self.backbone = backbone
        self.aspp = _ASPP(high, 256, (6, 12, 18), dropout, momentum)
        self.low_project = _conv_norm(low, 48, 1, momentum=momentum)
        self.stage1 = _conv_norm(304, 256, 3, momentum=momentum)
        self.stage2 = _conv_norm(256, 256, 3, momentum=momentum)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, images):
        low, _, high = self.backbone(images)
        x = _resize(self.aspp(high), low.shape[2:])
        x = self.stage2(self.stage1(torch.cat([x, self.low_project(low)], 1)))
        return _resize(self.classifier(x), images.shape[2:])


class _Light(nn.Module):
    def __init__(self, backbone, num_classes, width, skip_width, rates, dropout, momentum):
        super().__init__()
        low, mid, high = backbone.channels
        self.backbone = backbone
        self.aspp = _ASPP(high, width, rates, dropout, momentum)
        self.mid_project = _conv_norm(mid, skip_width, 1, momentum=momentum)
        self.stage1 = _Separable(width + skip_width, width, momentum)
        self.low_project = _conv_norm(low, skip_width, 1, momentum=momentum)
        self.stage2 = _Separable(width + skip_width, width, momentum)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images):
        low, mid, high = self.backbone(images)
        x = _resize(self.aspp(high), mid.shape[2:])
        x = self.stage1(torch.cat([x, self.mid_project(mid)], 1))
        x = _resize(x, low.shape[2:])
        x = self.stage2(torch.cat([x, self.low_project(low)], 1))
        return _resize(self.classifier(x), images.shape[2:])


class _DoubleConv(nn.Module):
    def __init__(self, in_channels, out_channels, momentum):
        super().__init__()
        first = _conv_norm(in_channels, out_channels, 3, momentum=momentum)
        self.double_conv = first + _conv_norm(out_channels, out_channels, 3, momentum=momentum)

    def forward(self, x):
        return self.double_conv(x)


class _Down(nn.Module):
    def __init__(self, in_channels, out_channels, momentum):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2),
                                          _DoubleConv(in_channels, out_channels, momentum))

    def forward(self, x):
        return self.maxpool_conv(x)


class _Up(nn.Module):
    def __init__(self, in_channels, out_channels, momentum):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
        self.conv = _DoubleConv(in_channels, out_channels, momentum)

    def forward(self, x, skip):
        x = self.up(x)
        rows, cols = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return self.conv(torch.cat([skip, x], 1))


class UNetTwin(nn.Module):
    def __init__(self, num_classes, width, momentum):
        super().__init__()
        self.inc = _DoubleConv(3, width, momentum)
        for i in range(4):
            inner, outer = 2 ** (i + 1) * width, 2 ** i * width
            self.add_module(f"down{i + 1}", _Down(outer, inner, momentum))
            self.add_module(f"up{4 - i}", _Up(inner, outer, momentum))
        self.outc = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, num_classes, 1)))

    def forward(self, images):
        skips = [self.inc(images)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            x = up(x, skips.pop())
        return self.outc(x)


def torch_twin(model, *, dropout=None, batch_norm_momentum=0.1):
    """Return the torch module with the architecture and weights of `model` (NCHW in and out).

    `dropout` overrides the ASPP's probability in the twin (0 to compare numbers).
    """
    momentum = batch_norm_momentum
    if model.name in ("unet_small", "unet"):
        twin = UNetTwin(model.num_classes, 16 if model.name == "unet_small" else 64, momentum)
        return _with_weights_of(model, twin)
    p = model.aspp.dropout.p if dropout is None else dropout
    if model.name == "mini":
        twin = _Light(_MobileNetV3(MINI, None, momentum), model.num_classes, 48, 16, (2, 4), p,
                      momentum)
    elif model.name == "deeplab_light":
        twin = _Light(_MobileNetV3(SMALL, 576, momentum), model.num_classes, 128, 32, (6, 12), p,
                      momentum)
    else:
        twin = _Baseline(_MobileNetV3(SMALL, 576, momentum), model.num_classes, p, momentum)
    return _with_weights_of(model, twin)


def _with_weights_of(model, twin):
    state = {name: torch.from_numpy(array) for name, array in to_torch_state_dict(model).items()}
    twin.to(next(iter(state.values())).dtype)
    twin.load_state_dict(state)
    return twin
