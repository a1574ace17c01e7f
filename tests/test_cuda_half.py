"""The emulator's 16-bit numbers are those of the hardware, bit by bit."""

import numpy as np
import pytest
from small_kernels import in_every_order, kernel_file

from minisegnet.cuda import emulated_device
from minisegnet.ops import depthwise_conv2d_backward, depthwise_conv2d_forward
from minisegnet.ops.depthwise_conv2d import KERNELS

CODE = """
__global__ void half_kernel(const unsigned* x, short* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    const __half value = __half(__int_as_float(x[i]));
    out[i] = *reinterpret_cast<const short*>(&value);
  }
}
__global__ void brain_kernel(const unsigned* x, short* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    const __nv_bfloat16 value = __nv_bfloat16(__int_as_float(x[i]));
    out[i] = *reinterpret_cast<const short*>(&value);
  }
}
__global__ void half_float_kernel(const short* x, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = float(*reinterpret_cast<const __half*>(x + i));
}
__global__ void brain_float_kernel(const short* x, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = float(*reinterpret_cast<const __nv_bfloat16*>(x + i));
}
__global__ void pack_kernel(const STORE* x, STORE* out) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  REAL values[4];
  load(x + i, values);
  for (int v = 0; v < 4; v++) values[v] = values[v] * REAL(3);
  store(out + i, values);
}
"""
PATTERNS = np.arange(65536, dtype=np.uint16)


@pytest.fixture(scope="module")
def kernels(compiler, tmp_path_factory):
    return kernel_file(tmp_path_factory.mktemp("cuda"), CODE)


