"""From a fast posterior to particles that are right: importance, and tempering where it fails."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from bayesinf.distributions.em import FitInfo
from bayesinf.distributions.fit import fit
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.particles import Particles
from bayesinf.programs.program import DataProgram, Program
from bayesinf.smc.tuned import Tuned
from bayesinf.trust.rebase import Proposal, flatten, rebase
from bayesinf.trust.ways import Info, Setting, anneal, checked_setting, weigh
from bayesinf.types import HasValues, Kernel, Key, checked, consistent, law

_CHUNK = 64  # members of a batch that are annealed together


@law(consistent)
def correct(
    key: Key,
    posterior: Proposal,
    program: Program | DataProgram,
    num_particles: int = 1000,
    kernel: Kernel | Tuned | None = None,
    num_steps: int = 5,
    threshold: float = 0.5,
    max_levels: int = 50,
) -> tuple[Particles, Info]:
    """Returns particles for the program's posterior, made from a fast one, and how that one did.

    Draws of `posterior` are weighted by the program, and the upper tail of the weights smoothed
    (`diagnostics.psis`). Where k-hat is above `k_hat_bound(num_particles)` the weights rest on few
    draws: the particles then come by adaptive tempering from `posterior` to the program's, by
    `smc.temper` on the program that `rebase` returns. Neither finds a mode of which no draw of
    `posterior` lies near; then temper from the prior.

    Law: consistent; the smoothing, the choice between the two ways and the temperatures depend on
    the particles. `smc.importance(key, rebase(program, posterior), n)` is proper.
    Paper: Vehtari et al. (2024), Pareto smoothed importance sampling, section 3; Del Moral, Doucet
    and Jasra (2006), Sequential Monte Carlo samplers, section 3.1.

    Args:
        key: a key.
        posterior: what `rebase` takes; a Gaussian mixture, a `meta_niw.LocalPosterior`, anything
            with `sample(key)` and `log_prob(x)`.
        program: the model and its data.
        num_particles: draws, of either way.
        kernel: moves the particles at every temperature; `adapted_walk()` if left out.
        num_steps: of the kernel at each.
        threshold: the share of the particles to which a step may lower the effective sample size.
        max_levels: temperatures at most.

    Raises:
        ValueError: sizes or shapes do not fit; the posterior's values are none; a log density is
            NaN or +inf at a draw; or the likelihood is -inf at every one. Under a trace the last
            three set `trusted` to False instead, and a batch computes both ways for all its members
            (`correct_many` does not).
    """
    setting = checked_setting(kernel, num_particles, num_steps, threshold, max_levels)
    if isinstance(posterior, HasValues):
        checked(posterior, "posterior")
    particles, info = _correct(key, rebase(program, posterior), setting)
    if not isinstance(info.trusted, Tracer):
        _look(particles, info.log_evidence)
    return particles, info


@law(consistent)
def correct_many(
    key: Key,
    posteriors: Proposal,
    program: Callable[[PyTree], Program | DataProgram],
    data: PyTree,
    num_particles: int = 1000,
    kernel: Kernel | Tuned | None = None,
    num_steps: int = 5,
    threshold: float = 0.5,
    max_levels: int = 50,
) -> tuple[Particles, Info]:
    """Returns what `correct` does for a batch, on a leading axis of everything.

    All are weighted at once; those that this finds wanting are tempered, a few dozen together, and
    the others cost nothing more. A member that fails has `trusted` False and leaves the others
    alone.

    Law: consistent.

    Args:
        posteriors: one with a leading axis on every array.
        program: from a member's data to its program.
        data: a pytree of arrays with a leading axis.
        the others: as for `correct`.

    Raises:
        ValueError: as `correct`, but for values of a single member; the leading axes differ; or it
            is called under a trace, where it is not known which members to temper.
    """
    setting = checked_setting(kernel, num_particles, num_steps, threshold, max_levels)
    leaves = jax.tree.leaves(eqx.filter((posteriors, data), eqx.is_array))
    sizes = sorted({jnp.shape(leaf)[:1] for leaf in leaves})
    if len(sizes) != 1 or sizes[0] in ((), (0,)):
        raise ValueError(f"posteriors, data: leading axes {sizes} came, a single one was expected")
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "posteriors, data: traced values came, known were expected; vmap `correct`"
        )
    weigh_key, anneal_key = jax.random.split(key)
    (num,) = sizes[0]
    found = _weigh_many(jax.random.split(weigh_key, num), posteriors, program, data, setting)
    wanting = np.flatnonzero(np.asarray(found[1].annealed))
    keys = jax.random.split(anneal_key, num)
    size = min(_CHUNK, 2 ** math.ceil(math.log2(max(wanting.size, 1))))
    for start in range(0, wanting.size, size):
        # Padded by the first, so that few sizes compile.
        chosen = np.resize(wanting[start : start + size], size)
        these, datum = _members((posteriors, data), chosen)
        k_hat = found[1].k_hat[chosen]
        again = _anneal_many(keys[chosen], these, datum, program, setting, k_hat)
        found = jax.tree.map(lambda all, new: all.at[chosen].set(new), found, again)  # noqa: B023
    return found


def to_mixture(
    key: Key, particles: Particles, num_components: int, num_steps: int = 50
) -> tuple[GaussianMixture, FitInfo]:
    """Returns the mixture nearest to particles, over flattened points, by `distributions.fit`.

    With it `correct` goes full circle: as `posterior` for the same program its k-hat says how good
    the fit is, and it is the next prior. The error in the info is infinite where resampling has
    left copies. Takes and raises what `distributions.fit` does.
    """
    points = jax.vmap(flatten)(particles.values)
    return fit(key, points, num_components, particles.log_weights, num_steps)


@eqx.filter_jit
def _correct(key: Key, program: Program, setting: Setting) -> tuple[Particles, Info]:
    weigh_key, anneal_key = jax.random.split(key)
    weighed = weigh(weigh_key, program, setting)

    def again():
        return _like(anneal(anneal_key, program, setting, weighed[1].k_hat), weighed)

    return jax.lax.cond(weighed[1].annealed, again, lambda: weighed)


@eqx.filter_jit
def _weigh_many(keys, posteriors, program, data, setting):
    arrays, rest = eqx.partition((posteriors, data), eqx.is_array)

    def one(key_and_arrays):
        key, arrays = key_and_arrays
        posterior, datum = eqx.combine(arrays, rest)
        return weigh(key, rebase(program(datum), posterior), setting)

    return jax.lax.map(one, (keys, arrays), batch_size=_CHUNK)


@eqx.filter_jit
def _anneal_many(keys, posteriors, data, program, setting, k_hats):
    arrays, rest = eqx.partition((posteriors, data), eqx.is_array)

    def one(key, arrays, k_hat):
        posterior, datum = eqx.combine(arrays, rest)
        return anneal(key, rebase(program(datum), posterior), setting, k_hat)

    return jax.vmap(one)(keys, arrays, k_hats)


def _members(tree: PyTree, chosen: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[chosen] if eqx.is_array(leaf) else leaf, tree)


def _like(tree: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), tree, other)


def _look(particles: Particles, log_evidence: Any) -> None:
    """Raises `ValueError` where nothing could be weighed."""
    num = particles.num_particles
    if jnp.isneginf(log_evidence):
        raise ValueError(
            f"program: the density is zero at every one of {num} draws of the posterior, a finite "
            "log likelihood was expected at some"
        )
    if jnp.isnan(log_evidence):
        leaves = jax.tree.leaves(particles.values)
        finite = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
        who = "program" if finite else "posterior"
        raise ValueError(f"{who}: NaN or +inf came at a draw, finite values were expected")
