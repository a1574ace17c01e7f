import numpy as np
import pytest
from checks import assert_float32_accurate

from minisegnet.cuda import emulated_device, emulator
from minisegnet.ops import upsample
from minisegnet.ops.upsample import (
    axis_tables,
    interpolation_matrix,
    row_bands,
    upsample_bilinear_backward,
    upsample_bilinear_forward,
)

IMPLEMENTATIONS = ("loops", "numpy", "cuda_cpu")
# (H, W) -> (OH, OW): whole and broken factors, up, down, mixed, from and to one pixel, no change
SIZES = [
    ((3, 4), (12, 16)), ((5, 7), (13, 11)), ((9, 8), (4, 3)), ((4, 9), (7, 5)), ((1, 1), (3, 5)),
    ((6, 5), (1, 1)), ((4, 3), (4, 3)), ((2, 3), (40, 3)), ((33, 2), (70, 9)),
]


def relative_error(found, expected):
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def torch_results(torch, x, dout, dtype=None):
    """Return torch's output and gradient for arrays as NHWC."""
    x, dout = (np.moveaxis(array, 3, 1).astype(dtype or array.dtype) for array in (x, dout))
    tx = torch.tensor(x, requires_grad=True)
    out = torch.nn.functional.interpolate(tx, dout.shape[2:], mode="bilinear", align_corners=False)
    out.backward(torch.tensor(dout))
    return [np.moveaxis(array.numpy(), 1, 3) for array in (out.detach(), tx.grad)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_line_doubled_by_hand(implementation):
    x = np.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    out, cache = upsample_bilinear_forward(x, (1, 4), implementation=implementation)
    # centres at -0.25 -> 0, 0.25, 0.75, 1.25 -> 1
    assert out.ravel().tolist() == [0.0, 1.0, 3.0, 4.0]
    dout = np.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 4, 1)
    dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
    assert dx.ravel().tolist() == [1.0 + 7.5 + 25.0, 2.5 + 75.0 + 1000.0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("in_size, out_size", SIZES)
def test_forward_and_dx_match_torch(rng, torch, implementation, in_size, out_size):
    x = rng.standard_normal((2, *in_size, 3))
    dout = rng.standard_normal((2, *out_size, 3))
    out, cache = upsample_bilinear_forward(x, out_size, implementation=implementation)
    dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
    expected, expected_dx = torch_results(torch, x, dout)
    assert relative_error(out, expected) < 1e-13
    assert relative_error(dx, expected_dx) < 1e-13


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("in_size, out_size", SIZES)
def test_float32_is_kept_and_as_accurate_as_torch(rng, torch, implementation, in_size, out_size):
    x = rng.standard_normal((2, *in_size, 4)).astype(np.float32)
    dout = rng.standard_normal((2, *out_size, 4)).astype(np.float32)
    out, cache = upsample_bilinear_forward(x, out_size, implementation=implementation)
    dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
    exact, rough = torch_results(torch, x, dout, np.float64), torch_results(torch, x, dout)
    for found, exactly, roughly in zip((out, dx), exact, rough):
        assert_float32_accurate(found, exactly, roughly)


# From one block to several per row, C a multiple of the vector and not.
@pytest.mark.parametrize("shape, size", [
    ((1, 3, 9, 33), (5, 18)), ((2, 4, 5, 12), (7, 40)), ((1, 2, 40, 64), (5, 33)),
    ((3, 1, 1, 8), (4, 3)), ((1, 2, 600, 1), (3, 300)), ((1, 5, 3, 5), (2, 99)),
], ids=str)
def test_kernels_match_torch_at_every_width(rng, torch, shape, size):
    x, dout = rng.standard_normal(shape), rng.standard_normal((shape[0], *size, shape[3]))
    out, cache = upsample_bilinear_forward(x, size, implementation="cuda_cpu")
    dx = upsample_bilinear_backward(dout, cache, implementation="cuda_cpu")
    expected, expected_dx = torch_results(torch, x, dout)
    assert relative_error(out, expected) < 1e-13
    assert relative_error(dx, expected_dx) < 1e-13


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_kernels_give_the_same_bits_in_every_order_of_threads(rng, compiler, order):
    x, dout = rng.standard_normal((2, 3, 5, 8)), rng.standard_normal((2, 7, 11, 8))
    out, cache = upsample_bilinear_forward(x, (7, 11), implementation="cuda_cpu")
    dx = upsample_bilinear_backward(dout, cache, implementation="cuda_cpu")
    with emulator.fiber_order(order):
        again, _ = upsample_bilinear_forward(x, (7, 11), implementation="cuda_cpu")
        dx_again = upsample_bilinear_backward(dout, cache, implementation="cuda_cpu")
    assert (again == out).all() and (dx_again == dx).all()


@pytest.mark.parametrize("C", [3, 8])
def test_a_device_gives_the_same_bits_and_is_sent_the_tables_once(rng, compiler, monkeypatch, C):
    x, dout = (rng.standard_normal((2, *size, C)).astype(np.float32) for size in ((4, 6), (9, 5)))
    on_device = [emulated_device.asarray(array) for array in (x, dout)]
    upsample._tables_on.cache_clear()
    uploads, upload = [], emulated_device.asarray
    monkeypatch.setattr(emulated_device, "asarray", lambda *a: uploads.append(a) or upload(*a))
    for _ in range(2):
        out, cache = upsample_bilinear_forward(on_device[0], (9, 5))
        dx = upsample_bilinear_backward(on_device[1], cache)
    assert len(uploads) == 10  # two axes of five tables
    assert (out.get() == upsample_bilinear_forward(x, (9, 5), implementation="cuda_cpu")[0]).all()
    assert (dx.get() == upsample_bilinear_backward(dout, cache, implementation="cuda_cpu")).all()


@pytest.mark.parametrize("in_size, out_size", [(1, 1), (1, 9), (9, 1), (5, 5), (4, 16), (3, 8),
                                               (16, 4), (100, 7), (7, 6), (2, 75)])
def test_the_tables_of_the_kernels_are_the_interpolation_matrix(in_size, out_size):
    tables = axis_tables(in_size, out_size, np.float64)
    forward, backward = np.zeros((out_size, in_size)), np.zeros((out_size, in_size))
    for o in range(out_size):
        forward[o, tables.first[o]] += 1 - tables.share[o]
        forward[o, min(tables.first[o] + 1, in_size - 1)] += tables.share[o]
    for i, (start, stop) in enumerate(zip(tables.start, tables.stop)):
        backward[start:stop, i] = tables.weight[i, :stop - start]
    expected = interpolation_matrix(in_size, out_size)
    np.testing.assert_array_equal(forward, expected)
    np.testing.assert_array_equal(backward, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dx_matches_central_differences(rng, implementation):
    x = rng.standard_normal((1, 3, 2, 2))
    dout = rng.standard_normal((1, 5, 7, 2))
    _, cache = upsample_bilinear_forward(x, (5, 7), implementation=implementation)
    dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
    expected = np.empty_like(x)
    for position in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[position] = 1.0  # the operation is linear: one unit tells the exact derivative
        expected[position] = (upsample_bilinear_forward(unit, (5, 7))[0] * dout).sum()
    assert relative_error(dx, expected) < 1e-13


@pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])
@pytest.mark.parametrize("in_size, out_size", SIZES)
def test_backward_is_the_exact_transpose(rng, implementation, in_size, out_size):
    x = rng.standard_normal((3, *in_size, 2))
    dout = rng.standard_normal((3, *out_size, 2))
    out, cache = upsample_bilinear_forward(x, out_size, implementation=implementation)
    dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
    assert np.vdot(out, dout) == pytest.approx(np.vdot(x, dx), rel=1e-11, abs=1e-11)


