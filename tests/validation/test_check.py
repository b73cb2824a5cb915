"""`check`: blocks that keep their law pass, broken ones are refuted, exactly."""

import jax
import jax.numpy as jnp
import pytest

from bayesinf.distributions import Particles
from bayesinf.types import Law, consistent, invariant, preserves, proper
from bayesinf.validation.check import check
from bayesinf.validation.problems import finite_sequences


def metropolis(log_probs):
    """Proposes the next state with probability .8, else any, and corrects for it."""
    num = log_probs.shape[0]
    table = 0.8 * jnp.roll(jnp.eye(num), 1, axis=1) + 0.2 / num

    def step(key, x, hastings=True, flip=1.0):
        propose_key, accept_key = jax.random.split(key)
        y = jax.random.choice(propose_key, num, p=table[x])
        log_ratio = log_probs[y] - log_probs[x]
        log_ratio += jnp.log(table[y, x] / table[x, y]) if hastings else 0.0
        accept = jnp.log(jax.random.uniform(accept_key)) < flip * log_ratio
        return jnp.where(accept, y, x)

    return step


def no_hastings(log_probs):
    return lambda key, x: metropolis(log_probs)(key, x, hastings=False)


def flipped(log_probs):
    return lambda key, x: metropolis(log_probs)(key, x, flip=-1.0)


def key_twice(log_probs):
    def step(key, x):
        y = jax.random.randint(key, (), 0, log_probs.shape[0])
        accept = jnp.log(jax.random.uniform(key)) < log_probs[y] - log_probs[x]
        return jnp.where(accept, y, x)

    return step


def multinomial(key, log_weights, num):
    return jax.random.categorical(key, log_weights, shape=(num,))


def off_by_one(key, log_weights, num):
    return jnp.roll(jnp.arange(num), 1)[multinomial(key, log_weights, num)]


def likeliest(key, log_weights, num):
    return jnp.full(num, jnp.argmax(log_weights))


def drops_evidence(key, particles):
    ancestors = multinomial(key, particles.log_weights, particles.num_particles)
    even = jnp.full(particles.num_particles, -jnp.log(particles.num_particles))
    return Particles(particles.values[ancestors], even, jnp.zeros(()), particles.level)


def keeps_weights(key, particles):
    """With independent ancestors it would be right, since each follows the weights."""
    ends = jnp.cumsum(jnp.exp(particles.log_weights))
    grid = (jnp.arange(particles.num_particles) + jax.random.uniform(key)) / ends.size
    ancestors = jnp.sum(grid[:, None] > ends, axis=1)
    return Particles(
        particles.values[ancestors],
        particles.log_weights,
        particles.log_evidence,
        particles.level,
    )


def importance(key, program):
    values = jax.vmap(program.sample)(jax.random.split(key, 2))
    log_g = jax.vmap(program.log_likelihood)(values)
    total = jax.scipy.special.logsumexp(log_g)
    uniform = jnp.full(2, -jnp.log(2.0))
    log_weights = jnp.where(jnp.isfinite(total), log_g - total, uniform)
    return Particles(values, log_weights, total - jnp.log(2.0), jnp.asarray(0.0))


def mean_of_logs(key, program):
    particles = importance(key, program)
    log_g = jax.vmap(program.log_likelihood)(particles.values)
    return Particles(particles.values, particles.log_weights, jnp.mean(log_g), particles.level)


@pytest.mark.parametrize(
    ("block", "law", "verdict"),
    [
        (metropolis, invariant, "holds"),
        (no_hastings, invariant, "refuted"),
        (flipped, invariant, "refuted"),
        (key_twice, invariant, "refuted"),
        (multinomial, preserves, "holds"),
        (off_by_one, preserves, "refuted"),
        (likeliest, preserves, "refuted"),
        (drops_evidence, preserves, "refuted"),
        (keeps_weights, preserves, "refuted"),
        (importance, proper, "holds"),
        (mean_of_logs, proper, "refuted"),
    ],
)
def test_exact_verdicts(x64, block, law, verdict):
    """The right blocks to rounding; every broken one is told."""
    report = check(block, law)
    assert report.verdict == verdict, report
    assert report.mode == "exact"
    if verdict == "holds":
        assert report.exact_error < 1e-12
    if block is key_twice:
        assert "key" in report.reason
    assert verdict.upper() in str(report)


def test_exact_sequences(x64):
    """Importance sampling along a hidden Markov model, given as a sequence."""

    def sequential(key, sequence):
        start_key, step_key = jax.random.split(key)
        values = sequence.init(start_key, 2)
        log_weights = jnp.full(2, -jnp.log(2.0))

        def step(carry, moment):
            values, log_weights = carry
            key, read = moment
            after = sequence.step(key, values, read)
            return (after, log_weights + sequence.log_potential(values, after, read)), None

        keys = jax.random.split(step_key, sequence.num_steps)
        carry, _ = jax.lax.scan(step, (values, log_weights), (keys, sequence.inputs))
        values, log_weights = carry
        total = jax.scipy.special.logsumexp(log_weights)
        shares = jnp.where(jnp.isfinite(total), log_weights - total, -jnp.log(2.0))
        return Particles(values, shares, total, jnp.asarray(0.0))

    report = check(sequential, proper, finite_sequences())
    assert report.verdict == "holds", report
    assert report.exact_error < 1e-12


def test_what_has_no_exact_rule_is_refused(x64):
    """A soft use of a uniform is neither held nor refuted."""

    def soft(log_probs):
        return lambda key, x: jnp.asarray(jax.random.uniform(key) ** 2 * x)

    report = check(soft, invariant)
    assert report.verdict == "refused"
    assert report.reason


def test_unknown_law_is_named():
    with pytest.raises(ValueError, match="law"):
        check(multinomial, consistent)
    with pytest.raises(ValueError, match="law"):
        check(multinomial, Law("mine", "x"))
