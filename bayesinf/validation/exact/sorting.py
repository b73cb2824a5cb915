"""Sorts of uniforms, sorted ones and numbers.

Two uniforms whose ranges are apart are in order. Others are cut, at all numbers of their row and at
the ends of each other's ranges, until two ranges are either apart or the same; uniforms with the
same range and the same law are then in any order with the same probability.
"""

import math

import numpy as np

from bayesinf.validation.exact import decisions, spacings
from bayesinf.validation.exact.draws import arrangements
from bayesinf.validation.exact.uniforms import alike_uniforms, evaluate, root
from bayesinf.validation.exact.values import UNIFORM, Known, Refused, Value, opaque

# Ends of ranges that differ by less are the same.
_ROUNDING = 64 * np.finfo(float).eps


def _check(eqn, inputs: list[Value]):
    if eqn.params["num_keys"] != 1 or not all(isinstance(x, Known) for x in inputs[1:]):
        raise Refused("a sort of uniforms that takes others along")


def _sort_sorted(machine, eqn, inputs):
    """Sorts uniforms that were sorted before, and numbers, by asking each pair of them."""
    _check(eqn, inputs)
    axis = eqn.params["dimension"] + 1
    rows = np.moveaxis(inputs[0].array, axis, -1)
    if np.any(np.isnan(rows["a"])):
        raise Refused("a sort of uniforms and what is not a number")
    with machine.worlds.scope(dict(enumerate(inputs))) as held:
        before, _ = spacings.less(machine, eqn, rows[..., :, None], rows[..., None, :])
        return _arranged(list(held.values()), before, axis)


def _sort(machine, eqn, inputs):
    """Sorts uniforms and numbers."""
    _check(eqn, inputs)
    axis = eqn.params["dimension"] + 1
    if np.any(np.isnan(inputs[0].array["a"])):
        raise Refused("a sort of uniforms and what is not a number")
    with machine.worlds.scope(dict(enumerate(inputs))) as held:

        def rows() -> np.ndarray:
            array = np.moveaxis(held[0].array, axis, -1)
            # Numbers of which two worlds know different things are not the same in both.
            return np.broadcast_to(array, (len(machine.worlds), *array.shape[1:]))

        if np.any(_overlap(machine, rows())):
            _cut(machine, eqn, rows())
        tied = _overlap(machine, rows())
        x, y = _pairs(rows())
        if not np.any(tied):
            before, _ = decisions.less(machine, eqn, x, y)
            return _arranged(list(held.values()), before, axis)

        # ask the pairs that are apart
        _check_alike(machine, rows(), tied)
        nothing = np.zeros((), UNIFORM)
        nothing["uid"] = -1
        x, y = (np.where(tied, nothing, each) for each in (x, y))
        before, origin = decisions.less(machine, eqn, x, y)
        if origin is not None:
            raise Refused("a comparison of two uniforms")

        # draw the order of the others
        priority, origin = _draw(machine, rows()["uid"], tied)
        first = priority[..., :, None] < priority[..., None, :]
        before = np.where(tied[origin], first, before[origin])
        values, *rest = _arranged(list(held.values()), before, axis)
        return [opaque(values.array.shape[1:], "sorted uniforms of unknown order"), *rest]


def _pairs(rows: np.ndarray) -> list[np.ndarray]:
    return list(np.broadcast_arrays(rows[..., :, None], rows[..., None, :]))


