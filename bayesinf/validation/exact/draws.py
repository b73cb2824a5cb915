"""Keys, and the noise made from them, down to the raw bits.

JAX makes a uniform from raw bits in a few steps (shift, or, bitcast, subtract one), which are
followed one by one, so that every sampler built on uniforms is understood from its own code.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bayesinf.validation.exact.uniforms import GUMBEL, IDENTITY
from bayesinf.validation.exact.values import (
    UNIFORM,
    Bits,
    KeyData,
    KeyReuse,
    Keys,
    Known,
    Refused,
    Uniforms,
    Value,
    from_keys,
    opaque,
    to_keys,
    where,
)


def consume(machine, eqn, keys: Keys) -> jax.Array:
    """Returns keys as JAX has them, and remembers that they are used up.

    Raises:
        KeyReuse: where one of them was.
        Refused: where a key depends on the outcome of a draw.
    """
    array = to_keys(keys)
    for each in keys.array[0].ravel():
        name = (keys.impl, each.tobytes())
        if name in machine.consumed:
            raise KeyReuse(f"one key is used at {machine.consumed[name]} and at {where(eqn)}")
        machine.consumed[name] = where(eqn)
    return array


def _bits(machine, eqn, inputs):
    consume(machine, eqn, inputs[0])
    aval = eqn.outvars[0].aval
    return [Bits(machine.worlds.fresh(aval.shape), 8 * aval.dtype.itemsize)]


def _derive(eqn, *operands) -> list[Value]:
    return [from_keys(eqn.primitive.bind(*operands, **eqn.params))]


def _certain(value: Value) -> jax.Array:
    """Returns numbers that a key is made of, which must hold in every world."""
    if not isinstance(value, Known | KeyData):
        raise Refused(f"a key made of {value.noun}")
    if np.any(value.array != value.array[:1]):
        raise Refused("a key that depends on a random outcome")
    return jnp.asarray(value.array[0])


def _split(machine, eqn, inputs):
    return _derive(eqn, consume(machine, eqn, inputs[0]))


def _fold_in(machine, eqn, inputs):
    return _derive(eqn, to_keys(inputs[0]), _certain(inputs[1]))


def _make(machine, eqn, inputs):
    return _derive(eqn, _certain(inputs[0]))


def _unwrap(machine, eqn, inputs):
    return [KeyData(np.asarray(jax.random.key_data(to_keys(inputs[0])))[None])]


# These take keys, or make them.
KEYS = {
    "random_bits": _bits,
    "random_fold_in": _fold_in,
    "random_seed": _make,
    "random_split": _split,
    "random_unwrap": _unwrap,
    "random_wrap": _make,
}


# From raw bits to a uniform, or to a random order.


def _constant(inputs: list[Value], name: str) -> tuple[Bits, int]:
    bits, other = inputs
    if not isinstance(bits, Bits) or not isinstance(other, Known):
        raise Refused(f"{name} of raw random bits")
    values = np.unique(other.array)
    if len(values) != 1:
        raise Refused(f"{name} of raw random bits")
    return bits, int(values[0])


def _shift(machine, eqn, inputs):
    bits, shift = _constant(inputs, "a shift")
    if bits.shift or bits.ones:
        raise Refused("a second shift of raw random bits")
    return [Bits(bits.array, bits.width, shift)]


def _or(machine, eqn, inputs):
    inputs = inputs if isinstance(inputs[0], Bits) else inputs[::-1]
    bits, ones = _constant(inputs, "a bitwise or")
    if bits.ones:
        raise Refused("a second bitwise or of raw random bits")
    return [Bits(bits.array, bits.width, bits.shift, ones)]


def _bitcast(machine, eqn, inputs):
    (bits,) = inputs
    dtype = np.dtype(eqn.params["new_dtype"])
    if dtype.kind != "f" or 8 * dtype.itemsize != bits.width:
        raise Refused(f"raw random bits read as {dtype}")
    one = int(np.ones((), dtype).view(f"u{dtype.itemsize}"))
    if bits.ones != one or bits.width - bits.shift != np.finfo(dtype).nmant:
        raise Refused("raw random bits that do not fill a mantissa")
    out = np.zeros(bits.array.shape, UNIFORM)
    out["a"], out["b"], out["k"], out["uid"], out["map"] = 1.0, 1.0, 1.0, bits.array, IDENTITY
    return [Uniforms(out)]


def _sort(machine, eqn, inputs):
    """Sorting by untouched bits puts the rest into a uniformly random order."""
    bits, *rest = inputs
    raw = isinstance(bits, Bits) and not bits.shift and not bits.ones
    if not raw or eqn.params["num_keys"] != 1 or any(isinstance(x, Bits) for x in rest):
        raise Refused("a sort of raw random bits")
    axis = eqn.params["dimension"] + 1
    rows = np.moveaxis(bits.array, axis, -1)
    size = rows.shape[-1]
    _spend(machine, rows)
    orders = np.array(list(itertools.permutations(range(size))))
    chance = np.full((1, len(orders)), 1 / len(orders))
    with machine.worlds.scope(dict(enumerate(rest))) as held:
        worlds = machine.worlds
        drawn, _ = worlds.choose(
            math.prod(rows.shape[1:-1]), lambda t, origin: np.repeat(chance, len(origin), 0)
        )
        order = orders[drawn].reshape(len(drawn), *rows.shape[1:])
        order = np.moveaxis(order, -1, axis)
        sorted_ = [
            x.move(np.take_along_axis(x.broadcast(len(drawn)), order, axis)) for x in held.values()
        ]
    return [opaque(bits.array.shape[1:], "sorted random bits"), *sorted_]


def _spend(machine, uid: np.ndarray):
    """Marks noise of which more becomes known than an interval.

    Raises:
        Refused: where it is not fresh, or two elements share it.
    """
    if not machine.worlds.is_fresh(uid):
        raise Refused("noise that was used before, so that the outcomes depend on each other")
    if any(len(np.unique(world)) < world.size for world in uid.reshape(len(uid), -1)):
        raise Refused("noise that several draws share, so that they depend on each other")
    machine.worlds.spent.update(np.unique(uid[uid >= 0]).tolist())


BITS = {
    "bitcast_convert_type": _bitcast,
    "or": _or,
    "shift_right_logical": _shift,
    "sort": _sort,
}


# Gumbel noise: the largest of logits plus noise is a categorical draw.


def gumbel(machine, eqn, inputs):
    """The rule of JAX's own Gumbel noise, whatever number of bits it is made of."""
    (keys,) = inputs
    consume(machine, eqn, keys)
    shape = eqn.outvars[0].aval.shape
    out = np.zeros((1, *shape), UNIFORM)
    out["b"], out["k"], out["map"] = 1.0, 1.0, GUMBEL
    out["uid"] = machine.worlds.fresh(shape)
    return [Uniforms(out)]


