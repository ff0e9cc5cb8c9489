"""The empirical neural tangent kernel of LoRA adapters, as a sum of named blocks (theory.md sections 0 and 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foretune.brief import brief
from foretune.kernel.blocks import CallRows, Factors, layer_kernels
from foretune.kernel.spectrum import Spectrum
from foretune.kernel.subsets import Perturbation, perturbation
from foretune.tangents import Adapter, Tangents, centring

Granularity = Literal["module", "rank_row"]


@dataclass(frozen=True, repr=False)
class Kernel:
    """An NTK ``K = J J'`` over the *centred* outputs, with targets and initial outputs in the same coordinates.

    Each example's c outputs are projected on the k = c - 1 orthonormal rows P of ``centring(c)``: adding one number
    to all logits changes nothing (k = c = 1 for regression). Everything is stacked example-major, N = n k entries:
    entry ``i k + m`` is coordinate m of example i. Rows of a block are all examples, those for training first; columns
    are the training examples. K is a sum over blocks of parameters, so subsets are sums (theory.md section 5).

    Attributes:
        blocks: ``J_b J_b[train]'`` by name: layer and factor, such as ``encoder.layer.0.attention.self.query.B``, and
            the rank row behind it where kernels were asked for by rank row.
        y: Targets P y (n k): one-hot vectors, or numbers.
        f0: Outputs P f0 before training.
        num_train: How many examples are for training.
        loss: ``cross_entropy`` or ``mean_squared_error``.
    """

    blocks: Mapping[str, Float[Tensor, "N M"]]
    y: Float[Tensor, "n k"]
    f0: Float[Tensor, "n k"]
    num_train: int
    loss: str
    __repr__ = brief

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks' names."""
        return tuple(self.blocks)

    @property
    def num_directions(self) -> int:
        """Centred outputs k of an example."""
        return self.y.shape[1]

    @property
    def num_outputs(self) -> int:
        """Outputs c of an example."""
        return 1 if self.loss == "mean_squared_error" else self.num_directions + 1

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the blocks were computed."""
        return next(iter(self.blocks.values())).dtype

    @cached_property
    def matrix(self) -> Float[Tensor, "N M"]:
        """The sum of the blocks in float64: all examples × training examples."""
        total = torch.zeros(next(iter(self.blocks.values())).shape, dtype=torch.float64)
        for block in self.blocks.values():
            total += block
        train = total[: total.shape[1]]
        total[: total.shape[1]] = (train + train.T) / 2
        return total

    @property
    def k_train_train(self) -> Float[Tensor, "M M"]:
        """The kernel of the training examples: symmetric, positive semi-definite."""
        return self.matrix[: self.matrix.shape[1]]

    @property
    def k_eval_train(self) -> Float[Tensor, "E M"]:
        """The kernel of evaluation and training examples."""
        return self.matrix[self.matrix.shape[1] :]

    @property
    def y_train(self) -> Float[Tensor, "n k"]:
        """Targets of the training examples."""
        return self.y[: self.num_train]

    @property
    def y_eval(self) -> Float[Tensor, "n k"]:
        """Targets of the evaluation examples."""
        return self.y[self.num_train :]

    @property
    def fx_train_0(self) -> Float[Tensor, "n k"]:
        """Outputs for the training examples before training."""
        return self.f0[: self.num_train]

    @property
    def fx_eval_0(self) -> Float[Tensor, "n k"]:
        """Outputs for the evaluation examples before training."""
        return self.f0[self.num_train :]

    @property
    def r0(self) -> Float[Tensor, " M"]:
        """The initial residual ``y - f0`` of the training examples, stacked example-major."""
        return (self.y_train - self.fx_train_0).flatten()

    def subset(self, names: Sequence[str]) -> "Kernel":
        """The kernel of some of the blocks; a name stands for all blocks that it is the beginning of (up to a dot).

        Raises:
            ValueError: Nothing has one of these names.
        """
        chosen: dict[str, Tensor] = {}
        for name in names:
            found = {key: block for key, block in self.blocks.items() if f"{key}.".startswith(f"{name}.")}
            if not found:
                raise ValueError(f"names: no block {name!r}, use some of {', '.join(self.blocks)}")
            chosen |= found
        return replace(self, blocks={key: block for key, block in self.blocks.items() if key in chosen})

    def perturbation(self, base: Sequence[str], added: Sequence[str], strength: float) -> Perturbation:
        """What adding some blocks to others does on the training examples, beside its bounds (theory.md P6 to P10).

        Args:
            base: Names of the blocks there are, as in :meth:`subset`.
            added: Names of those that are added.
            strength: Of ridge regression, above 0, in the sum convention.

        Raises:
            ValueError: Nothing has one of these names, a block is in both, or the strength is not above 0.
        """
        one, other = self.subset(base), self.subset(added)
        twice = [name for name in one.names if name in other.blocks]
        if twice:
            raise ValueError(f"added: {', '.join(twice)} is in base already, name other blocks")
        return perturbation(one.k_train_train, other.k_train_train, self.r0, strength, self.dtype)

    def __add__(self, other: "Kernel") -> "Kernel":
        """The kernel of both sets of parameters.

        Raises:
            ValueError: They overlap, or the kernels are not of the same examples and model.
        """
        twice = sorted(set(self.blocks) & set(other.blocks))
        if twice:
            raise ValueError(f"both kernels have {', '.join(twice)}: a parameter counts once, use subset()")
        if self.num_train != other.num_train or not (torch.equal(self.y, other.y) and torch.equal(self.f0, other.f0)):
            raise ValueError("the kernels are of different examples or models: add kernels of the same tangents")
        return replace(self, blocks={**self.blocks, **other.blocks})

    def centred(self, outputs: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """Centred coordinates ``P f`` of outputs f."""
        return outputs.double() @ centring(self.num_outputs).T

    def outputs(self, centred: Float[Tensor, "*t n k"]) -> Float[Tensor, "*t n c"]:
        """Outputs ``P' z`` with these centred coordinates: logits that sum to zero, or numbers."""
        return centred @ centring(self.num_outputs)

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum.of(self.k_train_train, precision=self.dtype)

    def spectrum(self) -> Spectrum:
        """Eigenvalues and eigenvectors of the training kernel, factored once."""
        return self._spectrum

    def condition_number(self) -> float:
        """κ of the training kernel: see ``Spectrum.condition_number``."""
        return self._spectrum.condition_number


