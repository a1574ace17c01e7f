"""What the ops refuse at their doors, each in the same words whatever computes."""

import numpy as np
import pytest

from minisegnet import ops
from minisegnet.losses import cross_entropy_forward, upsampled_prediction
from minisegnet.ops._windows import LARGEST

X = np.ones((1, 4, 4, 2))
OPS = {
    "conv2d": (X, np.ones((1, 1, 2, 3))),
    "conv_transpose2d": (X, np.ones((2, 2, 3, 2))),
    "depthwise_conv2d": (X, np.ones((3, 3, 2))),
    "batch_norm": (X, np.ones(2), np.ones(2), np.ones(2), np.ones(2)),
    "max_pool2d": (X, 2),
    "upsample_bilinear": (X, (8, 8)),
}


@pytest.mark.parametrize("name", OPS)
def test_an_unknown_implementation_is_refused_with_the_choices(name):
    forward, backward = (getattr(ops, f"{name}_{way}") for way in ("forward", "backward"))
    options = {"training": True} if name == "batch_norm" else {}
    out, cache, *_ = forward(*OPS[name], **options)
    for call in (lambda: forward(*OPS[name], **options, implementation="fast"),
                 lambda: backward(out, cache, implementation="fast")):
        with pytest.raises(ValueError, match="'fast' is not one of loops, numpy"):
            call()


def test_so_does_cross_entropy():
    with pytest.raises(ValueError, match="'fast' is not one of loops, numpy"):
        cross_entropy_forward(X, np.zeros((1, 4, 4), int), implementation="fast")


# ---------------------------------------------------------------- upstream gradients

BIAS = np.ones(3)
GATE = (np.ones((2, 1, 1, 2)), np.ones((1, 1, 2, 3)), np.ones(3), np.ones((1, 1, 3, 2)),
        np.ones(2))
# What the backward of each op adds to, where it is given.
GIVEN = {"conv2d": ("dweight", "dbias"), "conv_transpose2d": ("dweight", "dbias"),
         "depthwise_conv2d": ("dweight",), "batch_norm": ("dweight", "dbias"),
         "squeeze_excite_gate": ("dweight1", "dbias1", "dweight2", "dbias2")}
ALL = {**OPS, "conv2d": (*OPS["conv2d"], BIAS),
       "conv_transpose2d": (*OPS["conv_transpose2d"], BIAS), "squeeze_excite_gate": GATE,
       "channel_scale": (X, np.ones((1, 1, 1, 2))), "global_average_pool": (X,),
       "repeat_pixels": (np.ones((1, 1, 1, 2)), (3, 3)), "concatenate": ([X, X],), "relu": (X,)}
implementations = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])


def run(name, implementation, arguments=None):
    """Return (out, a function of dout and options) of an op."""
    options = {"training": True} if name == "batch_norm" else {}
    forward, backward = (getattr(ops, f"{name}_{way}") for way in ("forward", "backward"))
    out, cache, *_ = forward(*(arguments or ALL[name]), **options, implementation=implementation)
    return out, lambda dout, **given: backward(dout, cache, **given,
                                               implementation=implementation)


@implementations
@pytest.mark.parametrize("name", ALL)
def test_an_upstream_gradient_has_the_dtype_of_activations(name, implementation):
    out, backward = run(name, implementation)
    backward(out)
    for dtype in (np.int64, np.complex128, bool):
        with pytest.raises(TypeError, match="float32 or float64|dtype float64"):
            backward(out.astype(dtype))
    if name in GIVEN or name in ("channel_scale", "relu"):  # others do not know what x was
        with pytest.raises(TypeError, match="float32"):
            backward(out.astype(np.float32))


@implementations
@pytest.mark.parametrize("name, given", [(name, each) for name in GIVEN for each in GIVEN[name]])
def test_what_a_gradient_is_added_to_is_as_the_parameter(name, given, implementation):
    out, backward = run(name, implementation)
    right = dict(zip(GIVEN[name], backward(out)[1:]))[given]
    shapes = (right.size - 1,), (right.size + 1,), (*right.shape, 1)
    for wrong in map(np.zeros, shapes):
        with pytest.raises(ValueError, match=f"{name} backward adds to a contiguous {given} of"):
            backward(out, **{given: wrong})
        assert (wrong == 0).all()
    with pytest.raises(ValueError, match="with gaps or another order of axes"):
        backward(out, **{given: np.zeros((*right.shape, 2))[..., 0]})
    with pytest.raises(TypeError, match=f"adds to a {given} of float64, not float32"):
        backward(out, **{given: np.zeros(right.shape, np.float32)})
    into = np.ones(right.shape)
    backward(out, **{given: into})
    np.testing.assert_allclose(into, 1 + right, rtol=1e-12)


