"""Kernels on the CPU that break a rule are caught, and what they did is named."""

import ml_dtypes
import numpy as np
import pytest
from small_kernels import ORDERS, kernel_file

from minisegnet.cuda import emulator
from minisegnet.cuda.emulator import KernelError

pytestmark = pytest.mark.usefixtures("compiler")

CODE = r"""
__global__ void touch_kernel(const float* x, float* out, long long read, long long write) {
  float value = x[read];
  if (threadIdx.x == 3) out[write] = value;
}
__global__ void add_kernel(STORE* total, const STORE* x, int at) {
  total[at] = STORE(REAL(total[at]) + REAL(x[0]));
}
__global__ void times_kernel(STORE* total, const STORE* x, int at) {
  total[at] = STORE(REAL(total[at]) * REAL(x[0]));
}
__global__ void count_kernel(int* total, unsigned char* labels, int at) {
  total[at] += 1;
  labels[at] += 1;
}
__global__ void label_kernel(const unsigned char* labels, int* out, int at) {
  out[0] = labels[at];
}
__global__ void alias_kernel(const float* x) { const_cast<float*>(x)[1] = 2; }
__global__ void pack_kernel(const STORE* x, STORE* out, int at) {
  REAL values[4];
  load(x + at, values);
  store(out, values);
}
__global__ void dynamic_kernel(float* out, int n) {
  DYNAMIC_SHARED(float, row);
  row[n] = 1;
  out[0] = row[n];
}
__global__ void static_kernel(float* out, int row, int at) {
  __shared__ float rows[4][8];
  rows[row][at] = 1;
  out[0] = rows[row][at];
}
__global__ void local_kernel(float* out, int n) {
  float sum;
  float sums[4];
  for (int i = 0; i < n; i++) { sum += 1; sums[i % 4] += 1; }
  out[0] = sum;
  out[1] = sums[n % 4];
}
__global__ void int_kernel(int* out, int a, int b) { out[0] = a * b; out[1] = a / b; }
__global__ void stack_kernel(float* out, int n) {
  float large[40000];
  for (int i = 0; i < n; i++) large[i] = out[0] + i;
  __syncthreads();
  for (int i = 0; i < n; i++) out[1] += large[i];
}
__global__ void print_kernel(int* out) { printf("thread %d\n", threadIdx.x); out[0] = 1; }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture
def kernels(folder):
    """A `KernelFile` with a process of its own, the source compiled once."""
    return kernel_file(folder, CODE)


def touch(kernels, x, out, *, read=0, write=0):
    kernels.launch("touch_kernel", (1,), (4,), x=x, out=out, read=read, write=write)
    return out


def floats(size):
    return np.arange(size, dtype=np.float32)


WHO = r", by thread \(3, 0, 0\) of block \(0, 0, 0\)"


@pytest.mark.parametrize("size", [8, 1024, 4096])  # a multiple of 32 bytes: no slack
def test_one_element_behind_the_end_is_caught_and_its_place_named(kernels, size):
    words = rf"touch_kernel: memory access out of bounds, a read at byte {4 * size} of x, " \
            rf"which has {4 * size}, by thread \(0, 0, 0\) of block \(0, 0, 0\)"
    with pytest.raises(KernelError, match=words):
        touch(kernels, floats(size), floats(8), read=size)
    with pytest.raises(KernelError, match=rf"a write at byte {4 * size} of out, .*{WHO}"):
        touch(kernels, floats(8), floats(size), write=size)
    assert touch(kernels, floats(size), floats(8), read=size - 1, write=7)[7] == size - 1


@pytest.mark.parametrize("size", [1, 3, 7, 1025])
def test_in_the_gap_behind_the_end_nan_is_read_and_a_write_is_caught(kernels, size):
    gap = -size % 8
    for i in (0, gap - 1):
        assert np.isnan(touch(kernels, floats(size), floats(8), read=size + i)[0])
        with pytest.raises(KernelError, match="touch_kernel: memory access out of bounds, a write "
                                              "next to out"):
            touch(kernels, floats(8), floats(size), write=size + i)
    with pytest.raises(KernelError, match="a read at byte"):
        touch(kernels, floats(size), floats(8), read=size + gap)
    assert touch(kernels, floats(size), floats(8), read=size - 1)[0] == size - 1


@pytest.mark.parametrize("size", [8, 7, 1025])
def test_before_the_start_nan_is_read_and_a_write_is_caught(kernels, size):
    assert np.isnan(touch(kernels, floats(size), floats(8), read=-1)[0])
    with pytest.raises(KernelError, match="a write next to out"):
        touch(kernels, floats(8), floats(size), write=-1)
    with emulator.fiber_order("reverse"):  # arrays lie at the start of their page
        with pytest.raises(KernelError, match="a read at byte -4 of x, which has"):
            touch(kernels, floats(size), floats(8), read=-1)
        with pytest.raises(KernelError, match=f"a write at byte -4 of out, which has.*{WHO}"):
            touch(kernels, floats(8), floats(size), write=-1)
        assert touch(kernels, floats(size), floats(8), read=size - 1)[0] == size - 1


@pytest.mark.parametrize("name", ["add_kernel", "times_kernel"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 9, 15])  # none a multiple of 32 bytes
def test_what_is_added_to_a_number_behind_the_end_is_caught(kernels, name, dtype, size):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for order in ORDERS:
        for at in (-1, size):
            with emulator.fiber_order(order), pytest.raises(KernelError, match="out of bounds"):
                kernels.launch(name, (1,), (1,), total=np.ones(size, dtype),
                               x=np.full(1, 2, dtype), at=at)
    total = np.ones(size, dtype)
    kernels.launch(name, (1,), (1,), total=total, x=np.full(1, 2, dtype), at=size - 1)
    assert float(total[-1]) == {"add_kernel": 3, "times_kernel": 2}[name]


@pytest.mark.parametrize("short", ["total", "labels"])
def test_what_is_counted_behind_the_end_is_caught(kernels, short):
    sizes = {"total": 16, "labels": 64, short: 7}
    arrays = {"total": np.zeros(sizes["total"], np.int32),
              "labels": np.zeros(sizes["labels"], np.uint8)}
    for order in ORDERS:
        with (emulator.fiber_order(order),
              pytest.raises(KernelError, match=f"of {short}|to {short}")):
            kernels.launch("count_kernel", (1,), (1,), **arrays, at=7)


@pytest.mark.parametrize("far", [2000, 100_000, 1_000_000, -2000, -100_000, -1_000_000])
def test_rows_too_far_are_no_other_array(kernels, far):
    for order in emulator.FIBER_ORDERS:
        with emulator.fiber_order(order):
            with pytest.raises(KernelError, match=f"a read at byte {4 * far} of x, which has 32"):
                touch(kernels, floats(8), floats(8), read=far)
            with pytest.raises(KernelError, match=f"a write at byte {4 * far} of out, which has"):
                touch(kernels, floats(8), floats(8), write=far)


def test_what_is_nowhere_near_an_array_is_caught(kernels):
    with pytest.raises(KernelError, match="memory access out of bounds, a read far from every"):
        touch(kernels, floats(8), floats(8), read=-1 << 40)
    with pytest.raises(KernelError, match="memory access out of bounds"):
        touch(kernels, floats(8), floats(8), read=1 << 60)  # no address at all
    with pytest.raises(KernelError, match="a read of a null array, by thread"):
        touch(kernels, None, floats(8))
    with pytest.raises(KernelError, match=f"a write of a null array{WHO}"):
        touch(kernels, floats(8), None)
    with pytest.raises(KernelError, match="a read at byte 0 of x, which has 0"):
        touch(kernels, floats(0), floats(8))


def test_a_label_behind_the_end_is_no_label(kernels):
    out = np.zeros(1, np.int32)
    kernels.launch("label_kernel", (1,), (1,), labels=np.zeros(5, np.uint8), out=out, at=5)
    assert out[0] == 0xA5  # 255 would pass for an ignored pixel


def test_a_const_array_cannot_be_written_to(kernels):
    x = floats(8)
    with pytest.raises(KernelError, match="alias_kernel: .* a write into x, which is const, by "):
        kernels.launch("alias_kernel", (1,), (1,), x=x)
    assert x[1] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_misaligned_vector_is_caught(kernels, dtype):
    out = np.zeros(4, dtype)
    for at in (0, 4):
        kernels.launch("pack_kernel", (1,), (1,), x=np.arange(8, dtype=dtype), out=out, at=at)
        np.testing.assert_array_equal(out, np.arange(at, at + 4))
    for at in (1, 2, 3):
        with pytest.raises(KernelError, match="a misaligned vector"):
            kernels.launch("pack_kernel", (1,), (1,), x=np.arange(8, dtype=dtype), out=out, at=at)


def test_shared_memory_has_bounds(kernels):
    def dynamic(n):
        kernels.launch("dynamic_kernel", (1,), (1,), shared_bytes=64, out=floats(1), n=n)

    def static(row, at):
        kernels.launch("static_kernel", (1,), (1,), out=floats(1), row=row, at=at)

    dynamic(15)
    for n in (16, 500, 5000):
        with pytest.raises(KernelError, match="a write past the end of dynamic shared memory"):
            dynamic(n)
    with pytest.raises(KernelError, match="past the end of dynamic shared memory"):
        kernels.launch("dynamic_kernel", (1,), (1,), out=floats(1), n=0)  # none was asked for
    static(3, 7)
    for row, at in ((4, 0), (0, 8), (-1, 0), (2, -1)):  # (0, 8) is an element of row 1
        with pytest.raises(KernelError, match="static_kernel: an index beyond an array of fixed"):
            static(row, at)


@pytest.mark.skipif(not emulator.is_available() or not emulator._newer_flags(),
                    reason="local variables are filled by g++ 12 and newer")
def test_a_local_variable_that_was_never_set_shows(kernels):
    out = floats(2)
    kernels.launch("local_kernel", (1,), (1,), out=out, n=5)
    assert (np.abs(out) > 1e30).all()


def test_ints_that_overflow_and_divisions_by_zero_are_caught(kernels):
    out = np.zeros(2, np.int32)
    kernels.launch("int_kernel", (1,), (1,), out=out, a=46340, b=46341)
    assert list(out) == [46340 * 46341, 0]
    with pytest.raises(KernelError, match="an int that overflows"):
        kernels.launch("int_kernel", (1,), (1,), out=out, a=46341, b=46341)
    with pytest.raises(KernelError, match="a division of an int by zero, by thread"):
        kernels.launch("int_kernel", (1,), (1,), out=out, a=1, b=0)


def test_too_many_local_variables_are_caught(kernels):
    with pytest.raises(KernelError, match=r"stack_kernel: local variables of more than 1\d\d KB"):
        kernels.launch("stack_kernel", (1,), (2,), out=floats(2), n=40000)


@pytest.mark.parametrize("grid, block, shared_bytes", [
    ((0,), (32,), 0), ((1,), (0,), 0), ((1, 65536), (1,), 0), ((1, 1, 65536), (1,), 0),
    ((2 ** 31,), (1,), 0), ((1,), (1025,), 0), ((1,), (64, 32), 0), ((1,), (1, 1, 65), 0),
    ((1, 1, 1, 1), (1,), 0), ((-1,), (1,), 0), ((1,), (1,), 48 * 1024 + 1), ((1,), (1,), -1),
], ids=str)
def test_a_launch_that_cuda_refuses_is_refused(kernels, grid, block, shared_bytes):
    with pytest.raises(ValueError, match="print_kernel: .*(CUDA launches no grid|shared memory)"):
        kernels.launch("print_kernel", grid, block, shared_bytes=shared_bytes,
                       out=np.zeros(1, np.int32))


@pytest.mark.parametrize("grid, block, shared_bytes", [
    ((1.0,), (1,), 0), (1, (1,), 0), ((1,), None, 0), ("1", (1,), 0), ((1,), (1,), 16.0),
    ((1,), (1,), None), ((1,), (1,), "16"),
], ids=str)
def test_sizes_of_a_launch_are_integers(kernels, grid, block, shared_bytes):
    with pytest.raises(TypeError, match="print_kernel: grid .*expected two tuples of integers"):
        kernels.launch("print_kernel", grid, block, shared_bytes=shared_bytes,
                       out=np.zeros(1, np.int32))


def test_sizes_of_a_launch_may_be_numpys_integers(kernels):
    out = floats(1)
    kernels.launch("dynamic_kernel", (np.int64(1),), np.array([1]), shared_bytes=np.int64(64),
                   out=out, n=15)
    assert out[0] == 1


def test_what_a_kernel_prints_is_printed(kernels, capsys):
    out = np.zeros(1, np.int32)
    kernels.launch("print_kernel", (1,), (3,), out=out)
    assert capsys.readouterr().out == "thread 0\nthread 1\nthread 2\n" and out[0] == 1
    kernels.launch("print_kernel", (10,), (1024,), out=out)  # more than a pipe holds
    assert len(capsys.readouterr().out.splitlines()) == 10240
    kernels.launch("print_kernel", (100,), (1024,), out=out)  # more than is read in one go
    assert len(capsys.readouterr().out.splitlines()) == 102400
    touch(kernels, floats(8), floats(8))
    assert capsys.readouterr().out == ""
