"""Room for the rows of a whole data set, filled batch by batch."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from foretune.errors import InputError
from foretune.tangents import store
from foretune.tangents.compress import low_rank, product_dtype
from foretune.tangents.hooks import Call, Rows


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
    """

    def __init__(
        self,
        calls: list[Call],
        num_outputs: int,
        lengths: list[int] | None,
        num_examples: int,
        dtype: torch.dtype,
        folder: Path | None,
        ranks: Mapping[int, int],
        device: torch.device,
    ) -> None:
        super().__init__(device)
        self.product = product_dtype(dtype)
        spec: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.plain: dict[int, int | None] = {}  # rows of every example of a call, None: one a token
        self.fixed: dict[int, int | None] = {}  # the same as they are kept
        for call in calls:
            by_token = call.by_token and lengths is not None
            self.plain[call.position] = None if by_token else int(call.row_counts[0])
            fixed = self.fixed[call.position] = ranks.get(call.shared, self.plain[call.position])
            rows = sum(lengths or ()) if fixed is None else fixed * num_examples
            if call.shared == call.position:
                spec[f"inputs.{call.position}"] = ((rows, call.widths[0]), dtype)
            spec[f"gradients.{call.position}"] = ((rows, num_outputs, call.widths[1]), dtype)
        self.spec, self.ranks = spec, ranks
        self.file = None if folder is None else store.RowFile(folder / "tangents.safetensors", spec)
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
        self.filled = [0] * len(calls)
        self.taken: dict[int, Call] = {}
        self.done = 0

    def inputs(self, call: Call, dtype: torch.dtype) -> Tensor:
        """The next rows of this call's inputs."""
        self._check(call, f"inputs.{call.position}")
        if call.shared not in self.ranks:
            return self._next(f"inputs.{call.position}", call.position, int(call.row_counts.sum()))
        return self._raw(f"inputs.{call.position}", call, call.widths[0])

    def gradients(self, call: Call, num_outputs: int, dtype: torch.dtype) -> Tensor:
        """The next rows of this call's gradients."""
        self._check(call, f"gradients.{call.position}")
        if call.shared not in self.ranks:
            return self._next(f"gradients.{call.position}", call.position, int(call.row_counts.sum()))
        widths, mine = self.widths[call.shared], self.groups[call.shared].index(call.position)
        together = self._raw(f"gradients.{call.shared}", call, sum(widths))
        return together.split(widths, 1)[mine].unflatten(1, (num_outputs, call.widths[1]))

    def _check(self, call: Call, name: str) -> None:
        plain, counts = self.plain.get(call.position), call.row_counts
        expected = self.lengths[self.done : self.done + len(counts)] if plain is None else plain
        known = name in self.spec and (call.layer, call.shared) == self.known[call.position]
        if not known or not bool((counts == expected).all()):
            raise InputError(
                "modules",
                f"{call.layer} does not run alike for all examples (as often, on the same tokens)",
                "leave it out",
            )
        self.taken[call.position] = call

    def _next(self, name: str, position: int, rows: int) -> Tensor:
        """Where the next rows of a tensor go."""
        start = self.filled[position]
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
        fewer, shorter = low_rank(inputs, gradients, self.ranks[shared])
        rows = len(inputs) * self.ranks[shared]
        self._next(f"inputs.{shared}", shared, rows).copy_(fewer.flatten(0, 1))
        for position, part in zip(self.groups[shared], shorter.split(widths, 2), strict=True):
            target = self._next(f"gradients.{position}", position, rows)
            target.copy_(part.reshape(target.shape))

    def advance(self) -> None:
        """The batch is done: later rows go behind it.

        Raises:
            InputError: A layer did not run on it that ran before.
        """
        if len(self.taken) != len(self.filled):
            missing = {self.known[k][0] for k in set(range(len(self.filled))) - set(self.taken)}
            raise InputError("modules", f"{', '.join(sorted(missing))} did not run for all examples", "leave them out")
        for shared in self.groups:
            self._compress(shared)
        if self.file is not None:
            self.file.write(self.written)
            self.tensors, self.spare = self.spare, self.tensors
        examples = len(self.taken[0].row_counts)
        for position, call in self.taken.items():
            fixed = self.fixed[position]
            self.filled[position] += int(call.row_counts.sum()) if fixed is None else fixed * examples
        self.done += examples
        self.taken.clear()

    def close(self) -> None:
        """All rows are there; what only carried them to the file is dropped."""
        if self.file is not None:
            self.file.close()
            self.tensors = {}
