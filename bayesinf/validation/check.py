"""`check(block, law)`: a law of a block on small problems, exactly where it can be."""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.distributions.enumerated import Enumerated, matches
from bayesinf.distributions.particles import Particles
from bayesinf.programs import target
from bayesinf.types import Kernel, Key, Law, calibrated, invariant, preserves, proper
from bayesinf.validation import calibration
from bayesinf.validation import problems as standard
from bayesinf.validation.exact import KeyReuse, Refused, exact
from bayesinf.validation.problems import Joint, Problem
from bayesinf.validation.report import HOLDS, REFUSED, REFUTED, Disagreement, Report
from bayesinf.validation.statistical import invariance, unbiased

TOLERANCE = 1e-10
NUM_RUNS = 4096
# Folded, so that a key that a user writes into a block is not taken for a second use of it.
_FOLD = 271_828

Run = Callable[[Key], Particles]
"""From a key to particles, whose expected measure the law speaks of."""


def check(
    block: Any,
    law: Law,
    problems: Sequence[Problem] | None = None,
    *,
    name: str | None = None,
    num_tests: int = 1,
) -> Report:
    """Returns what came of a block's law on small problems: on the worst, or the first refused.

    Each problem is run exactly, over all random outcomes at once, and the worst also by independent
    runs, which see what the exact form takes as ideal: the generator and rounding. What a block is
    depends on the law:

    - `invariant`: a kernel (`init`, `step`), or a function from a problem's log probabilities to
      one or to `step(key, x)` on the states 0..K-1. A kernel of dicts or other pytrees is given
      problems whose `given` is an `Enumerated` of such points, as is `exact`. One that moves in R^n
      has no finite form; it is tested from exact draws of a joint law (`problems.location_scale`).
    - `preserves`: a resampler `(key, log_weights, num) -> ancestors` or a function
      `(key, particles) -> particles`.
    - `proper`: a function `(key, given) -> particles`, given a finite program, or what `problems`
      say.
    - `calibrated`: a function from a finite joint law (`calibration.Inference`) to
      `posterior(key, datum)`, one draw of the posterior. Ranks must be uniform given the datum too,
      since a posterior that ignores data is calibrated on average; `check_calibrated` takes
      posteriors that have no finite form.

    Runs in double precision where it is switched on, as exact checks need.

    Raises:
        ValueError: the law has no check.
    """
    if law not in _SETTINGS:
        known = ", ".join(each.name for each in _SETTINGS)
        raise ValueError(f"law: {law.name} came, one of {known} was expected")
    start, label = time.perf_counter(), name or getattr(block, "__name__", type(block).__name__)
    default, harness = _SETTINGS[law]
    reports: list[Report] = []
    pairs = [(harness(block, each), each) for each in problems or default()]
    for run, problem in pairs:
        reports.append(_exactly(label, law, run, problem))
        if reports[-1].verdict == REFUSED:
            break
    index = max(range(len(reports)), key=lambda k: _badness(reports[k]))
    report = reports[index]
    if report.verdict == REFUSED and law == invariant and isinstance(block, Kernel):
        reason = f"no finite form: {report.reason}"
        joint = standard.location_scale()
        report = check_kernel(block, joint, name=label, num_tests=num_tests)
        report = report._replace(reason=reason)
    elif report.exact_error is not None:
        report = _statistically(report, *pairs[index], num_tests)
    return report._replace(seconds=time.perf_counter() - start)


def check_kernel(
    kernel: Kernel, joint: Joint, *, name: str = "kernel", num_tests: int = 1
) -> Report:
    """Returns what came of a kernel's invariance, tested from exact draws of a joint law."""
    start = time.perf_counter()

    def move(key, drawn):
        x, data = drawn
        conditional = joint.target(data)
        state, _ = kernel.step(key, conditional, kernel.init(conditional, x))
        return state.position, data

    def statistics(drawn):
        return joint.statistics(*drawn)

    found = invariance(_key(), joint.draw, move, statistics, 16 * NUM_RUNS, num_tests)
    return Report(
        name,
        invariant.name,
        "statistical",
        HOLDS if found.holds else REFUTED,
        time.perf_counter() - start,
        statistical_z=found.largest,
        detectable=float(np.max(found.detectable)),
        problem="exact draws of a joint law",
    )


