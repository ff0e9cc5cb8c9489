"""The pictures of the README, drawn from the results of ``foretune demo``.

    make pictures      # runs the demo, trains the other nine candidates too, and calls this script

``python benchmarks/pictures.py [runs/demo]`` draws ``docs/pictures/forecast.svg``, which has every candidate's forecast
with its 90% interval and the real run, and ``docs/pictures/report.png``, the head of the report as Chromium shows it.
"""

import argparse
import html
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from foretune.forecast.compare import Z_90
from foretune.report import write_report
from foretune.results import read_json

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, LEFT, RIGHT, TOP, ROW = 760, 190, 24, 54, 26
FORECAST, TRUTH, QUIET = "#2563eb", "#ea580c", "#6b7280"


def forecast_svg(comparison: dict[str, Any], title: str) -> str:
    """A row for every candidate: the forecast as a dot with its 90% interval, the real run as a diamond."""
    rows = [
        (
            row["name"],
            row["predicted"]["eval_metric"],
            Z_90 * row["predicted"]["eval_metric_std"],
            row["true"]["eval_metric"],
        )
        for row in comparison["candidates"]
    ]
    low = min(min(value - half, true) for _, value, half, true in rows)
    high = max(max(value + half, true) for _, value, half, true in rows)
    low, high = 0.05 * int(low / 0.05), 0.05 * (int(high / 0.05) + 1)
    height = TOP + ROW * len(rows) + 40

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        f'font-size="13"><rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="600">{html.escape(title)}</text>',
        f'<circle cx="18" cy="40" r="5" fill="{FORECAST}"/>',
        f'<text x="30" y="44" fill="{QUIET}">forecast, 90% interval</text>',
        f'<path d="{_diamond(200, 40)}" fill="{TRUTH}"/><text x="212" y="44" fill="{QUIET}">real run</text>',
    ]
    ticks = round((high - low) / 0.05)
    for number in range(ticks + 1):
        value, bottom = low + 0.05 * number, TOP + ROW * len(rows)
        parts.append(f'<line x1="{x(value)}" x2="{x(value)}" y1="{TOP}" y2="{bottom}" stroke="#e5e7eb"/>')
        label = f'<text x="{x(value)}" y="{bottom + 18}" text-anchor="middle" fill="{QUIET}">{100 * value:.0f}%</text>'
        parts.append(label)
    for number, (name, value, half, true) in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        parts += [
            f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>',
            f'<line x1="{x(value - half)}" x2="{x(value + half)}" y1="{y}" y2="{y}" stroke="{FORECAST}" '
            'stroke-width="3" stroke-linecap="round" opacity="0.35"/>',
            f'<circle cx="{x(value)}" cy="{y}" r="5" fill="{FORECAST}"/>',
            f'<path d="{_diamond(x(true), y)}" fill="{TRUTH}"/>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _diamond(x: float, y: float) -> str:
    return f"M{x} {y - 6}L{x + 6} {y}L{x} {y + 6}L{x - 6} {y}Z"


def report_png(directory: Path, path: Path) -> None:
    """The head of the report as a picture.

    Raises:
        FileNotFoundError: There is no Chromium.
    """
    page = write_report(directory).resolve()
    for browser in BROWSERS:
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [f"--user-data-dir={profile}", "--window-size=1000,640", "--virtual-time-budget=5000"]
            try:
                subprocess.run([*command, f"--screenshot={path}", page.as_uri()], check=True, capture_output=True)
            except FileNotFoundError:
                continue
        return
    raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("runs/demo"))
    directory = parser.parse_args().directory
    PICTURES.mkdir(exist_ok=True)
    comparison = read_json(directory / "comparison.json", f"run: foretune compare {directory}")
    count = len(comparison["candidates"])
    svg = forecast_svg(
        comparison, f"{count} ways to fine-tune MiniLM on movie reviews: forecast before training, and truth"
    )
    (PICTURES / "forecast.svg").write_text(svg, encoding="utf-8")
    report_png(directory, PICTURES / "report.png")
