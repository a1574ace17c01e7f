"""Dropout: what is kept is scaled, what is dropped gets no gradient."""

import numpy as np
import pytest
from checks import frozen, non_contiguous

from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device, emulator
from minisegnet.cuda.launch import KernelFile, record_launches
from minisegnet.ops import dropout, dropout_backward, dropout_forward
from minisegnet.ops.dropout import DeviceRandom, philox4x32, philox_uniform

implementations = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])
# counter, key, words of Random123's kat_vectors for "philox4x32 10"
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
BEYOND_32_BITS = {"seed": 0xFEDCBA9876543210, "counter": 2 ** 32 - 3}


def test_elements_are_zero_or_scaled_and_gradients_follow_the_same_mask(rng):
    x, dout = frozen(rng.standard_normal((4, 30, 30, 8)), rng.standard_normal((4, 30, 30, 8)))
    out, mask = dropout_forward(x, 0.3, np.random.default_rng(5))
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / 0.7, rtol=1e-14)
    np.testing.assert_allclose(dropout_backward(dout, mask), kept * dout / 0.7, rtol=1e-14)
    # 28,800 draws: five standard deviations are 0.0135
    assert abs(kept.mean() - 0.7) < 0.0135


def test_the_same_generator_drops_the_same_elements():
    x = np.ones((2, 3, 4, 5))
    first, _ = dropout_forward(x, 0.5, np.random.default_rng(1))
    again, _ = dropout_forward(non_contiguous(x), 0.5, np.random.default_rng(1))
    other, _ = dropout_forward(x, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_probability_zero_changes_nothing(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    np.testing.assert_array_equal(dropout_forward(x, 0.0, rng)[0], x)


def test_dtype_is_kept(rng):
    out, mask = dropout_forward(np.ones((2, 3, 4, 5), np.float32), 0.5, rng)
    assert out.dtype == mask.dtype == dropout_backward(out, mask).dtype == np.float32


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_outside_its_range_is_refused(rng, p):
    with pytest.raises(ValueError, match="dropout probability"):
        dropout_forward(np.ones((1, 1, 1, 1)), p, rng)


def test_an_upstream_gradient_of_another_shape_is_refused(rng):
    _, mask = dropout_forward(np.ones((2, 3, 4, 5)), 0.5, rng)
    with pytest.raises(ValueError):
        dropout_backward(np.ones((2, 4, 3, 5)), mask)


# Counter-based random numbers, on a device and on the CPU

def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, expected):
    np.testing.assert_array_equal(philox4x32(words(counter), words(key)), words(expected))


def test_the_kernels_philox_gives_the_published_words(compiler, tmp_path):
    # The function that the kernels of dropout.cu call, in a kernel that shows its words.
    (tmp_path / "known.cu").write_text(f"""#include "{dropout.KERNELS.path}"
        __global__ void known_kernel(const unsigned* counter, const unsigned* key,
                                     unsigned* out) {{
          unsigned word[4] = {{counter[0], counter[1], counter[2], counter[3]}};
          philox4x32(word, key[0], key[1]);
          for (int i = 0; i < 4; i++) out[i] = word[i];
        }}""")
    kernels = KernelFile(tmp_path / "known.py")
    for counter, key, expected in KNOWN_ANSWERS:
        out = np.zeros(4, np.uint32)
        kernels.launch("known_kernel", (1,), (1,), counter=words(counter), key=words(key), out=out)
        np.testing.assert_array_equal(out, words(expected))


def test_uniform_numbers_are_fours_of_consecutive_counters():
    expected = np.concatenate([philox4x32([counter, high, 0, 0], [7, 9])
                               for counter, high in ((2 ** 32 - 1, 5), (0, 6), (1, 6))])
    uniform = philox_uniform(7 + (9 << 32), (6 << 32) - 1, 11)
    assert uniform.dtype == np.float32
    np.testing.assert_array_equal(uniform * 2.0 ** 24, expected[:11] >> 8)


def test_uniform_numbers_are_spread_evenly():
    counts, _ = np.histogram(philox_uniform(3, 0, 100_000), bins=20, range=(0, 1))
    # of a binomial of mean 5,000: five standard deviations are 345
    assert abs(counts - 5000).max() < 345


@implementations
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 35, 11, 1), (2, 3, 7, 101)],
                         ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.97])
