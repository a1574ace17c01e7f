"""The cases of ops, layers and losses once more, their arrays on a device.

In float64 kernels must agree with torch, and with central differences, as NumPy's functions do. In
float32 they may be off by 1e-6, or by twice of what torch's own float32 is off on the same data.
"""

import numpy as np

from minisegnet.backend import asnumpy
from minisegnet.errors import UserError
from minisegnet.verify.case import FINITE_DIFFERENCE_LIMIT, REFERENCE_LIMIT, Row
from minisegnet.verify.gradcheck import numeric_slope, relative_error

FLOAT32_LIMIT, FLOAT32_RATIO = 1e-6, 2.0
# Constants that are arrays on the device; others, such as class weights, are options.
MOVED = ("running_mean", "running_var", "residual", "target")


def run_on_device(case, xp, dtype, oracle=None, torch_device="cpu"):
    """Run a `GradientCase` on the device of array module `xp` in `dtype`; return its `Row`.

    `oracle` is the module `torch_oracle`, or None, and computes on `torch_device`. What is raised
    becomes a failure of the row, but for a UserError: this machine can run no case at all.
    """
    row = Row(case.kind, case.name, f"cuda {np.dtype(dtype).name}", case.options)
    try:
        _run(case, row, xp, np.dtype(dtype), oracle, torch_device)
    except UserError:
        raise
    except Exception as error:
        row.failures.append(f"raised {type(error).__name__}: {error}")
    return row


def _run(case, row, xp, dtype, oracle, torch_device):
    inputs = {name: array.astype(dtype) for name, array in case.inputs.items()}
    constants = {name: value.astype(dtype) if _is_float_array(value) else value
                 for name, value in case.constants.items()}
    moved_constants = {name: _to_device(xp, name, value) for name, value in constants.items()}

    def forward(arrays):
        moved = {name: xp.asarray(array) for name, array in arrays.items()}
        out, cache, *others = case.forward(**moved, **moved_constants)
        return [_to_host(array, case.kind) for array in (out, *others)], cache

    rng = np.random.default_rng(0)
    outputs, cache = forward(inputs)
    upstream = rng.standard_normal(np.shape(outputs[0])).astype(dtype)
    dout = xp.asarray(upstream) if np.ndim(upstream) else float(upstream)
    gradients = {name: asnumpy(gradient) for name, gradient in
                 zip(inputs, case.backward(dout, cache), strict=True)}
    if oracle is not None:
        _compare(case, row, oracle, torch_device, inputs, constants, upstream, outputs, gradients)
    if dtype == np.float64 and not case.has_kinks:
        names = list(inputs)
        directions = [rng.standard_normal(array.shape) for array in inputs.values()]
        slope = numeric_slope(lambda *arrays: forward(dict(zip(names, arrays)))[0][0],
                              list(inputs.values()), directions, upstream)
        ours = sum(np.sum(gradients[name] * direction)
                   for name, direction in zip(names, directions))
        row.record("finite_difference", {"slope": relative_error(ours, slope)},
                   FINITE_DIFFERENCE_LIMIT)


def _compare(case, row, oracle, torch_device, inputs, constants, upstream, outputs, gradients):
    """Compare with torch in float64; float32 also with what torch's float32 is off."""
    function = getattr(oracle, case.oracle)

    def torch_numbers(dtype):
        cast = [{name: value.astype(dtype) if _is_float_array(value) else value
                 for name, value in group.items()} for group in (inputs, constants)]
        found, gradient = oracle.gradients(function, *cast, upstream.astype(dtype), torch_device)
        return {**{f"output {i}": out for i, out in enumerate(found)},
                **{f"d{name}": value for name, value in gradient.items()}}

    exact = torch_numbers(np.float64)
    ours = {**{f"output {i}": out for i, out in enumerate(outputs)},
            **{f"d{name}": value for name, value in gradients.items()}}
    rounded = torch_numbers(np.float32) if upstream.dtype == np.float32 else None
    if rounded and case.kind == "layer":
        # Several kernels in a row: whose gradient their rounding ends up in is chance, for torch
        # as for us. All of it counts as one.
        exact, ours, rounded = ({"all together": np.concatenate([np.ravel(group[what])
                                                                 for what in exact])}
                                for group in (exact, ours, rounded))
    errors = {what: relative_error(ours[what], exact[what]) for what in ours}
    row.reference, row.reference_error = case.reference, max(errors.values())
    for what, error in errors.items():
        limit = REFERENCE_LIMIT if rounded is None else max(
            FLOAT32_LIMIT, FLOAT32_RATIO * relative_error(rounded[what], exact[what]))
        if not error <= limit:
            row.failures.append(f"{what} is off by {error:.1e}, more than {limit:.1e}")


def _is_float_array(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _to_device(xp, name, value):
    if name not in MOVED or not isinstance(value, np.ndarray):
        return value
    return xp.asarray(value.astype(np.uint8) if value.dtype.kind in "iu" else value)


def _to_host(array, kind):
    array = asnumpy(array)
    return array.reshape(()) if kind == "loss" else array
