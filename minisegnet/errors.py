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
        if sys.stdout is not None:  # closed, `>&-`
            sys.stdout.flush()  # so that a reader who has left is noticed here, not at the exit
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
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
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        print(f"error: out of memory{f' ({said})' if said else ''}; use a smaller --image-size or "
              "--batch-size (with --accumulate to keep the step's size), or --scale; --loss "
              "lovasz needs the logits at full size besides", file=sys.stderr)
        return 2


def is_out_of_memory(error):
    """Whether `error` says that memory has run out, that of the machine or that of a GPU.

    CuPy's own is a MemoryError; what CUDA and its libraries report comes as RuntimeErrors, known
    by their module and text, since CuPy is not imported here.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends")
        and ("out of memory" in text or "out_of_memory" in text or "alloc_failed" in text))
