"""What a variable of the interpreted program can hold, in all worlds at once.

Every value keeps one NumPy array whose first axis runs over the worlds. An array whose first axis
has length 1 holds in every world; keys must, when they are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn


class Refused(Exception):  # noqa: N818
    """The program holds something that has no exact rule; the message says what, and where.

    `line` is the first line outside of JAX that it came from, where it is known.
    """

    def __init__(self, what: str, line: str = ""):
        super().__init__(f"{what}, at {line}" if line else what)
        self.line = line


class KeyReuse(Exception):  # noqa: N818
    """One key was consumed twice, so that two draws are not independent."""


# One number that depends on a uniform u: a + b * map(c + k * u). A constant has uid -1 and b = 0.
UNIFORM = np.dtype(
    [("a", float), ("b", float), ("c", float), ("k", float), ("uid", np.int64), ("map", np.int8)]
)

# A partial sum of exponential draws: of the first `count` of a group.
SUMS = np.dtype([("group", np.int64), ("count", np.int64)])

# One of `num` uniforms `first`, `first + 1`, ... by its rank from 0, or, where num is 0, a number.
ORDER = np.dtype([("a", float), ("first", np.int64), ("num", np.int64), ("rank", np.int64)])


@dataclass(frozen=True)
class Value:
    """An array whose first axis runs over the worlds, or has length 1."""

    array: np.ndarray
    noun: ClassVar[str]

    def move(self, array: np.ndarray):
        """Returns the same kind of value around another arrangement of its elements."""
        return replace(self, array=array)

    def take(self, worlds: np.ndarray):
        return self if len(self.array) == 1 else self.move(self.array[worlds])

    def broadcast(self, num_worlds: int) -> np.ndarray:
        return np.broadcast_to(self.array, (num_worlds, *self.array.shape[1:]))

    def uniforms(self) -> set[int]:
        """Returns the uniforms on which it depends."""
        return set()


@dataclass(frozen=True)
class Known(Value):
    """Ordinary numbers."""

    noun: ClassVar[str] = "a number"


@dataclass(frozen=True)
class Uniforms(Value):
    """Numbers that depend on one uniform each: an array of dtype `UNIFORM`."""

    noun: ClassVar[str] = "a uniform draw"

    def uniforms(self) -> set[int]:
        return set(np.unique(self.array["uid"]).tolist())


@dataclass(frozen=True)
class Sums(Value):
    """Partial sums of exponential draws: an array of dtype `SUMS`."""

    noun: ClassVar[str] = "a sum of exponential draws"


@dataclass(frozen=True)
class Sorted(Value):
    """Uniforms by their rank among others: an array of dtype `ORDER`."""

    noun: ClassVar[str] = "a sorted uniform"

    def uniforms(self) -> set[int]:
        groups = np.unique(self.array[["first", "num"]])
        return {u for first, num in groups.tolist() for u in range(first, first + num)}


@dataclass(frozen=True)
class Bits(Value):
    """Raw random bits: `array` holds the identity of each word.

    Each word is `width` bits wide; `shift` of them were shifted out to the right, and then `ones`
    were set, on the way to the mantissa of a float.
    """

    width: int
    shift: int = 0
    ones: int = 0
    noun: ClassVar[str] = "raw random bits"


@dataclass(frozen=True)
class Keys(Value):
    """Random keys; `array` holds the bytes of each, `impl` their generator."""

    impl: object
    noun: ClassVar[str] = "a random key"


@dataclass(frozen=True)
class KeyData(Value):
    """The words of random keys, which may be moved and made into keys again, no more."""

    noun: ClassVar[str] = "the data of a random key"


@dataclass(frozen=True)
class Opaque(Value):
    """A value that no rule can use; it may be carried around and dropped."""

    reason: str

    @property
    def noun(self) -> str:  # type: ignore[override]
        return self.reason


def opaque(shape: Sequence[int], reason: str) -> Opaque:
    return Opaque(np.broadcast_to(np.zeros((), bool), (1, *shape)), reason)


def known(x) -> Known:
    """Returns a value that holds in every world."""
    return Known(np.asarray(x)[None])


def from_keys(keys: jax.Array) -> Keys:
    words = np.ascontiguousarray(jax.random.key_data(keys))[None]
    whole = np.dtype((np.void, words.itemsize * words.shape[-1]))
    return Keys(words.view(whole)[..., 0], jax.random.key_impl(keys))


def to_keys(keys: Keys) -> jax.Array:
    """Returns keys that hold in every world.

    Raises:
        Refused: where they differ from world to world.
    """
    array = keys.array[:1]
    if np.any(keys.array != array):
        raise Refused("a key that depends on a random outcome")
    words = np.ascontiguousarray(array)[0, ..., None].view(np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl=keys.impl)


def avals(variables: Sequence) -> list[Any]:
    """Returns the abstract arrays of variables."""
    return [v.aval for v in variables]


def is_key(aval) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def initial(x) -> Value:
    """Returns the value of a constant or an argument.

    An array of `uint32` as long as the default key (in its last axis) is a key of the old style,
    as everywhere in JAX.
    """
    if hasattr(x, "dtype") and is_key(x):
        return from_keys(x)
    array = np.asarray(jnp.asarray(x))
    old_style = array.dtype == np.uint32 and array.shape[-1:] == _key_words()
    return KeyData(array[None]) if old_style else Known(array[None])


def _key_words() -> tuple[int]:
    """Returns the shape of the data of one key of the default generator."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def constants(x: Known) -> np.ndarray:
    """Returns numbers as the constants that a `UNIFORM` array may hold."""
    out = np.zeros(x.array.shape, UNIFORM)
    out["a"], out["uid"] = x.array, -1
    return out


