"""Launching kernels: the `.cu` file beside a `.py` file, compiled on first use.

    KERNELS = KernelFile(__file__)                      # scale.cu beside scale.py
    KERNELS.launch("scale_kernel", grid, block, x=x, out=out, factor=0.5, n=x.size)

CUDA checks nothing of what a launch is given: a Python float where a kernel expects a float, or a
transposed array, would be garbage without a word. So the parameters are read from the source, and
every argument is given by the kernel's own name for it, checked and converted.
"""

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda import emulator

FOLDER = Path(__file__).parent
# Kernels count elements in int.
MAX_ELEMENTS = 2 ** 31 - 1
CPP_NAMES = {"float32": "float", "float64": "double", "float16": "__half",
             "bfloat16": "__nv_bfloat16"}
SCALARS = {"int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32, "bool": np.bool_,
           "long long": np.int64, "unsigned long long": np.uint64, "unsigned char": np.uint8,
           "short": np.int16, "float": np.float32, "double": np.float64}

_recording = None  # the list that launches are noted in


class Parameter(NamedTuple):
    """One parameter of a kernel."""

    name: str
    type: str  # without const and *: REAL, STORE, int ...
    is_array: bool
    is_const: bool


class Launch(NamedTuple):
    """A launch with its arguments bound: calling it runs the kernel once more on the same arrays."""

    name: str
    run: object  # without arguments
    bytes_moved: int  # sizes of all its arrays, each once

    def __call__(self):
        self.run()


def parse_kernels(code):
    """Return {name: [Parameter]} of every `__global__` function in CUDA source."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.DOTALL)
    found = {}
    for match in re.finditer(
            r"__global__\s+(?:void\s+)?(?:__launch_bounds__\([^)]*\)\s*)?(?:void\s+)?(\w+)\s*"
            r"\(([^)]*)\)", code):
        name, parameters = match.groups()
        found[name] = [_parse_parameter(text) for text in parameters.split(",")]
    return found


def _parse_parameter(text):
    words = text.replace("__restrict__", " ").replace("*", " * ").split()
    name = words.pop()
    kind = " ".join(word for word in words if word not in ("const", "*"))
    return Parameter(name, kind, "*" in words, "const" in words)


class KernelFile:
    """The kernels of the `.cu` file beside `python_file`.

    `templates` names the instances to compile of each template kernel, {"scale_kernel": ("1",
    "4")}; they are launched as "scale_kernel<4>".
    """

    def __init__(self, python_file, *, templates=None):
        self.path = Path(python_file).with_suffix(".cu")
        self.templates = templates or {}
        self.modules = {}  # (engine, REAL, STORE) -> module

    @cached_property
    def code(self):
        """The source, its headers left out."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def parameters(self):
        """{kernel: [Parameter]}."""
        return parse_kernels(self.code)

    @cached_property
    def names(self):
        """Every kernel and every instance of a template, as C++ writes them."""
        found = []
        for name in self.parameters:
            instances = self.templates.get(name)
            found += [f"{name}<{i}>" for i in instances] if instances else [name]
        return tuple(found)

    def launch(self, name, grid, block, *, shared_bytes=0, **arguments):
        """Run kernel `name` over `grid` blocks of `block` threads (tuples of up to three sizes).

        `arguments` are the kernel's parameters by name: arrays, contiguous and all on one device,
        or numbers. REAL is the type of the REAL arrays, STORE that of the STORE arrays, float32
        where there are none. Raises TypeError for an argument that is missing, unknown or of
        another dtype, ValueError for an array with gaps, or read-only where the kernel writes.
        """
        parameters = self.parameters[name.partition("<")[0]]
        self._check_names(name, parameters, arguments)
        types = {"REAL": None, "STORE": None}
        for parameter in parameters:
            if parameter.is_array and parameter.type in types and arguments[parameter.name] is not None:
                types[parameter.type] = types[parameter.type] or str(arguments[parameter.name].dtype)
        # Activations alone tell the type computed in, unless they are of 16 bits.
        real = types["REAL"] or {"float64": "float64"}.get(types["STORE"], "float32")
        store = types["STORE"] or real
        dtypes = {"REAL": np.dtype(real), "STORE": _dtype(store), **SCALARS}
        arrays = []
        converted = [_convert(name, parameter, arguments[parameter.name],
                              dtypes[parameter.type], arrays) for parameter in parameters]
        xp = get_array_module(*(array for array in arrays if array is not None))
        if xp.__name__ == "cupy":
            function = self._gpu_module(real, store).get_function(name)
            converted = tuple(converted)

            def run():
                function(grid, block, converted, shared_mem=shared_bytes)
        else:
            module = self.cpu_module(real, store)

            def run():
                _run_emulated(module, name, grid, block, parameters, converted, shared_bytes)
        perform(Launch(name, run, sum(a.nbytes for a in arrays if a is not None)))

    def _check_names(self, name, parameters, arguments):
        expected = [parameter.name for parameter in parameters]
        if set(expected) != set(arguments):
            missing = [word for word in expected if word not in arguments]
            unknown = [word for word in arguments if word not in expected]
            raise TypeError(f"{name} takes {', '.join(expected)}; missing {missing}, "
                            f"unknown {unknown}")

    def options(self, real, store):
        """Return the compiler's options for a pair of dtypes."""
        half = ["-DHALF_TYPES"] if store in ("float16", "bfloat16") else []
        return (f"-DREAL={CPP_NAMES[real]}", f"-DSTORE={CPP_NAMES[store]}", *half)

    def cpu_module(self, real="float32", store=None):
        """Return the emulator's module for a pair of dtypes."""
        store = store or real
        if ("cpu", real, store) not in self.modules:
            self.modules["cpu", real, store] = emulator.Module(
                self.code, self.names, (*self.options(real, store), f"-I{self.path.parent}"),
                str(self.path))
        return self.modules["cpu", real, store]

    def _gpu_module(self, real, store):
        if ("gpu", real, store) not in self.modules:
            from minisegnet.backend import compile_for_gpu

            self.modules["gpu", real, store] = compile_for_gpu(
                self.code, self.names,
                ("-std=c++17", f"-I{FOLDER}", f"-I{self.path.parent}",
                 *self.options(real, store)))
        return self.modules["gpu", real, store]


