"""Sorted uniforms, made of partial sums of exponential draws without sorting anything.

With S_k the sum of the first k of n + 1 exponential draws, S_1/S_(n+1), ..., S_n/S_(n+1) are
distributed as n independent uniforms in order. So the ratios stand for the ranks of n fresh
uniforms: the r-th smallest (from 0) is below a number where more than r of them are.
"""

import numpy as np

from bayesinf.validation.exact import arrays, decisions
from bayesinf.validation.exact.draws import spend
from bayesinf.validation.exact.moves import align
from bayesinf.validation.exact.uniforms import IDENTITY, LOG
from bayesinf.validation.exact.values import (
    ORDER,
    SUMS,
    UNIFORM,
    Known,
    Refused,
    Sorted,
    Sums,
    constants,
    ranked,
)

# As elsewhere, what has a probability below this does not happen.
_NEVER = 1e-14


def _cumulate(machine, eqn, inputs):
    """Partial sums of -log u or of -log(1 - u), each u fresh and its own."""
    (x,) = (each.array for each in inputs)
    whole = (x["c"] == 0) & (x["k"] == 1) | (x["c"] == 1) & (x["k"] == -1)
    exponential = (x["uid"] >= 0) & (x["map"] == LOG) & (x["a"] == 0) & (x["b"] == -1) & whole
    if not np.all(exponential) or eqn.params["reverse"]:
        raise Refused("a cumulative sum of what are not exponential draws")
    spend(machine, x["uid"])
    axis = eqn.params["axis"] + 1
    out = np.zeros(x.shape, SUMS)
    out["group"] = np.take(x["uid"], [0], axis)
    np.moveaxis(out["count"], axis, -1)[...] = np.arange(1, x.shape[axis] + 1)
    return [Sums(out)]


def _divide(machine, eqn, inputs):
    """Partial sums over the last of them."""
    if not all(isinstance(each, Sums) for each in inputs):
        raise Refused("a quotient of a sum of exponential draws and something else")
    ndim = len(eqn.outvars[0].aval.shape) + 1
    x, y = np.broadcast_arrays(*(align(each.array, ndim) for each in inputs))
    if np.any(x["group"] != y["group"]) or np.any((x["count"] == 0) | (x["count"] >= y["count"])):
        raise Refused("a quotient of sums of exponential draws that is not below one")
    out = np.zeros(x.shape, ORDER)
    out["num"], out["rank"] = y["count"] - 1, x["count"] - 1
    for group, count in np.unique(y[["group", "count"]]).tolist():
        # What was learnt about the ranks is forgotten with them, so that they are made once.
        if group in machine.divided:
            raise Refused("sums of exponential draws that were divided before")
        machine.divided.add(group)
        out["first"][y["group"] == group] = machine.worlds.fresh((count - 1,)).flat[0]
    return [Sorted(out)]


def _pad(machine, eqn, inputs):
    """The sum of no draws fills the gaps."""
    x, filling = inputs
    if not isinstance(filling, Known) or np.any(filling.array != 0):
        raise Refused("sums of exponential draws padded with what is not zero")
    none = np.zeros(filling.array.shape, SUMS)
    return [Sums(arrays.RULES["pad"](eqn.params, eqn.outvars[0].aval.shape, x.array, none))]


def _add(machine, eqn, inputs):
    """Adds the sum of no draws, as code does that puts two arrays together."""
    if not all(isinstance(each, Sums) for each in inputs):
        raise Refused("a sum of exponential draws and something else")
    x, y = np.broadcast_arrays(*(each.array for each in inputs))
    if np.any(x["count"] * y["count"] != 0):
        raise Refused("a sum of sums of exponential draws")
    return [Sums(np.where(x["count"] == 0, y, x))]


def _larger(machine, eqn, inputs):
    """The larger of two sums of one group, or of a sum and what all sums exceed."""
    ndim = len(eqn.outvars[0].aval.shape) + 1
    sides = [align(each.array, ndim) for each in inputs]
    if all(isinstance(each, Sums) for each in inputs):
        x, y = np.broadcast_arrays(*sides)
        if np.all((x["group"] == y["group"]) | (x["count"] * y["count"] == 0)):
            return [Sums(np.where(x["count"] < y["count"], y, x))]
    for each, other, sums in zip(inputs, inputs[::-1], sides[::-1], strict=True):
        if isinstance(each, Known) and isinstance(other, Sums) and np.all(each.array < _NEVER):
            return [Sums(sums)]
    raise Refused("the larger of a sum of exponential draws and something else")


