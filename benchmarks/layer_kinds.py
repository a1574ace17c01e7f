"""Forward and backward of each kind of layer, ours and torch's, at the sizes the models use."""

import numpy as np
import torch
from torch.nn import functional as F

from minisegnet import layers, ops
from minisegnet.losses import Criterion
from minisegnet.optim import AdamW


def layer_kinds(N, H, W, K, *, channels_last=False):
    """Yield (kind, our function, torch's function), each a forward and a backward.

    (N, H, W) are the batch and the image size; every kind stands at its own stride.
    """
    rng = np.random.default_rng(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    def nchw(array):
        return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)

    def pair(kind, x, forward, backward, torch_forward, *parameters):
        """`torch_forward(x, *parameters)` gets the parameters as leaves, x in NCHW."""
        dout = draw(*forward(x)[0].shape)
        leaves = [nchw(x), *(torch.from_numpy(array) for array in parameters)]
        for leaf in leaves:
            leaf.requires_grad_(True)
        torch_dout = nchw(dout)

        def ours():
            backward(dout, forward(x)[1])

        def theirs():
            for leaf in leaves:
                leaf.grad = None
            torch_forward(*leaves).backward(torch_dout)

        return kind, ours, theirs

    def conv(kind, stride, C, OC, kernel, dilation=1):
        padding = dilation * (kernel - 1) // 2
        window = {"padding": padding, "dilation": dilation}
        weight = draw(kernel, kernel, C, OC)
        return pair(kind, draw(N, -(-H // stride), -(-W // stride), C),
                    lambda x: ops.conv2d_forward(x, weight, **window), ops.conv2d_backward,
                    lambda x, w: F.conv2d(x, w, **window),
                    np.ascontiguousarray(weight.transpose(3, 2, 0, 1)))

    def depthwise(kind, stride, C, kernel, dilation=1):
        window = {"padding": dilation * (kernel - 1) // 2, "dilation": dilation}
        weight = draw(kernel, kernel, C)
        return pair(kind, draw(N, -(-H // stride), -(-W // stride), C),
                    lambda x: ops.depthwise_conv2d_forward(x, weight, **window),
                    ops.depthwise_conv2d_backward,
                    lambda x, w: F.conv2d(x, w, groups=C, **window),
                    np.ascontiguousarray(weight.transpose(2, 0, 1)[:, None]))

    def activation(kind, stride, C, name):
        return pair(kind, draw(N, -(-H // stride), -(-W // stride), C),
                    getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward"),
                    getattr(F, name))

    def batch_norm(kind, stride, C):
        weight, bias, mean, var = (np.full(C, value, np.float32) for value in (1, 0, 0, 1))
        torch_mean, torch_var = torch.zeros(C), torch.ones(C)
        return pair(kind, draw(N, -(-H // stride), -(-W // stride), C),
                    lambda x: ops.batch_norm_forward(x, weight, bias, mean, var, training=True),
                    ops.batch_norm_backward,
                    lambda x, w, b: F.batch_norm(x, torch_mean, torch_var, w, b, training=True),
                    weight, bias)

    yield conv("conv 1x1, 160 -> 128, stride 4", 4, 160, 128, 1)
    yield conv("conv 1x1, 96 -> 576, stride 16", 16, 96, 576, 1)
    yield conv("conv 3x3, 304 -> 256, stride 4", 4, 304, 256, 3)
    yield conv("conv 3x3 dilation 6, 576 -> 128, stride 16", 16, 576, 128, 3, 6)
    yield depthwise("depthwise 3x3, 160, stride 4", 4, 160, 3)
    yield depthwise("depthwise 5x5, 240, stride 16", 16, 240, 5)
    yield depthwise("depthwise 5x5 dilation 2, 576, stride 16", 16, 576, 5, 2)
    yield batch_norm("batch norm, 160, stride 4", 4, 160)
    yield activation("relu, 160, stride 4", 4, 160, "relu")
    yield activation("hardswish, 16, stride 2", 2, 16, "hardswish")
    yield _upsampled_loss(draw(N, -(-H // 4), -(-W // 4), K), (N, H, W), K, rng, nchw)
    yield _adamw(draw)


def _upsampled_loss(coarse, shape, K, rng, nchw):
    criterion = Criterion("ce")
    target = rng.integers(0, K, shape).astype(np.uint8)
    leaf, torch_target = nchw(coarse).requires_grad_(True), torch.from_numpy(target.astype("i8"))

    def ours():
        _, cache = criterion.forward_upsampled(coarse, target)
        criterion.backward_upsampled(1.0, cache)

    def theirs():
        leaf.grad = None
        logits = F.interpolate(leaf, shape[1:], mode="bilinear", align_corners=False)
        F.cross_entropy(logits, torch_target, ignore_index=255).backward()

    return f"upsample x4 and cross-entropy, {K} classes", ours, theirs


def _adamw(draw):
    """As many numbers as the light network has, in arrays of 10,000."""
    model = layers.Layer()
    for i in range(250):
        model.add_parameter(f"p{i}", draw(10_000))
    optimizer = AdamW(model)
    optimizer.flat.grad[:] = draw(optimizer.flat.grad.size)
    leaves = [torch.from_numpy(array.copy()).requires_grad_(True)
              for _, array in model.named_parameters()]
    for leaf, (_, gradient) in zip(leaves, model.named_gradients()):
        leaf.grad = torch.from_numpy(gradient.copy())
    torch_optimizer = torch.optim.AdamW(leaves)
    return "AdamW, 2.5 million parameters", optimizer.step, torch_optimizer.step
