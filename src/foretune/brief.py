"""A short ``repr`` for objects that hold tensors: it shows shapes and counts instead of numbers."""

import dataclasses
from collections.abc import Mapping, Sized
from typing import Any


def brief(self: Any) -> str:
    """The ``__repr__`` of a dataclass in the form ``Name(field=(12, 3), other=7 items, number=0.5)``."""
    fields = (field for field in dataclasses.fields(self) if field.repr)
    return (
        f"{type(self).__name__}({', '.join(f'{field.name}={_shown(getattr(self, field.name))}' for field in fields)})"
    )


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return str(tuple(shape))
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    if isinstance(value, Mapping | Sized):
        return f"{len(value)} items"
    return type(value).__name__
