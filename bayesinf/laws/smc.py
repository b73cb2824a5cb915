"""The laws of `bayesinf.smc` on finite populations, programs and sequences, exactly."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayesinf import mcmc, smc
from bayesinf.distributions.enumerated import Enumerated
from bayesinf.laws.row import Row, Sizes, row
from bayesinf.types import preserves, proper, reweights
from bayesinf.validation import Problem
from bayesinf.validation.problems import (
    finite_data_programs,
    finite_programs,
    finite_sequences,
    weighted_particles,
)

RESAMPLERS = {
    "multinomial": smc.multinomial,
    "systematic": smc.systematic,
    "stratified": smc.stratified,
    "residual": smc.residual,
}


def rows(sizes: Sizes) -> list[Row]:
    return [*_populations(sizes), *_samplers(sizes)]


def _populations(sizes: Sizes) -> list[Row]:
    """Maps of particles, given ones with unequal weights and a mass that is not one."""
    given = weighted_particles(sizes.particles, sizes.tables)
    systematic = smc.systematic

    def policy(make):
        return lambda key, particles: make(key, particles)[0]

    def doubled(key, particles):
        """The image under a map that joins two states."""
        del key
        return smc.marginal(particles, lambda x: x // 2)

    def tilted(key, particles):
        del key
        return smc.reweight(particles, tilt(particles.values), particles.level + 1)

    return [
        *(row(f"smc.{name}", preserves, each, given) for name, each in RESAMPLERS.items()),
        row("smc.always", preserves, policy(smc.always(systematic)), given),
        row("smc.adaptive", preserves, policy(smc.adaptive(systematic, 0.97)), given),
        row("smc.resample", preserves, _resample, given),
        row("smc.collapse", preserves, smc.collapse, given),
        row("smc.marginal", preserves, doubled, [pushed(each, _halved) for each in given]),
        row("smc.propagate", preserves, _propagate, [pushed(each, _walked) for each in given]),
        row(
            "smc.hoist",
            preserves,
            smc.hoist(_walk),
            [pushed(each, _walked) for each in given],
        ),
        row(
            "smc.reweight",
            reweights,
            tilted,
            [pushed(each, tilted_masses) for each in given],
            as_law=preserves,
        ),
    ]


def _resample(key, particles):
    return smc.resample(key, particles, smc.systematic, particles.num_particles + 1)


def _propagate(key, particles):
    def move(key, values):
        return jax.vmap(_walk)(jax.random.split(key, particles.num_particles), values)

    return smc.propagate(key, particles, move)


def _walk(key, x):
    """Stays with probability 1/4, else goes to one of the states 0 and 1."""
    stay_key, go_key = jax.random.split(key)
    other = jax.random.bernoulli(go_key, 0.3).astype(x.dtype)
    return jnp.where(jax.random.bernoulli(stay_key, 0.25), x, other)


def _walked(masses):
    total = masses.sum()
    moved = 0.25 * masses
    return moved.at[0].add(0.75 * 0.7 * total).at[1].add(0.75 * 0.3 * total)


def _halved(masses):
    states = jnp.arange(masses.size)
    return jnp.zeros_like(masses).at[states // 2].add(masses)


def tilt(x):
    return 0.4 * x - 0.1 * x**2


def tilted_masses(masses):
    return masses * jnp.exp(tilt(jnp.arange(masses.size)))


def pushed(problem: Problem, push: Callable) -> Problem:
    masses = push(jnp.exp(problem.exact.log_masses))
    return problem._replace(exact=Enumerated(problem.exact.support, jnp.log(masses)))


def uniform_metropolis(num_states: int):
    return mcmc.symmetric(lambda key, x: jax.random.randint(key, (), 0, num_states))


def _states(program) -> int:
    return program.log_prior.table.shape[0]


def particles_for(sizes: Sizes, length: int) -> int:
    """Returns the most particles, or for long sequences the fewest: worlds multiply with both."""
    return sizes.particles[-1] if length <= 2 else sizes.particles[0]


def _samplers(sizes: Sizes) -> list[Row]:
    """From programs and sequences to particles."""
    programs = finite_programs(sizes.states, sizes.tables)
    data = [
        problem
        for length in sizes.lengths
        for problem in finite_data_programs(sizes.states, length)
    ]
    sequences = finite_sequences(sizes.states, sizes.lengths)
    num = sizes.particles[-1]
    levels = jnp.array([0.4, 1.0])

    def importance(key, program):
        return smc.importance(key, program, num)

    def drawn(key, program):
        """Draws of the prior alone."""
        return smc.spawn(key, program.sample, num)

    def resample_move(key, program):
        """Importance, then resample and move, under the target of the particles' own level."""
        weigh_key, resample_key, move_key = jax.random.split(key, 3)
        particles = smc.importance(weigh_key, program, num)
        particles = smc.resample(resample_key, particles, smc.systematic)
        kernel = uniform_metropolis(_states(program))
        return smc.move(move_key, kernel, program.tempered(), particles)[0]

    def tempered(key, program):
        kernel = uniform_metropolis(_states(program))
        return smc.temper_fixed(key, program, kernel, num, levels)[0]

    def along(key, program):
        start_key, path_key = jax.random.split(key)
        start = smc.spawn(start_key, program.sample, num)
        kernel = uniform_metropolis(_states(program))
        return smc.along(path_key, program.tempered(), kernel, start, levels)[0]

    def data_tempered(key, program):
        num = particles_for(sizes, program.data.shape[0])
        return smc.data_temper(key, program, uniform_metropolis(_states(program)), num)[0]

    def filtered(key, sequence):
        return smc.run(key, sequence, num)[0]

    def stepped(key, sequence):
        start_key, step_key = jax.random.split(key)
        particles = smc.spawn(start_key, lambda key: sequence.init(key, 1)[0], num, jnp.asarray(0))
        for key, index in zip(
            jax.random.split(step_key, sequence.num_steps), range(sequence.num_steps), strict=True
        ):
            input = jax.tree.map(lambda leaf: leaf[index], sequence.inputs)  # noqa: B023
            particles, _ = smc.step(key, sequence, particles, input, smc.always(smc.multinomial))
        return particles

    prior = [
        each._replace(exact=Enumerated(each.exact.support, each.given.log_prior.table))
        for each in programs
    ]
    return [
        row("smc.importance", proper, importance, programs),
        row("smc.spawn", preserves, drawn, prior, as_law=proper),
        row("smc.move", preserves, resample_move, programs, as_law=proper),
        row("smc.temper_fixed", proper, tempered, programs),
        row("smc.along", proper, along, programs),
        row("smc.data_temper", proper, data_tempered, data),
        row("smc.run", proper, filtered, sequences),
        row("smc.step", proper, stepped, sequences),
    ]
