"""The report in a real browser: every plot draws, nothing is fetched or logged as an error."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_builder import full_run

from foretune.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=10000 --dump-dom"
).split()


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome in PATH")
def test_every_plot_draws(tmp_path: Path) -> None:
    assert BROWSER is not None
    hostile = "<script>alert(1)</script>"
    page = write_report(full_run(tmp_path, [hostile, "b", "c", "d", "e"]))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    errors = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not errors, errors

    body = done.stdout.partition("<main>")[2].partition("</main>")[0]
    drawn = dict(re.findall(r'id="plot-(\w+)"(.*?)(?=id="plot-|</section>)', body, re.S))
    assert set(drawn) == {"ranking", "truth", "curves", "spectrum"}
    for name, content in drawn.items():
        assert content.count("main-svg") >= 2, name
        assert "NaN" not in content, name
    points = {name: len(re.findall(r'<path class="point[ "]', content)) for name, content in drawn.items()}
    # the three candidates shown at first were really trained: 7 + 7 + 6 points (no training loss at step 0)
    assert points == {"ranking": 5 + 4, "truth": 4, "curves": 3 * 20, "spectrum": 0}
    assert drawn["ranking"].count('class="xerror"') == 5
    traces = {name: content.count('class="trace scatter') for name, content in drawn.items()}
    assert traces == {"ranking": 3, "truth": 4 + 2, "curves": 3 * (3 + 3 + 2), "spectrum": 3}
    assert all("&lt;script&gt;" in content for content in drawn.values())
    assert hostile not in body
