"""Tempering from a prior to its posterior, at given temperatures or at those that ESS asks for."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import ArrayLike, Float

from bayesinf.distributions.particles import Particles
from bayesinf.programs.program import DataProgram, Program
from bayesinf.programs.target import Tempered
from bayesinf.smc.along import _RESAMPLE, Info, along, check_growth, step_with
from bayesinf.smc.resampling.policy import Policy
from bayesinf.smc.transform import spawn
from bayesinf.smc.tuned import Tuned
from bayesinf.types import Kernel, Key, consistent, law, proper

# Halvings of the interval that the next temperature lies in: beyond the digits of a double.
_HALVINGS = 60


@law(proper)
def temper_fixed(
    key: Key,
    program: Program | DataProgram,
    kernel: Kernel | Tuned,
    num_particles: int,
    levels: ArrayLike,
    num_steps: int = 1,
    resample: Policy = _RESAMPLE,
) -> tuple[Particles, Info]:
    """Returns particles at the last of `levels`, temperatures that rise to 1, and the infos.

    Law: proper for `prior x likelihood^levels[-1]`, if the kernel is not `tuned`.
    Paper: Neal (2001), Annealed importance sampling; Del Moral, Doucet and Jasra (2006).

    Raises:
        ValueError: no particle is asked for, or a log likelihood is NaN or +inf (not under a
            trace).
    """
    start_key, path_key = jax.random.split(key)
    start = spawn(start_key, program.sample, num_particles, level=0.0)
    return along(path_key, program.tempered(), kernel, start, levels, num_steps, resample)


@law(consistent)
def temper(
    key: Key,
    program: Program | DataProgram,
    kernel: Kernel | Tuned,
    num_particles: int,
    num_steps: int = 1,
    threshold: float = 0.5,
    resample: Policy = _RESAMPLE,
    max_levels: int = 100,
) -> tuple[Particles, Info]:
    """Returns particles for the posterior, and the infos by level, as many as were needed.

    The next temperature is that at which the effective sample size of the step, on the weighted
    particles as they now are, is `threshold` times n. Under a trace, where shapes are fixed, the
    infos have length `max_levels`; those after the last have level 0.

    Law: consistent; the temperatures depend on the particles.
    Paper: Jasra et al. (2011), Inference for Levy-driven stochastic volatility models via adaptive
    sequential Monte Carlo; conditional ESS: Zhou, Johansen and Aston (2016), equation 3.16.

    Raises:
        ValueError: no particle is asked for, the threshold is not in (0, 1), a log likelihood is
            NaN or +inf, or `max_levels` did not reach the posterior (the last two not under a
            trace).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: {threshold} came, a number in (0, 1) was expected")
    start_key, path_key = jax.random.split(key)
    start = spawn(start_key, program.sample, num_particles, level=0.0)
    path = program.tempered()
    particles, infos, count = _temper(
        path_key, path, kernel, start, threshold, num_steps, resample, max_levels
    )
    if isinstance(count, Tracer):
        return particles, infos
    infos = jax.tree.map(lambda leaf: leaf[: int(count)], infos)
    check_growth(infos)
    if float(particles.level) < 1:
        raise ValueError(f"max_levels: {max_levels} reached level {particles.level}, not yet 1")
    return particles, infos


@eqx.filter_jit
def _temper(key, path: Tempered, kernel, particles, threshold, num_steps, resample, max_levels):
    def one(index, particles):
        step_key = jax.random.fold_in(key, index)
        # one evaluation for the temperature and the weights
        log_likelihoods = jax.vmap(path.log_likelihood)(particles.values)
        level = next_level(particles, log_likelihoods, threshold)
        rise = level - particles.level
        log_g = jnp.where(rise == 0, 0, rise * log_likelihoods)
        return step_with(step_key, path, kernel, particles, level, log_g, num_steps, resample)

    def go_on(carry):
        index, particles, _ = carry
        return (index < max_levels) & (particles.level < 1)

    def body(carry):
        index, particles, infos = carry
        particles, info = one(index, particles)
        infos = jax.tree.map(lambda all, new: all.at[index].set(new), infos, info)
        return index + 1, particles, infos

    _, info = jax.eval_shape(one, 0, particles)
    empty = jax.tree.map(lambda leaf: jnp.zeros((max_levels, *leaf.shape), leaf.dtype), info)
    count, particles, infos = jax.lax.while_loop(go_on, body, (jnp.asarray(0), particles, empty))
    return particles, infos, count


@law(consistent)
def next_level(
    particles: Particles, log_likelihoods: Float[Array, " n"], threshold: float
) -> Float[Array, ""]:
    """Returns the temperature at which the conditional effective sample size falls to `threshold`
    times what it is just above the present one, or 1.

    That size, `n (sum W g)^2 / sum W g^2` with g the step's weights, falls steadily as the
    temperature rises whatever W is, so halving finds the one root.

    Law: consistent.
    """
    # Particles without likelihood fall at any rise; the size is relative to the others.
    alive = jnp.isfinite(particles.log_weights) & ~jnp.isneginf(log_likelihoods)
    log_likelihoods = jnp.where(alive, log_likelihoods, 0)
    log_weights = jnp.where(alive, particles.log_weights, -jnp.inf)
    log_weights = log_weights - logsumexp(log_weights)
    rest = 1 - particles.level

    def log_size(rise):
        once = logsumexp(log_weights + rise * log_likelihoods)
        return 2 * once - logsumexp(log_weights + 2 * rise * log_likelihoods)

    def halve(bounds, _):
        low, high = bounds
        middle = (low + high) / 2
        enough = log_size(middle) >= jnp.log(threshold)
        return (jnp.where(enough, middle, low), jnp.where(enough, high, middle)), None

    (_, rise), _ = jax.lax.scan(halve, (jnp.zeros_like(rest), rest), length=_HALVINGS)
    above = jnp.nextafter(particles.level, jnp.ones_like(particles.level))
    level = jnp.clip(particles.level + rise, above, 1)
    # Nothing alive, or NaN: no temperature is better than another, and the loop ends here.
    short = log_size(rest) < jnp.log(threshold)
    return jnp.where(short, level, 1)
