"""The collected tangents: what one pass over the data leaves behind, and how to find one's rows in it."""

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
    """Rows of one call of one layer.

    Attributes:
        layer: Name of the layer; what its entries add up to is its gradient.
        inputs: Number of the entry that keeps its inputs: calls with the same input share them.
        rows_per_example: How many rows every example has, or None for one row a token.
        widths: Input and output width (i, o).
        simulated: Whether simulated runs read these rows: a call's largest are one entry, what they leave out another.
    """

    layer: str
    inputs: int
    rows_per_example: int | None
    widths: tuple[int, int]
    simulated: bool = True


@dataclass(repr=False)
class Tangents:
    """First-order behaviour of a network in all weights of its watched layers (docs/theory.md section 6).

    For any changes ``dW`` of the layers' weights the head's features become, to first order,
    ``h = features + basis' t`` with ``t_q = sum over entries and rows of gradients[row, q]' dW inputs[row]``.

    Attributes:
        entries: The layer calls.
        tensors: ``inputs.K`` (rows i) and ``gradients.K`` (rows q o) of entry K, examples in stored order.
        place: Where each example stands in the stored order; training examples come first.
        counts: Tokens of each example, in stored order.
        features: What enters the head (n d), in the order of the examples, as everything below.
        outputs: The model's outputs (n c).
        span: Orthonormal directions (1 s d) that matter to the outputs, or (n s d) where the head is not affine.
        basis: Those along which tangents are taken: all of these, or (n q d) a few in their span for each example.
        labels: Targets (n).
        normalisation: What the network's last normalisation multiplies by and adds, γ and β (2 d), if the features are
            made of what it gives; else nothing (0 d).
        head: The trained head as it was when the tangents were taken.
        num_train: How many of the examples are for training.
        loss: ``cross_entropy`` or ``mean_squared_error``.
        seconds: What the pass took.
        reused: Whether they were read from disk.
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
        """Training and evaluation examples n."""
        return len(self.place)

    @property
    def num_directions(self) -> int:
        """Directions q of the output basis."""
        return self.basis.shape[1]

    @property
    def num_left_out(self) -> int:
        """Directions that matter, but along which no tangents are taken."""
        return self.span.shape[1] - self.num_directions

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are stored."""
        return next(iter(self.tensors.values())).dtype

    @property
    def num_bytes(self) -> int:
        """Size of the rows."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The watched layers."""
        return tuple(dict.fromkeys(entry.layer for entry in self.entries))

    @property
    def stored(self) -> Int[Tensor, " n"]:
        """Which example stands at each place of the stored order, the inverse of ``place``."""
        return torch.argsort(self.place)

    @cached_property
    def token_starts(self) -> Int[Tensor, " starts"]:
        """Where each stored example's tokens start."""
        return torch.cat([torch.zeros(1, dtype=torch.long), self.counts.cumsum(0)])

    def row_counts(self, rows_per_example: int | None) -> Int[Tensor, " n"]:
        """How many rows each stored example has in an entry with this many rows an example."""
        return self.counts if rows_per_example is None else torch.full_like(self.counts, rows_per_example)

    def rows(
        self, examples: Int[Tensor, " b"], rows_per_example: int | None
    ) -> tuple[Int[Tensor, " rows"] | slice, Int[Tensor, " rows"]]:
        """The rows of some examples (a slice where they lie together), and to which of them (0 to b-1) each belongs."""
        places, numbers = self.place[examples], torch.arange(len(examples))
        together = bool((places.diff() == 1).all())
        if rows_per_example is not None:
            owner = numbers.repeat_interleave(rows_per_example)
            if together:
                return slice(int(places[0]) * rows_per_example, int(places[-1] + 1) * rows_per_example), owner
            return (places.unsqueeze(1) * rows_per_example + torch.arange(rows_per_example)).flatten(), owner
        first, sizes = self.token_starts[places], self.counts[places]
        owner = numbers.repeat_interleave(sizes)
        if together:
            return slice(int(first[0]), int(first[0]) + len(owner)), owner
        within = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
        return first[owner] + within, owner

    def on(self, device: torch.device) -> "Tangents":
        """The same with the rows on a GPU, if it has room for twice as many; else where they are."""
        if device.type != "cuda" or 2 * self.num_bytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, tensors={name: rows.to(device) for name, rows in self.tensors.items()})

    def sample(self, examples: Int[Tensor, " m"]) -> "Tangents":
        """The tangents of some training examples alone; their rows are copied where they do not lie together."""
        examples = examples[self.place[examples].argsort()]  # rows stay in the order in which they lie
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

    def directions(self, which: Float[Tensor, "k q d"], examples: Int[Tensor, " b"]) -> Float[Tensor, "m q d"]:
        """``span`` or ``basis`` of some examples: one for all of them (k = 1), or one for each."""
        return which[examples] if len(which) > 1 else which

    def inputs(self, entry: int) -> Float[Tensor, "rows i"]:
        """What entered a call."""
        return self.tensors[f"inputs.{self.entries[entry].inputs}"]

    def gradients(self, entry: int) -> Float[Tensor, "rows q o"]:
        """Gradients of the features' coordinates at what came out of a call."""
        return self.tensors[f"gradients.{entry}"]

    def output_gradients(self, examples: Int[Tensor, " b"]) -> Float[Tensor, "b c q"]:
        """Gradient of the outputs in the coordinates of the features, at the head of the tangents, in float64."""
        gradients = copy.deepcopy(self.head).double().gradients(self.features[examples].double())
        basis = self.directions(self.basis, examples).double()
        shape = len(examples), -1, -1
        return torch.einsum("bcd,bqd->bcq", gradients.expand(shape), basis.expand(shape))

    def save(self, folder: Path) -> None:
        """Write everything but the rows, which are there already, and mark the folder as finished."""
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
        """Tangents saved in ``folder``, their rows mapped and read when used; None if there are none that are whole.

        Args:
            folder: Where they were saved.
            head: Cuts the model's own modules off, which the head's values are loaded into.
            notify: Called with a sentence if they are there and damaged.
        """
        why = store.fault(folder)
        if why is not None:
            if why and notify:
                notify(f"{folder}: {why}; the tangents are made again")
            return None
        tensors, small, manifest = store.load(folder)
        modules = head()
        modules.load_state_dict({name[5:]: value for name, value in small.items() if name.startswith("head.")})
        entries = [
            Entry(layer, inputs, rows, tuple(widths), simulated)
            for layer, inputs, rows, widths, simulated in manifest["entries"]
        ]
        rest: dict[str, Any] = {name: small[name] for name in _SMALL}
        keys = {name: manifest[name] for name in ("num_train", "loss", "seconds")}
        return cls(entries=tuple(entries), tensors=tensors, head=modules, reused=True, **rest, **keys)


_SMALL = ("place", "counts", "features", "outputs", "span", "basis", "labels", "normalisation")