def _exactly(name: str, law: Law, run: Run, problem: Problem) -> Report:
    """Returns what came of a run whose expected measure is known, on finitely many points."""
    begin = time.perf_counter()

    def report(verdict, **rest):
        seconds = time.perf_counter() - begin
        return Report(name, law.name, "exact", verdict, seconds, problem=problem.name, **rest)

    try:
        measure = exact(_masses(run, problem), _key())
    except KeyReuse as error:
        return report(REFUTED, reason=f"key reuse: {error}")
    except (Refused, ValueError) as error:
        return report(REFUSED, reason=str(error))
    expected = _expected(problem)
    came = np.asarray(measure.expectation(), float)
    total = expected.sum()
    error = float(np.max(np.abs(came - expected)) / expected.max())
    return report(
        HOLDS if error <= TOLERANCE else REFUTED,
        exact_error=error,
        evidence_bias_percent=100 * float(came.sum() / total - 1),
        posterior_error=float(np.max(np.abs(came / max(came.sum(), 1e-300) - expected / total))),
        worlds=measure.stats.peak,
        worst=_worst(problem.exact.support, expected, came),
    )


def _statistically(report: Report, run: Run, problem: Problem, num_tests: int) -> Report:
    """Returns the report with what independent runs say; if they contradict, it is refuted."""
    key, expected = _key(), _expected(problem)
    found = unbiased(key, _masses(run, problem), expected, NUM_RUNS, num_tests)
    report = report._replace(
        statistical_z=found.largest, detectable=float(np.max(found.detectable) / expected.max())
    )
    if report.verdict == HOLDS and not found.holds:
        reason = "exact in ideal arithmetic, yet independent runs disagree"
        return report._replace(verdict=REFUTED, reason=reason)
    return report


def _key() -> Key:
    return jax.random.fold_in(jax.random.key(standard.SEED), _FOLD)


def _masses(run: Run, problem: Problem) -> Callable[[Key], Float[Array, " n"]]:
    return lambda key: masses_at(problem.exact.support, run(key))


def _expected(problem: Problem) -> Float[np.ndarray, " n"]:
    """Returns the exact masses, and 0 elsewhere."""
    return np.append(np.exp(np.asarray(problem.exact.log_masses, float)), 0.0)


def masses_at(support: PyTree, particles: Particles) -> Float[Array, " n"]:
    """Returns the mass that particles put on each of K points, and last on none of them."""
    mass = jnp.exp(particles.log_weights + particles.log_evidence)
    same = jax.vmap(lambda x: matches(support, x))(particles.values)
    at = jnp.sum(jnp.where(same, mass[:, None], 0), axis=0)
    return jnp.append(at, jnp.sum(jnp.where(jnp.any(same, axis=1), 0, mass)))


def _worst(support, expected, came) -> tuple[Disagreement, ...]:
    """Returns the two points that disagree most, where they do."""
    order = np.argsort(-np.abs(came - expected))[:2]
    wrong = [k for k in order if abs(came[k] - expected[k]) > TOLERANCE * expected.max()]

    def atom(k):
        elsewhere = k == expected.size - 1
        return "elsewhere" if elsewhere else jax.tree.map(lambda leaf: np.asarray(leaf)[k], support)

    return tuple(Disagreement(atom(k), float(expected[k]), float(came[k])) for k in wrong)


def _badness(report: Report) -> tuple[int, float]:
    error = np.inf if report.exact_error is None else report.exact_error
    return [HOLDS, REFUSED, REFUTED].index(report.verdict), error


def _one(value, log_mass: Array) -> Particles:
    """Returns one particle."""
    values = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], value)
    return Particles(values, jnp.zeros(1), log_mass, jnp.asarray(0.0))


def _invariant(block, problem: Problem) -> Run:
    given = problem.given
    made = block if isinstance(block, Kernel) else block(given)
    pi = problem.exact
    is_measure = isinstance(given, Enumerated)
    finite = target(given.log_prob) if is_measure else standard.on_states(given)

    def run(key):
        start_key, step_key = jax.random.split(key)
        start = pi.sample(start_key)
        if isinstance(made, Kernel):
            end = made.step(step_key, finite, made.init(finite, start))[0].position
        else:
            end = made(step_key, start)
        return _one(end, pi.log_evidence)

    return run


def _preserves(block, problem: Problem) -> Run:
    particles = problem.given
    if len(inspect.signature(block).parameters) < 3:
        return lambda key: block(key, particles)

    def run(key):
        num = particles.num_particles
        ancestors = block(key, particles.log_weights, num)
        even = jnp.full(num, -jnp.log(num))
        return Particles(particles.values[ancestors], even, particles.log_evidence, particles.level)

    return run


def _proper(block, problem: Problem) -> Run:
    return lambda key: block(key, problem.given)


def _calibrated(block, problem: Problem) -> Run:
    posterior = block(problem.given)
    return lambda key: _one(calibration.ranked(key, problem.given, posterior), jnp.zeros(()))


_SETTINGS: dict[Law, tuple[Callable[[], list[Problem]], Callable[[Any, Problem], Run]]] = {
    invariant: (standard.finite_targets, _invariant),
    preserves: (standard.weighted_particles, _preserves),
    proper: (standard.finite_programs, _proper),
    calibrated: (calibration.finite_inferences, _calibrated),
}
