import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.distributions import GaussianMixture, fit, fit_density, gaussian


def target(dtype="float32"):
    weights = jnp.array([0.3, 0.7], dtype)
    means = jnp.array([[-4.0, 0.0], [3.0, 1.0]], dtype)
    chols = jnp.array([[[1.0, 0.0], [0.5, 0.8]], [[0.6, 0.0], [0.0, 2.0]]], dtype)
    return GaussianMixture(jnp.log(weights), means, chols)


sample = jax.jit(lambda key: target().sample(key, (1_000,)))
kl = jax.jit(lambda key, mixture: target().kl(key, mixture))


def test_oracle_one_component_is_the_weighted_sample(x64, key):
    """EM with one component is exact, up to the floor of 1e-6 of the training covariance."""
    x = target("float64").sample(key, (500,))
    log_weights = jnp.where(x[:, 0] > 0, 0.0, -1.0)
    log_weights = log_weights.at[:3].set(-jnp.inf)
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    mixture, info = fit(key, x, 1, log_weights)
    np.testing.assert_allclose(mixture.mean(), weights @ x, atol=1e-12)
    covariance = np.cov(x.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(mixture.covariance(), covariance, rtol=3e-6)
    np.testing.assert_allclose(info.ess, 1 / np.sum(weights**2), rtol=1e-9)
    unweighted, _ = fit(key, x, 1, jnp.zeros(500))
    assert not np.allclose(unweighted.mean(), weights @ x, atol=1e-2)  # negative control
    assert {leaf.dtype for leaf in jax.tree.leaves(mixture)} == {jnp.dtype("float64")}


def test_precision_follows_the_samples(x64, key):
    mixture, info = jax.eval_shape(lambda x: fit(key, x, 2), jnp.ones((50, 2), "float32"))
    found = jax.eval_shape(lambda p: fit_density(key, p.log_prob, p), target("float32"))
    for leaf in jax.tree.leaves((mixture, info[:3], found[0], found[1][:3])):
        assert leaf.dtype == "float32"


def test_stat_fit_and_its_error(key):
    """The mean estimate of the error over 30 runs against the true divergence, z below 4.

    False alarm 6e-5 each. With two components the mixture is in the family; with one it is not,
    which the estimate must see (its z against zero is the negative control).
    """
    keys = jax.random.split(key, 30)
    x = jax.vmap(sample)(jax.random.split(jax.random.key(1), 30))
    broken = jnp.concatenate([x, x[:1].at[0, 3].set(jnp.nan)])
    for k in (2, 1):
        mixtures, infos = jax.jit(jax.vmap(lambda key, x, k=k: fit(key, x, k)))(
            jnp.append(keys, key), broken
        )
        assert infos.valid.tolist() == [True] * 30 + [False]  # the others go on
        mixtures, infos = jax.tree.map(lambda leaf: leaf[:-1], (mixtures, infos))
        members = [jax.tree.map(lambda leaf, i=i: leaf[i], mixtures) for i in range(30)]
        true = jnp.stack([kl(jax.random.key(2), member)[0] for member in members])
        standard_error = infos.kl.std(ddof=1) / np.sqrt(30)
        assert abs(infos.kl.mean() - true.mean()) < 4 * standard_error
        # The stated standard error is that of the runs, within the 4-sigma range of a deviation.
        assert 0.5 < infos.standard_error.mean() / infos.kl.std(ddof=1) < 1.5
        assert k == 1 or true.max() < 0.1
    assert infos.kl.mean() > 4 * standard_error


def test_stat_importance_weights_are_honoured(key):
    """Samples from a wide Gaussian with weights fit the target; false alarm at 4 sigma 6e-5."""
    p = target()
    wide = gaussian(p.mean(), 1.5 * p.chol())
    x = jax.jit(lambda key: wide.sample(key, (1_000,)))(key)
    log_weights = jax.jit(lambda x: p.log_prob(x) - wide.log_prob(x))(x)
    mixture, info = fit(key, x, 2, log_weights)
    divergence, _ = kl(key, mixture)
    assert divergence < 0.1
    assert abs(info.kl - divergence) < 4 * info.standard_error
    assert kl(key, fit(key, x, 2)[0])[0] > 0.15  # negative control: the weights left out


def test_stat_fit_density_and_its_error(key):
    """From a start that is far off to the target; false alarm at 4 sigma 6e-5."""
    p = target()
    start = GaussianMixture(
        jnp.log(jnp.ones(2) / 2),
        jnp.array([[-1.0, 0.0], [1.0, 0.0]]),
        jnp.tile(5 * jnp.eye(2), (2, 1, 1)),
    )
    mixture, info = fit_density(key, lambda x: p.log_prob(x) + 7.0, start)
    divergence, its_error = kl(key, mixture)
    assert divergence < 0.02
    assert abs(info.kl - divergence) < 4 * jnp.hypot(info.standard_error, its_error)
    assert info.ess > 1_500
    # One Gaussian cannot: the error says how far it is.
    alone, far = fit_density(
        key, lambda x: p.log_prob(x) + 7.0, gaussian(jnp.zeros(2), 5 * jnp.eye(2))
    )
    divergence, its_error = kl(key, alone)
    assert divergence > 0.2
    assert abs(far.kl - divergence) < 4 * jnp.hypot(far.standard_error, its_error)
    assert far.kl > 4 * far.standard_error


def test_more_components_than_clusters_leave_nothing_non_finite(key):
    x = jnp.repeat(jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 10, axis=0)
    mixture, info = fit(key, x, 5)
    mixture.check_values("mixture")
    assert info.kl == jnp.inf  # samples that repeat have no density


def test_bad_samples_are_refused_by_name(key):
    x = sample(key)
    with pytest.raises(ValueError, match="samples: NaN"):
        fit(key, x.at[3, 0].set(jnp.nan), 2)
    with pytest.raises(ValueError, match="samples: 5 came; 4 components in 2 dim"):
        fit(key, x[:5], 4)
    with pytest.raises(ValueError, match=r"samples: .* span fewer than their 2 dimensions"):
        fit(key, x.at[:, 1].set(3.7), 2)
    with pytest.raises(ValueError, match="log_weights: NaN"):
        fit(key, x, 2, jnp.full(1_000, -jnp.inf))
    with pytest.raises(ValueError, match="num_components, num_steps: 0"):
        fit(key, x, 0)


def at_the_right(value, x):
    return jnp.where(x[0] > 0, value, jnp.minimum(value, 0))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (-jnp.inf, "log_prob: finite at none of the 50 draws"),
        (jnp.nan, r"log_prob: NaN or \+inf"),
        (jnp.inf, r"log_prob: NaN or \+inf"),
    ],
)
def test_bad_densities_are_refused_by_name(key, value, match):
    log_prob = jax.tree_util.Partial(at_the_right, jnp.asarray(value))
    with pytest.raises(ValueError, match=match):
        fit_density(key, log_prob, gaussian(jnp.zeros(1), jnp.eye(1)), 50, 2)


def test_bad_arguments_of_fit_density_are_refused_by_name(key):
    start = gaussian(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ValueError, match="num_samples: 2 came"):
        fit_density(key, start.log_prob, start, 2)
    with pytest.raises(ValueError, match="num_rounds: 0 came"):
        fit_density(key, start.log_prob, start, 10, 0)
    with pytest.raises(ValueError, match=r"start\.chols: diagonal"):
        fit_density(key, start.log_prob, gaussian(jnp.zeros(2), -jnp.eye(2)))
