from pathlib import Path

import pytest

from foretune.errors import InputError
from foretune.task import load_task

from .bad_inputs import CASES, BadInput


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_message_names_the_place_the_problem_and_the_fix(case: BadInput, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    with pytest.raises(InputError) as caught:
        load_task(path)
    message = str(caught.value)
    assert [fragment for fragment in case.fragments if fragment not in message] == [], message
    assert "\n" not in message
    for jargon in ("pydantic", "Traceback", "type=", "NoneType"):
        assert jargon not in message
    assert (message.endswith(".") and message[-2].isalnum()) or message[-2] in ")]}'"


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 25
