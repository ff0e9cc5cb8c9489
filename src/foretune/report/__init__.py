"""One self-contained HTML page from whatever result files a run directory holds."""

from foretune.report.page import write_report as write_report
