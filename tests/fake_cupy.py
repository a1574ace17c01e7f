"""A CuPy without a GPU: what the package asks of CuPy 14.2, as that does it, on host memory.

    cupy = fake_cupy.install(monkeypatch)

It runs the branches that are otherwise run on a GPU alone, and is as strict as CuPy and CUDA:
arrays never become NumPy's by themselves, kernels get addresses and know no strides, numbers
travel with the size of their type, `with stream:` leaves behind the stream that was *entered*
before it. Kernels are the emulator's; cuBLAS is fake_cublas.c.

Work is queued on its stream and done as late as possible: when somebody waits, in the order that
events impose and no other. With `early` streams that are not the current one do theirs at once.
A race, such as a buffer that is written to too soon, shows in one of the two.

While a stream captures, nothing is done and everything noted; what CUDA or CuPy forbid then
raises. What is merely unwelcome, memory from cudaMalloc or a kernel compiled, is in `gpu.log`.
"""

import contextlib
import ctypes
import itertools
import re
import subprocess
import sys
import time
import types
import weakref
from collections import deque
from pathlib import Path

import numpy as np

from minisegnet import backend
from minisegnet.cuda import emulator
from minisegnet.cuda import gemm as gemm_module
from minisegnet.cuda.launch import parse_kernels

UNIT = 512  # bytes; what cudaMalloc, and CuPy's pools, hand out is aligned to


class CUDARuntimeError(RuntimeError):
    """What a call of the runtime returns; raised by CuPy."""


class CUDADriverError(RuntimeError):
    """Likewise, of the driver."""


class Gpu:
    """The state of the machine."""

    def __init__(self, early=False):
        self.early = early
        self.log = []
        self.pinned = []  # arrays of pinned memory
        self.compiled = set()  # CuPy's own kernels that were needed
        self.leaked_bytes = 0
        self.streams = {}  # address -> Stream
        self.pointers = itertools.count(0x1000, 0x10)
        self.allocator = None  # of `using_allocator`
        self.cublas_stream = 0

    def start(self):
        """Make what there is from the start."""
        Stream.null = Stream(null=True)
        self.stack = [Stream.null]  # what was entered
        self.current = Stream.null
        self.pool = MemoryPool()

    @property
    def is_capturing(self):
        return any(stream.is_capturing() for stream in self.streams.values())

    def note(self, what):
        """Note `what` if it happens while a stream captures."""
        if self.is_capturing:
            self.log.append(f"{what} while capturing")

    def needs(self, kernel):
        """A kernel of CuPy's own, compiled when it is first needed."""
        if kernel not in self.compiled:
            self.compiled.add(kernel)
            self.note(f"compiled {kernel}")


gpu = None


# ---------------------------------------------------------------- streams, events, graphs


class Stream:
    """A queue of work, of which nothing is done before somebody waits."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        assert null or non_blocking, "a blocking stream, which waits for the default one"
        self.ptr = 0 if null else next(gpu.pointers)
        self.device_id = -1 if null else 0
        self._queue, self._queued, self._done = deque(), 0, 0
        self._capture = self._capture_error = None
        gpu.streams[self.ptr] = self

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def __enter__(self):
        gpu.stack.append(self)
        gpu.current = self
        return self

    def __exit__(self, *args):
        gpu.stack.pop()
        gpu.current = gpu.stack[-1]  # not what `use` made the current one

    def use(self):
        gpu.current = self
        return self

    def enqueue(self, run, waits_for=None):
        """Queue `run()`, to be done after (stream, position)."""
        if self._capture is not None:
            self._capture.append(run)
            return
        self._queue.append((run, waits_for))
        self._queued += 1
        if gpu.early and self != gpu.stack[-1]:
            self.do()

    def do(self, until=None):
        """Do what is queued, up to a position."""
        while self._queue and (until is None or self._done < until):
            run, waits_for = self._queue.popleft()
            if waits_for is not None:
                stream, position = waits_for
                stream.do(position)
            run()
            self._done += 1

    def refuse_while_capturing(self, error, voids=True):
        if self._capture is not None:
            if voids:
                self._capture_error = "cudaErrorStreamCaptureInvalidated: operation failed due " \
                    "to a previous error during capture"
            raise error

    def synchronize(self):
        self.refuse_while_capturing(CUDARuntimeError(
            "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"))
        self.do()

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        self.refuse_while_capturing(CUDARuntimeError(
            "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another "
            "stream"))
        if event.at is not None:
            self.enqueue(lambda: None, event.at)

    def begin_capture(self, mode=None):
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert mode is None and self._capture is None
        self._capture, self._capture_error = [], None

    def end_capture(self):
        nodes, self._capture = self._capture, None
        if self._capture_error is not None:
            raise CUDARuntimeError(self._capture_error)
        return Graph(nodes)

    def is_capturing(self):
        return self._capture is not None


class Event:
    """A place in a stream's queue."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.disable_timing = disable_timing
        self.at = self.time = None

    def record(self, stream=None):
        stream = gpu.current if stream is None else stream
        assert not stream.is_capturing(), "an event recorded in a capture is not needed here"

        def run():
            self.time = time.perf_counter()

        stream.enqueue(run)
        self.at = stream, stream._queued

    def synchronize(self):
        if self.at is not None:
            stream, position = self.at
            stream.do(position)


