"""The storage of the rows of a whole data set, in memory or in a file, filled batch by batch.

A row is one input vector of a layer, or the gradients at the output that belongs to it. Most rows belong to one token.
"""

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
    """Stores the rows of all batches.

    Rows that are not compressed go straight to their place. The others are compressed when their batch is done.

    Args:
        calls: The calls of layers in a batch. All batches must have the same calls.
        num_outputs: Number of directions of the gradients.
        lengths: Number of tokens of every example, in the order of the batches. None if inputs have no tokens.
        num_examples: Number of examples of the data set.
        dtype: The type in which rows are stored.
        folder: The folder of the file to which rows are written. None keeps them in memory.
        ranks: How many rows per example remain after compression, by the position of the first call with the same
            input. Calls that are not listed are not compressed.
        device: The device on which batches are computed.

    Attributes:
        entries: A description of the stored rows: one entry for every call, then one for the second part of every call
            that is stored in two parts.
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
        self.fixed_counts: dict[int, int | None] = {}  # rows per example of a call before compression; None: its tokens
        for call in calls:
            by_token = call.by_token and lengths is not None
            self.fixed_counts[call.position] = None if by_token else int(call.row_counts[0])
        self.entries, self.rest_numbers = _entries(calls, ranks, self.fixed_counts)
        spec: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for number, entry in enumerate(self.entries):
            fixed, (input_width, output_width) = entry.rows_per_example, entry.widths
            rows = sum(lengths or ()) if fixed is None else fixed * num_examples
            if entry.inputs == number:
                spec[f"inputs.{number}"] = ((rows, input_width), dtype)
            spec[f"gradients.{number}"] = ((rows, num_outputs, output_width), dtype)
        self.spec, self.ranks = spec, ranks
        self.file = None if folder is None else store.RowFile(folder / store.ROWS, spec)
        # in memory these hold all rows; with a file they hold the rows of one batch and are used again
        self.tensors = {
            name: torch.empty(0 if self.file else shape, dtype=stored) for name, (shape, stored) in spec.items()
        }
        self.spare = dict(self.tensors)  # one set is filled while the other is written to the file
        self.written: dict[str, tuple[int, Tensor]] = {}
        self.groups = {shared: [call.position for call in calls if call.shared == shared] for shared in ranks}
        self.widths = {  # widths of the gradients of a group's calls, which are compressed side by side
            shared: [num_outputs * calls[position].widths[1] for position in group]
            for shared, group in self.groups.items()
        }
        self.raw: dict[str, Tensor] = {}  # rows of a batch before compression
        self.expected_calls = [(call.layer, call.shared) for call in calls]
        self.lengths = torch.tensor(lengths or ())
        self.filled = [0] * len(self.entries)  # rows of every entry so far
        self.batch_calls: dict[int, Call] = {}  # calls of the current batch by position
        self.done = 0  # examples so far

    def inputs(self, call: Call, dtype: torch.dtype) -> Tensor:
        """Where to write the inputs of a call in the current batch."""
        self._check(call)
        if call.shared not in self.ranks:
            return self._next(f"inputs.{call.position}", call.position, int(call.row_counts.sum()))
        return self._raw(f"inputs.{call.position}", call, call.widths[0])

    def gradients(self, call: Call, num_outputs: int, dtype: torch.dtype) -> Tensor:
        """Where to write the gradients of a call in the current batch."""
        self._check(call)
        if call.shared not in self.ranks:
            return self._next(f"gradients.{call.position}", call.position, int(call.row_counts.sum()))
        widths, index = self.widths[call.shared], self.groups[call.shared].index(call.position)
        together = self._raw(f"gradients.{call.shared}", call, sum(widths))
        return together.split(widths, 1)[index].unflatten(1, (num_outputs, call.widths[1]))

    def _check(self, call: Call) -> None:
        """Check that a call runs in this batch as it did in the first one, and remember it.

        Raises:
            InputError: It runs in another order, on another input, or on other tokens.
        """
        fixed, counts = self.fixed_counts.get(call.position), call.row_counts
        expected = self.lengths[self.done : self.done + len(counts)] if fixed is None else fixed
        is_expected = self.expected_calls[call.position : call.position + 1] == [(call.layer, call.shared)]
        if not is_expected or not bool((counts == expected).all()):
            raise InputError(
                "modules",
                f"{call.layer} does not run equally often, or not on the same tokens, for all examples",
                f"leave {call.layer} out",
            )
        self.batch_calls[call.position] = call

    def _next(self, name: str, number: int, rows: int) -> Tensor:
        """Where to write the next rows of a tensor of an entry."""
        start = self.filled[number]
        if self.file is None:
            return self.tensors[name][start : start + rows]
        if len(self.tensors[name]) < rows:
            shape, dtype = self.spec[name]
            self.tensors[name] = torch.empty(2 * rows, *shape[1:], dtype=dtype)
        self.written[name] = start, self.tensors[name][:rows]
        return self.written[name][1]

    def _raw(self, name: str, call: Call, width: int) -> Tensor:
        """Memory for all rows of a call in a batch, including padding."""
        size = len(call.row_counts) * call.length * width
        if name not in self.raw or len(self.raw[name]) < size:
            self.raw[name] = torch.empty(2 * size, dtype=self.product, device=self.device)
        return self.raw[name][:size].view(-1, width)

    def _compress(self, shared: int) -> None:
        """Compress the rows of the calls that share an input, and store them."""
        call, widths = self.batch_calls[shared], self.widths[shared]
        inputs, gradients = (
            self._raw(f"{kind}.{shared}", call, width).view(len(call.row_counts), -1, width)
            for kind, width in (("inputs", call.widths[0]), ("gradients", sum(widths)))
        )
        main, rest = self.ranks[shared]
        inputs, gradients = low_rank(inputs, gradients, main + rest)  # rows with the largest gradients are last
        group = self.groups[shared]
        self._put(group, inputs[:, rest:], gradients[:, rest:].split(widths, 2))
        if rest:
            numbers = [self.rest_numbers[position] for position in group]
            self._put(numbers, inputs[:, :rest], gradients[:, :rest].split(widths, 2))

    def _put(self, numbers: list[int], inputs: Tensor, gradients: Sequence[Tensor]) -> None:
        """Store compressed inputs (b r i) and gradients (b r p) of entries that share their inputs.

        The first of these entries stores the inputs.
        """
        rows = len(inputs) * inputs.shape[1]
        self._next(f"inputs.{numbers[0]}", numbers[0], rows).copy_(inputs.flatten(0, 1))
        for number, part in zip(numbers, gradients, strict=True):
            target = self._next(f"gradients.{number}", number, rows)
            target.copy_(part.reshape(target.shape))

    def advance(self) -> None:
        """Finish the current batch. Later rows are stored behind its rows.

        Raises:
            InputError: A layer did not run in this batch, or ran less often than in the first one.
        """
        if len(self.batch_calls) != len(self.expected_calls):
            positions = set(range(len(self.expected_calls))) - set(self.batch_calls)
            missing = {self.expected_calls[position][0] for position in positions}
            names = ", ".join(sorted(missing))
            raise InputError("modules", f"{names} did not run equally often for all examples", "leave them out")
        for shared in self.groups:
            self._compress(shared)
        if self.file is not None:
            self.file.write(self.written)
            self.tensors, self.spare = self.spare, self.tensors
        examples = len(self.batch_calls[0].row_counts)
        for number, entry in enumerate(self.entries):
            fixed = entry.rows_per_example
            self.filled[number] += int(self.batch_calls[number].row_counts.sum()) if fixed is None else fixed * examples
        self.done += examples
        self.batch_calls.clear()

    def close(self) -> None:
        """Wait until all rows are stored, and free the memory through which they went to the file."""
        if self.file is not None:
            self.file.close()
            self.tensors = {}


def _entries(
    calls: Sequence[Call], ranks: Mapping[int, Ranks], fixed_counts: Mapping[int, int | None]
) -> tuple[tuple[Entry, ...], dict[int, int]]:
    """The entries of :class:`Arena`, and the number of the second entry of every call in two parts, by its position."""
    main = [
        Entry(
            call.layer,
            call.shared,
            ranks[call.shared].main if call.shared in ranks else fixed_counts[call.position],
            call.widths,
        )
        for call in calls
    ]
    in_two_parts = [call for call in calls if call.shared in ranks and ranks[call.shared].rest]
    numbers = {call.position: number for number, call in enumerate(in_two_parts, len(calls))}
    rest = [
        Entry(call.layer, numbers[call.shared], ranks[call.shared].rest, call.widths, simulated=False)
        for call in in_two_parts
    ]
    return (*main, *rest), numbers
