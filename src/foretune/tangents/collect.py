"""The one pass over the data: inputs and output gradients of every layer that any candidate adapts."""

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
from foretune.tangents.basis import TaskDirections, centring, limited, num_directions, output_basis, task_directions
from foretune.tangents.compress import TOLERANCE, Ranks, padded, ranks_for
from foretune.tangents.experts import routed
from foretune.tangents.head import Head, entering, features_of, find_head, finite, head_names, outputs_of, watched
from foretune.tangents.hooks import Call, Rows, layer_gradients, token_mask
from foretune.tangents.lengths import alike, alike_in_splits, lengths
from foretune.tangents.normalisation import Seen, gain_and_offset, last_normalised, made_of
from foretune.tangents.one_by_one import Plan, layer_gradients_one_by_one, one_by_one_plan, rows_of
from foretune.tangents.padding import check_padding_invariant
from foretune.tangents.products import ShortLayers
from foretune.tangents.rules import check_supported, supported
from foretune.tangents.tangents import Tangents
from foretune.task import Task

PROBE_EXAMPLES = 512  # training examples on which the directions of the task are estimated
PILOT_EXAMPLES = 8  # of all lengths, on which it is seen to how few rows each layer's can be compressed
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
    """Tangents of the task's model at its pretrained weights, for its training and evaluation examples.

    For every call ``z = W a`` of an adapted layer this keeps ``a`` and the gradients at ``z`` of the features that
    enter the trained head, along an orthonormal basis of few directions (docs/theory.md section 6). It costs one
    forward and one activation-only backward pass a direction, whatever adapters are forecast later, on ``task.device``.
    Modules without a rule, names that match nothing and heads that cannot be cut off are an ``InputError``.

    Args:
        task: Model, data and loss.
        modules: ``all-linear`` (all supported layers but the head, routers and experts), or full names or name endings.
        heads: Modules that are trained in full; by default the classification head as peft finds it, ``()`` if none.
        directory: Keep the tangents there; those of the same task, model and modules are used again.
        dtype: How rows are stored; by default bfloat16 for single precision models, else the model's own type.
        tolerance: Share of an example's squared gradient in a layer's weight that may be left out, on average, to keep
            fewer rows than it has tokens; by default 0.02 for rows that are stored in bfloat16, else 0.
        sample: Of so many training examples, which then stand for all of them; by default of all.
        batch_size: Most examples in one pass, fewer of long texts; results do not depend on it.
        progress: Called with examples done and in all.
        notify: Called with a sentence about tangents in ``directory`` that are damaged and made again.
    """
    started = time.perf_counter()
    task = task if sample is None else task.sampled(sample)
    model = task.model.eval()
    heads = head_names(model) if heads is None else tuple(heads)
    layers = select_layers(model, modules, heads)
    kept = dtype or (torch.bfloat16 if model.dtype == torch.float32 else model.dtype)
    tolerance = (TOLERANCE if kept == torch.bfloat16 else 0.0) if tolerance is None else tolerance
    with task.placed():
        work = _Pass(task, layers, heads, kept, tolerance, batch_size, progress)
        if directory is None:
            return work.run(None, started)
        # hashes the weights: only where it is needed
        folder = Path(directory) / _key(task, layers, heads, kept, tolerance)
        tangents = Tangents.load(folder, lambda: work.head, notify)
        if tangents is None:
            with store.writing(folder) as temporary:
                work.run(temporary, started).save(temporary)
            tangents = Tangents.load(folder, lambda: work.head)
            assert tangents is not None
            tangents.reused = False
    return tangents


def select_layers(model: nn.Module, modules: str | Sequence[str], heads: Sequence[str]) -> dict[str, nn.Module]:
    """The layers meant by ``modules``, without those of the head.

    Raises:
        InputError: None is meant, or some have no rule.
    """
    outside = {
        name: module
        for name, module in model.named_modules()
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    }
    if modules == "all-linear":
        parts = tuple(f"{name}." for name in routed(model))  # they do not run on the same tokens once others are chosen
        return {name: it for name, it in outside.items() if supported(it) and not f"{name}.".startswith(parts)}
    endings = (modules,) if isinstance(modules, str) else tuple(modules)
    layers = {
        name: module
        for name, module in outside.items()
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
    }
    if not layers:
        names = sorted({name.rsplit(".", 1)[-1] for name, module in outside.items() if supported(module)})
        raise InputError("modules", f"no layer is called {', '.join(endings)}", f"use some of: {', '.join(names)}")
    check_supported(layers)
    return layers


