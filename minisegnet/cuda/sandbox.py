"""Run the kernels of a compiled library, each argument between pages that must not be touched.

A program of its own, started by `emulator.py`: requests come in on stdin, results go out on
stdout, what kernels print on stderr. An array ends where its last page does, so that one element
too far is a fault, not another array's number; where fibers run in reverse it starts where its
first page does. What else is on its pages, at its end up to 31 bytes where its size is no multiple
of 32, holds a pattern that is compared afterwards. The first word on stdout is that the library is
loaded; one that cannot be is an exit code. Imports the standard library alone.
"""

import ctypes
import mmap
import os
import pickle
import signal
import sys

PAGE = mmap.PAGESIZE
GUARD = 16 << 20  # forbidden bytes on both sides of an array: several rows too far are found, too
ALIGNMENT = 32  # the widest load of a kernel; what cudaMalloc returns is aligned to 256


class Array(ctypes.Structure):
    """The `Array` of emulator.h."""

    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("name", ctypes.c_char_p)]


class GuardedBuffer:
    """The bytes `content` between forbidden pages, at the end of theirs or `at_start`.

    `misalignment` shifts the start of the array; `pattern`, the bytes of one element or of one
    byte, is repeated around it.
    """

    def __init__(self, libc, name, content, is_writable, misalignment, pattern, at_start):
        self.name, self.size, self.is_writable = name, len(content), is_writable
        span = -(-(self.size + ALIGNMENT) // PAGE) * PAGE
        self._length, self._libc = span + 2 * GUARD, libc
        self._mapping = libc.mmap(None, self._length, 0,
                                  mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self._first = self._mapping + GUARD
        last = self._first + span
        libc.mprotect(self._first, span, mmap.PROT_READ | mmap.PROT_WRITE)
        start = self._first if at_start else last - self.size - misalignment
        self.address = start // ALIGNMENT * ALIGNMENT + misalignment
        # An array is whole elements, and so is what lies before it.
        self._before, self._behind = (
            (pattern * (size // len(pattern) + 1))[:size]
            for size in (self.address - self._first, last - self.address - self.size))
        ctypes.memmove(self._first, self._before + content + self._behind, span)
        if not is_writable:
            libc.mprotect(self._first, span, mmap.PROT_READ)

    def content(self):
        """Return the bytes as they are now."""
        return ctypes.string_at(self.address, self.size)

    def is_damaged(self):
        """Whether something was written before or behind the array."""
        end = self.address + self.size
        return (ctypes.string_at(self._first, len(self._before)) != self._before
                or ctypes.string_at(end, len(self._behind)) != self._behind)

    def free(self):
        """Give the memory back."""
        self._libc.munmap(self._mapping, self._length)


def run(library, libc, symbol, dims, shared_bytes, order, arguments):
    """Run one kernel; return ("ok", contents of the writable arrays) or ("error", words)."""
    buffers, cells = [], []  # a cell holds what is passed: a number, or the address of an array
    for argument in arguments:
        if isinstance(argument, bytes):  # a number
            cells.append(ctypes.create_string_buffer(argument, max(8, len(argument))))
            continue
        if isinstance(argument, int):  # the same array as that argument
            cells.append(cells[argument])
            continue
        buffers.append(GuardedBuffer(libc, *argument, at_start=order == b"r"))
        cells.append(ctypes.c_void_p(buffers[-1].address))
    pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
    arrays = (Array * (len(buffers) + 1))(*(
        (buffer.address, buffer.address + buffer.size, buffer.name.encode())
        for buffer in buffers))
    function = getattr(library, symbol)
    function.restype = None
    function((ctypes.c_uint * 6)(*dims), ctypes.c_size_t(shared_bytes), ctypes.c_char(order),
             pointers, arrays)
    libc.fflush(None)
    damaged = [buffer.name for buffer in buffers if buffer.is_damaged()]
    contents = [buffer.content() for buffer in buffers if buffer.is_writable]
    for buffer in buffers:
        buffer.free()
    if damaged:
        return "error", f"memory access out of bounds, a write next to {damaged[0]}"
    return "ok", contents


def main():
    """Answer requests until there are no more: `sandbox.py library seconds_of_a_launch`."""
    try:
        library, seconds = ctypes.CDLL(sys.argv[1]), float(sys.argv[2])
    except OSError as error:  # damaged, of another machine, on a disk that executes nothing
        sys.exit(str(error))
    results = os.fdopen(os.dup(1), "wb")
    pickle.dump("loaded", results, protocol=5)
    results.flush()
    os.dup2(2, 1)  # where a kernel's printf goes
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                          ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.fflush.argtypes = [ctypes.c_void_p]
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing; caught in emulator.h
        answer = run(library, libc, *request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pickle.dump(answer, results, protocol=5)
        results.flush()


if __name__ == "__main__":
    main()
