"""The exact posterior of all tasks' weights and of what they share, by Gibbs sampling.

Given the weights of all episodes, (mu, Sigma) is Normal-Inverse-Wishart; given (mu, Sigma) the
weights are independent, and each is moved by a proposal from its local posterior: an exact draw for
a Gaussian likelihood and outputs linear in theta, a step of Metropolis and Hastings elsewhere.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf import mcmc
from bayesinf.distributions.covariance import normal_log_prob
from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.mcmc.combinators import Cycle
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import LAPLACE, Local, State, sound
from bayesinf.meta_niw.model import Model
from bayesinf.programs.target import Target
from bayesinf.types import Key, consistent, invariant, law


class Tasks(eqx.Module):
    """The joint law of `{"mu", "cov", "theta"}`, given the episodes: a program for `mcmc.sample`.

    Attributes:
        model: the network and the likelihood.
        prior: of mu and cov.
        episodes: on one leading axis, as `learner.sound` returns them.
    """

    model: Model
    prior: NormalInverseWishart
    episodes: Episode

    def sample(self, key: Key) -> dict[str, Any]:
        """Returns a draw of the prior."""
        phi_key, theta_key = jax.random.split(key)
        mu, cov = self.prior.sample(phi_key)
        num = self.episodes.mask.shape[0]
        return {"mu": mu, "cov": cov, "theta": mu + cov.sample(theta_key, (num,))}

    def target(self) -> Target:
        """Returns the log prior of mu and cov, that of the weights, and the log likelihood."""
        return Target(self._terms, jnp.ones(3, self.prior.loc.dtype))

    def _terms(self, position: dict[str, Any]) -> Float[Array, " 3"]:
        mu, cov, theta = position["mu"], position["cov"], position["theta"]
        terms = jax.vmap(lambda theta, one: task_terms(self.model, mu, cov, theta, one))
        log_priors, log_likelihoods = terms(theta, self.episodes)
        shared = self.prior.log_prob((mu, cov))
        return jnp.stack([shared, jnp.sum(log_priors), jnp.sum(log_likelihoods)])


def task_terms(
    network: Model, mu: Float[Array, " d"], cov: Any, theta: Float[Array, " d"], episode: Episode
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the log prior and the log likelihood of one episode's weights."""
    return normal_log_prob(theta - mu, cov), network.log_likelihood(theta, episode)


class Shared(eqx.Module):
    """Draws mu and cov given the weights of all episodes: a conditional for `mcmc.Gibbs`."""

    prior: NormalInverseWishart

    def __call__(self, key: Key, rest: PyTree) -> dict[str, Any]:
        mu, cov = self.prior.observe(rest["theta"]).sample(key)
        return {"mu": mu, "cov": cov}


@law(invariant)
class LocalMoves(eqx.Module):
    """Moves the weights of every episode by a proposal from its local posterior given mu and cov.

    Law: invariant, within `mcmc.blocks`; episodes are accepted one by one, as they are independent
    given mu and cov. `acceptance` is their mean, 1 where the local fit is exact.
    """

    tasks: Tasks
    local: Local

    def init(self, target: Target, position: PyTree) -> mcmc.State:
        return mcmc.State(position, target.parts(position))

    def step(self, key: Key, target: Target, state: mcmc.State) -> tuple[mcmc.State, mcmc.Info]:
        rest = target.terms.rest  # pyright: ignore[reportFunctionMemberAccess]
        mu, cov = rest["mu"], rest["cov"]

        def move(key: Key, theta: Float[Array, " d"], episode: Episode):
            draw_key, accept_key = jax.random.split(key)
            found = self.local(self.tasks.model, mu, cov, episode)
            proposed = found.sample(draw_key)

            def log_weight(theta):
                log_prior, log_likelihood = task_terms(self.tasks.model, mu, cov, theta, episode)
                return log_prior + log_likelihood - found.log_prob(theta)

            log_ratio = log_weight(proposed) - log_weight(theta)
            invalid = jnp.isnan(log_ratio)
            log_ratio = jnp.where(invalid, -jnp.inf, log_ratio)
            accepted = jnp.log(jax.random.uniform(accept_key, (), theta.dtype)) < log_ratio
            theta = jnp.where(accepted, proposed, theta)
            return theta, jnp.exp(jnp.minimum(log_ratio, 0)), invalid

        keys = jax.random.split(key, self.tasks.episodes.mask.shape[0])
        theta, acceptance, invalid = jax.vmap(move)(keys, state.position, self.tasks.episodes)
        info = mcmc.Info(jnp.mean(acceptance), jnp.any(invalid))
        return mcmc.State(theta, target.parts(theta)), info


@law(invariant)
def gibbs_kernel(tasks: Tasks, local: Local = LAPLACE) -> Cycle:
    """Returns the kernel: the weights of all episodes, then mu and cov.

    Law: invariant for `tasks.target()`.
    """
    shared = mcmc.Gibbs(Shared(tasks.prior))
    return mcmc.blocks({"theta": LocalMoves(tasks, local), ("mu", "cov"): shared})


@law(consistent)
def gibbs(
    key: Key,
    state: State,
    episodes: Episode,
    *,
    num_chains: int = 4,
    num_warmup: int = 100,
    num_samples: int = 1000,
    local: Local = LAPLACE,
    progress: bool = True,
) -> mcmc.Draws:
    """Returns draws of mu, cov and theta, given the state's prior and all episodes.

    Law: consistent, also where the local fit is not exact.
    """
    tasks = Tasks(state.model, state.prior, sound(state, episodes))
    counts = {"num_chains": num_chains, "num_warmup": num_warmup, "num_samples": num_samples}
    return mcmc.sample(key, tasks, gibbs_kernel(tasks, local), **counts, progress=progress)
