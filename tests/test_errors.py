"""Messages stay short and on one line, whatever they quote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.errors import InputError, printable, shortened
from foretune.task.problems import Problem, nearest, raise_problems, shown


def test_long_values_are_shortened_in_the_middle() -> None:
    message = str(InputError("/deep" * 1200 + "/run.yaml: data.train", "no such file", "give a file"))
    assert len(message) < 300 and message.startswith("/deep/deep") and "/run.yaml: data.train: no such" in message
    assert shortened("abcdefghij", 10) == "abcdefghij" and shortened("abcdefghijk", 10) == "abcd...ijk"
    assert shown(["x" * 500]) == f"['{'x' * 36}...{'x' * 17}']"


def test_control_characters_are_escaped() -> None:
    message = str(InputError("a\nb", "\x1b[31mred\ud800", "write\xa0it."))
    assert message == r"a\nb: \x1b[31mred\ud800. Write\xa0it."


@given(st.text(max_size=5000), st.integers(0, 300))
def test_any_text_can_be_printed(text: str, more: int) -> None:
    said = printable(text * (1 + more))
    assert said.isprintable() and len(said) <= 3000
    said.encode()


def test_many_problems_are_counted() -> None:
    problems = [Problem(f"field{i}", "x" * 1000, "y" * 1000) for i in range(5000)]
    with pytest.raises(InputError, match=r"5000 problems: .*field9.*and 4990 more") as caught:
        raise_problems("run.yaml", problems)
    assert len(str(caught.value)) < 3000 and "field10" not in str(caught.value)


@pytest.mark.parametrize("name", ["adam_w", "AdamW", "adamw", "adam-w", "Adam"])
def test_other_names_of_an_optimiser(name: str) -> None:
    assert "write adamw_torch," in nearest(name, ["grokadamw", "adafactor", "adamw_torch"])
