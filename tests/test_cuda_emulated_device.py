"""The device without a GPU: like CuPy where kernels are concerned, and stricter in all else."""

import operator

import numpy as np
import pytest
from small_kernels import kernel_file

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.cuda import emulated_device
from minisegnet.cuda.launch import record_launches
from minisegnet.ops import depthwise_conv2d_backward, depthwise_conv2d_forward


@pytest.fixture
def host(rng):
    return rng.standard_normal((3, 4, 5))


@pytest.fixture
def array(host):
    return emulated_device.asarray(host)


def test_what_an_array_is_like_is_known_without_waiting(host, array):
    before = emulated_device.synchronisations
    for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize"):
        assert getattr(array, name) == getattr(host, name)
    assert len(array) == 3 and array.flags.c_contiguous and not array[:, 1].flags.c_contiguous
    assert get_array_module(array) is get_array_module(host, array) is emulated_device
    assert emulated_device.synchronisations == before


def test_reading_back_is_counted_and_gives_a_copy(host, array):
    before = emulated_device.synchronisations
    copy = array.get()
    np.testing.assert_array_equal(copy, host)
    copy[:] = 0
    np.testing.assert_array_equal(asnumpy(array), host)
    assert emulated_device.synchronisations == before + 2


OPERATORS = (operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul,
             operator.pow, operator.floordiv, operator.mod, operator.and_, operator.iadd,
             operator.imul, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
             operator.ge)


@pytest.mark.parametrize("operate", OPERATORS, ids=lambda operate: operate.__name__)
def test_there_is_no_arithmetic_and_no_comparison(host, array, operate):
    for other in (array, host, 2.0, np.float32(2)):
        with pytest.raises(TypeError):
            operate(array, other)
        with pytest.raises(TypeError):
            operate(other, array)


@pytest.mark.parametrize("convert", [
    np.asarray, np.sum, np.sqrt, np.zeros_like, bool, float, int, list, iter, operator.index,
    operator.neg, abs, sum, lambda array: np.add(array, 1), lambda array: 1.0 in array,
    lambda array: np.copyto(np.zeros(array.shape), array), lambda array: [0][array[0, 0, 0]],
    lambda array: operator.setitem(np.zeros(array.shape), ..., array),
])
def test_nothing_becomes_a_number_or_a_numpy_array_by_itself(array, convert):
    with pytest.raises(TypeError):
        convert(array)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "argmax", "transpose", "T", "item",
                                  "tolist", "dot", "clip", "tobytes", "data"])
def test_what_would_be_a_computation_is_not_there(array, name):
    assert not hasattr(array, name)


def test_arrays_can_be_keys_by_what_they_are(array):
    assert {array: 1}[array] == 1 and array.ravel() not in {array: 1}


# ---------------------------------------------------------------- views and copies


@pytest.mark.parametrize("key", [
    0, np.int64(-1), slice(1, 3), (slice(None), 2), (..., 0), (0, 0, 0), (slice(None, None, 2), 1),
    None, (slice(None), None, 3), ..., (1, ..., slice(None, None, -1)),
], ids=str)
def test_slices_share_memory(host, array, key):
    view = array[key]
    np.testing.assert_array_equal(view.get(), host[key])
    view.fill(7)
    host[key] = 7
    np.testing.assert_array_equal(array.get(), host)
    array[key] = -1.5
    host[key] = -1.5
    np.testing.assert_array_equal(array.get(), host)
    array[key] = emulated_device.zeros(view.shape)
    assert not view.get().any()


@pytest.mark.parametrize("key", [[0, 1], np.array([0, 1]), np.zeros((3, 4, 5), bool),
                                 (slice(None), [1]), 1.0, "x"], ids=str)
def test_a_key_that_gathers_is_refused(array, key):
    with pytest.raises(TypeError, match="takes whole numbers and slices"):
        array[key]
    with pytest.raises(TypeError, match="takes whole numbers and slices"):
        array[key] = 0
    with pytest.raises(TypeError):
        array[array]


def test_another_shape_is_the_same_memory(host, array):
    for shape in (((12, 5),), (4, -1), (-1,), ((3, 4, 5, 1),)):
        view = array.reshape(*shape)
        np.testing.assert_array_equal(view.get(), host.reshape(*shape))
        assert np.shares_memory(view.host, array.host)
    flat = array.ravel()
    flat[7] = 9
    assert array.get().flat[7] == 9
    with pytest.raises(ValueError, match="only as a copy"):
        array[:, :2].reshape(-1)
    with pytest.raises(ValueError):
        array.reshape(7, 9)
    assert emulated_device.zeros((0, 3)).reshape(3, 0).shape == (3, 0)
    assert emulated_device.zeros((1,)).reshape(()).shape == ()


def test_only_arrays_of_the_device_and_numbers_are_put_into_one(host, array):
    for value in (host, [1.0] * 5, host[0]):
        with pytest.raises(TypeError, match="takes device arrays; use asarray"):
            array[...] = value
    array[1] = emulated_device.asarray(host[0])
    array[0, 0, 0] = np.float32(2)
    np.testing.assert_array_equal(array.get()[1], host[0])
    assert array.get()[0, 0, 0] == 2


