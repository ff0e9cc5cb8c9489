"""The report's text, for every combination of results."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_builder import NAMES, certificate_file, forecast_file, full_run, nulled, result_file, write

from foretune.errors import InputError
from foretune.forecast.compare import compare
from foretune.report import numbers, write_report
from foretune.results import write_json

HOSTILE = "<script>alert(1)</script>"
FIGURES = {"ranking", "truth", "curves", "spectrum"}


class Page(HTMLParser):
    """The parts of a page the tests look at: its text outside scripts, elements, and figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open_script: dict[str, str | None] | None = None
        self.figures: dict[str, Any] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open_script = dict(attrs) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self.open_script = None

    def handle_data(self, data: str) -> None:
        if self.open_script is None:
            self.words.append(data)
        elif self.open_script.get("id") == "figures":
            self.figures |= json.loads(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)

    def plots(self) -> set[str | None]:
        return {attrs["data-figure"] for _, attrs in self.elements if "data-figure" in attrs}


def report(directory: Path) -> Page:
    path = write_report(directory)
    assert path == directory / "report.html"
    return Page(path)


def test_forecast_with_truth(tmp_path: Path) -> None:
    page = report(full_run(tmp_path))
    assert set(page.figures) == page.plots() == FIGURES
    assert "“all-linear” is forecast first: accuracy 87.3% ± 1.5 points" in page.text
    assert "lead over “query-value” is 1.8 ± 2.3 points: which of the two is better is open" in page.text
    assert "1 of the other 6 candidates may be as good as the first" in page.text
    # errors +1.2, −0.4, −4.1, +2.0 points
    assert "Tested against 4 real runs, the forecast was off by 1.9 points on average" in page.text
    assert "75% were within 3 points" in page.text
    assert "The first candidate's lead over the second is smaller than this error." in page.text
    assert "κ ignores labels and kernel scale; it does not rank placements" in page.text
    for shown in ("1.2e4", "294,912", "−4.1", "the linear picture is weak", "num_train_epochs: 6", "torch"):
        assert shown in page.text
    assert "0.25 0.217 48 0.0912" in page.text  # P5, beside the figures of the kernel
    assert "certif" not in page.text.lower()


def test_forecast_only(tmp_path: Path) -> None:
    page = report(write(tmp_path, forecast_file(), []))
    assert set(page.figures) == page.plots() == FIGURES - {"truth"}
    assert "not yet been compared with a real run" in page.text
    assert "foretune train run.yaml --candidate NAME" in page.text
    assert "Tested against" not in page.text


def test_what_a_search_recommends(tmp_path: Path) -> None:
    roles = {"recommended": "all-linear", "base": "top-layers", "lighter": "query-value"}
    page = report(write(tmp_path, forecast_file() | {"roles": roles}, []))
    recommended = "The search recommends “all-linear” over “top-layers”, the configuration in your file"
    assert f"{recommended}: it is forecast 3.6 points better." in page.text
    assert re.search(r"“query-value” has \d+% of its parameters and is forecast 1\.8 points worse\.", page.text)
    same = {"recommended": "all-linear", "base": "all-linear", "lighter": None}
    page = report(write(tmp_path, forecast_file() | {"roles": same}, []))
    assert "The search found nothing better than “all-linear”, the configuration in your file." in page.text
    page = report(write(tmp_path, nulled(forecast_file()) | {"roles": roles}, []))
    assert f"{recommended}." in page.text


def test_truth_without_comparison_says_how_to_compare(tmp_path: Path) -> None:
    page = report(write(tmp_path, forecast_file(), [result_file("all-linear")]))
    assert set(page.figures) == FIGURES
    assert f"1 candidate was trained: run foretune compare {tmp_path}" in page.text


def test_truth_only(tmp_path: Path) -> None:
    page = report(write(tmp_path, None, [result_file("b", 1), result_file("a"), result_file("a", linearised=True)]))
    assert set(page.figures) == {"ranking", "curves"}
    assert "The best of 3 real runs is “a”, with a measured accuracy of 87.3%" in page.text
    assert "a (linearised)" in page.text
    assert "κ" not in page.text


