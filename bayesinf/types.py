"""The vocabulary that every subpackage shares: keys, laws, and the check of values at the door."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Key as _Key

Key = _Key[Array, ""]
"""One typed key (`jax.random.key`), passed first and used once."""


@runtime_checkable
class HasValues(Protocol):
    """What `checked` takes: it knows how to look at its own values."""

    def check_values(self, name: str) -> None: ...


T = TypeVar("T", bound=HasValues)


def checked(x: T, name: str) -> T:
    """Returns `x` after a look at its values, unless they are traced and not known.

    Constructors check shapes, which are known when traced; values are known only at the door of
    `run`, `load`, `from_*` and the command line, which call this.

    Raises:
        ValueError: names the argument, what came and what was expected.
    """
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)):
        x.check_values(name)
    return x


def require(condition: bool | Array, message: str) -> None:
    """Raises `ValueError(message)` unless `condition`, a value that is known now, holds."""
    if not bool(jnp.all(jnp.asarray(condition))):
        raise ValueError(message)


class Law(NamedTuple):
    """What a block claims of the measures that it maps between; `validation` checks it.

    Attributes:
        name: the law.
        meaning: the law as an equation; m(r) is the unnormalised measure that r stands for.
    """

    name: str
    meaning: str


preserves = Law("preserves", "m(T(r)) = m(r)")
proper = Law("proper", "E[Z sum_i W_i f(x_i)] = integral of f d target, for every f")
invariant = Law("invariant", "pi K = pi, the target is left as it is")
reweights = Law("reweights", "m(T(r)) = g . m(r)")
calibrated = Law("calibrated", "ranks of the truth under the posterior are uniform over the priors")
consistent = Law("consistent", "exact as N grows; the bias at finite N is measured")

B = TypeVar("B", bound=Callable[..., Any])


def law(claim: Law) -> Callable[[B], B]:
    """Returns the decorator that declares the law of a block, or of what a block returns."""

    def declare(block: B) -> B:
        block.__law__ = claim  # pyright: ignore[reportFunctionMemberAccess]
        return block

    return declare


def no_law(reason: str) -> Callable[[B], B]:
    """Returns the decorator that says in one line why a public callable has no law."""

    def declare(block: B) -> B:
        block.__law__ = reason  # pyright: ignore[reportFunctionMemberAccess]
        return block

    return declare


def law_of(block: Any) -> Law | str:
    """Returns a block's law, or the reason why it has none.

    Raises:
        ValueError: the block declares neither.
    """
    found = getattr(block, "__law__", None)
    if found is None:
        name = getattr(block, "__name__", type(block).__name__)
        raise ValueError(f"{name}: no law is declared; decorate it with `law` or `no_law`")
    return found


@runtime_checkable
class Kernel(Protocol):
    """A Markov kernel: a pytree of its hyper-parameters that takes its target at every call.

    A state is a pytree with the attribute `position`; it keeps the terms of the target there and
    never their sum, so that `step` may be given the target at another temperature. Where the data
    change, `init` makes a new one. An info has `acceptance`, the probability with which the move
    was accepted, and `invalid`, whether the density of the proposal was NaN (it is then rejected).
    """

    def init(self, target: Any, position: Any) -> Any: ...

    def step(self, key: Key, target: Any, state: Any) -> tuple[Any, Any]: ...
