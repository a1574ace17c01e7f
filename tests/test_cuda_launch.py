"""The launcher reads a kernel's parameters from its source, and checks every argument."""

import numpy as np
import pytest
from small_kernels import kernel_file

from minisegnet.backend import get_array_module
from minisegnet.cuda import emulated_device, launch
from minisegnet.cuda.emulator import KernelError
from minisegnet.cuda.launch import Parameter, blocks, parse_kernels, record_launches

# ---------------------------------------------------------------- reading the source


def parsed(code):
    return {name: [(p.name, p.type, p.is_array, p.is_const, p.is_restrict) for p in parameters]
            for name, parameters in parse_kernels(code).items()}


X, N = ("x", "REAL", True, True, False), ("n", "int", False, False, False)


@pytest.mark.parametrize("code", [
    "__global__ void k(const REAL* x, int n) {}",
    "__global__ void k(REAL const *x,int n) {}",
    "__global__ void k( const REAL * x , int n );",
    'extern "C" __global__ void k(const REAL *x, int n) {}',
    "template <int A, class T = float>\n__global__ void k(const REAL* x, int n) {}",
    "__global__ void __launch_bounds__(256) k(const REAL* x, int n) {}",
    "__global__ void __launch_bounds__(256, 2) k(const REAL* x, int n) {}",
    "__global__ __launch_bounds__(256) void k(const REAL* x, int n) {}",
    "__global__\nvoid\n__launch_bounds__ (32 * (4 + 4), 2)\nk(\n  const REAL* x,\n  int n) {}",
    "__global__ void k(  // reads (x)\n    const REAL* x,  // (N, C), float* y\n    int n) {}",
    "/* __global__ void old(int m) {} */\n// __global__ void older(int m) {}\n"
    "__global__ void k(const REAL* x /* , int m */, int n) {}",
])
def test_a_kernel_is_found_however_it_is_written(code):
    assert parsed(code) == {"k": [X, N]}


def test_types_const_and_restrict_are_those_of_each_parameter():
    assert parsed("""
        __device__ float helper(float a) { return a; }
        __global__ void none() {}
        __global__ void many(const STORE* __restrict__ x, STORE*__restrict__ out, REAL* const mean,
                             const REAL*const sums, unsigned int seed, const long long n, bool on,
                             const unsigned char* labels, unsigned flags) { helper(1); }
    """) == {
        "none": [],
        "many": [("x", "STORE", True, True, True), ("out", "STORE", True, False, True),
                 ("mean", "REAL", True, False, False), ("sums", "REAL", True, True, False),
                 ("seed", "unsigned int", False, False, False),
                 ("n", "long long", False, True, False), ("on", "bool", False, False, False),
                 ("labels", "unsigned char", True, True, False),
                 ("flags", "unsigned", False, False, False)],
    }
    assert Parameter._fields == ("name", "type", "is_array", "is_const", "is_restrict")


@pytest.mark.parametrize("parameter", ["T* x", "size_t n", "REAL** x", "Pack<STORE, 4>* x",
                                       "REAL x[]"])
def test_a_parameter_that_no_launch_can_pass_is_refused(parameter):
    with pytest.raises(TypeError, match="^k: no launch can pass a parameter .* REAL, STORE, int"):
        parse_kernels(f"__global__ void k(int n, {parameter}) {{}}")


def test_instances_are_of_kernels_that_there_are(tmp_path):
    code = "template <int N> __global__ void k_kernel(int* x) {}\n__global__ void l_kernel() {}"
    kernels = kernel_file(tmp_path, code, templates={"k_kernel": ("1", "4")})
    assert kernels.names == ("k_kernel<1>", "k_kernel<4>", "l_kernel")
    with pytest.raises(ValueError, match="kernels.cu has no kernel m_kernel"):
        kernel_file(tmp_path, code, templates={"m_kernel": ("1",)}).names


def test_blocks_cover_the_total():
    assert [blocks(n, 256) for n in (0, 1, 256, 257, 2 ** 31)] == [0, 1, 1, 2, 2 ** 23]


# ---------------------------------------------------------------- arguments

