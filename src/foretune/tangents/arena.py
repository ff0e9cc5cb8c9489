"""Room for the rows of a whole data set, filled batch by batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from foretune.errors import InputError
from foretune.tangents import store
from foretune.tangents.compress import Ranks, low_rank
from foretune.tangents.hooks import Call, Rows
from foretune.tangents.products import product_dtype
from foretune.tangents.tangents import Entry


class Arena(Rows):
    """Rows go into memory or into a file as they come, or, compressed to a rank, when their batch is done.

    Args:
        calls: Those of any batch.
        num_outputs: Directions of the gradients.
        lengths: Tokens of each example, in the order in which they come; None without tokens.
        num_examples: Of the data set.
        dtype: How rows are kept.
        folder: Where to write them; None: in memory.
        ranks: Rows of every example to which calls are compressed, by the first call with the same input.
        device: Where batches are computed.

    Attributes:
        entries: What is kept: of each call, then the rest of those that are kept in two parts.
    """

    def __init__(
        self,
        calls: list[Call],
        num_outputs: int,
        lengths: list[int] | None,
        num_examples: int,
        dtype: torch.dtype,
        folder: Path | None,
        ranks: Mapping[int, Ranks],
        device: torch.device,
    ) -> None:
        super().__init__(device)
        self.product = product_dtype(dtype, device)
        self.plain: dict[int, int | None] = {}  # rows of every example of a call, None: one a token
        for call in calls:
            by_token = call.by_token and lengths is not None
            self.plain[call.position] = None if by_token else int(call.row_counts[0])
        self.entries, self.rest = _entries(calls, ranks, self.plain)
        spec: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for number, entry in enumerate(self.entries):
            fixed, (wide_in, wide_out) = entry.rows_per_example, entry.widths
            rows = sum(lengths or ()) if fixed is None else fixed * num_examples
            if entry.inputs == number:
                spec[f"inputs.{number}"] = ((rows, wide_in), dtype)
            spec[f"gradients.{number}"] = ((rows, num_outputs, wide_out), dtype)
        self.spec, self.ranks = spec, ranks
        self.file = None if folder is None else store.RowFile(folder / store.ROWS, spec)
        # all rows, or, where a file takes them, those of one batch: memory that is used again
        self.tensors = {
            name: torch.empty(0 if self.file else shape, dtype=kind) for name, (shape, kind) in spec.items()
        }
        self.spare = dict(self.tensors)  # a file is still reading the one set while the other is filled
        self.written: dict[str, tuple[int, Tensor]] = {}
        self.groups = {shared: [call.position for call in calls if call.shared == shared] for shared in ranks}
        self.widths = {  # of the gradients of a group's calls, which lie side by side before they are compressed
            shared: [num_outputs * calls[position].widths[1] for position in group]
            for shared, group in self.groups.items()
        }
        self.raw: dict[str, Tensor] = {}  # rows of a batch before they are compressed
        self.known = [(call.layer, call.shared) for call in calls]
        self.lengths = torch.tensor(lengths or ())
        self.filled = [0] * len(self.entries)
        self.taken: dict[int, Call] = {}
        self.done = 0

    def inputs(self, call: Call, dtype: torch.dtype) -> Tensor:
        """The next rows of this call's inputs."""
        self._check(call)
        if call.shared not in self.ranks:
            return self._next(f"inputs.{call.position}", call.position, int(call.row_counts.sum()))
        return self._raw(f"inputs.{call.position}", call, call.widths[0])

    def gradients(self, call: Call, num_outputs: int, dtype: torch.dtype) -> Tensor:
        """The next rows of this call's gradients."""
        self._check(call)
        if call.shared not in self.ranks:
            return self._next(f"gradients.{call.position}", call.position, int(call.row_counts.sum()))
        widths, mine = self.widths[call.shared], self.groups[call.shared].index(call.position)
        together = self._raw(f"gradients.{call.shared}", call, sum(widths))
        return together.split(widths, 1)[mine].unflatten(1, (num_outputs, call.widths[1]))

    def _check(self, call: Call) -> None:
        plain, counts = self.plain.get(call.position), call.row_counts
        expected = self.lengths[self.done : self.done + len(counts)] if plain is None else plain
        known = self.known[call.position : call.position + 1] == [(call.layer, call.shared)]
        if not known or not bool((counts == expected).all()):
            raise InputError(
                "modules",
                f"{call.layer} does not run alike for all examples (as often, on the same tokens)",
                "leave it out",
            )
        self.taken[call.position] = call

    def _next(self, name: str, number: int, rows: int) -> Tensor:
        """Where the next rows of an entry's tensor go."""
        start = self.filled[number]
        if self.file is None:
            return self.tensors[name][start : start + rows]
        if len(self.tensors[name]) < rows:
            shape, kind = self.spec[name]
            self.tensors[name] = torch.empty(2 * rows, *shape[1:], dtype=kind)
        self.written[name] = start, self.tensors[name][:rows]
        return self.written[name][1]

    def _raw(self, name: str, call: Call, width: int) -> Tensor:
        """Room for all rows of a batch, padding too."""
        size = len(call.row_counts) * call.length * width
        if name not in self.raw or len(self.raw[name]) < size:
            self.raw[name] = torch.empty(2 * size, dtype=self.product, device=self.device)
        return self.raw[name][:size].view(-1, width)

    def _compress(self, shared: int) -> None:
        """Bring the calls with one input to their rank."""
        call, widths = self.taken[shared], self.widths[shared]
        inputs, gradients = (
            self._raw(f"{kind}.{shared}", call, width).view(len(call.row_counts), -1, width)
            for kind, width in (("inputs", call.widths[0]), ("gradients", sum(widths)))
        )
        main, rest = self.ranks[shared]
        fewer, shorter = low_rank(inputs, gradients, main + rest)  # the largest last
        group = self.groups[shared]
        self._put(group, fewer[:, rest:], shorter[:, rest:].split(widths, 2))
        if rest:
            self._put([self.rest[position] for position in group], fewer[:, :rest], shorter[:, :rest].split(widths, 2))

    def _put(self, numbers: list[int], inputs: Tensor, gradients: Sequence[Tensor]) -> None:
        """Compressed rows (b r i) and (b r p) of entries with the same inputs, the first of which keeps these."""
        rows = len(inputs) * inputs.shape[1]
        self._next(f"inputs.{numbers[0]}", numbers[0], rows).copy_(inputs.flatten(0, 1))
        for number, part in zip(numbers, gradients, strict=True):
            target = self._next(f"gradients.{number}", number, rows)
            target.copy_(part.reshape(target.shape))

    def advance(self) -> None:
        """The batch is done: later rows go behind it.

        Raises:
            InputError: A layer did not run on it that ran before.
        """
        if len(self.taken) != len(self.known):
            missing = {self.known[k][0] for k in set(range(len(self.known))) - set(self.taken)}
            raise InputError("modules", f"{', '.join(sorted(missing))} did not run for all examples", "leave them out")
        for shared in self.groups:
            self._compress(shared)
        if self.file is not None:
            self.file.write(self.written)
            self.tensors, self.spare = self.spare, self.tensors
        examples = len(self.taken[0].row_counts)
        for number, entry in enumerate(self.entries):
            fixed = entry.rows_per_example
            self.filled[number] += int(self.taken[number].row_counts.sum()) if fixed is None else fixed * examples
        self.done += examples
        self.taken.clear()

    def close(self) -> None:
        """All rows are there; what only carried them to the file is dropped."""
        if self.file is not None:
            self.file.close()
            self.tensors = {}


def _entries(
    calls: Sequence[Call], ranks: Mapping[int, Ranks], plain: Mapping[int, int | None]
) -> tuple[tuple[Entry, ...], dict[int, int]]:
    """An entry for each call, in their order, then one for the rest of each that has any; the latter's numbers too."""
    main = [
        Entry(
            call.layer,
            call.shared,
            ranks[call.shared].main if call.shared in ranks else plain[call.position],
            call.widths,
        )
        for call in calls
    ]
    several = [call for call in calls if call.shared in ranks and ranks[call.shared].rest]
    numbers = {call.position: number for number, call in enumerate(several, len(calls))}
    rest = [
        Entry(call.layer, numbers[call.shared], ranks[call.shared].rest, call.widths, simulated=False)
        for call in several
    ]
    return (*main, *rest), numbers
