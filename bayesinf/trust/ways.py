"""The two ways to particles that are right: importance weights, and tempering.

Both are of a program whose prior is the fast posterior (`rebase`); `correct` chooses.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bayesinf.diagnostics.psis import k_hat_bound, psis
from bayesinf.distributions.particles import Particles
from bayesinf.linalg import triangularize
from bayesinf.mcmc.random_walk import RandomWalk
from bayesinf.programs.program import Program
from bayesinf.smc.tempering import temper
from bayesinf.smc.transform import reweight, spawn
from bayesinf.smc.tuned import Tuned, tuned
from bayesinf.trust.rebase import flatten
from bayesinf.types import Kernel, Key, consistent, law

_STUCK = 0.02  # a lower acceptance leaves most particles where the last resampling put them


class Info(NamedTuple):
    """How a posterior did, and what was done.

    Attributes:
        k_hat: of the importance weights (`diagnostics.psis`): how far the posterior that came is
            from covering the program's.
        ess: effective sample size of the weights, the smallest on the way where they were annealed.
        log_evidence: log of the mass of the program's measure.
        standard_error: of `log_evidence`, by the delta method; where it was annealed, as if the
            kernel forgot at every level where the particles came from: a lower bound then, and
            several times too small where the posterior that came is much too narrow.
        annealed: whether k-hat was above its bound and tempering took over.
        num_levels: of the tempering; 0 without.
        acceptance: the kernel's mean acceptance at the level where it was lowest; 1 without.
        trusted: whether the particles may be used: k-hat within its bound, or the tempering at its
            end with a kernel that moved. False as well where there was nothing to weigh.
    """

    k_hat: Float[Array, "*n"]
    ess: Float[Array, "*n"]
    log_evidence: Float[Array, "*n"]
    standard_error: Float[Array, "*n"]
    annealed: Bool[Array, "*n"]
    num_levels: Int[Array, "*n"]
    acceptance: Float[Array, "*n"]
    trusted: Bool[Array, "*n"]


class Setting(NamedTuple):
    """How `correct` goes about it; see there."""

    kernel: Kernel | Tuned
    num_particles: int
    num_steps: int
    threshold: float
    max_levels: int


def weigh(key: Key, program: Program, setting: Setting) -> tuple[Particles, Info]:
    """Importance sampling from the prior of a program, with a smoothed tail."""
    num = setting.num_particles
    drawn = spawn(key, program.sample, num)
    log_ratios = jax.vmap(program.log_likelihood)(drawn.values)
    smoothed = psis(log_ratios)
    particles = reweight(drawn, smoothed.log_ratios, jnp.ones_like(drawn.level))
    good = smoothed.k_hat <= k_hat_bound(num)  # a k-hat that is NaN is not
    ess = particles.ess()
    one = jnp.ones_like(ess)
    error = jnp.sqrt(_variance(ess, num))
    info = Info(
        smoothed.k_hat, ess, particles.log_evidence, error, ~good, jnp.asarray(0), one, good
    )
    return particles, info


def anneal(key: Key, program: Program, setting: Setting, k_hat) -> tuple[Particles, Info]:
    """Tempering from the prior of a program to its posterior."""
    kernel, num, num_steps, threshold, max_levels = setting
    particles, infos = temper(
        key, program, kernel, num, num_steps, threshold, max_levels=max_levels
    )
    there = infos.level > 0
    ess = jnp.min(jnp.where(there, infos.ess, num))
    variance = jnp.sum(jnp.where(there, _variance(infos.ess, num), 0))
    acceptances = jnp.mean(infos.moves.acceptance, axis=(1, 2))
    acceptance = jnp.min(jnp.where(there, acceptances, 1))
    done = (particles.level >= 1) & jnp.isfinite(particles.log_evidence)
    info = Info(
        *(k_hat, ess, particles.log_evidence, jnp.sqrt(variance)),
        *(jnp.asarray(True), jnp.sum(there), acceptance, done & (acceptance >= _STUCK)),
    )
    return particles, info


@law(consistent)
def adapted_walk() -> Tuned:
    """Returns a random walk with 2.4 / sqrt(d) times the factor of the particles' covariance.

    Law: consistent. Paper: Roberts, Gelman and Gilks (1997).
    """
    return tuned(RandomWalk(1.0), _spread)


def checked_setting(kernel, num_particles, num_steps, threshold, max_levels) -> Setting:
    for name, number, least in (
        ("num_particles", num_particles, 2),
        ("num_steps", num_steps, 1),
        ("max_levels", max_levels, 1),
    ):
        if number < least:
            raise ValueError(f"{name}: {number} came, at least {least} was expected")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: {threshold} came, a number in (0, 1) was expected")
    kernel = adapted_walk() if kernel is None else kernel
    return Setting(kernel, num_particles, num_steps, threshold, max_levels)


def _variance(ess: Float[Array, "*n"], num: int) -> Float[Array, "*n"]:
    """Returns the squared relative error of the mean of weights with this effective size."""
    return jnp.maximum(1 / ess - 1 / num, 0)


def _spread(kernel: Any, particles: Particles) -> Kernel:
    points = jax.vmap(flatten)(particles.values)
    rows = jnp.sqrt(particles.weights)[:, None] * (points - particles.weights @ points)
    # Few different points may span fewer than all dimensions.
    floor = 1e-3 * jnp.sqrt(jnp.sum(rows**2, axis=0))
    chol = triangularize(rows.T, jnp.diag(floor))
    return eqx.tree_at(lambda k: k.scale, kernel, 2.4 / math.sqrt(points.shape[1]) * chol)
