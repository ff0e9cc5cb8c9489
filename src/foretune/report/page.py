"""Renders results and figures as one HTML page that loads nothing else."""

import json
from pathlib import Path, PurePath
from typing import Any

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from foretune.report import numbers
from foretune.report.figures import figures
from foretune.report.read import Candidate, Run, read_run
from foretune.report.verdict import verdict
from foretune.results import write_text


def write_report(directory: Path) -> Path:
    """Write ``report.html`` from the result files in a run directory.

    The page contains its styles, scripts and data. Its content security policy forbids all requests. If the directory
    has no results or a file cannot be read, an ``InputError`` names the command to run.

    Args:
        directory: The run directory.

    Returns:
        The path of the page.
    """
    directory = Path(directory)
    run = read_run(directory)
    path = directory / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """Render the page as text. Jinja escapes all text except foretune's own styles and scripts."""
    environment = Environment(
        loader=PackageLoader("foretune.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["last_part"] = lambda path: PurePath(path).name
    drawn = figures(run)
    return environment.get_template("page.html").render(
        run=run,
        verdict=verdict(run),
        drawn=drawn,
        figure_data=_embedded(drawn),
        plotly_js=Markup(get_plotlyjs()),
        css=_own_file(environment, "page.css"),
        js=_own_file(environment, "page.js"),
        numbers=numbers,
        has_forecast=any(item.forecast for item in run.candidates),
        has_truth=any(item.truth for item in run.candidates),
        has_pairs=any(item.forecast and item.truth for item in run.candidates),
        rankers=_rankers(run),
        configuration=_configuration,
        machine=_machine,
    )


def _embedded(drawn: dict[str, go.Figure]) -> Markup:
    """The figures as JSON, escaped so that no text in them can end the surrounding script element."""
    text = json.dumps({name: json.loads(figure.to_json()) for name, figure in drawn.items()})
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _own_file(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _rankers(run: Run) -> dict[str, dict[str, Any]]:
    """How well the forecast and simple rankers order the trained candidates, under readable names."""
    if run.comparison is None:
        return {}
    names = {
        "trainable_parameters": "more trainable parameters",
        "trace": "larger NTK trace",
        "condition_number": "smaller condition number κ",
        "alignment": "larger alignment",
    }
    others = {names.get(key, key): score for key, score in (run.comparison.get("rankers") or {}).items()}
    return {"this forecast": run.comparison["summary"], **others}


def _configuration(candidate: Candidate) -> str:
    """The YAML that describes this candidate in a ``run.yaml``."""
    parts: dict[str, Any] = {"peft": candidate.peft, "training": candidate.training}
    if candidate.proximal.get("strength"):
        parts["proximal"] = candidate.proximal
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _machine(header: dict[str, Any]) -> str:
    """The machine named in the header of a result file, in one line."""
    machine = header.get("machine") or {}
    if not isinstance(machine, dict):
        return str(machine)
    parts = [(key, value) for key, value in machine.items() if value is not None]
    return ", ".join(str(value) if key == "platform" else f"{value} {key}" for key, value in parts)
