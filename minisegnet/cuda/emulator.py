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
    where this machine cannot compile or load kernels, KernelError with the compiler's words if it
    refuses the source.
    """

    def __init__(self, code, names, options=(), file_name="kernels.cu"):
        self.names = tuple(names)
        self._source = (code, self.names, tuple(options), file_name)
        self._library = _compile(*self._source)
        self._lock = threading.Lock()
        self._worker = None

    def run(self, name, grid, block, arguments, shared_bytes=0):
        """Run kernel `name`; return the new contents of its writable arrays, in order.

        An argument is bytes, a number; or an array, (name, content, is_writable, misalignment,
        the bytes that are repeated around it); or the position of an argument that is the same
        array. What the kernel prints is printed. Raises ValueError for a launch that CUDA would
        refuse, KernelError for a kernel that breaks a rule.
        """
        if name not in self.names:
            raise ValueError(f"{name} is not among the compiled kernels {', '.join(self.names)}")
        dims, shared_bytes = launch_sizes(name, grid, block, shared_bytes)
        request = (_symbol(self.names.index(name)), dims, shared_bytes,
                   FIBER_ORDERS[_order], arguments)
        with self._lock:
            if self._worker is None or not self._worker.is_alive():
                self._worker = self._start()
            status, result = self._worker.ask(name, request)
        if status == "error":
            raise KernelError(f"{name}: {result}")
        return result

    def _start(self):
        """Return a new `_Worker`; a library that cannot be loaded is compiled once more."""
        try:
            return _Worker(self, self._library)
        except _NotLoaded:
            with suppress(OSError):
                self._library.unlink()
            self._library = _compile(*self._source)
        try:
            return _Worker(self, self._library)
        except _NotLoaded as error:
            raise UserError(f"{self._library}, a compiled kernel, cannot be loaded ({error}); set "
                            "TMPDIR to a folder of yours whose files may be executed") from None

    def close(self):
        """End the process that runs the kernels."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def launch_sizes(name, grid, block, shared_bytes):
    """Return a launch's six sizes, the grid's and a block's, and its bytes of shared memory.

    Raises ValueError if CUDA has no such launch, TypeError for other things than whole numbers.
    """
    try:
        grid, block = (tuple(map(operator.index, sizes)) for sizes in (grid, block))
        shared_bytes = operator.index(shared_bytes)
    except TypeError:
        raise TypeError(f"{name}: grid {grid!r}, block {block!r} and shared_bytes "
                        f"{shared_bytes!r}; expected two tuples of integers and an integer"
                        ) from None
    grid, block = (sizes + (1,) * (3 - len(sizes)) for sizes in (grid, block))
    dims = (*grid, *block)
    fits = all(1 <= size <= limit for size, limit in zip(dims, MAX_GRID + MAX_BLOCK))
    if len(dims) != 6 or not fits or block[0] * block[1] * block[2] > MAX_THREADS:
        raise ValueError(f"{name}: CUDA launches no grid {grid} of blocks {block}; a grid may be "
                         f"{MAX_GRID}, a block {MAX_BLOCK}, and of {MAX_THREADS} threads in all")
    if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
        raise ValueError(f"{name}: {shared_bytes} bytes of shared memory; there may be 0 to "
                         f"{MAX_SHARED_BYTES}")
    return dims, shared_bytes


def _symbol(i):
    return f"cuda_cpu_kernel_{i}"


