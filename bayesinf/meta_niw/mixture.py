"""Families of several kinds of task: a mixture of Normal-Inverse-Wisharts, one a cluster.

Task i is of cluster z_i ~ pi, pi ~ Dirichlet, and theta_i ~ N(mu_c, Sigma_c) with c = z_i. The
factorised posterior has a NIW a cluster, and for each episode the shares r_ic of the clusters and a
local posterior under each of them. All steps are closed forms (Bishop 2006, section 10.2, with the
local posterior in the place of an observation).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln, logsumexp
from jaxtyping import ArrayLike, Float

from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.distributions.operators import positive
from bayesinf.meta_niw import task_prior
from bayesinf.meta_niw.cavi import uncertainty
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import (
    LAPLACE,
    Local,
    State,
    blend,
    fit_locals,
    like,
    nonempty,
    sound,
)
from bayesinf.meta_niw.task_prior import TaskPrior
from bayesinf.types import Key, no_law


class Clusters(NamedTuple):
    """What is known of the clusters.

    Attributes:
        concentration: of the Dirichlet over their shares of tasks.
        parts: their NIWs, on a leading axis.
    """

    concentration: Float[Array, " c"]
    parts: NormalInverseWishart

    def log_shares(self) -> Float[Array, " c"]:
        """Returns the log of the expected shares."""
        return jnp.log(self.concentration) - jnp.log(jnp.sum(self.concentration))

    def check_values(self, name: str) -> None:
        """Raises `ValueError` for values that are no clusters; `bayesinf.types.checked` asks."""
        positive(f"{name}.concentration", self.concentration)
        # As NumPy's, so that values that are known can be looked at within a trace of others.
        parts = jax.tree.map(np.asarray, self.parts)
        for i in range(len(self.concentration)):
            part = jax.tree.map(lambda leaf, i=i: leaf[i], parts)
            part.check_values(f"{name}.parts[{i}]")


class Info(NamedTuple):
    """What an update reports.

    Attributes:
        responsibilities: of the clusters for each episode, before the update.
        bound: on the log evidence of these episodes' data under the state before the update, less
            the KL from the prior; of all data where these are all.
    """

    responsibilities: Float[Array, "n c"]
    bound: Float[Array, ""]


def prior_of(each: Callable[[Any], TaskPrior] = task_prior.student_t) -> Callable:
    """Returns the task prior of clusters, a mixture of each one's, to give to `adapt`."""
    return jax.tree_util.Partial(_prior_of, each)


def _prior_of(each: Callable, clusters: Clusters) -> TaskPrior:
    return task_prior.mixture(clusters.log_shares(), jax.vmap(each)(clusters.parts))


def cluster(
    key: Key,
    state: State,
    episodes: Episode,
    num_clusters: int,
    concentration: ArrayLike = 1.0,
    local: Local = LAPLACE,
) -> State:
    """Returns the state of a learner with clusters, begun at episodes that lie far apart.

    Every cluster has the state's prior. The first responsibilities are those of the nearest of
    `num_clusters` episodes chosen by k-means++ among the local posteriors' means (Arthur and
    Vassilvitskii 2007). The fixed point that `cavi` then comes to depends on them: take the best
    bound over a few keys.

    Args:
        key: a key.
        state: of `learner.init`.
        episodes: some to begin with.
        num_clusters: how many.
        concentration: of the symmetric Dirichlet over their shares.
        local: an episode's posterior.

    Raises:
        ValueError: there are fewer episodes with data than clusters.
    """
    episodes = sound(state, episodes)
    there = nonempty(episodes)
    num = int(jnp.sum(there))
    if not 0 < num_clusters <= num:
        raise ValueError(f"num_clusters: {num_clusters} came, between 1 and {num} was expected")
    return _cluster(key, state, episodes, num_clusters, jnp.asarray(concentration), local)


@no_law("an approximation, which shares every episode out by itself; its bound is reported")
def update(
    state: State, episodes: Episode, forgetting: ArrayLike = 1.0, local: Local = LAPLACE
) -> tuple[State, Info]:
    """Returns the state after new episodes, each seen once, are shared out among the clusters.

    Args:
        state: of `cluster`.
        episodes, forgetting, local: as in `learner.update`.
    """
    return _update(state, sound(state, episodes), like(state, forgetting), local)


