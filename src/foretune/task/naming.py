"""What fine-tunes are called that nobody has named: by what is special about them."""

import re


def label(targets: list[str] | str | None) -> str:
    """Target modules, such as ``query+value``."""
    text = "default" if targets is None else targets if isinstance(targets, str) else "+".join(sorted(targets))
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("._+-")[:40] or "own"


def span(layers: list[int] | int) -> str:
    """Layers, such as ``layers3-5``."""
    numbers = sorted({layers} if isinstance(layers, int) else set(layers))
    row = 1 < len(numbers) == numbers[-1] - numbers[0] + 1
    return "layers" + (f"{numbers[0]}-{numbers[-1]}" if row else "+".join(map(str, numbers)))


def short(rate: float) -> str:
    """A learning rate to two digits, such as ``3e-4``."""
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