def _compile(code, names, options, file_name):
    """Return the path of the shared library, compiled unless the same source was before.

    Raises KernelError for an error in the source, UserError where the machine is to blame.
    """
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
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise UserError(f"{folder}, where kernels are kept, is another user's; set TMPDIR")
        library = folder / f"{key.hexdigest()[:24]}.so"
        if library.exists():
            with suppress(OSError):  # of a folder that may only be read, or tidied up meanwhile
                os.utime(library)  # used today
            return library
        if not is_available():
            raise UserError("kernels run on the CPU need g++; install it (Debian: apt install "
                            "g++)")
        with tempfile.TemporaryDirectory(dir=folder) as work:
            cpp, made = Path(work) / "kernels.cpp", Path(work) / "kernels.so"
            cpp.write_text(source)
            _run_compiler([*options, cpp, "-o", made], file_name)
            os.replace(made, library)
    except OSError as error:
        raise UserError(f"{folder}, where compiled kernels are kept, is of no use ({error}); set "
                        "TMPDIR to a folder that can be written to") from error
    for old in folder.glob("*.so"):
        with suppress(FileNotFoundError):  # another program tidies up, too
            if old.stat().st_mtime < time.time() - KEPT_SECONDS:
                old.unlink()
    return library


def _run_compiler(arguments, file_name):
    """Run g++; raise KernelError if the source is wrong, UserError if g++ fails for the rest."""
    done = subprocess.run(["g++", *CXX_FLAGS, *_newer_flags(), f"-I{HERE}", *arguments],
                          capture_output=True, text=True,
                          env={**os.environ, "LC_ALL": "C"})  # "error:" in every country
    if done.returncode == 0:
        return
    errors = re.findall(r"^.*error:.*$", done.stderr, re.MULTILINE)
    # At a line of the source, but for a full disk, which is noticed at its last one.
    wrong = [error for error in errors
             if re.search(r":\d+: (fatal )?error:", error) and "error writing to" not in error]
    if wrong:
        raise KernelError("\n".join(wrong[:5]))
    words = (errors or done.stderr.split("\n") or [""])[0].strip()
    raise UserError(f"g++ cannot compile {file_name}: {words or 'it ended without a word'}; is it "
                    "installed in full, and is there memory, and room in "
                    f"{tempfile.gettempdir()}?")


@lru_cache
def _newer_flags():
    """From g++ 12 on, a local variable that is read before it is written shows."""
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout
    major = re.match(r"\d*", version).group()
    return ("-ftrivial-auto-var-init=pattern",) if int(major or 0) >= 12 else ()


class _Died(Exception):
    """The process of a module ended; what it said last."""


class _NotLoaded(Exception):
    """A process could not load its library."""


class _Worker:
    """The process that runs a module's kernels; ends with it, and with this program.

    Raises _NotLoaded, with the reason, if that is as far as it comes.
    """

    def __init__(self, module, library):
        self._printed = tempfile.TemporaryFile("a+b")  # by kernels, and the words of an error
        self._seen = 0
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", HERE / "sandbox.py", library, str(SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed,
            start_new_session=True)  # Ctrl-C is for this program alone
        self.stop = weakref.finalize(module, _stop, self._process, self._printed)
        try:
            self._receive()
        except _Died as error:
            raise _NotLoaded(str(error) or "it ended the process") from None

    def is_alive(self):
        return self._process.poll() is None

    def ask(self, name, request):
        """Return the answer to a request; KernelError if the process dies of it."""
        try:
            answer = self._receive(request)
        except _Died as error:
            raise KernelError(str(error) or f"{name}: its process died") from None
        words = self._new_words()
        if words:
            print(words, end="")
        return answer

    def _receive(self, request=None):
        """Send a request, if any, and return the answer; _Died, with the last words, if none."""
        try:
            if request is not None:
                pickle.dump(request, self._process.stdin, protocol=5)
                self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            words = self._new_words().strip()
            self.stop()
            raise _Died(words) from None
        except BaseException:  # Ctrl-C: an answer that comes later would be taken for the next one
            self.stop()
            raise

    def _new_words(self):
        words = b""
        while more := os.pread(self._printed.fileno(), 1 << 20, self._seen + len(words)):
            words += more
        self._seen += len(words)
        return words.decode(errors="replace")


def _stop(process, printed):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, printed):
        with suppress(BrokenPipeError):  # what it was sent and never read
            pipe.close()
