"""Diagnostics of chains against closed forms and another implementation."""

import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy.stats import norm, rankdata

from bayesinf import diagnostics


def autoregression(rho, chains=4, draws=2000, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(chains, draws)) * np.sqrt(1 - rho**2)
    x = np.empty((chains, draws))
    x[:, 0] = rng.normal(size=chains)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x


def halves(x):
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_oracle_ess_of_an_autoregression(rho):
    """(1 - rho) / (1 + rho) of the draws; the estimate's own sd is about 5 % here, 15 % at .9."""
    x = autoregression(rho, draws=5000)
    expected = x.size * (1 - rho) / (1 + rho)
    room = 0.2 if abs(rho) < 0.9 else 0.4
    for ess in (diagnostics.ess_bulk(x), diagnostics.ess_mean(x)):
        assert abs(ess / expected - 1) < room
    np.testing.assert_allclose(
        diagnostics.mcse_mean(x), np.std(x, ddof=1) / np.sqrt(diagnostics.ess_mean(x)), rtol=1e-2
    )


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_oracle_agrees_with_numpyro(rho):
    """NumPyro's sums leave out the last even lag; the rest is the same."""
    x = autoregression(rho)
    np.testing.assert_allclose(diagnostics.split_rhat(x), split_gelman_rubin(x), rtol=1e-6)
    np.testing.assert_allclose(diagnostics.ess_mean(x), effective_sample_size(halves(x)), rtol=0.02)


def test_oracle_ranks():
    """Normal scores by SciPy's ranks, ties and all."""
    x = np.round(autoregression(0.3, draws=100), 1)
    split = halves(x)
    z = norm.ppf((rankdata(split).reshape(split.shape) - 3 / 8) / (split.size + 1 / 4))
    folded = np.abs(split - np.median(split))
    z_folded = norm.ppf((rankdata(folded).reshape(split.shape) - 3 / 8) / (split.size + 1 / 4))
    unsplit = [
        np.sqrt((49 / 50) + np.var(s.mean(1), ddof=1) / np.var(s, axis=1, ddof=1).mean())
        for s in (z, z_folded)
    ]
    np.testing.assert_allclose(diagnostics.rhat(x), max(unsplit), rtol=1e-12)


def test_rhat_sees_shifts_scales_and_heavy_tails():
    x = autoregression(0.0)
    assert diagnostics.rhat(x) < 1.01
    shifted = x + np.array([0, 0, 0, 1.0])[:, None]
    assert diagnostics.rhat(shifted) > 1.1
    wider = x * np.array([1, 1, 1, 4.0])[:, None]
    assert diagnostics.rhat(wider) > 1.1
    # Means agree, so that the plain one is blind to scales.
    assert diagnostics.split_rhat(wider) < 1.01
    trend = x + np.linspace(-1, 1, x.shape[1])
    assert diagnostics.rhat(trend) > 1.1


def test_ranks_do_not_mind_a_map_or_an_infinity():
    x = autoregression(0.5)
    np.testing.assert_allclose(diagnostics.rhat(x), diagnostics.rhat(3 * x - 7), rtol=1e-12)
    np.testing.assert_allclose(diagnostics.ess_bulk(x), diagnostics.ess_bulk(np.exp(x)), rtol=1e-12)
    np.testing.assert_allclose(diagnostics.ess_tail(x), diagnostics.ess_tail(np.exp(x)), rtol=1e-12)


def test_stat_quantile_error():
    """The error of a quantile over 200 independent runs is what one of them says, within 25 %."""
    runs = np.random.default_rng(0).normal(size=(200, 4, 500))
    quantiles = np.quantile(runs, 0.9, axis=(1, 2))
    said = diagnostics.mcse_quantile(np.moveaxis(runs, 0, 2), 0.9)
    assert 0.75 < np.mean(said) / np.std(quantiles) < 1.25


def test_shapes_constants_and_nan():
    x = np.stack([autoregression(0.5), autoregression(0.1, seed=1)], axis=-1)
    for function in (
        diagnostics.rhat,
        diagnostics.split_rhat,
        diagnostics.ess_bulk,
        diagnostics.ess_tail,
        diagnostics.mcse_mean,
    ):
        both = function(x)
        assert both.shape == (2,)
        for j in range(2):
            np.testing.assert_allclose(both[j], function(x[..., j]), rtol=1e-10)
        still = np.where(np.arange(2) == 0, x, 3.0)
        assert np.isnan(function(still)[1])
        assert np.isfinite(function(still)[0])
        lost = np.where((np.arange(2) == 1) & (np.arange(2000)[:, None] == 7), np.nan, x)
        assert np.isnan(function(lost)[1])
        assert np.isfinite(function(lost)[0])
    with pytest.raises(ValueError, match=r"draws: shape \(4, 3\) came"):
        diagnostics.rhat(x[:, :3, 0])
    with pytest.raises(ValueError, match=r"prob: 1\.0 came"):
        diagnostics.mcse_quantile(x, 1.0)
