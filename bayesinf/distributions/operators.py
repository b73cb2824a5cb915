"""Symmetric matrices by what they do: to a block of columns, on their diagonal, and as an array."""

import abc
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float


@runtime_checkable
class Operator(Protocol):
    """A symmetric matrix of size d, never formed unless `dense` is asked for."""

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]: ...

    def diagonal(self) -> Float[Array, " d"]: ...

    def dense(self) -> Float[Array, "d d"]: ...


class Outer(eqx.Module):
    """`A A^T` for the columns of A: the scatter of points."""

    columns: Float[Array, "d k"]

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return jnp.tensordot(self.columns, jnp.tensordot(self.columns.T, b, 1), 1)

    def diagonal(self) -> Float[Array, " d"]:
        return jnp.sum(self.columns**2, axis=1)

    def dense(self) -> Float[Array, "d d"]:
        return self.columns @ self.columns.T


class Total(eqx.Module):
    """A weighted sum of operators; each kind says how it takes a sum over them."""

    @abc.abstractmethod
    def total(self, f: Callable[[Any], Array]) -> Array:
        """Returns `sum_i w_i f(A_i)`."""

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return self.total(lambda each: each.matmul(b))

    def diagonal(self) -> Float[Array, " d"]:
        return self.total(lambda each: each.diagonal())

    def dense(self) -> Float[Array, "d d"]:
        return self.total(lambda each: each.dense())


class Sum(Total):
    """`sum_i w_i A_i` of a few operators; a weight may be negative."""

    weights: Sequence[Any]
    operators: Sequence[Any]

    def total(self, f):
        pairs = zip(self.weights, self.operators, strict=True)
        return reduce(jnp.add, [weight * f(each) for weight, each in pairs])


class Stacked(Total):
    """`sum_i w_i A_i` of operators stacked on a leading axis, as `vmap` returns them."""

    weights: Float[Array, " n"]
    operators: Any

    def total(self, f):
        return jnp.tensordot(self.weights, jax.vmap(f)(self.operators), 1)


class Restricted(eqx.Module):
    """The block of an operator on the coordinates from `start` to `start + size`."""

    operator: Any
    start: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def matmul(self, b: Float[Array, "s *n"]) -> Float[Array, "s *n"]:
        dim = self.operator.diagonal().shape[0]
        after = dim - self.start - self.size
        padded = jnp.pad(b, [(self.start, after), *[(0, 0)] * (b.ndim - 1)])
        return self.operator.matmul(padded)[self.start : self.start + self.size]

    def diagonal(self) -> Float[Array, " s"]:
        return self.operator.diagonal()[self.start : self.start + self.size]

    def dense(self) -> Float[Array, "s s"]:
        return self.matmul(jnp.eye(self.size, dtype=self.operator.diagonal().dtype))


def rows(diag: Float[Array, " d"], b: Float[Array, "d *n"]) -> Array:
    """Returns `diag` shaped so that it multiplies the rows of `b`."""
    return diag.reshape(-1, *(1,) * (b.ndim - 1))


def floats(name: str, x: ArrayLike, ndim: int) -> Array:
    """Returns an array of floats, after a look at its shape."""
    x = jnp.asarray(x)
    if x.ndim != ndim or 0 in x.shape[:1]:
        raise ValueError(f"{name}: shape {x.shape} came, {ndim} axes were expected, none empty")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def positive(name: str, values: ArrayLike) -> None:
    """Raises `ValueError` unless all values are finite and positive."""
    values = np.asarray(values)
    if not np.isfinite(values).all() or values.min() <= 0:
        raise ValueError(f"{name}: {values.min()} came, finite and > 0 was expected")
