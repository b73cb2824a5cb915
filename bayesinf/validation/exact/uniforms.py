"""Arithmetic and decisions on numbers that depend on one uniform each.

Such a number is a + b * map(c + k * u) with an increasing map: the identity, the logarithm, and
those of Gumbel and normal noise. Affine arithmetic stays inside the form; what would leave it is
refused.
"""

from collections.abc import Callable

import numpy as np
import scipy.special as special

from bayesinf.validation.exact.moves import align
from bayesinf.validation.exact.values import Known, Refused, Uniforms, Value, constants, settled

IDENTITY, LOG, GUMBEL, ERF_INV = range(4)

# The increasing maps, each with its inverse.
_MAPS = {
    IDENTITY: (lambda v: v, lambda y: y),
    LOG: (np.log, np.exp),
    GUMBEL: (lambda v: -np.log(-np.log(v)), lambda y: np.exp(-np.exp(-y))),
    ERF_INV: (special.erfinv, special.erf),
}


def evaluate(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns the values of a `UNIFORM` array at given uniforms."""
    return _through(x, x["c"] + x["k"] * u, forward=True)


def _through(x: np.ndarray, v: np.ndarray, forward: bool) -> np.ndarray:
    """Returns a + b * map(v), or the v at which that would be what `v` holds now."""
    x, v = np.broadcast_arrays(x, v)
    out = np.empty(v.shape)
    with np.errstate(all="ignore"):
        for name in np.unique(x["map"]):
            there = x["map"] == name
            a, b = x["a"][there], x["b"][there]
            onto, back = _MAPS[int(name)]
            if forward:
                out[there] = np.where(x["uid"][there] < 0, a, a + b * onto(v[there]))
            else:
                out[there] = back((v[there] - a) / b)
    return out


def root(x: np.ndarray) -> np.ndarray:
    """Returns the u at which a number is zero; infinite where it is a constant."""
    with np.errstate(all="ignore"):
        u = (_through(x, np.zeros(x.shape), forward=False) - x["c"]) / x["k"]
    return np.where(x["uid"] < 0, np.inf, u)


def canonical(x: np.ndarray) -> np.ndarray:
    """Makes a number into a constant where the uniform has no say in it any more."""
    x = x.copy()
    # Infinite logits keep their noise: without it, a draw without a possible outcome looks decided.
    fixed = (x["b"] == 0) | (~np.isfinite(x["a"]) & (x["map"] != GUMBEL))
    for field, value in (("b", 0), ("c", 0), ("k", 0), ("uid", -1), ("map", IDENTITY)):
        x[field][fixed] = value
    return x


def operands(eqn, inputs: list[Value]) -> list[np.ndarray]:
    """Returns the operands as `UNIFORM` arrays that broadcast against each other."""
    ndim = len(eqn.outvars[0].aval.shape) + 1
    out = []
    for x in inputs:
        if not isinstance(x, Known | Uniforms):
            raise Refused(f"{eqn.primitive.name} of {x.noun} and a uniform draw")
        out.append(align(constants(x) if isinstance(x, Known) else x.array, ndim))
    return list(np.broadcast_arrays(*out))


def result(eqn, array: np.ndarray) -> list[Value]:
    return [settled(canonical(array), eqn.outvars[0].aval.dtype)]


# Arithmetic.


def combine(x: np.ndarray, y: np.ndarray, sign: float) -> np.ndarray:
    """Returns x + sign * y.

    Raises:
        Refused: where they depend on two different uniforms, or in two ways on one.
    """
    both = (x["uid"] >= 0) & (y["uid"] >= 0)
    if np.any(both & ~alike_uniforms(x, y)):
        raise Refused("one number from two uniforms")
    out = np.where(x["uid"] >= 0, x, y)
    with np.errstate(all="ignore"):
        out["a"], out["b"] = x["a"] + sign * y["a"], x["b"] + sign * y["b"]
    return out


def alike_uniforms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns where two numbers are affine in the same map of the same uniform."""
    return np.logical_and.reduce([x[f] == y[f] for f in ("uid", "map", "c", "k")])


def _scale(x: np.ndarray, y: np.ndarray, by: Callable) -> np.ndarray:
    """Returns x times or over the constants y, as `by` says."""
    depends = x["uid"] >= 0
    if np.any(depends & (y["uid"] >= 0)):
        raise Refused("a product of two uniforms")
    with np.errstate(all="ignore"):
        a, b = by(x["a"], y["a"]), by(x["b"], y["a"])
    if not np.all(np.isfinite(b[depends])):
        raise Refused("a uniform scaled by an infinite number")
    out = x.copy()
    out["a"], out["b"] = a, np.where(depends, b, 0)
    return out


def _add(sign: float):
    def rule(machine, eqn, inputs):
        x, y = operands(eqn, inputs)
        return result(eqn, combine(x, y, sign))

    return rule


def _multiply(machine, eqn, inputs):
    x, y = operands(eqn, inputs)
    first = np.where(y["uid"] >= 0, y, x)
    second = np.where(y["uid"] >= 0, x, y)
    return result(eqn, _scale(first, second, np.multiply))


def _divide(machine, eqn, inputs):
    x, y = operands(eqn, inputs)
    if np.any(y["uid"] >= 0):
        raise Refused("division by a uniform")
    return result(eqn, _scale(x, y, np.divide))


def _negate(machine, eqn, inputs):
    (x,) = operands(eqn, inputs)
    out = x.copy()
    out["a"], out["b"] = -x["a"], -x["b"]
    return result(eqn, out)


def _log(shift: float):
    """Returns the rule of log(x + shift)."""

    def rule(machine, eqn, inputs):
        (x,) = operands(eqn, inputs)
        depends = x["uid"] >= 0
        a = x["a"] + shift
        ends = evaluate(x[..., None], machine.worlds.bounds(x["uid"])) + shift
        if np.any(depends & (x["map"] != IDENTITY)) or np.any(depends[..., None] & (ends < -1e-12)):
            raise Refused("the logarithm of what is not affine and positive in a uniform")
        out = x.copy()
        with np.errstate(all="ignore"):
            out["a"] = np.where(depends, 0.0, np.log(a))
        out["b"], out["map"] = depends, np.where(depends, LOG, IDENTITY)
        out["c"], out["k"] = np.where(depends, a, 0.0), np.where(depends, x["b"], 0.0)
        return result(eqn, out)

    return rule


def _exp(machine, eqn, inputs):
    (x,) = operands(eqn, inputs)
    depends = x["uid"] >= 0
    if np.any(depends & ((x["map"] != LOG) | (x["b"] != 1))):
        raise Refused("the exponential of what is not the logarithm of a uniform")
    out, factor = x.copy(), np.exp(x["a"])
    out["a"], out["b"] = np.where(depends, factor * x["c"], factor), factor * x["k"]
    out["c"], out["k"], out["map"] = 0.0, depends, IDENTITY
    return result(eqn, out)


def inverse_erf(machine, eqn, inputs):
    (x,) = operands(eqn, inputs)
    depends = x["uid"] >= 0
    if np.any(depends & (x["map"] != IDENTITY)):
        raise Refused("erf_inv of what is not affine in a uniform")
    out = x.copy()
    out["a"], out["b"] = np.where(depends, 0.0, special.erfinv(x["a"])), depends
    out["c"], out["k"] = np.where(depends, x["a"], 0.0), np.where(depends, x["b"], 0.0)
    out["map"] = np.where(depends, ERF_INV, IDENTITY)
    return result(eqn, out)


def _same(machine, eqn, inputs):
    return result(eqn, operands(eqn, inputs)[0])


RULES = {
    "add": _add(1.0),
    "add_any": _add(1.0),
    "div": _divide,
    "exp": _exp,
    "log": _log(0.0),
    "log1p": _log(1.0),
    "mul": _multiply,
    "neg": _negate,
    "reduce_precision": _same,
    "sub": _add(-1.0),
}