def _smaller(machine, eqn, inputs):
    """Sorted uniforms stay below what is one up to rounding."""
    ndim = len(eqn.outvars[0].aval.shape) + 1
    for each, other in zip(inputs, inputs[::-1], strict=True):
        if (
            isinstance(each, Known)
            and isinstance(other, Sorted)
            and np.all(each.array > 1 - _NEVER)
        ):
            return [Sorted(align(other.array, ndim))]
    raise Refused("the smaller of a sorted uniform and something else")


def less(machine, eqn, x: np.ndarray, y: np.ndarray):
    """Decides x < y for `ORDER` arrays; returns the answers, and the origin of each world."""
    free_x, free_y = x["num"] > 0, y["num"] > 0
    both, same = free_x & free_y, x["first"] == y["first"]
    if np.any(both & ~same):
        raise Refused("a comparison of two sorted uniforms that were not sorted together")
    ranks, threshold = np.where(free_x, x, y), np.where(free_x, y["a"], x["a"])
    index = np.arange(max(1, int(ranks["num"].max(initial=0))))
    depends = (free_x ^ free_y)[..., None] & (index < ranks["num"][..., None])
    drawn = np.zeros(depends.shape, UNIFORM)
    drawn["uid"] = np.where(depends, ranks["first"][..., None] + index, -1)
    drawn["a"] = np.where(depends, 0.0, np.inf)
    drawn["b"] = drawn["k"] = depends
    drawn["map"] = IDENTITY
    below, origin = decisions.less(
        machine, eqn, drawn, constants(Known(np.where(both, 0.0, threshold)[..., None]))
    )
    count = below.sum(-1)
    if origin is not None:
        x, y = (each if len(each) == 1 else each[origin] for each in (x, y))
    decided = np.where(y["num"] > 0, count <= y["rank"], x["a"] < y["a"])
    decided = np.where(x["num"] > 0, count > x["rank"], decided)
    return np.where((x["num"] > 0) & (y["num"] > 0), x["rank"] < y["rank"], decided), origin


def _operands(eqn, inputs) -> list[np.ndarray]:
    """Returns the operands of a comparison as `ORDER` arrays."""
    if not all(isinstance(each, Known | Sorted) for each in inputs):
        raise Refused("a comparison of a sorted uniform and a uniform draw")
    ndim = len(eqn.outvars[0].aval.shape) + 1
    return list(np.broadcast_arrays(*(align(ranked(each), ndim) for each in inputs)))


def _last(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Returns operands in the total order of floats: what is not a number is above a uniform."""
    if np.any((x["num"] + y["num"] == 0) & (np.isnan(x["a"]) | np.isnan(y["a"]))):
        raise Refused("an order of what is not a number, beside sorted uniforms")
    out = [x.copy(), y.copy()]
    for each in out:
        each["a"][np.isnan(each["a"])] = np.inf
    return out


def _equality(answer: bool):
    """A sorted uniform equals another number with probability zero, unless they are one."""

    def rule(machine, eqn, inputs):
        x, y = _operands(eqn, inputs)
        return [Known((x == y) == answer)]

    return rule


def _comparison(swap: bool, negate: bool, total: bool = False):
    """Returns the rule of a comparison, by x < y: ties have probability zero."""

    def rule(machine, eqn, inputs):
        x, y = _operands(eqn, inputs)
        if total:
            x, y = _last(x, y)
        if np.any(np.isnan(x["a"]) | np.isnan(y["a"])):
            raise Refused("a sorted uniform beside what is not a number")
        answer, _ = less(machine, eqn, y if swap else x, x if swap else y)
        return [Known(answer != negate)]

    return rule


SUM_RULES = {"add": _add, "div": _divide, "max": _larger, "pad": _pad}

SORTED_RULES = {
    "eq": _equality(True),
    "ge": _comparison(swap=False, negate=True),
    "gt": _comparison(swap=True, negate=False),
    "le": _comparison(swap=True, negate=True),
    "le_to": _comparison(swap=True, negate=True, total=True),
    "lt": _comparison(swap=False, negate=False),
    "lt_to": _comparison(swap=False, negate=False, total=True),
    "min": _smaller,
    "ne": _equality(False),
}

UNIFORM_RULES = {"cumsum": _cumulate}
