"""Random trials of the bounds of docs/theory.md: what tests assert and ``benchmarks/bounds.py`` counts."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foretune.kernel import Bound, Spectrum, bounds, subsets

ROUNDING = 1e-12  # relative error of a truth whose problem has condition number 1
INTEGRATION = 1e-6  # relative error of a flow that was integrated


@dataclass(frozen=True)
class Trial:
    """One bound beside the truth it is about.

    Attributes:
        statement: Which bound, such as ``P9 upper``.
        bound: Its value.
        truth: What was measured.
        slack: Relative error of the truth.
        lower: Whether it is a lower bound.
    """

    statement: str
    bound: float
    truth: float
    slack: float = ROUNDING
    lower: bool = False

    @property
    def holds(self) -> bool:
        """Whether the truth is on the right side, up to its error."""
        small, large = (self.bound, self.truth) if self.lower else (self.truth, self.bound)
        return small <= large * (1 + self.slack) + 1e-300

    @property
    def tightness(self) -> float:
        """How far the bound is from the truth, as a factor of at least 1; ∞ where it says nothing."""
        small, large = (self.bound, self.truth) if self.lower else (self.truth, self.bound)
        return large / small if small > 0 else 1.0 if large == 0 else math.inf


class Draw:
    """Random numbers of one trial."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def kernel(self, n: int) -> Tensor:
        """A positive semi-definite matrix: well conditioned, ill conditioned over 12 decades, or rank deficient."""
        vectors = torch.linalg.qr(self.normal(n, n)).Q
        kind = self.integer(0, 2)
        if kind == 0:
            factor = self.normal(n, 2 * n)
            return self.log_uniform(1e-2, 1e2) * factor @ factor.T / n
        if kind == 1:
            values = torch.tensor([self.log_uniform(1e-10, 1e2) for _ in range(n)], dtype=torch.float64)
            return vectors * values @ vectors.T
        factor = vectors[:, : self.integer(1, n)] * self.log_uniform(1e-2, 1e2)
        return factor @ factor.T


def subset_trials(seed: int) -> Iterator[Trial]:
    """P6 to P10 on random kernels."""
    draw = Draw(seed)
    n = draw.integer(2, 10)
    one, other, r0 = draw.kernel(n), draw.kernel(n), draw.normal(n)
    sigma = float(torch.linalg.matrix_norm(one, 2)) * draw.log_uniform(1e-6, 10.0)
    base, added, both = (Spectrum.of(matrix) for matrix in (one, other, one + other))
    found = subsets.perturbation(one, other, r0, sigma)
    top = float(both.eigenvalues[0])
    lower, upper = subsets.eigenvalue_bounds(base.eigenvalues, added.eigenvalues)
    for truth, low, high in zip(both.eigenvalues.tolist(), lower.tolist(), upper.tolist(), strict=True):
        floor = n * torch.finfo(torch.float64).eps * top  # below it an eigenvalue is rounding
        if truth > floor:
            yield Trial("P6 lower", low, truth, ROUNDING * top / truth, lower=True)
            yield Trial("P6 upper", high, truth, ROUNDING * top / truth)
    kappa = found.condition_number
    larger = max(base.condition_number, added.condition_number)
    error = ROUNDING * min(kappa.after, 1e16)
    yield Trial("P7 max(κ)", larger, kappa.after, error)
    yield Trial("P7 mediant", kappa.upper, kappa.after, error)
    yield Trial("P7 mediant below max(κ)", larger, kappa.upper, ROUNDING * min(larger, 1e16))
    yield Trial("P6 lower κ", kappa.lower, kappa.after, error, lower=True)
    error = ROUNDING * (top + sigma) / sigma
    for name, change in (
        ("P8", found.regularised_condition_number),
        ("P9", found.residual),
        ("P10", found.objective),
    ):
        yield Trial(f"{name} lower", change.lower, change.after, error, lower=True)
        yield Trial(f"{name} upper", change.upper, change.after, error)
    for truth, before in zip(both.eigenvalues.tolist(), base.eigenvalues.tolist(), strict=True):
        yield Trial("P8 eigenvalues lower", before + sigma, truth + sigma, error, lower=True)
        yield Trial("P8 eigenvalues upper", (1 + found.relative) * (before + sigma), truth + sigma, error)
    alone = subsets.residual_bounds(found.absolute)[1] * found.residual.before
    yield Trial("P9 upper, without κ_σ", alone, found.residual.after, error)


