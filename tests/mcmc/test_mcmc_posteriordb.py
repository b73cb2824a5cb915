"""NUTS against reference draws: every mean within 4 standard errors of the two combined."""

import json
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesinf import diagnostics, mcmc
from bayesinf.programs import target

DATA = Path(__file__).parents[1] / "data" / "posteriordb"


def normal(x, mean, sd):
    return jnp.sum(-0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd))


def half_cauchy_of_log(log_x, scale):
    """The log density of log x, x half Cauchy."""
    return log_x - jnp.log1p((jnp.exp(log_x) / scale) ** 2)


class EightSchools(eqx.Module):
    y: Array
    sigma: Array

    def __call__(self, x):
        theta = x["mu"] + jnp.exp(x["log_tau"]) * x["z"]
        prior = normal(x["z"], 0, 1.0) + normal(x["mu"], 0, 5.0)
        return prior + half_cauchy_of_log(x["log_tau"], 5) + normal(self.y, theta, self.sigma)


class KidScore(eqx.Module):
    """Regression on centred columns, so that the start is near."""

    X: Array
    y: Array

    def __call__(self, x):
        likelihood = normal(
            self.y, self.X @ x["b"], jnp.exp(x["log_sigma"]) * jnp.ones_like(self.y)
        )
        return likelihood + half_cauchy_of_log(x["log_sigma"], 2.5)


def load(name):
    data = json.loads((DATA / f"{name}.data.json").read_text())
    return data, np.load(DATA / f"{name}.npz")


def check_means(values, reference):
    names = list(reference["names"])
    for name, draws in values.items():
        at = names.index(name)
        error = np.hypot(diagnostics.mcse_mean(draws), reference["mcse_mean"][at])
        z = (np.mean(draws) - reference["mean"][at]) / error
        assert abs(z) < 4, (name, float(z))
        ratio = np.std(draws) / reference["sd"][at]
        # sd / sqrt(2 ess) with an ess of 400 and heavy tails.
        assert 0.8 < ratio < 1.25, (name, float(ratio))
        assert diagnostics.rhat(draws) < 1.02


def test_stat_eight_schools(key):
    data, reference = load("eight_schools_noncentered")
    given = target(EightSchools(*(jnp.asarray(data[name], float) for name in ("y", "sigma"))))
    init = {"mu": jnp.zeros(4), "log_tau": jnp.ones(4), "z": jnp.zeros((4, 8))}
    draws = mcmc.sample(key, given, mcmc.NUTS(), init=init, progress=False)
    mu, tau = draws.positions["mu"], np.exp(draws.positions["log_tau"])
    theta = mu[..., None] + tau[..., None] * draws.positions["z"]
    schools = {f"theta[{j + 1}]": theta[..., j] for j in range(8)}
    check_means({"mu": mu, "tau": tau, **schools}, reference)
    assert 0.7 < np.mean(draws.info.acceptance) < 0.95


def test_stat_kid_score_with_a_dense_scale(key):
    data, reference = load("kidiq_kidscore_interaction")
    hs, iq = (np.asarray(data[name], float) for name in ("mom_hs", "mom_iq"))
    X = np.stack([np.ones_like(hs), hs, iq, hs * iq], axis=1)
    shifts, scales = np.append(0, X[:, 1:].mean(0)), np.append(1, X[:, 1:].std(0))
    standard = (X - shifts) / scales
    given = target(KidScore(jnp.asarray(standard), jnp.asarray(data["kid_score"], float)))
    init = {"b": jnp.tile(jnp.array([87.0, 0, 0, 0]), (4, 1)), "log_sigma": jnp.full(4, 3.0)}
    # The columns are nearly collinear; a matrix as the scale asks for one.
    kernel = mcmc.NUTS(0.1, jnp.eye(5))
    draws = mcmc.sample(key, given, kernel, init=init, progress=False)
    assert draws.last.kernels.scale.shape == (4, 5, 5)
    b = draws.positions["b"] / scales
    intercept = b[..., 0] - b[..., 1:] @ shifts[1:]
    coefficients = {f"beta[{j + 1}]": b[..., j] for j in range(1, 4)}
    sigma = np.exp(draws.positions["log_sigma"])
    check_means({"beta[1]": intercept, **coefficients, "sigma": sigma}, reference)
    # A dense scale makes the posterior round: few steps.
    assert np.mean(draws.info.num_steps) < 8