def _range(machine, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the largest value of numbers."""
    ends = np.sort(evaluate(x[..., None], machine.worlds.bounds(x["uid"])))
    return ends[..., 0], ends[..., 1]


def _overlap(machine, rows: np.ndarray) -> np.ndarray:
    """Returns `(W, ..., n, n)`, which pairs depend on two uniforms and may come in either order."""
    x, y = _pairs(rows)
    free = (x["uid"] >= 0) & (y["uid"] >= 0) & np.isfinite(x["a"]) & np.isfinite(y["a"])
    low, high = _range(machine, rows)
    size = np.maximum(np.abs(low), np.abs(high))
    room = _ROUNDING * np.where(np.isfinite(size), size, 0)
    apart = (high - room)[..., :, None] <= low[..., None, :]
    apart |= (high - room)[..., None, :] <= low[..., :, None]
    return free & ~alike_uniforms(x, y) & ~apart


def _cut(machine, eqn, rows: np.ndarray):
    """Cuts every uniform at the numbers beside it and at the ends of the others' ranges."""
    low, high = _range(machine, rows)
    ends = np.stack([low, high], axis=-1)[..., None, :, :]
    own = rows["uid"][..., :, None] == rows["uid"][..., None, :]
    x = np.broadcast_to(rows[..., :, None, None], (*own.shape, 2)).copy()
    with np.errstate(invalid="ignore"):
        x["a"] -= np.where(own[..., None], np.nan, ends)
    cuts = root(x).reshape(*rows.shape, -1)
    decisions.refine(machine, eqn, rows, cuts)


def _check_alike(machine, rows: np.ndarray, tied: np.ndarray):
    """Raises `Refused` unless tied uniforms are independent and have one law."""
    x, y = _pairs(rows)
    inside = rows["c"][..., None] + rows["k"][..., None] * machine.worlds.bounds(rows["uid"])
    inside = np.sort(inside)
    gap = np.abs(inside[..., :, None, :] - inside[..., None, :, :])
    near = np.all(gap <= _ROUNDING * np.maximum(1, np.abs(inside[..., None, :])), axis=-1)
    same = np.logical_and.reduce([x[f] == y[f] for f in ("map", "a", "b")]) & near
    if np.any(tied & ~same):
        raise Refused("a comparison of two uniforms of different laws")
    several = np.any(tied, axis=(-2, -1))[..., None, None]
    shared = (x["uid"] == y["uid"]) & (x["uid"] >= 0) & ~np.eye(rows.shape[-1], dtype=bool)
    if np.any(several & shared):
        raise Refused("a sort of numbers that share their noise")


def _draw(machine, uid: np.ndarray, tied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a priority for each element, in a random order where some are tied, and origins.

    More becomes known of these uniforms than an interval, so they are spent.
    """
    worlds, size = machine.worlds, uid.shape[-1]
    some = np.any(tied, axis=-1)
    columns = np.flatnonzero(np.any(some.reshape(-1, size), axis=0))
    orders = arrangements(machine, len(columns), len(columns))
    open_ = np.any(some, axis=-1).reshape(len(uid), -1)
    even = np.full(len(orders), 1 / len(orders))
    sure = np.eye(1, len(orders))[0]

    def law(t, origin):
        return np.where(open_[origin, t][:, None], even, sure)

    worlds.spent.update(np.unique(uid[some]).tolist())
    drawn, origin = worlds.choose(math.prod(uid.shape[1:-1]), law)
    priority = np.zeros((*drawn.shape, size), int)
    priority[..., columns] = orders[drawn]
    return priority.reshape(len(origin), *uid.shape[1:]), origin


def _arranged(values: list[Value], before: np.ndarray, axis: int) -> list[Value]:
    """Returns the values in the order that the answers `before[i, j]`, i before j, give."""
    # A later element comes first where it is less, an earlier one unless it is more.
    later = np.triu(np.ones(before.shape[-2:], bool), 1)
    earlier = later.T & ~before & ~np.eye(len(later), dtype=bool)
    place = earlier.sum(-1) + (later & np.swapaxes(before, -1, -2)).sum(-1)
    order = np.moveaxis(np.argsort(place, axis=-1, kind="stable"), -1, axis)
    worlds = len(order)
    return [each.move(np.take_along_axis(each.broadcast(worlds), order, axis)) for each in values]


SORTED_RULES = {"sort": _sort_sorted}
UNIFORM_RULES = {"sort": _sort}
