"""The processes that run kernels on the CPU are looked after, and so is what is compiled."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checks import assert_refused
from small_kernels import kernel_file

from minisegnet.cuda import emulator
from minisegnet.cuda.emulator import KernelError
from minisegnet.errors import UserError

pytestmark = pytest.mark.usefixtures("compiler")

CODE = r"""
__global__ void touch_kernel(const float* x, float* out, int read) { out[0] = x[read]; }
__global__ void forever_kernel(int* out) {
  while (*reinterpret_cast<volatile int*>(out) == 0) {}
}
__global__ void slow_kernel(int* out, int n) {
  for (int i = 0; i < n; i++) { __syncthreads(); out[threadIdx.x] += 1; }
}
__global__ void print_kernel(int* out) { printf("thread %d\n", threadIdx.x); out[0] = 1; }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture
def kernels(folder):
    """A `KernelFile` with a process of its own, the source compiled once."""
    return kernel_file(folder, CODE)


def floats(size):
    return np.arange(size, dtype=np.float32)


def touch(kernels, x, out, *, read=0):
    kernels.launch("touch_kernel", (1,), (1,), x=x, out=out, read=read)
    return out


def worker_of(kernels):
    return kernels.cpu_module()._worker._process


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


def test_a_loop_without_end_is_ended(kernels, monkeypatch):
    monkeypatch.setattr(emulator, "SECONDS", 0.2)
    with pytest.raises(KernelError, match=r"forever_kernel: has run for too long, .* by thread "
                                          r"\(0, 0, 0\) of block \(0, 0, 0\)"):
        kernels.launch("forever_kernel", (2,), (2,), out=np.zeros(1, np.int32))
    for _ in range(2):  # the limit is of one launch
        kernels.launch("slow_kernel", (1,), (64,), out=np.zeros(64, np.int32), n=30000)


def test_a_process_that_was_killed_is_replaced(kernels):
    touch(kernels, floats(8), floats(8))
    worker = worker_of(kernels)
    worker.kill()
    worker.wait()
    assert touch(kernels, floats(8), floats(8), read=5)[0] == 5
    with pytest.raises(KernelError):
        touch(kernels, floats(8), floats(8), read=8)
    assert touch(kernels, floats(8), floats(8), read=6)[0] == 6
    kernels.cpu_module().close()
    kernels.cpu_module().close()
    assert touch(kernels, floats(8), floats(8), read=7)[0] == 7


def test_a_process_that_is_killed_while_it_computes_says_so(kernels):
    touch(kernels, floats(8), floats(8))
    worker = worker_of(kernels)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(kernels.launch, "forever_kernel", (1,), (1,),
                             out=np.zeros(1, np.int32))
        time.sleep(0.1)
        worker.kill()
        with pytest.raises(KernelError, match="forever_kernel: its process died"):
            future.result()


def test_an_interrupted_launch_leaves_no_answer_behind(kernels):
    def interrupt(*_):
        raise KeyboardInterrupt

    touch(kernels, floats(8), floats(8))
    pid = worker_of(kernels).pid
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            kernels.launch("forever_kernel", (1,), (1,), out=np.zeros(1, np.int32))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not is_running(pid)
    assert touch(kernels, floats(8), floats(8), read=5)[0] == 5


def test_threads_of_a_program_may_launch_at_the_same_time(kernels):
    def launch(i):
        return touch(kernels, floats(8) + i, floats(8), read=2)[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(launch, range(100))) == [i + 2 for i in range(100)]


def test_many_launches_take_no_more_memory_than_few(kernels):
    def launch(times):
        for i in range(times):
            size = 1000 + i % 7
            kernels.launch("slow_kernel", (1,), (32 + 32 * (i % 3),),
                           out=np.zeros(96, np.int32), n=1)
            touch(kernels, floats(size), floats(size))
        pid = worker_of(kernels).pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages, len(Path(f"/proc/{pid}/maps").read_text().splitlines())

    launch(20)
    pages, mappings = launch(20)
    later_pages, later_mappings = launch(400)
    assert later_pages <= pages + 64 and later_mappings <= mappings + 4


def test_a_module_that_is_no_longer_needed_ends_its_process(kernels):
    touch(kernels, floats(8), floats(8))
    pid = worker_of(kernels).pid
    assert is_running(pid)
    kernels.modules.clear()
    assert not Path(f"/proc/{pid}").exists()  # and no zombie is left