def get_elapsed_time(start, end):
    if start.disable_timing or end.disable_timing or start.time is None or end.time is None:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    return 1e3 * (end.time - start.time)


class Graph:
    """Captured work, done anew at every launch."""

    def __init__(self, nodes):
        self.nodes = nodes

    def launch(self, stream=None):
        stream = gpu.current if stream is None else stream
        assert not stream.is_capturing()
        for node in self.nodes:
            stream.enqueue(node)


# ---------------------------------------------------------------- memory


class Memory:
    """What cudaMalloc returns."""

    def __init__(self, size):
        if size:
            gpu.note("cudaMalloc")
        self.size = size
        self._buffer = np.empty(size + UNIT, np.uint8)
        self._start = -self._buffer.ctypes.data % UNIT
        self.ptr = self._buffer.ctypes.data + self._start if size else 0

    def view(self, offset, shape, dtype, order="C"):
        """Return a NumPy array of this memory."""
        return np.ndarray(shape, dtype, self._buffer, self._start + offset, order=order)


class MemoryPointer:
    """A place in a piece of memory."""

    def __init__(self, mem, offset):
        assert mem.ptr != 0 or offset == 0
        self.mem, self.ptr = mem, mem.ptr + offset


class _Block:
    """A piece of memory that a pool hands out, between its neighbours."""

    def __init__(self, memory, offset, size, stream):
        self.memory, self.offset, self.size, self.stream = memory, offset, size, stream
        self.before = self.behind = None
        self.is_free = False

    def split(self, size):
        """Cut off what is beyond `size` and return it."""
        rest = _Block(self.memory, self.offset + size, self.size - size, self.stream)
        rest.before, rest.behind = self, self.behind
        if self.behind is not None:
            self.behind.before = rest
        self.size, self.behind = size, rest
        return rest

    def merge(self):
        """Take in what is behind."""
        self.size += self.behind.size
        self.behind = self.behind.behind
        if self.behind is not None:
            self.behind.before = self


class _PooledMemory:
    """Memory on loan; comes back to its pool by itself."""

    def __init__(self, block, pool):
        self._block, self._pool = block, weakref.ref(pool)
        self.ptr, self.size = block.memory.ptr + block.offset, block.size

    def view(self, offset, shape, dtype, order="C"):
        return self._block.memory.view(self._block.offset + offset, shape, dtype, order)

    def __del__(self):
        pool = self._pool()
        if pool is not None:
            pool.take_back(self._block)