CODE = r"""
__global__ void numbers_kernel(double* out, int i, unsigned u, unsigned int v, bool b, long long l,
                               unsigned long long m, unsigned char c, short s, float f, double d,
                               REAL r, STORE t) {
  out[0] = i; out[1] = u; out[2] = v; out[3] = b; out[4] = l; out[5] = m; out[6] = c; out[7] = s;
  out[8] = f; out[9] = d; out[10] = r; out[11] = REAL(t);
}
__global__ void types_kernel(const STORE* x, const REAL* weight, int* out, REAL scale) {
  out[0] = sizeof(STORE);
  out[1] = sizeof(REAL);
  out[2] = x != nullptr;
  out[3] = weight != nullptr;
}
__global__ void scale_kernel(const STORE* __restrict__ x, STORE* __restrict__ out, REAL factor,
                             int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = STORE(REAL(x[i]) * factor);
}
__global__ void add_kernel(STORE* a, const STORE* b, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) a[i] = REAL(a[i]) + REAL(b[i]);
}
__global__ void twice_kernel(STORE* a, const STORE* b) {  // b may be a, and change meanwhile
  a[0] = REAL(a[0]) + REAL(b[0]);
  a[0] = REAL(a[0]) + REAL(b[0]);
}
__global__ void two_kernel(int* a, unsigned char* b) { a[0] = 5; b[0] = 6; }
"""


@pytest.fixture(scope="module")
def kernels(compiler, tmp_path_factory):
    return kernel_file(tmp_path_factory.mktemp("cuda"), CODE)


def scale(kernels, x=None, out=None, factor=2.0, n=4, **options):
    x = np.arange(4, dtype=np.float32) if x is None else x
    if out is None:
        out = get_array_module(x).zeros_like(x)
    kernels.launch("scale_kernel", (1,), (4,), x=x, out=out, factor=factor, n=n, **options)
    return out


NUMBERS = dict(i=-7, u=3_000_000_000, v=4, b=True, l=-2 ** 50, m=2 ** 50, c=200, s=-300, f=0.1,
               d=0.1, r=0.1, t=0.25)


@pytest.mark.parametrize("convert", [
    lambda value: value, np.asarray, lambda value: np.float64(value)
    if isinstance(value, float) else np.int64(value),
], ids=["python", "array", "numpy"])
def test_numbers_become_what_the_kernel_declares(kernels, convert):
    out = np.zeros(12)
    numbers = {name: value if name == "b" else convert(value) for name, value in NUMBERS.items()}
    kernels.launch("numbers_kernel", (1,), (1,), out=out, **numbers)
    f = float(np.float32(0.1))
    assert list(out) == [-7, 3e9, 4, 1, -2 ** 50, 2 ** 50, 200, -300, f, 0.1, f, 0.25]


@pytest.mark.parametrize("name, value", [
    ("i", 2 ** 31), ("i", -2 ** 31 - 1), ("i", np.int64(2 ** 32 + 5)), ("u", -1), ("u", 2 ** 32),
    ("b", 2), ("l", 2 ** 63), ("m", -1), ("c", 256), ("c", -1), ("s", 40000), ("f", 1e39),
    ("r", -1e300), ("t", 1e39),
])
def test_a_number_that_does_not_fit_is_refused(kernels, name, value):
    with pytest.raises(OverflowError, match=f"^numbers_kernel: {name} = .* is beyond"):
        kernels.launch("numbers_kernel", (1,), (1,), out=np.zeros(12), **{**NUMBERS, name: value})


@pytest.mark.parametrize("name, value, words", [
    ("i", 2.0, "a whole number, not 2.0"), ("i", np.float32(2), "a whole number"),
    ("i", "3", "a whole number, not '3'"), ("i", None, "a whole number, not None"),
    ("i", [3], "a whole number"), ("i", np.zeros(1, np.int32), "a whole number, not array"),
    ("b", 1.0, "a whole number"), ("f", "0.5", "a number, not '0.5'"), ("f", None, "a number"),
    ("f", 1j, "a number"), ("r", np.zeros((2, 2)), "a number"),
    ("r", emulated_device.zeros((1,)), "a number"),
])
def test_a_number_of_another_kind_is_refused(kernels, name, value, words):
    with pytest.raises(TypeError, match=f"^numbers_kernel: {name} is {words}"):
        kernels.launch("numbers_kernel", (1,), (1,), out=np.zeros(12), **{**NUMBERS, name: value})


def test_numpy_bools_infinities_and_nan_are_numbers(kernels):
    out = np.zeros(12)
    kernels.launch("numbers_kernel", (1,), (1,), out=out, **{
        **NUMBERS, "b": np.True_, "f": float("inf"), "r": float("nan"), "i": np.True_})
    assert out[3] == 1 and out[8] == np.inf and np.isnan(out[10]) and out[0] == 1


