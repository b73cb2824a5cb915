"""The laws that have no finite form: by closed forms."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf import kalman, mcmc, smc
from bayesinf.distributions.gmm import gaussian
from bayesinf.distributions.particles import Particles
from bayesinf.laws import bias
from bayesinf.laws.bias import with_bias
from bayesinf.laws.row import Row
from bayesinf.programs import Frame, Program, StateSpace, linear_gaussian, reading
from bayesinf.types import Key, Law, consistent, preserves, proper
from bayesinf.validation import Evidence, Report, unbiased
from bayesinf.validation.problems import SEED
from bayesinf.validation.statistical import judge

NUM_PARTICLES, NUM_RUNS = 64, 4096

Problem = Callable[[], tuple[Callable[[Key], PyTree], PyTree]]
"""Makes an estimate, from a key to statistics, and their exact means."""

# A conjugate program, asymmetric: x ~ N(0, 1), y = 1.3 ~ N(x, 1/4).
Y, VARIANCE = 1.3, 0.25
POSTERIOR_MEAN = Y / (1 + VARIANCE)


def rows() -> list[Row]:
    return [
        _statistical("smc.bootstrap", preserves, _bootstrap),
        _statistical("smc.guided", preserves, partial(_guided, smc.gaussian_transition)),
        _statistical("smc.local", preserves, partial(_guided, smc.local)),
        _statistical("smc.gaussian_transition", preserves, _transition),
        _statistical("smc.LogEvidence", proper, _log_evidence),
        Row("smc.stream", proper, "exactly: the same numbers as `smc.run`", _stream),
        with_bias(
            _statistical("smc.temper", consistent, partial(_tempered, _move_kernel)), bias.tempered
        ),
        with_bias(
            _statistical("smc.tuned", consistent, partial(_tempered, _tuned_kernel)), bias.tuned
        ),
        _statistical("smc.normalise", consistent, _normalised, num_runs=1024),
        Row("mcmc.sample", consistent, "statistically: a closed form", _sampled),
        Row("mcmc.resume", consistent, "statistically: a closed form", _resumed),
    ]


def _statistical(name: str, law: Law, problem: Problem, num_runs: int = NUM_RUNS) -> Row:
    def run(num_tests: int) -> Report:
        start = time.perf_counter()
        # Made only when it is asked for, since a closed form takes a filter of its own.
        estimate, exact = problem()
        found = unbiased(jax.random.key(SEED), estimate, exact, num_runs, num_tests)
        return report(name, law, found, time.perf_counter() - start)

    return Row(name, law, "statistically: a closed form", run)


def report(name: str, law: Law, found: Evidence, seconds: float) -> Report:
    """Returns the report of independent runs against known means."""
    return Report(
        name,
        law.name,
        "statistical",
        "holds" if found.holds else "refuted",
        seconds,
        statistical_z=found.largest,
        detectable=float(np.max(found.detectable)),
        problem=f"a closed form, {found.num_runs} runs",
    )


def _state_space() -> tuple[StateSpace, Frame, Float[Array, ""], Float[Array, " d"]]:
    """Returns a linear-Gaussian model, its log, and Kalman's evidence and last mean."""
    from numpyro.distributions import Normal

    dynamics = linear_gaussian(jnp.array([[1.0, 0.5], [0.0, 0.8]]), 0.6 * jnp.eye(2))
    model = StateSpace(
        gaussian(jnp.zeros(2), jnp.eye(2)),
        dynamics,
        {"place": lambda state, context: Normal(state[0], 0.7)},
    )
    values = np.array([0.4, np.nan, 1.1, 0.2])[:, None]
    frames = Frame(jnp.ones(4), None, {"place": reading(values)})
    beliefs, info = kalman.run(kalman.kalman, model, frames)
    last = jax.tree.map(lambda leaf: leaf[-1], beliefs)
    return model, frames, jnp.exp(jnp.sum(info.log_evidence)), last.mean()


def _mass_and_mean(run: Callable[[Key], Particles]):
    """Returns the estimate of a measure's mass and first moments."""

    def estimate(key):
        particles = run(key)
        mass = jnp.exp(particles.log_evidence)
        return mass, particles.expectation(lambda x: x)

    return estimate


def _bootstrap():
    model, frames, mass, mean = _state_space()
    fk = smc.bootstrap(model, frames)
    return _mass_and_mean(lambda key: smc.run(key, fk, NUM_PARTICLES)[0]), (mass, mass * mean)


def _guided(make):
    model, frames, mass, mean = _state_space()
    fk = smc.guided(model, frames, make(model))
    return _mass_and_mean(lambda key: smc.run(key, fk, NUM_PARTICLES)[0]), (mass, mass * mean)


