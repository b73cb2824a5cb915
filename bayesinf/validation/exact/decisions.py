"""Questions with a discrete answer about numbers that depend on a uniform.

Is it less than, what is its floor: the interval of the uniform is cut at the exact points where
the answer changes, each piece is a world of its own, and the answer is what holds in its middle.
"""

from collections.abc import Callable

import numpy as np

from bayesinf.validation.exact.uniforms import (
    alike_uniforms,
    combine,
    evaluate,
    inverse_erf,
    operands,
    result,
    root,
)
from bayesinf.validation.exact.values import Known, Refused, constants

# A cut this close to the end of an interval, in units of rounding, is none: cumulated weights end
# at 1 - 1e-16 as often as at 1.
_ROUNDING = 64
# A floor that takes more values than this is refused.
_MOST_PIECES = 4096


def refine(machine, eqn, x: np.ndarray, cuts: np.ndarray):
    """Cuts the uniform of each number at the points `cuts` `(*x.shape, K)`, in every world.

    Returns:
        From which world each world stems (None where nothing was cut), the numbers in the worlds
        of now, and the middle of the piece where the uniform of each lies.
    """
    worlds, before = machine.worlds, len(machine.worlds)
    low, high = np.moveaxis(worlds.bounds(x["uid"]), -1, 0)
    depends = (x["uid"] >= 0)[..., None]
    inside = _inside(eqn, cuts, low[..., None], high[..., None]) & depends
    columns = np.argwhere(inside.any(axis=(0, -1)))
    if not len(columns):
        return None, x, (low + high) / 2

    def law(t, origin):
        here = (slice(None), *columns[t])
        uid = np.broadcast_to(x["uid"][here], (before,))[origin]
        points = np.broadcast_to(cuts[here], (before, cuts.shape[-1]))[origin]
        low, high = worlds.bounds(uid).T[..., None]
        inside = _inside(eqn, points, low, high) & (uid >= 0)[:, None]
        points = np.sort(np.where(inside, points, high), axis=1)
        return uid, np.concatenate([low, points, high], axis=1)

    origin = worlds.cut(len(columns), law)
    x = np.broadcast_to(x, (before, *x.shape[1:]))[origin]
    low, high = np.moveaxis(worlds.bounds(x["uid"]), -1, 0)
    return origin, x, (low + high) / 2


