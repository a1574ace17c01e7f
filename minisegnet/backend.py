"""Which array module a computation runs on: numpy, or cupy on a GPU.

The only module of the package that imports cupy. Functions are written against the module of
the arrays they are given (`xp = get_array_module(x)`), so one source serves both.
"""

import ctypes
import re
import sys
from importlib import metadata

import numpy as np

from minisegnet.errors import UserError


def get_array_module(*arrays):
    """Return the array module that holds `arrays`: numpy, cupy, or the emulated device.

    numpy if none is on a device.
    """
    for array in arrays:
        top, _, rest = type(array).__module__.partition(".")
        if top == "cupy":
            import cupy

            return cupy
        if rest == "cuda.emulated_device":
            return sys.modules[type(array).__module__]
    return np


def asnumpy(array):
    """Return `array` as a NumPy array, copying from the GPU where it lives there."""
    if get_array_module(array) is np:
        return np.asarray(array)
    return array.get()


def compile_for_gpu(code, names, options):
    """Return the `cupy.RawModule` of CUDA source with the kernels `names`, compiled by NVRTC."""
    import cupy

    return cupy.RawModule(code=code, options=options, name_expressions=names)


# Packages that bring the same folder `cupy`: two at once overwrite each other.
CUPY_PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
NEWEST_PYTHON = (3, 14)  # that CuPy 14 has wheels for
OLDEST_DRIVER = {12: 525, 13: 580}  # of NVIDIA's numbers, for each major version of CUDA


def _load_driver():
    """Return NVIDIA's driver library, or None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _driver_cuda():
    """Return the newest CUDA that the driver supports, (major, minor), or None without driver."""
    driver, version = _load_driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) or not version.value:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _seems_to_have_gpu():
    """Whether the driver, asked without CuPy, knows of a GPU."""
    driver, count = _load_driver(), ctypes.c_int()
    return (driver is not None and driver.cuInit(0) == 0
            and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0)


def _installed_cupy():
    """Return the names of the CuPy packages that pip knows of."""
    found = []
    for name in CUPY_PACKAGES:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _how_to_install(driver):
    """Return the pip command that installs CuPy for a driver of CUDA (major, minor)."""
    if driver[0] >= 13:
        return "pip install 'minisegnet[gpu13]' ([gpu] if the GPU is older than Turing)"
    return "pip install 'minisegnet[gpu]'"


def _last_line(error):
    """Return the last line of an error's text that has letters: CuPy frames it with others."""
    lines = [line.strip() for line in str(error).splitlines() if re.search("[a-zA-Z]", line)]
    return lines[-1] if lines else type(error).__name__


def _find_cupy():
    """Return (cupy, None), or (None, what is missing and how to get it, in one line)."""
    driver, installed = _driver_cuda(), _installed_cupy()
    if driver is None:
        return None, ("no NVIDIA driver can be loaded; install one (in a container: give it the "
                      "GPU, as `docker run --gpus all` does)")
    if driver[0] < min(OLDEST_DRIVER):
        return None, (f"the NVIDIA driver supports CUDA {driver[0]}.{driver[1]} only, and CuPy "
                      f"needs CUDA 12: update it to {OLDEST_DRIVER[12]} or newer")
    if len(installed) > 1:
        return None, (f"{' and '.join(installed)} are installed at once and overwrite each other: "
                      f"pip uninstall -y {' '.join(installed)}, then {_how_to_install(driver)}")
    try:
        import cupy
    except Exception as error:  # a broken installation raises whatever it stumbles over
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        if missing and sys.version_info[:2] > NEWEST_PYTHON:
            return None, ("CuPy is not installed, and has no wheels for this Python "
                          f"{sys.version_info[0]}.{sys.version_info[1]}: use Python 3.10 to "
                          f"{NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}, then {_how_to_install(driver)}")
        if missing:
            return None, f"CuPy is not installed: {_how_to_install(driver)}"
        return None, (f"CuPy cannot be imported ({_last_line(error)}): pip uninstall -y "
                      f"{installed[0] if installed else 'cupy'}, then {_how_to_install(driver)}")
    problem = _why_unusable(cupy, driver, installed)
    return (None, problem) if problem else (cupy, None)


