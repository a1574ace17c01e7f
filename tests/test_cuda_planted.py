"""Bugs planted into the real kernels: each one must be seen, or the emulator proves nothing.

A bug is a piece of source replaced by another. It is seen if the kernel stops with an error, or if
in one of the three orders of threads any result differs from that of the kernel as it stands.
"""

import importlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
from small_kernels import ORDERS, kernel_file

from minisegnet import losses, ops
from minisegnet.cuda import emulator
from minisegnet.cuda.emulator import KernelError
from minisegnet.cuda.launch import KernelFile, record_launches

pytestmark = pytest.mark.usefixtures("compiler")


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------- what runs the kernels


def depthwise():
    x, weight, given = numbers(2, 7, 9, 40), numbers(3, 3, 40), numbers(3, 3, 40)
    out, cache = ops.depthwise_conv2d_forward(x, weight, padding=1, implementation="cuda_cpu")
    return out, *ops.depthwise_conv2d_backward(numbers(*out.shape), cache, dweight=given,
                                               implementation="cuda_cpu")


def conv():
    # Few channels: the kernels that do without a matrix product.
    x, weight, bias, given = numbers(2, 8, 7, 3), numbers(3, 3, 3, 8), numbers(8), numbers(8)
    out, cache = ops.conv2d_forward(x, weight, bias, padding=1, implementation="cuda_cpu")
    return out, *ops.conv2d_backward(numbers(*out.shape), cache, dbias=given,
                                     implementation="cuda_cpu")


def batch_norm():
    x, weight, bias = numbers(3, 13, 11, 40), numbers(40), numbers(40)
    out, cache, *running = ops.batch_norm_forward(
        x, weight, bias, numbers(40), np.abs(numbers(40)), training=True,
        implementation="cuda_cpu")
    gradients = ops.batch_norm_backward(numbers(*x.shape), cache, implementation="cuda_cpu")
    return out, *running, *gradients


def pooling():
    x = numbers(2, 19, 17, 12)
    return ops.global_average_pool_forward(x, implementation="cuda_cpu")[:1]


def upsample():
    x = numbers(2, 5, 4, 12)
    out, cache = ops.upsample_bilinear_forward(x, (13, 9), implementation="cuda_cpu")
    dx = ops.upsample_bilinear_backward(numbers(*out.shape), cache, implementation="cuda_cpu")
    return out, dx


def cross_entropy():
    logits = numbers(2, 17, 23, 5)
    target = np.random.default_rng(1).integers(0, 5, logits.shape[:3])
    loss, cache = losses.cross_entropy_forward(logits, target, label_smoothing=0.1,
                                               implementation="cuda_cpu")
    return loss, losses.cross_entropy_backward(1.0, cache)


RUNS = {  # the module whose KERNELS it launches, what to run
    "depthwise": ("minisegnet.ops.depthwise_conv2d", depthwise),
    "conv": ("minisegnet.ops.conv2d_cuda", conv),
    "batch norm": ("minisegnet.ops.batch_norm", batch_norm),
    "pooling": ("minisegnet.ops.pooling", pooling),
    "upsample": ("minisegnet.ops.upsample", upsample),
    "cross-entropy": ("minisegnet.losses.softmax_cuda", cross_entropy),
}

# ---------------------------------------------------------------- what is planted

PLANTED = [  # kind, in what, the source as it stands, the bug
    ("barrier", "depthwise",
     "    __syncthreads();  // the rows of the tap before have been read\n", ""),
    ("barrier", "batch norm",
     "    __syncthreads();\n    if (row + half < rows) {", "    if (row + half < rows) {"),
    ("bound", "depthwise", "if (w < 0 || w >= W || ow0 + i >= OW) continue;",
     "if (w < 0 || w > W || ow0 + i >= OW) continue;"),
    ("bound", "conv", "value[i] = w >= 0 && w < W ?", "value[i] = w >= -1 && w < W ?"),
    ("tail", "depthwise", "&& column < size) dweight[column]", ") dweight[column]"),
    ("tail", "upsample", "  if (i >= OW * vectors) return;\n", ""),
    ("stride", "pooling", "rows[row * width + i]", "rows[row * blockDim.x + i]"),
    ("stride", "cross-entropy", "dlogits[p * K + k] =", "dlogits[p * lanes + k] ="),
    ("accumulation", "depthwise", "dweight[column] += sum;", "dweight[column] = sum;"),
    ("accumulation", "cross-entropy", "smooth_below += smooth[k]", "smooth_below = smooth[k]"),
    ("start", "depthwise", "  REAL sum[STRIP][VECTOR] = {};", "  REAL sum[STRIP][VECTOR];"),
    ("start", "conv", "  REAL sum[VECTOR] = {};\n  for (int row = share",
     "  REAL sum[VECTOR];\n  for (int row = share"),
]


@lru_cache
def launched(name):
    """Return the launches that a run makes of its own `.cu` file, and its results."""
    path, run = RUNS[name]
    file = importlib.import_module(path).KERNELS
    with record_launches() as launches:
        results = run()
    return tuple(sorted({launch.name for launch in launches} & set(file.names))), results


@pytest.fixture(scope="module")
def compiled():
    """Compile all bugs, two at a time; whoever comes later finds the libraries."""
    files = [importlib.import_module(path).KERNELS for path, _ in RUNS.values()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(KernelFile.cpu_module, files))
        for name in RUNS:
            launched(name)
        for _, name, old, new in PLANTED:
            if old in importlib.import_module(RUNS[name][0]).KERNELS.code:
                pool.submit(planted(name, old, new).cpu_module)


def same(results, expected):
    assert all(isinstance(a, (np.ndarray, np.generic)) for a in (*results, *expected))
    return len(results) == len(expected) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(results, expected))


