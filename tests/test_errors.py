"""A user's mistake is one line on standard error and exit code 2; anything else stays loud."""

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