def _why_unusable(cupy, driver, installed):
    """Return what keeps the imported CuPy from computing, and its cure, or None."""
    runtime = cupy.cuda.runtime
    built_for = runtime.runtimeGetVersion() // 1000
    package = installed[0] if installed else f"cupy-cuda{built_for}x"
    no_gpu = ("the NVIDIA driver finds no GPU; see what nvidia-smi says, and whether "
              "CUDA_VISIBLE_DEVICES hides it")
    try:
        if runtime.getDeviceCount() == 0:
            return no_gpu
    except Exception as error:  # CUDARuntimeError; its text begins with CUDA's name of the error
        if "cudaErrorNoDevice" in str(error):
            return no_gpu
        if "cudaErrorInsufficientDriver" in str(error) and built_for > driver[0]:
            newest = OLDEST_DRIVER.get(built_for, max(OLDEST_DRIVER.values()))
            return (f"{package} is built for CUDA {built_for}, and the NVIDIA driver supports "
                    f"CUDA {driver[0]}.{driver[1]} only: pip uninstall -y {package}, then "
                    f"{_how_to_install(driver)}; or update the driver to {newest} or newer")
        return f"CuPy cannot use the GPU ({_last_line(error)}); see what nvidia-smi says"
    capability = int(cupy.cuda.Device().compute_capability)
    if built_for >= 13 and capability < 75:
        return (f"{package} is built for CUDA {built_for}, which knows this GPU no more (compute "
                f"capability {capability / 10}, below 7.5): pip uninstall -y {package}, then "
                f"pip install 'minisegnet[gpu]'")
    # NVRTC compiles our kernels, cuBLAS is in our convolutions, and CuPy's wheels bring neither.
    for library, load in (("NVRTC", lambda: cupy.cuda.nvrtc.getVersion()),
                          ("cuBLAS", lambda: cupy.cuda.cublas)):
        try:
            load()
        except Exception as error:  # RuntimeError or ImportError, of many lines
            first = str(error).strip().partition("\n")[0]
            cure = (f"install the CUDA Toolkit {built_for}" if package == "cupy" else
                    f"pip install '{package}[ctk]', which brings CUDA's libraries")
            return f"CuPy finds no {library} ({first}): {cure}"
    return None


_own_stream = None


def _use_own_stream(cupy):
    """Queue all work on a stream of our own: the default one cannot be captured as a graph.

    It is entered and never left. What `use()` sets would hold until the next `with stream:` ends,
    and CuPy has such blocks inside, in `get` of an array with gaps for one; from there on work
    would be queued on the default stream, which does not wait for ours.
    """
    global _own_stream
    if _own_stream is None:
        _own_stream = cupy.cuda.Stream(non_blocking=True)
    if cupy.cuda.get_current_stream() != _own_stream:
        _own_stream.__enter__()


def select_device(device):
    """Return the array module for `device`: "cpu", "cuda", or "auto" (cuda where there is one).

    Raises UserError if "cuda" is asked for and cannot be had. "auto" is then NumPy, and says why
    in a line on stderr if there seems to be a GPU.
    """
    if device == "cpu":
        return np
    if device not in ("auto", "cuda"):
        raise UserError(f"device {device!r} is not one of auto, cpu, cuda")
    cupy, problem = _find_cupy()
    if cupy is not None:
        _use_own_stream(cupy)
        return cupy
    if device == "cuda":
        raise UserError(f"--device cuda: {problem}; or use --device cpu")
    if _seems_to_have_gpu():
        print(f"--device auto: there is a GPU, but {problem}; computing on the CPU",
              file=sys.stderr)
    return np


def load_cublas():
    """Return the cuBLAS that CuPy uses, as a ctypes library."""
    import cupy

    # Asked for by name, CuPy loads it from wherever it lies (a toolkit, or a package of pip's);
    # what is loaded already is then found by its bare file name.
    cupy.cuda.cublas  # noqa: B018
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return ctypes.CDLL(f"cublas64_{major}.dll" if sys.platform == "win32"
                       else f"libcublas.so.{major}")


def allocate_on_gpu(size):
    """Return `size` bytes of GPU memory; their address is its `ptr`."""
    import cupy

    return cupy.cuda.alloc(size)


def address_on_gpu(array):
    """Return the address of a CuPy array's first element."""
    return array.data.ptr


def current_stream():
    """Return the address of the stream that CuPy queues its work on."""
    import cupy

    return cupy.cuda.get_current_stream().ptr
