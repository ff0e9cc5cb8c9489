"""Names of candidates: checks of names from users, and labels that become parts of names made by foretune."""

import hashlib
import re
from collections.abc import Sequence

from foretune.task.problems import Problem, shown

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]*")
LONGEST = 120  # characters: file systems allow 255 bytes, and folders of results add endings to the name
LINEARISED = "-linearised"  # the ending of the folder for the linearised run of a candidate


def name_problem(name: str) -> tuple[str, str] | None:
    """Why a name cannot be the name of a folder, and what to write instead; None if it can."""
    if not FOLDER_NAME.fullmatch(name):
        return f"name {shown(name)} cannot be the name of a folder", "use letters, digits, dots, dashes and underscores"
    if len(name) > LONGEST:
        return f"name {shown(name)} has {len(name)} characters", f"use at most {LONGEST}"
    return None


def clashes(names: Sequence[str]) -> list[Problem]:
    """Find candidates whose results would be in the same folder, on any operating system.

    Args:
        names: The names of the candidates.

    Returns:
        One problem for every name that clashes with another.
    """
    problems = []
    first_uses: dict[str, str] = {}
    lowercase = {name.lower(): name for name in reversed(names)}
    for index, name in enumerate(names):
        field, lower = f"candidates[{index}] ({name}).name", name.lower()
        original = lowercase.get(lower.removesuffix(LINEARISED)) if lower.endswith(LINEARISED) else None
        if first_uses.get(lower) == name:
            problems.append(Problem(field, "used twice", "give every candidate its own name"))
        elif lower in first_uses:
            fix = "write another name: some systems treat such folders as the same"
            problems.append(Problem(field, f"differs from {first_uses[lower]} in capital letters only", fix))
        elif original is not None:
            problem = f"the linearised run of {original} is kept in a folder of this name"
            problems.append(Problem(field, problem, f"write another name, such as {original}-linear"))
        first_uses.setdefault(lower, name)
    return problems


def abridged(name: str, limit: int = LONGEST) -> str:
    """Shorten a name of more than ``limit`` characters to its start and a hash of the whole name."""
    return name if len(name) <= limit else f"{name[: limit - 9]}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """A hash of a text, with eight characters."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def targets_label(targets: list[str] | str | None) -> str:
    """A label for target modules, such as ``query+value``."""
    text = "default" if targets is None else targets if isinstance(targets, str) else "+".join(sorted(targets))
    return abridged(re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("._+-"), 40) or "own"


def layers_label(layers: list[int] | int) -> str:
    """A label for layers, such as ``layers3-5``."""
    numbers = sorted({layers} if isinstance(layers, int) else set(layers))
    consecutive = 1 < len(numbers) == numbers[-1] - numbers[0] + 1
    return abridged("layers" + (f"{numbers[0]}-{numbers[-1]}" if consecutive else "+".join(map(str, numbers))), 40)


def rate_label(rate: float) -> str:
    """A learning rate with two digits, such as ``3e-4``."""
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
