"""The posterior of one episode's weights: Gauss-Newton steps in the span of its data.

Around theta_t every row's log density is a quadratic of its outputs (`Likelihood.local`), so with
the prior N(loc, S) the posterior is Gaussian: with the rows W of all information factors, W^T W the
generalised Gauss-Newton matrix, and z the residuals,

    mean = loc + S W^T e,   e = (I + W S W^T)^-1 (z + W (theta_t - loc)),
    cov  = S - S W^T (I + W S W^T)^-1 W S.

No more than (rows x outputs) numbers are solved for, however many weights there are. `W^T e` is
S^-1 (mean - loc), so the prior's part of the objective costs a product too. Exact in one step for a
Gaussian likelihood and outputs that are linear in theta.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.covariance import Covariance, Full
from bayesinf.distributions.operators import Operator
from bayesinf.linalg import (
    cholesky,
    half_log_det,
    posterior_factor,
    product,
    solve_lower,
    solve_upper,
)
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.model import Model
from bayesinf.types import Key, calibrated, law

_LOG_TAU = math.log(2 * math.pi)
# A step that gains less than this share of what it promised is halved, so often at most.
LEAST_GAIN = 0.1
HALVINGS = 14


class Conditioned(eqx.Module):
    """The covariance `S - S W^T (I + W S W^T)^-1 W S`, the inverse of `S^-1 + W^T W`, implicitly.

    Attributes:
        prior: S.
        factor: W, the rows of the information.
        chol: lower Cholesky factor of `I + W S W^T`.
    """

    prior: Any  # a covariance, which may itself be conditioned
    factor: Float[Array, "r d"]
    chol: Float[Array, "r r"]

    @property
    def dim(self) -> int:
        return self.factor.shape[-1]

    def _whiten(self, b: Float[Array, "d *n"]) -> Float[Array, "r *n"]:
        return solve_lower(self.chol, self.factor @ b)

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        """Returns `cov b`."""
        prior = self.prior.matmul(b)
        dual = solve_upper(self.chol, self._whiten(prior))
        return prior - self.prior.matmul(self.factor.T @ dual)

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        """Returns `inv(cov) b`."""
        return self.prior.solve(b) + self.factor.T @ (self.factor @ b)

    def half_log_det(self) -> Float[Array, ""]:
        return self.prior.half_log_det() - half_log_det(self.chol)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Returns zero-mean draws: of the prior, corrected by noisy data (Matheron's rule)."""
        prior_key, noise_key = jax.random.split(key)
        draws = self.prior.sample(prior_key, shape)
        noise = jax.random.normal(noise_key, (*shape, self.factor.shape[0]), draws.dtype)
        residual = (noise - draws @ self.factor.T).reshape(-1, self.factor.shape[0]).T
        dual = solve_upper(self.chol, solve_lower(self.chol, residual))
        return draws + self.prior.matmul(self.factor.T @ dual).T.reshape(draws.shape)

    def diagonal(self) -> Float[Array, " d"]:
        gain = solve_lower(self.chol, self.prior.matmul(self.factor.T).T)
        return self.prior.diagonal() - jnp.sum(gain**2, axis=0)

    def dense(self) -> Float[Array, "d d"]:
        gain = solve_lower(self.chol, self.prior.matmul(self.factor.T).T)
        return self.prior.dense() - gain.T @ gain

    def scaled(self, c: Float[Array, ""] | float) -> "Conditioned":
        """Returns `c cov`."""
        return Conditioned(self.prior.scaled(c), self.factor / jnp.sqrt(c), self.chol)

    def covariance_of(self, rows: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """Returns `rows cov rows^T`."""
        back = self.prior.matmul(rows.T)
        gain = self._whiten(back)
        return rows @ back - gain.T @ gain

    def trace_solve(self, other: Operator) -> Float[Array, ""]:
        """Returns the trace of `inv(cov) other`."""
        within = jnp.sum(self.factor.T * other.matmul(self.factor.T))
        return self.prior.trace_solve(other) + within


Spread = Covariance | Conditioned


class LocalPosterior(eqx.Module):
    """A Gaussian over one episode's weights, and the evidence of its data.

    Attributes:
        mean: the mean; for a Laplace fit the mode.
        cov: the covariance, a structure that need not be dense.
        log_evidence: log of the data's density under the prior, as the fit sees it.
        decrement: the squared Newton decrement at the last linearisation: twice what the fit, in
            nats, still gained by its last step, so near 0 where it has converged.
    """

    mean: Float[Array, " d"]
    cov: Spread
    log_evidence: Float[Array, ""]
    decrement: Float[Array, ""]

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        """Returns the log density at `theta`."""
        residual = theta - self.mean
        square = residual @ self.cov.solve(residual)
        return -0.5 * (square + self.dim * _LOG_TAU) - self.cov.half_log_det()

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Returns independent draws with the given leading shape."""
        return self.mean + self.cov.sample(key, shape)

    def diagonal(self) -> Float[Array, " d"]:
        """Returns the variances."""
        return self.cov.diagonal()

    def dense(self) -> Float[Array, "d d"]:
        """Returns the covariance as a matrix."""
        return self.cov.dense()

    def covariance_of(self, rows: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """Returns the covariance of `rows theta`."""
        if isinstance(self.cov, Conditioned):
            return self.cov.covariance_of(rows)
        return rows @ self.cov.matmul(rows.T)


class Linear(NamedTuple):
    """An episode's log likelihood around one theta, by rows.

    Attributes:
        outputs: the network's outputs f.
        jacobian: their slope in theta.
        factor: L^T J, the rows W of the information.
        residual: z, with score `J^T L z = W^T z`.
    """

    outputs: Float[Array, "k o"]
    jacobian: Float[Array, "k o d"]
    factor: Float[Array, "k o d"]
    residual: Float[Array, "k o"]


@law(calibrated)
class Laplace(eqx.Module):
    """A Gaussian at the mode with the generalised Gauss-Newton curvature, and Laplace's evidence.

    Law: calibrated where it is exact, which is for a Gaussian likelihood and outputs linear in
    theta; one step is then enough. Elsewhere `tests/meta_niw/test_local.py` prints its gap.

    The mode is sought by at most `num_steps` damped Gauss-Newton steps from the prior's mean, and
    fewer where they converge. Gradients do not go through the search
    but through one step at its end (one-step differentiation, Bolte, Pauwels and Vaiter 2023), so
    memory and, once converged, time do not grow with `num_steps`. They are exact where the outputs
    are linear in theta and the likelihood is Gaussian, categorical, Bernoulli or Poisson, for which
    the step is Newton's.
    """

    num_steps: int = eqx.field(static=True, default=20)

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps: {self.num_steps} came, at least 1 was expected")

    def __call__(
        self, model: Model, loc: Float[Array, " d"], cov: Spread, episode: Episode
    ) -> LocalPosterior:
        theta, dual = loc, jnp.zeros_like(loc)
        if self.num_steps > 1:
            held = jax.lax.stop_gradient((model, loc, cov, episode))
            theta, dual = _search(*held, self.num_steps - 1)
            # The value is the search's, the slope that of one step from there.
            step = condition(cov, loc, theta, linearize(model, theta, episode))
            slope = (loc + step.shift, step.dual)
            theta, dual = jax.tree.map(
                lambda value, moving: value + moving - jax.lax.stop_gradient(moving),
                (theta, dual),
                slope,
            )
        linear = linearize(model, theta, episode)
        step = condition(cov, loc, theta, linear)
        move, turn = loc + step.shift - theta, step.dual - dual
        decrement = (_score(linear) - dual) @ move
        share, _ = jax.lax.stop_gradient(
            _shorten(model, loc, episode, theta, dual, move, turn, 0.5 * decrement)
        )
        move, dual = share * move, dual + share * turn
        mean = theta + move
        fitted = jax.vmap(model.likelihood.quadratic)(
            linear.outputs, linear.jacobian @ move, episode.y
        )
        log_evidence = jnp.sum(jnp.where(episode.mask, fitted, 0))
        log_evidence -= 0.5 * dual @ (mean - loc) + step.log_volume
        return LocalPosterior(mean, step.cov, log_evidence, decrement)


class Step(NamedTuple):
    """A Gauss-Newton step: where it ends, and the posterior of the quadratic that it solves.

    Attributes:
        shift: the posterior's mean minus the prior's.
        dual: `S^-1 shift`.
        cov: the posterior's covariance.
        log_volume: half the log determinant of `I + W S W^T`.
    """

    shift: Float[Array, " d"]
    dual: Float[Array, " d"]
    cov: Spread
    log_volume: Float[Array, ""]


def linearize(model: Model, theta: Float[Array, " d"], episode: Episode) -> Linear:
    """Returns an episode's log likelihood around theta; hidden rows say nothing."""

    def outputs(theta, x):
        f = model.outputs(theta, x[None])[0]
        return f, f

    jacobian, f = jax.vmap(jax.jacrev(outputs, has_aux=True), (None, 0))(theta, episode.x)
    factor, residual = jax.vmap(model.likelihood.local)(f, episode.y)
    there = episode.mask[:, None]
    rows = jnp.where(there[..., None], jnp.einsum("kij,kid->kjd", factor, jacobian), 0)
    return Linear(f, jacobian, rows, jnp.where(there, residual, 0))


def condition(
    cov: Spread, loc: Float[Array, " d"], theta: Float[Array, " d"], linear: Linear
) -> Step:
    """Returns the posterior of N(loc, cov) times the quadratic around theta.

    With no more rows than weights it is solved in the rows (Woodbury), else in the weights.
    """
    rows = linear.factor.reshape(-1, loc.size)
    residual = linear.residual.reshape(-1) + rows @ (theta - loc)
    if rows.shape[0] <= loc.size:
        spread = cov.matmul(rows.T)
        chol = cholesky(jnp.eye(rows.shape[0], dtype=rows.dtype) + rows @ spread)
        dual = solve_upper(chol, solve_lower(chol, residual))
        posterior = Conditioned(cov, rows, chol)
        return Step(spread @ dual, rows.T @ dual, posterior, half_log_det(chol))
    prior = cov.chol if isinstance(cov, Full) else cholesky(cov.dense())
    within = posterior_factor(rows @ prior)
    root = product(prior, within)
    shift = product(root, root.T @ (rows.T @ residual))
    dual = rows.T @ (residual - rows @ shift)
    return Step(shift, dual, Full(root), -half_log_det(within))


def log_joint(
    model: Model,
    theta: Float[Array, " d"],
    episode: Episode,
    shift: Float[Array, " d"],
    dual: Float[Array, " d"],
) -> Float[Array, ""]:
    """Returns the log likelihood plus that of the prior up to its constant, -inf for a NaN."""
    rows = jax.vmap(model.likelihood.log_prob)(model.outputs(theta, episode.x), episode.y)
    total = jnp.sum(jnp.where(episode.mask, rows, 0)) - 0.5 * dual @ shift
    return jnp.where(jnp.isnan(total), -jnp.inf, total)


def _search(
    model: Model, loc: Float[Array, " d"], cov: Spread, episode: Episode, num_steps: int
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Returns the mode, and `inv(cov) (mode - loc)`, or where `num_steps` steps came.

    Levenberg-Marquardt in the metric of the prior: `damping / 2 |step|^2` is added to the loss,
    which makes of N(loc, cov) another Gaussian, narrower and closer to where we are. Without
    damping a step is Gauss-Newton's; it rises and falls with how much of the promised gain came.
    """
    precision = jnp.finfo(loc.dtype).eps

    def go_on(carry):
        *_, count, left = carry
        return (count < num_steps) & left

    def step(carry):
        theta, dual, damping, count, _ = carry
        linear = linearize(model, theta, episode)
        near = (loc + damping * theta) / (1 + damping)
        new = condition(cov.scaled(1 / (1 + damping)), near, theta, linear)
        move = near + new.shift - theta
        turn = (new.dual - dual) / (1 + damping)
        promised = 0.5 * ((_score(linear) - dual) @ move + damping * turn @ move)
        share, gain = _shorten(model, loc, episode, theta, dual, move, turn, promised)
        theta, dual = theta + share * move, dual + share * turn
        small = 1e-3 * precision**0.5 + 10 * precision * jnp.abs(dual @ (theta - loc))
        # Done where little is promised, and where a full step met a quadratic: it is at its peak.
        exact = (damping == 0) & (share == 1) & (jnp.abs(gain - promised) < small)
        ratio = gain / jnp.maximum(promised, small)
        less = jnp.where(damping > 0.1, damping / 8, 0)
        more = jnp.maximum(8 * damping, 1)
        damping = jnp.where(ratio > 0.75, less, jnp.where(ratio < 0.25, more, damping))
        return theta, dual, damping, count + 1, (promised > small) & ~exact

    carry = (loc, jnp.zeros_like(loc), jnp.zeros((), loc.dtype), 0, jnp.array(True))
    theta, dual, *_ = jax.lax.while_loop(go_on, step, carry)
    return theta, dual


def _shorten(
    model: Model,
    loc: Float[Array, " d"],
    episode: Episode,
    theta: Float[Array, " d"],
    dual: Float[Array, " d"],
    move: Float[Array, " d"],
    turn: Float[Array, " d"],
    promised: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the largest of 1, 1/2, 1/4, ... of a step that keeps its promise in part, and its
    gain in log density; 0 and 0 where none does."""

    def value(share):
        at = theta + share * move
        return log_joint(model, at, episode, at - loc, dual + share * turn)

    here = value(jnp.zeros((), loc.dtype))
    slack = 10 * jnp.finfo(loc.dtype).eps * (1 + jnp.abs(here))

    def fails(there, share):
        enough = there >= here + LEAST_GAIN * share * promised - slack
        return ~(enough | (jnp.isfinite(there) & ~jnp.isfinite(here)))

    def go_on(carry):
        share, there, halvings = carry
        return (halvings < HALVINGS) & fails(there, share)

    def lower(carry):
        share, _, halvings = carry
        return share / 2, value(share / 2), halvings + 1

    one = jnp.ones((), loc.dtype)
    share, there, _ = jax.lax.while_loop(go_on, lower, (one, value(one), 0))
    failed = fails(there, share)
    return jnp.where(failed, 0, share), jnp.where(failed, 0, there - here)


def _score(linear: Linear) -> Float[Array, " d"]:
    return jnp.einsum("kod,ko->d", linear.factor, linear.residual)