# ---------------------------------------------------------------- nothing, and too much

E = np.ones((1, 0, 4, 2))
EMPTY = {
    "conv2d": [(X[:0], np.ones((1, 1, 2, 3))), (X, np.ones((1, 1, 2, 0))),
               (X[..., :0], np.ones((1, 1, 0, 3)))],
    "conv_transpose2d": [(X[:0], np.ones((2, 2, 3, 2))), (X, np.ones((2, 2, 0, 2)))],
    "depthwise_conv2d": [(X[:0], np.ones((3, 3, 2))), (X[..., :0], np.ones((3, 3, 0)))],
    "batch_norm": [(E, *OPS["batch_norm"][1:]), (X[..., :0], *[np.ones(0)] * 4)],
    "max_pool2d": [(X[:0], 2), (X[..., :0], 2)],
    "repeat_pixels": [(np.ones((0, 1, 1, 2)), (3, 3)), (np.ones((1, 1, 1, 0)), (3, 3))],
    "upsample_bilinear": [(E, (8, 8))], "global_average_pool": [(E,)],
    "channel_scale": [(E, np.ones((1, 1, 1, 2)))],
}


@implementations
@pytest.mark.parametrize("name, arguments", [(name, each) for name in EMPTY
                                             for each in EMPTY[name]])
def test_a_map_without_a_number_is_refused(name, arguments, implementation):
    options = {"training": False} if name == "batch_norm" else {}
    with pytest.raises(ValueError, match="none of them 0"):
        getattr(ops, f"{name}_forward")(*arguments, **options, implementation=implementation)


@implementations
def test_a_prediction_of_no_pixels_is_refused(implementation):
    for size in ((0, 4), (4, 0), (4,)):
        with pytest.raises(ValueError, match=r"expected \(height, width\), both at least 1"):
            upsampled_prediction(X, size, implementation=implementation)


@implementations
@pytest.mark.parametrize("shape", [(0,), (1, 0, 4, 2), (0, 4, 4, 2)], ids=str)
def test_element_by_element_nothing_is_made_of_nothing(rng, shape, implementation):
    x, chosen = np.ones(shape, np.float32), {"implementation": implementation}
    for out in (ops.add(x, x, **chosen), ops.add_into(x.copy(), x, **chosen),
                ops.copy(x, **chosen), ops.cast(x, np.float16, **chosen),
                ops.relu_forward(x, **chosen)[0]):
        assert out.shape == shape
    place = ops.DeviceRandom(0, np)
    out, cache = ops.dropout_forward(x, 0.5, place, **chosen)
    assert out.shape == ops.dropout_backward(out, cache, **chosen).shape == shape


@implementations
@pytest.mark.parametrize("channels", [(0, 3), (4, 0, 3), (0,), (0,) * 7, (3,) * 6 + (0,)], ids=str)
@pytest.mark.parametrize("N", [0, 2])
def test_inputs_without_a_channel_or_a_picture_are_concatenated(rng, channels, N, implementation):
    inputs = [rng.standard_normal((N, 3, 5, C)) for C in channels]
    out, cache = ops.concatenate_forward(inputs, implementation=implementation)
    np.testing.assert_array_equal(out, np.concatenate(inputs, axis=3))
    for piece, x in zip(ops.concatenate_backward(out, cache, implementation=implementation),
                        inputs, strict=True):
        np.testing.assert_array_equal(piece, x)


@implementations
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "depthwise_conv2d", "max_pool2d"])
def test_a_stride_beyond_every_map_is_refused(name, implementation):
    forward = getattr(ops, f"{name}_forward")
    for size in (2 ** 30, 2 ** 31 - 1):
        with pytest.raises(ValueError, match=f"stride must be at most {LARGEST}, not {size}"):
            forward(*ALL[name], stride=size, implementation=implementation)
    if name != "conv_transpose2d":  # there it would make a map of as many pixels
        out, cache = forward(*ALL[name], stride=LARGEST, implementation=implementation)
        assert out.shape[1:3] == (1, 1)
        getattr(ops, f"{name}_backward")(out, cache, implementation=implementation)
