"""Pure forward and backward functions, NHWC: `<op>_forward(...) -> (out, cache)`."""

from minisegnet.ops.activations import (
    hardsigmoid_backward,
    hardsigmoid_forward,
    hardswish_backward,
    hardswish_forward,
    relu6_backward,
    relu6_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minisegnet.ops.batch_norm import batch_norm_backward, batch_norm_forward
from minisegnet.ops.channel_scale import (
    channel_scale_backward,
    channel_scale_backward_gate,
    channel_scale_backward_input,
    channel_scale_forward,
)
from minisegnet.ops.concatenate import concatenate_backward, concatenate_forward
from minisegnet.ops.conv2d import conv2d_backward, conv2d_forward
from minisegnet.ops.conv_transpose2d import conv_transpose2d_backward, conv_transpose2d_forward
from minisegnet.ops.depthwise_conv2d import depthwise_conv2d_backward, depthwise_conv2d_forward
from minisegnet.ops.dropout import DeviceRandom, dropout_backward, dropout_forward
from minisegnet.ops.elementwise import add, add_into, cast, copy
from minisegnet.ops.pooling import (
    global_average_pool_backward,
    global_average_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
    repeat_pixels_backward,
    repeat_pixels_forward,
)
from minisegnet.ops.squeeze_excite import squeeze_excite_gate_backward, squeeze_excite_gate_forward
from minisegnet.ops.upsample import upsample_bilinear_backward, upsample_bilinear_forward

__all__ = [
    "DeviceRandom",
    "add", "add_into",
    "batch_norm_backward", "batch_norm_forward",
    "cast",
    "channel_scale_backward", "channel_scale_backward_gate", "channel_scale_backward_input",
    "channel_scale_forward",
    "concatenate_backward", "concatenate_forward",
    "conv2d_backward", "conv2d_forward",
    "conv_transpose2d_backward", "conv_transpose2d_forward",
    "copy",
    "depthwise_conv2d_backward", "depthwise_conv2d_forward",
    "dropout_backward", "dropout_forward",
    "global_average_pool_backward", "global_average_pool_forward",
    "hardsigmoid_backward", "hardsigmoid_forward",
    "hardswish_backward", "hardswish_forward",
    "max_pool2d_backward", "max_pool2d_forward",
    "relu6_backward", "relu6_forward",
    "relu_backward", "relu_forward",
    "repeat_pixels_backward", "repeat_pixels_forward",
    "sigmoid_backward", "sigmoid_forward",
    "squeeze_excite_gate_backward", "squeeze_excite_gate_forward",
    "upsample_bilinear_backward", "upsample_bilinear_forward",
]
