"""A CuPy without a GPU: what the package asks of CuPy 14.2, as that does it, on host memory.

    cupy = fake_cupy.install(monkeypatch, compile_cublas(folder))

It runs the branches that are otherwise run on a GPU alone, and is as strict as CuPy and CUDA:
arrays never become NumPy's by themselves, kernels get addresses and know no strides, numbers
travel with the size of their type, `with stream:` leaves behind the stream that was *entered*
before it. Kernels are the emulator's, cuBLAS is fake_cublas.c, the GPU is fake_cuda.py.
"""

import ctypes
import re
import subprocess
import sys
import types
from pathlib import Path

import fake_cuda
import numpy as np
from fake_cuda import CUDADriverError, MemoryPointer, alloc, is_pinned

from minisegnet import backend
from minisegnet.cuda import emulator
from minisegnet.cuda import gemm as gemm_module
from minisegnet.cuda.launch import parse_kernels

# ---------------------------------------------------------------- arrays


class Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous


class ndarray:
    """An array; `_view` is the NumPy array of its memory, which the queue alone looks into."""

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        assert memptr is None and strides is None
        shape = tuple(map(int, shape)) if np.iterable(shape) else (int(shape),)
        dtype = np.dtype(dtype)
        self.data = alloc(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._view = self.data.mem.view(0, shape, dtype, order)

    def _of(self, view):
        """Return an array of this one's memory."""
        array = object.__new__(type(self))
        start = self._view.ctypes.data if view.size else view.ctypes.data
        array._view = view
        array.data = MemoryPointer(self.data.mem, self.data.ptr - self.data.mem.ptr
                                   + view.ctypes.data - start)
        return array

    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    dtype = property(lambda self: self._view.dtype)
    ndim = property(lambda self: self._view.ndim)
    size = property(lambda self: self._view.size)
    nbytes = property(lambda self: self._view.nbytes)
    itemsize = property(lambda self: self._view.itemsize)
    flags = property(lambda self: Flags(self._view.flags))

    def __len__(self):
        return len(self._view)

    def __array__(self, dtype=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` "
                        "to construct a NumPy array explicitly.")

    def __getitem__(self, key):
        return self._of(self._view[_basic(key)])

    def __setitem__(self, key, value):
        target = self[key]
        if not isinstance(value, ndarray):
            target.fill(value)
        elif (target.shape, target.strides) != (value.shape, value.strides):
            _copy(value, target)
        elif target.data.ptr != value.data.ptr:
            _copy(value, target, is_memcpy=(target.flags.c_contiguous
                                            and target.dtype == value.dtype))

    def fill(self, value):
        value = np.asarray(value, self.dtype)
        if value.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        view = self._view
        if value != 0 or not view.flags.c_contiguous:
            fake_cuda.gpu.needs(f"cupy_fill {self.dtype}")
        fake_cuda.gpu.current.enqueue(lambda: view.fill(value))

    def reshape(self, *shape):
        view = self._view.reshape(*shape)
        if view.size == 0 or np.may_share_memory(view, self._view):
            return self._of(view)
        return self.copy().reshape(*shape)

    def ravel(self):
        return self.reshape(-1)

    def copy(self, order="C"):
        return self.astype(self.dtype)

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == dtype:
            return self
        new = ndarray(self.shape, dtype)
        _copy(self, new)
        return new

    def get(self, stream=None, order="C", out=None, blocking=True):
        assert stream is None and out is None and blocking
        stream, array = fake_cuda.gpu.current, self
        if not self._view.flags.c_contiguous:
            with stream:
                array = ascontiguousarray(self)
        if array.size:
            stream.refuse_while_capturing(RuntimeError(
                "the current stream is capturing, so D2H transfers are disallowed"), voids=False)
        stream.synchronize()
        return array._view.copy()

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._view.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        _from_host(arr, self._view, fake_cuda.gpu.current if stream is None else stream)


ndarray.__module__ = "cupy"


def _basic(key):
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is ... or isinstance(k, (int, np.integer, slice)) for k in keys):
        raise IndexError(f"not basic indexing: {key!r}")
    return keys if any(k is ... for k in keys) else (*keys, ...)


def _copy(source, target, is_memcpy=False):
    """Queue a copy on the GPU, by a kernel of CuPy's own unless it is of whole memory."""
    if not is_memcpy:
        fake_cuda.gpu.needs(f"cupy_copy {source.dtype} {target.dtype}")
    source, target = source._view, target._view
    np.broadcast_to(source, target.shape)  # or ValueError
    fake_cuda.gpu.current.enqueue(lambda: np.copyto(target, source, casting="unsafe"))


def _from_host(host, target, stream):
    """Queue an upload; from pinned memory it reads when its turn comes."""
    stream.refuse_while_capturing(RuntimeError(
        "the current stream is capturing, so H2D transfers are disallowed"), voids=False)
    host = host if is_pinned(host) else host.copy()
    stream.enqueue(lambda: np.copyto(target, host))


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def zeros(shape, dtype=float, order="C"):
    array = ndarray(shape, dtype, order=order)
    view = array._view
    fake_cuda.gpu.current.enqueue(lambda: view.fill(0))
    return array


def empty_like(array):
    return ndarray(array.shape, array.dtype)


def zeros_like(array):
    return zeros(array.shape, array.dtype)


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a.astype(a.dtype if dtype is None else dtype, copy=False)
    a = np.array(a, dtype=dtype, copy=None)
    # As it lies in memory, unless there are gaps.
    array = ndarray(a.shape, a.dtype, order="F" if a.flags.fnc else "C")
    if a.ndim == 0:
        array.fill(a)
    else:
        _from_host(a, array._view, fake_cuda.gpu.current)
    return array


def ascontiguousarray(a, dtype=None):
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (expected cupy._core.core._ndarray_base,"
                        f" got {type(a).__name__})")
    if a.ndim == 0:
        return a.reshape(1)
    return a if a._view.flags.c_contiguous else a.copy()


# ---------------------------------------------------------------- kernels


launched = 0  # kernels that were run


class RawModule:
    """Kernels; compiled for the CPU, as the emulator would."""

    def __init__(self, *, code, options=(), name_expressions=None):
        assert isinstance(options, tuple) and name_expressions
        code = re.sub(r"\n// headers \w+\n$", "", code)
        self.parameters = parse_kernels(code)
        self.names = tuple(name_expressions)
        # As for the emulator: what was compiled for other tests is found again.
        self._arguments = code, self.names, tuple(
            option for option in options
            if not option.startswith("-std") and option != f"-I{emulator.HERE}")
        self._module = None

    @property
    def module(self):
        if self._module is None:
            fake_cuda.gpu.note("a module loaded")
            self._module = emulator.Module(*self._arguments)
        return self._module

    def get_function(self, name):
        if not isinstance(name, str):
            raise TypeError("Argument 'name' has incorrect type")
        if name not in self.names:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        return RawKernel(self.module, name, self.parameters[name.partition("<")[0]])


class RawKernel:
    """One of them; checks what CuPy checks, and that is little."""

    def __init__(self, module, name, parameters):
        self._module, self._name, self._parameters = module, name, parameters

    def __call__(self, grid, block, args, *, shared_mem=0):
        if type(grid) is not tuple or type(block) is not tuple:
            raise TypeError("Argument 'grid' has incorrect type (expected tuple, got list)")
        grid, block = (tuple(max(1, size) for size in sizes) for sizes in (grid, block))
        try:
            emulator.launch_sizes(self._name, grid, block, shared_mem)
        except ValueError as error:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument") from error
        arguments = [_argument(value) for value in args]
        assert len(arguments) == len(self._parameters), "CUDA would read what lies behind them"
        fake_cuda.gpu.current.enqueue(lambda: self._run(grid, block, arguments, shared_mem))

    def _run(self, grid, block, arguments, shared_mem):
        global launched
        launched += 1
        passed, seen, written = [], {}, []
        for parameter, argument in zip(self._parameters, arguments):
            if isinstance(argument, bytes):
                passed.append(argument)
                continue
            address = argument.ctypes.data, argument.nbytes
            first = seen.setdefault(address, len(passed)) if argument.nbytes else len(passed)
            if first != len(passed):  # the same array once more
                if not parameter.is_const and not passed[first][2]:
                    passed[first] = (*passed[first][:2], True, *passed[first][3:])
                    written.append((first, argument))
                passed.append(first)
                continue
            if not parameter.is_const:
                written.append((first, argument))
            passed.append((parameter.name, argument.tobytes(), not parameter.is_const,
                           argument.ctypes.data % 32, b"\xa5"))
        contents = self._module.run(self._name, grid, block, passed, shared_mem)
        for (_, array), content in zip(sorted(written, key=lambda each: each[0]), contents):
            array[...] = np.frombuffer(content, np.uint8)


def _argument(value):
    """Return the bytes of a number, or the memory of an array: what lies behind its address."""
    if value is None:
        return bytes(8)
    if isinstance(value, ndarray):
        if value.nbytes == 0:
            return np.empty(0, np.uint8)
        return value.data.mem.view(value.data.ptr - value.data.mem.ptr, (value.nbytes,), np.uint8)
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise TypeError(f"You are trying to pass a numpy.ndarray of shape {value.shape} as a "
                            "kernel parameter.")
        return value.tobytes()
    if isinstance(value, np.generic):
        return value.tobytes()
    if type(value) in (bool, int, float):  # eight bytes, whatever the kernel expects
        return np.array(value).tobytes()
    raise TypeError(f"Unsupported type {type(value)}")


# ---------------------------------------------------------------- cuBLAS


class FakeCublas:
    """fake_cublas.c, its products queued."""

    def __init__(self, library):
        self.cublasCreate_v2 = _Function(library.cublasCreate_v2)
        self.cublasSetMathMode = _Function(library.cublasSetMathMode)
        self.cublasSetWorkspace_v2 = _Function(library.cublasSetWorkspace_v2)
        self.cublasSetStream_v2 = _SetStream(library.cublasSetStream_v2)
        self.cublasGemmEx = _Gemm(library.cublasGemmEx)


class _Function:
    def __init__(self, function):
        self.__dict__["function"] = function

    def __setattr__(self, name, value):  # argtypes, restype
        setattr(self.function, name, value)

    def __call__(self, *arguments):
        return self.function(*arguments)


class _SetStream(_Function):
    def __call__(self, handle, stream):
        fake_cuda.gpu.cublas_stream = stream
        return self.function(handle, stream)


class _Gemm(_Function):
    def __call__(self, *arguments):
        def run():
            status = self.function(*arguments)
            assert status == 0, f"cublasGemmEx: status {status}"

        fake_cuda.gpu.streams[fake_cuda.gpu.cublas_stream].enqueue(run)
        return 0


def compile_cublas(folder):
    """Return fake_cublas.c as a ctypes library, compiled into `folder`."""
    made = folder / "libfake_cublas.so"
    if not made.exists():
        subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC",
                        Path(__file__).with_name("fake_cublas.c"), "-o", made], check=True)
    return ctypes.CDLL(str(made))


# ---------------------------------------------------------------- the module


def install(monkeypatch, cublas_library=None, *, early=False):
    """Put a fresh CuPy, with a GPU and its driver, into sys.modules; return it."""
    fake_cuda.start(early)
    runtime = types.SimpleNamespace(
        runtimeGetVersion=lambda: 13020, getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: {"name": b"a GPU that is none"})
    cuda = types.SimpleNamespace(
        runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 2)), cublas=None,
        Device=lambda: types.SimpleNamespace(compute_capability="90"),
        get_current_stream=lambda: fake_cuda.gpu.current)
    for name in ("Stream", "Event", "Graph", "Memory", "MemoryPointer", "MemoryPool", "alloc",
                 "using_allocator", "alloc_pinned_memory", "get_elapsed_time"):
        setattr(cuda, name, getattr(fake_cuda, name))
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.cuda, cupy.ndarray, cupy.RawModule = cuda, ndarray, RawModule
    cupy.get_default_memory_pool = lambda: fake_cuda.gpu.pool
    for function in (empty, zeros, empty_like, zeros_like, asarray, ascontiguousarray):
        setattr(cupy, function.__name__, function)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "_driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(backend, "_own_stream", None)
    monkeypatch.setattr(backend, "_installed_cupy", lambda: ["cupy-cuda13x"])
    monkeypatch.setattr(backend, "load_cublas", lambda: None)
    monkeypatch.setattr(gemm_module, "load_cublas", lambda: FakeCublas(cublas_library))
    gemm_module._cublas.cache_clear()
    return cupy
