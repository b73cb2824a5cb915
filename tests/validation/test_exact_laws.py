"""Whole algorithms on finite models, against what their laws say."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from bayesinf.validation import KeyReuse, exact

pytestmark = pytest.mark.usefixtures("x64")

TOLERANCE = 1e-12


def weighted(measure, num_states: int) -> np.ndarray:
    """Returns E[Z W_i delta(x_i)] as a vector, from atoms (states, log weights with evidence)."""

    def histogram(atom):
        states, log_weights = atom
        return jnp.zeros(num_states).at[states].add(jnp.exp(log_weights))

    return measure.expectation(histogram)


# Resamplers keep the measure of a population.

STATES = np.array([0, 1, 2])
LOG_WEIGHTS = np.log([0.5, 0.1, 1.1])


def multinomial(key, weights, num):
    return jr.categorical(key, jnp.log(weights), shape=(num,))


def choice(key, weights, num):
    return jr.choice(key, num, (num,), p=weights)


def inverse_cdf(key, weights, num):
    return jnp.searchsorted(jnp.cumsum(weights), jr.uniform(key, (num,)))


def systematic(key, weights, num):
    return jnp.searchsorted(jnp.cumsum(weights), (jnp.arange(num) + jr.uniform(key)) / num)


def stratified(key, weights, num):
    return jnp.searchsorted(jnp.cumsum(weights), (jnp.arange(num) + jr.uniform(key, (num,))) / num)


def residual(key, weights, num):
    counts = jnp.floor(num * weights).astype(int)
    rest = num * weights - counts
    left = num - counts.sum()
    certain = jnp.repeat(jnp.arange(num), counts, total_repeat_length=num)
    drawn = jr.categorical(key, jnp.log(rest), shape=(num,))
    return jnp.where(jnp.arange(num) < num - left, certain, drawn)


def one_for_all(key, weights, num):
    return jnp.searchsorted(jnp.cumsum(weights), jnp.full(num, jr.uniform(key)))


def off_by_one(key, weights, num):
    return jnp.searchsorted(jnp.cumsum(weights), (jnp.arange(num) + jr.uniform(key)) / (num + 1))


def ignores_weights(key, weights, num):
    return jnp.floor(num * jr.uniform(key, (num,))).astype(int)


def likeliest(key, weights, num):
    return jnp.full(num, jnp.argmax(weights))


def resampled(ancestors):
    def program(key, states, log_weights):
        num = len(states)
        total = logsumexp(log_weights)
        chosen = ancestors(key, jnp.exp(log_weights - total), num)
        return states[chosen], jnp.full(num, total - jnp.log(num))

    return program


RESAMPLERS = [multinomial, choice, inverse_cdf, systematic, stratified, residual, one_for_all]


@pytest.mark.parametrize("ancestors", RESAMPLERS)
def test_resamplers_keep_the_measure(key, ancestors):
    measure = exact(resampled(ancestors), key, STATES, LOG_WEIGHTS)
    np.testing.assert_allclose(weighted(measure, 3), np.exp(LOG_WEIGHTS), atol=TOLERANCE)
    np.testing.assert_allclose(measure.total(), 1, atol=TOLERANCE)


@pytest.mark.parametrize("ancestors", [off_by_one, ignores_weights, likeliest])
def test_wrong_resamplers_do_not(key, ancestors):
    measure = exact(resampled(ancestors), key, STATES, LOG_WEIGHTS)
    assert np.abs(weighted(measure, 3) - np.exp(LOG_WEIGHTS)).max() > 0.1


def test_systematic_ancestors_by_hand(key):
    measure = exact(lambda k: systematic(k, jnp.array([0.2, 0.3, 0.5]), 3), key)
    found = {tuple(atom.tolist()): mass for atom, mass in measure.table()}
    expected = {(0, 1, 2): 0.5, (0, 2, 2): 0.1, (1, 2, 2): 0.4}
    assert found == {k: pytest.approx(v, abs=TOLERANCE) for k, v in expected.items()}


def test_resampling_only_where_weights_are_uneven(key):
    def program(key, states, log_weights):
        weights = jax.nn.softmax(log_weights)
        return jax.lax.cond(
            jnp.sum(weights**2) > 0.4,
            lambda: resampled(systematic)(key, states, log_weights),
            lambda: (states, log_weights),
        )

    for log_weights in (LOG_WEIGHTS, np.log([0.5, 0.6, 0.4])):
        measure = exact(program, key, STATES, log_weights)
        np.testing.assert_allclose(weighted(measure, 3), np.exp(log_weights), atol=TOLERANCE)


# Kernels keep their target.

TARGET = np.array([0.2, 0.3, 0.5])
PROPOSAL = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.25, 0.25]])


def metropolis(key, accept, hastings=True):
    start, propose, decide = jr.split(key, 3)
    log_target, proposal = jnp.log(TARGET), jnp.asarray(PROPOSAL)
    x = jr.categorical(start, log_target)
    y = jr.categorical(propose, jnp.log(proposal)[x])
    log_ratio = log_target[y] - log_target[x]
    if hastings:
        log_ratio += jnp.log(proposal[y, x]) - jnp.log(proposal[x, y])
    return jnp.where(accept(decide, log_ratio), y, x)


def by_log_uniform(key, log_ratio):
    return jnp.log(jr.uniform(key)) < log_ratio


def by_exponential(key, log_ratio):
    return -jr.exponential(key) < log_ratio


def by_bernoulli(key, log_ratio):
    return jr.bernoulli(key, jnp.minimum(1.0, jnp.exp(log_ratio)))


def by_barker(key, log_ratio):
    return jr.bernoulli(key, jax.nn.sigmoid(log_ratio))


@pytest.mark.parametrize("accept", [by_log_uniform, by_exponential, by_bernoulli, by_barker])
def test_metropolis_keeps_its_target(key, accept):
    measure = exact(lambda k: metropolis(k, accept), key)
    masses = measure.expectation(lambda x: jax.nn.one_hot(x, 3, dtype=float))
    np.testing.assert_allclose(masses, TARGET, atol=TOLERANCE)


def test_metropolis_without_hastings_does_not(key):
    measure = exact(lambda k: metropolis(k, by_bernoulli, hastings=False), key)
    masses = measure.expectation(lambda x: jax.nn.one_hot(x, 3, dtype=float))
    assert np.abs(masses - TARGET).max() > 0.01


def test_metropolis_with_one_key_for_two_draws(key):
    def step(key):
        y = jr.randint(key, (), 0, 3)
        return jnp.where(jr.bernoulli(key, jnp.minimum(1.0, 5 * jnp.asarray(TARGET)[y])), y, 0)

    with pytest.raises(KeyReuse):
        exact(step, key)


def test_a_chain_merges_to_its_states(key):
    def chain(key):
        def step(x, key):
            propose, decide = jr.split(key)
            y = (x + jr.rademacher(propose)) % 3
            log_target = jnp.log(TARGET)
            return jnp.where(by_log_uniform(decide, log_target[y] - log_target[x]), y, x), None

        return jax.lax.scan(step, 0, jr.split(key, 50))[0]

    measure = exact(chain, key)
    matrix = np.zeros((3, 3))
    for x, move in itertools.product(range(3), (-1, 1)):
        y = (x + move) % 3
        chance = 0.5 * min(1, TARGET[y] / TARGET[x])
        matrix[x, y] += chance
        matrix[x, x] += 0.5 - chance
    expected = np.linalg.matrix_power(matrix, 50)[0]
    np.testing.assert_allclose(measure.masses, expected[measure.atoms], atol=TOLERANCE)
    assert measure.stats.peak <= 200


def test_random_walk_on_a_lattice(key):
    """Normal noise on a lattice: a random-walk kernel on the integers modulo 5 keeps its target."""
    target = jnp.array([0.1, 0.3, 0.2, 0.15, 0.25])

    def step(key):
        start, propose, decide = jr.split(key, 3)
        x = jr.choice(start, 5, p=target)
        y = jnp.round(x + 1.0 * jr.normal(propose)).astype(int) % 5
        return jnp.where(jr.bernoulli(decide, jnp.minimum(1.0, target[y] / target[x])), y, x)

    measure = exact(step, key, normal=((-1.0, 0.0, 1.0), (0.25, 0.5, 0.25)))
    masses = measure.expectation(lambda x: jax.nn.one_hot(x, 5, dtype=float))
    np.testing.assert_allclose(masses, target, atol=TOLERANCE)


# Filters are proper: the expected evidence, and the weighted states, are exact.

START = np.array([0.6, 0.4])
MOVE = np.array([[0.7, 0.3], [0.4, 0.6]])
EMIT = np.array([[0.9, 0.2], [0.3, 0.7], [0.8, 0.4]])


def filtered(key, resample, mean_of_logs=False):
    def weigh(x, log_likelihood, evidence):
        log_weights = jnp.log(EMIT)[0][x] * 0 + log_likelihood[x]
        mean = log_weights.mean() if mean_of_logs else logsumexp(log_weights) - jnp.log(2)
        return evidence + mean, jax.nn.softmax(log_weights)

    first, *keys = jr.split(key, 3)
    x = jr.categorical(first, jnp.log(START), shape=(2,))
    evidence, weights = weigh(x, jnp.log(EMIT)[0], 0.0)

    def step(state, inputs):
        x, evidence, weights = state
        key, log_likelihood = inputs
        choose, move = jr.split(key)
        x = x[resample(choose, weights, 2)]
        x = jax.vmap(lambda k, row: jr.categorical(k, row))(jr.split(move), jnp.log(MOVE)[x])
        return (x, *weigh(x, log_likelihood, evidence)), None

    state = (x, evidence, weights)
    (x, evidence, weights), _ = jax.lax.scan(step, state, (jnp.stack(keys), jnp.log(EMIT)[1:]))
    return x, evidence + jnp.log(weights)


def enumerated() -> np.ndarray:
    """Returns the unnormalised filtering measure after all readings, over all paths."""
    out = np.zeros(2)
    for path in itertools.product(range(2), repeat=3):
        mass = START[path[0]] * EMIT[0, path[0]]
        for t in (1, 2):
            mass *= MOVE[path[t - 1], path[t]] * EMIT[t, path[t]]
        out[path[-1]] += mass
    return out


@pytest.mark.parametrize("resample", [systematic, multinomial])
def test_a_particle_filter_is_proper(key, resample):
    measure = exact(lambda k: filtered(k, resample), key)
    np.testing.assert_allclose(weighted(measure, 2), enumerated(), rtol=TOLERANCE)


def test_a_filter_with_the_mean_of_logs_is_not(key):
    measure = exact(lambda k: filtered(k, systematic, mean_of_logs=True), key)
    assert abs(weighted(measure, 2).sum() / enumerated().sum() - 1) > 1e-2


# Estimators of gradients, loops, NumPyro.


def test_reinforce_is_unbiased(key):
    values = jnp.array([1.3, -0.4])

    def estimate(key, p):
        def surrogate(p):
            hit = jax.lax.stop_gradient(jr.bernoulli(key, p))
            return jnp.where(hit, jnp.log(p), jnp.log1p(-p)) * jnp.where(hit, *values)

        return jax.grad(surrogate)(p)

    measure = exact(estimate, key, jnp.array(0.3))
    np.testing.assert_allclose(measure.expectation(), 1.7, atol=TOLERANCE)
    variance = measure.expectation(lambda g: (g - 1.7) ** 2)
    expected = 0.3 * (1.3 / 0.3 - 1.7) ** 2 + 0.7 * (0.4 / 0.7 - 1.7) ** 2
    np.testing.assert_allclose(variance, expected, atol=TOLERANCE)


def test_rejection_by_a_loop(key):
    def draw(key):
        def body(state):
            i, _ = state
            return i + 1, jr.categorical(jr.fold_in(key, i), jnp.log(TARGET))

        return jax.lax.while_loop(lambda s: (s[1] == 0) & (s[0] < 4), body, (0, 0))[1]

    measure = exact(draw, key)
    expected = np.array([0.2**4, 0.3, 0.5])
    expected[1:] *= (1 - 0.2**4) / 0.8
    np.testing.assert_allclose(measure.masses, expected[measure.atoms], atol=TOLERANCE)


def test_draws_without_replacement(key):
    measure = exact(lambda k: jr.choice(k, 3, (2,), replace=False, p=jnp.asarray(TARGET)), key)
    for (first, second), mass in measure.table():
        expected = TARGET[first] * TARGET[second] / (1 - TARGET[first])
        assert mass == pytest.approx(expected, abs=TOLERANCE)
    assert len(measure.masses) == 6


@pytest.mark.parametrize("axis", [0, 1])
def test_permutations(key, axis):
    x = np.arange(6.0).reshape(2, 3)
    measure = exact(lambda k: jr.permutation(k, x, axis=axis), key)
    expected = {
        np.take(x, list(p), axis).tobytes() for p in itertools.permutations(range(2 + axis))
    }
    assert {atom.tobytes() for atom in measure.atoms} == expected
    np.testing.assert_allclose(measure.masses, 1 / len(expected), atol=TOLERANCE)


def test_subsets(key):
    measure = exact(lambda k: jnp.sort(jr.choice(k, 4, (2,), replace=False)), key)
    assert len(measure.masses) == 6
    np.testing.assert_allclose(measure.masses, 1 / 6, atol=TOLERANCE)


def test_numpyro_sprinkler(key):
    import numpyro
    import numpyro.distributions as dist
    from numpyro import handlers

    def wet(rain, sprinkler):
        return jnp.where(rain, jnp.where(sprinkler, 0.99, 0.8), jnp.where(sprinkler, 0.9, 0.001))

    def model():
        rain = numpyro.sample("rain", dist.Bernoulli(0.2))
        sprinkler = numpyro.sample("sprinkler", dist.Bernoulli(jnp.where(rain, 0.01, 0.4)))
        numpyro.sample("wet", dist.Bernoulli(wet(rain, sprinkler)), obs=1)

    def program(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace()
        log_weight = trace["wet"]["fn"].log_prob(trace["wet"]["value"])
        return 2 * trace["rain"]["value"] + trace["sprinkler"]["value"], log_weight

    measure = exact(program, key)
    expected = np.zeros(4)
    for rain, sprinkler in itertools.product((0, 1), repeat=2):
        chance = 0.01 if rain else 0.4
        mass = (0.2 if rain else 0.8) * (chance if sprinkler else 1 - chance)
        expected[2 * rain + sprinkler] = mass * float(wet(rain, sprinkler))
    np.testing.assert_allclose(weighted(measure, 4), expected, atol=TOLERANCE)


def test_numpyro_discrete_draws(key):
    import numpyro.distributions as dist

    def program(key):
        keys = jr.split(key, 3)
        return (
            dist.Categorical(probs=jnp.asarray(TARGET)).sample(keys[0]),
            dist.DiscreteUniform(1, 2).sample(keys[1]),
            dist.Binomial(2, 0.25).sample(keys[2]),
        )

    for (i, j, n), mass in exact(program, key).table():
        expected = TARGET[i] * 0.5 * [0.5625, 0.375, 0.0625][n]
        assert mass == pytest.approx(expected, abs=TOLERANCE)
        assert j in (1, 2)


# What a measure can be asked.


def test_measure(key):
    measure = exact(lambda k: jr.randint(k, (2,), 0, 2), key)
    assert len(measure.masses) == 4
    total = measure.push(lambda x: {"sum": x.sum()})
    found = {int(atom["sum"]): mass for atom, mass in total.table()}
    assert found == {n: pytest.approx(p, abs=TOLERANCE) for n, p in enumerate([0.25, 0.5, 0.25])}
    np.testing.assert_allclose(measure.expectation(lambda x: x.sum() ** 2), 1.5, atol=TOLERANCE)
    assert measure.stats.peak == 4
    assert measure.stats.seconds > 0
    certain = exact(lambda: (jnp.arange(2), 1.0))
    assert certain.total() == 1
    np.testing.assert_array_equal(certain.atoms[0], [[0, 1]])
