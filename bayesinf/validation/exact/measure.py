"""The exact output measure of a program."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesinf.validation.exact.interpreter import Interpreter
from bayesinf.validation.exact.values import Known, Refused, initial
from bayesinf.validation.exact.worlds import Stats, Worlds


class Measure(NamedTuple):
    """A measure on finitely many atoms: what a program returns, and how probable it is.

    `masses (W,)` has one entry an atom, `atoms` the program's output with the atoms along the
    leading axis. `missing_mass` is what a truncation cut off; with it the masses sum to one.
    `stats` says what the run cost.
    """

    masses: np.ndarray
    atoms: Any
    missing_mass: float
    stats: Stats

    def total(self) -> float:
        """Returns the sum of the masses."""
        return float(self.masses.sum())

    def expectation(self, f: Callable = lambda atom: atom):
        """Returns the sum over atoms of mass times `f(atom)`.

        `f` maps one atom to a pytree of arrays, in JAX. Where the output carries a weight, `f`
        multiplies by it: the sum is then that of the unnormalised measure.
        """
        values = jax.vmap(f)(self.atoms)
        return jax.tree.map(lambda x: np.tensordot(self.masses, np.asarray(x), axes=1), values)

    def push(self, f: Callable) -> "Measure":
        """Returns the measure of `f(atom)`, atoms that became equal merged."""
        leaves, structure = jax.tree.flatten(jax.vmap(f)(self.atoms))
        worlds = Worlds(self.masses, self.stats.peak)
        worlds.missing_mass, worlds.stats = self.missing_mass, self.stats
        return _measure(worlds, [Known(np.asarray(leaf)) for leaf in leaves], structure)

    def table(self) -> list[tuple[Any, float]]:
        """Returns the atoms, each with its mass."""
        leaves, structure = jax.tree.flatten(self.atoms)
        return [
            (jax.tree.unflatten(structure, [leaf[w] for leaf in leaves]), float(mass))
            for w, mass in enumerate(self.masses)
        ]


def exact(
    fn: Callable,
    *args,
    max_worlds: int = 1_000_000,
    max_iterations: int = 10_000,
    truncation: float = 0.0,
    normal: tuple | None = None,
) -> Measure:
    """Returns the exact output measure of `fn(*args)`, a finite program that draws.

    The program is traced, and its equations run in all worlds at once. A world is one way the
    draws can come out. Draws stay symbolic until a question is asked of them; a comparison of a
    uniform splits a world at the exact threshold. Worlds that agree on all that is still needed
    are merged, so that the cost grows with the number of different states, not of paths. It holds
    under `jit`, `vmap`, `scan`, `while`, `cond` and `grad`.

    Reals are ideal: the grid of the generator does not count, and a probability within 1e-14 of
    one is one (1e-5 in float32). Errors are of the order of rounding; run it in double precision.

    Args:
        fn: a function in JAX; keys among its arguments are typed keys or old-style ones.
        max_worlds: more worlds than this at once are refused.
        max_iterations: longer random loops are refused.
        truncation: how much mass a draw with infinitely many outcomes (Poisson, geometric) or a
            loop without a bound may lose; what was lost is in `missing_mass`.
        normal: points and probabilities of the finite law that stands in for standard normal
            noise. Without it, normal noise may be compared with numbers and nothing else.

    Raises:
        Refused: the program holds something that has no exact rule, or is too large.
        KeyReuse: the program consumes a key twice (drawn from, or split).
    """
    start = time.perf_counter()
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    worlds = Worlds(np.ones(1), max_worlds)
    machine = Interpreter(worlds, truncation, max_iterations, _lattice(normal))
    outs = machine.call(program, [initial(x) for x in jax.tree.leaves(args)])
    for out in outs:
        if not isinstance(out, Known):
            raise Refused(f"the program returns {out.noun}")
    measure = _measure(worlds, outs, jax.tree.structure(shapes))
    worlds.stats.seconds = time.perf_counter() - start
    return measure


def _measure(worlds: Worlds, values: list, structure) -> Measure:
    with worlds.scope(dict(enumerate(values))) as held:
        worlds.merge()
    leaves = [np.array(held[i].broadcast(len(worlds))) for i in range(len(values))]
    atoms = jax.tree.unflatten(structure, leaves)
    return Measure(worlds.masses, atoms, worlds.missing_mass, worlds.stats)


def _lattice(normal: tuple | None) -> tuple[np.ndarray, np.ndarray] | None:
    if normal is None:
        return None
    points, probabilities = (np.asarray(x, float) for x in normal)
    fits = points.ndim == 1 and points.shape == probabilities.shape
    if not fits or np.any(probabilities < 0) or not np.isclose(probabilities.sum(), 1):
        raise ValueError(
            f"normal: expected points (K,) and probabilities (K,) that sum to one, got {normal}"
        )
    return points, probabilities