def seen_in(run, expected):
    """Return in which orders a bug is seen; KernelError counts as seen."""
    seen = []
    for order in ORDERS:
        with emulator.fiber_order(order):
            try:
                if not same(run(), expected):
                    seen.append(order)
            except KernelError:
                seen.append(order)
    return seen


def planted(name, old, new):
    """Return a module's `KernelFile` with a piece of its source replaced."""
    file = importlib.import_module(RUNS[name][0]).KERNELS
    found = file.code.count(old)
    assert found == 1, f"{found} times in {file.path.name}, plant it anew: {old!r}"
    bad = KernelFile(file.path)
    bad.code, bad.names = file.code.replace(old, new), launched(name)[0]
    return bad


@pytest.mark.parametrize("kind, name, old, new", PLANTED,
                         ids=[f"{kind}-{name}-{i}" for i, (kind, name, *_) in enumerate(PLANTED)])
def test_a_planted_bug_is_seen(compiled, monkeypatch, kind, name, old, new):
    path, run = RUNS[name]
    expected = launched(name)[1]
    monkeypatch.setattr(f"{path}.KERNELS", planted(name, old, new))
    if kind == "start" and not emulator._newer_flags():
        pytest.skip("local variables are filled by g++ 12 and newer")
    assert seen_in(run, expected)


@pytest.mark.parametrize("name", RUNS)
def test_without_a_bug_nothing_is_seen(name):
    assert seen_in(RUNS[name][1], launched(name)[1]) == []


def test_every_kind_is_planted_into_two_kernels():
    for kind in {kind for kind, *_ in PLANTED}:
        assert len({name for its_kind, name, *_ in PLANTED if its_kind == kind}) >= 2


# ---------------------------------------------------------------- the classic ones, each alone

CLASSIC = """
__global__ void neighbour_kernel(const float* x, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  BARRIER(1)
  out[threadIdx.x] = tile[(threadIdx.x + 1) % 64];
}
__global__ void tiles_kernel(const float* x, float* out) {
  __shared__ float tile[64];
  float sum = 0;
  for (int k = 0; k < 4; k++) {
    tile[threadIdx.x] = x[k * 64 + threadIdx.x];
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    BARRIER(2)
  }
  out[threadIdx.x] = sum;
}
__global__ void tree_kernel(const float* x, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int half = 32; half > 0; half /= 2) {
    if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
    BARRIER(3)
  }
  if (threadIdx.x == 0) out[0] = tile[0];
}
__global__ void leader_kernel(const float* x, float* out) {
  __shared__ float factor;
  if (threadIdx.x == 5) factor = x[5];
  BARRIER(4)
  out[threadIdx.x] = x[threadIdx.x] * factor;
}
__global__ void warp_kernel(const float* x, float* out) {  // lanes of one warp are not in step
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (BUG != 5) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
__global__ void branch_kernel(const float* x, float* out) {  // a barrier that not all reach
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (BUG != 6) __syncthreads();
  if (threadIdx.x >= 40) return;
  if (BUG == 6) __syncthreads();
  out[threadIdx.x] = tile[39 - threadIdx.x];
}
__global__ void half_warp_kernel(const float* x, float* out) {  // the others take no part
  float value = x[threadIdx.x];
  if (threadIdx.x < 16 || BUG != 7) value = __shfl_xor_sync(0xffffffffu, value, 1);
  out[threadIdx.x] = value;
}
__global__ void beyond_kernel(const float* x, float* out) {  // a sum over lanes that took no part
  float value = x[threadIdx.x];
  const unsigned mask = BUG == 8 ? 0x0000ffffu : 0xffffffffu;
  if (threadIdx.x % 32 < 16 || BUG != 8) value += __shfl_xor_sync(mask, value, 16);
  out[threadIdx.x] = value;
}
__global__ void halo_kernel(const float* x, float* out) {  // a tile and a neighbour on each side
  __shared__ float tile[66];
  tile[threadIdx.x + 1] = x[threadIdx.x];
  if (threadIdx.x == 0) tile[0] = 0;
  if (threadIdx.x == 63 && BUG != 9) tile[65] = 0;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x] + tile[threadIdx.x + 2];
}
__global__ void lost_kernel(const float* x, float* out) {  // a sum without atomicAdd
  if (BUG == 10) out[0] += x[0];
  else atomicAdd(out, x[0]);
}
"""
COUNT, UNSEEN = 10, 10


@pytest.fixture(scope="module")
def classic(tmp_path_factory):
    """The kernels with bug number i, at place i: all of them in one file, 0 as they should be."""
    folder = tmp_path_factory.mktemp("cuda")
    code = "#define BARRIER(i) if (BUG != i) __syncthreads();\n"
    for bug in range(COUNT + 1):
        copy = CLASSIC.replace("_kernel(", f"_{bug}_kernel(")
        code += f"#define BUG {bug}\n{copy}#undef BUG\n"
    return kernel_file(folder, code)


@pytest.mark.parametrize("bug", range(1, COUNT + 1))
def test_a_classic_bug_is_seen_and_only_in_its_own_kernel(classic, bug):
    x = numbers(256)

    def run(name, bug):
        out = np.zeros(64, np.float32)
        classic.launch(f"{name}_{bug}_kernel", (1,), (64,), x=x, out=out)
        return (out,)

    names = [name.removesuffix("_0_kernel") for name in classic.names if "_0_" in name]
    assert len(names) == COUNT
    for i, name in enumerate(names, 1):
        seen = seen_in(lambda: run(name, bug), run(name, 0))
        # Threads run one at a time: a lost sum is all that looks right, and emulator.h says so.
        assert bool(seen) == (i == bug and bug != UNSEEN), f"{name}: {seen}"