def rounded(kernels, name, x):
    """Return the 16-bit patterns of float32 numbers."""
    out = np.zeros(x.size, np.int16)
    kernels.launch(name, (-(-x.size // 256),), (256,), x=x.view(np.uint32), out=out, n=x.size)
    return out.view(np.uint16)


def widened(kernels, name):
    out = np.zeros(65536, np.float32)
    kernels.launch(name, (256,), (256,), x=PATTERNS.view(np.int16), out=out)
    return out


def floats(rng):
    """Return float32 numbers of every kind: any bits, ties and their neighbours, the limits."""
    any_bits = rng.integers(0, 2 ** 32, 40000, dtype=np.uint32).view(np.float32)
    like_half = (rng.standard_normal(20000) * 2.0 ** rng.integers(-28, 18, 20000))
    halves = PATTERNS[:0x7C00].view(np.float16).astype(np.float64)
    ties = (halves[:-1] + halves[1:]) / 2
    top = [65504, 65519.996, 65520, 65520.004, 65536, 1e38, np.inf, 2.0 ** -25, 2.0 ** -24,
           2.0 ** -149, 1e-40, 0, 3.3895314e38, 3.4028235e38]
    with np.errstate(over="ignore"):
        numbers = np.concatenate([any_bits, like_half, halves, ties, top]).astype(np.float32)
    brains = (PATTERNS[:0x7F80].astype(np.uint32) << 16 | 0x8000).view(np.float32)  # ties
    numbers = np.concatenate([numbers, brains])
    numbers = np.concatenate([numbers, np.nextafter(numbers, np.float32(0)),
                              np.nextafter(numbers, np.float32(np.inf))])
    return np.concatenate([numbers, -numbers])


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        yield


def test_every_half_is_the_float_that_numpy_says(kernels):
    actual, expected = widened(kernels, "half_float_kernel"), PATTERNS.view(np.float16)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(actual.view(np.uint32)[~nan],
                                  expected.astype(np.float32).view(np.uint32)[~nan])
    assert np.isnan(actual[nan]).all() and nan.sum() == 2 * 1023


def test_floats_are_rounded_to_halves_as_by_numpy(kernels, rng):
    x = floats(rng)
    actual, expected = rounded(kernels, "half_kernel", x), x.astype(np.float16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(actual[~nan], expected.view(np.uint16)[~nan])
    assert set(actual[nan]) == {0x7FFF}  # CUDA's only NaN


def test_every_half_survives_the_way_to_float_and_back(kernels):
    number = ~np.isnan(PATTERNS.view(np.float16))
    back = rounded(kernels, "half_kernel", widened(kernels, "half_float_kernel"))
    np.testing.assert_array_equal(back[number], PATTERNS[number])


def test_every_bfloat16_is_the_upper_half_of_a_float(kernels):
    actual = widened(kernels, "brain_float_kernel").view(np.uint32)
    expected = PATTERNS.astype(np.uint32) << 16
    number = ~np.isnan(expected.view(np.float32))
    np.testing.assert_array_equal(actual[number], expected[number])
    assert np.isnan(actual.view(np.float32)[~number]).all()
    back = rounded(kernels, "brain_kernel", actual.view(np.float32))
    np.testing.assert_array_equal(back[number], PATTERNS[number])


def test_floats_are_rounded_to_the_nearest_bfloat16(kernels, rng):
    x = floats(rng)
    bits = x.view(np.uint32).astype(np.int64)
    below = bits >> 16
    rest = bits & 0xFFFF
    expected = below + ((rest > 0x8000) | ((rest == 0x8000) & (below % 2 == 1)))
    actual = rounded(kernels, "brain_kernel", x)
    nan = np.isnan(x)
    np.testing.assert_array_equal(actual[~nan], expected[~nan])
    assert set(actual[nan]) == {0x7FFF}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_packs_of_four_are_read_and_written_in_each_type(kernels, rng, dtype):
    x = rng.standard_normal(64).astype(dtype)
    out = np.zeros_like(x)
    kernels.launch("pack_kernel", (2,), (8,), x=x, out=out)
    np.testing.assert_array_equal(out, (x.astype(np.float32) * np.float32(3)).astype(dtype))


@pytest.mark.parametrize("x_shape, kernel, window", [
    ((2, 7, 9, 8), 3, {"stride": 1, "padding": 1, "dilation": 1}),
    ((1, 6, 5, 3), 5, {"stride": 2, "padding": 2, "dilation": 1}),
    ((2, 5, 6, 4), 2, {"stride": 1, "padding": 0, "dilation": 2}),
], ids=str)
def test_depthwise_on_halves_rounds_only_what_it_stores(compiler, rng, x_shape, kernel, window):
    C = x_shape[3]
    x = rng.standard_normal(x_shape).astype(np.float16)
    weight = rng.standard_normal((kernel, kernel, C)).astype(np.float32)
    wide, _ = depthwise_conv2d_forward(x.astype(np.float32), weight, **window,
                                       implementation="cuda_cpu")
    N, OH, OW, _ = wide.shape
    vector = 4 if C % 4 == 0 else 1
    sizes = dict(N=N, H=x_shape[1], W=x_shape[2], C=C, OH=OH, OW=OW, KH=kernel, KW=kernel)
    name = f"depthwise_conv2d_forward_kernel<{kernel if kernel in (3, 5) else 0}, {vector}>"

    def launch():
        out = np.zeros(wide.shape, np.float16)
        KERNELS.launch(name, (N * OH * -(-OW // 4),), (C // vector, 1), x=x, weight=weight,
                       out=out, **sizes, **window)
        return out

    for out in in_every_order(launch):
        np.testing.assert_array_equal(out, wide.astype(np.float16))


def test_depthwise_gradients_on_halves_are_near_those_of_floats(compiler, rng):
    x, dout = (rng.standard_normal((2, 5, 7, 4)).astype(np.float16) for _ in range(2))
    weight = rng.standard_normal((3, 3, 4)).astype(np.float32)
    _, cache = depthwise_conv2d_forward(x.astype(np.float32), weight, padding=1)
    expected = depthwise_conv2d_backward(dout.astype(np.float32), cache)
    # The device's arrays, since the op refuses dtypes that differ: its launcher does not.
    device = [emulated_device.asarray(array) for array in (x, dout, weight)]
    dx, shares = emulated_device.empty(x.shape, np.float16), emulated_device.empty((4, 3, 3, 4),
                                                                                   np.float32)
    KERNELS.launch("depthwise_conv2d_backward_kernel<3, 4>", (4,), (1, 8), shared_bytes=128,
                   dout=device[1], x=device[0], weight=device[2], dx=dx, shares=shares, N=2, H=5,
                   W=7, C=4, OH=5, OW=7, stride=1, padding=1, dilation=1)
    np.testing.assert_allclose(dx.get(), expected[0].astype(np.float16), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(shares.get().sum(axis=0), expected[1], rtol=1e-5, atol=1e-5)
