"""`python -m minisegnet.cuda`: NVIDIA's compiler takes every kernel, and the wheel holds them."""

import shutil
from pathlib import Path

import pytest
from small_kernels import kernel_file

from minisegnet.cuda import compile_gate
from minisegnet.cuda.__main__ import main
from minisegnet.cuda.compile_gate import Kernel, demangled, find_kernel_files, parse_ptxas
from minisegnet.errors import UserError, run_command

ROOT = Path(compile_gate.PACKAGE).parent


@pytest.fixture
def nvcc():
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc on the PATH to compile kernels for a GPU")
    return compile_gate.Nvcc()


CODE = """
template <int N, bool UP>
__global__ void scale_kernel(const STORE* x, STORE* out, REAL factor) {
  __shared__ REAL tile[32];
  REAL value[N];
  load(x + threadIdx.x * N, value);
  tile[threadIdx.x] = value[0];
  __syncthreads();
  for (int i = 0; i < N; i++) value[i] = UP ? value[i] * factor : tile[31 - threadIdx.x];
  store(out + threadIdx.x * N, value);
}
__global__ void plain_kernel(const REAL* x, REAL* out) { out[threadIdx.x] = x[threadIdx.x]; }
"""
SPILLING = """
__global__ void __launch_bounds__(1024, 2) spill_kernel(const REAL* x, REAL* out, int n) {
  REAL sum[64] = {};
  for (int i = 0; i < n; i++)
#pragma unroll
    for (int k = 0; k < 64; k++) sum[k] += x[i * 64 + k] * x[k];
#pragma unroll
  for (int k = 0; k < 64; k++) out[threadIdx.x * 64 + k] = sum[k];
}
"""


def small_file(folder):
    return kernel_file(folder, CODE, "small",
                       templates={"scale_kernel": ("1, true", "4, true", "4, false")})


def check_gate(compiler, folder):
    """A good file, one that spills and one that does not compile, by either compiler."""
    file = small_file(folder)
    outcomes = list(compile_gate.compile_all([file], compiler, (90,)))
    if not compiler.has_half:
        assert [outcome.warnings != () for _, _, outcome in outcomes] == [False] * 2 + [True] * 2
        outcomes = outcomes[:2]
    assert [pair for _, pair, _ in outcomes] == list(compile_gate.PAIRS[:len(outcomes)])
    for _, (real, store), (kernels, error, _) in outcomes:
        assert not error
        assert {(kernel.name, kernel.arch) for kernel in kernels} == {
            (name, 90) for name in file.names}
        size = {"float32": 4, "float64": 8}[real]
        for kernel in kernels:
            assert kernel.real == real and kernel.store == store and kernel.file == "small.cu"
            assert 2 < kernel.registers < 64 and kernel.spill_stores == kernel.spill_loads == 0
            uses_shared = kernel.name == "scale_kernel<4, false>"  # else it is optimised away
            assert kernel.shared == (32 * size if uses_shared else 0)

    spilling = kernel_file(folder, SPILLING, "spilling")
    kernels, error, _ = compile_gate._compile(compiler, spilling, compile_gate.PAIRS[0], (90,))
    assert not error and kernels[0].spill_stores > 0 and kernels[0].spill_loads > 0
    assert kernels[0].registers <= 32 and kernels[0].stack > 0

    wrong = kernel_file(folder, "__global__ void k(REAL* out) {\n  out[0] = y; }", "wrong")
    outcome = compile_gate._compile(compiler, wrong, compile_gate.PAIRS[0], (90,))
    assert outcome.error == 'wrong.cu(3): error: identifier "y" is undefined'
    assert outcome.kernels == ()


def test_nvcc_tells_good_spilling_and_wrong_kernels_apart(nvcc, tmp_path):
    check_gate(nvcc, tmp_path)


def test_nvrtc_tells_good_spilling_and_wrong_kernels_apart(tmp_path):
    path = compile_gate._nvrtc_path()
    if path is None:
        pytest.skip("no NVRTC (pip install nvidia-cuda-nvrtc)")
    check_gate(compile_gate.Nvrtc(path), tmp_path)


def test_one_file_of_the_package_passes(nvcc, monkeypatch, capsys):
    monkeypatch.setattr(compile_gate, "PAIRS", compile_gate.PAIRS[::3])
    assert main(["--only", "ops/channel_scale.cu"]) == 0
    out = capsys.readouterr().out
    for word in ("channel_scale_forward_kernel<4>", "float32", "bfloat16", "registers"):
        assert word in out
    assert out.endswith("16 kernels by nvcc: 0 spill, 0 compilations failed\n")


