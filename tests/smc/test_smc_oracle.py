"""Particles against closed forms, quadrature, enumeration and the Kalman filter.

Every z-score is over independent runs from the key of seed 0; a |z| of 4 has a false-alarm rate of
6e-5 a statistic (4e-4 with the 20 runs of the slowest, by Student's law).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from bayesinf import kalman, smc
from bayesinf.distributions import gaussian
from bayesinf.mcmc.random_walk import RandomWalk
from bayesinf.programs import (
    DataProgram,
    Dynamics,
    FeynmanKac,
    Frame,
    Program,
    StateSpace,
    feynman_kac,
    linear_gaussian,
    reading,
)
from bayesinf.programs.simulate import simulate
from bayesinf.smc.along import step as along_step

pytestmark = pytest.mark.usefixtures("x64")

BOUND = 4.0


def z_scores(samples, exact):
    """Returns (mean - exact) / standard error by statistic, of runs along the leading axis."""
    samples = np.asarray(samples)
    return (samples.mean(0) - exact) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def runs(key, run, num=20):
    """Returns independent runs, along the leading axis."""
    return jax.jit(jax.vmap(run))(jax.random.split(key, num))


def unbiased(particles, exact_evidence):
    """Returns Z (1, E[x], E[x^2]) relative to the exact evidence: on the natural scale."""
    scale = jnp.exp(particles.log_evidence - exact_evidence)
    return scale * jnp.stack([1.0, particles.mean(), particles.mean(jnp.square)])


# A normal mean; the data lie to one side of the prior, so that a sign counts.

DATA = np.array([0.9, 2.1, 1.4, 2.6, 0.3])
PRIOR_MEAN, PRIOR_SD, NOISE = -1.0, 1.5, 0.7


def conjugate():
    prior = dist.Normal(PRIOR_MEAN, PRIOR_SD)
    return DataProgram(
        lambda key: PRIOR_MEAN + PRIOR_SD * jax.random.normal(key),
        prior.log_prob,
        lambda x, datum: dist.Normal(x, NOISE).log_prob(datum),
        jnp.asarray(DATA),
    )


def conjugate_answer(num_data=5):
    """Returns log evidence, mean and mean square of the posterior given the first data."""
    data = DATA[:num_data]
    covariance = PRIOR_SD**2 + NOISE**2 * np.eye(num_data)
    evidence = stats.multivariate_normal(np.full(num_data, PRIOR_MEAN), covariance).logpdf(data)
    precision = 1 / PRIOR_SD**2 + num_data / NOISE**2
    mean = (PRIOR_MEAN / PRIOR_SD**2 + data.sum() / NOISE**2) / precision
    return evidence, np.array([1.0, mean, mean**2 + 1 / precision])


KERNEL = RandomWalk(0.5)
LEVELS = np.array([0.02, 0.1, 0.3, 1.0])


@pytest.mark.parametrize(
    "run",
    [
        lambda key: smc.importance(key, conjugate(), 4000),
        lambda key: smc.importance(key, conjugate(), 1000, dist.Normal(1.0, 1.0)),
        lambda key: smc.temper_fixed(key, conjugate(), KERNEL, 400, LEVELS)[0],
        lambda key: smc.data_temper(key, conjugate(), KERNEL, 400)[0],
        lambda key: smc.temper(key, conjugate(), KERNEL, 500, num_steps=2)[0],
    ],
    ids=["importance", "proposal", "temper_fixed", "data_temper", "temper"],
)
def test_stat_conjugate(run, key):
    evidence, exact = conjugate_answer()
    samples = runs(key, lambda key: unbiased(run(key), evidence), 100)
    assert np.max(np.abs(z_scores(samples, exact))) < BOUND
    assert np.std(samples[:, 0]) < 0.5


def test_stat_data_tempering_after_every_datum(key):
    def run(key):
        program = conjugate()
        path = program.by_datum()
        start_key, *keys = jax.random.split(key, 1 + len(DATA))
        particles = smc.spawn(start_key, program.sample, 400, jnp.asarray(0))
        rows = []
        for index, key in enumerate(keys):
            level = jnp.asarray(index + 1)
            particles, _ = along_step(key, path, KERNEL, particles, level)
            rows.append(unbiased(particles, conjugate_answer(index + 1)[0]))
        return jnp.stack(rows)

    exact = np.stack([conjugate_answer(index + 1)[1] for index in range(len(DATA))])
    assert np.max(np.abs(z_scores(runs(key, run, 100), exact))) < BOUND


def test_stat_rejects_a_move_under_the_next_target(key):
    def run(key):
        program = conjugate()
        path = program.by_datum()
        start_key, *keys = jax.random.split(key, 1 + len(DATA))
        particles = smc.spawn(start_key, program.sample, 400, jnp.asarray(0))
        for index, key in enumerate(keys):
            move_key, resample_key = jax.random.split(key)
            level = jnp.asarray(index + 1)
            ahead = smc.reweight(particles, jnp.zeros(400), level)
            ahead = smc.move(move_key, KERNEL, path, ahead)[0]
            log_g = jax.vmap(path.log_increment, (0, None, None))(
                ahead.values, jnp.asarray(index), level
            )
            particles = smc.resample(
                resample_key, smc.reweight(ahead, log_g, level), smc.systematic
            )
        return unbiased(particles, conjugate_answer()[0])

    assert np.max(np.abs(z_scores(runs(key, run), conjugate_answer()[1]))) > 10


def test_stat_unequal_mixture_by_quadrature(key):
    # Two modes of unequal mass and width, seen from a wide prior.
    def log_likelihood(x):
        left = jnp.log(0.2) + dist.Normal(-2.0, 0.4).log_prob(x)
        right = jnp.log(0.8) + dist.Normal(2.5, 0.8).log_prob(x)
        return jnp.logaddexp(left, right)

    prior = dist.Normal(0.0, 4.0)
    program = Program(lambda key: 4.0 * jax.random.normal(key), prior.log_prob, log_likelihood)
    grid = jnp.linspace(-30, 30, 20_001)
    masses = np.exp(jax.vmap(program.target().log_density)(grid)) * float(grid[1] - grid[0])
    evidence = np.log(masses.sum())
    weights = masses / masses.sum()
    exact = np.array([1.0, weights @ grid, weights @ grid**2])

    def run(key):
        particles = smc.temper_fixed(key, program, RandomWalk(1.0), 1000, jnp.array([0.2, 1.0]))[0]
        return unbiased(particles, evidence)

    assert np.max(np.abs(z_scores(runs(key, run, 100), exact))) < BOUND


# Sequences


def level_model(values, mean, variance, moves, noise):
    """Returns the local-level model, whose given law is that of the first state, and its frames."""
    model = StateSpace(
        gaussian(np.array([mean]), np.array([[np.sqrt(variance - moves)]])),
        linear_gaussian([[1.0]], [[np.sqrt(moves)]]),
        {"level": lambda state, _: dist.Normal(state[0], np.sqrt(noise))},
    )
    return model, Frame(jnp.ones(len(values)), None, {"level": reading(values[:, None])})


def drift(state, noise, elapsed, input):
    """Decays at a rate and diffuses over the time that has elapsed, however uneven."""
    del input
    keep = jnp.exp(-elapsed * jnp.array([0.1, 0.2]))
    turned = keep * state + jnp.array([0.3 * elapsed * state[1], 0.0])
    factor = jnp.array([[0.5, 0.0], [0.2, 0.4]])
    return turned + jnp.sqrt(elapsed) * (factor @ noise) + jnp.array([0.1, 0.0])


def two_dimensional():
    model = StateSpace(
        gaussian(np.array([0.5, -1.0]), np.eye(2)),
        Dynamics(drift, 2),
        {"a": lambda state, _: dist.Normal(state[0], 0.5)},
    )
    values = np.zeros((8, 1))
    values[3] = np.nan
    elapsed = jnp.array([1.0, 0.2, 2.5, 0.7, 1.0, 0.1, 1.4, 0.5])
    blank = Frame(elapsed, None, {"a": reading(values)})
    return model, simulate(jax.random.key(3), model, blank)[1]


@pytest.mark.parametrize("name", ["bootstrap", "optimal", "unscented"])
def test_stat_filters_agree_with_kalman(name, key):
    model, frames = two_dimensional()
    fk = {
        "bootstrap": lambda: smc.bootstrap(model, frames),
        "optimal": lambda: smc.guided(model, frames, smc.local(model)),
        "unscented": lambda: smc.guided(model, frames, smc.local(model, kalman.unscented)),
    }[name]()
    beliefs, info = kalman.run(kalman.kalman, model, frames)
    evidence, last = info.log_evidence.sum(), beliefs.means[-1, 0]
    square = beliefs.chols[-1, 0] @ beliefs.chols[-1, 0].T + jnp.outer(last, last)

    def run(key):
        particles = smc.run(key, fk, 300)[0]
        scale = jnp.exp(particles.log_evidence - evidence)
        second = particles.mean(lambda x: jnp.outer(x, x))
        return scale * jnp.concatenate([jnp.ones(1), particles.mean(), second.ravel()])

    exact = np.concatenate([np.ones(1), last, square.ravel()])
    assert np.max(np.abs(z_scores(runs(key, run, 100), exact))) < BOUND


def test_stat_hidden_markov_model_by_enumeration(key):
    rng = np.random.default_rng(0)
    start, walk = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3)
    reads = rng.uniform(0.05, 1, (6, 3))
    masses = start
    for read in reads:
        masses = (masses @ walk) * read
    fk = feynman_kac(
        lambda key: jax.random.categorical(key, jnp.log(start)),
        lambda key, x, _: jax.random.categorical(key, jnp.log(walk)[x]),
        lambda before, after, read: jnp.log(read)[after],
        jnp.asarray(reads),
    )

    def run(key, policy):
        particles, _ = smc.run(key, fk, 200, policy)
        return particles.expectation(lambda x: jax.nn.one_hot(x, 3)) / masses.sum()

    for resampler in (smc.multinomial, smc.residual, smc.stratified, smc.systematic):
        policy = smc.always(resampler)
        samples = runs(key, lambda key, policy=policy: run(key, policy), 200)
        assert np.max(np.abs(z_scores(samples, masses / masses.sum()))) < BOUND


def series_runs(key, fk, num):
    """Returns log evidences one after another, since in a batch no step could skip resampling."""
    return [smc.run(key, fk, 10_000)[0].log_evidence for key in jax.random.split(key, num)]


def log_mean(log_evidence):
    """Returns the log of the mean evidence of runs, and its standard error by the delta method."""
    log_evidence = np.asarray(log_evidence)
    ratios = np.exp(log_evidence - log_evidence.max())
    error = ratios.std(ddof=1) / ratios.mean() / np.sqrt(len(ratios))
    return log_evidence.max() + np.log(ratios.mean()), error


def test_oracle_nile(request, key):
    file = np.load(request.path.parent.parent / "data" / "nile.npz", allow_pickle=False)
    model, frames = level_model(file["volume"].astype(float), *file["params"])
    fk = smc.bootstrap(model, frames)
    found = series_runs(key, fk, 8)
    value, error = log_mean(found)
    assert error < 0.1
    assert abs(value - file["loglik_t"].sum()) < BOUND * error


def test_oracle_gbpusd_stochastic_volatility(request, key):
    file = np.load(request.path.parent.parent / "data" / "gbpusd.npz", allow_pickle=False)
    mean, phi, scale = file["sv_params"]
    # The given law is stationary, so that it is also that of the state a step before.
    fk = FeynmanKac(
        lambda key, n: mean + scale / np.sqrt(1 - phi**2) * jax.random.normal(key, (n,)),
        lambda key, x, _: mean + phi * (x - mean) + scale * jax.random.normal(key, x.shape),
        lambda before, after, y: dist.Normal(0.0, jnp.exp(after / 2)).log_prob(y),
        jnp.asarray(file["log_return_pct"]),
    )
    found = series_runs(key, fk, 6)
    value, error = log_mean(found)
    assert error < 0.2
    assert abs(value - file["sv_loglik_t"].sum()) < BOUND * error
