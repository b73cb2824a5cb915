"""Keys, and the noise made from them, down to the raw bits.

JAX makes a uniform from raw bits in a few steps (shift, or, bitcast, subtract one), which are
followed one by one, so that every sampler built on uniforms is understood from its own code.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bayesinf.validation.exact.uniforms import IDENTITY
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
)


def consume(machine, keys: Keys) -> jax.Array:
    """Returns keys as JAX has them, and remembers that they are used up.

    Raises:
        KeyReuse: where one of them was.
        Refused: where a key depends on the outcome of a draw.
    """
    array, line = to_keys(keys), machine.line()
    for each in keys.array[0].ravel():
        name = (keys.impl, each.tobytes())
        if name in machine.consumed:
            both = f"{machine.consumed[name]} and at {line}"
            if name in machine.doubted:
                raise Refused(f"one key is used at {both}, perhaps in a lane whose loop has ended")
            raise KeyReuse(f"one key is used at {both}")
        machine.consumed[name] = line
    return array


def _bits(machine, eqn, inputs):
    consume(machine, inputs[0])
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
    return _derive(eqn, consume(machine, inputs[0]))


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
    spend(machine, rows)
    orders = arrangements(machine, size, size)
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


def arrangements(machine, size: int, num: int) -> np.ndarray:
    """Returns the ordered choices of `num` out of `size`, `(K, num)`.

    Raises:
        Refused: where they would make more worlds than are allowed.
    """
    machine.worlds.check_size(len(machine.worlds) * math.perm(size, num))
    return np.array(list(itertools.permutations(range(size), num)))


def spend(machine, uid: np.ndarray):
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
