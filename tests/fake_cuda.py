"""The GPU of fake_cupy.py: streams, events, graphs and memory, on the host.

Work is queued on its stream and done as late as possible: when somebody waits, in the order that
events impose and no other. With `early` streams that are not the current one do theirs at once.
A race, such as a buffer that is written to too soon, shows in one of the two.

While a stream captures, nothing is done and everything noted; what CUDA or CuPy forbid then
raises. What is merely unwelcome, memory from cudaMalloc or a kernel compiled, is in `gpu.log`.
"""

import contextlib
import itertools
import time
import weakref
from collections import deque

import numpy as np

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


def start(early):
    """Begin anew, with a GPU that has done nothing yet."""
    global gpu
    gpu = Gpu(early)
    gpu.start()


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


def is_pinned(array):
    return any(np.may_share_memory(array, memory) for memory in gpu.pinned)
