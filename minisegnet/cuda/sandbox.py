"""Run the kernels of a compiled library, each argument between pages that must not be touched.

A program of its own, started by `emulator.py`: requests come in on stdin, results go out on stdout.
An array ends where its last page does, so that one element too far is a fault, not another
array's number. Up to 15 bytes at the end, where its size is no multiple of 16, and what is before
it on its first page hold a pattern that is compared afterwards. Imports the standard library alone.
"""

import ctypes
import mmap
import pickle
import sys

PAGE = mmap.PAGESIZE
PATTERN = 0xA5
ALIGNMENT = 16  # the widest load of a kernel; what cudaMalloc returns is aligned to 256


class GuardedBuffer:
    """`size` bytes, the last page before a forbidden one; `misalignment` shifts its start."""

    def __init__(self, libc, content, misalignment):
        self.size = len(content)
        span = -(-(self.size + ALIGNMENT) // PAGE) * PAGE
        self._mapping = libc.mmap(None, span + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE,
                                  mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self._length, self._libc = span + 2 * PAGE, libc
        self._first = self._mapping + PAGE
        last = self._first + span
        libc.mprotect(self._mapping, PAGE, 0)
        libc.mprotect(last, PAGE, 0)
        self.address = (last - self.size - misalignment) // ALIGNMENT * ALIGNMENT + misalignment
        ctypes.memset(self._first, PATTERN, span)
        ctypes.memmove(self.address, bytes(content), self.size)
        self._last = last

    def content(self):
        """Return the bytes as they are now."""
        return ctypes.string_at(self.address, self.size)

    def is_damaged(self):
        """Whether something was written before or behind the array."""
        end = self.address + self.size
        around = (ctypes.string_at(self._first, self.address - self._first)
                  + ctypes.string_at(end, self._last - end))
        return around != bytes([PATTERN]) * len(around)

    def free(self):
        """Give the memory back."""
        self._libc.munmap(self._mapping, self._length)


def run(library, libc, symbol, dims, shared_bytes, order, arguments):
    """Run one kernel; return ("ok", contents of the writable arrays) or ("error", words)."""
    buffers, cells, writable = [], [], []
    for argument in arguments:
        if isinstance(argument, bytes):  # a number
            cells.append(ctypes.create_string_buffer(argument, max(8, len(argument))))
            continue
        content, is_writable, misalignment = argument
        buffers.append(GuardedBuffer(libc, content, misalignment))
        cells.append(ctypes.c_void_p(buffers[-1].address))
        if is_writable:
            writable.append(buffers[-1])
    pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
    function = getattr(library, symbol)
    function.restype = None
    function((ctypes.c_uint * 6)(*dims), ctypes.c_size_t(shared_bytes), ctypes.c_char(order),
             pointers)
    damaged = [i for i, buffer in enumerate(buffers) if buffer.is_damaged()]
    contents = [buffer.content() for buffer in writable]
    for buffer in buffers:
        buffer.free()
    if damaged:
        return "error", f"wrote outside array argument number {damaged[0]}"
    return "ok", contents


def main():
    """Answer requests until there are no more."""
    library = ctypes.CDLL(sys.argv[1])
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                          ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(run(library, libc, *request), sys.stdout.buffer, protocol=5)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
