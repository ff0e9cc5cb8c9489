"""The collected tangents of a model, and how to find the rows of an example in them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from foretune.brief import brief
from foretune.tangents import store
from foretune.tangents.head import Head


@dataclass(frozen=True)
class Entry:
    """Describes the stored rows of one call of a layer.

    Compressed rows of a call are split into two entries: the rows with the largest gradients, and the rest. The
    gradient of a layer's weight is the sum over all entries of the layer.

    Attributes:
        layer: Name of the layer.
        inputs: Number of the entry that stores the inputs. Calls with the same input share them.
        rows_per_example: Number of rows of every example. None if there is one row per token.
        widths: Input and output width of the layer (i, o).
        simulated: Whether simulated runs read these rows. Kernels read all entries.
    """

    layer: str
    inputs: int
    rows_per_example: int | None
    widths: tuple[int, int]
    simulated: bool = True


@dataclass(repr=False)
class Tangents:
    """First-order behaviour of a network in the weights of all its watched layers (docs/theory.md section 6).

    The head is the trained end of the network, and its features h are the vectors that enter it. If the weights change
    by ``dW``, the features become, to first order, ``h = features + basis' t``, where
    ``t_q = sum over entries and rows of gradients[row, q]' dW inputs[row]``.

    Rows lie in stored order, which groups examples of similar length. ``features``, ``outputs``, ``labels``, and a
    ``span`` or ``basis`` with a value for every example are in the order of the examples: training examples first.

    Attributes:
        entries: Descriptions of the stored rows.
        tensors: ``inputs.K`` (rows i) and ``gradients.K`` (rows q o) of entry K, in stored order.
        place: The place of every example in the stored order.
        counts: Number of tokens of every example, in stored order.
        features: The features that enter the head (n d).
        outputs: The model's outputs (n c).
        span: Orthonormal directions of the features that matter to the outputs: (1 s d), or (n s d) if the head is not
            affine.
        basis: The directions along which tangents are taken: the span itself, or if that is too large a few directions
            in the span for every example (n q d).
        labels: Targets (n).
        normalisation: The factor γ and the offset β of the network's last normalisation (2 d), if the features are its
            outputs or their mean over tokens. Otherwise it is empty (0 d).
        head: The head at the time of the pass.
        num_train: Number of training examples.
        loss: ``cross_entropy`` or ``mean_squared_error``.
        seconds: Duration of the pass in seconds.
        reused: Whether the tangents were read from disk instead of collected.
    """

    entries: tuple[Entry, ...]
    tensors: dict[str, Tensor]
    place: Int[Tensor, " n"]
    counts: Int[Tensor, " n"]
    features: Float[Tensor, "n d"]
    outputs: Float[Tensor, "n c"]
    span: Float[Tensor, "k s d"]
    basis: Float[Tensor, "m q d"]
    labels: Tensor
    normalisation: Float[Tensor, "_ d"]
    head: Head
    num_train: int
    loss: str
    seconds: float = 0.0
    reused: bool = False
    __repr__ = brief

    @property
    def num_examples(self) -> int:
        """Number of training and evaluation examples, n."""
        return len(self.place)

    @property
    def num_directions(self) -> int:
        """Number of directions of the basis, q."""
        return self.basis.shape[1]

    @property
    def num_left_out(self) -> int:
        """Number of directions of the span that the basis leaves out."""
        return self.span.shape[1] - self.num_directions

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are stored."""
        return next(iter(self.tensors.values())).dtype

    @property
    def num_bytes(self) -> int:
        """Size of the rows in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the watched layers."""
        return tuple(dict.fromkeys(entry.layer for entry in self.entries))

    @property
    def stored(self) -> Int[Tensor, " n"]:
        """The index of the example at every place of the stored order: the inverse of ``place``."""
        return torch.argsort(self.place)

    @cached_property
    def token_starts(self) -> Int[Tensor, " starts"]:
        """The first row of every example in stored order, for entries with one row per token, then the total."""
        return torch.cat([torch.zeros(1, dtype=torch.long), self.counts.cumsum(0)])

    def row_counts(self, rows_per_example: int | None) -> Int[Tensor, " n"]:
        """The number of rows of every example in stored order, for an entry with this ``rows_per_example``."""
        return self.counts if rows_per_example is None else torch.full_like(self.counts, rows_per_example)

    def rows(
        self, examples: Int[Tensor, " b"], rows_per_example: int | None
    ) -> tuple[Int[Tensor, " rows"] | slice, Int[Tensor, " rows"]]:
        """Find the rows of some examples.

        Args:
            examples: Indices of the examples.
            rows_per_example: The value of the entry.

        Returns:
            The numbers of the rows, as a slice if the rows are contiguous; and for every row the position of its
            example in ``examples``.
        """
        places, numbers = self.place[examples], torch.arange(len(examples))
        contiguous = bool((places.diff() == 1).all())
        if rows_per_example is not None:
            owner = numbers.repeat_interleave(rows_per_example)
            if contiguous:
                return slice(int(places[0]) * rows_per_example, int(places[-1] + 1) * rows_per_example), owner
            return (places.unsqueeze(1) * rows_per_example + torch.arange(rows_per_example)).flatten(), owner
        first, sizes = self.token_starts[places], self.counts[places]
        owner = numbers.repeat_interleave(sizes)
        if contiguous:
            return slice(int(first[0]), int(first[0]) + len(owner)), owner
        within = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
        return first[owner] + within, owner

    def on(self, device: torch.device) -> "Tangents":
        """Move the rows to a GPU with enough memory for twice their size. Otherwise they stay where they are."""
        if device.type != "cuda" or 2 * self.num_bytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, tensors={name: rows.to(device) for name, rows in self.tensors.items()})

    def sample(self, examples: Int[Tensor, " m"]) -> "Tangents":
        """The tangents of only some training examples. Rows are copied if they are not contiguous."""
        examples = examples[self.place[examples].argsort()]  # keep the stored order of the rows
        tensors = {}
        for number, entry in enumerate(self.entries):
            rows, _ = self.rows(examples, entry.rows_per_example)
            for name in (f"inputs.{entry.inputs}", f"gradients.{number}"):
                if name not in tensors:
                    tensors[name] = self.tensors[name][rows]
        return replace(
            self,
            tensors=tensors,
            place=torch.arange(len(examples)),
            counts=self.counts[self.place[examples]],
            features=self.features[examples],
            outputs=self.outputs[examples],
            span=self.directions(self.span, examples),
            basis=self.directions(self.basis, examples),
            labels=self.labels[examples],
            num_train=len(examples),
        )

    def directions(self, rows: Float[Tensor, "k q d"], examples: Int[Tensor, " b"]) -> Float[Tensor, "m q d"]:
        """The rows of ``span`` or ``basis`` for some examples. One set of rows for all (k = 1) is returned as it is."""
        return rows[examples] if len(rows) > 1 else rows

    def inputs(self, entry: int) -> Float[Tensor, "rows i"]:
        """The inputs of an entry."""
        return self.tensors[f"inputs.{self.entries[entry].inputs}"]

    def gradients(self, entry: int) -> Float[Tensor, "rows q o"]:
        """Gradients of the features' coordinates in the basis, at the outputs of the layer."""
        return self.tensors[f"gradients.{entry}"]

    def output_gradients(self, examples: Int[Tensor, " b"]) -> Float[Tensor, "b c q"]:
        """Gradients of the outputs in the features' coordinates, for the head of the tangents, in float64."""
        gradients = copy.deepcopy(self.head).double().gradients(self.features[examples].double())
        basis = self.directions(self.basis, examples).double()
        shape = len(examples), -1, -1
        return torch.einsum("bcd,bqd->bcq", gradients.expand(shape), basis.expand(shape))

    def save(self, folder: Path) -> None:
        """Write summary and manifest to a folder that already holds the rows, and so mark it as complete."""
        small = {name: getattr(self, name).contiguous() for name in _SMALL}
        small |= {f"head.{name}": value.contiguous() for name, value in self.head.state_dict().items()}
        save_file(small, folder / store.SUMMARY)
        manifest = {
            "entries": [[e.layer, e.inputs, e.rows_per_example, list(e.widths), e.simulated] for e in self.entries],
            "num_train": self.num_train,
            "loss": self.loss,
            "seconds": self.seconds,
        }
        store.write_manifest(folder, manifest)

    @classmethod
    def load(
        cls, folder: Path, head: Callable[[], Head], notify: Callable[[str], None] | None = None
    ) -> "Tangents | None":
        """Load the tangents from a folder. Rows are memory-mapped and read when used.

        Args:
            folder: The folder.
            head: Returns the model's head, into which the saved values are loaded.
            notify: Called with a sentence if the tangents are damaged.

        Returns:
            The tangents, or None if there are none or they are damaged.
        """
        reason = store.fault(folder)
        if reason is not None:
            if reason and notify:
                notify(f"{folder}: {reason}; the tangents are made again")
            return None
        tensors, small, manifest = store.load(folder)
        loaded_head = head()
        loaded_head.load_state_dict({name[5:]: value for name, value in small.items() if name.startswith("head.")})
        entries = [
            Entry(layer, inputs, rows, tuple(widths), simulated)
            for layer, inputs, rows, widths, simulated in manifest["entries"]
        ]
        rest: dict[str, Any] = {name: small[name] for name in _SMALL}
        keys = {name: manifest[name] for name in ("num_train", "loss", "seconds")}
        return cls(entries=tuple(entries), tensors=tensors, head=loaded_head, reused=True, **rest, **keys)


# the tensors of the summary file
_SMALL = ("place", "counts", "features", "outputs", "span", "basis", "labels", "normalisation")
