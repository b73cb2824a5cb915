"""The posterior of one episode's weights, by Laplace's method: a mode, its curvature, its evidence.

One Gauss-Newton step (`gauss_newton.py`) from the mode that `search.py` finds. Exact in one step
for a Gaussian likelihood and outputs that are linear in theta.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.meta_niw.conditioned import LocalPosterior, Spread
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.gauss_newton import condition, linearize
from bayesinf.meta_niw.model import Model
from bayesinf.meta_niw.search import search, shorten
from bayesinf.types import calibrated, law


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
            theta, dual = search(*held, self.num_steps - 1)
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
        decrement = (linear.score() - dual) @ move
        share, _ = jax.lax.stop_gradient(
            shorten(model, loc, episode, theta, dual, move, turn, 0.5 * decrement)
        )
        move, dual = share * move, dual + share * turn
        mean = theta + move
        fitted = jax.vmap(model.likelihood.quadratic)(
            linear.outputs, linear.jacobian @ move, episode.y
        )
        log_evidence = jnp.sum(jnp.where(episode.mask, fitted, 0))
        log_evidence -= 0.5 * dual @ (mean - loc) + step.log_volume
        return LocalPosterior(mean, step.cov, log_evidence, decrement)
