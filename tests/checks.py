"""What the tests of many files share: relative agreement, awkward arrays, refusals."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from minisegnet.errors import UserError
from minisegnet.verify.gradcheck import numeric_gradient, relative_error


def assert_agrees(actual, expected, limit=1e-12):
    """Assert that two arrays have one shape and differ by at most `limit`, relative by norm."""
    assert np.shape(actual) == np.shape(expected)
    error = relative_error(actual, expected)
    assert error <= limit, f"relative error {error:.1e}, more than {limit:.0e}"


def assert_float32_accurate(actual, exact, torch_float32):
    """Assert that float32 numbers are as near the float64 `exact` as float32 can be asked to be.

    At most 1e-6 off, or twice as far as torch's own float32 result on the same data.
    """
    assert actual.dtype == np.float32
    assert_agrees(actual, exact, max(1e-6, 2 * relative_error(torch_float32, exact)))


def assert_finite_differences_agree(function, inputs, gradients, upstream, limit=1e-8):
    """Assert that each gradient is that of `sum(upstream * function(*inputs))`."""
    for i, gradient in enumerate(gradients):
        def of_one(x, i=i):
            return function(*inputs[:i], x, *inputs[i + 1:])

        assert_agrees(gradient, numeric_gradient(of_one, inputs[i], upstream), limit)


def assert_refused(action, *words):
    """`action` raises a UserError of one line that has all `words` in it."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def frozen(*arrays):
    """Return read-only copies: whoever writes into an input is caught."""
    copies = [np.array(array) for array in arrays]
    for copy in copies:
        copy.flags.writeable = False
    return copies[0] if len(copies) == 1 else copies


def non_contiguous(array):
    """Return a read-only array of the same numbers with gaps between them, in reversed rows."""
    spread = np.zeros(array.shape[:-1] + (2 * array.shape[-1],), array.dtype)
    view = spread[:, ::-1, :, ::2] if array.ndim == 4 else spread[..., ::2]
    view[...] = array
    view.flags.writeable = False
    assert not view.flags.c_contiguous or array.size < 2
    return view


def benchmark_module(name):
    """Return `benchmarks/<name>.py` as a module: scripts are no package, yet worth testing."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