def risk_trials(seed: int) -> Iterator[Trial]:
    """P5 under gradient flow and under gradient descent, with and without the term."""
    draw = Draw(seed)
    n = draw.integer(2, 10)
    spectrum, r0 = Spectrum.of(draw.kernel(n)), draw.normal(n)
    assert spectrum.eigenvectors is not None
    top, coefficients = float(spectrum.eigenvalues[0]), spectrum.eigenvectors.T @ r0
    strength = 0.0 if draw.integer(0, 1) else top * draw.log_uniform(1e-4, 1.0)
    gains = {
        "P5 flow": spectrum.flow_gain(strength, draw.log_uniform(0.1, 100.0) / top),
        "P5 descent": spectrum.descent_gain(strength, spectrum.best_rate(strength), draw.integer(1, 50)),
    }
    for name, gain in gains.items():
        left = spectrum.remainder(gain)
        risk = float((coefficients * left).square().sum()) / 2
        low, high = bounds.risk_bounds(left, float(r0.norm()))
        yield Trial(f"{name} lower", low, risk, lower=True)
        yield Trial(f"{name} upper", high, risk)


@dataclass(frozen=True)
class Lora:
    """``f(X) = s B A X`` as a model of its displacement (dB, dA), with every constant of P1 and P2 known exactly.

    ``(J_θ - J0) u = s (u_B dA + dB u_A) X``, so by Cauchy and Schwarz ``‖J_θ - J0‖ ≤ s ‖X‖ ‖δ‖``, with equality for
    some: ``β = s‖X‖``.
    """

    a: Tensor  # (r, i) at the start
    b: Tensor  # (o, r)
    x: Tensor  # (i, n), scaled by s

    @property
    def num_parameters(self) -> int:
        return self.a.numel() + self.b.numel()

    def split(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        return delta[: self.b.numel()].view_as(self.b), delta[self.b.numel() :].view_as(self.a)

    def outputs(self, delta: Tensor) -> Tensor:
        d_b, d_a = self.split(delta)
        return ((self.b + d_b) @ (self.a + d_a) @ self.x).flatten()

    def pulled_back(self, delta: Tensor, residual: Tensor) -> Tensor:
        """``J_θ' residual``."""
        d_b, d_a = self.split(delta)
        outer = residual.view(len(self.b), -1) @ self.x.T  # (o, i)
        return torch.cat([(outer @ (self.a + d_a).T).flatten(), ((self.b + d_b).T @ outer).flatten()])

    def jacobian(self) -> Tensor:
        """J0 (n o, p)."""
        unit = torch.eye(len(self.b) * self.x.shape[1], dtype=torch.float64)
        return torch.stack([self.pulled_back(torch.zeros(self.num_parameters).double(), row) for row in unit])


def flow(force: Callable[[Tensor], Tensor], start: Tensor, step: float, steps: int) -> Iterator[Tensor]:
    """The points of ``x' = force(x)`` after each step (Runge-Kutta of fourth order)."""
    x = start
    for _ in range(steps):
        k1 = force(x)
        k2 = force(x + step / 2 * k1)
        k3 = force(x + step / 2 * k2)
        k4 = force(x + step * k3)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield x


def flow_trials(seed: int, steps: int = 60) -> Iterator[Trial]:
    """P1 (both rules) and P2 along gradient flow of random LoRA models."""
    draw = Draw(seed)
    o, r, i, n = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 3), draw.integer(1, 4)
    trained = float(draw.integer(0, 1))
    model = Lora(draw.normal(r, i), trained * draw.normal(o, r), draw.log_uniform(0.1, 1.0) * draw.normal(i, n))
    j0, start = model.jacobian(), torch.zeros(model.num_parameters).double()
    f0 = model.outputs(start)
    r0 = draw.log_uniform(0.01, 3.0) * draw.normal(o * n)
    top, beta = float(torch.linalg.matrix_norm(j0, 2)), float(torch.linalg.matrix_norm(model.x, 2))
    strength, rho0 = top**2 * draw.log_uniform(1e-3, 10.0), float(r0.norm())
    end = draw.log_uniform(0.1, 30.0) / (top**2 + strength)
    fastest = (top + beta * bounds.distance(rho0, strength, end).value) ** 2 + strength + beta * rho0
    step = min(end / steps, 0.3 / fastest)
    p = model.num_parameters

    def gradient(delta: Tensor) -> Tensor:
        return model.pulled_back(delta, model.outputs(delta) - f0 - r0)

    def always(both: Tensor) -> Tensor:
        delta, linear = both[:p], both[p:]
        return -torch.cat([gradient(delta), j0.T @ (j0 @ linear - r0)]) - strength * both

    def selective(delta: Tensor) -> Tensor:
        g = gradient(delta)
        return -g - strength * delta if float(g @ delta) >= 0 else -g

    def reach(t: float, rule: bounds.Rule) -> tuple[Bound, Bound]:
        energy = bounds.distance(rho0, strength, t, rule=rule)
        largest = Bound(top + beta * energy.value, certified=True)  # of ‖J_θ‖ on the ball of that radius
        return energy, bounds.distance(rho0, strength, t, rule=rule, jacobian_norm=largest)

    for k, both in enumerate(flow(always, torch.cat([start, start]), step, steps), 1):
        delta, linear = both[:p], both[p:]
        energy, d = reach(k * step, "always")
        yield Trial("P1 always", d.value, float(delta.norm()), INTEGRATION)
        yield Trial("P1 always, no constant", energy.value, float(delta.norm()), INTEGRATION)
        gap = bounds.linearisation_gap(
            rho0, strength, k * step, distance=d, jacobian_norm=Bound(top, True), smoothness=Bound(beta, True)
        )
        outputs = model.outputs(delta) - f0 - j0 @ linear
        # of the difference of two integrated flows
        error = INTEGRATION * (1 + float(delta.norm()) / max(float((delta - linear).norm()), 1e-300))
        yield Trial("P2 parameters", gap.parameters.value, float((delta - linear).norm()), error)
        yield Trial("P2 outputs", gap.outputs.value, float(outputs.norm()), error)
    for k, delta in enumerate(flow(selective, start, step, steps), 1):
        yield Trial("P1 selective", reach(k * step, "selective")[1].value, float(delta.norm()), INTEGRATION)


