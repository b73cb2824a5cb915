"""Conditional SMC: kernels on whole trajectories of a Feynman-Kac model."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PyTree

from bayesinf.distributions.particles import Particles, uniform_particles
from bayesinf.programs.feynman_kac import FeynmanKac
from bayesinf.smc.history import History, trajectories
from bayesinf.smc.resampling import multinomial
from bayesinf.smc.transform import check_same, offspring, propagate, reweight
from bayesinf.types import Key, invariant, law


class State(NamedTuple):
    """A trajectory: a pytree with leading axis T + 1, from before the first input on."""

    position: PyTree


class Info(NamedTuple):
    """What a step reports.

    Attributes:
        acceptance: the share of times at which the trajectory is another.
        invalid: whether a potential was NaN or +inf; the trajectory was then kept.
    """

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]


OwnAncestor = Callable[[Key, FeynmanKac, Particles, PyTree, PyTree], Int[Array, ""]]


@law(invariant)
class ConditionalSMC(eqx.Module):
    """Runs a filter in which particle 0 follows the given trajectory, and draws one of its paths.

    The target that it takes is a `FeynmanKac`, normalised, as a measure on trajectories; it may
    depend on parameters that another kernel moves (particle Gibbs). `conditional_smc` and
    `ancestor_sampling` make one.

    Law: invariant, for any number of particles.
    Paper: Andrieu, Doucet and Holenstein (2010), Particle Markov chain Monte Carlo methods,
    section 4.3.

    Attributes:
        num_particles: how many, with the given one.
        own_ancestor: draws the ancestor of the given trajectory's next value.
    """

    num_particles: int = eqx.field(static=True)
    own_ancestor: OwnAncestor

    def init(self, target: FeynmanKac, position: PyTree) -> State:
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(position)}
        if lengths != {(target.num_steps + 1,)}:
            raise ValueError(
                f"position: leading axes {lengths} came, {target.num_steps + 1} was expected, "
                "a value before the first input and one after each"
            )
        return State(position)

    def step(self, key: Key, target: FeynmanKac, state: State) -> tuple[State, Info]:
        start_key, scan_key, choice_key = jax.random.split(key, 3)
        start = jax.tree.map(lambda leaf: leaf[0], state.position)
        rest = jax.tree.map(lambda leaf: leaf[1:], state.position)
        values = pinned(target.init(start_key, self.num_particles), start)
        particles = uniform_particles(values, jnp.asarray(0))

        def body(particles, inputs):
            key, input, given = inputs
            others_key, own_key, move_key = jax.random.split(key, 3)

            # resample all but the given trajectory
            num_others = self.num_particles - 1
            others = multinomial(others_key, particles.log_weights, num_others)
            own = self.own_ancestor(own_key, target, particles, given, input)
            ancestors = jnp.concatenate([own[None], others])
            before = offspring(particles, ancestors)

            # propagate all but the given trajectory
            def move(key, values):
                return pinned(target.step(key, values, input), given)

            moved = propagate(move_key, before, move)

            # reweight
            log_g = target.log_potential(before.values, moved.values, input)
            weighted = reweight(moved, log_g, particles.level + 1)
            return weighted, History(weighted.values, weighted.log_weights, ancestors)

        keys = jax.random.split(scan_key, target.num_steps)
        final, later = jax.lax.scan(body, particles, (keys, target.inputs, rest))

        first = History(values, particles.log_weights, jnp.arange(self.num_particles))
        whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
        invalid = jnp.isnan(final.log_evidence)
        chosen = jax.random.categorical(choice_key, final.log_weights)
        chosen = jnp.where(invalid, 0, chosen)
        path = jax.tree.map(lambda leaf: leaf[0], trajectories(whole, chosen[None]))
        path = jax.tree.map(lambda new, old: jnp.where(invalid, old, new), path, state.position)
        check_same("target.step", path, state.position)
        return State(path), Info(_changed(path, state.position), invalid)


@law(invariant)
def conditional_smc(num_particles: int) -> ConditionalSMC:
    """Returns the kernel in which the given trajectory keeps its own past.

    Law: invariant. Its early part moves seldom once the particles' paths have met there.

    Raises:
        ValueError: fewer than two particles, with which the trajectory cannot change.
    """
    return _conditional(num_particles, _kept)


@law(invariant)
def ancestor_sampling(
    num_particles: int, log_transition: Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]
) -> ConditionalSMC:
    """Returns the kernel in which the given trajectory may take another particle's past.

    `log_transition(before, after, input)` is the log density of one particle's move under
    `fk.step`.

    Law: invariant.
    Paper: Lindsten, Jordan and Schoen (2014), Particle Gibbs with ancestor sampling, algorithm 2.

    Raises:
        ValueError: fewer than two particles.
    """
    return _conditional(num_particles, _Drawn(log_transition))


def _conditional(num_particles: int, own_ancestor: OwnAncestor) -> ConditionalSMC:
    if num_particles < 2:
        raise ValueError(f"num_particles: {num_particles} came, at least 2 was expected")
    return ConditionalSMC(num_particles, own_ancestor)


def _kept(key, target, particles, given, input) -> Int[Array, ""]:
    del key, target, particles, given, input
    return jnp.asarray(0)


class _Drawn(eqx.Module):
    log_transition: Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]

    def __call__(self, key, target, particles, given, input) -> Int[Array, ""]:
        after = jax.tree.map(
            lambda one, all: jnp.broadcast_to(one, all.shape), given, particles.values
        )
        log_moves = jax.vmap(self.log_transition, (0, None, None))(particles.values, given, input)
        log_g = target.log_potential(particles.values, after, input)
        return jax.random.categorical(key, particles.log_weights + log_moves + log_g)


def pinned(values: PyTree, given: PyTree) -> PyTree:
    """Returns the population with particle 0 replaced."""
    return jax.tree.map(lambda all, one: all.at[0].set(one), values, given)


def _changed(new: PyTree, old: PyTree) -> Float[Array, ""]:
    def by_time(new, old):
        return jnp.any((new != old).reshape(new.shape[0], -1), axis=1)

    each = jax.tree.leaves(jax.tree.map(by_time, new, old))
    return jnp.mean(1.0 * jnp.any(jnp.stack(each), axis=0))
