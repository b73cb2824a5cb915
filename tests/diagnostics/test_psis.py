"""Pareto smoothing against another implementation, tails of known shape, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from bayesinf.diagnostics import k_hat_bound, psis

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def reference(log_ratios):
    """Smooths in plain NumPy, tail and grid of their natural lengths, as the paper says it."""
    x = log_ratios - np.max(log_ratios)
    size = len(x)
    num_tail = int(np.ceil(min(size / 5, 3 * np.sqrt(size))))
    cutoff = max(np.sort(x)[-num_tail - 1], np.log(np.finfo(float).tiny))
    chosen = np.flatnonzero(x > cutoff)
    chosen = chosen[np.argsort(x[chosen], kind="stable")]  # ties in the order they came
    excess = np.exp(x[chosen]) - np.exp(cutoff)
    num = len(excess)
    grid = []
    for j in range(1, 30 + int(np.sqrt(num)) + 1):
        width = 1 - np.sqrt((30 + int(np.sqrt(num))) / (j - 0.5))
        grid.append(1 / excess[-1] + width / (3 * excess[int(num / 4 + 0.5) - 1]))
    profile = []
    for b in grid:
        k = np.mean(np.log1p(-b * excess))
        profile.append(np.sum(stats.genpareto.logpdf(excess, k, scale=-k / b)))
    b = np.sum(np.array(grid) * np.exp(profile - logsumexp(profile)))
    k = np.mean(np.log1p(-b * excess))
    scale, k = -k / b, (num * k + 5) / (num + 10)
    places = (np.arange(num) + 0.5) / num
    quantiles = stats.genpareto.ppf(places, k, scale=scale)
    smoothed = x.copy()
    smoothed[chosen] = np.minimum(np.log(quantiles + np.exp(cutoff)), 0)
    return smoothed + np.max(log_ratios), k


def cases():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=1000)
    holes = np.where(rng.uniform(size=1000) < 0.3, -np.inf, 2 * normal)
    return {
        "light": normal / 2,
        "heavy": 3 * normal + 700,
        "cauchy": np.log(np.abs(rng.standard_cauchy(size=300))),
        "bounded": np.log(rng.uniform(size=500)),
        "ties": np.round(4 * normal) / 2,
        "few with weight": np.where(rng.uniform(size=1000) < 0.9, -np.inf, normal),
        "holes": holes,
        "short": rng.normal(size=40),
    }


@pytest.mark.parametrize("name", cases())
def test_oracle_another_implementation(name):
    log_ratios = cases()[name]
    found = psis(jnp.asarray(log_ratios))
    smoothed, k = reference(log_ratios)
    np.testing.assert_allclose(found.k_hat, k, rtol=1e-9)
    np.testing.assert_allclose(found.log_ratios, smoothed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [0.2, 0.7, 1.3])
def test_stat_k_of_pareto_tails(key, shape):
    """Ratios u^-k have a tail of shape k; |z| below 4 over 100 runs. The prior's pull is known."""
    size = 10_000
    u = jax.random.uniform(key, (100, size))
    k = np.asarray(jax.vmap(psis)(-shape * jnp.log(u)).k_hat)
    num_tail = 3 * np.sqrt(size)
    unshrunk = (k * (num_tail + 10) - 5) / num_tail
    error = np.std(unshrunk, ddof=1) / np.sqrt(100)
    # The fit's own bias is of order 1 / num_tail.
    assert abs(unshrunk.mean() - shape) < 4 * error + 1 / num_tail
    # Negative control: the test can tell a shape that is off by a tenth.
    assert abs(unshrunk.mean() - shape - 0.1) > 4 * error + 1 / num_tail


@pytest.mark.parametrize(("sd", "good"), [(0.95, True), (0.5, False)])
def test_stat_a_proposal_too_narrow_is_seen(key, sd, good):
    """Ratios of N(0, I) over N(0, s^2 I) have a tail of shape 1 - s^2, which 2,000 draws reach too
    slowly in one dimension to tell 0.75 from the bound; hence eight."""
    x = sd * jax.random.normal(key, (50, 2000, 8))
    log_ratios = jnp.sum(-0.5 * x**2 + 0.5 * (x / sd) ** 2, axis=-1)
    k = jax.vmap(psis)(log_ratios).k_hat
    assert np.mean((np.asarray(k) <= k_hat_bound(2000)) == good) > 0.9


def test_stat_smoothing_steadies_a_mean(key):
    """At k = .8 the variance of a mean is infinite, and that of the smoothed one is lower."""
    shape, size = 0.8, 1000
    log_ratios = -shape * jnp.log(jax.random.uniform(key, (200, size)))
    exact = 1 / (1 - shape)
    smoothed = jax.vmap(psis)(log_ratios).log_ratios

    def error(logs):
        return np.sqrt(np.mean((np.mean(np.exp(np.asarray(logs)), axis=1) - exact) ** 2))

    assert error(smoothed) < 0.8 * error(log_ratios)


def test_weights_that_are_all_the_same_have_no_tail():
    for log_ratios in (jnp.full(100, 3.0), 3.0 + 1e-15 * (jnp.arange(100) % 3)):
        found = psis(log_ratios)
        assert found.k_hat < 0.5
        np.testing.assert_array_equal(found.log_ratios, log_ratios)


def test_too_few_draws_in_the_tail_are_not_trusted():
    assert psis(jnp.arange(10.0)).k_hat == jnp.inf
    lonely = jnp.full(100, -jnp.inf).at[:3].set(jnp.arange(3.0))
    assert psis(lonely).k_hat == jnp.inf
    found = psis(jnp.full(100, -jnp.inf))
    assert found.k_hat == jnp.inf
    assert np.all(np.isneginf(found.log_ratios))


def test_single_precision_and_scale():
    log_ratios = np.random.default_rng(0).normal(size=1000)
    double = psis(jnp.asarray(log_ratios))
    single = psis(jnp.asarray(log_ratios, jnp.float32))
    assert single.log_ratios.dtype == jnp.float32
    np.testing.assert_allclose(single.k_hat, double.k_hat, atol=1e-4)
    shifted = psis(jnp.asarray(log_ratios) + 1e3)
    np.testing.assert_allclose(shifted.k_hat, double.k_hat, atol=1e-8)
    np.testing.assert_allclose(shifted.log_ratios - 1e3, double.log_ratios, atol=1e-8)


def test_the_bound_grows_with_the_draws():
    assert k_hat_bound(100) == 0.5
    assert k_hat_bound(10**6) == 0.7
    with pytest.raises(ValueError, match="num_draws: 1 came"):
        k_hat_bound(1)


def test_bad_ratios_are_told():
    for bad in (jnp.nan, jnp.inf):
        spoiled = jnp.zeros(50).at[7].set(bad)
        with pytest.raises(ValueError, match=r"log_ratios: NaN or \+inf came"):
            psis(spoiled)
        found = jax.jit(psis)(spoiled)
        assert jnp.isnan(found.k_hat)
        np.testing.assert_array_equal(found.log_ratios, spoiled)
    with pytest.raises(ValueError, match=r"log_ratios: shape \(1,\) came"):
        psis(jnp.zeros(1))
    with pytest.raises((ValueError, TypeError), match="log_ratios"):
        psis(jnp.arange(50))
