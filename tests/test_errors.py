"""A user's mistake is one line on standard error and exit code 2; anything else stays loud."""

import subprocess
import sys

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
    (MemoryError("40 GiB"), "out of memory (40 GiB); use a smaller --image-size")])
def test_what_the_machine_refuses_is_one_line_too(capsys, error, words):
    assert run_command(command(error)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


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