def test_nothing_to_report_names_the_commands(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"foretune forecast run\.yaml -o .* or foretune train"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    plain = report(full_run(_folder(tmp_path, "plain")))
    names = [HOSTILE, "</details>&lt;", *NAMES[2:]]
    forecast = forecast_file(names, name=HOSTILE, model=HOSTILE)
    forecast["candidates"][0]["warnings"] = [HOSTILE]
    forecast["candidates"][0]["peft"]["r"] = HOSTILE
    directory = write(_folder(tmp_path, "hostile"), forecast, [])
    page = report(directory)
    text = (directory / "report.html").read_text()
    assert HOSTILE not in text
    assert page.count("script") == plain.count("script") == 3
    assert page.text.count(HOSTILE) >= 5
    legend = [trace["name"] for trace in page.figures["spectrum"]["data"]]
    assert not any("<" in name for name in legend)
    assert unescape(legend[0]).startswith("<script>")


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = report(full_run(tmp_path))
    assert not [tag for tag, attrs in page.elements if tag in ("link", "img", "iframe") or {"src", "href"} & set(attrs)]
    style = (tmp_path / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policies = [attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs]
    assert policies and "default-src 'none'" in str(policies[0])


@pytest.mark.parametrize("with_forecast", [True, False])
def test_every_number_may_be_null(tmp_path: Path, with_forecast: bool) -> None:
    forecast = nulled(forecast_file()) if with_forecast else None
    page = report(write(tmp_path, forecast, [nulled(result_file("all-linear"))]))
    assert page.figures == {}
    assert page.plots() == set()
    assert not re.search(r"\b(None|nan|null)\b", page.text)


def test_empty_lists_and_missing_fields(tmp_path: Path) -> None:
    forecast = forecast_file(["only"])
    forecast["candidates"][0] |= {"predicted": {}, "kernel": {}, "cost": {}, "warnings": []}
    page = report(write(tmp_path, forecast | {"task": {}, "collect": {}}, []))
    assert "It is the only candidate." in page.text
    assert "Warnings None." in page.text


def test_a_regression_metric_has_three_decimals_and_no_points(tmp_path: Path) -> None:
    directory = write(
        tmp_path, forecast_file(metric="pearson"), [result_file("all-linear", off=0.01, metric="pearson")]
    )
    compare(directory)
    page = report(directory)
    assert "forecast first: pearson 0.873 ± 0.015" in page.text
    assert "points" not in page.text.replace("trainable", "")
    assert "87.3%" not in page.text
    assert "±3 points" not in json.dumps(page.figures, ensure_ascii=False)
    assert "Tested against 1 real run, the forecast was off by 0.010. That is too little" in page.text


def test_a_stale_result_is_left_out(tmp_path: Path) -> None:
    page = report(write(tmp_path, forecast_file(), [result_file("all-linear", 3)]))
    assert "train/run0/result.json (all-linear) is left out: stale: peft.r is" in page.text
    assert "truth" not in page.figures


def test_a_comparison_of_other_numbers_is_left_out(tmp_path: Path) -> None:
    full_run(tmp_path)
    write_json(tmp_path / "train" / "run0" / "result.json", result_file("all-linear", off=0.1))
    page = report(tmp_path)
    assert "comparison.json does not match the results" in page.text
    assert "not yet been compared" in page.text


def test_a_forecast_no_better_than_guessing_says_so(tmp_path: Path) -> None:
    page = report(write(tmp_path, forecast_file(majority_metric=0.9), []))
    assert "no better than guessing: always guessing the most frequent class scores 90.0%" in page.text


def test_a_clear_lead_and_a_lead_without_error_bars(tmp_path: Path) -> None:
    forecast = forecast_file()
    for item in forecast["candidates"]:
        item["predicted"]["eval_metric_std"] = 0.001
    assert "± 0.2 points: it is very likely better" in report(write(tmp_path, forecast, [])).text
    for item in forecast["candidates"]:
        item["predicted"]["eval_metric_std"] = None
    assert "nobody can tell whether that lead is real" in report(write(tmp_path, forecast, [])).text


def test_how_linear_the_fine_tunes_were(tmp_path: Path) -> None:
    full_run(tmp_path)
    write_json(tmp_path / "train" / "run0" / "certificate.json", certificate_file("all-linear"))
    page = report(tmp_path)
    for shown in (
        "Nearly linear: off by 0.23. Certified: within 0.5.",
        "train/run0/adapter",
        "0.512",
        "84.5%",
        "97.0%",
    ):
        assert shown in page.text
    assert "all-linear: one layer at a time" in page.text and "encoder.layer.0.query" in page.text
    assert "train/run0/certificate.json" in page.text  # where the numbers come from
    bound = {"certified": False, "reason": "the optimiser is AdamW", "parameters": None}
    write_json(tmp_path / "train" / "run0" / "certificate.json", certificate_file(HOSTILE, bound=bound, layers=[]))
    page = report(tmp_path)
    assert "certified outputs" not in page.text and "one layer at a time" not in page.text
    assert HOSTILE in page.text and HOSTILE not in (tmp_path / "report.html").read_text()


def test_a_certificate_alone_is_reported(tmp_path: Path) -> None:
    write_json(tmp_path / "certificate.json", certificate_file("mine"))
    page = report(tmp_path)
    assert "It only says how linear a fine-tune was" in page.text and "How linear the fine-tunes were" in page.text
    write_json(tmp_path / "certificate.json", nulled(certificate_file("mine")))
    assert not re.search(r"\b(None|nan|null)\b", report(tmp_path).text)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.scientific(12_345), "1.2e4"),
        (numbers.scientific(0.00031), "3.1e−4"),
        (numbers.scientific(41.26), "41.3"),
        (numbers.scientific(0), "0"),
        (numbers.scientific(999.9), "1.0e3"),
        (numbers.Metric("accuracy").value(0.87349), "87.3%"),
        (numbers.Metric("accuracy").difference(0.01), "1.0 point"),
        (numbers.Metric("accuracy").difference(-0.0001, signed=True), "0.0 points"),
        (numbers.Metric("mse").value(1.23456), "1.235"),
        (numbers.Metric(None).value(None), "–"),
        (numbers.seconds(0.4321), "0.43 s"),
        (numbers.seconds(59.7), "1.0 min"),
        (numbers.seconds(7300), "2.0 h"),
        (numbers.size(123_456_789), "117.7 MiB"),
        (numbers.ratio(0.0204), "0.02×"),
    ],
)
def test_numbers_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected
