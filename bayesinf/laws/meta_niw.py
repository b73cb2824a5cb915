"""The laws of the meta-learner: ranks of the truth, exact draws of joint laws, closed forms."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Shaped

from bayesinf import meta_niw
from bayesinf.distributions import NormalInverseWishart, full, gaussian
from bayesinf.laws.continuous import report
from bayesinf.laws.row import Row
from bayesinf.linalg import cholesky
from bayesinf.meta_niw import task_prior
from bayesinf.meta_niw.likelihoods import Bernoulli, Gaussian, Likelihood
from bayesinf.programs import target
from bayesinf.types import calibrated, consistent, invariant
from bayesinf.validation import Joint, Report, check_calibrated
from bayesinf.validation.problems import SEED
from bayesinf.validation.statistical import FALSE_ALARM, invariance, judge

EXACT = meta_niw.Laplace(num_steps=1)
NOISE, SHARP = 0.6, 1e-2  # with the second, episodes all but tell their weights
NUM_EPISODES, NUM_CHAINS = 4, 256
# Inputs of an episode of two weights, more of them than weights.
X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
THETA = np.array([[0.3], [1.4], [-0.5], [0.9]])  # four tasks of one weight


def rows() -> list[Row]:
    one_task = "statistically: ranks, for a linear-Gaussian task"
    family = "statistically: ranks of mu and Sigma, where episodes tell their weights"
    return [
        Row("meta_niw.adapt", calibrated, f"{one_task} of the Student-t family", adapted),
        Row("meta_niw.Laplace", calibrated, f"{one_task} of N(m, V / n)", _laplace),
        Row("meta_niw.update", calibrated, family, partial(learned, "update", updated)),
        Row("meta_niw.cavi", calibrated, family, partial(learned, "cavi", ascended)),
        Row("meta_niw.gibbs_kernel", invariant, "statistically: exact draws of a joint law", moved),
        Row("meta_niw.gibbs", consistent, "statistically: a closed form", _gibbs),
        Row("meta_niw.chib", consistent, "statistically: quadrature", _chib),
    ]


def linear(weights, x):
    return x @ weights


def learner(likelihood: Likelihood, dim: int = 2, strength: float = 2.0) -> meta_niw.State:
    """Returns a learner of a linear model that has seen nothing."""
    scale = full(jnp.eye(dim) + 0.5 * jnp.ones((dim, dim)))
    prior = NormalInverseWishart(jnp.linspace(0.5, -1, dim), strength, dim + 4.0, scale)
    return meta_niw.init(prior, linear, jnp.zeros(dim), likelihood)


def episodes(y: Shaped[Array, "*n k"], dim: int = 2) -> meta_niw.Episode:
    """Returns episodes with these outputs at the inputs `X`."""
    x = jnp.broadcast_to(jnp.asarray(X[:, :dim]), (*y.shape, dim))
    return meta_niw.Episode(x, y, jnp.ones(y.shape, bool))


# A task


def adapted(num_tests: int, prior: Callable = task_prior.student_t) -> Report:
    """Returns what came of `adapt` for tasks of the learner's family, with a task prior."""
    niw = learner(Gaussian(NOISE)).posterior

    def draw(key):
        phi_key, theta_key = jax.random.split(key)
        mu, cov = niw.sample(phi_key)
        return mu + cov.sample(theta_key)

    return _one_task("adapt", draw, niw.marginal().log_prob, prior, num_tests)


def _laplace(num_tests: int) -> Report:
    cov = learner(Gaussian(NOISE)).posterior.expected_precision()
    given = gaussian(learner(Gaussian(NOISE)).posterior.loc, cov.chol)
    return _one_task(
        "Laplace", given.sample, given.log_prob, task_prior.expected_precision, num_tests
    )


def _one_task(name, draw_theta, log_prior, prior, num_tests: int) -> Report:
    """Two rows of two weights, so that no episode tells its weights."""
    state = learner(Gaussian(NOISE))

    def draw(key):
        theta_key, noise_key = jax.random.split(key)
        theta = draw_theta(theta_key)
        return theta, X[1:] @ theta + NOISE * jax.random.normal(noise_key, (2,))

    def posterior(key, y):
        episode = meta_niw.Episode(jnp.asarray(X[1:]), y, jnp.ones(2, bool))
        found = meta_niw.adapt(state, episode, prior, EXACT)
        which_key, theta_key = jax.random.split(key)
        which = jax.random.categorical(which_key, found.log_weights)
        return jax.tree.map(lambda leaf: leaf[which], found.locals).sample(theta_key)

    def given(y):
        return target(
            lambda theta: log_prior(theta) - 0.5 * jnp.sum((y - X[1:] @ theta) ** 2) / NOISE**2
        )

    joint = Joint(draw, given, lambda theta, y: jnp.append(theta, theta[0] * y[1]))
    return check_calibrated(
        posterior, joint, name=f"meta_niw.{name}", num_draws=31, num_tests=num_tests
    )


# What tasks share


def updated(state, data):
    return meta_niw.update(state, data, local=EXACT)[0]


def ascended(state, data):
    return meta_niw.cavi(state, data, 3, EXACT)[0]


