"""CUDA kernels on the CPU: compile a `.cu` file with g++ and run its kernels on NumPy arrays.

The numbers are those of a GPU up to rounding, and slow: it is there to test kernels, and to read
and try them, on a machine without one. `emulator.h` says what is covered. Each compiled file runs
in a process of its own (`sandbox.py`), its arguments between pages that must not be touched, so an
access out of bounds ends that process and raises `KernelError` here.
"""

import hashlib
import operator
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from minisegnet.errors import UserError

HERE = Path(__file__).parent
FIBER_ORDERS = {"forward": b"f", "reverse": b"r", "random": b"x"}
CXX_FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=fast", "-Wall",
             "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable",
             "-fstack-clash-protection", "-fsanitize=bounds,alignment,signed-integer-overflow",
             "-fsanitize-undefined-trap-on-error")
MAX_THREADS, MAX_BLOCK, MAX_GRID = 1024, (1024, 1024, 64), (2 ** 31 - 1, 65535, 65535)
MAX_SHARED_BYTES = 48 * 1024
SECONDS = 60  # of computing that a launch may take
KEPT_SECONDS = 30 * 24 * 3600  # that a compiled file is kept without being used

_order = "forward"


@contextmanager
def fiber_order(order):
    """Within it, the threads of a block run in this order: "forward", "reverse" or "random".

    A kernel whose result depends on it lacks a barrier, or adds up by chance.
    """
    global _order
    if order not in FIBER_ORDERS:
        raise ValueError(f"order {order!r} is not one of {', '.join(FIBER_ORDERS)}")
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
        self._lock = threading.Lock()
        self._worker = None

    def run(self, name, grid, block, arguments, shared_bytes=0):
        """Run kernel `name`; return the new contents of its writable arrays, in order.

        An argument is bytes, a number; or an array, (name, content, is_writable, misalignment,
        the byte that fills what is around it); or the position of an argument that is the same
        array. What the kernel prints is printed. Raises ValueError for a launch that CUDA would
        refuse, KernelError for a kernel that breaks a rule.
        """
        if name not in self.names:
            raise ValueError(f"{name} is not among the compiled kernels {', '.join(self.names)}")
        dims = launch_dims(name, grid, block, shared_bytes)
        request = (_symbol(self.names.index(name)), dims, shared_bytes,
                   FIBER_ORDERS[_order], arguments)
        with self._lock:
            if self._worker is None or not self._worker.is_alive():
                self._worker = _Worker(self, self._library)
            status, result = self._worker.ask(name, request)
        if status == "error":
            raise KernelError(f"{name}: {result}")
        return result

    def close(self):
        """End the process that runs the kernels."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def launch_dims(name, grid, block, shared_bytes):
    """Return the six sizes of a launch, the grid's and a block's; ValueError if CUDA has none."""
    grid, block = (tuple(map(operator.index, sizes)) + (1,) * (3 - len(sizes))
                   for sizes in (grid, block))
    dims = (*grid, *block)
    fits = all(1 <= size <= limit for size, limit in zip(dims, MAX_GRID + MAX_BLOCK))
    if len(dims) != 6 or not fits or block[0] * block[1] * block[2] > MAX_THREADS:
        raise ValueError(f"{name}: CUDA launches no grid {grid} of blocks {block}; a grid may be "
                         f"{MAX_GRID}, a block {MAX_BLOCK}, and of {MAX_THREADS} threads in all")
    if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
        raise ValueError(f"{name}: {shared_bytes} bytes of shared memory, more than "
                         f"{MAX_SHARED_BYTES}")
    return dims


def _symbol(i):
    return f"cuda_cpu_kernel_{i}"


def _compile(code, names, options, file_name):
    """Return the path of the shared library, compiled unless the same source was before."""
    exports = "".join(f'CUDA_CPU_EXPORT({_symbol(i)}, "{name}", ({name}))\n'
                      for i, name in enumerate(names))
    source = f'#include "emulator.h"\n#line 1 "{file_name}"\n{code}\n{exports}'
    # What the source includes is part of what is compiled.
    folders = [HERE, *(Path(option[2:]) for option in options if option.startswith("-I"))]
    headers = "".join(path.read_text() for folder in folders
                      for path in sorted(folder.glob("*.h")))
    defined = [option for option in options if not option.startswith("-I")]
    key = hashlib.sha256("\0".join((code, exports, headers, *defined, *CXX_FLAGS)).encode())
    folder = Path(tempfile.gettempdir()) / f"minisegnet-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}, where kernels are kept, is another user's; set TMPDIR")
    library = folder / f"{key.hexdigest()[:24]}.so"
    if library.exists():
        os.utime(library)  # used today
        return library
    if not is_available():
        raise UserError("kernels run on the CPU need g++; install it (Debian: apt install g++)")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        cpp, made = Path(work) / "kernels.cpp", Path(work) / "kernels.so"
        cpp.write_text(source)
        done = subprocess.run(["g++", *CXX_FLAGS, *_newer_flags(), f"-I{HERE}", *options, cpp,
                               "-o", made], capture_output=True, text=True,
                              env={**os.environ, "LC_ALL": "C"})  # "error:" in every country
        if done.returncode:
            errors = re.findall(r"^.*error:.*$", done.stderr, re.MULTILINE)
            raise KernelError("\n".join(errors[:5]) or done.stderr[-2000:])
        os.replace(made, library)
    for old in folder.glob("*.so"):
        with suppress(FileNotFoundError):  # another program tidies up, too
            if old.stat().st_mtime < time.time() - KEPT_SECONDS:
                old.unlink()
    return library


@lru_cache
def _newer_flags():
    """From g++ 12 on, a local variable that is read before it is written shows."""
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout
    return ("-ftrivial-auto-var-init=pattern",) if int(version.split(".")[0]) >= 12 else ()


class _Worker:
    """The process that runs a module's kernels; ends with it, and with this program."""

    def __init__(self, module, library):
        self._printed = tempfile.TemporaryFile("a+b")  # by kernels, and the words of an error
        self._seen = 0
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", HERE / "sandbox.py", library, str(SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed,
            start_new_session=True)  # Ctrl-C is for this program alone
        self.stop = weakref.finalize(module, _stop, self._process, self._printed)

    def is_alive(self):
        return self._process.poll() is None

    def ask(self, name, request):
        """Return the answer to a request; KernelError if the process dies of it."""
        try:
            pickle.dump(request, self._process.stdin, protocol=5)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            words = self._new_words().strip()
            self.stop()
            raise KernelError(words or f"{name}: its process died") from None
        except BaseException:  # Ctrl-C: an answer that comes later would be taken for the next one
            self.stop()
            raise
        words = self._new_words()
        if words:
            print(words, end="")
        return answer

    def _new_words(self):
        words = os.pread(self._printed.fileno(), 1 << 20, self._seen)
        self._seen = os.fstat(self._printed.fileno()).st_size
        return words.decode(errors="replace")


def _stop(process, printed):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, printed):
        with suppress(BrokenPipeError):  # what it was sent and never read
            pipe.close()
