"""Matrix products on a GPU: the calls of cuBLAS, made to a stand-in that works on host memory."""

import ctypes
import itertools
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from checks import assert_agrees

from minisegnet import backend
from minisegnet.cuda import emulated_device
from minisegnet.cuda import gemm as gemm_module
from minisegnet.cuda.gemm import CUDA_TYPES, Cublas, Matrix, gemm
from minisegnet.cuda.launch import record_launches

TRANSPOSES = list(itertools.product((False, True), repeat=2))


def draw(rng, M, N, K, transpose_a, transpose_b, dtype=np.float64):
    """Return a, b, what their product is added to, and the product in float64."""
    a, b, out = (rng.standard_normal(shape).astype(dtype) for shape in ((M, K), (K, N), (M, N)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    a = np.ascontiguousarray(a.T) if transpose_a else a
    b = np.ascontiguousarray(b.T) if transpose_b else b
    return a, b, out, exact


# ---------------------------------------------------------------- on the host


@pytest.mark.parametrize("place", [np.asarray, emulated_device.asarray])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("transpose_a, transpose_b", TRANSPOSES)
def test_without_a_gpu_it_is_a_matrix_product(rng, place, transpose_a, transpose_b, add):
    a, b, out, exact = draw(rng, 3, 4, 5, transpose_a, transpose_b)
    expected = exact + out if add else exact
    out = place(out)
    gemm(place(a), place(b), out, transpose_a=transpose_a, transpose_b=transpose_b, add=add)
    assert_agrees(backend.asnumpy(out), expected)


@pytest.mark.parametrize("out_dtype", [np.float16, np.float32])
def test_16_bit_numbers_are_added_up_in_32(out_dtype):
    # 2048 ones more than 2048 are no different from it in float16.
    a, b, out = np.ones((1, 4096), np.float16), np.ones((4096, 1), np.float16), np.zeros((1, 1))
    out = out.astype(out_dtype)
    gemm(a, b, out)
    assert out[0, 0] == 4096


def test_it_is_recorded_and_repeated_on_the_same_arrays(rng):
    a, b, out, exact = draw(rng, 3, 4, 5, False, False)
    with record_launches() as launches:
        gemm(a, b, out, add=True)
    (launch,) = launches
    assert (launch.name, launch.bytes_moved) == ("gemm", 8 * (15 + 20 + 12))
    out.fill(0)
    a *= 2
    launch()
    assert_agrees(out, 2 * exact)


@pytest.mark.parametrize("a, b, out, options, message", [
    ((3, 4), (4, 5, 1), (3, 5), {}, "2-D arrays"),
    ((3, 4), (3, 5), (3, 5), {}, r"\(3, 4\) times \(3, 5\)"),
    ((3, 4), (4, 5), (3, 4), {}, r"make \(3, 4\)"),
    ((4, 3), (4, 5), (4, 5), {"transpose_a": True}, r"\(3, 4\) times \(4, 5\)"),
])
def test_shapes_that_do_not_fit_are_refused(a, b, out, options, message):
    with pytest.raises(ValueError, match=message):
        gemm(*map(np.zeros, (a, b, out)), **options)


def test_gaps_and_other_dtypes_are_refused():
    square = np.zeros((3, 3))
    with pytest.raises(ValueError, match="transpose_a=True"):
        gemm(square.T, square, square.copy())
    for dtypes in (("float64", "float32", "float64"), ("float64", "float64", "float32"),
                   ("float32", "float32", "float16"), ("int64", "int64", "int64")):
        with pytest.raises(TypeError, match="by".join([f"{dtypes[0]} ", f" {dtypes[1]}"])):
            gemm(*(square.astype(dtype) for dtype in dtypes))


# ---------------------------------------------------------------- cuBLAS


class State(ctypes.Structure):
    """What the stand-in remembers."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "magic", "stream", "workspace", "workspace_bytes", "math_mode", "compute", "products",
        "streams_set")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The stand-in, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the stand-in for cuBLAS")
    made = tmp_path_factory.mktemp("cublas") / "libfake_cublas.so"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC",
                    Path(__file__).with_name("fake_cublas.c"), "-o", made], check=True)
    library = ctypes.CDLL(str(made))
    library.fake_state.restype = ctypes.POINTER(State)
    return library


@pytest.fixture
def cublas(library):
    return Cublas(library, 256 * 1000, 2 ** 33)


def matrix(array):
    """A NumPy array as cuBLAS gets it; its rows may be apart."""
    return Matrix(array.ctypes.data, str(array.dtype), array.strides[0] // array.itemsize)


def apart(array, gap):
    """A copy in rows that are `gap` elements apart."""
    spread = np.zeros((len(array), array.shape[1] + gap), array.dtype)
    spread[:, :array.shape[1]] = array
    return spread[:, :array.shape[1]]


@pytest.mark.parametrize("dtype, limit", [("float64", 1e-14), ("float32", 1e-6),
                                          ("float16", 1e-3)])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("transpose_a, transpose_b", TRANSPOSES)
def test_cublas_is_asked_for_the_product(rng, cublas, transpose_a, transpose_b, add, dtype, limit):
    sizes = [(1, 1, 1), (2, 3, 4), (4, 3, 2), (1, 7, 2), (7, 1, 3), (5, 5, 1), (16, 9, 33)]
    for shape, gaps in itertools.product(sizes, [(0, 0, 0), (1, 2, 3)]):
        a, b, out, exact = draw(rng, *shape, transpose_a, transpose_b, dtype)
        a, b, out = map(apart, (a, b, out), gaps)
        expected = exact + out.astype(np.float64) if add else exact
        if not add:
            out.fill(np.nan)  # is not read
        product = cublas.bind(matrix(a), matrix(b), matrix(out), shape, transpose_a, transpose_b,
                              add, tf32=True)
        product(0)
        assert_agrees(out, expected, limit)
        assert not out.base[:, out.shape[1]:].any()


def test_bfloat16_is_added_up_in_float32(cublas):
    a, b = (np.float32(values).view(np.uint32) >> 16 for values in ([[1.5, 2]], [[3], [-4]]))
    a, b, out = a.astype(np.uint16), b.astype(np.uint16), np.zeros((1, 1), np.float32)
    cublas.bind(Matrix(a.ctypes.data, "bfloat16", 2), Matrix(b.ctypes.data, "bfloat16", 1),
                matrix(out), (1, 1, 2), False, False, False, tf32=True)(0)
    assert out == 1.5 * 3 - 2 * 4


def test_only_float32_is_computed_in_tf32(library, cublas):
    for dtype, tf32, expected in (("float32", True, 77), ("float32", False, 68),
                                  ("float64", True, 70), ("float16", True, 68)):
        one = np.ones((1, 1), dtype)
        cublas.bind(*[matrix(one)] * 2, matrix(one.copy()), (1, 1, 1), False, False, False,
                    tf32=tf32)(0)
        assert library.fake_state().contents.compute == expected


def test_its_workspace_is_ours_on_every_stream(library, cublas):
    one = np.ones((1, 1))
    product = cublas.bind(*[matrix(one)] * 3, (1, 1, 1), False, False, False, tf32=True)
    for stream, changes in ((0, 1), (0, 1), (2 ** 40, 2), (2 ** 40, 2), (0, 3)):
        product(stream)
        state = library.fake_state().contents
        assert (state.stream, state.streams_set) == (stream, changes)
        assert (state.workspace, state.workspace_bytes) == (256 * 1000, 2 ** 33)
        assert state.math_mode == 16
    assert state.products == 5


def test_a_refusal_is_named(library, cublas):
    one = np.ones((1, 1))
    product = cublas.bind(*[matrix(one)] * 3, (1, 2, 1), False, False, False, tf32=True)
    with pytest.raises(RuntimeError, match=r"cublasGemmEx: invalid value \(status 7\)"):
        product(0)  # rows of two, a row of one
    with pytest.raises(RuntimeError, match="invalid value"):
        Cublas(library, 1, 4096)._use_stream(0)  # a workspace that is not aligned


# ---------------------------------------------------------------- CuPy


class CupyArray(np.ndarray):
    """A NumPy array that says it is CuPy's."""

    data = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))


CupyArray.__module__ = "cupy"


@pytest.fixture
def stream(monkeypatch, library):
    """CuPy as far as products need it, on host memory; its current stream."""
    stream = types.SimpleNamespace(ptr=64)
    memory = np.zeros(2 * gemm_module.WORKSPACE_BYTES, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 256
    cuda = types.SimpleNamespace(
        cublas=None, runtime=types.SimpleNamespace(runtimeGetVersion=lambda: 13020),
        alloc=lambda size: types.SimpleNamespace(ptr=address, size=size),
        get_current_stream=lambda: stream)
    cupy = types.ModuleType("cupy")
    cupy.cuda = cuda
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(name) or library)
    gemm_module._cublas.cache_clear()
    yield stream
    gemm_module._cublas.cache_clear()
    assert loaded in ([], ["libcublas.so.13"])


@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-14), (np.float32, 1e-6)])
@pytest.mark.parametrize("transpose_a, transpose_b", TRANSPOSES)
def test_arrays_of_cupy_go_to_cublas(rng, stream, library, transpose_a, transpose_b, dtype, limit):
    a, b, out, exact = draw(rng, 3, 4, 5, transpose_a, transpose_b, dtype)
    expected = exact + out
    a, b, out = (array.view(CupyArray) for array in (a, b, out))
    with record_launches() as launches:
        gemm(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, add=True)
    state = library.fake_state().contents
    assert (state.products, state.stream) == (1, 64)
    assert state.workspace_bytes == gemm_module.WORKSPACE_BYTES
    assert_agrees(np.asarray(out), expected, limit)
    # Repeated, on whatever stream is then the current one.
    stream.ptr = 128
    launches[0]()
    assert (state.products, state.stream) == (2, 128)
    assert_agrees(np.asarray(out), expected + exact, limit)


@pytest.mark.parametrize("allowed, compute", [(True, 77), (False, 68)])
def test_tf32_can_be_turned_off(stream, library, monkeypatch, allowed, compute):
    monkeypatch.setattr(gemm_module, "allow_tf32", allowed)
    one = np.ones((1, 1), np.float32).view(CupyArray)
    gemm(one, one, one.copy())
    assert library.fake_state().contents.compute == compute


def test_types_have_the_numbers_of_library_types_h():
    header = Path("/usr/local/cuda/include/library_types.h")
    if not header.exists():
        pytest.skip("no CUDA toolkit")
    words = header.read_text().replace(" ", "")
    for dtype, name in (("float32", "32F"), ("float64", "64F"), ("float16", "16F"),
                        ("bfloat16", "16BF")):
        assert f"CUDA_R_{name}={CUDA_TYPES[dtype]}," in words
