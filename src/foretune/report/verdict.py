"""Says in plain words what the numbers show, and no more than they show."""

import math
from typing import Any

from foretune.forecast.compare import Z_90
from foretune.report.numbers import correlation
from foretune.report.read import Candidate, Outcome, Run


def verdict(run: Run) -> list[str]:
    """The opening paragraph as sentences: which candidate is first, its lead, and how well the forecast was tested."""
    forecasts = [item for item in run.candidates if item.forecast]
    if not forecasts:
        return _truth_only(run)
    opening = [*_first(run, forecasts), *_lead(run, forecasts), *_baseline(run, forecasts[0])]
    return [*opening, *_recommended(run), *_tested(run)]


def _truth_only(run: Run) -> list[str]:
    if not run.candidates:
        return ["This directory has neither a forecast nor a real run. It only says how linear a fine-tune was."]
    best = run.candidates[0]
    value = best.truth.eval_metric if best.truth else None
    number = len(run.candidates)
    runs = "The one real run" if number == 1 else f"The best of {number} real runs"
    return [
        f"{runs} is “{best.name}”"
        + (f", with a measured {run.metric.label} of {run.metric.value(value)}." if value is not None else "."),
        "This directory has no forecast: "
        f"run foretune forecast run.yaml -o {run.directory} to compare these runs with one.",
    ]


def _first(run: Run, forecasts: list[Candidate]) -> list[str]:
    name, outcome = forecasts[0].name, forecasts[0].forecast
    if outcome is None or outcome.eval_metric is None:
        return [f"“{name}” is listed first, but its {run.metric.label} could not be forecast."]
    value = run.metric.value(outcome.eval_metric)
    if outcome.band is None:
        return [f"“{name}” is forecast first, with an estimated {run.metric.label} of {value} and no error bar."]
    band = run.metric.difference(outcome.band)
    return [f"“{name}” is forecast first: {run.metric.label} {value} ± {band} (90% interval)."]


def _lead(run: Run, forecasts: list[Candidate]) -> list[str]:
    first, lead = forecasts[0].forecast, lead_over_second(run)
    if len(forecasts) == 1:
        return ["It is the only candidate."]
    if first is None or lead is None:
        return []
    second, bar = forecasts[1], _bar(first, forecasts[1].forecast)
    text = f"Its lead over “{second.name}” is {run.metric.difference(lead)}"
    if bar is None:
        return [f"{text}. Without error bars nobody can tell whether that lead is real."]
    text = f"{text.removesuffix(' points')} ± {run.metric.difference(bar)}"
    verdict = "which of the two is better is open" if lead <= bar else "it is very likely better"
    sentences = [f"{text}: {verdict}."]
    rest, close = len(forecasts) - 1, sum(_within(run, first, item.forecast) for item in forecasts[1:])
    if close:
        others = f"{close} of the other {rest} candidates" if rest > 1 else "the other candidate"
        sentences.append(f"By this forecast, {others} may be as good as the first.")
    return sentences


def lead_over_second(run: Run) -> float | None:
    """How much better the first forecast is than the second, in the unit of the metric."""
    values = [item.forecast.eval_metric for item in run.candidates if item.forecast][:2]
    if len(values) < 2 or values[0] is None or values[1] is None:
        return None
    return run.metric.sign * (values[0] - values[1])


def _bar(first: Outcome, second: Outcome | None) -> float | None:
    """Half the width of the 90% interval of the difference between two independent estimates."""
    if second is None or first.eval_metric_std is None or second.eval_metric_std is None:
        return None
    return Z_90 * math.hypot(first.eval_metric_std, second.eval_metric_std)


def _within(run: Run, first: Outcome, second: Outcome | None) -> bool:
    bar = _bar(first, second)
    if bar is None or second is None or first.eval_metric is None or second.eval_metric is None:
        return False
    return run.metric.sign * (first.eval_metric - second.eval_metric) <= bar


def _baseline(run: Run, first: Candidate) -> list[str]:
    baseline = run.task.get("majority_metric")
    value = first.forecast.eval_metric if first.forecast else None
    if baseline is None or value is None:
        return []
    guessing = f"always guessing the most frequent class scores {run.metric.value(baseline)}"
    if run.metric.sign * (value - baseline) <= 0:
        return [f"That is no better than guessing: {guessing}."]
    return [f"For comparison, {guessing}."]


def _recommended(run: Run) -> list[str]:
    """What a search recommends, compared with the user's own configuration and with a smaller alternative."""
    if "recommended" not in run.roles:
        return []
    first, base = run.roles["recommended"], run.roles["base"]
    if first.name == base.name:
        text = [f"The search found nothing better than “{base.name}”, the configuration in your file."]
    else:
        lead = _lead_over(run, first, base)
        better = f": it is forecast {lead} better" if lead else ""
        text = [f"The search recommends “{first.name}” over “{base.name}”, the configuration in your file{better}."]
    lighter = run.roles.get("lighter")
    if lighter and lighter.trainable_parameters and first.trainable_parameters:
        lead = _lead_over(run, first, lighter)
        worse = f" and is forecast {lead} worse" if lead else ""
        share = f"{100 * lighter.trainable_parameters / first.trainable_parameters:.0f}%"
        text.append(f"“{lighter.name}” has {share} of its parameters{worse}.")
    return text


def _lead_over(run: Run, first: Candidate, second: Candidate) -> str | None:
    """How much better one forecast is than another, or None if one of them is missing."""
    values = [candidate.forecast.eval_metric if candidate.forecast else None for candidate in (first, second)]
    if values[0] is None or values[1] is None:
        return None
    return run.metric.difference(run.metric.sign * (values[0] - values[1]))


def _tested(run: Run) -> list[str]:
    trained = sum(1 for item in run.candidates if item.forecast and item.truth)
    if run.comparison is None:
        text = ["This forecast has not yet been compared with a real run."]
        if trained:
            runs = "1 candidate was" if trained == 1 else f"{trained} candidates were"
            text.append(f"{runs} trained: run foretune compare {run.directory} to measure the error.")
        return text
    return _measured(run, run.comparison["summary"])


def _measured(run: Run, summary: dict[str, Any]) -> list[str]:
    number, error = summary["n"], summary["mean_absolute_error"]
    if not number or error is None:
        return ["It was compared with real runs, but they have no metric to compare."]
    runs = "1 real run" if number == 1 else f"{number} real runs"
    share = summary["share_within_3_points"]
    within = f"; {100 * share:.0f}% were within 3 points" if share is not None and number > 1 else ""
    bias = f" (bias {run.metric.difference(summary['bias'], signed=True)})" if number > 1 else ""
    average = " on average" if number > 1 else ""
    off = f"off by {run.metric.difference(error)}{average}{bias}{within}"
    text = [f"Tested against {runs}, the forecast was {off}."]
    if summary["spearman"] is None:
        text.append("That is too little to judge the ranking.")
    else:
        spearman = correlation(summary["spearman"])
        text.append(f"Its ranking of them has a Spearman correlation of {spearman} with the truth.")
    if number > 1 and summary["regret"] is not None:
        regret = run.metric.difference(summary["regret"])
        text.append(f"The run that it ranked first was {regret} behind the best run.")
    lead = lead_over_second(run)
    if lead is not None and lead < error:
        text.append("The first candidate's lead over the second is smaller than this error.")
    return text
