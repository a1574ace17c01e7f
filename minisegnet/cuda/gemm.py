"""Matrix products on a GPU: cuBLAS through ctypes, with a handle and a workspace of our own.

    gemm(a, b, out)                                    # out = a @ b
    gemm(a, b, out, transpose_a=True, add=True)        # out += a.T @ b

Everything else is a kernel of ours; the matrix product is the one thing that NVIDIA's library
does better than a page of code could. CuPy refuses its own call of it while a CUDA graph is being
captured. This one allocates on the first call only, waits for nothing, and is noted among the
recorded launches like any kernel. On NumPy and emulated arrays it is `np.matmul`.

cuBLAS thinks in columns: it reads the memory of a row-major matrix as its transpose. So for
C = A B it is asked for C^T = B^T A^T: the two factors, as they lie, in the other order.
"""

from ctypes import byref, c_double, c_float, c_int, c_size_t, c_void_p
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from minisegnet.backend import (
    address_on_gpu,
    allocate_on_gpu,
    current_stream,
    get_array_module,
    load_cublas,
)
from minisegnet.cuda.host_arrays import gpu_of_host_arrays
from minisegnet.cuda.launch import MAX_ELEMENTS, Launch, perform

# float32 products in TF32: the factors rounded to 11 significant bits, the sums in float32. About
# eight times as fast on an A100 or H100, and 1e-3 off instead of 1e-6; training does not mind.
# float64, and float32 where this is False, are computed in full. As torch's setting of this name.
allow_tf32 = True

# What NVIDIA recommends for Hopper; older GPUs use less of it.
WORKSPACE_BYTES = 32 * 2 ** 20

# Numbers of cublas_api.h and library_types.h.
OP_N, OP_T = 0, 1
CUDA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # CUDA_R_32F ...
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
GEMM_DEFAULT = -1
# CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums of a long
# product stay in float32 where the matrices are of 16 bits.
MATH_MODE = 16
STATUS = {1: "not initialised", 3: "allocation failed", 7: "invalid value",
          8: "not on this GPU's architecture", 11: "memory access failed", 13: "execution failed",
          14: "internal error", 15: "not supported"}

ARGUMENTS = {
    "cublasCreate_v2": [c_void_p],
    "cublasSetStream_v2": [c_void_p, c_void_p],
    "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
    "cublasSetMathMode": [c_void_p, c_int],
    "cublasGemmEx": [
        c_void_p, c_int, c_int, c_int, c_int, c_int,  # handle, transa, transb, m, n, k
        c_void_p, c_void_p, c_int, c_int,  # alpha, A, its type, its leading dimension
        c_void_p, c_int, c_int,  # B
        c_void_p, c_void_p, c_int, c_int,  # beta, C
        c_int, c_int],  # type to compute in, algorithm
}


def gemm(a, b, out, *, transpose_a=False, transpose_b=False, add=False):
    """out = op(a) @ op(b), or out += with `add`; op is the transpose where asked for.

    All are contiguous 2-D arrays, none of them the same memory: op(a) (M, K), op(b) (K, N), out
    (M, N). `a` and `b` are of one dtype: float32, float64, float16 or bfloat16. `out` is too, or
    float32. Raises ValueError for shapes that do not fit, TypeError for dtypes.
    """
    shape = _check(a, b, out, transpose_a, transpose_b)
    options = transpose_a, transpose_b, add
    if get_array_module(out).__name__ == "cupy":
        run = _bind_on_gpu(a, b, out, shape, *options)
    else:
        hosts = [getattr(array, "host", array) for array in (a, b, out)]
        gpu = gpu_of_host_arrays()
        run = (partial(_multiply_on_host, *hosts, *options) if gpu is None
               else partial(_multiply_on_gpu, gpu, *hosts, shape, *options))
    perform(Launch("gemm", run, a.nbytes + b.nbytes + out.nbytes))


def _check(a, b, out, transpose_a, transpose_b):
    """Return (M, N, K)."""
    if not a.ndim == b.ndim == out.ndim == 2:
        raise ValueError(f"gemm takes 2-D arrays, not {a.shape}, {b.shape} and {out.shape}")
    M, K = a.shape[::-1] if transpose_a else a.shape
    rows, N = b.shape[::-1] if transpose_b else b.shape
    if rows != K or out.shape != (M, N):
        raise ValueError(f"gemm: {(M, K)} times {(rows, N)} does not make {out.shape}")
    dtypes = [str(array.dtype) for array in (a, b, out)]
    if (dtypes[0] not in CUDA_TYPES or dtypes[1] != dtypes[0]
            or dtypes[2] not in (dtypes[0], "float32") or dtypes[::2] == ["float64", "float32"]):
        raise TypeError(f"gemm does not multiply {dtypes[0]} by {dtypes[1]} into {dtypes[2]}")
    for array in (a, b, out):
        if not array.flags.c_contiguous:
            raise ValueError("gemm takes contiguous arrays; transpose with transpose_a=True")
        if array.size > MAX_ELEMENTS:
            raise ValueError(f"gemm: {array.size} elements are more than its int can count")
    return M, N, K


def _multiply_on_host(a, b, out, transpose_a, transpose_b, add):
    if a.itemsize == 2:  # 16-bit numbers are computed with in float32
        a, b = a.astype(np.float32), b.astype(np.float32)
    product = np.matmul(a.T if transpose_a else a, b.T if transpose_b else b)
    out[...] = out + product if add else product


def _bind_on_gpu(a, b, out, shape, *options):
    """Return a function that queues the product on the stream that is then the current one."""
    matrices = [Matrix(address_on_gpu(array), str(array.dtype), array.shape[1])
                for array in (a, b, out)]
    product = _cublas().bind(*matrices, shape, *options, tf32=allow_tf32)

    def run(arrays=(a, b, out)):  # holds on to the memory behind the addresses
        product(current_stream())

    return run


def _multiply_on_gpu(xp, a, b, out, shape, *options):
    """The product of arrays of the host, on a GPU."""
    arrays = [xp.asarray(np.ascontiguousarray(array)) for array in (a, b, out)]
    _bind_on_gpu(*arrays, shape, *options)()
    out[...] = arrays[2].get()


# ---------------------------------------------------------------- cuBLAS


class Matrix(NamedTuple):
    """A row-major matrix in memory."""

    address: int
    dtype: str
    row: int  # elements from one row to the next


class Cublas:
    """cuBLAS behind a handle that works in the memory at `workspace`.

    One product at a time: two streams at once would share the workspace.
    """

    def __init__(self, library, workspace, workspace_bytes):
        self._functions = {name: getattr(library, name) for name in ARGUMENTS}
        for name, types in ARGUMENTS.items():
            self._functions[name].argtypes = types
            self._functions[name].restype = c_int
        self._workspace = workspace, workspace_bytes
        self._stream = None
        self._handle = c_void_p()
        self._call("cublasCreate_v2", byref(self._handle))
        self._call("cublasSetMathMode", self._handle, MATH_MODE)

    def _call(self, name, *arguments):
        status = self._functions[name](*arguments)
        if status:
            raise RuntimeError(f"{name}: {STATUS.get(status, 'error')} (status {status})")

    def _use_stream(self, stream):
        if stream != self._stream:
            self._call("cublasSetStream_v2", self._handle, stream)
            # A change of stream gives the handle its own workspace back.
            self._call("cublasSetWorkspace_v2", self._handle, *self._workspace)
            self._stream = stream

    def bind(self, a, b, out, shape, transpose_a, transpose_b, add, *, tf32):
        """Return a function that queues the product on the stream whose address it is given."""
        M, N, K = shape
        if a.dtype == "float64":
            number, compute = c_double, COMPUTE_64F
        elif a.dtype == "float32" and tf32:
            number, compute = c_float, COMPUTE_32F_FAST_TF32
        else:
            number, compute = c_float, COMPUTE_32F
        alpha, beta = number(1), number(1 if add else 0)
        arguments = (
            self._handle, OP_T if transpose_b else OP_N, OP_T if transpose_a else OP_N, N, M, K,
            byref(alpha), b.address, CUDA_TYPES[b.dtype], b.row,
            a.address, CUDA_TYPES[a.dtype], a.row,
            byref(beta), out.address, CUDA_TYPES[out.dtype], out.row, compute, GEMM_DEFAULT)

        def run(stream):
            self._use_stream(stream)
            self._call("cublasGemmEx", *arguments)

        return run


@lru_cache(maxsize=1)
def _cublas():
    memory = allocate_on_gpu(WORKSPACE_BYTES)
    cublas = Cublas(load_cublas(), memory.ptr, WORKSPACE_BYTES)
    cublas.memory = memory  # freed with the handle
    return cublas
