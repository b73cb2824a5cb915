"""An SMC sampler along a path of targets: reweight, resample, move, all at one level."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import ArrayLike, Bool, Float

from bayesinf.distributions.particles import Particles
from bayesinf.programs.target import Path
from bayesinf.smc.resampling import always, systematic
from bayesinf.smc.resampling.policy import Policy
from bayesinf.smc.transform import move, normalise, reweight
from bayesinf.smc.tuned import Tuned
from bayesinf.types import Kernel, Key, law, proper


class Info(NamedTuple):
    """What a step says beside its particles.

    Attributes:
        log_evidence: log of the factor by which the evidence grew. -inf: no particle had weight
            left.
        ess: effective sample size before resampling.
        resampled: whether the particles were resampled before they moved.
        level: the level reached.
        moves: the kernel's infos, by step of the kernel and particle.
    """

    log_evidence: Float[Array, "*t"]
    ess: Float[Array, "*t"]
    resampled: Bool[Array, "*t"]
    level: Array
    moves: Any


_RESAMPLE = always(systematic)


@law(proper)
def step(
    key: Key,
    path: Path,
    kernel: Kernel | Tuned,
    particles: Particles,
    level: Array,
    num_steps: int = 1,
    resample: Policy = _RESAMPLE,
) -> tuple[Particles, Info]:
    """Returns the particles at `level`, moved by `num_steps` of the kernel, and what happened.

    Every particle moves at every step. To move only where they were resampled would let the move
    depend on the whole population, which preserves no average of it.

    Law: proper, if the particles that came are and `level` does not depend on them.
    """
    log_g = jax.vmap(path.log_increment, (0, None, None))(particles.values, particles.level, level)
    return step_with(key, path, kernel, particles, level, log_g, num_steps, resample)


def step_with(key, path, kernel, particles, level, log_g, num_steps, resample):
    """`step` for whom the log increments are known."""
    resample_key, move_key = jax.random.split(key)

    # reweight
    weighted = reweight(particles, log_g, level)
    growth = reweight(normalise(particles), log_g, level).log_evidence

    # resample
    resampled, resampling = resample(resample_key, weighted)

    # move
    moved, moves = move(move_key, kernel, path, resampled, num_steps)
    return moved, Info(growth, resampling.ess, resampling.resampled, level, moves)


@law(proper)
def along(
    key: Key,
    path: Path,
    kernel: Kernel | Tuned,
    particles: Particles,
    levels: ArrayLike,
    num_steps: int = 1,
    resample: Policy = _RESAMPLE,
) -> tuple[Particles, Info]:
    """Returns the particles at the last of `levels`, after a step at each, and the infos by level.

    The particles that come out are weighted as the policy leaves them; `resample` makes them equal.

    Law: proper for the target at the last level, if the particles that came are for that at theirs,
    the levels are fixed and the kernel is not `tuned`.
    Paper: Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers, section 3.1.

    Raises:
        ValueError: levels are no vector, or a log increment is NaN or +inf; not under a trace.
    """
    levels = jnp.asarray(levels)
    if levels.ndim != 1:
        raise ValueError(f"levels: shape {levels.shape} came, (t,) was expected")
    particles, info = _along(key, path, kernel, particles, levels, num_steps, resample)
    check_growth(info)
    return particles, info


@eqx.filter_jit
def _along(key, path, kernel, particles, levels, num_steps, resample):
    particles = eqx.tree_at(lambda p: p.level, particles, particles.level.astype(levels.dtype))

    def body(particles, step_inputs):
        key, level = step_inputs
        return step(key, path, kernel, particles, level, num_steps, resample)

    return jax.lax.scan(body, particles, (jax.random.split(key, levels.shape[0]), levels))


def check_growth(info: Info) -> None:
    """Raises `ValueError` where the evidence became NaN; is silent under a trace."""
    if isinstance(info.log_evidence, Tracer):
        return
    bad = np.flatnonzero(np.isnan(np.asarray(info.log_evidence)))
    if bad.size:
        raise ValueError(
            f"log_likelihood: NaN or +inf came at step {bad[0]} (level {info.level[bad[0]]}), "
            "finite or -inf was expected"
        )
