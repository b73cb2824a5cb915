"""Small problems with known answers: random finite ones, and draws of exact joint laws."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bayesinf.distributions import Enumerated, Particles
from bayesinf.programs import DataProgram, FeynmanKac, Program, Target, feynman_kac, target
from bayesinf.types import Key

STATES = (2, 3)
SEED = 0


class Problem(NamedTuple):
    """What a block is given, and the measure that it must stand for afterwards.

    Attributes:
        name: for the report.
        given: a target's log probabilities, particles, a program or a sequence.
        exact: the answer, by enumeration.
    """

    name: str
    given: Any
    exact: Enumerated


def tables(num_states: int, num: int = 3) -> list[tuple[str, Float[np.ndarray, " K"]]]:
    """Returns up to three log tables: generic, with a state of probability zero, even.

    The error of a wrong formula is an analytic function of the entries, so that a generic table
    refutes it almost surely.
    """
    generic = np.random.default_rng(SEED + num_states).normal(size=num_states)
    hole = generic.copy()
    hole[-1] = -np.inf
    return [
        ("generic", generic),
        ("a state of probability zero", hole),
        ("even", np.zeros(num_states)),
    ][:num]


def finite_targets(states: Sequence[int] = STATES, num_tables: int = 3) -> list[Problem]:
    """Returns targets on 0..K-1 by their log probabilities."""
    return [
        Problem(f"{num} states, {name}", jnp.asarray(table), _on_states(table))
        for num in states
        for name, table in tables(num, num_tables)
    ]


def weighted_particles(sizes: Sequence[int] = (2, 3), num_tables: int = 3) -> list[Problem]:
    """Returns particles 0..n-1 with unequal weights, some zero, and an evidence that is not 1."""
    problems = []
    for num in sizes:
        for name, table in tables(num, num_tables):
            log_weights = jax.nn.log_softmax(jnp.asarray(table))
            given = Particles(jnp.arange(num), log_weights, jnp.asarray(0.7), jnp.asarray(0.0))
            problems.append(
                Problem(f"{num} particles, {name}", given, _on_states(log_weights + 0.7))
            )
    return problems


def finite_programs(states: Sequence[int] = STATES, num_tables: int = 3) -> list[Problem]:
    """Returns programs on 0..K-1: a table of the prior and one of the likelihood."""
    problems = []
    for num in states:
        for name, likelihood in tables(num, num_tables):
            prior = jax.nn.log_softmax(jnp.asarray(tables(num)[0][1][::-1] / 2))
            given = Program(_Draw(prior), _Look(prior), _Look(jnp.asarray(likelihood)))
            exact = _on_states(prior + likelihood)
            problems.append(Problem(f"{num} states, {name} likelihood", given, exact))
    return problems


def finite_data_programs(states: Sequence[int] = STATES, num_data: int = 2) -> list[Problem]:
    """Returns programs on 0..K-1 with data, each of which has its own table of the likelihood."""
    problems = []
    for num in states:
        rng = np.random.default_rng(SEED + 10 * num + num_data)
        prior = jax.nn.log_softmax(jnp.asarray(rng.normal(size=num)))
        data = jnp.asarray(rng.normal(size=(num_data, num)))
        given = DataProgram(_Draw(prior), _Look(prior), lambda x, table: table[x], data)
        problems.append(
            Problem(f"{num} states, {num_data} data", given, _on_states(prior + data.sum(0)))
        )
    return problems


class Chain(NamedTuple):
    """The log tables of a hidden Markov model: start, moves, readings (one of them impossible)."""

    start: Float[Array, " K"]
    move: Float[Array, "K K"]
    reads: Float[Array, "t K"]

    def model(self) -> FeynmanKac:
        """Returns the sequence; the state moves, then it is read."""
        log_potential = _Read()
        return feynman_kac(_Draw(self.start), _Walk(self.move), log_potential, self.reads)

    def paths(self) -> Enumerated:
        """Returns the measure on trajectories, from before the first reading on."""
        num, length = self.reads.shape[1], self.reads.shape[0]
        support = jnp.asarray(list(itertools.product(range(num), repeat=length + 1)))
        return Enumerated(support, jax.vmap(self.log_mass)(support))

    def log_mass(self, path: Int[Array, " t1"]) -> Float[Array, ""]:
        """Returns the log mass of one trajectory."""
        before, after = path[:-1], path[1:]
        log_reads = self.reads[jnp.arange(after.size), after]
        return self.start[path[0]] + jnp.sum(self.move[before, after] + log_reads)

    def last(self) -> Enumerated:
        """Returns the measure on the last state, by the forward recursion."""
        masses = jnp.exp(self.start)
        for read in self.reads:
            masses = (masses @ jnp.exp(self.move)) * jnp.exp(read)
        return _on_states(jnp.log(masses))


def chain(num_states: int, length: int, seed: int = SEED) -> Chain:
    """Returns random log tables."""
    rng = np.random.default_rng(seed + 10 * num_states + length)
    start = jax.nn.log_softmax(jnp.asarray(rng.normal(size=num_states)))
    move = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(num_states, num_states))), axis=1)
    reads = rng.normal(size=(length, num_states))
    reads[0, 0] = -np.inf
    return Chain(start, move, jnp.asarray(reads))


def finite_sequences(
    states: Sequence[int] = STATES, lengths: Sequence[int] = (2,)
) -> list[Problem]:
    """Returns hidden Markov models on 0..K-1; the answer is the last state's measure."""
    chains = [chain(num, length) for num in states for length in lengths]
    return [Problem(_name(each), each.model(), each.last()) for each in chains]


