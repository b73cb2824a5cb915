"""Data tempering: the posterior after every datum (Chopin 2002, iterated batch importance)."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from bayesinf.distributions.particles import Particles
from bayesinf.programs.program import DataProgram
from bayesinf.smc.along import Info, along
from bayesinf.smc.resampling import adaptive, systematic
from bayesinf.smc.resampling.policy import Policy
from bayesinf.smc.transform import spawn
from bayesinf.smc.tuned import Tuned
from bayesinf.types import Kernel, Key, law, proper

_RESAMPLE = adaptive(systematic)


@law(proper)
def data_temper(
    key: Key,
    program: DataProgram,
    kernel: Kernel | Tuned,
    num_particles: int,
    num_steps: int = 1,
    resample: Policy = _RESAMPLE,
    levels: ArrayLike | None = None,
) -> tuple[Particles, Info]:
    """Returns particles for the posterior given all data, and the infos by datum.

    Each datum reweights, the particles are resampled where few count, and move under the target
    with the data so far; `exp(info.log_evidence)` is the datum's density given those before it.
    Since a move costs as much as the data that are in, many data are better taken in chunks, by
    `levels`, the numbers of data at which to stop, as (1, 2, 4, 8, ...).

    Law: proper for the posterior, if the kernel is not `tuned`.
    Paper: Chopin (2002), A sequential particle filter method for static models. It moves only after
    resampling; here every level moves, without which the law would be lost.

    Raises:
        ValueError: as `along`.
    """
    path = program.by_datum()
    start_key, path_key = jax.random.split(key)
    start = spawn(start_key, program.sample, num_particles, level=jnp.asarray(0))
    levels = jnp.arange(1, path.num_data + 1) if levels is None else levels
    return along(path_key, path, kernel, start, levels, num_steps, resample)