def test_rows_of_the_matrix_sum_to_one_and_bands_hold_all_of_it():
    for in_size, out_size in ((3, 12), (7, 5), (1, 4), (9, 9), (40, 160)):
        matrix = interpolation_matrix(in_size, out_size)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-15)
        assert ((matrix > 0).sum(axis=1) <= 2).all()
        rebuilt = np.zeros_like(matrix)
        for rows, sources, block in row_bands(matrix, 4):
            rebuilt[rows, sources] = block
        assert (rebuilt == matrix).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_non_contiguous_inputs_are_read_right_and_left_alone(rng, implementation):
    x = rng.standard_normal((2, 8, 6, 10))[:, ::2, :, 1::3]
    dout = np.moveaxis(rng.standard_normal((2, 3, 9, 7)), 1, 3)
    x_before, dout_before = x.copy(), dout.copy()
    out, cache = upsample_bilinear_forward(x, (9, 7), implementation=implementation)
    dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
    assert (x == x_before).all() and (dout == dout_before).all()
    expected, cache = upsample_bilinear_forward(x_before, (9, 7), implementation="loops")
    assert relative_error(out, expected) < 1e-13
    expected = upsample_bilinear_backward(dout_before, cache, implementation="loops")
    assert relative_error(dx, expected) < 1e-13


def test_unusable_input_is_refused():
    x = np.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match=r"\(2, 2, 3\)"):
        upsample_bilinear_forward(x[0], (4, 4))
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        upsample_bilinear_forward(x, (0, 4))
    with pytest.raises(TypeError, match="int64"):
        upsample_bilinear_forward(x.astype(np.int64), (4, 4))
    _, cache = upsample_bilinear_forward(x, (4, 4))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        upsample_bilinear_backward(np.zeros((1, 4, 5, 3)), cache)
