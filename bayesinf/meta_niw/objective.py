"""The paper's objective for one episode, with n_0 and V_0 free; for comparison, and for its faults.

"A Hierarchical Bayesian Model for Deep Few-Shot Meta Learning" (Kim and Hospedales 2023) minimises
the mean over episodes of

    E_{q_i}[-log p(D_i | theta_i)] + E_{q(phi)} KL(q_i || N(mu, Sigma)),

with q_i in closed form under N(m_0, V_0 / n_0), over m_0, V_0 and n_0. Where the log likelihood is
quadratic, this is minus the episode's log evidence under N(m_0, V_0 / n_0), plus a number that
falls in n_0 alone (`cavi.uncertainty`). So its optimum is that of `em`, and a learned n_0 runs to
infinity: without KL(q(phi) || p(phi)) nothing holds it. `learner` keeps that term.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.meta_niw.conditioned import LocalPosterior
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.gauss_newton import linearize
from bayesinf.meta_niw.learner import LAPLACE, Local, State, sound
from bayesinf.meta_niw.model import Model


def objective(state: State, episodes: Episode, local: Local = LAPLACE) -> Float[Array, " n"]:
    """Returns the paper's loss of every episode, in nats; differentiable in `state.posterior`.

    The expected log likelihood is that of its quadratic at the posterior's mean.
    """
    return _objective(state, sound(state, episodes), local)


@eqx.filter_jit
def _objective(state: State, episodes: Episode, local: Local) -> Float[Array, " n"]:
    network, niw = state.model, state.posterior

    def one(episode: Episode) -> Float[Array, ""]:
        found = local(network, niw.loc, niw.expected_precision(), episode)
        return expected_loss(network, found, episode) + expected_kl(niw, found)

    return jax.vmap(one)(episodes)


def expected_loss(network: Model, local: LocalPosterior, episode: Episode) -> Float[Array, ""]:
    """Returns E[-log p(D | theta)] under the local posterior, by the quadratic at its mean."""
    information = linearize(network, local.mean, episode).factor.reshape(-1, local.dim)
    spread = jnp.trace(local.covariance_of(information))
    return 0.5 * spread - network.log_likelihood(local.mean, episode)


def expected_kl(niw: NormalInverseWishart, local: LocalPosterior) -> Float[Array, ""]:
    """Returns E KL(N(m_i, V_i) || N(mu, Sigma)) under the NIW, in closed form."""
    residual = local.mean - niw.loc
    quadratic = niw.scale.trace_solve(local.cov) + residual @ niw.scale.solve(residual)
    log_dets = niw.expected_log_det() - 2 * local.cov.half_log_det()
    return 0.5 * (log_dets + niw.df * quadratic - niw.dim + niw.dim / niw.strength)
