"""Sums and copies of maps: NumPy and the kernels give the same bits."""

import numpy as np
import pytest
from checks import frozen, non_contiguous

from minisegnet.cuda import emulated_device, emulator
from minisegnet.ops.elementwise import add, add_into, copy

implementations = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 1), (3,), (1, 1, 2, 2), (2, 13, 17, 4), (1025,), (2, 9, 7, 33)]


def draw(rng, shape, dtype=np.float64):
    return frozen(*(rng.standard_normal(shape).astype(dtype) for _ in range(2)))


@implementations
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_copies_are_exact(rng, shape, dtype, implementation):
    a, b = draw(rng, shape, dtype)
    out = add(a, b, implementation=implementation)
    np.testing.assert_array_equal(out, a + b)
    total = a.copy()
    assert add_into(total, b, implementation=implementation) is total
    np.testing.assert_array_equal(total, a + b)
    again = copy(a, implementation=implementation)
    np.testing.assert_array_equal(again, a)
    assert out.dtype == again.dtype == dtype
    assert not np.shares_memory(again, a) and not np.shares_memory(out, a)


@implementations
def test_a_map_can_be_added_to_itself(rng, implementation):
    a = rng.standard_normal((2, 3, 4, 5))
    expected = 2 * a
    np.testing.assert_array_equal(add(a, a, implementation=implementation), expected)
    np.testing.assert_array_equal(add_into(a, a, implementation=implementation), expected)


@implementations
def test_non_contiguous_inputs_give_the_same_numbers(rng, implementation):
    a, b = draw(rng, (2, 3, 4, 5))
    awkward = non_contiguous(a), non_contiguous(b)
    np.testing.assert_array_equal(add(*awkward, implementation=implementation), a + b)
    np.testing.assert_array_equal(add_into(a.copy(), awkward[1], implementation=implementation),
                                  a + b)
    again = copy(awkward[0], implementation=implementation)
    np.testing.assert_array_equal(again, a)
    assert again.flags.c_contiguous


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("start", [0, 1, 2])  # views that begin anywhere in an allocation
def test_a_device_gives_the_same_bits_wherever_an_array_starts(rng, compiler, start, order):
    a, b = draw(rng, (3, 35, 11), np.float32)
    on_device = [emulated_device.asarray(array)[start] for array in (a, b)]
    with emulator.fiber_order(order):
        out, again = add(*on_device), copy(on_device[0])
        assert add_into(*on_device) is on_device[0]
    np.testing.assert_array_equal(out.get(), a[start] + b[start])
    np.testing.assert_array_equal(on_device[0].get(), a[start] + b[start])
    np.testing.assert_array_equal(again.get(), a[start])


def test_a_device_does_not_add_into_an_array_with_gaps(compiler):
    a = np.zeros((2, 3, 4, 6))[..., ::2]
    with pytest.raises(ValueError, match="gaps"):
        add_into(a, np.ones((2, 3, 4, 3)), implementation="cuda_cpu")


@implementations
@pytest.mark.parametrize("function", [add, add_into])
def test_other_shapes_and_dtypes_are_refused(function, implementation):
    a = np.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 3\) and \(1, 1, 1, 3\)"):
        function(a, np.zeros((1, 1, 1, 3)), implementation=implementation)
    with pytest.raises(TypeError, match="float64 and float32"):
        function(a, a.astype(np.float32), implementation=implementation)
    with pytest.raises(TypeError, match="int64"):
        copy(np.zeros(3, np.int64), implementation=implementation)
