"""The figures of the report. A figure function returns ``None`` if there is nothing to draw.

Colours are Paul Tol's "vibrant" set, which colour-blind readers can tell apart. Candidates also differ in marker and
dash. Text gets its colour from the page (light or dark) when it is drawn. Names are escaped, because plotly interprets
some HTML in every text.
"""

from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from foretune.forecast.compare import POINTS, Z_90
from foretune.report.numbers import Metric
from foretune.report.read import Candidate, Outcome, Point, Run

PALETTE = ("#0077BB", "#EE7733", "#009988", "#EE3377", "#33BBEE", "#CC3311")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "triangle-down", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
GRID, NEUTRAL = "rgba(128,128,128,0.22)", "rgba(128,128,128,0.9)"
NUM_VISIBLE = 3  # figures with a line per candidate show this many lines at first
NEGLIGIBLE = 1e-10  # eigenvalues below this share of the largest are rounding errors and are not drawn
_CURVES = {"eval_metric": "", "eval_loss": "evaluation loss", "train_loss": "training loss"}


def figures(run: Run) -> dict[str, go.Figure]:
    """All figures that have data, by the id of their place on the page."""
    drawn = {"ranking": ranking(run), "truth": truth(run), "curves": curves(run), "spectrum": spectrum(run)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def ranking(run: Run) -> go.Figure | None:
    """Draw the forecast metric of every candidate with its 90% interval, and the real values."""
    rows = list(range(len(run.candidates)))
    predicted = [item.forecast.eval_metric if item.forecast else None for item in run.candidates]
    bands = [item.forecast.band if item.forecast else None for item in run.candidates]
    true = [item.truth.eval_metric if item.truth else None for item in run.candidates]
    names = [_text(item.name) for item in run.candidates]
    hover = f"%{{customdata}}<br>%{{x:{run.metric.hover_format}}}"
    figure = go.Figure()
    if any(value is not None for value in predicted):
        bars = {"type": "data", "array": bands, "thickness": 1.5, "width": 4}
        figure.add_scatter(
            x=predicted, y=rows, customdata=names, mode="markers", name="forecast (90% interval)", error_x=bars,
            marker={"color": PALETTE[0], "size": 10, "symbol": "circle-open", "line": {"width": 2.5}},
            hovertemplate=hover + "<extra>forecast</extra>",
        )  # fmt: skip
    if any(value is not None for value in true):
        figure.add_scatter(
            x=true, y=rows, customdata=names, mode="markers", name="real run",
            marker={"color": PALETTE[1], "size": 10, "symbol": "diamond"},
            hovertemplate=hover + "<extra>real run</extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    baseline = run.task.get("majority_metric")
    if baseline is not None:
        figure.add_scatter(
            x=[baseline, baseline], y=[-0.6, len(rows) - 0.4], mode="lines", name="most frequent class",
            line={"color": NEUTRAL, "dash": "dot"}, hovertemplate=f"%{{x:{run.metric.hover_format}}}",
        )  # fmt: skip
    _style(figure, height=130 + 28 * len(rows))
    figure.update_xaxes(title=_text(run.metric.label), tickformat=run.metric.tick_format)
    labels = [_text(_shortened(item.name)) for item in run.candidates]
    figure.update_yaxes(tickvals=rows, ticktext=labels, range=[len(rows) - 0.4, -0.6], automargin=True, showgrid=False)
    return figure


def truth(run: Run) -> go.Figure | None:
    """Draw real values against forecasts, with the diagonal and, for metrics in percent, a band of ±3 points."""
    pairs = [
        (index, item, item.forecast.eval_metric, item.truth.eval_metric)
        for index, item in enumerate(run.candidates)
        if item.forecast and item.truth
        and item.forecast.eval_metric is not None and item.truth.eval_metric is not None
    ]  # fmt: skip
    if not pairs:
        return None
    ends = [
        value + sign * (item.forecast.band or 0.0) for _, item, value, _ in pairs if item.forecast for sign in (-1, 1)
    ]
    ends += [value for *_, value in pairs]
    margin = max(0.08 * (max(ends) - min(ends)), POINTS if run.metric.share else 1e-3)
    low, high = min(ends) - margin, max(ends) + margin
    figure = go.Figure()
    if run.metric.share:
        figure.add_scatter(
            x=[low, high, high, low], y=[low - POINTS, high - POINTS, high + POINTS, low + POINTS],
            fill="toself", fillcolor="rgba(128,128,128,0.16)", line={"width": 0}, mode="lines",
            name="±3 points", hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", name="exact", hoverinfo="skip",
        line={"color": NEUTRAL, "dash": "dot"},
    )  # fmt: skip
    shown = run.metric.hover_format
    for index, item, predicted, true in pairs:
        band = item.forecast.band if item.forecast else None
        figure.add_scatter(
            x=[predicted], y=[true], mode="markers", name=_text(_shortened(item.name)),
            error_x={"type": "data", "array": [band], "thickness": 1.2, "width": 3},
            marker={"color": _colour(index), "symbol": _symbol(index), "size": 11},
            hovertemplate=f"forecast %{{x:{shown}}}<br>real run %{{y:{shown}}}",
        )  # fmt: skip
    _style(figure, height=480)
    label = _text(run.metric.label)
    figure.update_xaxes(title=f"forecast {label}", tickformat=run.metric.tick_format, range=[low, high])
    figure.update_yaxes(title=f"real {label}", tickformat=run.metric.tick_format, range=[low, high])
    return figure


def curves(run: Run) -> go.Figure | None:
    """Draw metric and losses by epoch: forecasts as lines with their 90% interval, real runs as solid markers."""
    quantities = [quantity for quantity in _CURVES if any(_has(item, quantity) for item in run.candidates)]
    if not quantities:
        return None
    figure = make_subplots(rows=len(quantities), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    drawn = [
        (index, item)
        for index, item in enumerate(run.candidates)
        if any(_has(item, quantity) for quantity in quantities)
    ]
    for place, (index, item) in enumerate(drawn):
        visible = True if place < NUM_VISIBLE else "legendonly"
        traces = [
            (row, trace)
            for row, quantity in enumerate(quantities, start=1)
            for trace in _curve(item, index, quantity, run.metric)
        ]
        for number, (row, trace) in enumerate(traces):
            trace.update(visible=visible, legendgroup=str(index), showlegend=number == 0)
            figure.add_trace(trace, row=row, col=1)
    _style(figure, height=110 + 240 * len(quantities) + 10 * len(drawn))
    for row, quantity in enumerate(quantities, start=1):
        is_metric = quantity == "eval_metric"
        figure.update_yaxes(
            row=row, col=1, title=_text(run.metric.label) if is_metric else _CURVES[quantity],
            tickformat=run.metric.tick_format if is_metric else ".3~g",
        )  # fmt: skip
    figure.update_xaxes(title="epoch", row=len(quantities), col=1)
    figure.update_layout(hovermode="closest", legend={"groupclick": "togglegroup", "tracegroupgap": 0})
    return figure


def _curve(item: Candidate, index: int, quantity: str, metric: Metric) -> list[go.Scatter]:
    """The traces of a candidate in one panel: line, markers, band. The first one appears in the legend."""
    shown = metric.hover_format if quantity == "eval_metric" else ".3f"
    base = {"name": _text(_shortened(item.name)), "hovertemplate": f"epoch %{{x:.3~g}}: %{{y:{shown}}}"}
    traces = []
    if points := _points(item.forecast, quantity):
        traces.append(go.Scatter(x=_x(points), y=_y(points, quantity), mode="lines", line=_line(index), **base))
    if points := _points(item.truth, quantity):
        marker = {"color": _colour(index), "symbol": _symbol(index), "size": 8}
        traces.append(go.Scatter(x=_x(points), y=_y(points, quantity), mode="markers", marker=marker, **base))
    std = f"{quantity}_std"
    if points := [point for point in _points(item.forecast, quantity) if getattr(point, std, None) is not None]:
        upper = [getattr(point, quantity) + Z_90 * getattr(point, std) for point in points]
        lower = [getattr(point, quantity) - Z_90 * getattr(point, std) for point in points]
        red, green, blue = (int(_colour(index)[start : start + 2], 16) for start in (1, 3, 5))
        traces.append(
            go.Scatter(
                x=_x(points) + _x(points)[::-1], y=upper + lower[::-1], fill="toself", mode="lines",
                fillcolor=f"rgba({red},{green},{blue},0.16)", line={"width": 0}, hoverinfo="skip",
                name=base["name"],
            )
        )  # fmt: skip
    return traces


def spectrum(run: Run) -> go.Figure | None:
    """Draw the eigenvalues of the candidates' NTKs (neural tangent kernels) against their index, on log axes."""
    figure = go.Figure()
    for index, item in enumerate(run.candidates):
        values = item.kernel.spectrum if item.kernel else ()
        smallest = NEGLIGIBLE * max((value for value in values if value is not None), default=0.0)
        pairs = [
            (rank, value)
            for rank, value in enumerate(values, start=1)
            if value is not None and value > max(smallest, 0.0)
        ]
        if pairs:
            figure.add_scatter(
                x=[rank for rank, _ in pairs], y=[value for _, value in pairs],
                mode="lines+markers" if len(pairs) < 3 else "lines", name=_text(_shortened(item.name)),
                line=_line(index),
                visible=True if len(figure.data) < NUM_VISIBLE else "legendonly",
                hovertemplate="eigenvalue %{x}: %{y:.2e}",
            )  # fmt: skip
    if not figure.data:
        return None
    _style(figure, height=400 + 10 * len(figure.data))
    figure.update_xaxes(title="index", type="log", dtick=1)
    figure.update_yaxes(title="eigenvalue", type="log", exponentformat="power")
    return figure


def _style(figure: go.Figure, height: int) -> None:
    """Apply the common style: transparent background, faint grid, legend above, no decoration."""
    figure.update_layout(
        template=go.layout.Template(), height=height, margin={"l": 64, "r": 16, "t": 16, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", showlegend=True, dragmode=False,
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"},
        legend_font_size=12,
    )  # fmt: skip
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "showline": True, "automargin": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


def _has(item: Candidate, quantity: str) -> bool:
    return bool(_points(item.forecast, quantity) or _points(item.truth, quantity))


def _points(outcome: Outcome | None, quantity: str) -> list[Point]:
    """The points of a curve that have both an epoch and the quantity."""
    curve = outcome.curve if outcome else ()
    return [point for point in curve if point.epoch is not None and getattr(point, quantity) is not None]


def _x(points: list[Point]) -> list[float | None]:
    return [point.epoch for point in points]


def _y(points: list[Point], quantity: str) -> list[float]:
    return [getattr(point, quantity) for point in points]


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _line(index: int) -> dict[str, Any]:
    return {"color": _colour(index), "dash": DASHES[index // len(PALETTE) % len(DASHES)], "width": 2}


def _symbol(index: int) -> str:
    return SYMBOLS[index % len(SYMBOLS)]


def _shortened(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length - 9]}…{name[-8:]}"


def _text(text: str) -> str:
    return escape(text, quote=False)
