"""Equations without randomness: NumPy where it has rules, else compiled and mapped over worlds.

Compiling an equation costs tens of milliseconds, a NumPy rule tens of microseconds; with at most
some thousand worlds that is what a run costs.
"""

from collections.abc import Iterator
from functools import lru_cache

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from bayesinf.validation.exact import arrays
from bayesinf.validation.exact.moves import align
from bayesinf.validation.exact.values import avals, is_key
from bayesinf.validation.exact.worlds import Worlds

# Compiled equations see this many worlds at a time, so that few sizes are compiled.
_BATCHES = (16, 256, 4096)
# A loop longer than this is compiled.
_SHORT = 64

# Primitives that draw, or mix the words of a key; those without a rule are refused.
_NOISY = ("random_", "rng_", "threefry", "philox", "io_callback")

# Where an equation that only calls keeps what it calls.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}


def closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Returns the program that an equation does nothing but call, None for other equations."""
    name = eqn.primitive.name
    if name in _CALLS:
        return closed(eqn.params[_CALLS[name]])
    if name == "call_hi_primitive":  # newer than JAX 0.10
        return _lowered(eqn.primitive, tuple(eqn.params.items()), tuple(avals(eqn.invars)))
    return None


def source(program: ClosedJaxpr) -> str:
    """Returns the name, the file and the line of the function that a program was traced from."""
    return program.jaxpr.debug_info.func_src_info or ""


@lru_cache(maxsize=1024)
def _lowered(primitive, params: tuple, operands: tuple) -> ClosedJaxpr:
    """Returns a primitive of high level as a program of plain ones."""
    return jax.make_jaxpr(lambda *args: primitive.to_lojax(*args, **dict(params)))(*operands)


def inner(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """Yields the programs that an equation holds."""
    if (program := called(eqn)) is not None:
        yield program
        return
    for param in eqn.params.values():
        for each in param if isinstance(param, tuple | list) else (param,):
            if isinstance(each, Jaxpr | ClosedJaxpr):
                yield closed(each)


def is_random(eqn: JaxprEqn) -> bool:
    """Whether an equation, or one inside of it, draws or touches a key."""
    touches = any(is_key(a) for a in avals(eqn.invars + eqn.outvars) if hasattr(a, "dtype"))
    return touches or eqn.primitive.name.startswith(_NOISY) or any(map(_draws, inner(eqn)))


@lru_cache(maxsize=4096)
def _draws(program: ClosedJaxpr) -> bool:
    return any(is_random(eqn) for eqn in program.jaxpr.eqns)


def has_rule(eqn: JaxprEqn) -> bool:
    """Whether NumPy can evaluate a deterministic equation."""
    name = eqn.primitive.name
    if name == "sort" and eqn.params["num_keys"] > 1:
        return False
    if name == "pad" and any(min(low, high) < 0 for low, high, _ in eqn.params["padding_config"]):
        return False
    if name in ("reduce_and", "reduce_or") and avals(eqn.outvars)[0].dtype != bool:
        return False
    plain = all(
        getattr(getattr(a, "dtype", None), "kind", "") in tuple("fiub")
        for a in avals(eqn.invars + eqn.outvars)
    )
    return plain and (name in arrays.ELEMENTWISE or name in arrays.RULES)


def is_light(eqn: JaxprEqn) -> bool:
    """Whether a deterministic equation is cheaper to interpret than to compile."""
    if has_rule(eqn):
        return True
    name = eqn.primitive.name
    if name == "scan" and eqn.params["length"] > _SHORT:
        return False
    calls = name in ("scan", "cond") or called(eqn) is not None
    return calls and all(map(_is_light, inner(eqn)))


@lru_cache(maxsize=4096)
def _is_light(program: ClosedJaxpr) -> bool:
    return all(is_light(eqn) for eqn in program.jaxpr.eqns)


def evaluate(worlds: Worlds, eqn: JaxprEqn, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the results of a deterministic equation, arrays whose first axis is the worlds."""
    if not has_rule(eqn):
        return _compiled(worlds, eqn, inputs)
    name, results = eqn.primitive.name, avals(eqn.outvars)
    ndim = len(results[0].shape) + 1
    with np.errstate(all="ignore"):
        if name in arrays.ELEMENTWISE:
            out = arrays.ELEMENTWISE[name](*(align(x, ndim) for x in inputs))
        else:
            out = arrays.RULES[name](eqn.params, results[0].shape, *inputs)
        out = out if isinstance(out, list) else [out]
        return [
            np.asarray(x).astype(a.dtype, copy=False) for x, a in zip(out, results, strict=True)
        ]


def _compiled(worlds: Worlds, eqn: JaxprEqn, inputs: list[np.ndarray]) -> list[np.ndarray]:
    axes = tuple(None if len(x) == 1 else 0 for x in inputs)
    try:
        key = tuple(sorted(eqn.params.items()))
        before = _function.cache_info().misses
        run = _function(eqn.primitive, key, axes)
        worlds.stats.compiled += _function.cache_info().misses - before
    except TypeError:  # some parameters have no hash or no order
        run = _function.__wrapped__(eqn.primitive, tuple(eqn.params.items()), axes)
        worlds.stats.compiled += 1
    if not any(axis == 0 for axis in axes):
        return [np.asarray(x)[None] for x in run(*(x[0] for x in inputs))]
    total = max(len(x) for x in inputs)
    size = next((b for b in _BATCHES if b >= total), _BATCHES[-1])
    parts = []
    for start in range(0, total, size):
        index = np.minimum(np.arange(start, start + size), total - 1)
        args = [x[0] if axis is None else x[index] for x, axis in zip(inputs, axes, strict=True)]
        parts.append([np.asarray(x) for x in run(*args)])
    return [np.concatenate(part)[:total] for part in zip(*parts, strict=True)]


@lru_cache(maxsize=1024)
def _function(primitive, params: tuple, axes: tuple):
    """Returns one primitive compiled, and mapped over the operands that have worlds."""
    bound = dict(params)

    def call(*args):
        if primitive.name in _CALLS:
            return jaxpr_as_fun(closed(bound[_CALLS[primitive.name]]))(*args)
        bind = primitive.get_bind_params(bound)
        functions, rest = bind if isinstance(bind, tuple) else ((), bind)  # a tuple before 0.10
        out = primitive.bind(*functions, *args, **rest)
        return out if primitive.multiple_results else [out]

    return jax.jit(call if all(axis is None for axis in axes) else jax.vmap(call, in_axes=axes))
