"""Samplers that are understood from their name, and how to add one.

Their code makes integers from raw bits, or loops in a way that has no exact rule; their law is
known.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy.special as special

from bayesinf.validation.exact.deterministic import called, closed, evaluate, inner, source
from bayesinf.validation.exact.draws import consume
from bayesinf.validation.exact.gumbel import noise
from bayesinf.validation.exact.values import Keys, Known, Refused, Value, is_key

# A draw with more outcomes than this is refused.
_MOST_OUTCOMES = 4096


def _draw(machine, eqn, probabilities: np.ndarray, values: np.ndarray) -> list[Value]:
    """Draws each element of the result by its law `(W or 1, *shape, K)`, which may lack mass."""
    worlds, aval = machine.worlds, eqn.outvars[0].aval
    before = len(worlds)
    size, num = math.prod(aval.shape), probabilities.shape[-1]
    chance = np.broadcast_to(probabilities, (before, *aval.shape, num)).reshape(before, size, num)
    values = np.broadcast_to(values, (before, *aval.shape, num)).reshape(before, size, num)
    mass = worlds.masses.sum()
    drawn, origin = worlds.choose(size, lambda t, origin: chance[origin, t])
    worlds.missing_mass += max(0.0, mass - worlds.masses.sum())
    out = np.take_along_axis(values[origin], drawn[..., None], axis=-1)
    return [Known(out.reshape(len(out), *aval.shape).astype(aval.dtype))]


def _randint(machine, eqn, inputs):
    """An integer that is uniform between its bounds.

    JAX makes it from a high and a low word. Where the high one is 0, the result is the lower bound
    plus the remainder of the low one by the span; so the code itself, run with words of our
    choice, says what bounds each element has.
    """
    keys = [x for x in inputs if isinstance(x, Keys)]
    numbers = _numbers(inputs)
    consume(machine, keys[0])
    program = closed(eqn.params["jaxpr"])
    shape = eqn.outvars[0].aval.shape

    def outcome(low_word: np.ndarray) -> np.ndarray:
        return _replay(machine, program, numbers, iter((np.zeros(1, int), low_word)), shape)

    lowest = outcome(np.zeros(1, int))
    # The span lies above `below` and is at most `above`.
    below, above = np.zeros(lowest.shape, int), np.full(lowest.shape, _MOST_OUTCOMES + 1)
    while np.any(above - below > 1):
        middle = (below + above) // 2
        inside = outcome(middle) == lowest + middle
        below, above = np.where(inside, middle, below), np.where(inside, above, middle)
    if np.any(above > _MOST_OUTCOMES):
        raise Refused(f"an integer draw with more than {_MOST_OUTCOMES} outcomes")
    count = np.arange(np.max(above, initial=1))
    return _draw(
        machine, eqn, (count < above[..., None]) / above[..., None], lowest[..., None] + count
    )


def _replay(machine, program, args: list, words: Iterator, shape) -> np.ndarray:
    """Returns the result of a sampler's code with given words in the place of its random bits."""
    jaxpr = program.jaxpr
    env: dict = dict(
        zip(jaxpr.constvars, (np.asarray(c)[None] for c in program.consts), strict=True)
    )
    numbers = iter(args)
    for var in jaxpr.invars:
        env[var] = None if is_key(var.aval) else next(numbers)

    def read(var):
        return np.asarray(var.val)[None] if hasattr(var, "val") else env[var]

    for eqn in jaxpr.eqns:
        aval = eqn.outvars[0].aval
        if is_key(aval):
            outs = [None] * len(eqn.outvars)
        elif eqn.primitive.name == "random_bits":
            if aval.shape != shape:
                raise Refused("integer draws that share their bits")
            outs = [_word(next(words), aval)]
        elif (callee := called(eqn)) is not None:
            outs = [_replay(machine, callee, [read(v) for v in eqn.invars], words, shape)]
        else:
            outs = evaluate(machine.worlds, eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return read(jaxpr.outvars[0])


def _word(word: np.ndarray, aval) -> np.ndarray:
    word = word.astype(aval.dtype).reshape(len(word), *(word.shape[1:] or (1,) * aval.ndim))
    return np.broadcast_to(word, (len(word), *aval.shape))


def _numbers(inputs: list[Value]) -> list[np.ndarray]:
    numbers = [x for x in inputs if not isinstance(x, Keys)]
    if not all(isinstance(x, Known) for x in numbers):
        raise Refused("a draw whose parameters are draws of unknown value")
    return [x.array for x in numbers]


def _elementwise(law: Callable, maker: str = "random_bits"):
    """Returns the rule of a sampler whose elements are independent.

    `law(truncation, *parameters)` returns the probabilities `(..., K)` of the integers from 0 on.
    The primitive `maker` makes the noise of the elements, or a key for each.
    """

    def rule(machine, eqn, inputs):
        keys = [x for x in inputs if isinstance(x, Keys)]
        shape = eqn.outvars[0].aval.shape
        # Under vmap with one key for all lanes, lanes share their noise.
        if min(_sizes(eqn, maker), default=0) < math.prod(shape):
            raise Refused("draws that share their noise, so that they depend on each other")
        batched = keys[0].array.ndim > 1
        parameters = [_placed(x, batched, shape) for x in _numbers(inputs)]
        consume(machine, keys[0])
        probabilities = law(machine.truncation, *np.broadcast_arrays(*parameters))
        return _draw(machine, eqn, probabilities, np.arange(probabilities.shape[-1]))

    return rule


def _sizes(eqn, name: str) -> Iterator[int]:
    """Yields the sizes of what the primitives of a name make, inside of an equation."""
    if eqn.primitive.name == name:
        yield math.prod(eqn.outvars[0].aval.shape)
    for program in inner(eqn):
        for each in program.jaxpr.eqns:
            yield from _sizes(each, name)


def _placed(x: np.ndarray, batched: bool, shape: tuple) -> np.ndarray:
    """Returns a parameter so that it broadcasts against the draws.

    Raises:
        Refused: under vmap, where the sizes do not say which axis is which.
    """
    own = x.shape[1:]
    flat = x.reshape(len(x), -1)
    if np.all(flat == flat[:, :1]):
        return flat[:, 0].reshape(len(x), *(1,) * len(shape))
    if batched and (own != shape or len(set(shape)) < len(shape)):
        raise Refused("a batch of draws whose parameters may be laid out in several ways")
    return x.reshape(len(x), *(1,) * (len(shape) - len(own)), *own)


def _cut_off(tail: Callable, truncation: float, *parameters: np.ndarray) -> int:
    """Returns how many integers to keep for all but `truncation` of the mass, in every draw."""
    if truncation <= 0:
        raise Refused("a draw with infinitely many outcomes; truncation= says how much to cut off")
    num = 1
    while np.any(tail(num - 1, *parameters) > truncation):
        num += 1
        if num > _MOST_OUTCOMES:
            raise Refused(f"a draw with more than {_MOST_OUTCOMES} outcomes")
    return num


def _poisson(truncation, rate):
    if not np.all((rate >= 0) & np.isfinite(rate)):
        raise Refused("a Poisson draw whose rate is not a finite number")
    k = np.arange(_cut_off(special.pdtrc, truncation, rate.astype(float)))
    rate = rate.astype(float)[..., None]
    return np.exp(special.xlogy(k, rate) - rate - special.gammaln(k + 1))


def _geometric(truncation, chance):
    if not np.all((chance > 0) & (chance <= 1)):
        raise Refused("a geometric draw whose probability is not in (0, 1]")
    chance = chance.astype(float)
    num = 1 + _cut_off(lambda k, p: (1 - p) ** (k + 1), truncation, chance)
    k, chance = np.arange(num), chance[..., None]
    return np.where(k > 0, chance * (1 - chance) ** np.maximum(k - 1, 0), 0.0)


def _binomial(truncation, chance, total):
    """NumPyro's own; JAX's is not a call of its own."""
    whole = (total == np.floor(total)) & (total >= 0) & (chance >= 0) & (chance <= 1)
    if not np.all(whole) or np.max(total) > _MOST_OUTCOMES:
        raise Refused("a binomial draw whose parameters are not a probability and a small count")
    k = np.arange(int(np.max(total)) + 1)
    n, p = total.astype(float)[..., None], chance.astype(float)[..., None]
    ways = np.exp(
        special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(np.maximum(n - k, 0) + 1)
    )
    return np.where(k <= n, ways * p**k * (1 - p) ** np.maximum(n - k, 0), 0.0)


_JAX, _NUMPYRO = "/jax/_src/random", "/numpyro/distributions/util.py"

# The rule of each sampler, and what its source's path must hold: anybody may call a function so.
RULES = {
    "_binomial": (_elementwise(_binomial, "random_split"), _NUMPYRO),
    "_geometric": (_elementwise(_geometric), _JAX),
    "_gumbel": (noise, _JAX),
    "_poisson": (_elementwise(_poisson), _JAX),
    "_randint": (_randint, _JAX),
}


def rule(eqn, program) -> Callable | None:
    """Returns the rule of a call of `program` that is a known sampler."""
    found, path = RULES.get(eqn.params.get("name", ""), (None, ""))
    return found if found and path in source(program) else None


def register(name: str, law: Callable) -> None:
    """Gives a sampler of your own an exact law, in place of its code.

    `name` is that of the jitted function; it takes one key and numbers, and returns one array.
    `law(*numbers)` takes the numbers, in order, as NumPy arrays, and returns the probabilities
    `(K,)` of its outcomes and the outcomes `(K, ...)`. Under a batch of keys it is refused.

    Raises:
        ValueError: where the name has a law already.
    """
    if name in RULES:
        raise ValueError(f"name: {name!r} has a law already")

    def rule(machine, eqn, inputs):
        numbers = _numbers(inputs)
        keys = [x for x in inputs if isinstance(x, Keys)]
        if len(keys) != 1 or keys[0].array.shape != (1,):
            raise Refused(f"{name} with other than one key")
        if len(eqn.outvars) != 1:
            raise Refused(f"{name} returns more than one array")
        consume(machine, keys[0])
        worlds, aval = machine.worlds, eqn.outvars[0].aval
        laws = []
        for world in range(max([len(x) for x in numbers], default=1)):
            chance, outcomes = map(np.asarray, law(*(x[world % len(x)] for x in numbers)))
            fits = chance.ndim == 1 and outcomes.shape == (len(chance), *aval.shape)
            if not fits or np.any(chance < 0) or not np.isclose(chance.sum(), 1):
                raise Refused(f"a law of {name} that is none, or of another shape")
            laws.append((chance, outcomes))
        most = max(len(chance) for chance, _ in laws)
        chances = np.zeros((len(laws), most))
        table = np.zeros((len(laws), most, *aval.shape), aval.dtype)
        for world, (chance, outcomes) in enumerate(laws):
            chances[world, : len(chance)] = chance
            table[world, : len(chance)] = outcomes
        rows = np.arange(len(worlds)) % len(laws)
        drawn, origin = worlds.choose(1, lambda t, origin: chances[rows[origin]])
        return [Known(table[rows[origin], drawn[:, 0]])]

    RULES[name] = (rule, "")
