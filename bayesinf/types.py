"""The vocabulary that every subpackage shares: keys, and the check of values at the door."""

from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Key as _Key

Key = _Key[Array, ""]
"""One typed key (`jax.random.key`), passed first and used once."""


@runtime_checkable
class HasValues(Protocol):
    """What `checked` takes: it knows how to look at its own values."""

    def check_values(self, name: str) -> None: ...


T = TypeVar("T", bound=HasValues)


def checked(x: T, name: str) -> T:
    """Returns `x` after a look at its values, outside of any trace.

    Constructors check shapes, which are known when traced; values are known only at the door of
    `run`, `load`, `from_*` and the command line, which call this.

    Raises:
        ValueError: names the argument, what came and what was expected.
    """
    x.check_values(name)
    return x


def require(condition: bool | Array, message: str) -> None:
    """Raises `ValueError(message)` unless `condition`, a value that is known now, holds."""
    if not bool(jnp.all(jnp.asarray(condition))):
        raise ValueError(message)