def _key(task: Task, layers: dict[str, nn.Module], heads: Sequence[str], dtype: torch.dtype, tolerance: float) -> str:
    content = [store.FORMAT, task.fingerprint(), sorted(layers), list(heads), str(dtype), tolerance]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()


class _Pass:
    """The state of one pass: each split's examples sorted by length, so that batches waste little on padding."""

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
        self.most, self.progress = batch_size, progress or (lambda done, total: None)
        self.num_train = len(task.train)
        self.device = task.model.device
        self.kind = torch.promote_types(task.model.dtype, torch.float32)  # of the basis
        self.count: int | None = None  # its directions
        self.centring = centring(task.num_outputs).to(self.device)
        self.summary: dict[str, list[Tensor]] = {
            name: [] for name in ("features", "outputs", "span", "basis", "labels")
        }
        self.normalisation: Tensor | None = None  # of the features, as far as they were seen
        train = lengths(task.train)
        self.lengths = train + lengths(task.eval)
        self.plan: Plan | None = None  # how examples are run one by one, if they are
        self.short_layers = ShortLayers(dtype, [task.model.get_submodule(name) for name in heads], self.device)
        self.head: Head = find_head(task.model, heads, self.batch(_by_length(train)[:2])).cpu()

    def batch(self, examples: Sequence[int]) -> dict[str, Tensor]:
        """A padded batch of examples, numbered through both splits."""
        train, evaluation = self.task.train, self.task.eval
        rows = [train[i] if i < self.num_train else evaluation[i - self.num_train] for i in examples]
        return {name: value.to(self.device) for name, value in self.task.collator(rows).items()}

    def batches(self) -> list[list[int]]:
        """Examples to compute together, as many as there is memory for; decides whether they are run one by one."""
        model, order = self.task.model, _by_length(self.lengths)
        shortest, longest = (self.batch([i]) for i in (order[0], order[-1]))
        self.plan = one_by_one_plan(model, self.layers, functools.partial(outputs_of, model), shortest, longest)
        sizes = [rows_of(self.plan, length) for length in self.lengths]
        return alike_in_splits(sizes[: self.num_train], sizes[self.num_train :], self.most)

    def gradients(
        self, examples: Sequence[int], directions: TaskDirections, room: Rows | None = None
    ) -> tuple[Tensor, list[Call], list[Tensor], list[Tensor]]:
        """Outputs, calls, inputs and gradients of some examples, see ``layer_gradients``."""
        model = self.task.model
        if self.plan is None:
            batch = self.batch(examples)
            return layer_gradients(model, self.layers, lambda: self.forward(batch, directions), token_mask(batch), room)
        alone = (self.batch([i]) for i in examples)
        return layer_gradients_one_by_one(
            model, self.layers, lambda batch: self.forward(batch, directions), alone, self.plan, room
        )

    def task_directions(self) -> TaskDirections:
        """Directions of the task in the head's features, from a sample of the training examples.

        Without a head these are the outputs, and all of their directions are alike.
        Features may be as inexact as in the pass itself: that turns the directions by less than 1%.
        """
        if not self.head.names:
            return TaskDirections(self.centring, (self.head,))
        chosen = self.task.examples(PROBE_EXAMPLES)
        features, labels = [], []
        for some in alike([self.lengths[i] for i in chosen], self.most):
            batch = self.batch([chosen[i] for i in some])
            with self.short_layers:
                features.append(finite(features_of(self.task.model, self.head, batch)).double().cpu())
            labels.append(batch["labels"].cpu())
        classes = self.task.num_outputs if self.task.loss == "cross_entropy" else 1
        rows, heads = task_directions(self.head, torch.cat(features), torch.cat(labels), classes)
        return TaskDirections(rows.to(self.device), heads)

    def forward(self, batch: Mapping[str, Tensor], directions: TaskDirections) -> Tensor:
        """Coordinates of the head's features in the output basis (b, q), keeping the summary of the batch."""
        model = self.task.model
        with watched(model, self.head.names) as watch, last_normalised(model) as normalised:
            with self.short_layers:
                logits = finite(outputs_of(model, batch))
            features, jacobian = entering(self.head, watch, logits)
        self.look_at_normalisation(features.detach(), next(iter(normalised), None), token_mask(batch))
        if not (self.head.linear and self.summary["span"]):
            rows = torch.einsum("kc,bcd->bkd", self.centring, jacobian.double())
            rows = rows[:1] if self.head.linear else rows
            if self.count is None:
                self.count = num_directions(rows, directions.rows, self.head.linear)
            self.summary["span"].append(output_basis(rows, directions.rows, self.count).to(self.kind))
        span = self.summary["span"][-1]
        basis = limited(span, features, directions.heads)
        of_all = self.head.linear and basis is span
        if not (of_all and self.summary["basis"]):
            self.summary["basis"].append(basis)
        self.summary["features"].append(features.detach())
        self.summary["outputs"].append(logits.detach())
        self.summary["labels"].append(batch["labels"])
        return torch.einsum("bd,bqd->bq", features.to(self.kind), basis.expand(len(features), -1, -1))

    def look_at_normalisation(self, features: Tensor, seen: Seen | None, mask: Tensor | None) -> None:
        """Know the scales of the last normalisation, as long as all features are made of what it gives."""
        none, width = features.new_empty(0, features.shape[1]), features.shape[1]
        if seen is None or not made_of(features, seen.output, mask):
            self.normalisation = none
        elif self.normalisation is None:
            found = gain_and_offset(seen.module, width, features.dtype, features.device)
            self.normalisation = none if found is None else found.to(self.kind)

    def run(self, folder: Path | None, started: float) -> Tangents:
        """Make the pass; rows are written to ``folder`` as they come, or kept in memory.

        Raises:
            InputError: None of the layers runs.
        """
        check_padding_invariant(self.task)
        directions, batches = self.task_directions(), self.batches()
        order = [i for batch in batches for i in batch]
        some = min(PILOT_EXAMPLES, len(order))
        pilot = [order[(2 * i + 1) * len(order) // (2 * some)] for i in range(some)]
        scout, calls, inputs, gradients = self.gradients(pilot, directions)
        if not calls:
            raise InputError("modules", "none of these layers runs", "name layers that the model uses")
        room = Arena(
            calls,
            scout.shape[1],
            [self.lengths[i] for i in order] if token_mask(self.batch(pilot[:1])) is not None else None,
            len(order),
            self.dtype,
            folder,
            _ranks(calls, inputs, gradients, self.tolerance) if self.tolerance else {},
            self.device,
        )
        self.summary = {name: [] for name in self.summary}
        for numbers in batches:
            self.gradients(numbers, directions, room)
            room.advance()
            self.progress(room.done, len(order))
        room.close()
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        summary: dict[str, Any] = {name: torch.cat(values).cpu() for name, values in self.summary.items()}
        assert self.normalisation is not None
        # rows stay in the order in which they were written; everything else goes back to the order of the examples
        summary = {name: values[place] if len(values) == len(place) else values for name, values in summary.items()}
        return Tangents(
            entries=room.entries,
            tensors=room.tensors,
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
    """Numbers of the examples, shorter ones first."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i])


def _ranks(calls: list[Call], inputs: list[Tensor], gradients: list[Tensor], tolerance: float) -> dict[int, Ranks]:
    """How many rows an example needs in each group of calls with the same input, where these are fewer than it has."""
    found: dict[int, Ranks] = {}
    for shared in dict.fromkeys(call.shared for call in calls):
        counts = calls[shared].row_counts
        together = torch.cat([gradients[call.position].flatten(1) for call in calls if call.shared == shared], 1)
        lengths = counts.tolist()
        ranks = ranks_for(padded(inputs[shared], lengths), padded(together, lengths), counts, tolerance)
        if ranks is not None:
            found[shared] = ranks
    return found
