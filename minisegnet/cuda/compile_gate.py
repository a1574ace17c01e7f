"""Compile kernels for real GPUs where there is none, and read what each takes of one.

The emulator shows that a kernel is right; whether NVIDIA's compiler takes it, and whether its
variables fit into registers, only that compiler knows. A variable that does not fit is spilled:
written to memory and read again, by every thread, which costs more than most tunings win.

The compiler is nvcc where it is on the PATH, otherwise NVRTC, the one that CuPy calls, as a
library: that of a CUDA toolkit, or of `pip install nvidia-cuda-nvrtc`.
"""

import ctypes
import ctypes.util
import importlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import minisegnet
from minisegnet.cuda.launch import FOLDER, KernelFile
from minisegnet.errors import UserError

PACKAGE = Path(minisegnet.__file__).parent
ARCHS = (80, 90)  # A100 and H100
# (REAL, STORE): to train, to check gradients, and for mixed precision.
PAIRS = (("float32", "float32"), ("float64", "float64"), ("float32", "float16"),
         ("float32", "bfloat16"))


class Kernel(NamedTuple):
    """What one kernel takes on one GPU; bytes are per thread, shared memory's per block."""

    file: str
    name: str
    arch: int
    real: str
    store: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


class Compiled(NamedTuple):
    """The outcome of one compilation: its kernels, or an error, and warnings."""

    kernels: tuple
    error: str
    warnings: tuple


def find_kernel_files(package=PACKAGE):
    """Return a `KernelFile` for every `.cu` of the package.

    Raises UserError for one that no module of its folder launches: its instances are unknown.
    """
    sources = sorted(package.rglob("*.cu"))
    found = {}
    for folder in sorted({path.parent for path in sources}):
        prefix = ".".join((package.name, *folder.relative_to(package).parts))
        for path in sorted(folder.glob("*.py")):
            if path.stem not in ("__init__", "__main__"):
                module = importlib.import_module(f"{prefix}.{path.stem}")
                found |= {value.path.resolve(): value for value in vars(module).values()
                          if isinstance(value, KernelFile)}
    orphans = [str(path.relative_to(package)) for path in sources if path.resolve() not in found]
    if orphans:
        raise UserError(f"no KernelFile launches {', '.join(orphans)}")
    return [found[path.resolve()] for path in sources]


def pairs_of(kernel_file):
    """Return the (REAL, STORE) that make a difference to a file."""
    return PAIRS if re.search(r"\bSTORE\b", kernel_file.code) else PAIRS[:2]


def compile_all(kernel_files, compiler, archs=ARCHS, at_a_time=2):
    """Yield (KernelFile, (REAL, STORE), `Compiled`) for every file and pair, in order."""
    jobs = [(file, pair) for file in kernel_files for pair in pairs_of(file)]
    with ThreadPoolExecutor(at_a_time) as pool:
        done = pool.map(lambda job: _compile(compiler, *job, archs), jobs)
        for (file, pair), compiled in zip(jobs, done):
            yield file, pair, compiled


def find_compiler():
    """Return the compiler, `Nvcc` or `Nvrtc`; UserError where there is none."""
    if shutil.which("nvcc"):
        return Nvcc()
    path = _nvrtc_path()
    if path is None:
        raise UserError("no CUDA compiler: neither nvcc on the PATH nor NVRTC "
                        "(pip install nvidia-cuda-nvrtc)")
    return Nvrtc(path)


