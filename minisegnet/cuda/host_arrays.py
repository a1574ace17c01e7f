"""Kernels on a GPU for arrays of the host: uploaded, worked on and downloaded at every launch.

    with host_arrays_on(cupy):      # tests, written for the emulator, test the GPU
        relu_forward(x, implementation="cuda_cpu")

Within it the GPU stands in for the emulator, on NumPy arrays and on those of the emulated device:
far slower than either should be, and it is the compiled kernel that runs, on real threads. As in
the emulator's sandbox an array lies between bytes that are compared afterwards.
"""

from contextlib import contextmanager

import numpy as np

from minisegnet.cuda import emulator

GUARD = 256  # bytes before and behind an array: it keeps its alignment

_gpu = None  # the array module


@contextmanager
def host_arrays_on(xp):
    """Within it, the GPU of the array module `xp` runs kernels on arrays of the host."""
    global _gpu
    before, _gpu = _gpu, xp
    try:
        yield
    finally:
        _gpu = before


def gpu_of_host_arrays():
    """Return the array module of the GPU that works on arrays of the host, or None."""
    return _gpu


class Module:
    """Kernels compiled for a GPU, called as those of `emulator.Module` are."""

    def __init__(self, xp, compiled):
        self.xp, self.compiled = xp, compiled

    def run(self, name, grid, block, arguments, shared_bytes=0):
        """See `emulator.Module.run`."""
        # CuPy takes a grid of 0 for 1.
        _, shared_bytes = emulator.launch_sizes(name, grid, block, shared_bytes)
        buffers, passed = [], []
        for argument in arguments:
            if isinstance(argument, bytes):  # a number: what counts are its bits
                passed.append(np.frombuffer(argument, f"u{len(argument)}")[0])
            elif isinstance(argument, int):  # the same array as that argument
                passed.append(passed[argument])
            else:
                buffers.append(_Buffer(self.xp, *argument))
                passed.append(buffers[-1].array)
        self.compiled.get_function(name)(tuple(grid), tuple(block), tuple(passed),
                                         shared_mem=shared_bytes)
        contents = [buffer.content() for buffer in buffers]  # waits; all are looked at
        damaged = [buffer.name for buffer in buffers if buffer.is_damaged]
        if damaged:
            raise emulator.KernelError(f"{name}: memory access out of bounds, a write next to "
                                       f"{damaged[0]} or to what is const")
        return [content for buffer, content in zip(buffers, contents) if buffer.is_writable]


class _Buffer:
    """An array on the GPU, between guards; of the misalignment that it has on the device."""

    def __init__(self, xp, name, content, is_writable, misalignment, pattern):
        self.name, self.is_writable = name, is_writable
        start = GUARD + misalignment
        self._array = slice(start, start + len(content))
        self._host = np.resize(np.frombuffer(pattern, np.uint8), start + len(content) + GUARD)
        self._host[self._array] = np.frombuffer(content, np.uint8)
        self._device = xp.asarray(self._host)
        self.array = self._device[self._array]
        self.is_damaged = False

    def content(self):
        """Return the bytes of the array as they are now."""
        found = self._device.get()
        content = found[self._array].tobytes()
        if self.is_writable:
            found[self._array] = self._host[self._array]
        self.is_damaged = not np.array_equal(found, self._host)
        return content
