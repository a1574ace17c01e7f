"""Checking a gradient without any other library: nudge an input, see what the output does.

Central differences, `f'(x) = (f(x + h) - f(x - h)) / 2h`, are wrong by about h^2 from the curve
and by about 1e-16/h from rounding: in float64, h = 1e-5 leaves ten good digits. float32 leaves
hardly three, which is why gradients are checked in float64 and trained in float32.

A function with many outputs is checked through a weighted sum of them, `sum(upstream * f(x))`,
whose gradient is what the backward pass returns for `dout = upstream`. The weights must be random:
some wrong backward passes (batch norm, softmax) are right for `upstream = 1`.
"""

import numpy as np

STEP = 1e-5


def relative_error(actual, expected):
    """Return `norm(actual - expected) / norm(expected)` over all elements, as a float.

    0 where the two are equal; infinite where the shapes differ, where a number of one is not
    finite, or where only `expected` is zero. nan in both (an undefined metric) counts as equal.
    """
    actual, expected = (np.asarray(array, dtype=np.float64) for array in (actual, expected))
    if actual.shape != expected.shape:
        return float("inf")
    defined = ~(np.isnan(actual) & np.isnan(expected))
    actual, expected = actual[defined], expected[defined]
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    difference, scale = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    if difference == 0:
        return 0.0
    return float(difference / scale) if scale > 0 else float("inf")


def numeric_gradient(function, x, upstream, *, step=STEP):
    """Return the gradient of `sum(upstream * function(x))` by central differences, shaped as x.

    One element of `x` is moved at a time: two calls per element. `x` itself is left alone.
    """
    _require_float64(x)
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        direction = np.zeros_like(x)
        direction[index] = 1
        gradient[index] = numeric_slope(function, [x], [direction], upstream, step=step)
    return gradient


def numeric_slope(function, inputs, directions, upstream, *, step=STEP):
    """Return d/dt of `sum(upstream * function(*(x + t * direction)))` at t = 0, a float.

    Two calls whatever the sizes. The slope equals the sum of all `gradient * direction`, so one
    random direction through all inputs at once checks every gradient a little.
    """
    for x in inputs:
        _require_float64(x)
    ahead = function(*(x + step * d for x, d in zip(inputs, directions)))
    behind = function(*(x - step * d for x, d in zip(inputs, directions)))
    # Subtract first, sum afterwards: the other way round, large outputs would drown the change.
    return float(np.sum(upstream * (ahead - behind))) / (2 * step)


def _require_float64(x):
    if x.dtype != np.float64:
        raise TypeError(f"gradients are checked in float64, got {x.dtype}: x.astype(np.float64)")