@pytest.mark.slow
def test_every_file_of_the_package_passes(nvcc, capsys):
    assert main([]) == 0, capsys.readouterr().out


def test_what_spills_or_fails_is_an_exit_code(nvcc, tmp_path, monkeypatch, capsys):
    files = [kernel_file(tmp_path, SPILLING, "spilling")]
    monkeypatch.setattr(compile_gate, "find_kernel_files", lambda: files)
    monkeypatch.setattr(compile_gate, "PAIRS", (("float32", "float32"),))
    assert main(["--arch", "90"]) == 1
    assert "1 kernels by nvcc: 1 spill, 0 compilations failed" in capsys.readouterr().out
    files[:] = [kernel_file(tmp_path, "__global__ void k(REAL* x) { y; }", "wrong")]
    assert main(["--arch", "90"]) == 1
    out = capsys.readouterr().out
    assert 'wrong.cu, REAL float32, STORE float32:\nwrong.cu(2): error: identifier "y"' in out
    assert "0 spill, 1 compilations failed" in out


def test_without_a_compiler_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compile_gate, "_nvrtc_path", lambda: None)
    assert run_command(main, []) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: no CUDA compiler: neither nvcc") and \
        err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(compile_gate, "find_compiler", lambda: None)
    with pytest.raises(UserError, match="there is no ops/nothing.cu"):
        main(["--only", "ops/nothing.cu"])


# ---------------------------------------------------------------- reading


def test_every_cu_file_of_the_package_has_its_kernels_listed():
    files = find_kernel_files()
    assert [file.path.resolve() for file in files] == sorted(
        path.resolve() for path in compile_gate.PACKAGE.rglob("*.cu"))
    assert all(file.names for file in files)
    names = [name for file in files for name in file.parameters]
    assert len(names) == len(set(names))  # a profile shows no more than the name


def test_a_cu_file_that_nothing_launches_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "orphaned_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "op.py").write_text("from minisegnet.cuda.launch import KernelFile\n"
                                   "KERNELS = KernelFile(__file__)\n")
    (package / "op.cu").write_text("__global__ void op_kernel(float* x) {}")
    monkeypatch.syspath_prepend(tmp_path)
    assert [file.names for file in find_kernel_files(package)] == [("op_kernel",)]
    (package / "lost.cu").write_text("__global__ void lost_kernel(float* x) {}")
    with pytest.raises(UserError, match="^no KernelFile launches lost.cu$"):
        find_kernel_files(package)


def test_16_bits_are_compiled_only_where_activations_are_stored(tmp_path):
    assert compile_gate.pairs_of(small_file(tmp_path)) == compile_gate.PAIRS
    assert compile_gate.pairs_of(kernel_file(tmp_path, SPILLING)) == compile_gate.PAIRS[:2]


@pytest.mark.parametrize("symbol, name", [
    ("_Z12plain_kernelPKfPf", "plain_kernel"), ("_Z1kILi3ELi4EEvPKfS1_Pfi", "k<3, 4>"),
    ("_Z1kILin1ELb1ELb0ELj7EEvPf", "k<-1, true, false, 7>"), ("_Z1kIfEvPf", "k"), ("k", "k"),
])
def test_symbols_are_read(symbol, name):
    assert demangled(symbol) == name


WORDS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aILi4EEvPf' for 'sm_80'
ptxas info    : Function properties for _Z1aILi4EEvPf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for __internal_slowpath
    32 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 140 registers, used 1 barriers, 1024 bytes smem, 428 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_90a'
ptxas info    : Function properties for _Z1bPf
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
"""


def test_the_assemblers_words_are_read():
    assert parse_ptxas(WORDS, "a.cu", "float32", "float16") == (
        Kernel("a.cu", "a<4>", 80, "float32", "float16", 140, 1024, 48, 16, 12),
        Kernel("a.cu", "b", 90, "float32", "float16", 12, 0, 0, 0, 0))


# ---------------------------------------------------------------- the wheel


def test_the_wheel_holds_every_cu_file_and_header(monkeypatch):
    """What `pip wheel` would copy, by setuptools itself, from setup.cfg."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    if not (ROOT / "setup.cfg").exists():
        pytest.skip("the package is installed, its setup.cfg is not here")
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.finalize_options()
    copied = {Path(folder) / name for _, folder, _, names in build.data_files for name in names}
    package = Path("minisegnet")
    wanted = {path for pattern in ("*.cu", "*.h") for path in package.rglob(pattern)}
    assert package / "cuda" / "emulator.h" in wanted and len(wanted) > 10
    assert wanted <= copied
    modules = {Path(file) for _, _, file in build.find_all_modules()}
    assert {package / "cuda" / "sandbox.py", package / "cuda" / "__main__.py"} <= modules
