"""The bias of what is only consistent: at a few particles by exact enumeration."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bayesinf import mcmc, smc
from bayesinf.distributions.enumerated import Enumerated
from bayesinf.distributions.particles import Particles
from bayesinf.laws.row import Row
from bayesinf.programs import Program
from bayesinf.types import Key
from bayesinf.validation import Report, exact
from bayesinf.validation.check import masses_at

SIZES = (2, 3, 4)

Run = Callable[[Key, Program, int], Particles]
"""From a key, a program on two states and a number of particles to particles."""


def with_bias(row: Row, run: Run) -> Row:
    """Returns the row, whose report says beside what it finds how far the evidence is off."""

    def checked(num_tests: int) -> Report:
        report = row.run(num_tests)
        biases = exact_bias(run)
        pairs = zip(biases, SIZES, strict=True)
        cells = ", ".join(f"{each:+.2f} % at {num}" for each, num in pairs)
        return report._replace(
            evidence_bias_percent=biases[0],
            reason=f"not unbiased, nor claimed to be; exact bias of the evidence {cells} particles",
        )

    return Row(row.block, row.law, f"{row.check}; its bias exactly", checked)


def exact_bias(run: Run) -> list[float]:
    """Returns by how many percent the mean evidence is off, for each of `SIZES`."""
    program, measure = two_states()
    total = float(jnp.exp(measure.log_evidence))
    masses = [
        exact(
            lambda key, num=num: masses_at(measure.support, run(key, program, num)),
            jax.random.key(0),
        ).expectation()
        for num in SIZES
    ]
    return [100 * (float(np.sum(each)) / total - 1) for each in masses]


def two_states() -> tuple[Program, Enumerated]:
    """Returns a program of which few levels are enough to be biased, and its measure."""
    log_prior, log_likelihood = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([1.0, 0.1]))
    program = Program(
        lambda key: jax.random.categorical(key, log_prior),
        lambda x: log_prior[x],
        lambda x: log_likelihood[x],
    )
    return program, Enumerated(jnp.arange(2), log_prior + log_likelihood)


def tempered(key: Key, program: Program, num_particles: int) -> Particles:
    """Levels by the effective sample size."""
    kernel = mcmc.symmetric(lambda key, x: 1 - x)
    return smc.temper(key, program, kernel, num_particles, threshold=0.8, max_levels=4)[0]


def tuned(key: Key, program: Program, num_particles: int) -> Particles:
    """Fixed levels, and a kernel that proposes as the particles' mean says."""

    def from_particles(kernel, particles):
        del kernel
        share = particles.mean(lambda x: 1.0 * x)
        return mcmc.symmetric(lambda key, x: jnp.where(jax.random.bernoulli(key, share), 1 - x, x))

    kernel = smc.tuned(mcmc.symmetric(lambda key, x: x), from_particles)
    return smc.temper_fixed(key, program, kernel, num_particles, jnp.array([0.4, 1.0]))[0]
