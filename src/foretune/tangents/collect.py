"""The one pass over the data, which collects the tangents of all examples.

Tangents are the inputs of every watched layer and the gradients at its outputs.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.tangents import store
from foretune.tangents.arena import Arena
from foretune.tangents.basis import (
    TaskDirections,
    centring,
    limited_basis,
    num_directions,
    output_basis,
    task_directions,
)
from foretune.tangents.compress import TOLERANCE, Ranks, padded, ranks_for
from foretune.tangents.experts import routers_and_experts
from foretune.tangents.head import (
    Head,
    checked_finite,
    features_of,
    find_head,
    head_features,
    head_names,
    outputs_of,
    watched,
)
from foretune.tangents.hooks import Call, Rows, layer_gradients, token_mask
from foretune.tangents.lengths import alike, alike_in_splits, lengths
from foretune.tangents.normalisation import NormalisationCall, are_normalised, gain_and_offset, last_normalisation
from foretune.tangents.one_by_one import Plan, layer_gradients_one_by_one, one_by_one_plan, rows_of
from foretune.tangents.padding import check_padding_invariant
from foretune.tangents.products import ShortLayers
from foretune.tangents.rules import check_supported, supported
from foretune.tangents.tangents import Tangents
from foretune.task import Task

PROBE_EXAMPLES = 512  # training examples from which the directions of the task are estimated
PILOT_EXAMPLES = 8  # examples of all lengths from which the ranks of the compression are chosen
Progress = Callable[[int, int], None]


def collect(
    task: Task,
    modules: str | Sequence[str] = "all-linear",
    *,
    heads: Sequence[str] | None = None,
    directory: str | Path | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    sample: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tangents:
    """Collect the tangents of the task's model at its pretrained weights, for training and evaluation examples.

    For every call ``z = W a`` of a watched layer it stores the inputs ``a``, and the gradients at ``z`` of the features
    that enter the head (docs/theory.md section 6). The gradients are taken along a few orthonormal directions of the
    features. The pass runs on ``task.device`` and takes one forward pass, and one backward pass per direction without
    gradients of weights. The same tangents serve all adapters on these layers.

    An ``InputError`` is raised if no layer has one of the names, if a layer has no rule, if the head cannot be cut off,
    or if the outputs depend on padding.

    Args:
        task: Model, data and loss.
        modules: The layers to watch: full names or endings of names. ``all-linear`` means all supported layers except
            the head and the routers and experts of a mixture of experts.
        heads: Names of the modules that are trained in full; ``()`` for none. By default these are the head's modules
            as peft recognises them.
        directory: Where to store the tangents. If it already holds tangents of the same task, model and modules, they
            are used.
        dtype: The type in which rows are stored. By default this is bfloat16 for models in float32, otherwise the
            model's own type.
        tolerance: Share of an example's squared gradient in a layer's weight that compression may lose, on average. By
            default this is 0.02 for rows in bfloat16, otherwise 0.
        sample: Number of training examples to use. They then stand for all training examples. The default is all.
        batch_size: The most examples in a batch. Batches of long texts are smaller. Results do not depend on it.
        progress: Called with the number of finished examples and the number of all examples.
        notify: Called with a sentence if tangents in ``directory`` are damaged and collected again.

    Returns:
        The tangents. If they are stored in a directory, their rows are memory-mapped.
    """
    started = time.perf_counter()
    task = task if sample is None else task.sampled(sample)
    model = task.model.eval()
    heads = head_names(model) if heads is None else tuple(heads)
    layers = select_layers(model, modules, heads)
    stored_dtype = dtype or (torch.bfloat16 if model.dtype == torch.float32 else model.dtype)
    tolerance = (TOLERANCE if stored_dtype == torch.bfloat16 else 0.0) if tolerance is None else tolerance
    with task.placed():
        collection = _Pass(task, layers, heads, stored_dtype, tolerance, batch_size, progress)
        if directory is None:
            return collection.run(None, started)
        # the key hashes the weights, which takes time, so it is computed only here
        folder = Path(directory) / _key(task, layers, heads, stored_dtype, tolerance)
        tangents = Tangents.load(folder, lambda: collection.head, notify)
        if tangents is None:
            with store.writing(folder) as temporary:
                collection.run(temporary, started).save(temporary)
            tangents = Tangents.load(folder, lambda: collection.head)
            assert tangents is not None
            tangents.reused = False
    return tangents


def select_layers(model: nn.Module, modules: str | Sequence[str], heads: Sequence[str]) -> dict[str, nn.Module]:
    """Select layers of a model by name, without the layers of the head.

    Args:
        model: The model.
        modules: ``all-linear``, or full names or endings of names, as in :func:`collect`.
        heads: Names of the head's modules.

    Returns:
        The layers by their full names.

    Raises:
        InputError: No layer has such a name, or a selected layer has no rule.
    """
    outside = {
        name: module
        for name, module in model.named_modules()
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    }
    if modules == "all-linear":
        # routers and experts are left out, because training changes which tokens an expert gets
        excluded = tuple(f"{name}." for name in routers_and_experts(model))
        return {
            name: module
            for name, module in outside.items()
            if supported(module) and not f"{name}.".startswith(excluded)
        }
    endings = (modules,) if isinstance(modules, str) else tuple(modules)
    layers = {
        name: module
        for name, module in outside.items()
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
    }
    if not layers:
        names = sorted({name.rsplit(".", 1)[-1] for name, module in outside.items() if supported(module)})
        raise InputError(
            "modules", f"no layer is called {', '.join(endings)}", f"use one or more of: {', '.join(names)}"
        )
    check_supported(layers)
    return layers


def _key(task: Task, layers: dict[str, nn.Module], heads: Sequence[str], dtype: torch.dtype, tolerance: float) -> str:
    """The name of the folder for these tangents: a hash of everything on which they depend."""
    content = [store.FORMAT, task.fingerprint(), sorted(layers), list(heads), str(dtype), tolerance]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()


class _Pass:
    """One pass over the data. The examples of both splits are numbered together, training examples first."""

    def __init__(
        self,
        task: Task,
        layers: dict[str, nn.Module],
        heads: Sequence[str],
        dtype: torch.dtype,
        tolerance: float,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self.task, self.layers, self.dtype, self.tolerance = task, layers, dtype, tolerance
        self.batch_size, self.progress = batch_size, progress or (lambda done, total: None)
        self.num_train = len(task.train)
        self.device = task.model.device
        self.basis_dtype = torch.promote_types(task.model.dtype, torch.float32)
        self.num_directions: int | None = None  # of the span
        self.centring = centring(task.num_outputs).to(self.device)
        self.summary: dict[str, list[Tensor]] = {
            name: [] for name in ("features", "outputs", "span", "basis", "labels")
        }
        self.normalisation: Tensor | None = None  # γ and β of all features so far; empty if some are not normalised
        train = lengths(task.train)
        self.lengths = train + lengths(task.eval)
        self.plan: Plan | None = None  # None if examples are run in batches
        self.short_layers = ShortLayers(dtype, [task.model.get_submodule(name) for name in heads], self.device)
        self.head: Head = find_head(task.model, heads, self.batch(_by_length(train)[:2])).cpu()

    def batch(self, examples: Sequence[int]) -> dict[str, Tensor]:
        """A padded batch of the examples with these numbers."""
        train, evaluation = self.task.train, self.task.eval
        rows = [train[i] if i < self.num_train else evaluation[i - self.num_train] for i in examples]
        return {name: value.to(self.device) for name, value in self.task.collator(rows).items()}

    def batches(self) -> list[list[int]]:
        """The numbers of the examples of every batch. Also decides whether the model runs on one example at a time."""
        model, order = self.task.model, _by_length(self.lengths)
        shortest, longest = (self.batch([i]) for i in (order[0], order[-1]))
        self.plan = one_by_one_plan(model, self.layers, functools.partial(outputs_of, model), shortest, longest)
        sizes = [rows_of(self.plan, length) for length in self.lengths]
        return alike_in_splits(sizes[: self.num_train], sizes[self.num_train :], self.batch_size)

    def gradients(
        self, examples: Sequence[int], directions: TaskDirections, storage: Rows | None = None
    ) -> tuple[Tensor, list[Call], list[Tensor], list[Tensor]]:
        """Outputs, calls, inputs and gradients of some examples, as from ``layer_gradients``."""
        model = self.task.model
        if self.plan is None:
            batch = self.batch(examples)
            mask = token_mask(batch)
            return layer_gradients(model, self.layers, lambda: self.forward(batch, directions), mask, storage)
        singles = (self.batch([i]) for i in examples)
        return layer_gradients_one_by_one(
            model, self.layers, lambda batch: self.forward(batch, directions), singles, self.plan, storage
        )

    def task_directions(self) -> TaskDirections:
        """The directions of the task in the head's features, from a sample of the training examples.

        Without a head the features are the outputs, and the directions are their centred coordinates. Features are as
        inexact as in the pass itself, which changes the directions by less than 1%.
        """
        if not self.head.names:
            return TaskDirections(self.centring, (self.head,))
        chosen = self.task.examples(PROBE_EXAMPLES)
        features, labels = [], []
        for numbers in alike([self.lengths[i] for i in chosen], self.batch_size):
            batch = self.batch([chosen[i] for i in numbers])
            with self.short_layers:
                features.append(checked_finite(features_of(self.task.model, self.head, batch)).double().cpu())
            labels.append(batch["labels"].cpu())
        classes = self.task.num_outputs if self.task.loss == "cross_entropy" else 1
        rows, heads = task_directions(self.head, torch.cat(features), torch.cat(labels), classes)
        return TaskDirections(rows.to(self.device), heads)

    def forward(self, batch: Mapping[str, Tensor], directions: TaskDirections) -> Tensor:
        """Compute the coordinates of the head's features in the basis (b, q), and add the batch to the summary."""
        model = self.task.model
        with watched(model, self.head.names) as watch, last_normalisation(model) as normalisations:
            with self.short_layers:
                logits = checked_finite(outputs_of(model, batch))
            features, jacobian = head_features(self.head, watch, logits)
        self.update_normalisation(features.detach(), next(iter(normalisations), None), token_mask(batch))
        if not (self.head.linear and self.summary["span"]):
            rows = torch.einsum("kc,bcd->bkd", self.centring, jacobian.double())
            rows = rows[:1] if self.head.linear else rows
            if self.num_directions is None:
                self.num_directions = num_directions(rows, directions.rows, self.head.linear)
            span = output_basis(rows, directions.rows, self.num_directions)
            self.summary["span"].append(span.to(self.basis_dtype))
        span = self.summary["span"][-1]
        basis = limited_basis(span, features, directions.heads)
        one_for_all = self.head.linear and basis is span
        if not (one_for_all and self.summary["basis"]):
            self.summary["basis"].append(basis)
        self.summary["features"].append(features.detach())
        self.summary["outputs"].append(logits.detach())
        self.summary["labels"].append(batch["labels"])
        return torch.einsum("bd,bqd->bq", features.to(self.basis_dtype), basis.expand(len(features), -1, -1))

    def update_normalisation(self, features: Tensor, last: NormalisationCall | None, mask: Tensor | None) -> None:
        """Store γ and β of the last normalisation, as long as the features of all batches come from it."""
        none, width = features.new_empty(0, features.shape[1]), features.shape[1]
        if last is None or not are_normalised(features, last.output, mask):
            self.normalisation = none
        elif self.normalisation is None:
            measured = gain_and_offset(last.module, width, features.dtype, features.device)
            self.normalisation = none if measured is None else measured.to(self.basis_dtype)

    def run(self, folder: Path | None, started: float) -> Tangents:
        """Make the pass.

        Args:
            folder: The folder to which rows are written during the pass. None keeps them in memory.
            started: The time at which the collection began, for its duration.

        Raises:
            InputError: None of the layers runs.
        """
        check_padding_invariant(self.task)
        directions, batches = self.task_directions(), self.batches()
        order = [i for batch in batches for i in batch]
        num_pilots = min(PILOT_EXAMPLES, len(order))
        pilots = [order[(2 * i + 1) * len(order) // (2 * num_pilots)] for i in range(num_pilots)]
        coordinates, calls, inputs, gradients = self.gradients(pilots, directions)
        if not calls:
            raise InputError("modules", "the model runs none of the selected layers", "name layers that the model uses")
        arena = Arena(
            calls,
            coordinates.shape[1],
            [self.lengths[i] for i in order] if token_mask(self.batch(pilots[:1])) is not None else None,
            len(order),
            self.dtype,
            folder,
            _ranks(calls, inputs, gradients, self.tolerance) if self.tolerance else {},
            self.device,
        )
        self.summary = {name: [] for name in self.summary}
        for numbers in batches:
            self.gradients(numbers, directions, arena)
            arena.advance()
            self.progress(arena.done, len(order))
        arena.close()
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        summary: dict[str, Any] = {name: torch.cat(values).cpu() for name, values in self.summary.items()}
        assert self.normalisation is not None
        # rows stay in stored order; everything else is put in the order of the examples
        summary = {name: values[place] if len(values) == len(place) else values for name, values in summary.items()}
        return Tangents(
            entries=arena.entries,
            tensors=arena.tensors,
            place=place,
            counts=torch.tensor([self.lengths[i] for i in order]),
            head=self.head,
            num_train=self.num_train,
            loss=self.task.loss,
            normalisation=self.normalisation.cpu(),
            seconds=time.perf_counter() - started,
            **summary,
        )


def _by_length(lengths: Sequence[int]) -> list[int]:
    """The numbers of the examples, shorter examples first."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i])


def _ranks(calls: list[Call], inputs: list[Tensor], gradients: list[Tensor], tolerance: float) -> dict[int, Ranks]:
    """Choose the ranks of the compression, by the position of the first call with the same input.

    Groups of calls that compression does not help are not listed.
    """
    chosen: dict[int, Ranks] = {}
    for shared in dict.fromkeys(call.shared for call in calls):
        counts = calls[shared].row_counts
        side_by_side = torch.cat([gradients[call.position].flatten(1) for call in calls if call.shared == shared], 1)
        lengths = counts.tolist()
        ranks = ranks_for(padded(inputs[shared], lengths), padded(side_by_side, lengths), counts, tolerance)
        if ranks is not None:
            chosen[shared] = ranks
    return chosen