def _logits(machine, x: Uniforms, axis: int) -> np.ndarray:
    """Returns the logits `(W or 1, rows, K)` of Gumbel noise, which is spent.

    Raises:
        Refused: for anything that is not a logit plus noise of its own.
    """
    array = np.moveaxis(x.array, axis, -1)
    array = array.reshape(len(array), -1, array.shape[-1])
    noise = array["uid"] >= 0
    standard = (array["map"] == GUMBEL) & (array["b"] == 1) & (array["c"] == 0) & (array["k"] == 1)
    if not np.all(np.where(noise, standard, array["a"] == -np.inf)):
        raise Refused("the largest of numbers that are not logits plus Gumbel noise")
    if not np.all(noise.any(-1)):
        raise Refused("a categorical draw of which every outcome has probability zero")
    # Shared noise shows as one uniform in two places of a world; impossible outcomes have none.
    distinct = -1 - np.arange(noise[0].size).reshape(noise.shape[1:])
    _spend(machine, np.where(noise, array["uid"], distinct))
    return array["a"]


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _argmax(machine, eqn, inputs):
    (x,) = inputs
    aval = eqn.outvars[0].aval
    chance = _softmax(_logits(machine, x, eqn.params["axes"][0] + 1))
    chance = np.broadcast_to(chance, (len(machine.worlds), *chance.shape[1:]))
    drawn, _ = machine.worlds.choose(chance.shape[1], lambda t, origin: chance[origin, t])
    return [Known(drawn.reshape(len(drawn), *aval.shape).astype(aval.dtype))]


def _top_k(machine, eqn, inputs):
    """The k largest of logits plus Gumbel noise: k draws without replacement."""
    (x,) = inputs
    values, indices = (v.aval for v in eqn.outvars)
    axis = eqn.params.get("axis", -1) % len(values.shape) + 1
    logits = _logits(machine, x, axis)
    num = eqn.params["k"]
    orders = np.array(list(itertools.permutations(range(logits.shape[-1]), num)))
    picked = _softmax(logits)[..., orders]
    left = 1 - np.cumsum(picked, axis=-1) + picked
    with np.errstate(all="ignore"):
        chance = np.prod(np.where(picked > 0, picked / left, 0.0), axis=-1)
    if not np.allclose(chance.sum(-1), 1):
        raise Refused("more draws without replacement than outcomes of positive probability")
    chance = np.broadcast_to(chance, (len(machine.worlds), *chance.shape[1:]))
    drawn, _ = machine.worlds.choose(chance.shape[1], lambda t, origin: chance[origin, t])
    order = np.moveaxis(np.empty((len(drawn), *indices.shape)), axis, -1)
    order = np.moveaxis(orders[drawn].reshape(order.shape), -1, axis)
    return [
        opaque(values.shape, "the largest of noisy logits"),
        Known(order.astype(indices.dtype)),
    ]


GUMBELS = {"argmax": _argmax, "top_k": _top_k}
