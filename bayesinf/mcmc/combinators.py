"""Kernels of kernels: one after another, one by lot, many times."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Bool, Float, Int, PyTree

from bayesinf.mcmc.state import State
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key, invariant, law


class Summary(NamedTuple):
    """What a kernel of kernels reports of all of them.

    Attributes:
        acceptance: their mean.
        invalid, diverged: whether any of them was.
    """

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    diverged: Bool[Array, ""]


class CycleInfo(NamedTuple):
    """A `Summary`, and in `each` what every kernel reports."""

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    diverged: Bool[Array, ""]
    each: tuple[Any, ...]


class RepeatInfo(NamedTuple):
    """A `Summary` of all steps, and in `last` what the last one reports."""

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    diverged: Bool[Array, ""]
    last: Any


class MixtureInfo(NamedTuple):
    """What the kernel that was chosen reports, which it was, and in `each` its own report, beside
    zeros for the others."""

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    diverged: Bool[Array, ""]
    chosen: Int[Array, ""]
    each: tuple[Any, ...]


def brief(info: Any) -> Summary:
    """Returns what all kernels report."""
    diverged = getattr(info, "diverged", None)
    diverged = jnp.zeros(jnp.shape(info.invalid), bool) if diverged is None else diverged
    return Summary(info.acceptance, info.invalid, diverged)


def enter(kernel: Kernel, target: Target, state: State) -> Any:
    """Returns the kernel's own state at the position of a common one.

    Where the kernel keeps nothing but the position and the target's terms it is the common one;
    else it is made anew, so that no gradient or density of an earlier position stays.
    """
    own = jax.eval_shape(lambda state: kernel.init(target, state.position), state)
    return state if type(own) is State else kernel.init(target, state.position)


def leave(target: Target, state: Any) -> State:
    """Returns the common state after a kernel's own."""
    parts = state.parts if hasattr(state, "parts") else target.parts(state.position)
    return State(state.position, parts)


def advance(kernel: Kernel, key: Key, target: Target, state: State) -> tuple[State, Any]:
    """Returns the common state after a step of the kernel, and its info."""
    own, info = kernel.step(key, target, enter(kernel, target, state))
    return leave(target, own), info


@law(invariant)
class Cycle(eqx.Module):
    """Applies kernels in order; `cycle` makes one."""

    kernels: tuple[Kernel, ...]

    def init(self, target: Target, position: PyTree) -> State:
        return leave(target, self.kernels[0].init(target, position))

    def step(self, key: Key, target: Target, state: State) -> tuple[State, CycleInfo]:
        infos = []
        for kernel, child_key in zip(
            self.kernels, jax.random.split(key, len(self.kernels)), strict=True
        ):
            state, info = advance(kernel, child_key, target, state)
            infos.append(info)
        briefs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(brief, infos))
        return state, CycleInfo(*_overall(briefs), tuple(infos))


@law(invariant)
class Mixture(eqx.Module):
    """Applies one kernel, chosen by lot; `mixture` makes one."""

    log_probs: Float[Array, " k"]
    kernels: tuple[Kernel, ...]

    def init(self, target: Target, position: PyTree) -> State:
        return leave(target, self.kernels[0].init(target, position))

    def step(self, key: Key, target: Target, state: State) -> tuple[State, MixtureInfo]:
        choose_key, move_key = jax.random.split(key)
        chosen = jax.random.categorical(choose_key, self.log_probs)

        def report(kernel):
            shapes = jax.eval_shape(lambda: advance(kernel, move_key, target, state)[1])
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        none = list(map(report, self.kernels))

        def branch(index):
            def move(key, state):
                state, info = advance(self.kernels[index], key, target, state)
                return state, brief(info), (*none[:index], info, *none[index + 1 :])

            return move

        moves = list(map(branch, range(len(self.kernels))))
        state, info, each = jax.lax.switch(chosen, moves, move_key, state)
        return state, MixtureInfo(*info, chosen, each)


@law(invariant)
class Repeat(eqx.Module):
    """Applies one kernel many times; `repeat` makes one."""

    kernel: Kernel
    num: int = eqx.field(static=True)

    def init(self, target: Target, position: PyTree) -> Any:
        return self.kernel.init(target, position)

    def step(self, key: Key, target: Target, state: Any) -> tuple[Any, RepeatInfo]:
        def move(state, key):
            return self.kernel.step(key, target, state)

        state, infos = jax.lax.scan(move, state, jax.random.split(key, self.num))
        last = jax.tree.map(lambda leaf: leaf[-1], infos)
        return state, RepeatInfo(*_overall(brief(infos)), last)


@law(invariant)
def cycle(*kernels: Kernel) -> Cycle:
    """Returns the kernel that applies these in order.

    Law: invariant, if each is. Where they need gradients, these are computed anew after another
    kernel's move.
    """
    some("kernels", kernels)
    return Cycle(kernels)


@law(invariant)
def mixture(probs: ArrayLike | Sequence[float | int], *kernels: Kernel) -> Mixture:
    """Returns the kernel that applies one of these, chosen in proportion to `probs`.

    Law: invariant, if each is; the choice must not look at the position. Under `vmap` all of them
    are computed.
    """
    some("kernels", kernels)
    probs = jnp.asarray(probs)
    if probs.shape != (len(kernels),):
        raise ValueError(
            f"probs: shape {probs.shape} came, ({len(kernels)},) was expected, one a kernel"
        )
    return Mixture(jnp.log(probs.astype(jnp.result_type(probs, 0.0))), kernels)


@law(invariant)
def repeat(kernel: Kernel, num: int) -> Repeat:
    """Returns the kernel that applies this one `num` times.

    Law: invariant, if it is.
    """
    if num < 1:
        raise ValueError(f"num: {num} came, at least 1 was expected")
    return Repeat(kernel, num)


def _overall(infos: Summary) -> Summary:
    return Summary(jnp.mean(infos.acceptance), jnp.any(infos.invalid), jnp.any(infos.diverged))


def some(name: str, kernels: Any) -> None:
    if len(kernels) == 0:
        raise ValueError(f"{name}: none came, at least one was expected")
