"""Linearised fine-tuning under cross-entropy with the proximal term (theory.md section 3).

Convention: the loss is a **sum**, ``Σ -log softmax(f(x_i))[label_i] + (λ/2) ‖θ - θ0‖²`` with ``f = f0 + J δ``; the
λ of a mean loss is converted by ``sum_strength``. Everything is in the centred output coordinates of ``Kernel``.

The problem is strictly convex, and Newton's method on any features Φ with ``K = Φ Φ'`` solves it:

    minimise over w   Σ_i [ log Σ exp(P' z_i) - z_i' y_i ] + (λ/2) ‖w‖²,   z = f0 + Φ w

In *parameter form* Φ is the Jacobian J and w is δ. In *kernel form* Φ is ``V √σ`` from the kernel's eigenvectors: then
``α = V w / √σ`` are the dual variables of ``f = f0 + K α`` with the penalty ``(λ/2) α'Kα``, and as many as its rank.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.brief import brief
from foretune.kernel import Kernel
from foretune.linear.closed_form import Modes
from foretune.tangents import centring

MAX_STEPS = 100
NEAR = 0.01  # change of any output from which on full steps shrink the Newton decrement


@dataclass(frozen=True, repr=False)
class LogisticFit:
    """The minimiser of cross-entropy with the proximal term, for the linearised model.

    Attributes:
        fx_train: Outputs for the training examples, centred (n k).
        fx_eval: Outputs for the evaluation examples, centred (m k).
        loss: ``Σ -log softmax(f(x_i))[label_i]`` over the training examples.
        objective: The loss with the term, ``loss + (λ/2) ‖δ‖²``.
        strength: λ, in the sum convention.
        steps: Newton steps taken.
        converged: Whether the last ones changed rounding only; otherwise the fit is where they ended.
    """

    fx_train: Float[Tensor, "n k"]
    fx_eval: Float[Tensor, "m k"]
    loss: float
    objective: float
    strength: float
    steps: int
    converged: bool
    __repr__ = brief


def logistic(kernel: Kernel | Modes, strength: float, jacobian: Float[Tensor, "N p"] | None = None) -> LogisticFit:
    """Kernel multinomial logistic regression: the linearised model trained to the end under cross-entropy.

    Args:
        kernel: The kernel, or its modes where many strengths are tried.
        strength: λ > 0, in the sum convention. Without the term separable classes have no minimiser.
        jacobian: J of all examples' centred outputs, training examples first, with ``K = J J'``. Where it has fewer
            columns than the kernel, the problem is solved in its parameters.

    Raises:
        ValueError: The kernel is of a regression, λ is not above 0 or too small for the kernel in float64, or the
            Jacobian is not of the kernel's examples.
    """
    base = kernel.kernel if isinstance(kernel, Modes) else kernel
    if base.loss != "cross_entropy":
        raise ValueError(f"kernel is of {base.loss}, use ridge")
    if not strength > 0:
        raise ValueError(f"strength is {strength}, pass a number above 0")
    num_rows = base.fx_train_0.numel()
    if jacobian is not None and len(jacobian) != base.f0.numel():
        raise ValueError(f"jacobian has {len(jacobian)} rows, the kernel's examples have {base.f0.numel()} outputs")
    if jacobian is not None and jacobian.shape[1] < num_rows:
        train, evaluation = jacobian[:num_rows].double(), jacobian[num_rows:].double()
    else:
        train, evaluation = _features(Modes.of(kernel))
    problem = _Problem(train, base.fx_train_0, base.y_train, centring(base.num_outputs), strength)
    weights, steps, converged = _minimise(problem)
    fx_eval = base.fx_eval_0 + (evaluation @ weights).view_as(base.fx_eval_0)
    loss, objective = problem.loss(weights), problem.objective(weights)
    return LogisticFit(problem.outputs(weights), fx_eval, loss, objective, strength, steps, converged)


def _features(modes: Modes) -> tuple[Float[Tensor, "M r"], Float[Tensor, "E r"]]:
    """``V √σ`` of the training examples and ``K(X_eval, X_train) V / √σ``, over eigenvalues that are not zero."""
    rank = modes.spectrum.rank
    assert modes.spectrum.eigenvectors is not None
    roots = modes.spectrum.eigenvalues[:rank].sqrt()
    return modes.spectrum.eigenvectors[:, :rank] * roots, modes.k_eval_modes[:, :rank] / roots


@dataclass(frozen=True)
class _Problem:
    """The objective in w, its derivatives, and the outputs."""

    features: Float[Tensor, "M r"]
    fx_0: Float[Tensor, "n k"]
    y: Float[Tensor, "n k"]
    centre: Float[Tensor, "k c"]
    strength: float

    def outputs(self, weights: Float[Tensor, " r"]) -> Float[Tensor, "n k"]:
        return self.fx_0 + (self.features @ weights).view_as(self.fx_0)

    def loss(self, weights: Float[Tensor, " r"]) -> float:
        fx = self.outputs(weights)
        return float((fx @ self.centre).logsumexp(1).sum() - (fx * self.y).sum())

    def objective(self, weights: Float[Tensor, " r"]) -> float:
        return self.loss(weights) + self.strength / 2 * float(weights.square().sum())

    def newton(self, weights: Float[Tensor, " r"]) -> tuple[Float[Tensor, " r"], float]:
        """The Newton direction and the squared decrement ``g' H⁻¹ g``.

        An example's Hessian in its outputs is ``P (diag p - p p') P' = S S'`` with ``S = P (diag √p - p √p')``.

        Raises:
            ValueError: λ is too small beside the kernel to factor the Hessian.
        """
        probabilities = (self.outputs(weights) @ self.centre).softmax(1)  # (n, c)
        mean = probabilities @ self.centre.T  # (n, k)
        gradient = self.features.T @ (mean - self.y).flatten() + self.strength * weights
        roots = (self.centre - mean.unsqueeze(2)) * probabilities.sqrt().unsqueeze(1)  # S (n, k, c)
        n, k = self.fx_0.shape
        half = (roots.mT @ self.features.view(n, k, -1)).flatten(0, 1)  # (n c, r)
        hessian = half.T @ half
        hessian.diagonal().add_(self.strength)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed:
            raise ValueError(f"strength is {self.strength}, too small for this kernel in float64: pass a larger one")
        direction = -torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1)
        return direction, -float(gradient @ direction)


def _minimise(problem: _Problem) -> tuple[Float[Tensor, " r"], int, bool]:
    """The minimiser, the steps to it, and whether they converged.

    Far from it, steps are halved until the objective falls by a quarter of what its slope promises. Where a step
    moves no output by more than ``NEAR``, the next decrement is a small fraction of this one (the Hessian changes
    by a factor of at most ``exp(2 NEAR)``), until both are rounding: that is the end.
    """
    weights, last = problem.features.new_zeros(problem.features.shape[1]), math.inf
    for steps in range(MAX_STEPS):
        direction, decrement = problem.newton(weights)
        if decrement >= last / 4:
            return weights, steps, True
        near = float((problem.features @ direction).abs().max()) < NEAR
        size = 1.0 if near else _line_search(problem, weights, direction, decrement)
        weights, last = weights + size * direction, decrement if near else math.inf
    return weights, MAX_STEPS, False


def _line_search(problem: _Problem, weights: Tensor, direction: Tensor, decrement: float) -> float:
    size, now = 1.0, problem.objective(weights)
    while size > 1e-9 and problem.objective(weights + size * direction) > now - size * decrement / 4:
        size /= 2
    return size
