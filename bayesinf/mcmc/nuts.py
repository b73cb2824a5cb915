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
# Each has three: to be its subtree's draw, to hand on the subtree's, and which way the next grows.
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


class _Levels(NamedTuple):
    """The stretches of the subtree that are open, one a level.

    Two arrays, not one: a CPU runs a loop without a scheduler if all its arrays are below half a
    kilobyte, which takes half the time.

    Attributes:
        first: momentum at the stretch's first leaf.
        before: sum of the subtree's momenta before it.
    """

    first: Float[Array, "depth d"]
    before: Float[Array, "depth d"]


class _Loop(NamedTuple):
    """The loop's state: the tree so far, and the subtree that is to double it.

    A point is one vector here, since what is selected or copied costs the loop by the array.

    Attributes:
        first, last: the points at the tree's ends.
        head: the point from which the subtree goes on, and whether it goes forwards.
    """

    tree: _Tree
    first: Float[Array, " p"]
    last: Float[Array, " p"]
    subtree: _Tree
    head: Float[Array, " p"]
    forward: Bool[Array, ""]
    levels: _Levels
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
        momentum_key, leaf_key = jax.random.split(key)
        x, unflatten = flatten(state.position)
        momentum = jax.random.normal(momentum_key, x.shape, x.dtype)
        start = Point(x, momentum, state.parts, state.grads)
        energy = start.energy(target)
        begin, unpack = ravel_pytree(start)

        def grow_block(loop: _Loop) -> _Loop:
            block_key, first = jax.random.fold_in(leaf_key, loop.num_steps), loop.num_steps
            uniforms = jax.random.uniform(block_key, (3, _BLOCK), x.dtype)

            def goes_on(loop):
                return ~loop.finished & (loop.num_steps < first + _BLOCK)

            def body(loop):
                return grow(loop, _at(loop.num_steps - first, uniforms))

            return jax.lax.while_loop(goes_on, body, loop)

        def grow(loop: _Loop, uniforms: Float[Array, "3"]) -> _Loop:
            forward = loop.forward
            step_size = jnp.where(forward, self.step_size, -self.step_size)
            point = leapfrog(target, unflatten, step_size, self.scale, unpack(loop.head))
            head, momentum = ravel_pytree(point)[0], point.momentum
            log_weight = energy - point.energy(target)
            invalid = jnp.isnan(log_weight)
            log_weight = jnp.where(invalid, -jnp.inf, log_weight)
            diverged = ~(-log_weight < DIVERGENCE)
            subtree = _add_leaf(loop.subtree, head, momentum, log_weight, uniforms[0])
            leaf = loop.num_steps + 1 - (1 << loop.depth)  # of the subtree, from 0
            levels = _open_level(leaf, loop.levels, momentum, loop.subtree.total)
            turned = _closed_level_turned(leaf, levels, momentum, subtree.total)

            # A finished subtree is taken with its weight relative to what the tree had before.
            whole = (leaf + 1 == 1 << loop.depth) & ~turned & ~diverged
            share = jnp.exp(subtree.log_weight - loop.tree.log_weight)
            swap = whole & (uniforms[1] < share)
            grown = _Tree(
                select(swap, subtree.draw, loop.tree.draw),
                jnp.logaddexp(subtree.log_weight, loop.tree.log_weight),
                subtree.total + loop.tree.total,
            )
            tree = select(whole, grown, loop.tree)
            first, last = select(forward, loop.first, head), select(forward, head, loop.last)
            depth = jnp.where(whole, loop.depth + 1, loop.depth)
            full_turn = whole & _turned(unpack(first).momentum, unpack(last).momentum, tree.total)
            forward = jnp.where(whole, uniforms[2] < 0.5, forward)
            head = select(whole, select(forward, last, first), head)
            return _Loop(
                tree,
                first,
                last,
                select(whole, _empty(tree), subtree),
                head,
                forward,
                levels,
                depth,
                turned | diverged | full_turn | (depth == self.max_depth),
                loop.diverged | diverged,
                loop.invalid | invalid,
                loop.acceptances + jnp.exp(jnp.minimum(log_weight, 0)),
                loop.num_steps + 1,
            )

        tree = _Tree(begin, jnp.zeros_like(energy), momentum)
        levels = _Levels(*(jnp.zeros((self.max_depth, x.size), x.dtype) for _ in _Levels._fields))
        zero, false, true = jnp.zeros((), int), jnp.zeros((), bool), jnp.ones((), bool)
        loop = _Loop(
            tree,
            begin,
            begin,
            _empty(tree),
            begin,
            # The momentum's sign is the first coin.
            *(true, levels, zero, false, false, false, jnp.zeros_like(energy), zero),
        )
        loop = jax.lax.while_loop(lambda loop: ~loop.finished, grow_block, loop)
        draw = unpack(loop.tree.draw)
        acceptance = loop.acceptances / loop.num_steps.astype(x.dtype)
        info = HamiltonianInfo(acceptance, loop.invalid, loop.diverged, loop.num_steps)
        return GradState(unflatten(draw.x), draw.parts, draw.grads), info


def _at(index: Int[Array, ""], columns: Float[Array, "k n"]) -> Float[Array, " k"]:
    """Returns a column by a mask: where every chain has an index of its own, gathers and scatters
    cost the loop more than all its arithmetic."""
    here = jnp.arange(columns.shape[1]) == index
    return jnp.sum(jnp.where(here, columns, 0), axis=1)


def _empty(tree: _Tree) -> _Tree:
    return tree._replace(
        log_weight=jnp.full_like(tree.log_weight, -jnp.inf), total=jnp.zeros_like(tree.total)
    )


def _add_leaf(tree: _Tree, point, momentum, log_weight, uniform) -> _Tree:
    """Returns the tree with one more point, which is its draw with its share of the weight."""
    total = jnp.logaddexp(tree.log_weight, log_weight)
    chosen = uniform < jnp.exp(log_weight - total)
    return _Tree(jnp.where(chosen, point, tree.draw), total, tree.total + momentum)


def _open_level(leaf, levels: _Levels, momentum, before) -> _Levels:
    """Returns the open levels after this leaf: an even leaf opens the one of its number of ones."""
    level = jnp.arange(len(levels.first))
    opens = ((leaf % 2 == 0) & (level == population_count(leaf >> 1)))[:, None]
    return _Levels(
        jnp.where(opens, momentum, levels.first), jnp.where(opens, before, levels.before)
    )


def _closed_level_turned(leaf, levels: _Levels, momentum, total) -> Bool[Array, ""]:
    """Returns whether a balanced subtree that ends at this leaf has turned.

    An odd leaf closes as many as it has ones at its end in binary.
    """
    highest = population_count(leaf >> 1)
    num_closed = population_count(leaf & ~(leaf + 1))
    level = jnp.arange(len(levels.first))
    closed = (level <= highest) & (level > highest - num_closed)
    turned = jax.vmap(_turned, (0, None, 0))(levels.first, momentum, total - levels.before)
    return jnp.any(closed & turned)


def _turned(first, last, total) -> Bool[Array, ""]:
    """Returns whether either end moves against the stretch between them; each counts half."""
    between = total - (first + last) / 2
    # Sums fuse with what is around them; products by `@` are calls of their own.
    return (jnp.sum(first * between) <= 0) | (jnp.sum(last * between) <= 0)