def test_set_takes_the_same_shape_and_dtype_from_the_host(host, array):
    array.set(host + 1)
    np.testing.assert_array_equal(array.get(), host + 1)
    with pytest.raises(TypeError, match="of float64"):
        array.set(host.astype(np.float32))
    with pytest.raises(TypeError):
        array.set(array)
    with pytest.raises(ValueError, match="shape"):
        array.set(host[0])


def test_copies_are_of_their_own_and_as_arrays_of_cupy(host, array):
    copy = array.copy()
    assert emulated_device.asarray(array) is array
    assert emulated_device.asarray(array, np.float64) is array
    assert emulated_device.ascontiguousarray(array) is array
    assert array.astype(np.float64, copy=False) is array
    narrow = emulated_device.asarray(array, np.float32)
    dense = emulated_device.ascontiguousarray(array[:, 1])
    array.fill(0)
    np.testing.assert_array_equal(copy.get(), host)
    np.testing.assert_array_equal(narrow.get(), host.astype(np.float32))
    np.testing.assert_array_equal(dense.get(), host[:, 1])
    assert dense.flags.c_contiguous and narrow.dtype == np.float32
    with pytest.raises(TypeError, match="ndarray is not on the device"):
        emulated_device.ascontiguousarray(host)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("make", [
    lambda: emulated_device.empty((3, 5), np.float32), lambda: emulated_device.zeros(7),
    lambda: emulated_device.asarray(np.arange(6.0)[1:]), lambda: emulated_device.asarray(3.0),
    lambda: emulated_device.empty_like(emulated_device.zeros((2, 3), np.uint8)),
    lambda: emulated_device.zeros((4, 4), np.float32)[:, 1].copy(),
    lambda: emulated_device.ascontiguousarray(emulated_device.zeros((4, 4))[:, 1]),
    lambda: emulated_device.zeros((5,)).astype(np.float16),
])
def test_every_array_starts_at_a_multiple_of_256(make):
    kept = [make() for _ in range(5)]
    assert {array.host.ctypes.data % 256 for array in kept} == {0}


def test_new_arrays_are_zero_or_nan():
    assert np.isnan(emulated_device.empty((2, 3)).get()).all()
    assert np.isnan(emulated_device.empty((2, 3), np.float16).get()).all()
    assert not emulated_device.zeros((2, 3), np.float32).get().any()
    like = emulated_device.zeros((2, 3), np.float32)
    assert emulated_device.zeros_like(like).dtype == emulated_device.empty_like(like).dtype
    assert np.isnan(emulated_device.empty_like(like).get()).all()


# ---------------------------------------------------------------- launches


def test_filling_and_copying_are_recorded_and_repeated(array):
    with record_launches() as launches:
        other = emulated_device.zeros((3, 4, 5))
        other[0] = array[1]
        copy = other.copy()
        other.fill(2)
    assert [launch.name for launch in launches] == ["fill", "copy", "copy", "fill"]
    array.fill(5)
    for launch in launches:
        launch()
    assert (copy.get()[0] == 5).all() and not copy.get()[1:].any() and (other.get() == 2).all()


CODE = """
__global__ void address_kernel(const float* x, float* out, int* address) {
  address[0] = reinterpret_cast<unsigned long long>(x) % 32;
  address[1] = reinterpret_cast<unsigned long long>(out) % 32;
  out[0] = x[0];
}
"""


def test_a_kernel_sees_the_alignment_that_a_gpu_would_show(compiler, tmp_path):
    kernels = kernel_file(tmp_path, CODE)
    buffer = emulated_device.asarray(np.arange(64, dtype=np.float32))
    for i, j in ((0, 8), (1, 40), (7, 33), (8, 9)):
        address = emulated_device.zeros((2,), np.int32)
        kernels.launch("address_kernel", (1,), (1,), x=buffer[i:i + 1], out=buffer[j:],
                       address=address)
        assert list(address.get()) == [4 * i % 32, 4 * j % 32]
        assert buffer.get()[j] == buffer.get()[i]


def test_an_op_runs_on_it_without_waiting_and_gives_the_emulators_bits(compiler, rng):
    x = rng.standard_normal((2, 9, 7, 4)).astype(np.float32)
    weight = rng.standard_normal((3, 3, 4)).astype(np.float32)
    before = emulated_device.synchronisations
    out, cache = depthwise_conv2d_forward(*map(emulated_device.asarray, (x, weight)), padding=1)
    dx, dweight = depthwise_conv2d_backward(out, cache)
    assert emulated_device.synchronisations == before
    expected, cache = depthwise_conv2d_forward(x, weight, padding=1, implementation="cuda_cpu")
    np.testing.assert_array_equal(out.get(), expected)
    for actual, gradient in zip((dx, dweight), depthwise_conv2d_backward(
            expected, cache, implementation="cuda_cpu")):
        np.testing.assert_array_equal(actual.get(), gradient)
