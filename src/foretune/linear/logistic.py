"""Linearised fine-tuning under cross-entropy with the proximal term, trained to the end (docs/theory.md section 3).

The proximal term is a penalty on the distance from the parameters before training, θ0. The loss is a **sum**:
``Σ -log softmax(f(x_i))[label_i] + (λ/2) ‖θ - θ0‖²`` with ``f = f0 + J δ`` and ``δ = θ - θ0``. ``sum_strength``
converts the λ of a mean loss. All outputs are in the centred coordinates of ``Kernel``.

The problem is strictly convex. Newton's method solves it with any features Φ for which ``K = Φ Φ'``:

    minimise over w   Σ_i [ log Σ exp(P' z_i) - z_i' y_i ] + (λ/2) ‖w‖²,   z = f0 + Φ w

In *parameter form* Φ is the Jacobian J and w is δ. In *kernel form* Φ is ``V √σ``, where V are the kernel's
eigenvectors and σ its eigenvalues. Then ``α = V w / √σ`` are the dual variables of ``f = f0 + K α`` with the penalty
``(λ/2) α'Kα``, and w has as many entries as the kernel has rank.
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
NEAR = 0.01  # if no output changes by more than this, full Newton steps converge


@dataclass(frozen=True, repr=False)
class LogisticFit:
    """The minimiser of cross-entropy with the proximal term, for the linearised model.

    Attributes:
        fx_train: Centred outputs on the training examples (n k).
        fx_eval: Centred outputs on the evaluation examples (m k).
        loss: ``Σ -log softmax(f(x_i))[label_i]`` over the training examples.
        objective: The loss plus the penalty, ``loss + (λ/2) ‖δ‖²``.
        strength: λ, in the sum convention.
        steps: Number of Newton steps.
        converged: Whether the steps converged up to rounding. If not, the fit is the result of the last step.
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
    """Train the linearised model to the end under cross-entropy (kernel multinomial logistic regression).

    Args:
        kernel: The kernel. Pass its ``Modes`` to try many strengths cheaply.
        strength: λ > 0, in the sum convention. With λ = 0 separable classes would have no minimiser.
        jacobian: J of all examples' centred outputs, training examples first, with ``K = J J'``. If it has fewer
            columns than the kernel, the problem is solved in the parameters, which is cheaper.

    Raises:
        ValueError: The kernel belongs to a regression task; or λ is not above 0, or too small for the kernel in
            float64; or the Jacobian does not have the kernel's examples.
    """
    base = kernel.kernel if isinstance(kernel, Modes) else kernel
    if base.loss != "cross_entropy":
        raise ValueError(f"kernel belongs to the loss {base.loss}, use ridge")
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
    """``V √σ`` for training and ``K(X_eval, X_train) V / √σ`` for evaluation examples, over non-zero eigenvalues."""
    rank = modes.spectrum.rank
    assert modes.spectrum.eigenvectors is not None
    roots = modes.spectrum.eigenvalues[:rank].sqrt()
    return modes.spectrum.eigenvectors[:, :rank] * roots, modes.k_eval_modes[:, :rank] / roots


@dataclass(frozen=True)
class _Problem:
    """The objective as a function of w, its derivatives, and the outputs."""

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
            ValueError: λ is too small for the kernel, so the Hessian cannot be factored.
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
            raise ValueError(f"strength is {self.strength}, too small for this kernel in float64: pass a larger number")
        direction = -torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1)
        return direction, -float(gradient @ direction)


def _minimise(problem: _Problem) -> tuple[Float[Tensor, " r"], int, bool]:
    """The minimiser, the number of steps, and whether they converged.

    Far from the minimiser a step is halved until the objective falls by at least a quarter of the fall that its slope
    predicts. Near it, where a step moves no output by more than ``NEAR``, full steps are taken: the Hessian changes by
    a factor of at most ``exp(2 NEAR)``, so every decrement is a small fraction of the one before. The steps have
    converged when the decrement stops falling, because it is then only rounding.
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
