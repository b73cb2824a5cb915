import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import linalg
from bayesinf.distributions import GaussianMixture, reduce, split


@pytest.fixture(autouse=True)
def few_unrolled(monkeypatch):
    # Unrolled loops compile slowly; test_linalg compares them with the same dense formulae.
    monkeypatch.setattr(linalg, "UNROLLED", 0)


def make(dim, log_weights, seed=0):
    rng = np.random.default_rng(seed)
    k = len(log_weights)
    chols = np.tril(0.3 * rng.normal(size=(k, dim, dim)), -1) + np.eye(dim)
    log_weights = jax.nn.log_softmax(jnp.asarray(log_weights, float))
    return GaussianMixture(log_weights, 2 * rng.normal(size=(k, dim)), chols)


def moments(mixture):
    weights = np.exp(mixture.log_weights)
    centred = mixture.means - weights @ mixture.means
    within = np.einsum("k,kij->ij", weights, mixture.chols @ mixture.chols.mT)
    return weights @ mixture.means, within + np.einsum("k,ki,kj->ij", weights, centred, centred)


def check_moments(after, before):
    np.testing.assert_allclose(np.exp(after.log_weights).sum(), 1, atol=1e-10)
    for ours, theirs in zip(moments(after), moments(before), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


LOG_WEIGHTS = [
    [0.0, 0.5, -1.0, 0.2],
    [-np.inf, 0.0, -np.inf, 0.3],  # empty slots
]


jit_reduce = jax.jit(reduce, static_argnames=("num_components", "angles"))


@jax.jit
def halved_and_merged(mixture):
    """Returns both halves of all, their merge to the old number, one of all, and two copies."""
    halves = split(mixture, jnp.ones_like(mixture.means))
    merged = reduce(halves, mixture.num_components)
    return halves, merged, reduce(mixture, 1), split(mixture, jnp.zeros_like(mixture.means))


@pytest.mark.parametrize(
    ("dim", "log_weights"), [(1, LOG_WEIGHTS[0]), *((3, w) for w in LOG_WEIGHTS)]
)
def test_oracle_reduce_and_split_preserve_mean_and_covariance(x64, dim, log_weights):
    mixture = make(dim, log_weights)
    results = halved_and_merged(mixture)
    assert [result.num_components for result in results] == [8, 4, 1, 8]
    for result in results:
        check_moments(result, mixture)
    assert not np.allclose(results[0].means[:4], mixture.means)
    # Negative control: a merge that forgets the spread between the components.
    weights = np.exp(mixture.log_weights)
    within = np.einsum("k,kij->ij", weights, mixture.chols @ mixture.chols.mT)
    forgetful = (np.zeros(1), moments(mixture)[0][None], np.linalg.cholesky(within)[None])
    with pytest.raises(AssertionError):
        check_moments(GaussianMixture(*forgetful), mixture)


@jax.jit
@jax.grad
def gradient(mixture):
    reduced = reduce(split(mixture, jnp.ones((4, 3))), 3)
    return reduced.log_prob(jnp.ones(3)) + reduced.means.sum()


@pytest.mark.parametrize("log_weights", LOG_WEIGHTS)
def test_reduce_and_split_have_finite_gradients(log_weights):
    gradients = jax.tree.leaves(gradient(make(3, log_weights)))
    assert all(jnp.isfinite(leaf).all() for leaf in gradients)
    assert all((leaf != 0).any() for leaf in gradients)


def test_empty_slots_go_first_and_leave_no_trace():
    mixture = make(2, LOG_WEIGHTS[1])
    far = jnp.array([1e9, -1e9])
    mixture = GaussianMixture(
        mixture.log_weights, mixture.means.at[0].set(far).at[2].set(-far), mixture.chols
    )
    reduced = jit_reduce(mixture, 2)
    order = jnp.argsort(reduced.log_weights)
    for leaf, kept in ((reduced.means, mixture.means), (reduced.chols, mixture.chols)):
        np.testing.assert_allclose(leaf[order], kept[jnp.array([1, 3])], rtol=1e-6)
    assert jnp.isneginf(jit_reduce(mixture, 3).log_weights).sum() == 1


def test_the_closest_pair_merges():
    means = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.1, 0.0], [-7.0, 0.0]])
    mixture = GaussianMixture(jnp.full(4, -jnp.log(4)), means, jnp.tile(jnp.eye(2), (4, 1, 1)))
    np.testing.assert_allclose(jit_reduce(mixture, 3).means[:, 0], [0.05, 10, -7], atol=1e-5)
    assert reduce(mixture, 4) is mixture


def test_components_a_turn_apart_merge():
    turn = 2 * np.pi
    means = jnp.array([[0.0, 3.1], [0.0, 0.0], [9.0, 0.0], [0.0, 3.2 - turn]])
    chols = jnp.tile(0.1 * jnp.eye(2), (4, 1, 1))
    mixture = GaussianMixture(jnp.full(4, -jnp.log(4)), means, chols)
    merged = jit_reduce(mixture, 3, angles=(1,))
    headings = jnp.sort(merged.means[:, 1] % turn)
    np.testing.assert_allclose(headings, [0.0, 0.0, 3.15], atol=1e-5)
    np.testing.assert_allclose(merged.chols[:, 1, 1].max(), np.hypot(0.1, 0.05), rtol=1e-4)
    # Negative control: as a plain coordinate they are far apart.
    assert jit_reduce(mixture, 3).chols[:, 1, 1].max() > 1


def test_bad_arguments_are_refused_by_name():
    mixture = make(2, [0.0, 0.0])
    with pytest.raises(ValueError, match="num_components: 0 came"):
        reduce(mixture, 0)
    with pytest.raises(ValueError, match=r"angles: \(2,\) came"):
        reduce(mixture, 1, angles=(2,))
    for spread in (0.0, 1.0):
        with pytest.raises(ValueError, match="spread: "):
            split(mixture, jnp.ones((2, 2)), spread)
