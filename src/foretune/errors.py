"""The exception for mistakes in the user's input."""

import re
from collections.abc import Mapping

LONGEST_WORD = 200  # the most characters of a path, pattern or other text without spaces
LONGEST_PART = 3000  # the most characters of one of the three parts of a message


class InputError(ValueError):
    """Reports wrong input: the message names the place, the problem, and what to write instead.

    The command line prints the message as one line and exits with code 2. Long values are shortened in the middle.
    Unprintable characters are written as escape sequences.

    Args:
        where: The place: file and key, such as ``run.yaml: data.label``.
        found: The problem, such as ``no column 'sentiment' in train.jsonl``.
        fix: What to write instead, such as ``write one of: text, label``.
    """

    def __init__(self, where: str, found: str, fix: str) -> None:
        self.where, self.found, self.fix = map(printable, (where, found, fix))
        super().__init__(self._message(self.where))

    @property
    def without_file(self) -> str:
        """The message without the file and the candidate, for lists that already name them."""
        return self._message(self.where.split(": ")[-1])

    def _message(self, where: str) -> str:
        return f"{where}: {self.found}. {self.fix[:1].upper()}{self.fix[1:].rstrip('.')}."


def left_out(problems: Mapping[str, InputError]) -> list[dict[str, str]]:
    """Names and reasons of the candidates that are left out, as ``forecast.json`` lists them, from their problems."""
    return [{"name": name, "reason": error.without_file} for name, error in problems.items()]


def shortened(text: str, limit: int) -> str:
    """Leave out the middle of a text that has more than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def printable(text: str) -> str:
    """Make a text fit for a message: one line, shortened, and without control characters."""
    escaped = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    words = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda match: shortened(match.group(), LONGEST_WORD), escaped)
    return shortened(words, LONGEST_PART)
