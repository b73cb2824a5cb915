"""The transformations of particles, each a few lines with its law; algorithms are made of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, Int, PyTree

from bayesinf.distributions.particles import Particles, take, uniform_particles
from bayesinf.programs.program import DataProgram, Program
from bayesinf.programs.target import Path
from bayesinf.smc.tuned import Tuned
from bayesinf.types import Kernel, Key, consistent, law, no_law, preserves, proper, reweights

Resampler = Callable[[Key, Float[Array, " n"], int], Int[Array, " num"]]


@law(proper)
def importance(
    key: Key, program: Program | DataProgram, num_particles: int, proposal: Any = None
) -> Particles:
    """Returns draws of the prior, or of `proposal`, weighted to stand for the posterior (level 1).

    `proposal` has `sample(key)` and `log_prob(x)` and covers the posterior.

    Law: proper for the program's posterior.

    Raises:
        ValueError: no particle is asked for.
    """
    path = program.tempered()
    draw = program.sample if proposal is None else proposal.sample
    particles = spawn(key, draw, num_particles, level=0.0)
    log_g = jax.vmap(path.log_likelihood)(particles.values)
    if proposal is not None:
        log_prior = jax.vmap(path.log_prior)(particles.values)
        log_g = log_g + log_prior - jax.vmap(proposal.log_prob)(particles.values)
    return reweight(particles, log_g, jnp.ones_like(particles.level))


@law(preserves)
def spawn(
    key: Key, sample: Callable[[Key], PyTree], num_particles: int, level: Array | float = 0.0
) -> Particles:
    """Returns independent draws of `sample`, equally weighted. Law: preserves.

    Raises:
        ValueError: no particle is asked for.
    """
    check_num(num_particles)
    values = jax.vmap(sample)(jax.random.split(key, num_particles))
    return uniform_particles(values, level)


@law(reweights)
def reweight(particles: Particles, log_g: Float[Array, " n"], level: Array) -> Particles:
    """Returns the particles multiplied by `exp(log_g)`, which stand for the measure at `level`.

    The only place where the evidence changes. Where no particle is left with weight the evidence is
    -inf, or NaN if a `log_g` was NaN or +inf, and the weights are equal.

    Law: reweights by g.
    """
    # What has no weight gets none, whatever its potential.
    gone = jnp.isneginf(particles.log_weights)
    raw = jnp.where(gone, -jnp.inf, particles.log_weights + log_g)
    total = logsumexp(raw)
    total = jnp.where(total == jnp.inf, jnp.nan, total)
    equal = jnp.full_like(raw, -jnp.log(raw.shape[0]))
    log_weights = jnp.where(jnp.isfinite(total), raw - total, equal)
    return Particles(particles.values, log_weights, particles.log_evidence + total, level)


@law(preserves)
def resample(
    key: Key, particles: Particles, resampler: Resampler, num: int | None = None
) -> Particles:
    """Returns `num` (as many as came, if left out) equally weighted copies. Law: preserves."""
    num = particles.num_particles if num is None else num
    return offspring(particles, resampler(key, particles.log_weights, num))


@no_law("preserves the measure only for ancestors that a resampler drew")
def offspring(particles: Particles, ancestors: Int[Array, " num"]) -> Particles:
    """Returns equally weighted copies of the particles `ancestors`."""
    num = ancestors.shape[0]
    log_weights = jnp.full(num, -jnp.log(num), particles.log_weights.dtype)
    values = take(particles.values, ancestors)
    return Particles(values, log_weights, particles.log_evidence, particles.level)


@law(preserves)
def propagate(key: Key, particles: Particles, step: Callable[[Key, PyTree], PyTree]) -> Particles:
    """Returns the particles moved by `step`, (key, values) to values, a whole population at once.

    Law: preserves; the image of the measure under the Markov kernel `step`.

    Raises:
        ValueError: when traced, a move changed the structure, a shape or a dtype.
    """
    values = step(key, particles.values)
    check_same("step", values, particles.values)
    return Particles(values, particles.log_weights, particles.log_evidence, particles.level)


@law(preserves)
def move(
    key: Key, kernel: Kernel | Tuned, path: Path, particles: Particles, num_steps: int = 1
) -> tuple[Particles, Any]:
    """Returns the particles after `num_steps` of a Markov kernel, and its infos by step.

    The target is that of the particles' own level, so that no other can be taken by mistake.

    Law: preserves, where the kernel is invariant and does not depend on the particles.
    Paper: Gilks and Berzuini (2001), Following a moving target, section 3.

    Raises:
        ValueError: when traced, the kernel changed the structure, a shape or a dtype of its state.
    """
    if isinstance(kernel, Tuned):
        kernel = kernel.at(particles)
    target = path.target(particles.level)
    state = jax.vmap(kernel.init, (None, 0))(target, particles.values)
    check_same("kernel.init", state.position, particles.values)

    def one_step(state, key):
        keys = jax.random.split(key, particles.num_particles)
        new, info = jax.vmap(kernel.step, (0, None, 0))(keys, target, state)
        check_same("kernel.step", new, state)
        return new, info

    state, info = jax.lax.scan(one_step, state, jax.random.split(key, num_steps))
    moved = Particles(
        state.position, particles.log_weights, particles.log_evidence, particles.level
    )
    return moved, info


@law(preserves)
def collapse(key: Key, particles: Particles) -> Particles:
    """Returns one particle, drawn by weight, that carries the whole evidence. Law: preserves."""
    return offspring(particles, jax.random.categorical(key, particles.log_weights, shape=(1,)))


@law(consistent)
def normalise(particles: Particles) -> Particles:
    """Returns the particles as a probability measure, the evidence forgotten.

    Law: consistent; the ratio of two unbiased estimates.
    """
    log_evidence = jnp.zeros_like(particles.log_evidence)
    return Particles(particles.values, particles.log_weights, log_evidence, particles.level)


@law(preserves)
def marginal(particles: Particles, f: Callable[[PyTree], PyTree]) -> Particles:
    """Returns the particles at `f` of their values.

    Law: preserves; the image of the measure under `f`.
    """
    values = jax.vmap(f)(particles.values)
    return Particles(values, particles.log_weights, particles.log_evidence, particles.level)


@law(preserves)
def hoist(transform: Callable[..., PyTree]) -> Callable[..., Particles]:
    """Returns the transformation that acts inside every particle.

    `transform` takes (key, value) to a value, which may itself be particles (a filter for each
    parameter); the result takes (key, particles).

    Law: preserves, if `transform` does.
    """

    def outer(key: Key, particles: Particles) -> Particles:
        keys = jax.random.split(key, particles.num_particles)
        values = jax.vmap(transform)(keys, particles.values)
        return Particles(values, particles.log_weights, particles.log_evidence, particles.level)

    return outer


def check_num(num_particles: int) -> None:
    if num_particles < 1:
        raise ValueError(f"num_particles: {num_particles} came, at least 1 was expected")


def check_same(name: str, new: PyTree, old: PyTree) -> None:
    """Raises `ValueError` unless two pytrees have the same structure, shapes and dtypes."""

    def shapes(tree):
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name), tree)

    came, expected = shapes(new), shapes(old)
    if came != expected:
        raise ValueError(f"{name}: {came} came, {expected} was expected, as before the step")