def learned(
    name: str, learn: Callable, num_tests: int, noise: float = SHARP, num_rows: int = len(X)
) -> Report:
    """Returns what came of a learner's posterior over mu and Sigma after four episodes.

    The factorised form of the posterior is exact where an episode tells its weights; elsewhere it
    is an approximation, whose gap `chib` less `elbo` gives.
    """
    state = learner(Gaussian(noise))
    x = jnp.asarray(X[:num_rows])

    def draw(key):
        phi_key, theta_key, noise_key = jax.random.split(key, 3)
        mu, cov = state.prior.sample(phi_key)
        theta = mu + cov.sample(theta_key, (NUM_EPISODES,))
        y = theta @ x.T + noise * jax.random.normal(noise_key, (NUM_EPISODES, num_rows))
        return (mu, cov), y

    def posterior(key, y):
        inputs = jnp.broadcast_to(x, (NUM_EPISODES, *x.shape))
        data = meta_niw.Episode(inputs, y, jnp.ones(y.shape, bool))
        return learn(state, data).posterior.sample(key)

    def given(y):
        def log_density(phi):
            mu, cov = phi
            spread = x @ cov.dense() @ x.T + noise**2 * jnp.eye(num_rows)
            marginal = gaussian(x @ mu, cholesky(spread))
            return state.prior.log_prob(phi) + jnp.sum(marginal.log_prob(y))

        return target(log_density)

    def statistics(phi, y):
        mu, cov = phi
        return jnp.stack([*mu, cov.half_log_det(), mu[0] * jnp.mean(y[:, 0])])

    joint = Joint(draw, given, statistics)
    return check_calibrated(
        posterior, joint, name=f"meta_niw.{name}", num_draws=31, num_tests=num_tests
    )


# All episodes at once


def moved(num_tests: int, make: Callable = meta_niw.gibbs_kernel) -> Report:
    """Returns what came of a kernel for the weights, mu and Sigma, made of tasks and a local fit:
    that of zeros and ones is no more than a proposal."""
    start = time.perf_counter()
    state = learner(Bernoulli(), dim=1)

    def tasks(y):
        return meta_niw.Tasks(state.model, state.prior, episodes(y, dim=1))

    def draw(key):
        position_key, data_key = jax.random.split(key)
        position = tasks(jnp.zeros((2, len(X)), int)).sample(position_key)
        log_odds = position["theta"] * X[:, 0]
        return position, state.model.likelihood.draw(data_key, log_odds)

    def move(key, drawn):
        position, y = drawn
        now = tasks(y)
        kernel, joint = make(now, meta_niw.Laplace(2)), now.target()
        return kernel.step(key, joint, kernel.init(joint, position))[0].position, y

    def statistics(drawn):
        position, y = drawn
        theta = jnp.tanh(position["theta"][:, 0])
        shared = jnp.stack([jnp.tanh(position["mu"][0]), position["cov"].half_log_det()])
        return shared, theta, theta * y[:, 0]

    found = invariance(jax.random.key(SEED), draw, move, statistics, 4096, num_tests)
    return report("meta_niw.gibbs_kernel", invariant, found, time.perf_counter() - start)


def _drawn(noise: float):
    """Returns a learner of one weight, episodes, and draws of the posterior by many chains."""
    state = learner(Gaussian(noise), dim=1)
    data = episodes(jnp.asarray(THETA * X[:, 0]), dim=1)
    counts = {"num_chains": NUM_CHAINS, "num_warmup": 20, "num_samples": 20}
    key = jax.random.key(SEED)
    return state, data, meta_niw.gibbs(key, state, data, **counts, local=EXACT, progress=False)


def _gibbs(num_tests: int) -> Report:
    """Episodes that tell their weights, which leave a Normal-Inverse-Wishart."""
    start = time.perf_counter()
    state, _, draws = _drawn(SHARP)
    told = state.prior.observe(jnp.asarray(THETA))
    mu, variance = draws.positions["mu"][..., 0], draws.positions["cov"].chol[..., 0, 0] ** 2
    samples = np.stack([np.mean(mu, axis=1), np.mean(1 / variance, axis=1)], axis=1)
    exact = np.array([told.loc[0], 1 / told.expected_precision().diagonal()[0]])
    found = judge(samples, exact, num_tests)
    return report("meta_niw.gibbs", consistent, found, time.perf_counter() - start)


def _chib(num_tests: int) -> Report:
    start = time.perf_counter()
    state, data, draws = _drawn(NOISE)
    found = meta_niw.chib(state, data, draws, EXACT)
    exact = float(meta_niw.log_evidence_1d(state, data, 80, EXACT))
    z = abs(found.log_evidence - exact) / found.standard_error
    threshold = -float(norm.ppf(FALSE_ALARM / (2 * num_tests)))
    return Report(
        *("meta_niw.chib", consistent.name, "statistical"),
        *("holds" if z <= threshold else "refuted", time.perf_counter() - start),
        statistical_z=z,
        detectable=(threshold - float(norm.ppf(0.01))) * found.standard_error,
        problem=f"quadrature, {NUM_CHAINS} chains",
    )
