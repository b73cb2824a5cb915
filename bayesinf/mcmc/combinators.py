"""Kernels of kernels: one after another, one by lot, many times, one for each entry."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Bool, Float, Int, PyTree

from bayesinf.mcmc.state import State, init_state
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key, invariant, law

Names = str | tuple[str, ...]


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
    """What the kernel that was chosen reports, and which it was."""

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    diverged: Bool[Array, ""]
    chosen: Int[Array, ""]


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


def _step(kernel: Kernel, key: Key, target: Target, state: State) -> tuple[State, Any]:
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
            state, info = _step(kernel, child_key, target, state)
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

        def branch(kernel):
            def move(key, state):
                state, info = _step(kernel, key, target, state)
                return state, brief(info)

            return move

        state, info = jax.lax.switch(chosen, list(map(branch, self.kernels)), move_key, state)
        return state, MixtureInfo(*info, chosen)


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


class Conditional(eqx.Module):
    """The log terms of a target as a function of one entry of the position, or of several.

    Attributes:
        terms: the target's.
        rest: the position's other entries, which are held.
        names: the entry's name; a tuple of names for a dict of entries.
    """

    terms: Any
    rest: dict[str, PyTree]
    names: Names = eqx.field(static=True)

    def __call__(self, value: PyTree) -> Float[Array, " n"]:
        return self.terms({**self.rest, **named(self.names, value)})


@law(invariant)
class Block(eqx.Module):
    """Applies a kernel to one entry of a dict, or several, for their conditional."""

    names: Names = eqx.field(static=True)
    kernel: Kernel

    def init(self, target: Target, position: dict[str, PyTree]) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Any]:
        moved = entry(self.names, state.position)
        held = (self.names,) if isinstance(self.names, str) else self.names
        rest = {name: value for name, value in state.position.items() if name not in held}
        conditional = Target(Conditional(target.terms, rest, self.names), target.exponents)
        new, info = _step(self.kernel, key, conditional, State(moved, state.parts))
        return State({**rest, **named(self.names, new.position)}, new.parts), info


def entry(names: Names, position: dict[str, PyTree]) -> PyTree:
    """Returns what a block moves."""
    for name in (names,) if isinstance(names, str) else names:
        if not isinstance(position, dict) or name not in position:
            came = sorted(position) if isinstance(position, dict) else type(position).__name__
            raise ValueError(f"position: {came} came, a dict with {name!r} was expected")
    return position[names] if isinstance(names, str) else {name: position[name] for name in names}


def named(names: Names, value: PyTree) -> dict[str, PyTree]:
    """Returns the entries of a dict that a block has moved."""
    return {names: value} if isinstance(names, str) else value


@law(invariant)
def cycle(*kernels: Kernel) -> Cycle:
    """Returns the kernel that applies these in order.

    Law: invariant, if each is. Where they need gradients, these are computed anew after another
    kernel's move.
    """
    _some("kernels", kernels)
    return Cycle(kernels)


@law(invariant)
def mixture(probs: ArrayLike | Sequence[float | int], *kernels: Kernel) -> Mixture:
    """Returns the kernel that applies one of these, chosen in proportion to `probs`.

    Law: invariant, if each is; the choice must not look at the position. Under `vmap` all of them
    are computed.
    """
    _some("kernels", kernels)
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


@law(invariant)
def blocks(kernels: Mapping[Names, Kernel]) -> Cycle:
    """Returns the kernel that moves one entry of a dict after another, the rest held fixed.

    A tuple of names is a dict of these entries. A kernel's target is the conditional of its entry.

    Law: invariant, if each kernel is for its conditional. Paper: Metropolis within Gibbs, Tierney
    (1994), section 2.4.
    """
    _some("kernels", kernels)
    return Cycle(tuple(Block(names, kernel) for names, kernel in kernels.items()))


def _overall(infos: Summary) -> Summary:
    return Summary(jnp.mean(infos.acceptance), jnp.any(infos.invalid), jnp.any(infos.diverged))


def _some(name: str, kernels: Any) -> None:
    if len(kernels) == 0:
        raise ValueError(f"{name}: none came, at least one was expected")