def blocks(total, size):
    """Return how many blocks of `size` cover `total`."""
    return -(-total // size)


def perform(launch):
    """Run a bound launch, and note it where launches are being recorded."""
    if _recording is not None:
        _recording.append(launch)
    launch()


class record_launches:
    """Context manager: every launch within it is noted in the list that it returns, in order."""

    def __enter__(self):
        global _recording
        if _recording is not None:
            raise RuntimeError("launches are being recorded already")
        _recording = []
        return _recording

    def __exit__(self, *error):
        global _recording
        _recording = None


@lru_cache
def _dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _convert(kernel, parameter, value, dtype, arrays):
    """Return `value` as the kernel expects it; note it in `arrays` if it is one."""
    what = f"{kernel}: {parameter.name}"
    if not parameter.is_array:
        if hasattr(value, "shape") and value.shape != ():
            raise TypeError(f"{what} is a number, not an array of shape {value.shape}")
        return np.dtype(dtype).type(value)
    arrays.append(value)
    if value is None:
        return np.uint64(0)  # a null pointer: an array that may be left out
    if value.dtype != dtype:
        raise TypeError(f"{what} is {value.dtype}; the kernel takes {np.dtype(dtype)}")
    if not value.flags.c_contiguous:
        raise ValueError(f"{what} has gaps or another order of axes; make it contiguous")
    if value.size > MAX_ELEMENTS:
        raise ValueError(f"{what} has {value.size} elements, more than kernels count")
    if not parameter.is_const and not getattr(value.flags, "writeable", True):
        raise ValueError(f"{what} is read-only, and the kernel writes to it")
    return value


def _run_emulated(module, name, grid, block, parameters, converted, shared_bytes):
    arguments, written = [], []
    for parameter, value in zip(parameters, converted):
        if not parameter.is_array or isinstance(value, np.uint64):
            arguments.append(np.asarray(value).tobytes())
            continue
        host = getattr(value, "host", value)
        misalignment = host.ctypes.data % 16 if host is not value else 0
        arguments.append((host.tobytes(), not parameter.is_const, misalignment))
        if not parameter.is_const:
            written.append(host)
    for array, content in zip(written, module.run(name, grid, block, arguments, shared_bytes)):
        array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)