def test_a_device_random_drops_by_its_numbers(rng, shape, dtype, p, implementation):
    x, dout = frozen(*(rng.standard_normal(shape).astype(dtype) for _ in range(2)))
    stream = DeviceRandom(0, np)
    stream.set_state(BEYOND_32_BITS)
    for call in range(2):
        counter = BEYOND_32_BITS["counter"] + call * -(-x.size // 4)
        uniform = philox_uniform(BEYOND_32_BITS["seed"], counter, x.size).reshape(shape)
        factor = (uniform >= np.float64(p)) * dtype(1 / (1 - p))
        out, cache = dropout_forward(non_contiguous(x) if call else x, p, stream,
                                     implementation=implementation)
        dx = dropout_backward(dout, cache, implementation=implementation)
        assert out.dtype == dx.dtype == dtype
        np.testing.assert_array_equal(out, x * factor)
        np.testing.assert_array_equal(dx, dout * factor)


@implementations
def test_a_number_of_exactly_the_probability_keeps_its_element(implementation):
    x = np.ones((1, 1, 1, 8))
    p = float(philox_uniform(4, 0, 8)[5])
    for probability, is_kept in ((p, True), (p + 1e-12, False)):  # 1e-12: not to be had in float32
        out, _ = dropout_forward(x, probability, DeviceRandom(4, np),
                                 implementation=implementation)
        assert (out[0, 0, 0, 5] != 0) == is_kept


def test_backward_draws_the_mask_of_its_own_forward(rng, compiler):
    x, dout = frozen(*(rng.standard_normal((2, 5, 6, 4)) for _ in range(2)))
    stream = DeviceRandom(5, np)
    first, first_cache = dropout_forward(x, 0.5, stream, implementation="cuda_cpu")
    second, second_cache = dropout_forward(x, 0.5, stream, implementation="cuda_cpu")
    assert (first != second).any()
    for out, cache in ((second, second_cache), (first, first_cache)):
        for implementation in ("numpy", "cuda_cpu"):
            dx = dropout_backward(dout, cache, implementation=implementation)
            np.testing.assert_array_equal(dx, (out != 0) * dout * 2)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_device_gives_the_same_bits_as_the_cpu(rng, compiler, order):
    x, dout = (rng.standard_normal((2, 9, 7, 33)).astype(np.float32) for _ in range(2))
    stream, twin = DeviceRandom(11, emulated_device), DeviceRandom(11, np)
    for _ in range(2):
        with emulator.fiber_order(order):
            out, cache = dropout_forward(emulated_device.asarray(x), 0.3, stream)
            dx = dropout_backward(emulated_device.asarray(dout), cache)
        expected, mask = dropout_forward(x, 0.3, twin)
        np.testing.assert_array_equal(out.get(), expected)
        np.testing.assert_array_equal(dx.get(), dropout_backward(dout, mask))
    assert stream.state == twin.state == {"seed": 11, "counter": 2 * -(-x.size // 4)}


def test_launches_run_again_draw_new_numbers(rng, compiler):
    x = emulated_device.asarray(rng.standard_normal((2, 9, 7, 4)).astype(np.float32))
    stream = DeviceRandom(1, emulated_device)
    with record_launches() as launches:
        out, cache = dropout_forward(x, 0.5, stream)
        dx = dropout_backward(x, cache)
    before = out.get()
    for launch in launches:
        launch()
    assert (out.get() != before).any()
    np.testing.assert_array_equal(dx.get(), out.get())  # backward of x itself: the same mask
    twin = DeviceRandom(1, np)
    dropout_forward(x.get(), 0.5, twin)
    np.testing.assert_array_equal(out.get(), dropout_forward(x.get(), 0.5, twin)[0])


@pytest.mark.parametrize("xp", [np, emulated_device], ids=["numpy", "device"])
def test_a_stream_goes_back_to_a_state_in_the_same_memory(rng, compiler, xp):
    x, stream = xp.asarray(rng.standard_normal((2, 3, 4, 5))), DeviceRandom(2 ** 64 - 1, xp)
    place = stream.place
    dropout_forward(x, 0.5, stream)
    state = stream.state
    assert state == {"seed": 2 ** 64 - 1, "counter": 30}
    first, _ = dropout_forward(x, 0.5, stream)
    stream.set_state(state)
    again, _ = dropout_forward(x, 0.5, stream)
    assert stream.place is place
    for array in (first, again):
        assert type(array) is type(x)
    np.testing.assert_array_equal(asnumpy(first), asnumpy(again))


def test_a_numpy_generator_on_a_device_is_refused(rng, compiler):
    with pytest.raises(TypeError, match="DeviceRandom, not Generator"):
        dropout_forward(emulated_device.asarray(np.ones((1, 2, 2, 1))), 0.5, rng)
