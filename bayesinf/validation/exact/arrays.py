"""Equations between ordinary numbers, as NumPy acts on them in all worlds."""

import jax
import numpy as np
import scipy.special as special

from bayesinf.validation.exact import moves
from bayesinf.validation.exact.moves import align


def _convert(params, shape, x):
    dtype = np.dtype(params["new_dtype"])
    if x.dtype.kind == "f" and dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.clip(np.trunc(np.nan_to_num(x, nan=0.0)), info.min, info.max)
    return x != 0 if dtype.kind == "b" else x


def _total(compare):
    """Returns a comparison in the total order of floats: what is not a number comes last."""

    def rule(x, y):
        return compare(_rank(x), _rank(y))

    return rule


def _rank(x):
    if x.dtype.kind != "f":
        return x
    x = np.where(np.isnan(x), np.array(np.nan, x.dtype), x)
    bits = x.view(f"i{x.dtype.itemsize}")
    return np.where(bits < 0, ~bits ^ np.iinfo(bits.dtype).min, bits)


def _divide(x, y):
    if x.dtype.kind == "f":
        return x / y
    divisor = np.where(y == 0, np.ones_like(y), y)
    floor = x // divisor
    towards_zero = floor + ((floor * divisor != x) & ((x < 0) != (divisor < 0)))
    return np.where(y == 0, ~np.zeros_like(y), towards_zero)


def _power(x, y):
    return np.power(x, y.astype(x.dtype) if x.dtype.kind == "f" else y)


def _remainder(x, y):
    if x.dtype.kind == "f":
        return np.fmod(x, y)
    return np.where(y == 0, x, np.fmod(x, np.where(y == 0, np.ones_like(y), y)))


# These act on each element alone, whatever the parameters.
ELEMENTWISE = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "cos": np.cos,
    "digamma": special.digamma,
    "div": _divide,
    "eq": np.equal,
    "eq_to": _total(np.equal),
    "erf": special.erf,
    "erf_inv": special.erfinv,
    "erfc": special.erfc,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "le_to": _total(np.less_equal),
    "lgamma": special.gammaln,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": special.expit,
    "lt": np.less,
    "lt_to": _total(np.less),
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": lambda x: ~x,
    "or": np.bitwise_or,
    "pow": _power,
    "rem": _remainder,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}


def _axes(params):
    return tuple(axis + 1 for axis in params["axes"])


def _reduce(ufunc):
    return lambda params, shape, x: ufunc(x, axis=_axes(params))


def _index_of(function):
    return lambda params, shape, x: function(x, axis=params["axes"][0] + 1)


def _cumulative(ufunc):
    def rule(params, shape, x):
        axis = params["axis"] + 1
        x = np.flip(x, axis) if params["reverse"] else x
        x = ufunc.accumulate(x, axis=axis)
        return np.flip(x, axis) if params["reverse"] else x

    return rule


def _dot_general(params, shape, x, y):
    (contract_x, contract_y), (batch_x, batch_y) = params["dimension_numbers"]
    label = iter(range(1, 52))
    in_x, in_y = [0] * (x.ndim - 1), [0] * (y.ndim - 1)
    for i, j in zip((*batch_x, *contract_x), (*batch_y, *contract_y), strict=True):
        in_x[i] = in_y[j] = next(label)
    batch = [in_x[i] for i in batch_x]
    free_x = [i for i, name in enumerate(in_x) if not name]
    free_y = [i for i, name in enumerate(in_y) if not name]
    for i in free_x:
        in_x[i] = next(label)
    for i in free_y:
        in_y[i] = next(label)
    out = [0, *batch, *(in_x[i] for i in free_x), *(in_y[i] for i in free_y)]
    return np.einsum(x, [0, *in_x], y, [0, *in_y], out)


def _iota(params, shape):
    axis = params["dimension"]
    values = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - 1 - axis))
    return np.broadcast_to(values, shape)[None]


def _clamp(params, shape, low, x, high):
    ndim = len(shape) + 1
    return np.minimum(np.maximum(align(x, ndim), align(low, ndim)), align(high, ndim))


def _platform_index(params, shape):
    """The code for platforms without their own, as what one of them computes is the same."""
    platforms = params["platforms"]
    own = (i for i, names in enumerate(platforms) if names and jax.default_backend() in names)
    return np.array([platforms.index(None) if None in platforms else next(own)])


def _integer_pow(params, shape, x):
    return x ** params["y"] if params["y"] >= 0 else 1 / x ** -params["y"]


def _round(params, shape, x):
    away = int(params["rounding_method"]) == 0
    return np.copysign(np.floor(np.abs(x) + 0.5), x) if away else np.rint(x)


def _sort(params, shape, *xs):
    axis = params["dimension"] + 1
    worlds = max(len(x) for x in xs)
    xs = [np.broadcast_to(x, (worlds, *x.shape[1:])) for x in xs]
    order = np.argsort(xs[0], axis=axis, kind="stable")
    return [np.take_along_axis(x, order, axis) for x in xs]


def _top_k(params, shape, x):
    axis = params.get("axis", -1) % (x.ndim - 1) + 1
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    order = x.shape[axis] - 1 - np.flip(backwards, axis)
    order = np.take(order, np.arange(params["k"]), axis)
    return [np.take_along_axis(x, order, axis), order]


def _pad(params, shape, x, value):
    out = np.array(np.broadcast_to(align(value, len(shape) + 1), (max(len(x), len(value)), *shape)))
    steps = zip(params["padding_config"], x.shape[1:], strict=True)
    inner = [slice(low, low + (n - 1) * (gap + 1) + 1, gap + 1) for (low, _, gap), n in steps]
    if x.size:
        out[(slice(None), *inner)] = x
    return out


# These take the parameters and the shape of the (first) result as well, as the rules of moves do.
RULES = {
    **moves.RULES,
    "argmax": _index_of(np.argmax),
    "argmin": _index_of(np.argmin),
    "clamp": _clamp,
    "convert_element_type": _convert,
    "cumlogsumexp": _cumulative(np.logaddexp),
    "cummax": _cumulative(np.maximum),
    "cummin": _cumulative(np.minimum),
    "cumprod": _cumulative(np.multiply),
    "cumsum": _cumulative(np.add),
    "dot_general": _dot_general,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "pad": _pad,
    "platform_index": _platform_index,
    "reduce_and": _reduce(np.all),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_or": _reduce(np.any),
    "reduce_prod": _reduce(np.prod),
    "reduce_sum": _reduce(np.sum),
    "round": _round,
    "scatter-add": moves.scatter(np.add.at),
    "sort": _sort,
    "top_k": _top_k,
}
