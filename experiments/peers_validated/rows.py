"""What every peer's file shares: a block, the problems, and particles from what a peer returns."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bayesinf.distributions import Enumerated, Particles
from bayesinf.types import Law, consistent, proper
from bayesinf.validation import Problem, check, problems
from bayesinf.validation.check import TOLERANCE

# Before any array is made.
jax.config.update("jax_enable_x64", True)

NUM = 2
SINGLE = float(jnp.finfo(jnp.float32).eps)
# Reasons name lines of code; the table keeps them from the package's name on.
_PATH = re.compile(r"/\S*?/(?=site-packages/|experiments/)(site-packages/)?")

POPULATIONS = problems.weighted_particles()
STATES = problems.finite_targets()
PROGRAMS = problems.finite_programs((3,), 1)


def _sequence() -> Problem:
    """Returns the log tables of a hidden Markov model with two readings, all of them possible."""
    chain = problems.chain(3, 2)
    chain = chain._replace(reads=jnp.where(jnp.isfinite(chain.reads), chain.reads, -1.0))
    return Problem("3 states, 2 readings", chain, chain.last())


def _contrary() -> Problem:
    """Returns two data of which each favours the states that the other does not."""
    prior = jnp.array([0.2, 0.3, 0.5])
    data = jnp.array([[0.9, 0.3, 0.1], [0.2, 0.5, 0.8]])
    given = problems.finite_data_programs((3,), 2)[0].given
    given = eqx.tree_at(
        lambda p: (p.sample.log_probs, p.log_prior.table, p.data),
        given,
        (jnp.log(prior), jnp.log(prior), jnp.log(data)),
    )
    masses = prior * data.prod(0)
    return Problem("two data at odds", given, Enumerated(jnp.arange(3), jnp.log(masses)))


DATA = [*problems.finite_data_programs((3,), 2), _contrary()]
SEQUENCES = [_sequence()]


class Block(NamedTuple):
    """A peer's block and how it is checked.

    Attributes:
        name: as its package calls it.
        law: what it claims.
        adapter: the block as `validation.check` takes it.
        problems: on which it is checked.
    """

    name: str
    law: Law
    adapter: Callable
    problems: list[Problem]


def row(package: str, version: str, block: Block) -> dict[str, Any]:
    """Returns what came of a block.

    A block that is only consistent is measured as if it were proper: its error is its exact bias.
    """
    law = proper if block.law == consistent else block.law
    report = check(block.adapter, law, block.problems, name=block.name)
    if block.law == consistent and report.verdict != "refused":
        report = report._replace(verdict="measured")
    elif report.exact_error is not None and TOLERANCE < report.exact_error < SINGLE:
        report = report._replace(verdict="holds", reason="to single precision, which it uses")
    return {
        "package": package,
        "version": version,
        "block": block.name,
        "law": block.law.name,
        "exact_error": report.exact_error,
        "evidence_bias_percent": report.evidence_bias_percent,
        "verdict": report.verdict,
        "seconds": round(report.seconds, 1),
        "reason": _PATH.sub("", report.reason),
    }


def missing(package: str, reason: str) -> dict[str, Any]:
    """Returns the row of a package that cannot be imported."""
    names = ("version", "block", "law", "exact_error", "evidence_bias_percent")
    return {
        "package": package,
        **dict.fromkeys(names),
        "verdict": "skipped",
        "seconds": 0.0,
        "reason": reason,
    }


def drawn(key, sample: Callable, num: int = NUM):
    """Returns draws, each with a key of its own."""
    return jax.vmap(sample)(jax.random.split(key, num))


def particles(values, log_weights, log_evidence) -> Particles:
    return Particles(values, log_weights, jnp.asarray(log_evidence), jnp.asarray(0.0))
