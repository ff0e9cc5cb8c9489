"""The demo's data: labels, cleaning and splits."""

import json
from pathlib import Path

import pytest
from demo_archives import RATINGS

from foretune.demo.data import clean, movie_splits, write_movie_data
from foretune.errors import InputError


def _many(count: int) -> list[str]:
    return [f"{i}\t{(-1) ** i * 2.0}\tsentence number {i}" for i in range(count)]


def _write(folder: Path, content: str) -> Path:
    path = folder / "ratings.txt"
    path.write_bytes(content.encode())
    return path


def test_clear_ratings_become_labels_and_repeated_texts_are_removed(tmp_path: Path) -> None:
    train, evaluation = movie_splits(_write(tmp_path, RATINGS))
    labels = {row["text"]: row["label"] for row in train + evaluation}
    assert labels == {
        "A fine film": "positive",
        "Effective but tepid": "negative",
        "just “clear” enough…": "positive",
    }
    assert len(train + evaluation) == 3


def test_clean_replaces_windows_characters_and_white_space() -> None:
    assert clean(" don\x92t \t stop\x97ever\x85 \xa0\n") == "don’t stop—ever…"
    assert clean("a\x81b") == "a b"  # a character in neither encoding
    assert clean("cliché – 9 ½") == "cliché – 9 ½"


def test_splits_do_not_overlap_and_have_the_stated_shares(tmp_path: Path) -> None:
    train, evaluation = movie_splits(_write(tmp_path, "\n".join(_many(2000)) + "\n"))
    one, other = ({row["text"].casefold() for row in rows} for rows in (train, evaluation))
    assert len(one) + len(other) == len(train) + len(evaluation) == 2000
    assert not one & other
    assert 0.12 < len(evaluation) / 2000 < 0.18
    for rows in (train, evaluation):
        assert 0.4 < sum(row["label"] == "positive" for row in rows) / len(rows) < 0.6
    first = [int(row["text"].split()[-1]) for row in train[:100]]
    assert 700 < sum(first) / 100 < 1300, "the rows are in the order of the file"


def test_splits_depend_only_on_the_texts(tmp_path: Path) -> None:
    lines = _many(300)
    train, evaluation = movie_splits(_write(tmp_path, "\n".join(lines)))
    assert movie_splits(_write(tmp_path, "\r\n".join(reversed(lines)) + "\r\n")) == (train, evaluation)
    fewer, _ = movie_splits(_write(tmp_path, "\n".join(lines[:200])))
    texts = {row["text"] for row in fewer}
    assert fewer == [row for row in train if row["text"] in texts]
    assert evaluation[0]["text"] == "sentence number 65"  # the same on every machine and in every version


def test_written_splits_are_always_the_same_bytes(tmp_path: Path) -> None:
    ratings = _write(tmp_path, "\n".join(_many(50)) + "\n51\t3.0\tcliché\n")
    first, second = (write_movie_data(ratings, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    rows = [json.loads(line) for path in first for line in path.read_text(encoding="utf-8").splitlines()]
    assert {"text": "cliché", "label": "positive"} in rows
    assert all(set(row) == {"text", "label"} for row in rows)


@pytest.mark.parametrize("line", ["2\t1.0", "2\tmuch\tgood", ""])
def test_the_message_names_the_damaged_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"ratings.txt, line 2: the line is not an id, a number and a text"):
        movie_splits(_write(tmp_path, f"1\t1.0\tgood\n{line}\n3\t1.0\tfine\n"))