def _transition():
    """The law of the next state, against draws of the dynamics."""
    model, frames, _, _ = _state_space()
    frame = jax.tree.map(lambda leaf: leaf[0], frames)
    state = jnp.array([0.3, -1.0])
    law = smc.gaussian_transition(model)(state, frame)

    def estimate(key):
        noise = jax.random.normal(key, (2,))
        after = model.dynamics(state, noise, frame.elapsed, frame.input)
        gap = after - law.mean()
        return after, jnp.outer(gap, gap)

    return estimate, (law.mean(), law.covariance())


def _log_evidence():
    model, frames, mass, _ = _state_space()
    estimate = smc.LogEvidence(lambda scale: smc.bootstrap(model, frames), NUM_PARTICLES)
    return lambda key: jnp.exp(estimate(key, jnp.ones(()))), mass


def _stream(num_tests: int) -> Report:
    """`stream` makes the same numbers as `run`."""
    del num_tests
    start, key = time.perf_counter(), jax.random.key(SEED)
    model, frames, _, _ = _state_space()
    fk = smc.bootstrap(model, frames)
    whole, _ = smc.run(key, fk, NUM_PARTICLES)
    steps = [jax.tree.map(lambda leaf: leaf[t], frames) for t in range(4)]  # noqa: B023
    (*_, (streamed, _)) = smc.stream(key, fk, NUM_PARTICLES, steps)
    gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), whole, streamed)
    error = max(jax.tree.leaves(gaps))
    verdict = "holds" if error <= 1e-10 else "refuted"
    seconds = time.perf_counter() - start
    return Report(
        *("smc.stream", proper.name, "exact", verdict, seconds),
        exact_error=error,
        evidence_bias_percent=100 * float(streamed.log_evidence - whole.log_evidence),
        problem="the same numbers as smc.run",
    )


def conjugate() -> Program:
    """Returns the program with a normal prior and a normal datum."""
    return Program(
        jax.random.normal,
        lambda x: -0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi),
        lambda x: -0.5 * (Y - x) ** 2 / VARIANCE - 0.5 * jnp.log(2 * jnp.pi * VARIANCE),
    )


def _move_kernel():
    return mcmc.RandomWalk(0.8)


def _tuned_kernel():
    def from_particles(kernel, particles):
        del kernel
        mean = particles.mean()
        return mcmc.RandomWalk(2.4 * jnp.sqrt(particles.mean(lambda x: (x - mean) ** 2)))

    return smc.tuned(mcmc.RandomWalk(1.0), from_particles)


def _tempered(make):
    program, kernel = conjugate(), make()
    evidence = jnp.exp(-0.5 * Y**2 / (1 + VARIANCE)) / jnp.sqrt(2 * jnp.pi * (1 + VARIANCE))

    def estimate(key):
        particles, _ = smc.temper(key, program, kernel, 256, max_levels=8)
        return jnp.exp(particles.log_evidence), particles.mean()

    return estimate, (evidence, POSTERIOR_MEAN)


def _normalised():
    program = conjugate()

    def estimate(key):
        return smc.normalise(smc.importance(key, program, 4096)).expectation(lambda x: x)

    return estimate, POSTERIOR_MEAN


def _draw_chains(num_samples: int):
    """Returns many short chains, past their warm-up."""
    return mcmc.sample(
        jax.random.key(SEED),
        conjugate(),
        mcmc.RandomWalk(1.2),
        num_chains=512,
        num_warmup=200,
        num_samples=num_samples,
        progress=False,
    )


def _by_chain(name: str, draws: mcmc.Draws, num_tests: int, start: float) -> Report:
    """Returns the report of the chains' means, which are independent."""
    x = np.asarray(draws.positions)
    gap = x - POSTERIOR_MEAN
    samples = np.stack([x.mean(1), (gap**2).mean(1)], axis=1)
    exact = np.array([POSTERIOR_MEAN, VARIANCE / (1 + VARIANCE)])
    found = judge(samples, exact, num_tests)
    return report(name, consistent, found, time.perf_counter() - start)


def _sampled(num_tests: int) -> Report:
    start = time.perf_counter()
    return _by_chain("mcmc.sample", _draw_chains(100), num_tests, start)


def _resumed(num_tests: int) -> Report:
    start = time.perf_counter()
    first = _draw_chains(10)
    later = mcmc.resume(
        jax.random.key(SEED), conjugate(), first.last, num_samples=100, progress=False
    )
    return _by_chain("mcmc.resume", later, num_tests, start)