def ranked(x: Value) -> np.ndarray:
    """Returns numbers as the constants that an `ORDER` array may hold, and such arrays as such."""
    if isinstance(x, Sorted):
        return x.array
    out = np.zeros(x.array.shape, ORDER)
    out["a"] = x.array
    return out


def settled(array: np.ndarray, dtype) -> Value:
    """Returns plain numbers where no element of a `UNIFORM` array depends on a uniform."""
    if np.all(array["uid"] < 0):
        return Known(array["a"].astype(dtype))
    return Uniforms(array)


def alike(values: Sequence[Value]) -> list | None:
    """Returns values of one kind, numbers made into constants beside uniforms, or None."""
    if {type(v) for v in values} == {Known, Uniforms}:
        return [Uniforms(constants(v)) if isinstance(v, Known) else v for v in values]
    if {type(v) for v in values} == {Known, Sorted}:
        return [Sorted(ranked(v)) for v in values]
    return list(values) if len({tag(v) for v in values}) == 1 else None


def tag(value: Value) -> tuple:
    """Returns what two values must share to lie in one array."""
    fields = {k: v for k, v in vars(value).items() if k != "array"}
    return (type(value), *fields.items())


def join(values: Sequence[Value], sizes: Sequence[int]) -> Value:
    """Returns one value for all worlds from its values in groups of `sizes` worlds."""
    first = values[0]
    same = alike(values)
    if same is None:
        return opaque(first.array.shape[1:], f"{first.noun} in some worlds and not in others")
    arrays = [v.array for v in same]
    if all(len(a) == 1 and (a is arrays[0] or equal(a, arrays[0])) for a in arrays):
        return same[0]
    parts = [v.broadcast(n) for v, n in zip(same, sizes, strict=True)]
    return same[0].move(np.concatenate(parts))


def equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


def where(eqn: JaxprEqn) -> str:
    """Returns the first line outside of JAX that an equation came from, empty if unknown."""
    trace = eqn.source_info.traceback
    for frame in trace.frames if trace else ():
        if "/jax/_src/" not in frame.file_name and "/jax/extend/" not in frame.file_name:
            return f"{Path(frame.file_name).name}:{frame.line_num}"
    return ""
