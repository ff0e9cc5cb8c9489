"""Warnings about data that can be used but probably has a mistake."""

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_rows, tiny_tokenizer, write_jsonl, write_tiny_run

from foretune.forecast.doctor import diagnose, load_run
from foretune.task.config import DataSpec, TableSpec
from foretune.task.data import encode_data, read_data
from foretune.task.data_warnings import data_warnings, few_evaluation_examples

Rows = list[dict[str, Any]]
FREQUENT = {"neg", "pos", "0", "1", "a", "b", "c0", "c1", "0,5", "1,5"}
NO_LABEL = "remove these rows if it means that they have no label"


def warnings_for(folder: Path, train: Rows, test: Rows, regression: bool = False, **keys: Any) -> tuple[str, ...]:
    first, second = (
        TableSpec(path=str(write_jsonl(folder / f"{split}.jsonl", content)))
        for split, content in (("train", train), ("eval", test))
    )
    columns: dict[str, Any] = {"text": "text", "label": "label", "max_length": 32}
    spec = DataSpec(train=first, eval=second, **(columns | keys))
    raw = read_data(spec, regression)
    return data_warnings(raw, encode_data(raw, tiny_tokenizer(), spec.max_length))


def rows(labels: list[Any], start: int = 0) -> Rows:
    """Rows with different texts and these labels."""
    return [
        {"text": f"the film {'good ' * (i % 7)} {'bad ' * (i // 7)}", "label": label}
        for i, label in enumerate(labels, start)
    ]


def test_ordinary_data_gives_no_warnings(tmp_path: Path) -> None:
    assert warnings_for(tmp_path, rows([0, 1] * 10), rows([0, 1] * 5, start=20)) == ()
    assert warnings_for(tmp_path, rows([0.5, -1.0] * 10), rows([0.0, 2.0] * 5, start=20), regression=True) == ()
    run = load_run(write_tiny_run(tmp_path))
    assert run.warnings == few_evaluation_examples(len(run.task.eval)) != ()


def test_few_evaluation_examples_measure_an_accuracy_badly() -> None:
    assert few_evaluation_examples(100) == ()
    (warning,) = few_evaluation_examples(25)
    assert "only 25 examples" in warning and "up to 10 points" in warning and "200 or more" in warning


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            ["neg", "pos"] * 20 + ["neg ", "neg "],
            "the labels 'neg' (21 rows) and 'neg ' (2 rows) differ only in blanks: make them one",
        ),
        (
            ["Neg", "pos", "neg"] * 5,
            "the labels 'Neg' (5 rows) and 'neg' (6 rows) differ only in capital letters: make them one",
        ),
        (
            ["Neg", "pos", " neg"] * 5,
            "the labels ' neg' (5 rows) and 'Neg' (5 rows) differ only in blanks and capital letters: make them one",
        ),
        (
            ["neg", "pos", "neg\u200b"] * 5,
            "the labels 'neg' (6 rows) and 'neg\\u200b' (5 rows) differ only in invisible characters: make them one",
        ),
        (
            ["a", "b", "caf\u00e9", "cafe\u0301"] * 5,
            "the labels 'cafe\u0301' (5 rows) and 'caf\u00e9' (5 rows) differ only in invisible characters: "
            "make them one",
        ),
        (
            ["a", "b", "NEG", "NEG "] * 5,
            "the labels 'NEG' (5 rows) and 'NEG ' (5 rows) differ only in blanks: make them one",
        ),
        (["neg", "pos", "NA"] * 5, "5 rows have the label 'NA', which is used as a class: " + NO_LABEL),
        ([0, 1, -100] * 5, "5 rows have the label '-100', which is used as a class: " + NO_LABEL),
        (["a", "b", "None"] * 5, "5 rows have the label 'None', which is used as a class: " + NO_LABEL),
        (
            ["0,5", "1,5", "2,0"] * 5,
            "the labels, such as '0,5', are numbers with a decimal comma, and count as classes: "
            "if they are ratings, write 0.5 and set task: regression",
        ),
        (
            [f"c{i}" for i in range(30)],
            "30 training examples have 30 different labels: is data.label the column of the labels?",
        ),
        ([0] * 30 + [1] * 2, "training classes are unbalanced: 1 has 2 of 32 examples"),
    ],
)
def test_probable_mistakes_in_labels(labels: list[Any], sentence: str, tmp_path: Path) -> None:
    common = [label for label in dict.fromkeys(labels) if str(label) in FREQUENT]
    warnings = warnings_for(tmp_path, rows(labels), rows(common, start=len(labels)))
    assert sentence in warnings and warnings[0] == sentence


def test_probable_mistakes_in_texts(tmp_path: Path) -> None:
    train = [*rows([0, 1] * 5), {"text": " GOOD film", "label": 0}, {"text": "good film ", "label": 1}]
    train += [{"text": "", "label": 0}, {"text": " \t", "label": 0}]
    test = [{"text": "good film", "label": 1}, {"text": "", "label": 1}, {"text": "was it " * 30, "label": 1}]
    warnings = warnings_for(tmp_path, train, test)
    assert warnings == (
        "1 training texts have different labels in different rows, such as 'good film' ('0' and '1')",
        "all 3 evaluation examples have the label '1': the other classes are not tested",
        "2 evaluation texts are also training texts: the evaluation will look too good",
        "2 training texts are empty or blank",
        "1 evaluation texts are empty or blank",
        "33% of the evaluation examples are cut: is data.max_length too small?",
        "evaluation classes are unbalanced: 0 has 0 of 3 examples",
        "2 training texts occur more than once",
    )


def test_a_pair_is_blank_if_one_of_its_texts_is(tmp_path: Path) -> None:
    train = [{"a": f"good {'bad ' * i}", "b": "" if i == 3 else "film", "label": i % 2} for i in range(6)]
    warnings = warnings_for(
        tmp_path, train, [{"a": "x", "b": "y", "label": 0}, {"a": "x", "b": "z", "label": 1}], text=["a", "b"]
    )
    assert warnings == ("1 training texts are empty or blank",)


def test_constant_and_huge_targets(tmp_path: Path) -> None:
    warnings = warnings_for(tmp_path, rows([1e6, -2.5, 3.0]), rows([2.0, 2.0], start=5), regression=True)
    assert warnings == (
        "all 2 evaluation targets are 2: the correlation counts as 0",
        "training targets go from -2.5 to 1e+06, but a new head starts with outputs near 0: scale them",
    )


def test_training_rows_with_only_one_of_the_classes_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    spec = TableSpec(hub="org/set", split="train")
    raw = read_data(DataSpec(train=spec, eval=spec, text="text", label="label"), False)
    first = data_warnings(raw, encode_data(raw, tiny_tokenizer(), 32))[0]
    assert first == "all 2 training examples have the label 'pos': there is nothing to learn"


def test_doctor_lists_warnings_about_the_run_before_those_about_candidates(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path, peft={"r": 40, "revision": "main"})
    write_jsonl(tmp_path / "eval.jsonl", tiny_rows(48, seed=1)[:4])
    warnings = diagnose(path).warnings
    assert warnings[:3] == load_run(path).warnings
    assert "4 evaluation texts" in warnings[0] and "ignored" in warnings[2] and "r is larger" in warnings[3]
