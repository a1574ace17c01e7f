import numpy as np
import pytest

from minisegnet.ops.upsample import (
    interpolation_matrix,
    row_bands,
    upsample_bilinear_backward,
    upsample_bilinear_forward,
)

IMPLEMENTATIONS = ("loops", "numpy")
# (H, W) -> (OH, OW): whole and broken factors, up, down, mixed, from and to one pixel, no change
SIZES = [
    ((3, 4), (12, 16)), ((5, 7), (13, 11)), ((9, 8), (4, 3)), ((4, 9), (7, 5)), ((1, 1), (3, 5)),
    ((6, 5), (1, 1)), ((4, 3), (4, 3)), ((2, 3), (40, 3)), ((33, 2), (70, 9)),
]


def relative_error(found, expected):
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


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

    tx = torch.tensor(np.moveaxis(x, 3, 1), requires_grad=True)
    tout = torch.nn.functional.interpolate(tx, out_size, mode="bilinear", align_corners=False)
    tout.backward(torch.tensor(np.moveaxis(dout, 3, 1)))
    assert relative_error(out, np.moveaxis(tout.detach().numpy(), 1, 3)) < 1e-13
    assert relative_error(dx, np.moveaxis(tx.grad.numpy(), 1, 3)) < 1e-13


@pytest.mark.parametrize("in_size, out_size", SIZES)
def test_implementations_agree_in_float32_and_keep_it(rng, in_size, out_size):
    x = rng.standard_normal((2, *in_size, 3)).astype(np.float32)
    dout = rng.standard_normal((2, *out_size, 3)).astype(np.float32)
    results = []
    for implementation in IMPLEMENTATIONS:
        out, cache = upsample_bilinear_forward(x, out_size, implementation=implementation)
        dx = upsample_bilinear_backward(dout, cache, implementation=implementation)
        assert out.dtype == dx.dtype == np.float32
        results.append((out, dx))
    for found, expected in zip(*results):
        assert relative_error(found, expected) < 1e-6


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


@pytest.mark.parametrize("in_size, out_size", SIZES)
def test_backward_is_the_exact_transpose(rng, in_size, out_size):
    x = rng.standard_normal((3, *in_size, 2))
    dout = rng.standard_normal((3, *out_size, 2))
    out, cache = upsample_bilinear_forward(x, out_size)
    dx = upsample_bilinear_backward(dout, cache)
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
