"""What is wrong with a run, told from what it measured: label, metric, loss, optimizer or data."""

from minisegnet.diagnosis.evidence import Evidence, read_evidence
from minisegnet.diagnosis.finding import Finding
from minisegnet.diagnosis.ranking import diagnose
from minisegnet.diagnosis.report import as_dictionary, report_lines

__all__ = ["Evidence", "Finding", "as_dictionary", "diagnose", "read_evidence", "report_lines"]
