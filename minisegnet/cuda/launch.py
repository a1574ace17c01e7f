"""Launching kernels: the `.cu` file beside a `.py` file, compiled on first use.

    KERNELS = KernelFile(__file__)                      # scale.cu beside scale.py
    KERNELS.launch("scale_kernel", grid, block, x=x, out=out, factor=0.5, n=x.size)

CUDA checks nothing of what a launch is given: a Python float where a kernel expects a float, or a
transposed array, would be garbage without a word. So the parameters are read from the source, and
every argument is given by the kernel's own name for it, checked and converted.
"""

import hashlib
import math
import operator
import re
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda import emulator, host_arrays

FOLDER = Path(__file__).parent
# Kernels count elements in int.
MAX_ELEMENTS = 2 ** 31 - 1
CPP_NAMES = {"float32": "float", "float64": "double", "float16": "__half",
             "bfloat16": "__nv_bfloat16"}
SCALARS = {"int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32, "bool": np.bool_,
           "long long": np.int64, "unsigned long long": np.uint64, "unsigned char": np.uint8,
           "short": np.int16, "float": np.float32, "double": np.float64}

# What is around an array on the CPU is NaN, a signalling one: all arithmetic with it sets a bit of
# it, so that a `+=` there is seen. Around integers it is a number that no label and no index has.
AROUND = {name: number.to_bytes(size, "little") for name, size, number in (
    ("float32", 4, 0x7FA00001), ("float64", 8, 0x7FF4000000000001), ("float16", 2, 0x7D01),
    ("bfloat16", 2, 0x7FA1))}

_recording = None  # the list that launches are noted in


class Parameter(NamedTuple):
    """One parameter of a kernel."""

    name: str
    type: str  # without const and *: REAL, STORE, int ...
    is_array: bool
    is_const: bool
    is_restrict: bool  # promises that what is written through it is reached through no other


class Launch(NamedTuple):
    """A launch with its arguments bound: calling it runs the kernel on the same arrays again."""

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
            r"__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
            r"(?:void\s+)?(\w+)\s*\(([^)]*)\)", code):
        name, parameters = match.groups()
        parameters = parameters.split(",") if parameters.strip() else []
        found[name] = [_parse_parameter(name, text) for text in parameters]
    return found


def _parse_parameter(kernel, text):
    words = text.replace("*", " * ").split()
    name = words.pop()
    kind = " ".join(word for word in words if word not in ("const", "*", "__restrict__"))
    is_known = kind in SCALARS or kind in ("REAL", "STORE")
    if not is_known or words.count("*") > 1 or not name.isidentifier():
        raise TypeError(f"{kernel}: no launch can pass a parameter {text.strip()!r}; its type is "
                        f"to be REAL, STORE, {', '.join(SCALARS)}, or an array of these")
    is_array = "*" in words
    # const before the star: what it points to. Behind it: the pointer, which is no promise.
    return Parameter(name, kind, is_array,
                     "const" in words[:words.index("*") if is_array else None],
                     "__restrict__" in words)


