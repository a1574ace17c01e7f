"""CUDA on the CPU: threads, barriers, warps, shared memory and atomics are as on a GPU."""

import itertools

import numpy as np
import pytest
from small_kernels import ORDERS, in_every_order, kernel_file

from minisegnet.cuda import emulator
from minisegnet.cuda.emulator import KernelError

pytestmark = pytest.mark.usefixtures("compiler")

CODE = r"""
__device__ int flat_thread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ int flat_block() {
  return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

__global__ void index_kernel(int* out) {  // (blocks, threads, 6)
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  int* mine = out + (flat_block() * threads + flat_thread()) * 6;
  mine[0] += threadIdx.x; mine[1] += threadIdx.y; mine[2] += threadIdx.z;
  mine[3] += blockIdx.x; mine[4] += blockIdx.y; mine[5] += blockIdx.z;
}

__global__ void turn_kernel(const float* x, float* out, int rounds) {
  DYNAMIC_SHARED(float, row);
  const int i = flat_thread(), n = blockDim.x * blockDim.y * blockDim.z;
  float value = x[flat_block() * n + i];
  for (int round = 0; round < rounds; round++) {
    row[i] = value;
    __syncthreads();
    value = row[n - 1 - i] + 1;
    __syncthreads();
  }
  out[flat_block() * n + i] = value;
}

__global__ void return_early_kernel(int* out, int n) {
  if (flat_thread() >= n) return;
  __syncthreads();
  out[flat_thread()] = 1;
}

__global__ void warp_kernel(const int* x, int* out, unsigned mask) {  // out (6, threads)
  const int i = flat_thread(), n = blockDim.x;
  const int lane = i % 32;
  if (!(mask >> lane & 1)) return;
  out[i] = __shfl_xor_sync(mask, x[i], 1);
  out[n + i] = __shfl_down_sync(mask, x[i], 3u);
  out[2 * n + i] = __shfl_sync(mask, x[i], 2);
  out[3 * n + i] = __ballot_sync(mask, x[i] % 3 == 0);
  out[4 * n + i] = __any_sync(mask, x[i] == 37);
  __syncwarp(mask);
  out[5 * n + i] = 1;
}

__global__ void double_kernel(const double* x, double* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 31);
}

__global__ void halves_kernel(int* out) {  // each half of the warp goes its own way
  const int lane = threadIdx.x;
  int value = lane;
  if (lane < 16) {
    for (int i = 0; i < 3; i++) value += __shfl_xor_sync(0x0000ffffu, value, 1);
  } else {
    for (int i = 0; i < 5; i++) value += __shfl_xor_sync(0xffff0000u, value, 1);
  }
  out[lane] = value + __shfl_xor_sync(0xffffffffu, value, 16);
}

__global__ void some_first_kernel(int* out, unsigned some) {
  const int lane = threadIdx.x;
  int value = lane;
  if (some >> lane & 1) value = __shfl_xor_sync(some, value, 1);
  out[lane] = __shfl_xor_sync(0xffffffffu, value, 8);
}

__global__ void wrong_warp_kernel(int* out, int what) {
  const int lane = threadIdx.x;
  int value = lane;
  if (what == 0 && lane == 5) value = __shfl_sync(0x0000000fu, value, 0);  // not in its own mask
  if (what == 1 && lane < 8) __syncthreads();
  if (what == 2 && lane == 9) return;
  if (what == 3 && lane < 3)  // 0 waits for 1, 1 for 2, 2 for 0
    value = __shfl_sync(lane == 0 ? 3u : lane == 1 ? 6u : 5u, value, lane);
  out[lane] = __shfl_sync(0xffffffffu, value, 0);
}

__global__ void shared_kernel(float* out, int write) {  // out (blocks, 3)
  __shared__ float small[33];
  __shared__ float large[8000];
  DYNAMIC_SHARED(float, dynamic);
  const int i = flat_thread();
  out[flat_block() * 3] = small[32];
  out[flat_block() * 3 + 1] = large[7999];
  out[flat_block() * 3 + 2] = dynamic[63];
  __syncthreads();
  if (write) small[32 - i] = large[7999 - i] = dynamic[63 - i] = 1;
}

template <int SIZE>
__global__ void template_shared_kernel(REAL* out, int write) {
  __shared__ REAL row[SIZE];
  if (threadIdx.x == 0) out[blockIdx.x] = row[SIZE - 1];
  __syncthreads();
  if (write) row[SIZE - 1 - threadIdx.x] = 1;
}

__global__ void ticket_kernel(int* next, int* tickets) {
  tickets[flat_block() * blockDim.x + flat_thread()] = atomicAdd(next, 1);
}

__global__ void atomics_kernel(int* counts, float* sum, double* sums, unsigned* turn) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(counts, 2);
  atomicMax(counts + 1, i % 71);
  atomicOr(counts + 2, 1 << i % 20);
  atomicAdd(sum, 0.5f);
  atomicAdd(sums, 0.25);
  atomicInc(turn, 6u);
}

__global__ void vote_kernel(int* out, int voter, int rounds) {  // out (rounds, threads)
  for (int round = 0; round < rounds; round++)
    out[round * blockDim.x + threadIdx.x] = __syncthreads_or(threadIdx.x == voter && round % 2);
}

__global__ void extremes_kernel(const float* x, float* out) {  // of numbers and NaN, the numbers
  out[0] = max(x[0], x[1]);
  out[1] = max(x[1], x[0]);
  out[2] = min(x[0], x[1]);
  out[3] = min(x[1], x[0]);
  out[4] = max(x[0], x[0]);
}

__global__ void block_sum_kernel(const float* x, float* out) {
  __shared__ float of_warps[32];
  const int threads = blockDim.x * blockDim.y;
  float first = block_sum(x[flat_thread()], of_warps);
  float second = block_sum(x[threads + flat_thread()], of_warps);
  if (flat_thread() == 0) { out[0] = first; out[1] = second; }
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return kernel_file(tmp_path_factory.mktemp("cuda"), CODE, templates={
        "template_shared_kernel": ("40", "4000")})


@pytest.mark.parametrize("grid, block", [
    ((1,), (1,)), ((5,), (33,)), ((2, 3), (5, 7)), ((2, 1, 3), (3, 4, 5)), ((1,), (1024,)),
    ((2,), (32, 32)), ((1, 2, 1), (4, 4, 64)), ((np.int64(3),), (np.int32(4),)),
], ids=str)
def test_every_thread_runs_once_and_knows_where_it_is(kernels, grid, block):
    g, b = (tuple(map(int, sizes)) + (1,) * (3 - len(sizes)) for sizes in (grid, block))
    expected = [(tx, ty, tz, bx, by, bz)
                for bz, by, bx in itertools.product(*map(range, g[::-1]))
                for tz, ty, tx in itertools.product(*map(range, b[::-1]))]

    def launch():
        out = np.zeros((len(expected), 6), np.int32)
        kernels.launch("index_kernel", grid, block, out=out)
        return out

    for out in in_every_order(launch):
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("block", [(1,), (31,), (33,), (8, 8), (5, 3, 7), (1024,)], ids=str)
def test_a_barrier_keeps_every_thread_of_the_block(kernels, rng, block):
    n = int(np.prod(block))
    x = rng.standard_normal((3, n)).astype(np.float32)
    for rounds in (1, 4):
        def launch():
            out = np.zeros_like(x)
            kernels.launch("turn_kernel", (3,), block, shared_bytes=4 * n, x=x, out=out,
                           rounds=rounds)
            return out

        expected = x
        for _ in range(rounds):
            expected = expected[:, ::-1] + np.float32(1)
        for out in in_every_order(launch):
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [0, 1, 32, 63])
def test_a_thread_that_returns_before_a_barrier_is_named(kernels, order, n):
    out = np.zeros(64, np.int32)
    with emulator.fiber_order(order):
        if n == 0:
            kernels.launch("return_early_kernel", (1,), (64,), out=out, n=n)
            assert not out.any()
            return
        first_block = 2 * (order == "reverse")
        with pytest.raises(KernelError, match="return_early_kernel: some threads returned while "
                                              "others wait at __syncthreads, at thread "
                                              rf"\(0, 0, 0\) of block \({first_block}, 0, 0\)"):
            kernels.launch("return_early_kernel", (3,), (64,), out=out, n=n)
        kernels.launch("return_early_kernel", (1,), (64,), out=out, n=64)
    assert out.all()


@pytest.mark.parametrize("threads", [32, 64, 96, 40, 7])
@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x55555555, 0xF000000F])
def test_the_lanes_of_a_mask_exchange_numbers(kernels, threads, mask):
    x = np.arange(threads, dtype=np.int32) + 10
    lanes = np.arange(threads) % 32
    first = np.arange(threads) - lanes
    takes_part = (mask >> lanes & 1).astype(bool)

    def brought(lane):  # -1, all bits set, where a lane does not exist or takes no part
        there = (first + lane < threads) & (mask >> lane & 1).astype(bool)
        return np.where(there, np.append(x, np.zeros(32, np.int32))[first + lane], -1)

    votes = np.zeros((threads + 31) // 32, np.int64)
    np.add.at(votes, first[takes_part] // 32, ((x % 3 == 0) * (1 << lanes))[takes_part])
    has_37 = np.zeros_like(votes)
    np.add.at(has_37, first[takes_part] // 32, (x == 37)[takes_part])
    expected = np.stack([
        brought(lanes ^ 1), brought(np.where(lanes + 3 < 32, lanes + 3, lanes)),
        brought(np.full(threads, 2)), votes[first // 32].astype(np.uint32).astype(np.int32),
        has_37[first // 32], np.ones(threads)]) * takes_part

    def launch():
        out = np.zeros((6, threads), np.int32)
        kernels.launch("warp_kernel", (1,), (threads,), x=x, out=out, mask=mask)
        return out

    for out in in_every_order(launch):
        np.testing.assert_array_equal(out, expected)


def test_doubles_are_exchanged_whole(kernels, rng):
    x, out = rng.standard_normal(32), np.zeros(32)
    kernels.launch("double_kernel", (1,), (32,), x=x, out=out)
    np.testing.assert_array_equal(out, x[::-1])


def test_two_groups_of_one_warp_exchange_a_different_number_of_times(kernels):
    def launch():
        out = np.zeros(32, np.int32)
        kernels.launch("halves_kernel", (1,), (32,), out=out)
        return out

    # After the first exchange both lanes of a pair hold its sum, and every later one doubles it.
    pair = np.repeat(np.arange(32).reshape(16, 2).sum(axis=1), 2)
    expected = pair[:16] * 2 ** 2 + pair[16:] * 2 ** 4
    for out in in_every_order(launch):
        np.testing.assert_array_equal(out, np.tile(expected, 2))


@pytest.mark.parametrize("some", [0x0000000F, 0xF0000000, 0x00FF0000])
def test_an_exchange_of_some_lanes_is_not_mixed_up_with_the_next_of_all(kernels, some):
    lanes = np.arange(32)
    values = np.where(some >> lanes & 1, lanes ^ 1, lanes)

    def launch():
        out = np.zeros(32, np.int32)
        kernels.launch("some_first_kernel", (1,), (32,), out=out, some=some)
        return out

    for out in in_every_order(launch):
        np.testing.assert_array_equal(out, values[lanes ^ 8])


@pytest.mark.parametrize("what, words", [
    (0, r"whose mask leaves it out, at thread \(5, 0, 0\)"),
    (1, r"wait at different barriers, at thread \(\d, 0, 0\)"),
    (2, r"waits for a lane that has returned, at thread \(9, 0, 0\)"),
    (3, r"deadlock: a warp exchange waits for lanes that are at another one"),
], ids=["mask", "barrier", "returned", "deadlock"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_exchange_that_cannot_be_is_an_error(kernels, what, words, order):
    with emulator.fiber_order(order), pytest.raises(KernelError, match=words) as caught:
        kernels.launch("wrong_warp_kernel", (2,), (32,), out=np.zeros(32, np.int32), what=what)
    assert "of block (0, 0, 0)" in str(caught.value) or order == "reverse"
    assert str(caught.value).startswith("wrong_warp_kernel: ")


def test_shared_memory_is_nan_in_every_block_until_it_is_written(kernels):
    kernels.cpu_module().close()  # a new process: its very first block, too
    names = [name for name in kernels.names if "shared" in name]
    assert len(names) == 3
    for name, order in itertools.product(names, ORDERS):
        out = np.zeros((4, 3) if name == "shared_kernel" else 4, np.float32)
        with emulator.fiber_order(order):
            kernels.launch(name, (4,), (16,), shared_bytes=256, out=out, write=1)
        assert np.isnan(out).all(), name


@pytest.mark.parametrize("grid, block", [((3,), (40,)), ((1,), (1024,))], ids=str)
def test_threads_and_blocks_run_in_the_order_asked_for(kernels, grid, block):
    def launch():
        out = np.zeros((grid[0], block[0]), np.int32)
        kernels.launch("ticket_kernel", grid, block, next=np.zeros(1, np.int32), tickets=out)
        return out

    forward, reverse, random = in_every_order(launch)
    tickets = np.arange(forward.size).reshape(forward.shape)
    np.testing.assert_array_equal(forward, tickets)
    np.testing.assert_array_equal(reverse, tickets[::-1, ::-1])
    np.testing.assert_array_equal(np.sort(random.ravel()), tickets.ravel())
    assert np.mean(random == forward) < 0.2 and np.mean(random == reverse) < 0.2
    assert grid == (1,) or (np.diff(random - random.min(axis=1, keepdims=True), axis=0) != 0).any()
    with emulator.fiber_order("random"):
        np.testing.assert_array_equal(launch(), random)  # the same each time


def test_an_order_ends_with_its_block_and_must_exist(kernels):
    with pytest.raises(ZeroDivisionError), emulator.fiber_order("reverse"):
        with emulator.fiber_order("random"):
            pass
        raise ZeroDivisionError
    out = np.zeros(4, np.int32)
    kernels.launch("ticket_kernel", (1,), (4,), next=np.zeros(1, np.int32), tickets=out)
    assert list(out) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="'backward' is not one of forward, reverse, random"):
        with emulator.fiber_order("backward"):
            pass


def test_atomics_lose_nothing(kernels):
    def launch():
        counts, sum, sums, turn = (np.zeros(3, np.int32), np.zeros(1, np.float32), np.zeros(1),
                                   np.zeros(1, np.uint32))
        kernels.launch("atomics_kernel", (5,), (50,), counts=counts, sum=sum, sums=sums, turn=turn)
        return [*counts, *sum, *sums, *turn]

    for result in in_every_order(launch):
        assert result == [500, 70, 2 ** 20 - 1, 125, 62.5, 250 % 7]


@pytest.mark.parametrize("threads", [7, 32, 100])
def test_one_vote_at_a_barrier_reaches_all_and_only_there(kernels, threads):
    for voter in (0, threads - 1, threads):
        def launch():
            out = np.full((5, threads), -1, np.int32)
            kernels.launch("vote_kernel", (2,), (threads,), out=out, voter=voter, rounds=5)
            return out

        expected = np.tile([[0], [voter < threads]], (3, threads))[:5]
        for out in in_every_order(launch):
            np.testing.assert_array_equal(out, expected)


def test_of_a_number_and_nan_max_and_min_are_the_number(kernels):
    out = np.zeros(5, np.float32)
    kernels.launch("extremes_kernel", (1,), (1,), x=np.array([np.nan, 2], np.float32), out=out)
    np.testing.assert_array_equal(out, [2, 2, 2, 2, np.nan])


@pytest.mark.parametrize("block", [(32,), (64,), (16, 16), (1024,)], ids=str)
def test_a_block_sum_is_the_sum_whatever_the_order(kernels, rng, block):
    x = rng.standard_normal((2, np.prod(block))).astype(np.float32)

    def launch():
        out = np.zeros(2, np.float32)
        kernels.launch("block_sum_kernel", (1,), block, x=x, out=out)
        return out

    forward, *others = in_every_order(launch)
    np.testing.assert_allclose(forward, x.sum(axis=1, dtype=np.float64), atol=1e-4)
    for other in others:
        np.testing.assert_array_equal(other, forward)
