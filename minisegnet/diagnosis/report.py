"""A diagnosis as text for a terminal, and as JSON."""

import textwrap

from minisegnet.diagnosis.finding import train_again
from minisegnet.diagnosis.ranking import checked, diagnose, remarks

WIDTH = 99


def report_lines(evidence, findings=None):
    """Return the lines of a diagnosis; `findings` (default: `diagnose`) are in their order."""
    findings = diagnose(evidence) if findings is None else findings
    done, missing = checked(evidence)
    lines = []
    for rank, finding in enumerate(findings, 1):
        lines += _wrapped(f"{rank}. [{finding.kind}, {finding.certainty}] {finding.title} "
                          f"({finding.fault})", "   ", first="")
        lines += _wrapped(f"evidence: {finding.evidence}", "     ")
        lines += _wrapped(f"likely cause: {finding.cause}", "     ")
        lines += ["   try:", f"     {finding.experiment}", ""]
    if not findings:
        lines += ["nothing wrong found"]
    for sentence in remarks(evidence) if not findings else ():
        lines += _wrapped(f"note: {sentence}", "  ", first="  ")
    if done and not findings:
        lines += ["  checked:", *(f"    {text}" for text in done)]
    if missing:
        lines += ["  could not be checked:", *(f"    {text}" for text in missing)]
        if not evidence.has_debug:
            lines += ["  there is no record of --debug, which measures these:",
                      f"    {train_again(evidence)}"]
    return lines


def as_dictionary(evidence):
    """Return the diagnosis as a dictionary of plain lists and texts, for JSON."""
    done, missing = checked(evidence)
    return {"run": str(evidence.folder),
            "findings": [finding._asdict() for finding in diagnose(evidence)],
            "remarks": remarks(evidence), "checked": done, "not_checked": missing}


def _wrapped(text, indent, first="   "):
    # A path or a tensor's name stays whole, to be copied.
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent,
                         break_long_words=False, break_on_hyphens=False)
