"""The code blocks of a page, and what is needed to run them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|slow)(?::[^>]*)? -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line on which it begins.

    A comment ``<!-- not run: reason -->`` before it keeps it from being run, ``<!-- slow -->`` from being run but by
    ``make docs``.
    """

    kind: str
    text: str
    line: int
    mark: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    content = page.read_text(encoding="utf-8")
    return [
        Block(found["kind"], found["text"], content[: found.start("text")].count("\n") + 1, found["mark"])
        for found in FENCE.finditer(content)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block, without comments; a line that ends in a backslash goes on in the next."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