def descent_trials(seed: int, steps: int = 40) -> Iterator[Trial]:
    """P3 along stochastic gradient descent of random networks with two layers, squared loss and cross-entropy."""
    draw = Draw(seed)
    n, i, hidden, c, size = 8, 3, draw.integer(2, 5), draw.integer(2, 3), draw.integer(1, 4)
    classify = bool(draw.integer(0, 1))
    x, width = draw.normal(n, i), hidden * i
    theta0 = draw.log_uniform(0.3, 2.0) * draw.normal(width + c * hidden) / hidden**0.5
    y = torch.nn.functional.one_hot(torch.arange(n) % c, c).double() if classify else draw.normal(n, c)

    def network(theta: Tensor, rows: Tensor) -> Tensor:
        return torch.tanh(rows @ theta[:width].view(hidden, i).T) @ theta[width:].view(c, hidden).T

    def residual(fx: Tensor, rows: Tensor) -> Tensor:
        """Gradient of the summed loss in the outputs."""
        return (fx.softmax(1) if classify else fx) - y[rows]

    def gradient(theta: Tensor, rows: Tensor) -> Tensor:
        outputs, vjp, *_ = torch.func.vjp(lambda p: network(p, x[rows]), theta)
        return vjp(residual(outputs, rows))[0]

    j0, f0 = torch.func.jacrev(network)(theta0, x), network(theta0, x)  # (n, c, p)
    top = float(torch.linalg.matrix_norm(j0.flatten(0, 1), 2)) ** 2
    strength = 0.0 if draw.integer(0, 1) else top * draw.log_uniform(1e-3, 0.3)
    rate = draw.log_uniform(0.03, 2.5) / (top + strength)
    delta = linear = torch.zeros_like(theta0)
    gap = Bound(0.0, certified=True)
    for _ in range(steps):
        rows = torch.randperm(n, generator=draw.generator)[:size]
        g, j_b = gradient(theta0 + delta, rows), j0[rows]

        def of_linear(d: Tensor, rows: Tensor = rows, j_b: Tensor = j_b) -> Tensor:
            return torch.einsum("ncp,nc->p", j_b, residual(f0[rows] + j_b @ d, rows))

        defect = float((g - of_linear(delta)).norm())
        curvature = float(torch.linalg.matrix_norm(j_b.flatten(0, 1), 2)) ** 2 / (2 if classify else 1)
        gap = bounds.next_gap(
            gap, defect, rate=rate, strength=strength, curvature=Bound(curvature * (1 + ROUNDING), True)
        )
        linear = linear - rate * (of_linear(linear) + strength * linear)
        delta = delta - rate * (g + strength * delta)
        # truths of a run that has not moved away from its linearisation are rounding
        true = float((delta - linear).norm())
        error = ROUNDING * (1 + float(delta.norm()) / max(true, 1e-300))
        name = "P3, cross-entropy" if classify else "P3, squared loss"
        yield Trial(name, gap.value, true, error)
    for example in range(n):
        fx, j_x = network(theta0 + delta, x)[example], j0[example]
        for output in range(c):
            remainder = float((fx - f0[example] - j_x @ delta)[output].abs())
            bound = bounds.output_gap(gap, remainder, float(j_x[output].norm()))
            truth = float((fx - f0[example] - j_x @ linear)[output].abs())
            yield Trial("P3 outputs", bound.value, truth, error)
