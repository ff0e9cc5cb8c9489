"""The beginning of a real run: which runs are begun, that its steps are those of the real run, and how it is used."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_simulate import SCHEDULE, loaded, real_run
from torch import nn

from foretune.forecast.beginning import Beginning, begin
from foretune.forecast.forecast import begun, forecast
from foretune.results import read_json, write_json
from foretune.task import Candidate


def beginning(train: float, simulated: float, guess: float = 0.7) -> Beginning:
    return Beginning(16, 64, train, simulated, guess, seconds=1.0)


@pytest.mark.parametrize(
    ("train", "simulated", "followed"),
    [
        (0.7, 0.3, 0.0),
        (0.9, 0.3, 0.0),
        (0.5, 0.3, 0.5),
        (0.1, 0.3, 1.0),
        (0.7 - 0.035, 0.7, 0.5),  # the simulation learnt little: a tenth of the loss of guessing counts instead
        (0.6, 0.9, 1.0),
        (math.nan, 0.3, 0.0),
        (math.inf, 0.3, 0.0),
        (0.7, math.nan, 0.0),
    ],
)
def test_the_real_run_is_compared_with_what_its_simulation_learnt(
    train: float, simulated: float, followed: float
) -> None:
    assert beginning(train, simulated).followed == pytest.approx(followed)


@given(*[st.floats(allow_nan=True, allow_infinity=True)] * 2)
def test_the_share_followed_is_between_0_and_1(train: float, simulated: float) -> None:
    assert 0 <= beginning(train, simulated).followed <= 1


@pytest.mark.parametrize("training", [{}, SCHEDULE], ids=["plain", "schedule"])
def test_a_beginning_takes_the_same_first_steps_as_the_real_run(training: dict[str, Any], tmp_path: Path) -> None:
    """Also after evaluations, which are left out but draw their random numbers."""
    task, candidate, _ = loaded(tmp_path, num_train_epochs=3, **training)
    real, _, _ = real_run(task, candidate, tmp_path / "real")
    total = len(real.step_losses)
    assert total == real.final["step"]
    last = real.step_losses[real.curve[-2]["step"] :]  # losses of the last epoch
    assert np.mean(last) == pytest.approx(real.final["train_loss"], rel=1e-4)
    told: list[tuple[int, int]] = []
    found = begin(task, candidate, [1.0] * total, share=0.5, progress=lambda *at: told.append(at))
    half = math.ceil(total / 2)
    assert (found.steps, found.max_steps, found.simulated_loss) == (half, total, 1.0)
    assert found.train_loss == np.mean(real.step_losses[half // 2 : half])
    assert told[-1] == (half, total) and list(tmp_path.glob("**/checkpoint-*")) == []


def test_a_beginning_is_kept_for_the_same_task_and_configuration(tmp_path: Path, monkeypatch: Any) -> None:
    task, candidate, _ = loaded(tmp_path, num_train_epochs=3)
    first = begin(task, candidate, [1.0] * 9, share=0.5, directory=tmp_path)
    kept = tmp_path / "begun" / f"{candidate.name}.json"
    assert read_json(kept, "")["seed"] == candidate.seed and len(read_json(kept, "")["losses"]) == first.steps
    again = partial(begin, task, candidate, [1.0] * 9, directory=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("foretune.forecast.beginning.run_trainer", lambda *_, **__: pytest.fail("begun again"))
        assert again(share=0.5) == replace(first, seconds=round(first.seconds, 3))
    assert again(share=0.25).steps < first.steps  # another share, which replaces the kept one
    faster = replace(candidate, training=candidate.training | {"learning_rate": 0.5})
    assert begin(task, faster, [1.0] * 9, share=0.25, directory=tmp_path).train_loss != again(share=0.25).train_loss
    said: list[str] = []
    for damaged in ("[]", kept.read_text().replace('"share": 0.25', '"share": 0.50')):
        kept.write_text(damaged, encoding="utf-8")
        assert again(share=0.5, notify=said.append).train_loss == first.train_loss
    assert len(said) == 2 and all(str(kept) in text and "made again" in text for text in said)
    content = read_json(kept, "")
    write_json(kept, content | {"losses": [math.inf] * first.steps})
    assert math.isnan(again(share=0.5).train_loss)


def test_guessing_has_the_smallest_loss_of_all_constant_predictions(tmp_path: Path) -> None:
    task, _, _ = loaded(tmp_path)
    labels = torch.tensor(task.train["labels"])
    assert task.guess_loss == pytest.approx(least_loss_of_a_constant(nn.functional.cross_entropy, 2, labels), rel=1e-6)
    task.loss = "mean_squared_error"
    squared = least_loss_of_a_constant(lambda f, y: (f.squeeze(1) - y).square().mean(), 1, labels.double())
    assert task.guess_loss == pytest.approx(squared, rel=1e-6)


def least_loss_of_a_constant(loss: Any, outputs: int, labels: torch.Tensor) -> float:
    """The smallest loss of the same outputs for all examples, found by gradient descent."""
    constant = torch.zeros(1, outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(constant.expand(len(labels), -1), labels)
        value.backward()
        return value

    optimizer.step(closure)
    return float(closure().detach())


def test_only_runs_that_may_collapse_are_begun(tmp_path: Path, monkeypatch: Any) -> None:
    for limit in ("ASTRAY", "TRAVEL"):
        monkeypatch.setattr(f"foretune.forecast.calibration.{limit}", math.inf)
    task, candidate, tangents = loaded(tmp_path, learning_rate=0.004, num_train_epochs=12)
    weak = Candidate("weak", candidate.peft, candidate.training | {"learning_rate": 1e-5})
    strong, other = forecast(tangents, task, [candidate, weak])
    assert strong.candidate is candidate
    assert all(each.beginning is None for each in begun([strong, other], task, 0.25))
    before = strong.seconds
    monkeypatch.setattr("foretune.forecast.calibration.TRAVEL", strong.reach.travel - 1e-9)
    assert strong.unstable and [each.beginning for each in begun([strong, other], task, 0.0)] == [None, None]
    with monkeypatch.context() as patched:  # the simulation gains too little
        patched.setattr("foretune.forecast.calibration.LITTLE", strong.known.eval_metric - strong.guess + 1e-9)
        assert [each.beginning for each in begun([strong, other], task, 0.5)] == [None, None] and strong.unstable
        assert not strong.to_begin
    assert strong.to_begin
    fallen = strong.eval_metric
    ranked = begun([strong, other], task, 0.5)
    assert other.beginning is None and strong.beginning is not None and strong.seconds > before
    assert strong.beginning.simulated_loss == np.mean(
        strong.runs[0].step_losses[strong.beginning.steps // 2 : strong.beginning.steps]
    )
    assert (
        strong.beginning.followed > 0.25 and not strong.unstable and ranked[0] is strong and strong.eval_metric > fallen
    )
    assert strong.to_json()["beginning"]["followed"] == strong.followed
    assert other.to_json()["beginning"] is None and any(
        "was begun: after" in warning.text for warning in strong.warnings
    )