def ntk(tangents: Tangents, adapters: Sequence[Adapter], granularity: Granularity = "module") -> Kernel:
    """The NTK of LoRA adapters on a network, from its tangents: no pass over the model.

    ``K[(i,m),(j,l)] = sum_p  d(P f)_m(x_i)/d p  d(P f)_l(x_j)/d p`` over all entries p of the factors A and B, without
    any normalising constant; the head is not among the parameters. With B = 0 the blocks of A are zero and left out.
    Exact up to rounding where the output basis holds all k directions (c up to 9), else projected on each example's.
    Products are in float64 for rows stored in float64, else in float32, of rows stored in bfloat16 as exact as these
    are (``short_products``); sums of blocks in float64.

    Args:
        tangents: Of the network and its examples.
        adapters: The adapters before training; several on one layer are summed as peft sums them.
        granularity: ``module`` (a block for every A and B) or ``rank_row`` (for every row of A and column of B).

    Raises:
        ValueError: Of no adapters, or of a layer without tangents.
    """
    if granularity not in {"module", "rank_row"}:
        raise ValueError(f"granularity is {granularity!r}, write 'module' or 'rank_row'")
    factors = Factors.by_layer(adapters)
    missing = sorted(set(factors) - set(tangents.layers))
    if missing or not factors:
        raise ValueError(
            f"no tangents of {', '.join(missing)}: collect them with modules={missing!r}"
            if factors
            else "adapters is empty: pass what read_adapters or draw_adapters gives"
        )
    everything, stored = torch.arange(tangents.num_examples), tangents.stored
    centred = centring(tangents.outputs.shape[1])
    mixing = torch.einsum("kc,bcq->bkq", centred, tangents.output_gradients(everything))[stored]
    dtype = torch.float64 if tangents.dtype == torch.float64 else torch.float32
    blocks: dict[str, Tensor] = {}
    for layer, pair in factors.items():
        calls = [
            CallRows(
                tangents.inputs(number),
                tangents.gradients(number),
                tangents.row_counts(entry.rows_per_example),
                stored,
                mixing.to(dtype),
            )
            for number, entry in enumerate(tangents.entries)
            if entry.layer == layer
        ]
        for name, block in layer_kernels(
            calls, pair, everything[: tangents.num_train], dtype=dtype, by_rank=granularity == "rank_row"
        ):
            blocks[f"{layer}.{name}"] = block.cpu()
    return Kernel(
        blocks,
        targets(tangents.labels, tangents.loss, tangents.outputs.shape[1]) @ centred.T,
        tangents.outputs.double() @ centred.T,
        tangents.num_train,
        tangents.loss,
    )


def targets(labels: Int[Tensor, " n"] | Float[Tensor, " n"], loss: str, num_outputs: int) -> Float[Tensor, "n c"]:
    """Targets of the squared loss: one-hot vectors of classes, or the numbers themselves."""
    if loss == "mean_squared_error":
        return labels.double().reshape(-1, 1)
    return torch.nn.functional.one_hot(labels.long(), num_outputs).double()
