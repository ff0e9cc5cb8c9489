"""The empirical neural tangent kernel (NTK) of LoRA adapters, as a sum of named blocks.

The NTK is ``K = J J'``, where the Jacobian J holds the derivative of every output in every trained parameter. See
docs/theory.md sections 0 and 5.
"""

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

    Adding one number to all logits of an example changes no prediction. So the c outputs of an example are projected on
    the k = c - 1 orthonormal rows P of ``centring(c)``. For regression k = c = 1. Matrices are stacked example-major
    and have N = n k entries per axis: entry ``i k + m`` is coordinate m of example i. The rows of a block are all
    examples, training examples first. The columns are the training examples. K is the sum of the blocks, one for every
    part of the parameters, so the kernel of some parts is the sum of their blocks (docs/theory.md section 5).

    Attributes:
        blocks: ``J_b J_b[train]'`` by name. A name is a layer and a factor, such as
            ``encoder.layer.0.attention.self.query.B``, followed by the rank row if the kernel is split by rank row.
        y: Targets P y (n k): projected one-hot vectors, or numbers for regression.
        f0: Outputs P f0 before training.
        num_train: Number of training examples.
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
        """The names of the blocks."""
        return tuple(self.blocks)

    @property
    def num_directions(self) -> int:
        """Number of centred outputs of an example, k."""
        return self.y.shape[1]

    @property
    def num_outputs(self) -> int:
        """Number of outputs of an example, c."""
        return 1 if self.loss == "mean_squared_error" else self.num_directions + 1

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type in which the blocks were computed."""
        return next(iter(self.blocks.values())).dtype

    @cached_property
    def matrix(self) -> Float[Tensor, "N M"]:
        """The sum of the blocks in float64, all examples × training examples."""
        total = torch.zeros(next(iter(self.blocks.values())).shape, dtype=torch.float64)
        for block in self.blocks.values():
            total += block
        train = total[: total.shape[1]]
        total[: total.shape[1]] = (train + train.T) / 2
        return total

    @property
    def k_train_train(self) -> Float[Tensor, "M M"]:
        """The kernel between training examples; it is symmetric and positive semi-definite."""
        return self.matrix[: self.matrix.shape[1]]

    @property
    def k_eval_train(self) -> Float[Tensor, "E M"]:
        """The kernel between evaluation examples (rows) and training examples (columns)."""
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
        """Outputs on the training examples before training."""
        return self.f0[: self.num_train]

    @property
    def fx_eval_0(self) -> Float[Tensor, "n k"]:
        """Outputs on the evaluation examples before training."""
        return self.f0[self.num_train :]

    @property
    def r0(self) -> Float[Tensor, " M"]:
        """The initial residual ``y - f0`` of the training examples, stacked example-major."""
        return (self.y_train - self.fx_train_0).flatten()

    def subset(self, names: Sequence[str]) -> "Kernel":
        """The kernel of some of the blocks.

        Args:
            names: Names of blocks. A name that ends at a dot of longer names stands for all of them, so
                ``encoder.layer.0`` stands for every block of that layer.

        Raises:
            ValueError: No block has one of these names.
        """
        chosen: dict[str, Tensor] = {}
        for name in names:
            matching = {key: block for key, block in self.blocks.items() if f"{key}.".startswith(f"{name}.")}
            if not matching:
                raise ValueError(f"names: there is no block {name!r}, use some of {', '.join(self.blocks)}")
            chosen |= matching
        return replace(self, blocks={key: block for key, block in self.blocks.items() if key in chosen})

    def perturbation(self, base: Sequence[str], added: Sequence[str], strength: float) -> Perturbation:
        """Compare the training kernel before and after blocks are added, with the bounds of docs/theory.md P6 to P10.

        Args:
            base: Names of the blocks to start from, as in :meth:`subset`.
            added: Names of the blocks to add.
            strength: σ, the strength of ridge regression (least squares with a penalty on the parameters' norm), above
                0, in the sum convention.

        Raises:
            ValueError: No block has one of these names, a block is in both lists, or the strength is not above 0.
        """
        before, extra = self.subset(base), self.subset(added)
        repeated = [name for name in before.names if name in extra.blocks]
        if repeated:
            raise ValueError(f"added: {', '.join(repeated)} is already in base, name other blocks")
        return perturbation(before.k_train_train, extra.k_train_train, self.r0, strength, self.dtype)

    def __add__(self, other: "Kernel") -> "Kernel":
        """The kernel of both kernels' parameters together.

        Raises:
            ValueError: The kernels share a block, or belong to different examples or models.
        """
        repeated = sorted(set(self.blocks) & set(other.blocks))
        if repeated:
            raise ValueError(f"both kernels have {', '.join(repeated)}: a parameter counts once, use subset()")
        if self.num_train != other.num_train or not (torch.equal(self.y, other.y) and torch.equal(self.f0, other.f0)):
            raise ValueError("the kernels belong to different examples or models: add kernels of the same tangents")
        return replace(self, blocks={**self.blocks, **other.blocks})

    def centred(self, outputs: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """The centred coordinates ``P f`` of outputs f."""
        return outputs.double() @ centring(self.num_outputs).T

    def outputs(self, centred: Float[Tensor, "*t n k"]) -> Float[Tensor, "*t n c"]:
        """The outputs ``P' z`` that have the centred coordinates z: logits that sum to zero, or numbers."""
        return centred @ centring(self.num_outputs)

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum.of(self.k_train_train, precision=self.dtype)

    def spectrum(self) -> Spectrum:
        """Eigenvalues and eigenvectors of the training kernel. They are computed once."""
        return self._spectrum

    def condition_number(self) -> float:
        """The condition number κ of the training kernel, see ``Spectrum.condition_number``."""
        return self._spectrum.condition_number


def ntk(tangents: Tangents, adapters: Sequence[Adapter], granularity: Granularity = "module") -> Kernel:
    """Compute the NTK of LoRA adapters from tangents, without running the model.

    ``K[(i,m),(j,l)] = sum_p  d(P f)_m(x_i)/d p  d(P f)_l(x_j)/d p`` over all entries p of the factors A and B, with no
    normalising constant. The head's parameters are not included. If B = 0, the blocks of A are zero and left out. The
    kernel is exact up to rounding if the output basis holds all k directions, which is so for up to 9 outputs.
    Otherwise the gradients of every example are projected on that example's directions. Products are computed in
    float64 if the rows are stored in float64, otherwise in float32. For rows stored in bfloat16 they are as precise as
    the rows (``short_products``). Blocks are summed in float64.

    Args:
        tangents: The inputs and output gradients of the adapted layers, for every example.
        adapters: The adapters before training. Several adapters on one layer are summed as peft sums them.
        granularity: ``module`` gives a block for every A and B, ``rank_row`` for every row of A and column of B.

    Raises:
        ValueError: There are no adapters, or a layer has no tangents.
    """
    if granularity not in {"module", "rank_row"}:
        raise ValueError(f"granularity is {granularity!r}, write 'module' or 'rank_row'")
    factors = Factors.by_layer(adapters)
    missing = sorted(set(factors) - set(tangents.layers))
    if missing or not factors:
        raise ValueError(
            f"there are no tangents of {', '.join(missing)}: collect them with modules={missing!r}"
            if factors
            else "adapters is empty: pass the result of read_adapters or draw_adapters"
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
    """The targets of the squared loss: one-hot vectors for classes, the labels themselves for regression."""
    if loss == "mean_squared_error":
        return labels.double().reshape(-1, 1)
    return torch.nn.functional.one_hot(labels.long(), num_outputs).double()