@no_law("an approximation, which shares every episode out by itself; its bound is reported")
def cavi(
    state: State, episodes: Episode, num_steps: int = 50, local: Local = LAPLACE
) -> tuple[State, Float[Array, " t"]]:
    """Returns the state after coordinate ascent on the bound on all episodes' log evidence, and the
    bound before every step, which never falls where the local fit is exact.
    """
    return _cavi(state, sound(state, episodes), num_steps, local)


@eqx.filter_jit
def _update(
    state: State, episodes: Episode, keep: Float[Array, ""], local: Local
) -> tuple[State, Info]:
    posterior, info = _step(state, episodes, keep, local)
    count = state.count + jnp.sum(nonempty(episodes))
    return state._replace(posterior=posterior, count=count), info


@eqx.filter_jit
def _cavi(state: State, episodes: Episode, num_steps: int, local: Local):
    def step(posterior: Clusters, _):
        posterior, info = _step(state._replace(posterior=posterior), episodes, 0, local)
        return posterior, info.bound

    posterior, bounds = jax.lax.scan(step, state.posterior, None, length=num_steps)
    return state._replace(posterior=posterior, count=jnp.sum(nonempty(episodes))), bounds


def _step(state: State, episodes: Episode, keep: ArrayLike, local: Local) -> tuple[Clusters, Info]:
    network, prior, posterior, _ = state
    there = nonempty(episodes)

    def fit(part: NormalInverseWishart):
        found = fit_locals(network, part.loc, part.expected_precision(), episodes, local)
        return found, found.log_evidence - uncertainty(part)

    found, gains = jax.vmap(fit)(posterior.parts)
    total = jnp.sum(posterior.concentration)
    logits = gains.T + digamma(posterior.concentration) - digamma(total)
    responsibilities = jax.nn.softmax(logits, axis=1)
    distance = _dirichlet_kl(posterior.concentration, prior.concentration)
    distance += jnp.sum(jax.vmap(NormalInverseWishart.kl)(posterior.parts, prior.parts))
    bound = jnp.sum(jnp.where(there, logsumexp(logits, axis=1), 0)) - distance
    blended = _blend(prior, posterior, keep, responsibilities * there[:, None], found)
    return blended, Info(responsibilities, bound)


def _blend(prior: Clusters, posterior: Clusters, keep, weights: Float[Array, "n c"], found):
    """Returns the clusters after weighted local posteriors, stacked by cluster and episode."""
    concentration = keep * posterior.concentration + (1 - keep) * prior.concentration
    parts = jax.vmap(blend, (0, 0, None, 1, 0))(prior.parts, posterior.parts, keep, weights, found)
    return Clusters(concentration + jnp.sum(weights, axis=0), parts)


@eqx.filter_jit
def _cluster(
    key: Key,
    state: State,
    episodes: Episode,
    num_clusters: int,
    concentration: Float[Array, ""],
    local: Local,
) -> State:
    niw, there = state.prior, nonempty(episodes)
    found = fit_locals(state.model, niw.loc, niw.expected_precision(), episodes, local)
    scaled = found.mean / jnp.sqrt(niw.scale.diagonal())
    keys = jax.random.split(key, num_clusters)

    def distances(index):
        return jnp.sum((scaled - scaled[index]) ** 2, axis=1)

    nearest = jnp.where(there, 1.0, 0)
    centres = []
    for each in keys:
        centres.append(jax.random.categorical(each, jnp.log(nearest)))
        far = jnp.min(jax.vmap(distances)(jnp.stack(centres)), axis=0)
        # Where all episodes are alike any will do.
        nearest = jnp.where(there, far + jnp.finfo(far.dtype).tiny, 0)
    assigned = jnp.argmin(jax.vmap(distances)(jnp.stack(centres)), axis=0)
    weights = jax.nn.one_hot(assigned, num_clusters, dtype=niw.loc.dtype) * there[:, None]

    def stacked(tree):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_clusters, *leaf.shape)), tree)

    each = jnp.full(num_clusters, concentration, niw.loc.dtype)
    prior = Clusters(each, stacked(niw))
    posterior = _blend(prior, prior, 0, weights, stacked(found))
    return State(state.model, prior, posterior, jnp.sum(there))


def _dirichlet_kl(a: Float[Array, " c"], b: Float[Array, " c"]) -> Float[Array, ""]:
    def log_norm(a):
        return jnp.sum(gammaln(a)) - gammaln(jnp.sum(a))

    slope = digamma(a) - digamma(jnp.sum(a))
    return log_norm(b) - log_norm(a) + jnp.sum((a - b) * slope)