class Nvcc:
    """The compiler of a CUDA toolkit."""

    name = "nvcc"
    has_half = True

    def compile(self, file, options, archs):
        """Return (whether it succeeded, the compiler's words)."""
        # An address in a table is a use: it makes the compiler build the instance of a template.
        table = ", ".join(f"(void*)({name})" for name in file.names)
        code = f'#line 1 "{file.path.name}"\n{file.code}\nextern void* const kernel_table[];\n' \
               f"void* const kernel_table[] = {{{table}}};\n"
        targets = [word for arch in archs
                   for word in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
        with tempfile.TemporaryDirectory() as work:
            source = Path(work) / file.path.name
            source.write_text(code)
            done = subprocess.run(
                ["nvcc", "-fatbin", *targets, "-Xptxas", "-v", *options, "-o",
                 Path(work) / "kernels.fatbin", source],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode == 0, done.stdout


class Nvrtc:
    """The compiler as a library, `path`; the functions that CuPy calls too."""

    name = "NVRTC"

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        # The types of 16 bits are in headers that do not come with it.
        folders = [Path(path).parents[1] / "include", Path("/usr/local/cuda/include")]
        self._headers = [folder for folder in folders if (folder / "cuda_fp16.h").exists()][:1]
        self.has_half = bool(self._headers)

    def compile(self, file, options, archs):
        """Return (whether it succeeded, the compiler's words)."""
        options += tuple(f"-I{folder}" for folder in self._headers)
        answers = [self._compile(file, (f"-arch=sm_{arch}", *options)) for arch in archs]
        return all(ok for ok, _ in answers), "\n".join(words for _, words in answers)

    def _compile(self, file, options):
        nvrtc, program, size = self._library, ctypes.c_void_p(), ctypes.c_size_t()
        self._check(nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), file.code.encode(), file.path.name.encode(), 0, None, None))
        try:
            for name in file.names:
                self._check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
            words = [option.encode() for option in (*options, "--ptxas-options=-v")]
            failed = nvrtc.nvrtcCompileProgram(
                program, len(words), (ctypes.c_char_p * len(words))(*words))
            self._check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value + 1)
            self._check(nvrtc.nvrtcGetProgramLog(program, log))
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        return not failed, log.value.decode(errors="replace")

    def _check(self, code):
        if code:
            raise UserError(f"NVRTC: {self._library.nvrtcGetErrorString(code).decode()}")


def _nvrtc_path():
    """Return the path of libnvrtc, from a pip package or the system, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return path
    name = ctypes.util.find_library("nvrtc")
    return Path(name) if name else None


def _compile(compiler, file, pair, archs):
    # As for CuPy, in launch.py.
    options = ("-std=c++17", f"-I{FOLDER}", f"-I{file.path.parent}", *file.options(*pair))
    if pair[1] in ("float16", "bfloat16") and not compiler.has_half:
        return Compiled((), "", (f"{file.path.name}: not tried with {pair[1]}, "
                                 "no cuda_fp16.h beside NVRTC",))
    ok, words = compiler.compile(file, options, archs)
    warnings = tuple(line for line in words.splitlines() if ": warning" in line)
    if not ok:
        errors = [line for line in words.splitlines()
                  if re.search(r"\b(error|fatal)\b", line) and "detected in" not in line]
        return Compiled((), "\n".join(errors[:5]) or words[-2000:] or "no words", warnings)
    kernels = parse_ptxas(words, file.path.name, *pair)
    # By number: where a file says `<RELU, 4>` the compiler says `<1, 4>`.
    built = Counter((kernel.name.partition("<")[0], kernel.arch) for kernel in kernels)
    wanted = Counter(name.partition("<")[0] for name in file.names)
    missing = [f"{name}: {built[name, arch]} of {count} built for sm_{arch}"
               for name, count in wanted.items() for arch in archs if built[name, arch] < count]
    return Compiled(kernels, "\n".join(missing), warnings)


def parse_ptxas(words, file, real, store):
    """Return the `Kernel`s that the assembler, `ptxas -v`, tells of."""
    kernels = []
    entries = re.split(r"Compiling entry function ", words)[1:]
    for entry in entries:
        mangled, arch = re.match(r"'(\w+)' for 'sm_(\d+)", entry).groups()
        used = re.search(r"Used (\d+) registers(.*)", entry)
        shared = re.search(r"(\d+) bytes smem", used[2])
        # A kernel's own line, and one for each function that was not inlined.
        frames = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        kernels.append(Kernel(
            file, demangled(mangled), int(arch), real, store, int(used[1]),
            int(shared[1]) if shared else 0, *(sum(map(int, column)) for column in zip(*frames))))
    return tuple(kernels)


def demangled(symbol):
    """Return a kernel's name as C++ writes it, `_Z1kILi3ELb1EEvPf` as `k<3, true>`."""
    length = re.match(r"_Z(\d+)", symbol)
    if not length:
        return symbol
    end = length.end() + int(length[1])
    name, rest = symbol[length.end():end], symbol[end:]
    template = re.match(r"I((?:L[a-z]n?\d+E)+)E", rest)
    if not template:
        return name
    return f"{name}<{', '.join(_argument(*a) for a in re.findall('L([a-z])(n?[0-9]+)E', rest))}>"


def _argument(kind, value):
    return {"0": "false", "1": "true"}[value] if kind == "b" else value.replace("n", "-")
