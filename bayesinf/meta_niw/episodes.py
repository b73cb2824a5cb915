"""Episodes: the data of one small task, padded to a common number of rows by a mask."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Bool, Shaped

from bayesinf.types import Key

Rows = ArrayLike | Sequence


class Episode(NamedTuple):
    """The rows of one task; support and query are two of them. Many stand on leading axes.

    Attributes:
        x: inputs, a row each.
        y: outputs, a row each: numbers for a regression, labels for a classification.
        mask: which rows are there. What stands in the others counts for nothing.
    """

    x: Shaped[Array, "..."]
    y: Shaped[Array, "..."]
    mask: Bool[Array, "*n k"]


def episode(x: Rows, y: Rows, mask: Rows | None = None) -> Episode:
    """Returns the episode of k rows; the door for data.

    A row that the mask hides may hold anything, NaN included: it becomes a copy of one that is
    there, since what a network can take may be narrower than the numbers. No rows at all become
    one that is hidden.

    Raises:
        ValueError: x and y differ in their number of rows, the mask is no row of truths, or a row
            that is there holds NaN or an infinity.
    """
    x, y = np.asarray(x), np.asarray(y)
    for name, rows in (("x", x), ("y", y)):
        if not (np.issubdtype(rows.dtype, np.number) or rows.dtype == bool):
            raise ValueError(f"{name}: dtype {rows.dtype} came, numbers were expected")
        if rows.ndim == 0:
            raise ValueError(f"{name}: a scalar came, an array with a row for each datum expected")
    if len(x) != len(y):
        raise ValueError(f"y: {len(y)} rows came, the {len(x)} of x were expected")
    mask = np.ones(len(x), bool) if mask is None else np.asarray(mask)
    if mask.shape != x.shape[:1]:
        raise ValueError(f"mask: shape {mask.shape} came, {x.shape[:1]} was expected")
    if mask.dtype != bool:
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("mask: numbers other than 0 and 1 came, truths were expected")
        mask = mask.astype(bool)
    for name, rows in (("x", x), ("y", y)):
        bad = mask & ~_finite(rows)
        if bad.any():
            raise ValueError(
                f"{name}: NaN or an infinity came in row {np.argmax(bad)}, finite was expected; "
                "hide rows that are missing by the mask"
            )
    one = Episode(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))
    # With nothing to hide, no program need be compiled for this number of rows.
    return one if mask.size and mask.all() else hide(one, one.mask)


def batch(episodes: Sequence[Episode]) -> Episode:
    """Returns ragged episodes on a leading axis, padded to the longest by hidden rows.

    Raises:
        ValueError: there are none, or their rows differ in shape.
    """
    if len(episodes) == 0:
        raise ValueError("episodes: none came, at least one was expected")
    xs, ys, masks = zip(*(map(np.asarray, one) for one in episodes), strict=True)
    for name, rows in (("x", xs), ("y", ys)):
        shapes = sorted({each.shape[1:] for each in rows})
        if len(shapes) > 1:
            raise ValueError(f"episodes: rows of {name} of shapes {shapes} came, one was expected")
    longest = max(map(len, masks))

    def padded(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        copies = np.repeat(rows[np.argmax(mask), None], longest - len(rows), 0)
        return np.concatenate([rows, copies])

    def stacked(all_rows: Sequence[np.ndarray]) -> Array:
        return jnp.asarray(np.stack(list(map(padded, all_rows, masks))))

    there = [np.pad(mask, (0, longest - len(mask))) for mask in masks]
    return Episode(stacked(xs), stacked(ys), jnp.asarray(np.stack(there)))


def split(key: Key, episodes: Episode, num_support: int) -> tuple[Episode, Episode]:
    """Returns support and query: `num_support` random rows of each episode, and the others.

    Where an episode has fewer rows that are there, its support has those and its query none.

    Raises:
        ValueError: `num_support` leaves no row to one of the two.
    """
    num_rows = episodes.mask.shape[-1]
    if not 0 < num_support < num_rows:
        raise ValueError(
            f"num_support: {num_support} came, between 1 and {num_rows - 1} was expected"
        )
    # Rows that are hidden go last.
    ranks = jnp.where(episodes.mask, jax.random.uniform(key, episodes.mask.shape), 2)
    order = jnp.argsort(ranks, axis=-1)

    def take(rows: Array) -> Array:
        wide = order.reshape(*order.shape, *(1,) * (rows.ndim - order.ndim))
        return jnp.take_along_axis(rows, wide, axis=order.ndim - 1)

    axis = order.ndim - 1
    halves = [jnp.split(take(rows), [num_support], axis=axis) for rows in episodes]
    support, query = zip(*halves, strict=True)
    return Episode(*support), Episode(*query)


def hide(one: Episode, valid: Bool[Array, "*n k"]) -> Episode:
    """Returns the episode without the rows that are not valid, whose places hold copies of one
    that is: a value that no network can take stays out of every gradient too."""
    mask = one.mask & valid
    if mask.shape[-1] == 0:
        lead, axis = (*mask.shape[:-1], 1), mask.ndim
        x, y = (jnp.zeros((*lead, *rows.shape[axis:]), rows.dtype) for rows in (one.x, one.y))
        return Episode(x, y, jnp.zeros(lead, bool))
    place = jnp.argmax(mask, axis=-1, keepdims=True)

    def fill(rows: Array) -> Array:
        extra = (1,) * (rows.ndim - mask.ndim)
        wide = mask.reshape(*mask.shape, *extra)
        first = jnp.take_along_axis(rows, place.reshape(*place.shape, *extra), axis=mask.ndim - 1)
        any_there = jnp.any(wide, axis=mask.ndim - 1, keepdims=True)
        return jnp.where(wide, rows, jnp.where(any_there, first, jnp.zeros_like(first)))

    return Episode(fill(one.x), fill(one.y), mask)


def finite_rows(rows: Shaped[Array, "..."], num_axes: int) -> Bool[Array, "..."]:
    """Returns which rows hold finite numbers only; rows stand on the first `num_axes` axes."""
    if not jnp.issubdtype(rows.dtype, jnp.inexact):
        return jnp.ones(rows.shape[:num_axes], bool)
    return jnp.all(jnp.isfinite(rows), axis=tuple(range(num_axes, rows.ndim)))


def _finite(rows: np.ndarray) -> np.ndarray | np.bool_:
    if not np.issubdtype(rows.dtype, np.inexact):
        return np.ones(len(rows), bool)
    return np.all(np.isfinite(rows), axis=tuple(range(1, rows.ndim)))
