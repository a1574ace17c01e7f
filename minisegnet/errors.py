"""The one error a person at the command line should ever meet, and how commands show it."""

import sys


class UserError(ValueError):
    """A mistake in the input: the message says what is wrong, where, and the cure, in one line."""


def run_command(main, argv=None):
    """Call `main(argv)` and return its exit code; a `UserError` becomes one line and code 2.

    Every command ends with `sys.exit(run_command(main))`.
    """
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
