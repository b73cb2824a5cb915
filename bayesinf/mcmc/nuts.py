"""The no-U-turn sampler, without recursion: one loop over the leaves of all its trees."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
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

# Leaves whose uniforms are drawn at once: a hash a leaf would cost more than all its arithmetic.
_BLOCK = 32


class _Tree(NamedTuple):
    """What is kept of a stretch of trajectory.

    Attributes:
        draw: one of its points, in proportion to their density.
        log_weight: log of the sum of `exp(-energy)` over its points, relative to the start.
        total: sum of its points' momenta.
    """

    draw: Float[Array, " p"]
    log_weight: Float[Array, ""]
    total: Float[Array, " d"]


class _Loop(NamedTuple):
    """The loop's state: the tree so far, and the subtree that is to double it.

    A point is one vector here, since what is selected or copied costs the loop by the array.

    Attributes:
        first, last: the points at the tree's ends.
        head: the point from which the subtree goes on.
        levels: for each level of the subtree that is open, the momentum at its first leaf and the
            sum of the momenta up to there.
    """

    tree: _Tree
    first: Float[Array, " p"]
    last: Float[Array, " p"]
    subtree: _Tree
    head: Float[Array, " p"]
    levels: Float[Array, "depth 2 d"]
    depth: Int[Array, ""]
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
        begin, unpack = ravel_pytree(start)
        forwards = jax.random.bernoulli(direction_key, shape=(self.max_depth,))
        double_uniforms = jax.random.uniform(double_key, (self.max_depth,), x.dtype)

        def grow_block(loop: _Loop) -> _Loop:
            block_key, first = jax.random.fold_in(leaf_key, loop.num_steps), loop.num_steps
            uniforms = jax.random.uniform(block_key, (_BLOCK,), x.dtype)

            def goes_on(loop):
                return ~loop.finished & (loop.num_steps < first + _BLOCK)

            def body(loop):
                return grow(loop, _at(loop.num_steps - first, uniforms))

            return jax.lax.while_loop(goes_on, body, loop)

        def grow(loop: _Loop, uniform: Float[Array, ""]) -> _Loop:
            forward = _at(loop.depth, forwards)
            step_size = jnp.where(forward, self.step_size, -self.step_size)
            point = leapfrog(target, unflatten, step_size, self.scale, unpack(loop.head))
            head, momentum = ravel_pytree(point)[0], point.momentum
            log_weight = energy - point.energy(target)
            invalid = jnp.isnan(log_weight)
            log_weight = jnp.where(invalid, -jnp.inf, log_weight)
            diverged = ~(-log_weight < DIVERGENCE)
            subtree = _add_leaf(loop.subtree, head, momentum, log_weight, uniform)
            leaf = loop.num_steps + 1 - (1 << loop.depth)  # of the subtree, from 0
            levels = _open_level(leaf, loop.levels, momentum, subtree.total)
            turned = _closed_level_turned(leaf, levels, momentum, subtree.total)

            # A finished subtree is taken with its weight relative to what the tree had before.
            whole = (leaf + 1 == 1 << loop.depth) & ~turned & ~diverged
            share = jnp.exp(subtree.log_weight - loop.tree.log_weight)
            swap = whole & (_at(loop.depth, double_uniforms) < share)
            grown = _Tree(
                select(swap, subtree.draw, loop.tree.draw),
                jnp.logaddexp(subtree.log_weight, loop.tree.log_weight),
                subtree.total + loop.tree.total,
            )
            tree = select(whole, grown, loop.tree)
            first, last = select(forward, loop.first, head), select(forward, head, loop.last)
            depth = jnp.where(whole, loop.depth + 1, loop.depth)
            full_turn = whole & _turned(unpack(first).momentum, unpack(last).momentum, tree.total)
            head = select(whole, select(_at(depth, forwards), last, first), head)
            return _Loop(
                tree,
                first,
                last,
                select(whole, _empty(tree), subtree),
                head,
                levels,
                depth,
                turned | diverged | full_turn | (depth == self.max_depth),
                loop.diverged | diverged,
                loop.invalid | invalid,
                loop.acceptances + jnp.exp(jnp.minimum(log_weight, 0)),
                loop.num_steps + 1,
            )

        tree = _Tree(begin, jnp.zeros_like(energy), momentum)
        levels = jnp.zeros((self.max_depth, 2, x.size), x.dtype)
        zero, false = jnp.zeros((), int), jnp.zeros((), bool)
        loop = _Loop(
            tree,
            begin,
            begin,
            _empty(tree),
            begin,
            *(levels, zero, false, false, false, jnp.zeros_like(energy), zero),
        )
        loop = jax.lax.while_loop(lambda loop: ~loop.finished, grow_block, loop)
        draw = unpack(loop.tree.draw)
        acceptance = loop.acceptances / loop.num_steps.astype(x.dtype)
        info = HamiltonianInfo(acceptance, loop.invalid, loop.diverged, loop.num_steps)
        return GradState(unflatten(draw.x), draw.parts, draw.grads), info


def _at(index: Int[Array, ""], values: Array) -> Array:
    """Returns a value by a mask: where every chain has an index of its own, gathers and scatters
    cost the loop more than all its arithmetic."""
    here = jnp.arange(len(values)) == index
    return jnp.sum(jnp.where(here, values, jnp.zeros_like(values)), dtype=values.dtype)


def _empty(tree: _Tree) -> _Tree:
    return tree._replace(
        log_weight=jnp.full_like(tree.log_weight, -jnp.inf), total=jnp.zeros_like(tree.total)
    )


def _add_leaf(tree: _Tree, point, momentum, log_weight, uniform) -> _Tree:
    """Returns the tree with one more point, which is its draw with its share of the weight."""
    total = jnp.logaddexp(tree.log_weight, log_weight)
    chosen = uniform < jnp.exp(log_weight - total)
    return _Tree(jnp.where(chosen, point, tree.draw), total, tree.total + momentum)


def _open_level(leaf, levels, momentum, total) -> Float[Array, "depth 2 d"]:
    """Returns the open levels after this leaf: an even leaf opens the one of its number of ones."""
    opens = (leaf % 2 == 0) & (jnp.arange(len(levels)) == population_count(leaf >> 1))
    return jnp.where(opens[:, None, None], jnp.stack([momentum, total]), levels)


def _closed_level_turned(leaf, levels, momentum, total) -> Bool[Array, ""]:
    """Returns whether a balanced subtree that ends at this leaf has turned.

    An odd leaf closes as many as it has ones at its end in binary.
    """
    highest = population_count(leaf >> 1)
    num_closed = population_count(leaf & ~(leaf + 1))
    level = jnp.arange(len(levels))
    closed = (level <= highest) & (level > highest - num_closed)
    first, before = levels[:, 0], levels[:, 1] - levels[:, 0]
    return jnp.any(closed & jax.vmap(_turned, (0, None, 0))(first, momentum, total - before))


def _turned(first, last, total) -> Bool[Array, ""]:
    """Returns whether either end moves against the stretch between them; each counts half."""
    between = total - (first + last) / 2
    # Sums fuse with what is around them; products by `@` are calls of their own.
    return (jnp.sum(first * between) <= 0) | (jnp.sum(last * between) <= 0)
