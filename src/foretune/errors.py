"""The one exception for mistakes in what the user gave us."""

import re

LONGEST_WORD = 200  # characters of a path, pattern or other text without blanks
LONGEST_PART = 3000  # characters of one of the three parts of a message


class InputError(ValueError):
    """The input is wrong: the message names the place, what was found there, and what to write instead.

    The command line prints it as one line and exits with code 2. Long values are shortened in the middle, and
    characters that cannot be printed are written as escapes.

    Args:
        where: The file and field, such as ``run.yaml: data.label``.
        found: What is there, such as ``no column 'sentiment' in train.jsonl``.
        fix: What to write instead, such as ``write one of: text, label``.
    """

    def __init__(self, where: str, found: str, fix: str) -> None:
        self.where, self.found, self.fix = map(printable, (where, found, fix))
        super().__init__(f"{self.where}: {self.found}. {self.fix[:1].upper()}{self.fix[1:].rstrip('.')}.")


def shortened(text: str, limit: int) -> str:
    """``text`` with its middle left out where it has more than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def printable(text: str) -> str:
    """``text`` on one line, as it may appear in a message: short, and without control characters."""
    escaped = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    words = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda match: shortened(match.group(), LONGEST_WORD), escaped)
    return shortened(words, LONGEST_PART)