def test_missing_and_unknown_arguments_are_named(kernels):
    with pytest.raises(TypeError, match=r"scale_kernel takes x, out, factor, n; missing \['n'\], "
                                        r"unknown \['m'\]"):
        kernels.launch("scale_kernel", (1,), (1,), x=None, out=None, factor=1.0, m=3)


@pytest.mark.parametrize("name", ["scal_kernel", "scale_kernel<4>", "kernels.cu"])
def test_an_unknown_kernel_is_named_beside_those_there_are(kernels, name):
    with pytest.raises(ValueError, match=f"kernels.cu has numbers_kernel, .*, no {name}$"):
        kernels.launch(name, (1,), (1,), x=1)


@pytest.mark.parametrize("x_dtype, weight_dtype, scale, sizes", [
    (np.float32, np.float32, 1.0, (4, 4)), (np.float64, np.float64, 1.0, (8, 8)),
    (np.float32, None, 1.0, (4, 4)), (np.float64, None, 1.0, (8, 8)),
    (None, np.float32, 1.0, (4, 4)), (None, np.float64, 1.0, (8, 8)), (None, None, 1.0, (4, 4)),
    (np.float16, np.float32, 1.0, (2, 4)), (np.float16, None, 1.0, (2, 4)),
    (np.float64, None, np.float32(1), (8, 8)),  # a number decides nothing
], ids=str)
def test_the_arrays_tell_what_is_computed_in_and_stored(kernels, x_dtype, weight_dtype, scale,
                                                        sizes):
    out = np.zeros(4, np.int32)
    x, weight = (dtype and np.zeros(3, dtype) for dtype in (x_dtype, weight_dtype))
    kernels.launch("types_kernel", (1,), (1,), x=x, weight=weight, out=out, scale=scale)
    assert tuple(out) == (*sizes, x is not None, weight is not None)


@pytest.mark.parametrize("x, weight, words", [
    (np.float64, np.float32, "REAL float32 and STORE float64"),
    (np.float32, np.float64, "REAL float64 and STORE float32"),
    (np.float16, np.float16, "REAL float16 and STORE float16"),
    (np.int32, None, "REAL float32 and STORE int32"),
    (None, np.int64, "REAL int64 and STORE int64"),
], ids=str)
def test_types_that_do_not_go_together_are_refused(kernels, x, weight, words):
    x, weight = (dtype and np.zeros(3, dtype) for dtype in (x, weight))
    with pytest.raises(TypeError, match=f"^types_kernel: no kernels are compiled for {words}"):
        kernels.launch("types_kernel", (1,), (1,), x=x, weight=weight, out=np.zeros(4, np.int32),
                       scale=1.0)


def test_arrays_of_one_kernel_have_one_dtype(kernels):
    with pytest.raises(TypeError, match="scale_kernel: out is float64; the kernel takes float32"):
        scale(kernels, out=np.zeros(4))
    with pytest.raises(TypeError, match="two_kernel: b is int8; the kernel takes uint8"):
        kernels.launch("two_kernel", (1,), (1,), a=np.zeros(1, np.int32), b=np.zeros(1, np.int8))


@pytest.mark.parametrize("x", [3.0, np.float32(3), [1.0, 2.0]], ids=repr)
def test_what_is_no_array_is_refused(kernels, x):
    with pytest.raises(TypeError, match="scale_kernel: x is an array, not"):
        scale(kernels, x, np.zeros(4, np.float32))


def test_arrays_with_gaps_are_refused(kernels):
    wide = np.zeros((4, 8), np.float32)
    for view in (wide[:, :4], wide.T, wide[::-1], wide[..., ::2]):
        for arguments in (dict(x=view, out=np.zeros(4, np.float32)), dict(out=view)):
            with pytest.raises(ValueError, match="(x|out) has gaps or another order of axes"):
                scale(kernels, **arguments)
    assert scale(kernels, wide[1:3] + 1)[0, 0] == 2  # rows of a whole are fine


def test_a_read_only_array_is_read_and_never_written(kernels):
    frozen = np.ones(4, np.float32)
    frozen.flags.writeable = False
    assert list(scale(kernels, frozen)) == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="scale_kernel: out is read-only"):
        scale(kernels, out=frozen)


def test_an_array_that_int_cannot_count_is_refused(kernels, monkeypatch):
    assert launch.MAX_ELEMENTS == 2 ** 31 - 1
    monkeypatch.setattr(launch, "MAX_ELEMENTS", 3)
    with pytest.raises(ValueError, match="x has 4 elements, more than kernels count"):
        scale(kernels)


def test_only_without_restrict_is_one_array_given_twice(kernels):
    a = np.arange(4, dtype=np.float32)
    kernels.launch("add_kernel", (1,), (4,), a=a, b=a, n=4)
    assert list(a) == [0, 2, 4, 6]
    device = emulated_device.asarray(a)
    kernels.launch("add_kernel", (1,), (4,), a=device, b=device.reshape(2, 2), n=4)
    assert list(device.get()) == [0, 4, 8, 12]
    for b, result in ((np.ones(1, np.float32), 3), (a[1:2], 8)):
        a[1] = 1 if result == 3 else 2
        kernels.launch("twice_kernel", (1,), (1,), a=a[1:2], b=b)
        assert a[1] == result
    a[1] = 2
    with pytest.raises(ValueError, match="scale_kernel: x and out share memory"):
        scale(kernels, a, a)
    with pytest.raises(ValueError, match="add_kernel: a and b share memory"):
        kernels.launch("add_kernel", (1,), (3,), a=a[1:], b=a[:3], n=3)
    kernels.launch("add_kernel", (1,), (2,), a=a[:2], b=a[2:], n=2)
    assert list(a) == [4, 8, 4, 6]


def test_several_arrays_are_written_each_its_own(kernels):
    a, b = np.zeros(1, np.int32), np.zeros(1, np.uint8)
    kernels.launch("two_kernel", (1,), (1,), a=a, b=b)
    assert a[0] == 5 and b[0] == 6


def test_after_an_error_nothing_was_written(kernels):
    out = np.full(3, 7, np.float32)
    with pytest.raises(KernelError):
        kernels.launch("scale_kernel", (2,), (32,), x=np.zeros(40, np.float32), out=out,
                       factor=1.0, n=40)
    assert (out == 7).all()


# ---------------------------------------------------------------- devices, recording


def test_arrays_of_one_launch_are_on_one_device(kernels):
    x = emulated_device.asarray(np.arange(4, dtype=np.float32))
    assert list(scale(kernels, x).get()) == [0, 2, 4, 6]
    with pytest.raises(TypeError, match="^scale_kernel: arrays of minisegnet.cuda.emulated_device "
                                        "and numpy$"):
        scale(kernels, x, np.zeros(4, np.float32))
    with pytest.raises(TypeError, match="arrays of"):
        scale(kernels, out=x)


def test_recorded_launches_run_again_on_what_the_arrays_hold_then(kernels):
    x, out = np.ones(4, np.float32), np.zeros(4, np.float32)
    scale(kernels, x, out)  # before: not noted
    with record_launches() as launches:
        scale(kernels, x, out, factor=2.0)
        kernels.launch("add_kernel", (1,), (4,), a=x, b=out, n=4)
    scale(kernels, x, out)
    assert [each.name for each in launches] == ["scale_kernel", "add_kernel"]
    assert [each.bytes_moved for each in launches] == [32, 32]
    x[:] = 10
    for each in launches:
        each()
    assert list(out) == [20] * 4 and list(x) == [30] * 4
    assert len(launches) == 2  # running again records nothing


def test_launches_are_recorded_once_at_a_time_and_no_longer_after_an_error(kernels):
    with pytest.raises(ZeroDivisionError), record_launches():
        with pytest.raises(RuntimeError, match="recorded already"), record_launches():
            pass
        raise ZeroDivisionError
    with record_launches() as launches:
        scale(kernels)
    assert len(launches) == 1


def test_a_file_is_compiled_once_for_each_pair_of_types(kernels):
    scale(kernels)
    assert kernels.cpu_module() is kernels.cpu_module("float32", "float32")
    assert kernels.options("float32", "float16") == ("-DREAL=float", "-DSTORE=__half",
                                                     "-DHALF_TYPES")
    assert kernels.options("float64", "float64") == ("-DREAL=double", "-DSTORE=double")


def test_cupy_compiles_again_when_a_header_has_changed(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr("minisegnet.backend.compile_for_gpu", lambda *args: compiled.append(args))
    for number in (1, 1, 2):
        (tmp_path / "number.h").write_text(f"constexpr int NUMBER = {number};")
        kernel_file(tmp_path, CODE)._gpu_module("float32", "float16")
    codes = [code for code, _, _ in compiled]
    assert codes[0] == codes[1] != codes[2] and all(CODE in code for code in codes)
    _, names, options = compiled[0]
    assert "scale_kernel" in names and {"-DSTORE=__half", f"-I{tmp_path}",
                                        f"-I{launch.FOLDER}"} <= set(options)