class MemoryPool:
    """Keeps what was freed for its stream: best fit, larger blocks are split."""

    def __init__(self, allocator=None):
        self._free, self._total, self._used = [], 0, 0
        self._gpu = gpu

    def malloc(self, size):
        if size == 0:
            return MemoryPointer(Memory(0), 0)
        size, stream = -(-size // UNIT) * UNIT, gpu.current.ptr
        fitting = [block for block in self._free if block.size >= size and block.stream == stream]
        if fitting:
            block = min(fitting, key=lambda block: block.size)
            self._free.remove(block)
            if block.size > size:
                rest = block.split(size)
                rest.is_free = True
                self._free.append(rest)
        else:
            block = _Block(Memory(size), 0, size, stream)
            self._total += size
        block.is_free = False
        self._used += block.size
        garbage = block.memory.view(block.offset, (block.size,), np.uint8)
        gpu.current.enqueue(lambda: garbage.fill(0xFF))
        return MemoryPointer(_PooledMemory(block, self), 0)

    def take_back(self, block):
        self._used -= block.size
        block.is_free = True
        while block.behind is not None and block.behind.is_free:
            self._free.remove(block.behind)
            block.merge()
        while block.before is not None and block.before.is_free:
            block = block.before
            self._free.remove(block)
            block.merge()
        self._free.append(block)

    def free_all_blocks(self, stream=None):
        whole = [block for block in self._free if block.before is None and block.behind is None]
        self._free = [block for block in self._free if block not in whole]
        self._total -= sum(block.size for block in whole)

    def total_bytes(self):
        return self._total

    def used_bytes(self):
        return self._used

    def __del__(self):  # as in CuPy, where free blocks hold on to themselves
        self._gpu.leaked_bytes += sum(block.size for block in self._free)


@contextlib.contextmanager
def using_allocator(allocator):
    before, gpu.allocator = gpu.allocator, allocator
    try:
        yield
    finally:
        gpu.allocator = before


def alloc(size):
    return (gpu.allocator or gpu.pool.malloc)(size)


def alloc_pinned_memory(size):
    gpu.note("pinned memory allocated")
    memory = np.empty(1 << max(9, (size - 1).bit_length()), np.uint8)
    gpu.pinned.append(memory)
    return memory


def _is_pinned(array):
    return any(np.may_share_memory(array, memory) for memory in gpu.pinned)


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
            gpu.needs(f"cupy_fill {self.dtype}")
        gpu.current.enqueue(lambda: view.fill(value))

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
        stream, array = gpu.current, self
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
        _from_host(arr, self._view, gpu.current if stream is None else stream)


ndarray.__module__ = "cupy"


def _basic(key):
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is ... or isinstance(k, (int, np.integer, slice)) for k in keys):
        raise IndexError(f"not basic indexing: {key!r}")
    return keys if any(k is ... for k in keys) else (*keys, ...)


def _copy(source, target, is_memcpy=False):
    """Queue a copy on the GPU, by a kernel of CuPy's own unless it is of whole memory."""
    if not is_memcpy:
        gpu.needs(f"cupy_copy {source.dtype} {target.dtype}")
    source, target = source._view, target._view
    np.broadcast_to(source, target.shape)  # or ValueError
    gpu.current.enqueue(lambda: np.copyto(target, source, casting="unsafe"))


def _from_host(host, target, stream):
    """Queue an upload; from pinned memory it reads when its turn comes."""
    stream.refuse_while_capturing(RuntimeError(
        "the current stream is capturing, so H2D transfers are disallowed"), voids=False)
    host = host if _is_pinned(host) else host.copy()
    stream.enqueue(lambda: np.copyto(target, host))


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def zeros(shape, dtype=float, order="C"):
    array = ndarray(shape, dtype, order=order)
    view = array._view
    gpu.current.enqueue(lambda: view.fill(0))
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
        _from_host(a, array._view, gpu.current)
    return array


def ascontiguousarray(a, dtype=None):
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (expected cupy._core.core._ndarray_base,"
                        f" got {type(a).__name__})")
    if a.ndim == 0:
        return a.reshape(1)
    return a if a._view.flags.c_contiguous else a.copy()


# ---------------------------------------------------------------- kernels


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
            gpu.note("a module loaded")
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
            emulator.launch_dims(self._name, grid, block, shared_mem)
        except ValueError as error:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument") from error
        arguments = [_argument(value) for value in args]
        assert len(arguments) == len(self._parameters), "CUDA would read what lies behind them"
        gpu.current.enqueue(lambda: self._run(grid, block, arguments, shared_mem))

    def _run(self, grid, block, arguments, shared_mem):
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
                           argument.ctypes.data % 32, 0xA5))
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
        gpu.cublas_stream = stream
        return self.function(handle, stream)


class _Gemm(_Function):
    def __call__(self, *arguments):
        def run():
            status = self.function(*arguments)
            assert status == 0, f"cublasGemmEx: status {status}"

        gpu.streams[gpu.cublas_stream].enqueue(run)
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
    global gpu
    gpu = Gpu(early)
    gpu.start()
    runtime = types.SimpleNamespace(
        runtimeGetVersion=lambda: 13020, getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: {"name": b"a GPU that is none"})
    cuda = types.SimpleNamespace(
        runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 2)), cublas=None,
        Device=lambda: types.SimpleNamespace(compute_capability="90"), Stream=Stream, Event=Event,
        get_current_stream=lambda: gpu.current, get_elapsed_time=get_elapsed_time, Graph=Graph,
        Memory=Memory, MemoryPointer=MemoryPointer, MemoryPool=MemoryPool, alloc=alloc,
        using_allocator=using_allocator, alloc_pinned_memory=alloc_pinned_memory)
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.cuda, cupy.ndarray, cupy.RawModule = cuda, ndarray, RawModule
    cupy.get_default_memory_pool = lambda: gpu.pool
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
