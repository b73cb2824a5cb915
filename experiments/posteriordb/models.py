"""Seven posteriors of posteriordb as NumPyro models, and the names of their parameters.

Flat priors are normal ones so wide that their slope is far below the posterior's errors. What the
reference names otherwise than a model's site is a function of the draws.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

WIDE = 1e3


class Posterior(NamedTuple):
    """A model, the arguments made of the data file, and the reference's names from a point."""

    model: Callable
    arguments: Callable[[dict], tuple]
    named: Callable[..., dict]


def elements(name, values):
    return {f"{name}[{j + 1}]": values[j] for j in range(values.shape[0])}


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def eight_schools_named(x, *_):
    theta = x["mu"] + x["tau"] * x["z"]
    return {"mu": x["mu"], "tau": x["tau"], **elements("theta", theta)}


def columns(data):
    """Returns intercept, education, IQ and their product, standardised, with shift and scale."""
    hs, iq = (np.asarray(data[name], float) for name in ("mom_hs", "mom_iq"))
    raw = np.stack([np.ones_like(hs), hs, iq, hs * iq], axis=1)
    shift, scale = np.append(0, raw[:, 1:].mean(0)), np.append(1, raw[:, 1:].std(0))
    return jnp.asarray((raw - shift) / scale), jnp.asarray(shift), jnp.asarray(scale)


def kid_score(X, shift, scale, y):
    del shift, scale
    b = numpyro.sample("b", dist.Normal(0, WIDE).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(X @ b, sigma).to_event(1), obs=y)


def kid_score_named(x, X, shift, scale, y):
    del X, y
    beta = x["b"] / scale
    return {**elements("beta", beta.at[0].add(-jnp.sum(beta * shift))), "sigma": x["sigma"]}


def autoregression(lagged, y):
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([lagged.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma).to_event(1), obs=y)


def lags(data):
    y, order = np.asarray(data["y"]), data["K"]
    lagged = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1)
    return jnp.asarray(lagged), jnp.asarray(y[order:])


def mixture(y):
    """Ordered means: the second lies above the first, its density that of a normal there."""
    first = numpyro.sample("first", dist.Normal(0, 2))
    second = numpyro.sample("second", dist.TruncatedNormal(0, 2, low=first))
    numpyro.factor("whole", jax.scipy.stats.norm.logcdf(-first / 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    log_shares = jnp.log(jnp.stack([theta, 1 - theta]))
    log_densities = dist.Normal(jnp.stack([first, second]), sigma).log_prob(y[:, None])
    numpyro.factor("y", jnp.sum(jax.nn.logsumexp(log_shares + log_densities, axis=1)))


def mixture_named(x, *_):
    mu = jnp.stack([x["first"], x["second"]])
    return {**elements("mu", mu), **elements("sigma", x["sigma"]), "theta": x["theta"]}


def gaussian_process(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    gaps = x[:, None] - x[None, :]
    covariance = alpha**2 * jnp.exp(-0.5 * (gaps / rho) ** 2) + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(0, covariance), obs=y)


def garch(y, first):
    mu = numpyro.sample("mu", dist.Normal(0, WIDE))
    alpha0 = numpyro.sample("alpha0", dist.HalfNormal(WIDE))
    alpha1 = numpyro.sample("alpha1", dist.Uniform(0, 1))
    beta1 = numpyro.sample("beta1", dist.Uniform(0, 1 - alpha1))
    numpyro.factor("flat", jnp.log1p(-alpha1))

    def step(variance, value):
        new = alpha0 + alpha1 * (value - mu) ** 2 + beta1 * variance
        return new, new

    later = jax.lax.scan(step, first**2, y[:-1])[1]
    variances = jnp.concatenate([first[None] ** 2, later])
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(variances)).to_event(1), obs=y)


def populations(theta, start, num_years, steps=25):
    """Returns hares and lynxes by year, of Lotka and Volterra's equations (Runge-Kutta, 4th)."""

    def slope(state):
        u, v = state
        return jnp.stack([(theta[0] - theta[1] * v) * u, (-theta[2] + theta[3] * u) * v])

    def small(state, _):
        h = 1 / steps
        a = slope(state)
        b = slope(state + h / 2 * a)
        c = slope(state + h / 2 * b)
        d = slope(state + h * c)
        return state + h / 6 * (a + 2 * b + 2 * c + d), None

    def year(state, _):
        state = jax.lax.scan(small, state, length=steps)[0]
        return state, state

    return jax.lax.scan(year, start, length=num_years)[1]


def lynx_hare(first, y):
    loc, scale = jnp.array([1, 0.05, 1, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=0).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))
    start = numpyro.sample("start", dist.LogNormal(jnp.log(10.0), 1).expand([2]).to_event(1))
    numpyro.sample("first", dist.LogNormal(jnp.log(start), sigma).to_event(1), obs=first)
    # A trajectory that dies out has no logarithm.
    ahead = jnp.maximum(populations(theta, start, y.shape[0]), 1e-6)
    numpyro.sample("y", dist.LogNormal(jnp.log(ahead), sigma).to_event(2), obs=y)


def lynx_hare_named(x, *_):
    parts = {"theta": x["theta"], "z_init": x["start"], "sigma": x["sigma"]}
    return {name: v for key, values in parts.items() for name, v in elements(key, values).items()}


def arrays(*names):
    return lambda data: tuple(jnp.asarray(data[name], jnp.result_type(float)) for name in names)


POSTERIORS = {
    "eight_schools_noncentered": Posterior(
        eight_schools, arrays("y", "sigma"), eight_schools_named
    ),
    "kidiq_kidscore_interaction": Posterior(
        kid_score, lambda data: (*columns(data), *arrays("kid_score")(data)), kid_score_named
    ),
    "arK": Posterior(
        autoregression,
        lags,
        lambda x, *_: {"alpha": x["alpha"], "sigma": x["sigma"], **elements("beta", x["beta"])},
    ),
    "low_dim_gauss_mix": Posterior(mixture, arrays("y"), mixture_named),
    "gp_regr": Posterior(gaussian_process, arrays("x", "y"), lambda x, *_: x),
    "garch11": Posterior(garch, arrays("y", "sigma1"), lambda x, *_: x),
    "hudson_lynx_hare": Posterior(lynx_hare, arrays("y_init", "y"), lynx_hare_named),
}
