"""The commands as a user types them, on a tiny model: output, files, exit codes."""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import write_jsonl, write_model, write_tiny_run
from peft import LoraConfig
from task.bad_inputs import CASES, BadInput

import foretune.cli as cli
from foretune.forecast.beginning import BEGIN


def foretune(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["foretune", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_exits_with_2_and_one_message_and_leaves_no_files(
    case: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = case.write(tmp_path)
    capsys.readouterr()  # drop what was printed while the files were written
    assert foretune(monkeypatch, "forecast", path, "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith("error:") and message.count("error:") == 1 and "Traceback" not in message
    assert all(fragment in message for fragment in case.fragments)
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []


def test_a_full_disk_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = write_tiny_run(tmp_path)
    monkeypatch.setattr("os.pwrite", full)
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error:") and "No space left on device" in message and "Traceback" not in message
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []


def test_forecast_train_compare_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(
        tmp_path,
        candidates=[
            {"name": "all", "peft": {"target_modules": "all-linear"}},
            {"name": "query", "peft": {"target_modules": ["query"]}},
        ],
    )
    out = tmp_path / "out"
    assert foretune(monkeypatch, "doctor", run) == 0
    assert "times and sizes are estimated" in capsys.readouterr().out
    assert foretune(monkeypatch, "forecast", run, "-o", out) == 0
    said = capsys.readouterr().out
    best = json.loads((out / "forecast.json").read_text())["candidates"][0]["name"]
    assert f"No candidate learns much: {best} is forecast" in " ".join(said.split()) and "κ" not in said
    assert f"next: foretune train {run} -c {best} -o {out}" in said
    assert foretune(monkeypatch, "forecast", run, "-o", out, "--details") == 0
    said = capsys.readouterr().out
    assert "reused" in said and "κ" in said and "linearised (½‖f − y‖²" in said
    first = json.loads((out / "forecast.json").read_text())
    risks = first["candidates"][0]["kernel"]["risk_bounds"]
    assert risks["steps"] == 12 and 0 <= risks["lower"] <= risks["upper"] <= risks["initial"]
    assert 0 < risks["ridge"] < risks["initial"]
    shutil.rmtree(out / "tangents")
    assert foretune(monkeypatch, "forecast", run, "-o", out, "--details") == 0
    assert "collected in" in capsys.readouterr().out
    second = json.loads((out / "forecast.json").read_text())
    assert [row["predicted"] for row in first["candidates"]] == [row["predicted"] for row in second["candidates"]]
    assert first["collect"]["reused"] and not second["collect"]["reused"]
    assert foretune(monkeypatch, "train", run, "-o", out) == 0
    assert (out / "train" / "all" / "adapter" / "adapter_config.json").exists()
    capsys.readouterr()
    assert foretune(monkeypatch, "train", run, "-c", "all", "-o", out) == 0
    assert "already trained" in capsys.readouterr().out
    assert foretune(monkeypatch, "compare", out) == 0
    said = capsys.readouterr().out
    assert "train 1 more candidate to see how well" in said and "Kendall" not in said
    summary = json.loads((out / "comparison.json").read_text())["summary"]
    assert summary["n"] == 2 and summary["mean_absolute_error"] is not None
    assert foretune(monkeypatch, "report", out) == 0
    assert "query" in (out / "report.html").read_text()


def test_a_forecast_says_which_candidate_to_take_and_how_far_it_is_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    from foretune.cli.forecast import show_choice

    values = (("a", 0.8), ("b", 0.78))
    candidates = [
        {"name": name, "predicted": {"metric_name": "accuracy", "eval_metric": value, "eval_metric_std": 0.02}}
        for name, value in values
    ]
    task = {"metric_name": "accuracy", "majority_metric": 0.5}
    show_choice({"task": task, "candidates": candidates})
    said = " ".join(capsys.readouterr().out.split())
    assert "Take a: accuracy 80.0%" in said and "2.0 points ahead of b" in said and "76% (likely)" in said
    show_choice({"task": task | {"majority_metric": 0.76}, "candidates": candidates})
    said = " ".join(capsys.readouterr().out.split())
    assert "No candidate learns much: a is forecast at accuracy 80.0%, and guessing gives 76.0%" in said
    assert "foretune recommend" in said and "Take " not in said


def test_regret_is_in_points_and_shown_from_three_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    from foretune.cli.compare import show

    summary: dict[str, Any] = {"n": 3, "spearman": 0.5, "kendall": 0.3, "regret": 0.025, "mean_absolute_error": 0.01}
    summary |= {"cost_ratio": None, "noise_floor": None}
    show({"metric_name": "accuracy", "candidates": [], "summary": summary, "rankers": {}, "skipped": []})
    assert "2.5 points" in capsys.readouterr().out


def test_a_recommendation_can_be_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(tmp_path, candidates=[{"name": "base", "peft": {"r": 3}}], training={"learning_rate": 1e-4})
    out = tmp_path / "out"
    assert foretune(monkeypatch, "recommend", run, "-o", out) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "recommendation.json").read_text())
    first, own = found["recommended"], found["base"]
    assert own["name"] == "base-of-file" and own["training"]["learning_rate"] == pytest.approx(1e-4)
    assert "base" in [row["name"] for row in found["searched"]], "the file's candidates compete"
    assert f"best of {len(found['searched'])} fine-tunes" in said and "which the file describes" in said
    assert f"foretune train {out / 'recommended.yaml'} -c {first['name']} -o {out}" in said
    forecasts = json.loads((out / "forecast.json").read_text())["candidates"]
    assert [row["name"] for row in forecasts] == [row["name"] for row in found["searched"]]
    ready = LoraConfig.from_pretrained(str(out))
    assert (ready.r, ready.lora_alpha) == (first["peft"]["r"], first["peft"]["lora_alpha"])
    assert sorted(ready.target_modules or ()) == sorted(first["peft"]["target_modules"])
    assert foretune(monkeypatch, "train", out / "recommended.yaml", "-c", first["name"], "-o", out) == 0
    assert foretune(monkeypatch, "compare", out) == 0
    assert foretune(monkeypatch, "report", out) == 0
    assert f"The search recommends “{first['name']}”" in (out / "report.html").read_text()
    capsys.readouterr()
    assert foretune(monkeypatch, "recommend", write_tiny_run(tmp_path, peft={"bias": "all"}), "-o", out) == 2
    assert "bias" in capsys.readouterr().err


def test_a_run_that_may_collapse_is_begun_unless_the_user_asks_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in ("STEP", "TRAVEL"):
        monkeypatch.setattr(f"foretune.forecast.calibration.{limit}", 1e-6)
    run = write_tiny_run(tmp_path)
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path, "--details") == 0
    assert "Even the simulation gains little over guessing" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "forecast.json").read_text())["candidates"][0]["beginning"] is None
    monkeypatch.setattr("foretune.forecast.calibration.LITTLE", -1.0)
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path, "--details") == 0
    assert "Its real run was begun: after 5 of 12 steps it is" in " ".join(capsys.readouterr().out.split())
    (row,) = json.loads((tmp_path / "forecast.json").read_text())["candidates"]
    assert row["beginning"]["steps"] == math.ceil(BEGIN * 12), "the command line has the library's default"
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path, "--begin", "0", "--details") == 0
    assert "its real run was not begun" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "forecast.json").read_text())["candidates"][0]["beginning"] is None
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path, "--begin", "2") == 2


