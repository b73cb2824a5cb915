"""A Gauss-Newton step on an episode's posterior, in the span of its data.

Around theta_t every row's log density is a quadratic of its outputs (`Likelihood.local`), so with
the prior N(loc, S) the posterior is Gaussian: with the rows W of all information factors, W^T W the
generalised Gauss-Newton matrix, and z the residuals,

    mean = loc + S W^T e,   e = (I + W S W^T)^-1 (z + W (theta_t - loc)),
    cov  = S - S W^T (I + W S W^T)^-1 W S.

No more than (rows x outputs) numbers are solved for, however many weights there are. `W^T e` is
S^-1 (mean - loc), so the prior's part of the objective costs a product too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.covariance import Full
from bayesinf.linalg import (
    cholesky,
    half_log_det,
    posterior_factor,
    product,
    solve_lower,
    solve_upper,
)
from bayesinf.meta_niw.conditioned import Conditioned, Spread
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.model import Model


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

    def score(self) -> Float[Array, " d"]:
        """Returns the slope of the log likelihood, `W^T z`."""
        return jnp.einsum("kod,ko->d", self.factor, self.residual)


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
