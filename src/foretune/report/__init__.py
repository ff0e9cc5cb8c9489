"""Writes one self-contained HTML page from the result files of a run directory."""

from foretune.report.page import write_report as write_report
