"""Families of several kinds of task."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayesinf import meta_niw
from bayesinf.distributions import NormalInverseWishart, full
from bayesinf.meta_niw import mixture
from bayesinf.meta_niw.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT = meta_niw.Laplace(1)
NOISE = 0.3
CENTRES = np.array([[3.0, 0.0], [-3.0, 1.0]])


def linear(weights, x):
    return x @ weights


def learner():
    prior = NormalInverseWishart(np.zeros(2), 0.1, 5.0, full(np.eye(2)))
    return meta_niw.init(prior, linear, jnp.zeros(2), Gaussian(NOISE))


def family(num, seed, rows=4):
    rng = np.random.default_rng(seed)
    kind = rng.uniform(size=num) < 0.3
    theta = CENTRES[kind.astype(int)] + 0.5 * rng.normal(size=(num, 2))
    x = rng.normal(size=(num, rows, 2))
    y = np.einsum("nkd,nd->nk", x, theta) + NOISE * rng.normal(size=(num, rows))
    return meta_niw.Episode(jnp.asarray(x), jnp.asarray(y), jnp.ones((num, rows), bool)), kind


@functools.cache
def climb(num_clusters):
    """Returns the state after coordinate ascent on sixty episodes, and its bounds; asked for in
    double precision."""
    episodes, _ = family(60, 0)
    state = mixture.cluster(jax.random.key(0), learner(), episodes, num_clusters, local=EXACT)
    return mixture.cavi(state, episodes, 25, EXACT)


def test_oracle_two_clusters_are_found_and_their_bound_climbs(x64):
    episodes, kind = family(60, 0)
    state, bounds = climb(2)
    _, info = mixture.update(state, episodes, local=EXACT)
    assert np.diff(bounds).min() > -1e-9
    chosen = np.asarray(info.responsibilities).argmax(1)
    assert max(np.mean(chosen == kind), np.mean(chosen != kind)) > 0.97
    order = [int(chosen[~kind][0]), int(chosen[kind][0])]
    np.testing.assert_allclose(state.posterior.parts.loc[jnp.array(order)], CENTRES, atol=0.4)
    np.testing.assert_allclose(jnp.sum(state.posterior.concentration), 62)
    # One cluster is plain coordinate ascent: the same bound, to the digit.
    one, single = climb(1)
    alone, plain = meta_niw.cavi(learner(), episodes, 60, EXACT)
    np.testing.assert_allclose(single[-1], plain[-1], rtol=1e-8)
    np.testing.assert_allclose(one.posterior.parts.loc[0], alone.posterior.loc, atol=1e-8)
    # The control of the second cluster: what the first alone leaves, in nats.
    assert bounds[-1] > single[-1] + 20

    # New tasks: nearly the density under the true family, which no single Gaussian reaches.
    fresh, _ = family(40, 1)
    mixed = jnp.mean(meta_niw.log_evidence(state, fresh, mixture.prior_of(), EXACT))
    single = jnp.mean(meta_niw.log_evidence(alone, fresh, local=EXACT))
    truth = np.mean([true_log_density(*rows) for rows in zip(fresh.x, fresh.y, strict=True)])
    assert truth - 0.15 < mixed < truth + 0.05
    assert mixed > single + 0.2


def true_log_density(x, y):
    x = np.asarray(x)
    cov = 0.25 * x @ x.T + NOISE**2 * np.eye(len(x))
    logs = [multivariate_normal(x @ centre, cov).logpdf(y) for centre in CENTRES]
    return np.log(0.7 * np.exp(logs[0]) + 0.3 * np.exp(logs[1]))


def test_new_episodes_are_shared_out_and_empty_ones_are_not(x64):
    state, _ = climb(2)
    more, _ = family(10, 2)
    hidden = jax.tree.map(lambda rows: rows[:3], more)._replace(mask=jnp.zeros((3, 4), bool))
    padded = jax.tree.map(lambda *rows: jnp.concatenate(rows), more, hidden)
    ours, info = mixture.update(state, more, local=EXACT)
    theirs, _ = mixture.update(state, padded, local=EXACT)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert int(ours.count) == 70
    np.testing.assert_allclose(jnp.sum(ours.posterior.parts.df - 5), 70)
    np.testing.assert_allclose(jnp.sum(info.responsibilities, axis=1), 1)


def test_a_number_of_clusters_that_cannot_be_is_named(key):
    episodes, _ = family(3, 0)
    for num in (0, 4):
        with pytest.raises(ValueError, match=f"num_clusters: {num} came, between 1 and 3"):
            mixture.cluster(key, learner(), episodes, num)


def test_clusters_that_cannot_be_are_named(x64):
    (episodes, _), (state, _) = family(3, 0), climb(2)
    chols = state.posterior.parts.scale.chol.at[1].mul(-1)
    broken = eqx.tree_at(lambda state: state.posterior.parts.scale.chol, state, chols)
    message = r"state.posterior.parts\[1\].scale.chol: diagonal: -.* came"
    for take in (mixture.update, mixture.cavi):
        with pytest.raises(ValueError, match=message):
            take(broken, episodes)


def test_known_clusters_adapt_within_a_trace_of_others(x64):
    (episodes, _), (state, _) = family(3, 0), climb(2)

    def adapted(support):
        return meta_niw.adapt(state, support, mixture.prior_of()).log_weights

    np.testing.assert_allclose(jax.jit(adapted)(episodes), adapted(episodes), rtol=1e-10)
