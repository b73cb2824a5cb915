"""The laws of `bayesinf.mcmc`: kernels on finite states exactly, on R^n from exact draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesinf import mcmc
from bayesinf.distributions.enumerated import Enumerated
from bayesinf.laws.row import Row, Sizes, one, row
from bayesinf.programs import Target, target
from bayesinf.types import invariant, proper
from bayesinf.validation import Report, check_kernel
from bayesinf.validation.problems import Joint, finite_programs, finite_targets, location_scale


def rows(sizes: Sizes) -> list[Row]:
    targets = finite_targets(sizes.states, sizes.tables)
    pairs = finite_targets((4,), sizes.tables)
    finite = {
        "Metropolis": (metropolis, targets),
        "symmetric": (symmetric, targets),
        "Independence": (independence, targets),
        "DiscreteGibbs": (discrete_gibbs, targets),
        "Involutive": (involutive, targets),
        "cycle": (lambda table: mcmc.cycle(metropolis(table), symmetric(table)), targets),
        "mixture": (
            lambda table: mcmc.mixture([0.3, 0.7], metropolis(table), symmetric(table)),
            targets,
        ),
        "repeat": (lambda table: mcmc.repeat(metropolis(table), 2), targets),
        "fixed": (lambda table: mcmc.fixed(metropolis(table)), targets),
        "from_blackjax": (foreign, targets),
        "from_sampling_algorithm": (closed, targets),
        "run": (runs, targets),
        "blocks": (paired(blocks), pairs),
        "Gibbs": (paired(gibbs), pairs),
        "trace_mh": (paired(trace_mh), pairs),
    }
    continuous = {
        "RandomWalk": mcmc.RandomWalk(0.7),
        "MALA": mcmc.MALA(0.5),
        "HMC": mcmc.HMC(0.3, 5),
        "JitteredHMC": mcmc.JitteredHMC(0.3, 6),
        "NUTS": mcmc.NUTS(0.3),
        "EllipticalSlice": mcmc.EllipticalSlice(jnp.zeros(2), jnp.diag(jnp.array([1.0, 0.5]))),
    }
    return [
        *(row(f"mcmc.{name}", invariant, *how) for name, how in finite.items()),
        row(
            "mcmc.PseudoMarginal",
            invariant,
            pseudo_marginal,
            finite_programs(sizes.states, sizes.tables),
            as_law=proper,
        ),
        *(_continuous(f"mcmc.{name}", kernel) for name, kernel in continuous.items()),
    ]


def _continuous(name: str, kernel) -> Row:
    joint: Joint = location_scale()

    def run(num_tests: int) -> Report:
        return check_kernel(kernel, joint, name=name, num_tests=num_tests)

    return Row(name, invariant, "statistically: exact draws of a joint law", run)


def _lopsided(num: int) -> Float[Array, "K K"]:
    """Returns a proposal's table that is not symmetric: the next state, or any."""
    return 0.8 * jnp.roll(jnp.eye(num), 1, axis=1) + 0.2 / num


def metropolis(log_probs):
    table = jnp.log(_lopsided(log_probs.shape[0]))
    return mcmc.Metropolis(
        lambda key, x: jax.random.categorical(key, table[x]), lambda y, x: table[x, y]
    )


def symmetric(log_probs):
    num = log_probs.shape[0]
    return mcmc.symmetric(lambda key, x: jax.random.randint(key, (), 0, num))


def independence(log_probs):
    num = log_probs.shape[0]
    proposal = Enumerated(jnp.arange(num), jnp.log(jnp.arange(1.0, num + 1)))
    return mcmc.Independence(proposal)


def discrete_gibbs(log_probs):
    return mcmc.DiscreteGibbs(jnp.arange(log_probs.shape[0]))


def involutive(log_probs):
    """Draws another state and swaps it with the current one."""
    table = jnp.log(_lopsided(log_probs.shape[0]))
    return mcmc.Involutive(
        lambda key, x: jax.random.categorical(key, table[x]),
        lambda u, x: table[x, u],
        lambda x, u: (u, x),
    )


def foreign(log_probs):
    """A kernel with BlackJAX's signature."""
    own = metropolis(log_probs)

    def init(position, log_density):
        return own.init(target(log_density), position)

    def step(key, state, log_density):
        return own.step(key, target(log_density), state)

    return mcmc.from_blackjax(init, step)


def closed(log_probs):
    """A kernel that holds its own density."""
    own, states = metropolis(log_probs), target(lambda x: log_probs[x])

    class Algorithm(NamedTuple):
        init: Callable = lambda position: own.init(states, position)
        step: Callable = lambda key, state: own.step(key, states, state)

    kernel = mcmc.from_sampling_algorithm(Algorithm())

    def step(key, x):
        return kernel.step(key, kernel.target, kernel.init(kernel.target, x))[0].position

    return step


def runs(log_probs):
    """The last of three draws of a chain."""
    states = target(lambda x: log_probs[x])

    def step(key, x):
        kernel = metropolis(log_probs)
        return mcmc.run(key, states, kernel, kernel.init(states, x), 3)[0].position

    return step


def paired(make):
    """Returns the function from log probabilities of 4 states to `step(key, x)` on dicts of two."""

    def on_states(log_probs):
        states = target(lambda x: log_probs[2 * x["a"] + x["b"]])

        def step(key, x):
            kernel = make(log_probs.reshape(2, 2))
            state = kernel.init(states, {"a": x // 2, "b": x % 2})
            moved = kernel.step(key, states, state)[0].position
            return 2 * moved["a"] + moved["b"]

        return step

    return on_states


def blocks(table):
    return mcmc.blocks({"a": metropolis(table[:, 0]), "b": mcmc.DiscreteGibbs(jnp.arange(2))})


def gibbs(table):
    """Draws each of two from the exact conditional; a row without mass is not met."""

    def draw(key, log_probs):
        return jax.random.categorical(key, log_probs)

    return mcmc.blocks(
        {
            "a": mcmc.Gibbs(lambda key, rest: draw(key, table[:, rest["b"]])),
            "b": mcmc.Gibbs(lambda key, rest: draw(key, table[rest["a"]])),
        }
    )


def trace_mh(table):
    """One site by a proposal that looks at the other, one by a kernel."""
    proposal = jnp.log(jnp.array([[0.3, 0.7], [0.6, 0.4]]))
    return mcmc.trace_mh(
        {
            "a": mcmc.SiteProposal(
                lambda key, x: jax.random.categorical(key, proposal[x["b"]]),
                lambda value, x: proposal[x["b"], value],
            ),
            "b": symmetric(table[0]),
        }
    )


def pseudo_marginal(key, program):
    """One step from an exact start: the prior, and an estimate that counts as its weight."""
    draw_key, start_key, step_key = jax.random.split(key, 3)

    def estimate(key, x):
        factor = jnp.where(jax.random.bernoulli(key, 0.25), 2.5, 0.5)
        return program.log_likelihood(x) + jnp.log(factor)

    num = program.log_prior.table.shape[0]
    kernel = mcmc.PseudoMarginal(metropolis(jnp.zeros(num)), estimate)
    prior: Target = target(program.log_prior)
    position = kernel.start(start_key, program.sample(draw_key))
    state, _ = kernel.step(step_key, prior, kernel.init(prior, position))
    return one(state.position.value, position.log_estimate)
