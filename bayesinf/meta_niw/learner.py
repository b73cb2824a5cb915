"""The global posterior over what tasks have in common, learned from a stream of episodes.

An episode's weights theta_i ~ N(mu, Sigma), and phi = (mu, Sigma) has the posterior
q(phi) = NIW(m, l, n, V). With a Gaussian q_i = N(m_i, V_i) for the weights of every episode, the
bound on the evidence of all episodes,

    sum_i { E[log p(D_i | theta_i)] - E KL(q_i || N(mu, Sigma)) } - KL(q(phi) || p(phi)),

is largest where q_i is the episode's posterior under the prior N(m, V / n), and where the natural
parameters (l, l m, n, V + l m m^T) are those of p(phi) plus the sum of
(1, m_i, 1, V_i + m_i m_i^T). Both steps are closed forms. The last term of the bound, which the
paper drops ("A Hierarchical Bayesian Model for Deep Few-Shot Meta Learning", Kim and Hospedales
2023), is what keeps n and l finite: they count episodes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Bool, Float, Int, PyTree

from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.distributions.operators import Outer, Stacked, Sum
from bayesinf.meta_niw.conditioned import LocalPosterior
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.likelihoods import Likelihood
from bayesinf.meta_niw.local import Laplace
from bayesinf.meta_niw.model import Model, model
from bayesinf.types import calibrated, checked, law

Local = Callable[[Model, Array, Any, Episode], LocalPosterior]
LAPLACE = Laplace()


class State(NamedTuple):
    """What a learner knows.

    Attributes:
        model: the network and the likelihood.
        prior: p(phi), over the mean and covariance of tasks' weights.
        posterior: q(phi).
        count: how many episodes with data were seen.
    """

    model: Model
    prior: Any
    posterior: Any
    count: Int[Array, ""]

    def check_values(self, name: str) -> None:
        """Raises `ValueError` for a prior or a posterior that is none; `checked` asks."""
        self.prior.check_values(f"{name}.prior")
        self.posterior.check_values(f"{name}.posterior")


class Info(NamedTuple):
    """What an update reports.

    Attributes:
        log_evidence: of each episode under N(m, V / n) before the update; a learning curve.
        kl: KL(q(phi) || p(phi)) after it, in nats.
    """

    log_evidence: Float[Array, " n"]
    kl: Float[Array, ""]


def init(
    prior: NormalInverseWishart,
    apply_fn: Callable[[PyTree, Array], Array],
    params: PyTree,
    likelihood: Likelihood,
    adapt: PyTree = True,
    features: Callable[[PyTree, Array], Array] | None = None,
) -> State:
    """Returns a learner that has seen nothing: its posterior is the prior.

    Args:
        prior: over the adapted weights, in the order of `model(...).initial`.
        apply_fn, params, likelihood, adapt, features: the network; see `model`.

    Raises:
        ValueError: the prior is of another size than the adapted weights, its scale is not positive
            definite, or it has too few degrees of freedom for its size.
    """
    network = model(apply_fn, params, likelihood, adapt, features)
    checked(prior, "prior")
    if prior.dim != network.dim:
        raise ValueError(
            f"prior: one over {prior.dim} weights came, {network.dim} was expected, those of the "
            f"leaves of params that adapt (of sizes {network.sizes})"
        )
    return State(network, prior, prior, jnp.zeros((), int))


@law(calibrated)
def update(
    state: State, episodes: Episode, forgetting: ArrayLike = 1.0, local: Local = LAPLACE
) -> tuple[State, Info]:
    """Returns the state after new episodes, each seen once: the closed conjugate step.

    All episodes of a call are fitted under the same q(phi), so their order within it has no effect.
    An episode without data changes nothing.

    With `forgetting` below 1 what was known falls back towards the prior by this factor before the
    episodes are added, for families of tasks that drift: then n stays at most
    `prior.df + (episodes a call) / (1 - forgetting)`.

    Law: calibrated, where every episode tells its weights. Elsewhere q(phi) is too sure, as its
    factorised form has it, by a gap that `log_evidence_1d` or `chib` less `elbo` gives.

    Args:
        state: a learner's.
        episodes: one, or many on leading axes.
        forgetting: in (0, 1].
        local: an episode's posterior from (model, loc, cov, episode).

    Raises:
        ValueError: data that the likelihood cannot take, or a state whose scale is not positive
            definite, where values are known.
    """
    keep = like(state, forgetting)
    return _update(state, sound(state, episodes), keep, None, local)


def natural_step(
    state: State,
    episodes: Episode,
    rate: ArrayLike,
    num_episodes: ArrayLike,
    local: Local = LAPLACE,
) -> tuple[State, Info]:
    """Returns the state after a natural-gradient step on the bound, for episodes seen many times.

    The natural parameters move by the share `rate` to those of the prior plus `num_episodes` times
    the batch's mean contribution (stochastic variational inference, Hoffman, Blei, Wang and Paisley
    2013, algorithm of figure 4). With rates whose sum diverges and whose squares' does not (Robbins
    and Monro 1951), such as `(t + 10)^-0.7`, it comes to what `cavi` finds.

    Args:
        state, local: as in `update`.
        episodes: a batch drawn from all of them.
        rate: in (0, 1].
        num_episodes: how many there are in all.
    """
    keep, total = like(state, 1 - rate), like(state, rate * num_episodes)
    return _update(state, sound(state, episodes), keep, total, local)


def like(state: State, number: ArrayLike) -> Float[Array, ""]:
    """Returns a number as an array of the state's precision: another one compiles nothing."""
    return jnp.asarray(number, jax.tree.leaves(state.posterior)[0].dtype)


