"""The bound on the evidence of all episodes, and the fixed point of its closed-form steps.

With every q_i at its best the bound (`learner`) is a sum of log evidences,

    sum_i { log Z_i(m, V / n) - c } - KL(q(phi) || p(phi)),

Z_i the evidence of episode i under the prior N(m, V / n), and c what the uncertainty of Sigma and
mu costs each: `c = (E log|Sigma| - log|V / n| + d / l) / 2`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import LAPLACE, Local, State, blend, fit_locals, nonempty, sound
from bayesinf.types import calibrated, law


def elbo(state: State, episodes: Episode, local: Local = LAPLACE) -> Float[Array, ""]:
    """Returns the lower bound on the log density of all episodes' data, in nats, with the best q_i.

    A bound where the local fit is exact, which is for a Gaussian likelihood and outputs linear in
    theta; elsewhere Laplace's evidence stands in the place of each episode's.
    """
    return _elbo(state, sound(state, episodes), local)


@law(calibrated)
def cavi(
    state: State, episodes: Episode, num_steps: int = 100, local: Local = LAPLACE
) -> tuple[State, Float[Array, " t"]]:
    """Returns the state after coordinate ascent on the bound, and the bound before every step.

    Each step fits all episodes under q(phi), and sets q(phi) to the prior plus what they
    contribute; the bound never falls where the local fit is exact. All data are needed at once;
    `natural_step` is its stochastic form.

    Law: calibrated, where every episode tells its weights; where they are short the factorised form
    of q is too sure of mu.
    """
    return _cavi(state, sound(state, episodes), num_steps, local)


def uncertainty(niw: NormalInverseWishart) -> Float[Array, ""]:
    """Returns c, what an episode pays for mu and Sigma not being known, in nats."""
    spread = niw.expected_log_det() - 2 * niw.expected_precision().half_log_det()
    return 0.5 * (spread + niw.dim / niw.strength)


@eqx.filter_jit
def _elbo(state: State, episodes: Episode, local: Local) -> Float[Array, ""]:
    posterior = state.posterior
    cov = posterior.expected_precision()
    found = fit_locals(state.model, posterior.loc, cov, episodes, local)
    return _bound(state.prior, posterior, nonempty(episodes), found.log_evidence)


def _bound(prior, posterior, there, log_evidence) -> Float[Array, ""]:
    gains = jnp.where(there, log_evidence - uncertainty(posterior), 0)
    return jnp.sum(gains) - posterior.kl(prior)


@eqx.filter_jit
def _cavi(state: State, episodes: Episode, num_steps: int, local: Local):
    network, prior, start, _ = state
    there = nonempty(episodes)
    weights = there.astype(start.loc.dtype)

    def step(posterior: NormalInverseWishart, _):
        cov = posterior.expected_precision()
        found = fit_locals(network, posterior.loc, cov, episodes, local)
        bound = _bound(prior, posterior, there, found.log_evidence)
        return blend(prior, posterior, 0, weights, found), bound

    posterior, bounds = jax.lax.scan(step, start, None, length=num_steps)
    return State(network, prior, posterior, jnp.sum(there)), bounds
