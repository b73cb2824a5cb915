"""The laws of kernels on trajectories, alone and beside their parameters, exactly."""

import jax
import jax.numpy as jnp

from bayesinf import mcmc, smc
from bayesinf.distributions.enumerated import Enumerated
from bayesinf.distributions.particles import Particles
from bayesinf.laws.row import Row, Sizes, one, row
from bayesinf.laws.smc import particles_for, uniform_metropolis
from bayesinf.programs import target
from bayesinf.types import invariant, preserves, proper
from bayesinf.validation import Problem
from bayesinf.validation.problems import Choice, choice, finite_trajectories


def rows(sizes: Sizes) -> list[Row]:
    problems = finite_trajectories((2,), sizes.lengths)

    def num_particles(given):
        return particles_for(sizes, given.sequence.num_steps)

    def kept(make):
        def run(key, given):
            start_key, step_key = jax.random.split(key)
            start = given.smoothing.sample(start_key)
            kernel = make(given)
            state, _ = kernel.step(step_key, given.sequence, kernel.init(given.sequence, start))
            return one(state.position, given.smoothing.log_evidence)

        return run

    def traced(key, given):
        particles, info = smc.run(
            key, given.sequence, num_particles(given), smc.always(smc.multinomial), smc.history
        )
        paths = smc.trajectories(info.collected)
        return Particles(paths, particles.log_weights, particles.log_evidence, particles.level)

    def ancestors(given):
        return smc.ancestor_sampling(num_particles(given), _looked_up(given.sequence.step.one))

    def pmmh(key, given):
        """A parameter from its prior, with an estimate that counts as its weight."""
        draw_key, start_key, step_key = jax.random.split(key, 3)
        prior = target(lambda theta: given.log_prior[theta])
        kernel = smc.pmmh(
            uniform_metropolis(2),
            lambda theta: given.chain(theta).model(),
            sizes.particles[-1],
            smc.always(smc.multinomial),
        )
        theta = jax.random.categorical(draw_key, given.log_prior)
        position = kernel.start(start_key, theta)
        state, _ = kernel.step(step_key, prior, kernel.init(prior, position))
        return one(state.position.value, position.log_estimate)

    paths = [
        each._replace(exact=_without_start(each.exact), name=f"paths of {each.name}")
        for each in problems
    ]
    short = choice(2, 1)
    parameters = [Problem("two sequences of 1 reading", short, short.parameter())]
    joint = [
        Problem(f"two sequences of {length} readings and paths", given, given.joint())
        for length in sizes.lengths
        for given in [choice(2, length)]
    ]
    return [
        row(
            "smc.conditional_smc",
            invariant,
            kept(lambda given: smc.conditional_smc(num_particles(given))),
            problems,
            proper,
        ),
        row("smc.ancestor_sampling", invariant, kept(ancestors), problems, proper),
        row("smc.trajectories", preserves, traced, paths, proper),
        row("smc.pmmh", invariant, pmmh, parameters, proper),
        row("smc.particle_gibbs", invariant, moved_with(particle_gibbs), joint, proper),
    ]


def moved_with(make):
    """Returns the run that moves an exact draw of parameter and path by `make(given)`."""

    def run(key, given: Choice):
        start_key, step_key = jax.random.split(key)
        exact, kernel, states = given.joint(), make(given), target(given.log_joint)
        start = exact.sample(start_key)
        state, _ = kernel.step(step_key, states, kernel.init(states, start))
        return one(state.position, exact.log_evidence)

    return run


def particle_gibbs(given: Choice):
    """The path by conditional SMC with ancestor sampling, then the parameter by Metropolis."""

    def model(rest):
        return given.chain(rest["theta"]).model()

    def kernel(rest):
        return smc.ancestor_sampling(2, _looked_up(given.chain(rest["theta"]).model().step.one))

    path = smc.particle_gibbs(model, kernel)
    return mcmc.blocks({"path": path, "theta": uniform_metropolis(2)})


def _looked_up(walk):
    """Returns the log density of a move that a table holds."""

    def log_transition(before, after, input):
        del input
        return walk.log_probs[before, after]

    return log_transition


def _without_start(paths: Enumerated) -> Enumerated:
    """Returns the measure of the trajectories' states after the first."""
    num = int(jnp.max(paths.support)) + 1
    log_masses = jax.nn.logsumexp(paths.log_masses.reshape(num, -1), axis=0)
    return Enumerated(paths.support[: log_masses.size, 1:], log_masses)