def sound(state: State, episodes: Episode) -> Episode:
    """Returns the episodes on one leading axis, checked as the state is, with inputs embedded."""
    checked(state, "state")
    if episodes.mask.ndim == 0:
        raise ValueError("episodes: a mask without axes came, (..., k) was expected")
    lead = episodes.mask.ndim - 1
    flat = Episode(*(jnp.reshape(rows, (-1, *rows.shape[lead:])) for rows in episodes))
    return state.model.sound(flat)


def nonempty(episodes: Episode) -> Bool[Array, " n"]:
    """Returns which episodes have data."""
    return jnp.any(episodes.mask, axis=-1)


def fit_locals(
    network: Model, loc: Float[Array, " d"], cov: Any, episodes: Episode, local: Local
) -> LocalPosterior:
    """Returns every episode's posterior under the prior N(loc, cov), stacked."""
    return jax.vmap(lambda one: local(network, loc, cov, one))(episodes)


def blend(
    prior: NormalInverseWishart,
    posterior: NormalInverseWishart,
    keep: ArrayLike,
    weights: Float[Array, " n"],
    locals_: LocalPosterior,
) -> NormalInverseWishart:
    """Returns the NIW whose natural parameters are

        keep eta(posterior) + (1 - keep) eta(prior) + sum_i w_i (1, m_i, 1, V_i + m_i m_i^T),

    its scale the nearest of the posterior's structure: the sum itself, unless that is low rank.
    Squares are taken about the new mean, so that no difference of large numbers is formed.
    """
    lost = 1 - keep
    shares = jnp.stack([keep * posterior.strength, lost * prior.strength])
    shares = jnp.concatenate([shares, weights])
    points = jnp.concatenate([posterior.loc[None], prior.loc[None], locals_.mean])
    strength = jnp.sum(shares)
    loc = shares @ points / strength
    spread = Outer((jnp.sqrt(shares)[:, None] * (points - loc)).T)
    within = Stacked(weights, locals_.cov)
    total = Sum([keep, lost, 1, 1], [posterior.scale, prior.scale, within, spread])
    df = keep * posterior.df + lost * prior.df + jnp.sum(weights)
    return NormalInverseWishart(loc, strength, df, posterior.scale.nearest(total))


@eqx.filter_jit
def _update(
    state: State,
    episodes: Episode,
    keep: Float[Array, ""],
    total: Float[Array, ""] | None,
    local: Local,
) -> tuple[State, Info]:
    """Returns the state after a blend with episodes that count for `total` ones, or for as many as
    have data."""
    network, prior, posterior, count = state
    found = fit_locals(network, posterior.loc, posterior.expected_precision(), episodes, local)
    there = nonempty(episodes)
    weights = there.astype(keep.dtype)
    if total is not None:
        weights = weights * total / jnp.maximum(jnp.sum(weights), 1)
    posterior = blend(prior, posterior, keep, weights, found)
    info = Info(found.log_evidence, posterior.kl(prior))
    return State(network, prior, posterior, count + jnp.sum(there)), info
