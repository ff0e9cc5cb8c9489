"""The smoothed accuracy: against a slow reference, its invariances, and its purpose."""

import math

import numpy as np
import pytest
from cases import tiny_task
from hypothesis import given
from hypothesis import strategies as st

from foretune.forecast.expected import WIDTH, expected_metrics, smoothed_accuracy


def drawn(seed: int, n: int = 40, c: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(c, size=n)
    return generator.normal(size=(n, c)) + 0.8 * np.eye(c)[labels], labels


def counted(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_slow_oracle(seed: int, c: int) -> None:
    logits, labels = drawn(seed, c=c)
    margins = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        margins.append(row[label] - max(value for number, value in enumerate(row) if number != label))
    mean = sum(margins) / len(margins)
    width = WIDTH * math.sqrt(sum((each - mean) ** 2 for each in margins) / len(margins))
    total = 0.0
    for u in (each / width for each in margins):
        density = math.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        total += (1 + math.erf(u / math.sqrt(2))) / 2 + u * density / 2
    assert smoothed_accuracy(logits, labels) == pytest.approx(min(max(total / len(margins), 0), 1), abs=1e-10)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_scale_and_shift_of_logits_do_not_matter(seed: int, factor: float, shift: float) -> None:
    logits, labels = drawn(seed)
    assert smoothed_accuracy(factor * logits + shift, labels) == pytest.approx(smoothed_accuracy(logits, labels))


def test_clear_examples_are_counted() -> None:
    labels = np.arange(60) % 3
    sure = np.eye(3)[labels] + 0.01 * drawn(0, 60)[0]
    assert smoothed_accuracy(sure, labels) == 1
    assert smoothed_accuracy(-sure, labels) == 0


def test_smoothing_keeps_the_mean_and_reduces_the_scatter() -> None:
    """If the outputs of runs scatter, the smoothed accuracy scatters less, around the same mean."""
    logits, labels = drawn(1, 600, 2)
    generator = np.random.default_rng(2)
    runs = [logits + 0.3 * generator.normal(size=logits.shape) for _ in range(200)]
    counts, smooth = ([each(run, labels) for run in runs] for each in (counted, smoothed_accuracy))
    assert np.mean(smooth) == pytest.approx(np.mean(counts), abs=0.003)
    assert np.std(smooth) < 0.9 * np.std(counts)


def test_outputs_that_cannot_be_smoothed_are_counted() -> None:
    task = tiny_task("bert")
    logits, labels = drawn(3)
    logits[5] = math.nan
    assert expected_metrics(task, logits, labels)["eval_metric"] == counted(logits, labels)
    same, ones = np.tile([0.2, 0.5, 0.1], (8, 1)), np.ones(8, dtype=int)
    assert expected_metrics(task, same, ones)["eval_metric"] == 1
    number = tiny_task("bert", num_labels=1)
    x = np.linspace(0, 1, 9)
    assert expected_metrics(number, x[:, None], x**2) == number.compute_metrics(x[:, None], x**2)
