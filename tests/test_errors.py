"""A user's mistake is one line on standard error and exit code 2; anything else stays loud."""

import subprocess
import sys

import numpy as np
import pytest

from minisegnet.errors import UserError, run_command


def command(error):
    def main(argv):
        raise error

    return main


def test_a_user_error_is_one_line_and_code_2(capsys):
    assert run_command(command(UserError("no such folder: data/x"))) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: no such folder: data/x\n")


@pytest.mark.parametrize("error, words", [
    (FileNotFoundError(2, "No such file or directory", "plans/7.png"), "plans/7.png"),
    (MemoryError("40 GiB"), "out of memory (40 GiB); use a smaller --image-size"),
    (MemoryError(), "out of memory; use")])
def test_what_the_machine_refuses_is_one_line_too(capsys, error, words):
    assert run_command(command(error)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_closed_streams_are_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # `>&-`
    assert run_command(lambda argv: 0) == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(command(UserError("no such folder"))) == 2


def test_running_out_of_memory_names_every_knob_and_what_numpy_said(capsys):
    def main(argv):
        np.zeros((2 ** 20, 2 ** 20, 2 ** 10), np.float32)

    assert run_command(main) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: out of memory (Unable")
    for words in ("4.00 PiB", "(1048576, 1048576, 1024)", "--batch-size", "--accumulate",
                  "--image-size", "--scale", "--loss lovasz"):
        assert words in err


def gpu_error(module, name, base, text):
    """An error of a class that looks like one of CuPy's, without CuPy."""
    return type(name, (base,), {"__module__": module})(text)


@pytest.mark.parametrize("error", [
    gpu_error("cupy.cuda.memory", "OutOfMemoryError", MemoryError,
              "Out of memory allocating 8,388,608 bytes (allocated so far: 0 bytes)."),
    gpu_error("cupy_backends.cuda.api.runtime", "CUDARuntimeError", RuntimeError,
              "cudaErrorMemoryAllocation: out of memory"),
    gpu_error("cupy_backends.cuda.api.driver", "CUDADriverError", RuntimeError,
              "CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    gpu_error("cupy_backends.cuda.libs.cublas", "CUBLASError", RuntimeError,
              "CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_gpu_out_of_memory_is_the_same_line(capsys, error):
    assert run_command(command(error)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: out of memory ({error}); use a smaller")


def test_other_errors_of_a_gpu_stay_loud():
    with pytest.raises(RuntimeError):
        run_command(command(gpu_error("cupy_backends.cuda.api.runtime", "CUDARuntimeError",
                                      RuntimeError, "cudaErrorIllegalAddress")))
    with pytest.raises(RuntimeError):
        run_command(command(RuntimeError("my own joke about being out of memory")))


def test_a_reader_who_leaves_gets_no_traceback():
    code = """if True:
        import sys
        from minisegnet.errors import run_command
        def main(argv):
            for line in range(100_000):
                print("line", line)
        sys.exit(run_command(main))
        """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_an_interrupt_is_code_130(capsys):
    assert run_command(command(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(command(ZeroDivisionError()))
    with pytest.raises(ValueError):
        run_command(command(ValueError("not a user's mistake")))


def test_the_exit_code_of_a_command_is_its_return_value_or_0():
    assert run_command(lambda argv: None) == 0
    assert run_command(lambda argv: 1) == 1
    assert run_command(lambda argv: argv[0], ["3"]) == "3"


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
