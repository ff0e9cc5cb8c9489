"""Modules that ``Trainer`` asks for their parameters many times a step."""

from collections.abc import Iterator

from torch import nn


class Unwalked(nn.Module):
    """A module that gives its parameters, as they were when ``know_parameters`` was called, without a walk."""

    _known: tuple[tuple[str, nn.Parameter], ...]

    def know_parameters(self) -> None:
        """From here on none is added or replaced."""
        self._known = tuple(super().named_parameters())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module, without a walk, thrice in every step, through a tree as deep as the peft model's."""
        if prefix or not recurse:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        return iter(self._known)
