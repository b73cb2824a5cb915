"""Runs a program in all worlds at once, one equation after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from bayesinf.validation.exact import (
    control,
    decisions,
    draws,
    gumbel,
    moves,
    samplers,
    sorting,
    spacings,
    uniforms,
)
from bayesinf.validation.exact.deterministic import (
    called,
    evaluate,
    has_rule,
    is_light,
    is_random,
    source,
)
from bayesinf.validation.exact.values import (
    Bits,
    KeyReuse,
    Keys,
    Known,
    Opaque,
    Refused,
    Sorted,
    Sums,
    Uniforms,
    Value,
    alike,
    avals,
    initial,
    where,
)
from bayesinf.validation.exact.worlds import Worlds

# Rules for draws, by the kind of value that makes an equation random.
_RULES = {
    Bits: draws.BITS,
    Keys: draws.KEYS,
    Sums: spacings.SUM_RULES,
    Sorted: {**spacings.SORTED_RULES, **sorting.SORTED_RULES},
    Uniforms: {
        **uniforms.RULES,
        **decisions.RULES,
        **gumbel.RULES,
        **spacings.UNIFORM_RULES,
        **sorting.UNIFORM_RULES,
    },
}


class Interpreter:
    """The state of one run: the worlds, the keys used up, and what the caller asked for.

    A rule is called as `rule(interpreter, equation, inputs)` and returns the results. Where it
    splits the worlds, its results belong to the worlds after the split.
    """

    def __init__(self, worlds: Worlds, truncation: float, max_iterations: int, normal):
        self.worlds = worlds
        self.truncation = truncation
        self.max_iterations = max_iterations
        self.normal = normal
        self.consumed: dict = {}
        self.doubted: set = set()
        self.divided: set = set()
        self._running: list[JaxprEqn] = []

    def call(self, program: ClosedJaxpr, args: list[Value]) -> list[Value]:
        """Returns the results of a program."""
        jaxpr = program.jaxpr
        env: dict = dict(zip(jaxpr.constvars, map(initial, program.consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        unused, dying = _lifetimes(jaxpr)
        for var in unused:
            del env[var]
        with self.worlds.scope(env):
            for eqn, last in zip(jaxpr.eqns, dying, strict=True):
                self._step(eqn, env, last)
        return [_read(env, v) for v in jaxpr.outvars]

    def line(self) -> str:
        """Returns the line of the program that runs now.

        The code of JAX's own functions is traced once, and remembers the line of its first use.
        """
        own = next((n for n, eqn in enumerate(self._running) if _is_library(eqn)), None)
        trail = self._running if own is None else self._running[: own + 1]
        return next(filter(None, map(where, reversed(trail))), "an unknown line")

    @contextmanager
    def doubtful(self) -> Iterator[None]:
        """Refuses the second use of a key where one of the two, in the body, may be none."""
        before = dict(self.consumed)
        try:
            yield
        except KeyReuse as error:
            raise Refused(f"{error}, perhaps in a lane whose loop has ended", self.line()) from None
        self.doubted |= self.consumed.keys() - before.keys()

    def _step(self, eqn: JaxprEqn, env: dict, last: frozenset):
        """Runs one equation; `last` names the variables that nothing reads afterwards."""
        inputs = [_read(env, v) for v in eqn.invars]
        random = is_random(eqn) or not all(isinstance(x, Known) for x in inputs)
        if random:
            self.worlds.merge_if_grown()
            inputs = [_read(env, v) for v in eqn.invars]
        for var in last:
            env.pop(var, None)
        self._running.append(eqn)
        try:
            outs = self._apply(eqn, inputs, random)
        except Refused as error:
            raise error if error.line else Refused(str(error), self.line()) from None
        self._running.pop()
        env.update((v, x) for v, x in zip(eqn.outvars, outs, strict=True) if v not in last)

    def _apply(self, eqn: JaxprEqn, inputs: list[Value], random: bool) -> list[Value]:
        name = eqn.primitive.name
        if not random and (has_rule(eqn) or not is_light(eqn)):
            return list(map(Known, evaluate(self.worlds, eqn, [x.array for x in inputs])))
        if name in control.RULES:
            return control.RULES[name](self, eqn, inputs)
        if (program := called(eqn)) is not None:
            rule = samplers.rule(eqn, program) if random else None
            return rule(self, eqn, inputs) if rule else self.call(program, inputs)
        if name in moves.RULES and (moved := _move(eqn, inputs)) is not None:
            return moved
        usable = not any(isinstance(x, Opaque) for x in inputs)
        for kind, rules in _RULES.items():
            if name in rules and (
                usable if kind is Keys else any(isinstance(x, kind) for x in inputs)
            ):
                return rules[name](self, eqn, inputs)
        nouns = sorted({x.noun for x in inputs if not isinstance(x, Known)})
        raise Refused(f"no exact rule for {name} of {' and '.join(nouns) or 'numbers'}")


def _move(eqn: JaxprEqn, inputs: list[Value]) -> list[Value] | None:
    """Moves elements of draws or keys; None where they are of kinds that do not go together."""
    name = eqn.primitive.name
    (shape, *_) = (a.shape for a in avals(eqn.outvars))
    indices = moves.INDICES.get(name, lambda n: ())(len(inputs))
    if not all(isinstance(inputs[i], Known) for i in indices):
        return None
    same = alike([x for i, x in enumerate(inputs) if i not in indices])
    if same is None:
        return None
    data = iter(same)
    arrays = [x.array if i in indices else next(data).array for i, x in enumerate(inputs)]
    out = moves.RULES[name](eqn.params, shape, *arrays)
    return [same[0].move(np.asarray(x)) for x in (out if isinstance(out, list) else [out])]


def _is_library(eqn: JaxprEqn) -> bool:
    """Whether an equation calls a function of JAX."""
    program = called(eqn)
    return program is not None and "/jax/_src/" in source(program)


def _read(env: dict, var) -> Value:
    if isinstance(var, Literal):
        return Known(np.asarray(var.val, avals([var])[0].dtype)[None])
    return env[var]


@lru_cache(maxsize=4096)
def _lifetimes(jaxpr: Jaxpr) -> tuple[frozenset, list[frozenset]]:
    """Returns the inputs that nothing reads, and for each equation what it is the last to touch."""
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    last: dict = {}
    for n, eqn in enumerate(jaxpr.eqns):
        last.update({v: n for v in (*eqn.invars, *eqn.outvars) if not isinstance(v, Literal)})
    unused = {v for v in (*jaxpr.constvars, *jaxpr.invars) if v not in last and v not in kept}
    dying: list[set] = [set() for _ in jaxpr.eqns]
    for var, n in last.items():
        if var not in kept:
            dying[n].add(var)
    return frozenset(unused), [frozenset(d) for d in dying]
