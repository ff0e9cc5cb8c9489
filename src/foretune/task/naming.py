"""What candidates are called: what a name may be, and names for those that nobody has named."""

import hashlib
import re
from collections.abc import Sequence

from foretune.task.problems import Problem, shown

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]*")
LONGEST = 120  # characters: file systems take 255 bytes, and results add to a name
LINEARISED = "-linearised"  # what the linearised run of a candidate adds to its name


def unusable(name: str) -> tuple[str, str] | None:
    """Why a name cannot name a folder, and what to write instead; None if it can."""
    if not FOLDER_NAME.fullmatch(name):
        return f"name {shown(name)} cannot name a folder", "use letters, digits, dots, dashes and underscores"
    if len(name) > LONGEST:
        return f"name {shown(name)} has {len(name)} characters", f"use {LONGEST} at most"
    return None


def clashes(names: Sequence[str]) -> list[Problem]:
    """Names whose results would go to the same folder, on any system."""
    problems = []
    seen: dict[str, str] = {}
    folded = {name.lower(): name for name in reversed(names)}
    for index, name in enumerate(names):
        field, lower = f"candidates[{index}] ({name}).name", name.lower()
        plain = folded.get(lower.removesuffix(LINEARISED)) if lower.endswith(LINEARISED) else None
        if seen.get(lower) == name:
            problems.append(Problem(field, "used twice", "give each candidate its own name"))
        elif lower in seen:
            fix = "write another name: some systems do not tell such folders apart"
            problems.append(Problem(field, f"differs from {seen[lower]} in capital letters only", fix))
        elif plain is not None:
            found = f"the linearised run of {plain} goes to a folder of this name"
            problems.append(Problem(field, found, f"write another name, such as {plain}-linear"))
        seen.setdefault(lower, name)
    return problems


def abridged(name: str, limit: int = LONGEST) -> str:
    """A name as it is, or, if it has more than ``limit`` characters, its beginning and a hash of all of it."""
    return name if len(name) <= limit else f"{name[: limit - 9]}-{digest(name)}"


def digest(text: str) -> str:
    """Eight characters that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def label(targets: list[str] | str | None) -> str:
    """Target modules, such as ``query+value``."""
    text = "default" if targets is None else targets if isinstance(targets, str) else "+".join(sorted(targets))
    return abridged(re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("._+-"), 40) or "own"


def span(layers: list[int] | int) -> str:
    """Layers, such as ``layers3-5``."""
    numbers = sorted({layers} if isinstance(layers, int) else set(layers))
    row = 1 < len(numbers) == numbers[-1] - numbers[0] + 1
    return abridged("layers" + (f"{numbers[0]}-{numbers[-1]}" if row else "+".join(map(str, numbers))), 40)


def short(rate: float) -> str:
    """A learning rate to two digits, such as ``3e-4``."""
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
