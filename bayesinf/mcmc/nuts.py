"""The no-U-turn sampler, without recursion: one loop over the leaves of all its trees."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import population_count
from jaxtyping import Bool, Float, Int, PyTree

from bayesinf.mcmc.hmc import DIVERGENCE, Point, leapfrog
from bayesinf.mcmc.state import (
    GradState,
    HamiltonianInfo,
    flatten,
    init_grad_state,
    real,
    select,
)
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


class _Draw(NamedTuple):
    """A point drawn from a trajectory in proportion to its density."""

    x: Float[Array, " d"]
    parts: Float[Array, " n"]
    grads: Float[Array, "n d"]


class _Tree(NamedTuple):
    """What is kept of a stretch of trajectory.

    Attributes:
        draw: one of its points.
        log_weight: log of the sum of `exp(-energy)` over its points, relative to the start.
        total: sum of its points' momenta.
    """

    draw: _Draw
    log_weight: Float[Array, ""]
    total: Float[Array, " d"]


class _Loop(NamedTuple):
    """The loop's state: the tree so far, and the subtree that is to double it.

    Attributes:
        ends: the first and last point of the tree, stacked.
        head: the point from which the subtree goes on.
        starts, totals: for each level of the subtree that is open, the momentum at its first leaf
            and the sum up to there.
    """

    tree: _Tree
    ends: Point
    subtree: _Tree
    head: Point
    starts: Float[Array, "depth d"]
    totals: Float[Array, "depth d"]
    depth: Int[Array, ""]
    leaf: Int[Array, ""]
    finished: Bool[Array, ""]
    diverged: Bool[Array, ""]
    invalid: Bool[Array, ""]
    acceptances: Float[Array, ""]
    num_steps: Int[Array, ""]


@law(invariant)
class NUTS(eqx.Module):
    """Doubles a trajectory, forwards or backwards by coin, until its ends turn towards each other,
    and draws one of its points.

    Points are drawn in proportion to their density, the new half preferred, and turning is judged
    by the sum of the momenta. Its `acceptance` is the mean over the trajectory's points.

    Law: invariant. Paper: Hoffman and Gelman (2014), with Betancourt (2017), appendix A; the loop
    in place of the recursion is Phan, Pradhan and Jankowiak (2019), algorithm 2.

    Attributes:
        step_size, scale: as in `HMC`; `sample` adapts both.
        max_depth: a trajectory has at most `2^max_depth - 1` steps.
    """

    step_size: Float[Array, ""] = eqx.field(converter=real, default=1.0)
    scale: PyTree = eqx.field(converter=real, default=1.0)
    max_depth: int = eqx.field(static=True, default=10)
    target_acceptance: ClassVar[float] = 0.8

    def init(self, target: Target, position: PyTree) -> GradState:
        return init_grad_state(target, position)

    def step(self, key: Key, target: Target, state: GradState) -> tuple[GradState, HamiltonianInfo]:
        momentum_key, direction_key, leaf_key, double_key = jax.random.split(key, 4)
        x, unflatten = flatten(state.position)
        momentum = jax.random.normal(momentum_key, x.shape, x.dtype)
        start = Point(x, momentum, state.parts, state.grads)
        energy = start.energy(target)
        forwards = jax.random.bernoulli(direction_key, shape=(self.max_depth,)).astype(int)
        log_uniforms = jnp.log(jax.random.uniform(double_key, (self.max_depth,), x.dtype))

        def grow(loop: _Loop) -> _Loop:
            forward = forwards[loop.depth]
            step_size = jnp.where(forward == 1, self.step_size, -self.step_size)
            head = leapfrog(target, unflatten, step_size, self.scale, loop.head)
            log_weight = energy - head.energy(target)
            invalid = jnp.isnan(log_weight)
            log_weight = jnp.where(invalid, -jnp.inf, log_weight)
            diverged = ~(-log_weight < DIVERGENCE)
            log_uniform = _log_uniform(jax.random.fold_in(leaf_key, loop.num_steps), log_weight)
            subtree = _add_leaf(loop.subtree, head, log_weight, log_uniform)
            starts, totals = _open_levels(loop, head.momentum, subtree.total)
            turned = _closed_level_turned(loop.leaf, starts, totals, head.momentum, subtree.total)

            # A finished subtree is taken with its weight relative to what the tree had before.
            whole = (loop.leaf + 1 == 1 << loop.depth) & ~turned & ~diverged
            swap = whole & (log_uniforms[loop.depth] < subtree.log_weight - loop.tree.log_weight)
            grown = _Tree(
                select(swap, subtree.draw, loop.tree.draw),
                jnp.logaddexp(subtree.log_weight, loop.tree.log_weight),
                subtree.total + loop.tree.total,
            )
            tree = select(whole, grown, loop.tree)
            ends = jax.tree.map(lambda both, one: both.at[forward].set(one), loop.ends, head)
            depth = jnp.where(whole, loop.depth + 1, loop.depth)
            last = depth == self.max_depth
            full_turn = whole & _turned(ends.momentum[0], ends.momentum[1], tree.total)
            following = forwards[jnp.minimum(depth, self.max_depth - 1)]
            return _Loop(
                tree,
                ends,
                select(whole, _empty(tree), subtree),
                select(whole, jax.tree.map(lambda both: both[following], ends), head),
                starts,
                totals,
                depth,
                jnp.where(whole, 0, loop.leaf + 1),
                turned | diverged | full_turn | last,
                loop.diverged | diverged,
                loop.invalid | invalid,
                loop.acceptances + jnp.exp(jnp.minimum(log_weight, 0)),
                loop.num_steps + 1,
            )

        tree = _Tree(_Draw(x, state.parts, state.grads), jnp.zeros_like(energy), momentum)
        levels = jnp.zeros((self.max_depth, *x.shape), x.dtype)
        zero, false = jnp.zeros((), int), jnp.zeros((), bool)
        loop = _Loop(
            tree,
            jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start),
            _empty(tree),
            start,
            *(levels, levels, zero, zero, false, false, false, jnp.zeros_like(energy), zero),
        )
        loop = jax.lax.while_loop(lambda loop: ~loop.finished, grow, loop)
        draw = loop.tree.draw
        acceptance = loop.acceptances / loop.num_steps.astype(x.dtype)
        info = HamiltonianInfo(acceptance, loop.invalid, loop.diverged, loop.num_steps)
        return GradState(unflatten(draw.x), draw.parts, draw.grads), info


def _log_uniform(key: Key, like: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.log(jax.random.uniform(key, (), like.dtype))


def _empty(tree: _Tree) -> _Tree:
    return tree._replace(
        log_weight=jnp.full_like(tree.log_weight, -jnp.inf), total=jnp.zeros_like(tree.total)
    )


def _add_leaf(tree: _Tree, point: Point, log_weight, log_uniform) -> _Tree:
    """Returns the tree with one more point, which is its draw with its share of the weight."""
    total = jnp.logaddexp(tree.log_weight, log_weight)
    chosen = log_uniform < log_weight - total
    draw = select(chosen, _Draw(point.x, point.parts, point.grads), tree.draw)
    return _Tree(draw, total, tree.total + point.momentum)


def _open_levels(loop: _Loop, momentum, total):
    """Returns the open levels after this leaf: an even leaf opens the one of its number of ones."""
    level = population_count(loop.leaf >> 1)
    opens = loop.leaf % 2 == 0
    return (
        loop.starts.at[level].set(jnp.where(opens, momentum, loop.starts[level])),
        loop.totals.at[level].set(jnp.where(opens, total, loop.totals[level])),
    )


def _closed_level_turned(leaf, starts, totals, momentum, total) -> Bool[Array, ""]:
    """Returns whether a balanced subtree that ends at this leaf has turned.

    An odd leaf closes as many as it has ones at its end in binary.
    """
    highest = population_count(leaf >> 1)
    num_closed = population_count(leaf & ~(leaf + 1))
    level = jnp.arange(starts.shape[0])
    closed = (level <= highest) & (level > highest - num_closed)
    turned = jax.vmap(_turned, (0, None, 0))(starts, momentum, total - totals + starts)
    return jnp.any(closed & turned)


def _turned(first, last, total) -> Bool[Array, ""]:
    """Returns whether either end moves against the stretch between them; each counts half."""
    between = total - (first + last) / 2
    return (first @ between <= 0) | (last @ between <= 0)