PROGRAM = """
import signal
# Whoever started the tests in the background had them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys, time
import numpy as np
from minisegnet.cuda.launch import KernelFile
kernels = KernelFile(sys.argv[1])
if sys.argv[2] == "forever":
    kernels.cpu_module()
    import threading
    def tell():
        print(kernels.cpu_module()._worker._process.pid, flush=True)
    threading.Timer(0.2, tell).start()
    kernels.launch("forever_kernel", (1,), (1,), out=np.zeros(1, np.int32))
kernels.launch("print_kernel", (1,), (1,), out=np.zeros(1, np.int32))
print(kernels.cpu_module()._worker._process.pid, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


def start_program(kernels, how):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, kernels.path, how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(
            os.environ, PYTHONPATH=str(Path(emulator.__file__).parents[2])))


def test_nothing_is_left_when_the_program_ends(kernels):
    kernels.cpu_module()
    with start_program(kernels, "end") as program:
        out, err = program.communicate(timeout=60)
    assert program.returncode == 0 and err == ""
    assert not Path(f"/proc/{out.split()[-1]}").exists()


@pytest.mark.parametrize("how, ending", [("wait", signal.SIGKILL), ("forever", signal.SIGINT)])
def test_nothing_is_left_when_the_program_is_killed(kernels, how, ending):
    kernels.cpu_module()
    with start_program(kernels, how) as program:
        pid = next(int(line) for line in program.stdout if line.strip().isdigit())
        assert is_running(pid)
        program.send_signal(ending)
        program.communicate(timeout=60)
        assert program.returncode != 0
    assert wait_until_gone(pid)


# ---------------------------------------------------------------- compiling


def test_an_error_of_the_compiler_has_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")  # where it would be a "Fehler"
    kernels = kernel_file(tmp_path, "\n__global__ void k_kernel(float* out) {\n  out[0] = nil;\n}")
    with pytest.raises(KernelError) as caught:
        kernels.launch("k_kernel", (1,), (1,), out=floats(1))
    assert str(caught.value) == (f"{kernels.path}:4:12: error: 'nil' was not declared in this "
                                 "scope")


def test_a_changed_header_beside_the_file_is_compiled_again(tmp_path):
    for number in (3, 4):
        (tmp_path / "number.h").write_text(f"constexpr int NUMBER = {number};\n")
        kernels = kernel_file(tmp_path, '#include "number.h"\n'
                                        "__global__ void n_kernel(int* out) { out[0] = NUMBER; }")
        out = np.zeros(1, np.int32)
        kernels.launch("n_kernel", (1,), (1,), out=out)
        assert out[0] == number


def test_without_a_compiler_one_line_says_what_to_install(tmp_path, monkeypatch):
    kernels = kernel_file(tmp_path, f"// {tmp_path}\n__global__ void a_kernel(int* out) {{}}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not emulator.is_available()
    with pytest.raises(UserError, match="need g\\+\\+; install it"):
        kernels.launch("a_kernel", (1,), (1,), out=np.zeros(1, np.int32))


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A function that puts a shell script in the place of g++."""
    def put(script):
        (tmp_path / "g++").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "g++").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    emulator._newer_flags.cache_clear()
    yield put
    emulator._newer_flags.cache_clear()


@pytest.mark.parametrize("script, words", [
    ("echo 'g++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1",
     "Killed signal"),
    ("echo 'g++: error: cannot execute cc1plus: No such file or directory' >&2; exit 1",
     "cannot execute cc1plus"),
    ("echo 'softmax.cu:9:2: fatal error: error writing to /tmp/a.s: No space left' >&2; exit 1",
     "No space left"),
    ("echo '/usr/bin/ld: final link failed: No space left on device' >&2; exit 1",
     "final link failed"),
    ("kill -9 $$", "ended without a word"),
], ids=lambda value: value.split()[-1])
def test_a_compiler_that_fails_for_itself_is_one_line(tmp_path, fake_compiler, script, words):
    fake_compiler(script)
    kernels = kernel_file(tmp_path, "__global__ void a_kernel(int* out) {}")
    assert_refused(kernels.cpu_module, f"g++ cannot compile {kernels.path}: ", words, tmp_path)


def test_a_compiler_without_a_version_is_taken_for_an_old_one(fake_compiler):
    fake_compiler("exit 0")
    assert emulator._newer_flags() == ()


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:5000]),
    lambda path: path.write_bytes(b"no library" * 1000),
    lambda path: path.unlink(),
], ids=["empty", "cut", "foreign", "gone"])
def test_a_damaged_library_is_compiled_once_more(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kernels = kernel_file(tmp_path, "__global__ void a_kernel(int* out) { out[0] = 3; }")
    damage(kernels.cpu_module()._library)
    out = np.zeros(1, np.int32)
    kernels.launch("a_kernel", (1,), (1,), out=out)
    assert out[0] == 3


def test_a_library_that_never_loads_is_one_line(tmp_path, fake_compiler):
    # As on a disk from which nothing may be executed.
    fake_compiler('while [ "$1" != -o ]; do shift; done; echo no > "$2"')
    module = kernel_file(tmp_path, "__global__ void a_kernel(int* out) {}").cpu_module()
    arguments = [("out", bytes(4), True, 0, b"\xa5")]
    assert_refused(lambda: module.run("a_kernel", (1,), (1,), arguments),
                   f"{module._library}, a compiled kernel, cannot be loaded", "set TMPDIR")


def test_a_folder_that_may_only_be_read_serves_what_is_in_it(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kernels = kernel_file(tmp_path, "__global__ void a_kernel(int* out) { out[0] = 3; }")
    kernels.cpu_module()
    kernels.modules.clear()
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: refuse())
    out = np.zeros(1, np.int32)
    kernels.launch("a_kernel", (1,), (1,), out=out)
    assert out[0] == 3
    other = kernel_file(tmp_path, "__global__ void b_kernel(int* out) {}")
    assert_refused(other.cpu_module, "minisegnet-kernels-", "Read-only file system", "set TMPDIR")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"minisegnet-kernels-{os.getuid()}").write_text("")
    kernels = kernel_file(tmp_path, "__global__ void a_kernel(int* out) {}")
    assert_refused(kernels.cpu_module, "minisegnet-kernels-", "File exists", "set TMPDIR")


def test_a_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="minisegnet-kernels-12345, .* is another user's"):
        kernel_file(tmp_path, "__global__ void a_kernel(int* out) {}").cpu_module()


def test_what_is_compiled_is_kept_wherever_the_source_lies_until_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    libraries = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        kernels = kernel_file(folder, "__global__ void a_kernel(int* out) {}")
        libraries.append(kernels.cpu_module()._library)
    assert libraries[0] == libraries[1]
    old, unused = libraries[0], libraries[0].with_name("unused.so")
    unused.write_bytes(b"")
    for path in (old, unused):
        os.utime(path, (0, 0))
    kernels.modules.clear()
    kernels.cpu_module()  # used again: young again
    kernel_file(tmp_path, "__global__ void b_kernel(int* out) {}").cpu_module()
    assert old.exists() and not unused.exists()