def test_doctor_shows_all_numbers_beside_long_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(tmp_path)
    for split in ("train", "eval"):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        named = [row | {"label": f"comp.sys.computers.{'good' if row['label'] else 'bad'}.hardware"} for row in rows]
        write_jsonl(tmp_path / f"{split}.jsonl", named)
    assert foretune(monkeypatch, "doctor", run) == 0
    said = capsys.readouterr().out
    assert "tokens, mean" in said and "longest" in said, "column names are whole on a screen of 80 columns"
    assert " ".join(said.split()).count("comp.sys.computers.bad.hardware 24, comp.sys.computers.good.hardware 24") == 1


def test_unwritable_output_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path / "file") == 2
    assert "output directory" in capsys.readouterr().err


def test_commands_without_results_say_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("compare", "report"):
        assert foretune(monkeypatch, command, tmp_path) == 2
        assert "foretune" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "forecast", "train"])
def test_a_model_that_cannot_run_on_the_texts_is_refused_before_anything_is_spent(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(tmp_path, peft={"target_modules": ["q"]})
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", "t5")  # its decoder has no token to start with
    directory = [] if command == "doctor" else ["-o", tmp_path / "out"]
    capsys.readouterr()
    assert foretune(monkeypatch, command, run, *directory) == 2
    message = capsys.readouterr().err
    assert "model.path: T5ForSequenceClassification cannot be run on the texts" in message
    assert "Traceback" not in message


def test_a_result_of_other_settings_is_moved_away_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = write_tiny_run(tmp_path, training={"max_steps": 2})
    assert foretune(monkeypatch, "train", run, "-o", out) == 0
    run = write_tiny_run(tmp_path, training={"max_steps": 3})
    assert foretune(monkeypatch, "train", run, "-o", out) == 0
    assert "it belongs to another run (training.max_steps was 2, now 3); it was moved to" in capsys.readouterr().err
    result = json.loads((out / "train" / "base" / "result.json").read_text())
    assert result["final"]["step"] == 3
    before = json.loads((out / "replaced" / "base-1" / "result.json").read_text())
    assert before["final"]["step"] == 2 and (out / "replaced" / "base-1" / "adapter").is_dir()


UNTRAINABLE = {"name": "odd", "training": {"dataloader_drop_last": True, "per_device_train_batch_size": 64}}
NOISY = {"name": "noisy", "training": {"neftune_noise_alpha": 5.0}}


def test_candidates_that_cannot_be_trained_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = write_tiny_run(tmp_path, candidates=[UNTRAINABLE, NOISY, {"name": "good"}], training={"max_steps": 1})
    assert foretune(monkeypatch, "train", run, "-o", out, "-c", "odd", "-c", "good") == 2
    assert "'odd': training.dataloader_drop_last: no batch is left" in capsys.readouterr().err.replace("\n", " ")
    assert not (out / "train").exists(), "candidates asked for by name are all checked before the first is trained"
    assert foretune(monkeypatch, "train", run, "-o", out, "--linearised") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "left out odd: training.dataloader_drop_last: no batch is left" in shown
    assert "left out noisy: training.neftune_noise_alpha" in shown
    assert [path.name for path in (out / "train").iterdir()] == ["good-linearised"]
    run = write_tiny_run(tmp_path, candidates=[UNTRAINABLE])
    assert foretune(monkeypatch, "train", run, "-o", out) == 2


def test_unknown_candidate_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(tmp_path)
    assert foretune(monkeypatch, "train", run, "-c", "nobody", "-o", tmp_path / "out") == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("peft", "word"),
    [({"bias": "all"}, "bias"), ({"init_lora_weights": "pissa"}, "init_lora_weights"), ({"use_dora": True}, "DoRA")],
    ids=["bias", "pissa", "dora"],
)
def test_adapters_without_tangents_are_refused(
    peft: dict[str, object],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_tiny_run(tmp_path, peft=peft)
    assert foretune(monkeypatch, "forecast", run, "-o", tmp_path / "out") == 2
    assert word.lower() in capsys.readouterr().err.lower()


def test_a_linearised_run_is_kept_beside_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_tiny_run(tmp_path), tmp_path / "out"
    assert foretune(monkeypatch, "forecast", run, "-o", out, "--seeds", 1) == 0
    assert foretune(monkeypatch, "train", run, "--linearised", "-o", out) == 0
    assert foretune(monkeypatch, "compare", out) == 2  # there is no real run yet
    assert "it is a linearised run, not a real one" in capsys.readouterr().err.replace("\n", " ")
    assert foretune(monkeypatch, "train", run, "-o", out) == 0
    capsys.readouterr()
    assert foretune(monkeypatch, "train", run, "--linearised", "-o", out) == 0
    assert "base, linearised: accuracy" in (shown := capsys.readouterr().out) and "already trained" in shown
    assert foretune(monkeypatch, "compare", out) == 0
    assert foretune(monkeypatch, "report", out) == 0
    assert "base (linearised)" in (out / "report.html").read_text()
    true, linear = (
        json.loads((out / "train" / name / "result.json").read_text()) for name in ("base", "base-linearised")
    )
    assert not true["linearised"] and linear["linearised"]
    assert true["curve"][0]["eval_loss"] == pytest.approx(linear["curve"][0]["eval_loss"], rel=1e-5)
    assert true["final"] != linear["final"]


def test_certify_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = [{"name": "plain", "training": {"optim": "sgd", "learning_rate": 0.02}}, {"name": "adam"}]
    run, out = write_tiny_run(tmp_path, candidates=candidates, training={"max_steps": 4}), tmp_path / "out"
    assert foretune(monkeypatch, "train", run, "--certify", "-o", out) == 0
    for name in ("plain", "adam"):
        folder = out / "train" / name
        capsys.readouterr()
        assert foretune(monkeypatch, "certify", run, "--adapter", folder / "adapter", "-o", folder, "--per-layer") == 0
        shown = " ".join(capsys.readouterr().out.split())
        certificate = json.loads((folder / "certificate.json").read_text())
        assert certificate["verdict"].capitalize() in shown and "each layer moved alone" in shown
        assert certificate["bound"]["certified"] is (name == "plain")
        sentence = (
            "Certified: after its 4 steps"
            if name == "plain"
            else "Nothing is certified about the run: the optimiser is"
        )
        assert sentence in shown
    assert foretune(monkeypatch, "report", out) == 0
    page = (out / "report.html").read_text()
    assert "How linear the fine-tunes were" in page and "Certified: after its 4 steps" in page


def test_runs_that_cannot_be_certified_are_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = write_tiny_run(tmp_path, training={"max_steps": 1}), tmp_path / "out"

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert foretune(monkeypatch, *arguments, "-o", out) == 2
        return capsys.readouterr().err

    assert "no such folder" in refused("certify", run, "--adapter", tmp_path / "nowhere")
    assert not (out / "certificate.json").exists()
    assert foretune(monkeypatch, "train", run, "-o", out) == 0
    assert "trained without --certify" in refused("train", run, "--certify")
    assert "linear by construction" in refused("train", run, "--certify", "--linearised")
