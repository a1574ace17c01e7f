"""Every op, in every implementation, over its options."""

import numpy as np

from minisegnet import ops
from minisegnet.backend import get_array_module
from minisegnet.ops.dropout import philox_uniform
from minisegnet.verify.case import GradientCase

BOTH = ("loops", "numpy")


def cases(on_device=False):
    """Return the `GradientCase`s of all ops; `on_device` those for arrays on a device."""
    rng = np.random.default_rng(1)
    draw = rng.standard_normal
    N, H, W, C, OC = 2, 5, 4, 2, 3
    x = draw((N, H, W, C))

    found = []

    def add(name, inputs, implementations=(None,), *, has_kinks=False, note="", **options):
        for implementation in (None,) if on_device else implementations:
            found.append(_case(name, inputs, implementation, options, has_kinks, note))

    conv = {"x": x, "weight": draw((3, 3, C, OC)), "bias": draw(OC)}
    add("conv2d", conv, BOTH, padding=1)
    add("conv2d", conv, BOTH, stride=2, padding=1)
    add("conv2d", conv, BOTH, padding=2, dilation=2)
    add("conv2d", conv, BOTH, stride=3, padding=2, dilation=2)
    add("conv2d", {"x": x, "weight": draw((1, 1, C, OC))}, BOTH, note="1x1, no bias")
    add("conv2d", {"x": x, "weight": draw((1, 1, C, OC))}, BOTH, stride=2, note="1x1, no bias")
    add("conv2d", {"x": draw((1, 3, 2, C)), "weight": draw((3, 3, C, OC))}, BOTH,
        padding=4, dilation=4, note="wider than x")
    # More weights per output than im2col takes: the path of one matrix product per tap.
    wide = {"x": draw((1, 4, 3, 15)), "weight": draw((3, 3, 15, OC)), "bias": draw(OC)}
    add("conv2d", wide, ("numpy",), stride=2, padding=1, note="C=15")

    spread_out = {"x": x, "weight": draw((3, 3, OC, C)), "bias": draw(OC)}
    add("conv_transpose2d", spread_out, BOTH, stride=1, padding=1)
    add("conv_transpose2d", spread_out, BOTH, stride=2, padding=1)
    add("conv_transpose2d", spread_out, BOTH, stride=4, note="gaps")
    # Windows side by side, as in a UNet: a path of its own.
    add("conv_transpose2d", {"x": x, "weight": draw((2, 2, OC, C))}, BOTH, stride=2, note="2x2")

    for K in (3, 5):
        depthwise = {"x": x, "weight": draw((K, K, C))}
        add("depthwise_conv2d", depthwise, BOTH, padding=K // 2, note=f"{K}x{K}")
        add("depthwise_conv2d", depthwise, BOTH, stride=2, padding=K // 2, note=f"{K}x{K}")
        add("depthwise_conv2d", depthwise, BOTH, padding=K - 1, dilation=2, note=f"{K}x{K}")

    norm = {"x": 2 * x + 5, "weight": draw(C), "bias": draw(C)}
    running = {"running_mean": draw(C), "running_var": rng.uniform(0.5, 2, C)}
    add("batch_norm", norm, BOTH, training=True, **running)
    add("batch_norm", norm, BOTH, training=True, momentum=0.01, eps=1e-3, **running)
    add("batch_norm", norm, BOTH, training=False, **running)
    add("batch_norm", norm, BOTH, training=True, residual=draw(x.shape), note="a residual",
        **running)

    spread = {"x": 4 * x}  # reaches beyond every kink: -3, 0, 3 and 6
    kinks = {"x": np.array([-4.0, -3.0, -1.0, 0.0, 1.0, 3.0, 4.0, 6.0, 7.0])}
    for name in ("relu", "relu6", "hardsigmoid", "hardswish", "sigmoid"):
        add(name, spread)
        if name != "sigmoid":
            add(name, kinks, has_kinks=True, note="on the kinks")

    add("global_average_pool", {"x": x})
    add("repeat_pixels", {"x": draw((2, 1, 1, C))}, size=(3, 4))
    add("channel_scale", {"x": x, "gate": draw((N, 1, 1, C))}, BOTH)
    add("squeeze_excite_gate", {
        "pooled": draw((N, 1, 1, 4)), "weight1": draw((1, 1, 4, 3)), "bias1": draw(3),
        "weight2": draw((1, 1, 3, 4)), "bias2": draw(4)}, BOTH)
    add("max_pool2d", {"x": x}, BOTH, kernel_size=2)
    add("max_pool2d", {"x": x}, BOTH, kernel_size=3, stride=2, padding=1)
    add("upsample_bilinear", {"x": x}, BOTH, size=(20, 16))
    add("upsample_bilinear", {"x": x}, BOTH, size=(7, 13))
    add("upsample_bilinear", {"x": x}, BOTH, size=(3, 2))
    add("upsample_bilinear", {"x": draw((2, 1, 1, C))}, BOTH, size=(3, 4), note="1x1")
    return found + [_dropout(x, on_device), _concatenate(draw)]


def _case(name, inputs, implementation, options, has_kinks, note):
    """Return the case of one op; `implementation` is None where it has only one."""
    chosen = {"implementation": implementation} if implementation else {}

    # Looked up when called, so that what is verified is what the package holds at that moment.
    def forward(**arguments):
        return getattr(ops, f"{name}_forward")(**arguments, **chosen)

    def backward(dout, cache):
        gradients = getattr(ops, f"{name}_backward")(dout, cache, **chosen)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return gradients[:len(inputs)]  # without the bias's None where there is no bias

    words = [note] if note else []
    words += [f"{key}={value}" for key, value in options.items()
              if not isinstance(value, np.ndarray)]
    return GradientCase("op", name, inputs, options, forward, backward, name,
                        implementation or "numpy", options=", ".join(words), has_kinks=has_kinks)


def _dropout(x, on_device):
    p = 0.3
    if on_device:
        kept = philox_uniform(7, 0, x.size).reshape(x.shape) >= p
    else:
        kept = np.random.default_rng(7).random(x.shape, dtype="float32") >= p

    def forward(x, kept, p):
        rng = ops.DeviceRandom(7, get_array_module(x)) if on_device else np.random.default_rng(7)
        return ops.dropout_forward(x, p, rng)

    def backward(dout, cache):
        return [ops.dropout_backward(dout, cache)]

    return GradientCase("op", "dropout", {"x": x}, {"kept": kept, "p": p}, forward, backward,
                        "dropout", reference="autograd", options=f"p={p}")


def _concatenate(draw):
    inputs = {name: draw((2, 3, 4, C)) for name, C in (("a", 1), ("b", 4), ("c", 2))}

    def forward(a, b, c):
        return ops.concatenate_forward([a, b, c])

    def backward(dout, cache):
        return ops.concatenate_backward(dout, cache)

    return GradientCase("op", "concatenate", inputs, {}, forward, backward, "concatenate",
                        options="C=1+4+2")
