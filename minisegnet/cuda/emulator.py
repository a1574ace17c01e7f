"""CUDA kernels on the CPU: compile a `.cu` file with g++ and run its kernels on NumPy arrays.

The numbers are those of a GPU up to rounding, and slow: it is there to test kernels, and to read
and try them, on a machine without one. `emulator.h` says what is covered. Each compiled file runs
in a process of its own (`sandbox.py`), its arguments between pages that must not be touched, so an
access out of bounds ends that process and raises `KernelError` here.
"""

import atexit
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from minisegnet.errors import UserError

HERE = Path(__file__).parent
FIBER_ORDERS = {"forward": b"f", "reverse": b"r", "random": b"x"}
CXX_FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=fast", "-Wall",
             "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable")


_order = "forward"


@contextmanager
def fiber_order(order):
    """Within it, the threads of a block run in this order: "forward", "reverse" or "random".

    A kernel whose result depends on it lacks a barrier, or adds up by chance.
    """
    global _order
    before, _order = _order, order
    try:
        yield
    finally:
        _order = before


class KernelError(RuntimeError):
    """A kernel broke a rule of CUDA: out of bounds, a barrier that not all reach, a deadlock."""


def is_available():
    """Whether g++ is there to compile kernels."""
    return shutil.which("g++") is not None


class Module:
    """The kernels of one source text, compiled for the CPU; looks like `cupy.RawModule`.

    `names` are the kernels as C++ writes them, `add_kernel` or `scale_kernel<4>`. Raises UserError
    without g++, KernelError with the compiler's words if it refuses the source.
    """

    def __init__(self, code, names, options=(), file_name="kernels.cu"):
        self.names = tuple(names)
        self._library = _compile(code, self.names, tuple(options), file_name)
        self._worker = None

    def run(self, name, grid, block, arguments, shared_bytes=0):
        """Run kernel `name`; `arguments` are (bytes-like, writable, misalignment) or bytes.

        Bytes are one number. Returns the new contents of the writable ones, in order.
        """
        if self._worker is None or self._worker.poll() is not None:
            self._worker = _start_worker(self._library)
        dims = (*_three(grid), *_three(block))
        request = (_symbol(self.names.index(name)), dims, shared_bytes,
                   FIBER_ORDERS[_order], arguments)
        try:
            pickle.dump(request, self._worker.stdin, protocol=5)
            self._worker.stdin.flush()
            status, result = pickle.load(self._worker.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            words = self._worker.stderr.read().decode(errors="replace").strip()
            _stop_worker(self._worker)
            raise KernelError(words or f"{name}: its process died") from None
        if status == "error":
            raise KernelError(f"{name}: {result}")
        return result

    def close(self):
        """End the process that runs the kernels."""
        if self._worker is not None:
            _stop_worker(self._worker)
            self._worker = None


def _three(sizes):
    return tuple(sizes) + (1,) * (3 - len(sizes))


def _symbol(i):
    return f"cuda_cpu_kernel_{i}"


def _compile(code, names, options, file_name):
    """Return the path of the shared library, compiled unless the same source was before."""
    exports = "".join(f'CUDA_CPU_EXPORT({_symbol(i)}, "{name}", ({name}))\n'
                      for i, name in enumerate(names))
    source = f'#include "emulator.h"\n#line 1 "{file_name}"\n{code}\n{exports}'
    # What the source includes is part of what is compiled.
    headers = "".join(path.read_text() for path in sorted(HERE.glob("*.h")))
    key = hashlib.sha256("\0".join((source, headers, *options, *CXX_FLAGS)).encode())
    folder = Path(tempfile.gettempdir()) / f"minisegnet-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key.hexdigest()[:24]}.so"
    if library.exists():
        return library
    if not is_available():
        raise UserError("kernels run on the CPU need g++; install it (Debian: apt install g++)")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        cpp, made = Path(work) / "kernels.cpp", Path(work) / "kernels.so"
        cpp.write_text(source)
        done = subprocess.run(["g++", *CXX_FLAGS, f"-I{HERE}", *options, cpp, "-o", made],
                              capture_output=True, text=True)
        if done.returncode:
            errors = re.findall(r"^.*error:.*$", done.stderr, re.MULTILINE)
            raise KernelError("\n".join(errors[:5]) or done.stderr[-2000:])
        os.replace(made, library)
    return library


def _start_worker(library):
    worker = subprocess.Popen(
        [sys.executable, "-S", "-E", HERE / "sandbox.py", library], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _workers.add(worker)
    return worker


def _stop_worker(worker):
    _workers.discard(worker)
    if worker.poll() is None:
        worker.stdin.close()
        worker.wait()
    for pipe in (worker.stdin, worker.stdout, worker.stderr):
        pipe.close()


_workers = set()  # the processes that are to end with this one


@atexit.register
def _stop_workers():
    for worker in list(_workers):
        _stop_worker(worker)
