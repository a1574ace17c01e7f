"""The one error a person at the command line should ever meet, and how commands show it."""

import os
import sys


class UserError(ValueError):
    """A mistake in the input: the message says what is wrong, where, and the cure, in one line."""


def run_command(main, argv=None):
    """Call `main(argv)` and return its exit code; a `UserError` becomes one line and code 2.

    So do the two ways in which a machine says no: a file that cannot be had, and no memory left.
    Every command ends with `sys.exit(run_command(main))`.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A console may lack the letters of a class name: show them as escapes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(argv) or 0
        sys.stdout.flush()  # so that a reader who has left is noticed here, not at the exit
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory ({error}); use a smaller --image-size or --batch-size",
              file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `... | head`: the reader has seen enough. What is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
