"""What every command shares: number types that refuse nonsense, and one-line errors."""

import argparse
import math

from minisegnet.errors import UserError


class _HelpFormatter(argparse.HelpFormatter):
    """Ends every help text with the default, and calls the value of a number N."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.dest == "help":
            return action.help
        return f"{action.help} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action):
        return "N" if action.type else super()._get_default_metavar_for_optional(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose complaints are a UserError: one line, exit code 2; no abbreviated flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def error(self, message):
        raise UserError(f"{message} (see {self.prog} --help)")


def number(kind, *, above=None, least=None, below=None, most=None):
    """Return an argparse type: an int or float within bounds, named in the error."""

    def parse(text):
        try:
            value = kind(text)
        except (TypeError, ValueError):
            value = None
        ok = (value is not None and math.isfinite(value)
              and (above is None or value > above) and (least is None or value >= least)
              and (below is None or value < below) and (most is None or value <= most))
        if not ok:
            bounds = [f"{sign} {bound:g}" for sign, bound in
                      ((">", above), (">=", least), ("<", below), ("<=", most))
                      if bound is not None]
            word = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {word} {' and '.join(bounds)}")
        return value

    return parse


positive_int = number(int, least=1)
non_negative_int = number(int, least=0)
positive_float = number(float, above=0)
non_negative_float = number(float, least=0)
fraction = number(float, least=0, below=1)
