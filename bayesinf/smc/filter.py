"""Sequential Monte Carlo over a Feynman-Kac model: resample, propagate, reweight, repeat."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, PyTree

from bayesinf.distributions.particles import Particles, uniform_particles
from bayesinf.programs.feynman_kac import FeynmanKac
from bayesinf.smc.resampling import adaptive, systematic
from bayesinf.smc.resampling.policy import Policy, Resampling
from bayesinf.smc.transform import check_num, normalise, propagate, reweight
from bayesinf.types import Key, law, proper


class Info(NamedTuple):
    """What a step says beside its particles.

    Attributes:
        log_evidence: log of the factor by which the evidence grew; its exponential is the density
            of what was observed given the past. -inf: no particle had weight left.
        ess: effective sample size before resampling.
        resampled: whether the particles were resampled before they moved.
        collected: what `collect` kept.
    """

    log_evidence: Float[Array, "*t"]
    ess: Float[Array, "*t"]
    resampled: Bool[Array, "*t"]
    collected: PyTree


Collect = Callable[[Particles, Resampling], PyTree]
"""What to keep of a step: a function of its particles and of how they were resampled."""


def _nothing(particles: Particles, resampling: Resampling) -> None:
    del particles, resampling


_RESAMPLE = adaptive(systematic)


@law(proper)
def step(
    key: Key,
    fk: FeynmanKac,
    particles: Particles,
    input: PyTree,
    resample: Policy = _RESAMPLE,
    collect: Collect = _nothing,
) -> tuple[Particles, Info]:
    """Returns the particles after one input, and what happened.

    Law: proper, if the particles that came are.

    Raises:
        ValueError: when traced, `fk.step` or `fk.log_potential` returns another shape or dtype.
    """
    resample_key, move_key = jax.random.split(key)

    # resample
    particles, resampling = resample(resample_key, particles)

    # propagate
    moved = propagate(move_key, particles, lambda key, values: fk.step(key, values, input))

    # reweight
    log_g = jnp.asarray(fk.log_potential(particles.values, moved.values, input))
    if log_g.shape != (moved.num_particles,):
        raise ValueError(
            f"fk.log_potential: shape {log_g.shape} came, ({moved.num_particles},) was expected"
        )
    level = particles.level + 1
    weighted = reweight(moved, log_g, level)

    # The growth from mass one, whole; a difference of two large logs would lose digits.
    growth = reweight(normalise(moved), log_g, level).log_evidence
    kept = collect(weighted, resampling)
    return weighted, Info(growth, resampling.ess, resampling.resampled, kept)


@law(proper)
def run(
    key: Key,
    fk: FeynmanKac,
    num_particles: int,
    resample: Policy = _RESAMPLE,
    collect: Collect = _nothing,
) -> tuple[Particles, Info]:
    """Returns the particles after all inputs, and the infos by step.

    `collect` keeps more of each step than its info, as the mean or, by `history`, all of it.
    Where all particles lose their weight `log_evidence` is -inf, from that step on.

    Law: proper for the measure of `fk`; `exp(log_evidence)` is unbiased for its mass.
    Paper: Gordon, Salmond and Smith (1993); Chopin and Papaspiliopoulos (2020), algorithm 10.1.

    Raises:
        ValueError: no particle is asked for, or a potential is NaN or +inf; not under a trace.
    """
    check_num(num_particles)
    particles, info = _scan(key, fk, num_particles, resample, collect)
    if not isinstance(info.log_evidence, Tracer):
        bad = np.flatnonzero(np.isnan(np.asarray(info.log_evidence)))
        if bad.size:
            states = _scan(key, fk, num_particles, resample, _any_nan)[1].collected
            _refuse(int(bad[0]), bool(states[bad[0]]))
    return particles, info


@law(proper)
def stream(
    key: Key,
    fk: FeynmanKac,
    num_particles: int,
    inputs: Iterable[PyTree],
    resample: Policy = _RESAMPLE,
) -> Iterator[tuple[Particles, Info]]:
    """Yields the particles and info after each input as it comes, in fixed memory.

    The same numbers as `run` with the same key; `fk.inputs` is not looked at. One compiled step
    serves all inputs of the same shapes.

    Law: proper, as `run`.

    Raises:
        ValueError: as `run`, at the step where it happens.
    """
    check_num(num_particles)
    start_key, step_key = jax.random.split(key)
    particles = _start(start_key, fk, num_particles)
    for index, input in enumerate(inputs):
        key = jax.random.fold_in(step_key, index)
        particles, info = _step(key, fk, particles, input, resample)
        if bool(jnp.isnan(info.log_evidence)):
            _refuse(index, bool(_any_nan(particles, None)))
        yield particles, info


_step = eqx.filter_jit(step)


@eqx.filter_jit
def _start(key, fk, num_particles):
    particles = uniform_particles(fk.init(key, num_particles), jnp.asarray(0))
    if particles.num_particles != num_particles:
        raise ValueError(
            f"fk.init: {particles.num_particles} particles came, {num_particles} were expected"
        )
    return particles


@eqx.filter_jit
def _scan(key, fk, num_particles, resample, collect):
    start_key, step_key = jax.random.split(key)
    particles = _start(start_key, fk, num_particles)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(fk.num_steps))

    def body(particles, step_inputs):
        key, input = step_inputs
        return step(key, fk, particles, input, resample, collect)

    return jax.lax.scan(body, particles, (keys, fk.inputs))


def _any_nan(particles: Particles, _: Any) -> Bool[Array, ""]:
    leaves = jax.tree.leaves(particles.values)
    found = [jnp.any(leaf != leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.any(jnp.asarray(found, bool))


def _refuse(index: int, states_are_nan: bool) -> None:
    if states_are_nan:
        raise ValueError(f"fk.step: NaN came at step {index}, finite states were expected")
    raise ValueError(
        f"fk.log_potential: NaN or +inf came at step {index}, finite or -inf was expected"
    )
