"""One row of the table of laws."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bayesinf.distributions.particles import Particles
from bayesinf.types import Law
from bayesinf.validation import Problem, Report, check


class Sizes(NamedTuple):
    """How large the finite problems are.

    Attributes:
        states: numbers of states.
        particles: numbers of particles.
        lengths: numbers of readings or data.
        tables: how many of the random tables, of which the second has a state of probability zero.
    """

    states: tuple[int, ...]
    particles: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: int


QUICK = Sizes((3,), (2,), (2,), 1)
FULL = Sizes((2, 3), (2, 3), (2, 3), 3)


class Row(NamedTuple):
    """A block and how its law is checked.

    Attributes:
        block: its public name, as `mcmc.HMC`.
        law: what it claims.
        check: how it is checked, in words.
        run: from the number of tests in the suite to a report.
    """

    block: str
    law: Law
    check: str
    run: Callable[[int], Report]


def row(name: str, law: Law, block: Any, problems: list[Problem], as_law: Law | None = None) -> Row:
    """Returns the row of a block that `check` takes.

    Where a law speaks of more than a state (a trajectory, a point with its estimate) the block is
    wrapped in a run from an exact start, whose result must stand for the target: `as_law` proper.
    """

    def run(num_tests: int) -> Report:
        checked = check(block, as_law or law, problems, name=name, num_tests=num_tests)
        return checked._replace(law=law.name)

    return Row(name, law, f"exactly, on {problems[0].name} and more", run)


def one(value: PyTree, log_mass: Array) -> Particles:
    """Returns a single particle with this mass."""
    values = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], value)
    return Particles(values, jnp.zeros(1), jnp.asarray(log_mass), jnp.asarray(0.0))