class KernelFile:
    """The kernels of the `.cu` file beside `python_file`.

    `templates` names the instances to compile of each template kernel, {"scale_kernel": ("1",
    "4")}; they are launched as "scale_kernel<4>".
    """

    def __init__(self, python_file, *, templates=None):
        self.path = Path(python_file).with_suffix(".cu")
        self.templates = templates or {}
        self.modules = {}  # (engine, REAL, STORE) -> module
        self._gpu_functions = {}  # (name, REAL, STORE) -> kernel

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
        unknown = set(self.templates) - set(self.parameters)
        if unknown:
            raise ValueError(f"{self.path.name} has no kernel {', '.join(sorted(unknown))}")
        found = []
        for name in self.parameters:
            instances = self.templates.get(name)
            found += [f"{name}<{i}>" for i in instances] if instances else [name]
        return tuple(found)

    def launch(self, name, grid, block, *, shared_bytes=0, **arguments):
        """Run kernel `name` over `grid` blocks of `block` threads (tuples of up to three sizes).

        `arguments` are the kernel's parameters by name: arrays, contiguous and all on one device,
        or numbers. REAL is the type of the REAL arrays, STORE that of the STORE arrays, float32
        where there are none. Raises TypeError for an argument that is missing, unknown, of
        another dtype or on another device, ValueError for an unknown kernel, for an array with
        gaps or read-only where the kernel writes, OverflowError for a number that does not fit.
        """
        if name not in self.names:
            raise ValueError(f"{self.path.name} has {', '.join(self.names)}, no {name}")
        parameters = self.parameters[name.partition("<")[0]]
        self._check_names(name, parameters, arguments)
        types = {"REAL": None, "STORE": None}
        for parameter in parameters:
            if parameter.is_array and parameter.type in types:
                dtype = getattr(arguments[parameter.name], "dtype", None)  # None has none
                types[parameter.type] = types[parameter.type] or dtype and str(dtype)
        # Activations alone tell the type computed in, unless they are of 16 bits.
        real = types["REAL"] or {"float64": "float64"}.get(types["STORE"], "float32")
        store = types["STORE"] or real
        if real not in ("float32", "float64") or store not in (real, "float16", "bfloat16"):
            raise TypeError(f"{name}: no kernels are compiled for REAL {real} and STORE {store}; "
                            f"REAL is float32 or float64, STORE the same, float16 or bfloat16")
        dtypes = {"REAL": np.dtype(real), "STORE": _dtype(store), **SCALARS}
        arrays = []
        converted = [_convert(name, parameter, arguments[parameter.name],
                              dtypes[parameter.type], arrays) for parameter in parameters]
        of_each_type = {type(array): array for array in arrays}
        xps = {get_array_module(array) for array in of_each_type.values()} or {np}
        if len(xps) > 1:
            raise TypeError(f"{name}: arrays of {' and '.join(sorted(xp.__name__ for xp in xps))}")
        if xps.pop().__name__ == "cupy":
            function = self._gpu_function(name, real, store)
            grid, block, converted = tuple(grid), tuple(block), tuple(converted)

            def run():
                function(grid, block, converted, shared_mem=shared_bytes)
        else:
            gpu = host_arrays.gpu_of_host_arrays()
            module = (self.cpu_module(real, store) if gpu is None
                      else host_arrays.Module(gpu, self._gpu_module(real, store)))

            def run():
                _run_emulated(module, name, grid, block, parameters, converted, shared_bytes)
        perform(Launch(name, run, sum(array.nbytes for array in arrays)))

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

    def _gpu_function(self, name, real, store):
        # Kept: each asking loads, or looks for, the whole module.
        if (name, real, store) not in self._gpu_functions:
            function = self._gpu_module(real, store).get_function(name)
            self._gpu_functions[name, real, store] = function
        return self._gpu_functions[name, real, store]

    def _gpu_module(self, real, store):
        if ("gpu", real, store) not in self.modules:
            from minisegnet.backend import compile_for_gpu

            # CuPy keeps what it compiled by the source alone: a changed header would go unnoticed.
            headers = "".join(path.read_text() for folder in (FOLDER, self.path.parent)
                              for path in sorted(folder.glob("*.h")))
            mark = f"\n// headers {hashlib.sha256(headers.encode()).hexdigest()}\n"
            self.modules["gpu", real, store] = compile_for_gpu(
                self.code + mark, self.names,
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
        return _number(what, value, np.dtype(dtype))
    if value is None:
        return np.uint64(0)  # a null pointer: an array that may be left out
    if isinstance(value, np.generic) or not hasattr(value, "flags"):
        raise TypeError(f"{what} is an array, not {value!r}")
    arrays.append(value)
    if value.dtype != dtype:
        raise TypeError(f"{what} is {value.dtype}; the kernel takes {np.dtype(dtype)}")
    if not value.flags.c_contiguous:
        raise ValueError(f"{what} has gaps or another order of axes; make it contiguous")
    if value.size > MAX_ELEMENTS:
        raise ValueError(f"{what} has {value.size} elements, more than kernels count")
    if not parameter.is_const and not getattr(value.flags, "writeable", True):
        raise ValueError(f"{what} is read-only, and the kernel writes to it")
    return value


def _number(what, value, dtype):
    """Return `value`, of Python or NumPy, as a number of `dtype` that is the same number."""
    low, high = _limits(dtype)
    is_float = dtype.kind == "f"
    if type(value) is not (float if is_float else int):
        try:
            if isinstance(value, str) or getattr(value, "shape", ()) != ():
                raise TypeError
            if isinstance(value, np.bool_):
                value = bool(value)
            value = float(value) if is_float else operator.index(value)  # an index is not 2.0
        except TypeError:
            kind = "a number" if is_float else "a whole number"
            raise TypeError(f"{what} is {kind}, not {value!r}") from None
    if not low <= value <= high and not (is_float and not math.isfinite(value)):
        raise OverflowError(f"{what} = {value} is beyond {dtype}")
    return dtype.type(value)


@lru_cache
def _limits(dtype):
    """Return the least and the greatest number of a dtype."""
    if dtype.kind == "b":
        return 0, 1
    info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return (float(info.min), float(info.max)) if dtype.kind == "f" else (info.min, info.max)


def _run_emulated(module, name, grid, block, parameters, converted, shared_bytes):
    arguments, hosts, groups = [], {}, {}
    for i, value in enumerate(converted):
        if isinstance(value, np.generic):
            arguments.append(value.tobytes())
            continue
        hosts[i] = host = getattr(value, "host", value)
        groups.setdefault((host.ctypes.data, host.nbytes), []).append(i)
        misalignment = host.ctypes.data % 32 if host is not value else 0
        arguments.append((parameters[i].name, host.tobytes(), not parameters[i].is_const,
                          misalignment, AROUND.get(str(host.dtype), b"\xa5")))
    _check_memory(name, parameters, hosts)
    for i, *others in groups.values():  # an array that is given twice is one array
        if any(not parameters[j].is_const for j in others):
            arguments[i] = (*arguments[i][:2], True, *arguments[i][3:])
        for j in others:
            arguments[j] = i
    written = [i for i in hosts if isinstance(arguments[i], tuple) and arguments[i][2]]
    contents = module.run(name, grid, block, arguments, shared_bytes)
    for i, content in zip(written, contents):
        if content:
            hosts[i][...] = np.frombuffer(content, hosts[i].dtype).reshape(hosts[i].shape)


def _check_memory(name, parameters, hosts):
    """Raise ValueError if an array that is written to shares memory with another one.

    Only without __restrict__ may one and the same array be given twice.
    """
    for (i, one), (j, other) in combinations(hosts.items(), 2):
        first, second = parameters[i], parameters[j]
        if first.is_const and second.is_const or not np.may_share_memory(one, other):
            continue
        is_same = (one.ctypes.data, one.nbytes) == (other.ctypes.data, other.nbytes)
        if not is_same or first.is_restrict or second.is_restrict:
            raise ValueError(f"{name}: {first.name} and {second.name} share memory, and the "
                             f"kernel writes to it")