class Smoothing(NamedTuple):
    """A sequence and the exact measure on its trajectories."""

    sequence: FeynmanKac
    smoothing: Enumerated


def finite_trajectories(
    states: Sequence[int] = STATES, lengths: Sequence[int] = (2,)
) -> list[Problem]:
    """Returns hidden Markov models with the measure on their trajectories."""
    chains = [chain(num, length) for num in states for length in lengths]
    return [
        Problem(_name(each), Smoothing(each.model(), each.paths()), each.paths()) for each in chains
    ]


class Choice(NamedTuple):
    """A parameter, 0 or 1, that chooses between two hidden Markov models.

    Attributes:
        log_prior: of the parameter.
        chains: the models' log tables, stacked.
    """

    log_prior: Float[Array, " 2"]
    chains: Chain

    def chain(self, theta: int | Int[Array, ""]) -> Chain:
        return jax.tree.map(lambda leaf: leaf[theta], self.chains)

    def log_joint(self, x: dict[str, Array]) -> Float[Array, ""]:
        """Returns the log mass of the entries `theta` and `path`, all readings given."""
        return self.log_prior[x["theta"]] + self.chain(x["theta"]).log_mass(x["path"])

    def joint(self) -> Enumerated:
        """Returns the measure on parameters and trajectories."""
        both = [self.chain(theta).paths() for theta in range(2)]
        theta = jnp.repeat(jnp.arange(2), both[0].log_masses.size)
        support = {"theta": theta, "path": jnp.concatenate([each.support for each in both])}
        log_masses = jnp.concatenate([each.log_masses for each in both])
        return Enumerated(support, self.log_prior[theta] + log_masses)

    def parameter(self) -> Enumerated:
        """Returns the measure on parameters."""
        masses = jnp.stack([self.chain(theta).last().log_evidence for theta in (0, 1)])
        return Enumerated(jnp.arange(2), self.log_prior + masses)


def choice(num_states: int, length: int) -> Choice:
    """Returns a parameter that chooses between two random hidden Markov models."""
    pair = chain(num_states, length), chain(num_states, length, SEED + 5)
    chains = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    return Choice(jnp.log(jnp.array([0.3, 0.7])), chains)


def _name(chain: Chain) -> str:
    return f"{chain.reads.shape[1]} states, {chain.reads.shape[0]} readings"


def on_states(log_probs: Float[Array, " K"]) -> Target:
    """Returns the target on the states 0..K-1 with these log probabilities."""
    return target(_Look(log_probs))


class Joint(NamedTuple):
    """A draw of an exact joint law, with the target that conditions on its data.

    Attributes:
        draw: from a key to a parameter and data.
        target: from data to the posterior of the parameter.
        statistics: of the parameter and the data; bounded or with finite variance.
    """

    draw: Callable[[Key], tuple[PyTree, PyTree]]
    target: Callable[[PyTree], Target]
    statistics: Callable[[PyTree, PyTree], Float[Array, " m"]]


def location_scale(num_data: int = 3) -> Joint:
    """Returns a location and a log scale with normal data: asymmetric, curved, two-dimensional."""

    def draw(key):
        prior_key, data_key = jax.random.split(key)
        x = jax.random.normal(prior_key, (2,)) * jnp.array([1.0, 0.5])
        y = x[0] + jnp.exp(x[1]) * jax.random.normal(data_key, (num_data,))
        return x, y

    def posterior(y):
        def log_density(x):
            log_prior = -0.5 * x[0] ** 2 - 2 * x[1] ** 2
            return log_prior - 0.5 * jnp.sum(((y - x[0]) / jnp.exp(x[1])) ** 2) - num_data * x[1]

        return target(log_density)

    def statistics(x, y):
        squares = jnp.array([x[0] ** 2, x[1] ** 2, x[0] * jnp.mean(y), x[1] * jnp.std(y)])
        bounded = jnp.array([jnp.cos(x[0] + x[1]), jnp.sin(2 * x[0]), jnp.sin(2 * x[1])])
        return jnp.concatenate([x, squares, bounded])

    return Joint(draw, posterior, statistics)


def _on_states(log_masses) -> Enumerated:
    log_masses = jnp.asarray(log_masses)
    return Enumerated(jnp.arange(log_masses.size), log_masses)


class _Draw(NamedTuple):
    log_probs: Float[Array, " K"]

    def __call__(self, key):
        return jax.random.categorical(key, self.log_probs)


class _Walk(NamedTuple):
    log_probs: Float[Array, "K K"]

    def __call__(self, key, x, input):
        return jax.random.categorical(key, self.log_probs[x])


class _Read(NamedTuple):
    def __call__(self, before, after, read):
        del before
        return read[after]


class _Look(NamedTuple):
    table: Float[Array, " K"]

    def __call__(self, x):
        return self.table[x]
