"""Tables: on a narrow screen names are wrapped, and numbers never."""

import io

import pytest
from rich.console import Console

from foretune.cli.console import table
from foretune.cli.forecast import outcome
from foretune.report.read import Outcome


def test_numbers_are_whole_on_a_narrow_screen() -> None:
    name, numbers = "all-linear-r32-rslora-high-rate", ["61.2%", "12.5%", "1,332", "92.4", "0.80", "333k"]
    shown = table("forecast", "candidate", *(f"column {i}" for i in range(6)))
    shown.add_row(name, *numbers)
    screen = Console(width=70, record=True, file=io.StringIO())
    screen.print(shown)
    text = screen.export_text()
    assert all(each in text for each in numbers)
    cells = [line.split()[0] for line in text[text.rindex("─") :].splitlines()[1:] if line.split()]
    assert "".join(cells).startswith(name), "folded, not cut"


def test_console_and_report_mean_half_of_the_90_percent_interval() -> None:
    predicted = {"eval_metric": 0.8, "eval_metric_std": 0.02, "eval_loss": 0.5}
    assert outcome(predicted, 10, "accuracy")[1] == "±3.3" and outcome(predicted, 10, "pearson")[1] == "±0.033"
    assert Outcome(0.8, 0.5, None, 0.02, ()).band == pytest.approx(0.0329)
