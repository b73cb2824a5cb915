"""Kernels on the entries of a position, each moved for its conditional with the rest held."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from bayesinf.mcmc.combinators import Cycle, advance, some
from bayesinf.mcmc.state import State, init_state
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key, invariant, law

Names = str | tuple[str, ...]


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


def rest_of(target: Target, kernel: str) -> dict[str, PyTree]:
    """Returns the entries of the position that a block's target holds.

    Raises:
        ValueError: the target is not that of a block.
    """
    if not isinstance(target.terms, Conditional):
        raise ValueError(
            "target: one without a rest came, the conditional of an entry was expected; use "
            f'{kernel} in blocks, as in blocks({{"z": {kernel}}})'
        )
    return target.terms.rest


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
        new, info = advance(self.kernel, key, conditional, State(moved, state.parts))
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
def blocks(kernels: Mapping[Names, Kernel]) -> Cycle:
    """Returns the kernel that moves one entry of a dict after another, the rest held fixed.

    A tuple of names is a dict of these entries. A kernel's target is the conditional of its entry.

    Law: invariant, if each kernel is for its conditional. Paper: Metropolis within Gibbs, Tierney
    (1994), section 2.4.
    """
    some("kernels", kernels)
    return Cycle(tuple(Block(names, kernel) for names, kernel in kernels.items()))
