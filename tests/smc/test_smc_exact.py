"""The laws of `smc` on every outcome of finite programs, and faults that the same checks reject."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from bayesinf import smc
from bayesinf.distributions.particles import Particles
from bayesinf.mcmc.metropolis import Metropolis, symmetric
from bayesinf.programs import DataProgram, FeynmanKac, feynman_kac, target
from bayesinf.smc.along import step as along_step
from bayesinf.smc.conditional import pinned
from bayesinf.smc.transform import offspring
from bayesinf.validation.exact import exact

pytestmark = pytest.mark.usefixtures("x64")

RESAMPLERS = (smc.multinomial, smc.residual, smc.stratified, smc.systematic)
WEIGHTS = ((0.3, 0.7), (0.2, 0.0, 0.8), (0.0, 0.5, 0.5), (0.1, 0.25, 0.65), (0.4, 0.15, 0.0, 0.45))
# Sums of at most some thousand masses in double precision.
TOLERANCE = 1e-12
NUM_STATES = 3


def expected(statistic, key):
    """Returns the exact mean of `statistic(key)`."""
    return exact(statistic, key).expectation()


def masses(particles, num_states):
    """Returns the mass that particles give each of the states 0..K-1."""
    mass = jnp.exp(particles.log_evidence) * particles.weights
    return jax.nn.one_hot(particles.values, num_states).T @ mass


def error(run, truth, key):
    """Returns the largest relative error of the expected measure."""
    found = expected(lambda key: masses(run(key), len(truth)), key)
    return np.max(np.abs(found - truth)) / np.sum(truth)


def table(seed, *shape):
    """Returns log probabilities by row, in double precision wherever it is called."""
    return log_softmax(np.random.default_rng(seed).normal(size=shape), axis=-1)


# Resampling


def off_by_one(key, log_weights, num):
    return jnp.minimum(smc.systematic(key, log_weights, num) + 1, log_weights.size - 1)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_exact_offspring(resampler, weights, key):
    n, log_weights = len(weights), jnp.log(jnp.asarray(weights))
    for num in (1, n, n + 1):
        measure = exact(lambda key, num=num: resampler(key, log_weights, num), key)
        counts = [np.bincount(ancestors, minlength=n) for ancestors in measure.atoms]
        np.testing.assert_allclose(
            measure.masses @ np.stack(counts), num * np.asarray(weights), atol=TOLERANCE
        )
        if resampler in (smc.systematic, smc.residual):
            assert np.all(np.abs(counts - num * np.asarray(weights)) < num)
        if resampler is smc.systematic:
            assert np.all(np.abs(counts - num * np.asarray(weights)) < 1 + TOLERANCE)


def test_exact_offspring_rejects_off_by_one(key):
    log_weights = jnp.log(jnp.asarray(WEIGHTS[3]))
    measure = exact(lambda key: off_by_one(key, log_weights, 3), key)
    counts = np.stack([np.bincount(ancestors, minlength=3) for ancestors in measure.atoms])
    assert np.max(np.abs(measure.masses @ counts - 3 * np.asarray(WEIGHTS[3]))) > 0.1


def given(weights):
    states = jnp.arange(len(weights))
    return Particles(states, jnp.log(jnp.asarray(weights)), jnp.asarray(0.7), jnp.asarray(0.0))


def keeps_old_weights(key, particles):
    ancestors = smc.systematic(key, particles.log_weights, particles.num_particles)
    copies = offspring(particles, ancestors)
    return Particles(copies.values, particles.log_weights, copies.log_evidence, copies.level)


def drops_evidence(key, particles):
    return smc.normalise(smc.resample(key, particles, smc.systematic))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_exact_policies_and_collapse(weights, key):
    truth = np.exp(0.7) * np.asarray(weights)
    for threshold in (0.5, 0.8, 1.0):
        policy = smc.adaptive(smc.stratified, threshold)
        assert error(lambda key, p=policy: p(key, given(weights))[0], truth, key) < TOLERANCE
    always = smc.always(smc.systematic)
    assert error(lambda key: always(key, given(weights))[0], truth, key) < TOLERANCE
    assert error(lambda key: smc.collapse(key, given(weights)), truth, key) < TOLERANCE


@pytest.mark.parametrize("fault", [keeps_old_weights, drops_evidence])
def test_exact_preservation_rejects(fault, key):
    truth = np.exp(0.7) * np.asarray(WEIGHTS[3])
    assert error(lambda key: fault(key, given(WEIGHTS[3])), truth, key) > 0.05


# Programs


def program(num_data=2):
    prior, data = table(1, NUM_STATES), table(2, num_data, NUM_STATES) + 0.3
    draw = Categorical(prior)
    return DataProgram(draw, draw.log_prob, lambda x, datum: datum[x], jnp.asarray(data))


class Categorical:
    def __init__(self, logits):
        self.logits = logits

    def sample(self, key):
        return jax.random.categorical(key, jnp.asarray(self.logits))

    __call__ = sample

    def log_prob(self, x):
        return jnp.asarray(self.logits)[x]


def posterior(program, num_data=2):
    states = jnp.arange(NUM_STATES)
    path = program.by_datum()
    return np.exp(jax.vmap(path.target(jnp.asarray(num_data)).log_density)(states))


# A proposal that is not symmetric, so that the Hastings term counts.
PROPOSAL = table(3, NUM_STATES, NUM_STATES)
KERNEL = Metropolis(
    lambda key, x: jax.random.categorical(key, jnp.asarray(PROPOSAL)[x]),
    lambda y, x: jnp.asarray(PROPOSAL)[x, y],
)


@pytest.mark.parametrize("num", [1, 2, 3])
@pytest.mark.parametrize("proposal", [None, Categorical(table(4, NUM_STATES))])
def test_exact_importance(num, proposal, key):
    model = program()
    truth = posterior(model)
    assert error(lambda key: smc.importance(key, model, num, proposal), truth, key) < TOLERANCE


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("policy", [smc.always(smc.systematic), smc.adaptive(smc.multinomial, 0.9)])
def test_exact_tempering(num, policy, key):
    model, levels = program(), jnp.array([0.4, 1.0])

    def run(key):
        return smc.temper_fixed(key, model, KERNEL, num, levels, resample=policy)[0]

    assert error(run, posterior(model), key) < TOLERANCE


@pytest.mark.parametrize(("num", "num_data"), [(2, 2), (2, 3), (3, 2)])
def test_exact_data_tempering(num, num_data, key):
    model = program(num_data)
    policy = smc.adaptive(smc.systematic, 0.9)

    def run(key):
        return smc.data_temper(key, model, KERNEL, num, resample=policy)[0]

    assert error(run, posterior(model, num_data), key) < TOLERANCE


def moves_under_the_next(key, path, particles, level):
    """The order reweight, resample, move with the move under the target that is yet to come."""
    resample_key, move_key = jax.random.split(key)
    ahead = smc.move(move_key, KERNEL, path, at(particles, level))[0]
    back = at(ahead, particles.level)
    log_g = jax.vmap(path.log_increment, (0, None, None))(back.values, back.level, level)
    return smc.resample(resample_key, smc.reweight(back, log_g, level), smc.systematic)


def at(particles, level):
    return Particles(particles.values, particles.log_weights, particles.log_evidence, level)


def right_order(key, path, particles, level):
    return along_step(key, path, KERNEL, particles, level)[0]


@pytest.mark.parametrize(("order", "holds"), [(right_order, True), (moves_under_the_next, False)])
def test_exact_order_of_data_tempering(order, holds, key):
    model = program()
    path = model.by_datum()

    def run(key):
        start_key, *keys = jax.random.split(key, 3)
        particles = smc.spawn(start_key, model.sample, 2, jnp.asarray(0))
        for index, key in enumerate(keys):
            particles = order(key, path, particles, jnp.asarray(index + 1))
        return particles

    found = error(run, posterior(model), key)
    assert found < TOLERANCE if holds else found > 0.01


# Sequences


def hidden_markov(length, num_states=2, shift=0.0):
    """Returns the model, and the masses of all trajectories as an array with T + 1 axes."""
    start, walk = (jnp.asarray(table(5 + i, *(num_states,) * (1 + i))) for i in (0, 1))
    reads = jnp.asarray(table(7, length, num_states)) * (1 + shift)
    if length == 3:
        reads = reads.at[0, 0].set(-jnp.inf)
    fk = feynman_kac(
        lambda key: jax.random.categorical(key, start),
        lambda key, x, _: jax.random.categorical(key, walk[x]),
        lambda before, after, read: read[after],
        reads,
    )
    paths = np.exp(np.asarray(start))
    for read in np.asarray(reads):
        paths = paths[..., None] * np.exp(walk + read)
    return fk, paths


@pytest.mark.parametrize("resampler", [smc.systematic, smc.multinomial])
@pytest.mark.parametrize(("num", "length"), [(1, 2), (2, 2), (2, 3), (3, 2)])
def test_exact_filter(num, length, resampler, key):
    fk, paths = hidden_markov(length)
    truth = paths.sum(axis=tuple(range(length)))
    for policy in (smc.always(resampler), smc.adaptive(resampler, 0.9)):
        run = lambda key, p=policy: smc.run(key, fk, num, p)[0]  # noqa: E731
        assert error(run, truth, key) < TOLERANCE


@pytest.mark.parametrize("fault", [off_by_one, None])
def test_exact_filter_rejects(fault, key):
    fk, paths = hidden_markov(2)
    policy = drops_evidence_policy if fault is None else smc.always(fault)
    assert error(lambda key: smc.run(key, fk, 2, policy)[0], paths.sum(axis=(0, 1)), key) > 0.005


def drops_evidence_policy(key, particles):
    particles, resampling = smc.always(smc.systematic)(key, particles)
    return smc.normalise(particles), resampling


def test_exact_trajectories(key):
    fk, paths = hidden_markov(2)

    def run(key):
        particles, info = smc.run(key, fk, 2, collect=smc.history)
        coded = smc.trajectories(info.collected) @ jnp.array([2, 1])
        return Particles(coded, particles.log_weights, particles.log_evidence, particles.level)

    assert error(run, paths.sum(axis=0).ravel(), key) < TOLERANCE


def invariance_error(kernel, fk, paths, key):
    """Returns how far a kernel takes trajectories from their exact law."""
    shape, length = paths.shape, paths.ndim
    logits = jnp.log(jnp.asarray(paths.ravel() / paths.sum()))
    places = jnp.asarray([shape[0] ** power for power in reversed(range(length))])

    def coded(key):
        draw_key, move_key = jax.random.split(key)
        code = jax.random.categorical(draw_key, logits)
        state = kernel.init(fk, code // places % shape[0])
        moved, _ = kernel.step(move_key, fk, state)
        return jax.nn.one_hot(moved.position @ places, len(logits))

    return np.max(np.abs(expected(coded, key) - np.exp(logits)))


def log_transition(before, after, _):
    return jnp.asarray(table(6, 2, 2))[before, after]


@pytest.mark.parametrize(("num", "length"), [(2, 2), (3, 1), (2, 3)])
def test_exact_conditional_smc(num, length, key):
    fk, paths = hidden_markov(length)
    assert invariance_error(smc.conditional_smc(num), fk, paths, key) < TOLERANCE
    kernel = smc.ancestor_sampling(num, log_transition)
    assert invariance_error(kernel, fk, paths, key) < TOLERANCE


def test_exact_conditional_smc_rejects_a_lost_reference(key, monkeypatch):
    fk, paths = hidden_markov(2)
    monkeypatch.setattr("bayesinf.smc.conditional.pinned", lambda values, given: values)
    assert pinned(jnp.zeros(2), 1.0)[0] == 1
    assert invariance_error(smc.conditional_smc(2), fk, paths, key) > 0.01


def test_exact_pmmh(key):
    log_prior = jnp.asarray(table(8, 2))
    models = [hidden_markov(2, shift=shift)[0] for shift in (0.0, 1.0)]
    reads = jnp.stack([model.inputs for model in models])
    evidence = np.array([hidden_markov(2, shift=shift)[1].sum() for shift in (0.0, 1.0)])

    def model(parameter):
        fk = models[0]
        return FeynmanKac(fk.init, fk.step, fk.log_potential, reads[parameter])

    proposal = symmetric(lambda key, x: jax.random.categorical(key, jnp.zeros(2)))
    kernel = smc.pmmh(proposal, model, 2)
    prior = target(lambda x: log_prior[x])

    def weighted(key):
        draw_key, start_key, move_key = jax.random.split(key, 3)
        position = kernel.start(start_key, jax.random.categorical(draw_key, log_prior))
        moved, _ = kernel.step(move_key, prior, kernel.init(prior, position))
        return jnp.exp(position.log_estimate) * jax.nn.one_hot(moved.position.value, 2)

    truth = np.exp(log_prior) * evidence
    np.testing.assert_allclose(expected(weighted, key), truth, atol=TOLERANCE)
    assert abs(evidence[0] / evidence[1] - 1) > 0.1
