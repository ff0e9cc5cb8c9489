"""A module that lists its parameters quickly, because ``Trainer`` asks for them several times in every step."""

from collections.abc import Iterator

from torch import nn


class Unwalked(nn.Module):
    """A module that stores the list of its parameters, so that listing them needs no search through submodules."""

    _known: tuple[tuple[str, nn.Parameter], ...]

    def know_parameters(self) -> None:
        """Store the list of parameters. After this call no parameter may be added or replaced."""
        self._known = tuple(super().named_parameters())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """List the parameters by name, as any module does, from the stored list.

        ``Trainer`` calls it three times in every step, and the tree of modules is as deep as the peft model's.
        """
        if prefix or not recurse:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        return iter(self._known)