def _inside(eqn, points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns which points cut an interval, by more than rounding."""
    dtypes = [v.aval.dtype for v in eqn.invars if np.issubdtype(v.aval.dtype, np.floating)]
    rounding = _ROUNDING * max(np.finfo(dtype).eps for dtype in dtypes)
    with np.errstate(invalid="ignore"):
        above = points - low > rounding * np.maximum(np.abs(points), np.abs(low))
        below = high - points > rounding * np.maximum(np.abs(points), np.abs(high))
    return above & below & np.isfinite(points)


def less(machine, eqn, x: np.ndarray, y: np.ndarray, or_equal: bool = False):
    """Decides x < y; returns the answers, and the origin of each world as `refine` does."""
    x, y = _apart(machine, x, y)
    free_x, free_y = _is_free(x), _is_free(y)
    # Where no uniform decides: two constants, the same uniform on both sides, or an infinite
    # number beside a uniform, whose own value does not matter.
    first = np.where(free_x & ~free_y, 0.0, x["a"])
    second = np.where(free_y & ~free_x, 0.0, y["a"])
    constant = first <= second if or_equal else first < second
    difference = combine(x, y, -1.0)
    fixed = ~_is_free(difference) | (difference["b"] == 0)
    difference = np.where(fixed, constants(Known(np.where(constant, -1.0, 1.0))), difference)
    origin, difference, u = refine(machine, eqn, difference, root(difference)[..., None])
    return evaluate(difference, u) < 0, origin


def _is_free(x: np.ndarray) -> np.ndarray:
    """Returns where a uniform decides over a number: nothing finite moves an infinite one."""
    return (x["uid"] >= 0) & np.isfinite(x["a"])


def _apart(machine, x: np.ndarray, y: np.ndarray):
    """Replaces numbers of two different uniforms by constants, where their ranges are apart.

    Raises:
        Refused: where they are not.
    """
    both = (x["uid"] >= 0) & (y["uid"] >= 0) & ~alike_uniforms(x, y)
    if not np.any(both):
        return x, y
    bounds = machine.worlds.bounds
    ends_x, ends_y = (np.sort(evaluate(z[..., None], bounds(z["uid"]))) for z in (x, y))
    # Two points of a grid that one uniform shifts stay in order.
    grid = np.logical_and.reduce([x[f] == y[f] for f in ("uid", "map", "a", "b", "k")])
    grid &= x["b"] > 0
    below = np.where(grid, x["c"] < y["c"], _ends_before(ends_x, ends_y))
    if np.any(both & ~below & ~grid & ~_ends_before(ends_y, ends_x)):
        raise Refused("a comparison of two uniforms")
    stand_in = constants(Known(np.where(below, -1.0, 1.0)))
    return np.where(both, stand_in, x), np.where(both, constants(Known(0.0 * below)), y)


def _ends_before(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns whether the range x `(..., 2)` ends where the range y begins, up to rounding."""
    end, begin = x[..., 1], y[..., 0]
    rounding = np.where(np.isfinite(end), _ROUNDING * np.finfo(float).eps * np.abs(end), 0.0)
    return end <= begin + rounding


def _comparison(swap: bool, or_equal: bool, total: bool = False):
    """Returns the rule of a comparison, in the total order of floats or not."""

    def rule(machine, eqn, inputs):
        x, y = operands(eqn, inputs)
        if total and np.any(np.isnan(x["a"]) | np.isnan(y["a"])):
            raise Refused("a uniform in an order with what is not a number")
        x, y = (y, x) if swap else (x, y)
        return [Known(less(machine, eqn, x, y, or_equal)[0])]

    return rule


def _equality(answer: bool):
    """A continuous number equals another with probability zero, unless they are one."""

    def rule(machine, eqn, inputs):
        x, y = operands(eqn, inputs)
        one = alike_uniforms(x, y) & (x["b"] == y["b"])
        equal = (one | ~(_is_free(x) | _is_free(y))) & (x["a"] == y["a"])
        return [Known(equal == answer)]

    return rule


def _extremum(largest: bool):
    def rule(machine, eqn, inputs):
        x, y = operands(eqn, inputs)
        return result(eqn, _larger(machine, eqn, x, y, largest)[0])

    return rule


def _larger(machine, eqn, x: np.ndarray, y: np.ndarray, largest: bool):
    if np.any(np.isnan(x["a"]) | np.isnan(y["a"])):
        raise Refused("the larger of a uniform and what is not a number")
    below, origin = less(machine, eqn, x, y)
    if origin is not None:
        x, y = (z if len(z) == 1 else z[origin] for z in (x, y))
    return np.where(below == largest, y, x), origin


def _clamp(machine, eqn, inputs):
    low, x, high = operands(eqn, inputs)
    x, origin = _larger(machine, eqn, x, low, True)
    high = high if origin is None or len(high) == 1 else high[origin]
    return result(eqn, _larger(machine, eqn, x, high, False)[0])


def _absolute(machine, eqn, inputs):
    (x,) = operands(eqn, inputs)
    _, x, u = refine(machine, eqn, x, root(x)[..., None])
    negative = evaluate(x, u) < 0
    out = x.copy()
    out["a"], out["b"] = np.where(negative, -x["a"], x["a"]), np.where(negative, -x["b"], x["b"])
    return result(eqn, out)


def _sign(machine, eqn, inputs):
    (x,) = operands(eqn, inputs)
    _, x, u = refine(machine, eqn, x, root(x)[..., None])
    return [Known(np.sign(evaluate(x, u)).astype(eqn.outvars[0].aval.dtype))]


def _stepwise(function: Callable, offset: float = 0.0):
    """Returns the rule of a function that is constant between the integers plus `offset`."""

    def rule(machine, eqn, inputs):
        (x,) = operands(eqn, inputs)
        ends = np.sort(evaluate(x[..., None], machine.worlds.bounds(x["uid"])))
        first = np.where(x["uid"] < 0, 0.0, np.floor(ends[..., 0] - offset))
        last = np.where(x["uid"] < 0, 0.0, np.ceil(ends[..., 1] - offset))
        pieces = np.max(last - first, initial=0.0)
        if not pieces <= _MOST_PIECES:
            raise Refused(f"a rounded draw with more than {_MOST_PIECES} values")
        steps = first[..., None] + np.arange(1, int(pieces)) + offset
        shifted = np.broadcast_to(x[..., None], steps.shape).copy()
        shifted["a"] -= steps
        _, x, u = refine(machine, eqn, x, root(shifted))
        return [Known(function(evaluate(x, u)).astype(eqn.outvars[0].aval.dtype))]

    return rule


_truncate = _stepwise(np.trunc)


def _convert(machine, eqn, inputs):
    """To a float it is the same number; to an integer it is cut off."""
    dtype = np.dtype(eqn.params["new_dtype"])
    if dtype.kind in "iu":
        (x,) = operands(eqn, inputs)
        ends = evaluate(x[..., None], machine.worlds.bounds(x["uid"]))
        info = np.iinfo(dtype)
        if np.any((np.ceil(ends) < info.min) | (np.floor(ends) > info.max)):
            raise Refused(f"a uniform draw beyond the range of {dtype}")
        return _truncate(machine, eqn, inputs)
    if dtype.kind != "f":
        raise Refused(f"a uniform draw made into {dtype}")
    return result(eqn, operands(eqn, inputs)[0])


def _is_finite(machine, eqn, inputs):
    (x,) = operands(eqn, inputs)
    return [Known(np.isfinite(x["a"]))]


def _erf_inv(machine, eqn, inputs):
    """Normal noise: on request, a law on a lattice stands in for it."""
    (x,) = operands(eqn, inputs)
    depends = x["uid"] >= 0
    if machine.normal is None or not np.any(depends):
        return inverse_erf(machine, eqn, inputs)
    standard = np.allclose(x["a"], -1.0, atol=1e-6) and np.allclose(x["b"], 2.0, atol=1e-6)
    if not standard or not np.all(depends):
        raise Refused("normal noise that is not standard, where a lattice stands in for it")
    points, probabilities = machine.normal
    edges = np.cumsum(probabilities)[:-1]
    _, x, u = refine(machine, eqn, x, np.broadcast_to(edges, (*x.shape, len(edges))))
    draws = points[np.searchsorted(edges, u)] / np.sqrt(2.0)
    return [Known(draws.astype(eqn.outvars[0].aval.dtype))]


RULES = {
    "abs": _absolute,
    "ceil": _stepwise(np.ceil),
    "clamp": _clamp,
    "convert_element_type": _convert,
    "eq": _equality(True),
    "erf_inv": _erf_inv,
    "floor": _stepwise(np.floor),
    "ge": _comparison(swap=True, or_equal=True),
    "gt": _comparison(swap=True, or_equal=False),
    "is_finite": _is_finite,
    "le": _comparison(swap=False, or_equal=True),
    "le_to": _comparison(swap=False, or_equal=True, total=True),
    "lt": _comparison(swap=False, or_equal=False),
    "lt_to": _comparison(swap=False, or_equal=False, total=True),
    "max": _extremum(largest=True),
    "min": _extremum(largest=False),
    "ne": _equality(False),
    "round": _stepwise(np.round, offset=0.5),
    "sign": _sign,
}
