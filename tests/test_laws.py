"""Every public block declares a law, has a row in the table, and keeps it; broken ones do not."""

import functools
import inspect
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bayesinf import laws, mcmc, smc
from bayesinf.distributions.particles import Particles
from bayesinf.laws.continuous import POSTERIOR_MEAN, conjugate
from bayesinf.laws.row import one
from bayesinf.laws.smc import pushed, tilt, tilted_masses
from bayesinf.mcmc.state import State, select
from bayesinf.programs import target
from bayesinf.types import Law, invariant, law_of, preserves, proper
from bayesinf.validation import check, check_kernel, unbiased
from bayesinf.validation.problems import (
    finite_data_programs,
    finite_programs,
    finite_sequences,
    finite_targets,
    finite_trajectories,
    location_scale,
    weighted_particles,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

PUBLIC = [(part, name) for part in (mcmc, smc) for name in part.__all__]
ROWS = laws.rows()  # in single precision, for their names


def is_record(block) -> bool:
    """A named tuple carries and does nothing."""
    return inspect.isclass(block) and issubclass(block, tuple)


@pytest.mark.parametrize(("part", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_every_block_declares_a_law(part, name):
    """A law, which then has a row, or one line that says why there is none."""
    block = getattr(part, name)
    if is_record(block) or not callable(block):
        return
    claim = law_of(block)
    if isinstance(claim, Law):
        label = f"{part.__name__.rpartition('.')[2]}.{name}"
        assert label in {row.block for row in ROWS}, f"{label} claims {claim.name} unchecked"
        assert claim in {row.law for row in ROWS if row.block == label}
    else:
        assert "\n" not in claim
        assert claim


def test_the_page_of_laws_is_current(x64):
    """`docs/laws.md` is what `docs/make_laws.py` writes."""
    folder = Path(__file__).parents[1] / "docs"
    script = runpy.run_path(str(folder / "make_laws.py"))
    assert (folder / "laws.md").read_text(encoding="utf-8") == script["page"]()


def test_a_block_without_a_law_is_told():
    """The negative control of the test above."""
    with pytest.raises(ValueError, match="no law"):
        law_of(lambda key: key)


@functools.cache
def table():
    """Returns the rows by name; asked for in double precision."""
    return {row.block: row for row in laws.rows()}


@pytest.mark.parametrize("block", [row.block for row in ROWS])
def test_exact_or_stat_law_holds(x64, block):
    """The small form of `bayesinf validate --all`; exact wherever a finite form exists."""
    report = table()[block].run(len(ROWS))
    assert report.verdict == "holds", report
    if report.mode == "exact":
        assert report.exact_error < 1e-12


# Broken blocks: each makes one mistake that has been made before.


def uniform(num):
    return mcmc.symmetric(lambda key, x: jax.random.randint(key, (), 0, num))


def lopsided(log_probs):
    """A proposal that is not symmetric, taken for one."""
    table = jnp.log(0.8 * jnp.roll(jnp.eye(log_probs.size), 1, axis=1) + 0.2 / log_probs.size)
    return mcmc.symmetric(lambda key, x: jax.random.categorical(key, table[x]))


def always_accepts(log_probs):
    return lambda key, x: jax.random.randint(key, (), 0, log_probs.size)


class Stale(mcmc.Metropolis):
    """Compares with the density of the state before the last, not of the last."""

    def step(self, key, target, state):
        moved, info = super().step(key, target, state)
        return State(moved.position, state.parts), info


def stale(log_probs):
    kernel = uniform(log_probs.size)
    return mcmc.repeat(Stale(kernel.propose, kernel.log_prob), 2)


def lets_the_state_choose(log_probs):
    """A mixture whose choice looks at the position."""
    kernels = uniform(log_probs.size), lopsided_right(log_probs)

    def step(key, x):
        states = target(lambda x: log_probs[x])
        moves = zip(jax.random.split(key), kernels, strict=True)
        ends = [k.step(key, states, k.init(states, x))[0].position for key, k in moves]
        return jnp.where(x == 0, *ends)

    return step


def lopsided_right(log_probs):
    table = jnp.log(0.8 * jnp.roll(jnp.eye(log_probs.size), 1, axis=1) + 0.2 / log_probs.size)
    return mcmc.Metropolis(
        lambda key, x: jax.random.categorical(key, table[x]), lambda y, x: table[x, y]
    )


@pytest.mark.parametrize("broken", [lopsided, always_accepts, stale, lets_the_state_choose])
def test_exact_broken_kernels_are_refuted(x64, broken):
    report = check(broken, invariant, finite_targets((3,), 1))
    assert report.verdict == "refuted", report
    assert report.exact_error > 1e-3
    assert len(report.worst) == 2


def next_target_first(key, program):
    """Moves under the target with the next datum, then counts the datum again."""
    path, kernel = program.by_datum(), uniform(program.log_prior.table.size)
    start_key, *keys = jax.random.split(key, 1 + path.num_data)
    particles = smc.spawn(start_key, program.sample, 2, jnp.asarray(0))
    for step_key in keys:
        move_key, resample_key = jax.random.split(step_key)
        level, new = particles.level, particles.level + 1
        ahead = smc.reweight(particles, jnp.zeros(2), new)
        moved, _ = smc.move(move_key, kernel, path, ahead)
        log_g = jax.vmap(path.log_increment, (0, None, None))(moved.values, level, new)
        weighted = smc.reweight(moved, log_g, new)
        particles = smc.resample(resample_key, weighted, smc.systematic)
    return particles


def first_datum_twice(key, program):
    particles, _ = smc.data_temper(key, program, uniform(program.log_prior.table.size), 2)
    log_g = jax.vmap(lambda x: program.log_likelihood(x, program.data[0]))(particles.values)
    return smc.reweight(particles, log_g, particles.level)


def self_normalised(key, program):
    return smc.normalise(smc.importance(key, program, 2))


def old_weights_kept(key, program):
    """Resamples and forgets to make the weights equal."""
    weigh_key, resample_key = jax.random.split(key)
    particles = smc.importance(weigh_key, program, 2)
    chosen = smc.resample(resample_key, particles, smc.systematic)
    return Particles(chosen.values, particles.log_weights, chosen.log_evidence, chosen.level)


def moves_only_the_light(key, program):
    """Moves the particle of least weight alone: the move depends on the population."""
    weigh_key, move_key = jax.random.split(key)
    particles = smc.importance(weigh_key, program, 2)
    kernel = uniform(program.log_prior.table.size)
    moved, _ = smc.move(move_key, kernel, program.tempered(), particles)
    light = jnp.arange(2) == jnp.argmin(particles.log_weights)
    values = jnp.where(light, moved.values, particles.values)
    return Particles(values, particles.log_weights, particles.log_evidence, particles.level)


@pytest.mark.parametrize(
    ("broken", "problems"),
    [
        (next_target_first, finite_data_programs),
        (first_datum_twice, finite_data_programs),
        (self_normalised, finite_programs),
        (old_weights_kept, finite_programs),
        (moves_only_the_light, finite_programs),
    ],
)
def test_exact_broken_samplers_are_refuted(x64, broken, problems):
    report = check(broken, proper, problems((3,)))
    assert report.verdict == "refuted", report
    assert report.exact_error > 1e-3
    if broken is next_target_first:
        # The report says how far it is off.
        assert abs(report.evidence_bias_percent) > 5


def off_by_one(key, log_weights, num):
    return jnp.minimum(smc.systematic(key, log_weights, num) + 1, log_weights.size - 1)


def flattened(key, log_weights, num):
    """Weights to the power one half."""
    return smc.multinomial(key, log_weights / 2, num)


def floors_only(key, log_weights, num):
    """Residual resampling whose rest is drawn evenly."""
    whole = jnp.floor(num * jnp.exp(log_weights)).astype(int)
    sure = jnp.repeat(jnp.arange(log_weights.size), whole, total_repeat_length=num)
    drawn = jax.random.randint(key, (num,), 0, log_weights.size)
    return jnp.where(jnp.arange(num) < whole.sum(), sure, drawn)


@pytest.mark.parametrize("broken", [off_by_one, flattened, floors_only])
def test_exact_broken_resamplers_are_refuted(x64, broken):
    report = check(broken, preserves)
    assert report.verdict == "refuted", report


def test_exact_a_lost_reference_is_refuted(x64):
    """Conditional SMC that does not keep the given trajectory."""

    def run(key, given):
        particles, info = smc.run(key, given.sequence, 2, smc.always(smc.multinomial), smc.history)
        del particles
        path = jax.tree.map(lambda leaf: leaf[0], smc.trajectories(info.collected))
        start = jnp.zeros(1, path.dtype)
        return one(jnp.concatenate([start, path]), given.smoothing.log_evidence)

    report = check(run, proper, finite_trajectories((2,)))
    assert report.verdict == "refuted", report


class Cold(mcmc.MALA):
    """Rejects what was unlikely to be accepted, though it was."""

    def step(self, key, target, state):
        moved, info = super().step(key, target, state)
        return select(info.acceptance > 0.3, moved, state), info


def evidence_forgotten(particles, log_g):
    """Weights change, their total is thrown away."""
    return smc.normalise(smc.reweight(particles, log_g, particles.level))


def weights_taken_for_equal(particles, log_g):
    """The right weights, the evidence as if the old ones had been equal."""
    right = smc.reweight(particles, log_g, particles.level)
    growth = jax.nn.logsumexp(log_g) - jnp.log(log_g.size)
    return Particles(right.values, right.log_weights, particles.log_evidence + growth, right.level)


def counted_twice(particles, log_g):
    return smc.reweight(particles, 2 * log_g, particles.level)


@pytest.mark.parametrize("broken", [evidence_forgotten, weights_taken_for_equal, counted_twice])
def test_exact_broken_reweightings_are_refuted(x64, broken):
    problems = [pushed(each, tilted_masses) for each in weighted_particles((3,), 1)]

    def run(key, particles):
        del key
        return broken(particles, tilt(particles.values))

    report = check(run, preserves, problems)
    assert report.verdict == "refuted", report


def unweighted(program, particles):
    """The values' plain mean, though they are weighted."""
    del program
    return jnp.mean(particles.values)


def prior_twice(program, particles):
    log_g = jax.vmap(program.log_prior)(particles.values)
    return smc.reweight(particles, log_g, particles.level).mean()


def last_but_one(program, particles):
    """As if the last tenth of the likelihood had not been counted."""
    log_g = -0.1 * jax.vmap(program.log_likelihood)(particles.values)
    return smc.reweight(particles, log_g, particles.level).mean()


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (lambda program, particles: particles.mean(), True),
        (unweighted, False),
        (prior_twice, False),
        (last_but_one, False),
    ],
)
def test_stat_broken_averages_are_refuted(x64, estimate, verdict):
    """Self-normalised averages are right at n = 4096; broken ones are not."""
    program = conjugate()

    def run(key):
        return estimate(program, smc.importance(key, program, 4096))

    found = unbiased(jax.random.key(0), run, POSTERIOR_MEAN, 1024, len(ROWS))
    assert found.holds == verdict


class Leaky(mcmc.RandomWalk):
    """Accepts with the square root of the ratio."""

    def step(self, key, target, state):
        soft = type(target)(target.terms, target.exponents / 2)
        return super().step(key, soft, state)


class Nudged(mcmc.HMC):
    """Adds a step that is never weighed."""

    def step(self, key, target, state):
        state, info = super().step(key, target, state)
        nudged = jax.tree.map(lambda x: x + 0.05, state.position)
        return self.init(target, nudged), info


@pytest.mark.parametrize(
    ("kernel", "parameters"), [(Cold, (0.5,)), (Leaky, (0.7,)), (Nudged, (0.3, 5))]
)
def test_stat_broken_continuous_kernels_are_refuted(x64, kernel, parameters):
    report = check_kernel(kernel(*parameters), location_scale(), num_tests=len(ROWS))
    assert report.verdict == "refuted", report


def test_stat_a_forgotten_jacobian_is_refuted(x64):
    """A scaling move whose determinant is left out."""

    class NoJacobian(mcmc.Involutive):
        def log_det(self, x, u):
            return jnp.zeros(())

    def draw(key, x):
        return jax.random.normal(key)

    def log_prob(u, x):
        return -0.5 * u**2

    def scale(x, u):
        return x * jnp.exp(u), -u

    right, wrong = (make(draw, log_prob, scale) for make in (mcmc.Involutive, NoJacobian))
    assert check_kernel(right, location_scale()).verdict == "holds"
    assert check_kernel(wrong, location_scale()).verdict == "refuted"


def test_exact_evidence_dropped_in_a_sequence_is_refuted(x64):
    """A filter that forgets the evidence whenever it resamples."""

    def forgetful(key, particles):
        chosen, info = smc.always(smc.systematic)(key, particles)
        return smc.normalise(chosen), info

    def run(key, sequence):
        return smc.run(key, sequence, 2, forgetful)[0]

    report = check(run, proper, finite_sequences((3,)))
    assert report.verdict == "refuted", report
