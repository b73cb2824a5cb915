"""Kernels on finite states: the exact measure after a step from the target is the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import mcmc
from bayesinf.distributions.enumerated import Enumerated, matches
from bayesinf.mcmc.state import Info, State, accept
from bayesinf.programs import Target, enumerate_points, target
from bayesinf.validation import KeyReuse, exact

# Rounding of double precision through a step.
TOLERANCE = 1e-12

pytestmark = pytest.mark.usefixtures("x64")

LINE = np.array([0.3, -1.2, 0.9, -0.1])
HOLED = np.array([0.3, -np.inf, 0.9, -0.1])
TABLE = np.array([[0.2, -0.7, 1.1], [-0.4, 0.8, -np.inf]])
MOVES = np.array(
    [[0.1, 0.4, 0.2, 0.3], [0.5, 0.1, 0.3, 0.1], [0.2, 0.2, 0.2, 0.4], [0.6, 0.1, 0.2, 0.1]]
)


def invariance_error(kernel, given: Target, start: Enumerated) -> float:
    """Returns the largest difference that a step makes to an exact law of positions."""

    def end(key):
        start_key, step_key = jax.random.split(key)
        state = kernel.init(given, start.sample(start_key))
        state, _ = kernel.step(step_key, given, state)
        # A state's log terms must be those of its position: nothing stale.
        fresh = kernel.init(given, state.position).parts
        same = jnp.all((state.parts == fresh) | (jnp.abs(state.parts - fresh) < 1e-12))
        at = matches(start.support, state.position)
        return jnp.append(jnp.where(at & same, 1.0, 0.0), jnp.where(jnp.any(at) & same, 0.0, 1.0))

    came = exact(end, jax.random.key(0)).expectation()
    return float(np.abs(came - np.append(start.probs(), 0.0)).max())


def on_line(table):
    log_probs = jnp.asarray(table)
    given = target(lambda x: log_probs[x])
    return given, Enumerated(jnp.arange(len(table)), log_probs)


def on_pairs():
    """Returns a target on dicts of two finite entries, one pair of which is impossible."""
    table = jnp.asarray(TABLE)
    given = target(lambda x: table[x["a"], x["b"]])
    rows, columns = jnp.meshgrid(jnp.arange(2), jnp.arange(3), indexing="ij")
    return given, enumerate_points(given, {"a": rows.ravel(), "b": columns.ravel()})


def draw_row(key, x):
    return jax.random.categorical(key, jnp.log(jnp.asarray(MOVES))[x])


def row_log_prob(y, x):
    return jnp.log(jnp.asarray(MOVES))[x, y]


def around(key, x):
    return (x + jax.random.choice(key, jnp.array([-1, 1]))) % 4


LOPSIDED = mcmc.Metropolis(draw_row, row_log_prob)
EVEN = mcmc.symmetric(around)


def swap_involution(x, u):
    return u, x


SWAP = mcmc.Involutive(draw_row, row_log_prob, swap_involution)


def independence():
    proposal = Enumerated(jnp.arange(4), jnp.log(jnp.array([0.4, 0.1, 0.2, 0.3])))
    return mcmc.Independence(proposal)


# Made when they are used: in double precision.
LINE_KERNELS = {
    "metropolis": lambda: LOPSIDED,
    "symmetric": lambda: EVEN,
    "independence": independence,
    "discrete_gibbs": lambda: mcmc.DiscreteGibbs(np.arange(4)),
    "involutive": lambda: SWAP,
    "cycle": lambda: mcmc.cycle(LOPSIDED, EVEN),
    "mixture": lambda: mcmc.mixture([0.3, 0.7], LOPSIDED, EVEN),
    "repeat": lambda: mcmc.repeat(LOPSIDED, 3),
    "nested": lambda: mcmc.cycle(mcmc.mixture([1, 2], mcmc.repeat(EVEN, 2), SWAP), LOPSIDED),
}


@pytest.mark.parametrize("table", [LINE, HOLED], ids=["generic", "holed"])
@pytest.mark.parametrize("kernel", LINE_KERNELS.values(), ids=LINE_KERNELS)
def test_exact_kernels_leave_a_finite_target(kernel, table):
    assert invariance_error(kernel(), *on_line(table)) < TOLERANCE


@pytest.mark.parametrize("exponents", [(1.0, 0.0), (1.0, 0.3)])
def test_exact_kernels_leave_a_tempered_target(exponents):
    tables = jnp.stack([jnp.asarray(LINE), jnp.asarray(HOLED)])
    given = Target(lambda x: tables[:, x], jnp.asarray(exponents))
    start = enumerate_points(given, jnp.arange(4))
    assert invariance_error(mcmc.cycle(LOPSIDED, EVEN), given, start) < TOLERANCE


def propose_b(key, choices):
    # Looks at the other choice and at its own old value.
    logits = jnp.stack([1.0 * choices["a"], 0.3 * choices["b"], 0.5])
    return jax.random.categorical(key, logits)


def propose_b_log_prob(b, choices):
    return jax.nn.log_softmax(jnp.stack([1.0 * choices["a"], 0.3 * choices["b"], 0.5]))[b]


def draw_a(key, rest):
    return jax.random.categorical(key, jnp.asarray(TABLE)[:, rest["b"]])


def shift_b(key, b):
    return (b + jax.random.choice(key, jnp.array([1, 2]))) % 3


PAIR_KERNELS = {
    "blocks": lambda: mcmc.blocks(
        {"a": mcmc.DiscreteGibbs(np.arange(2)), "b": mcmc.symmetric(shift_b)}
    ),
    "gibbs": lambda: mcmc.blocks({"a": mcmc.Gibbs(draw_a)}),
    "trace_mh": lambda: mcmc.trace_mh(
        {
            "a": mcmc.DiscreteGibbs(np.arange(2)),
            "b": mcmc.SiteProposal(propose_b, propose_b_log_prob),
        }
    ),
    "several_entries": lambda: mcmc.blocks(
        {("a", "b"): mcmc.blocks({"b": mcmc.symmetric(shift_b)})}
    ),
    "mixture_of_blocks": lambda: mcmc.mixture(
        [1, 3], mcmc.blocks({"a": mcmc.Gibbs(draw_a)}), mcmc.blocks({"b": mcmc.symmetric(shift_b)})
    ),
}


@pytest.mark.parametrize("kernel", PAIR_KERNELS.values(), ids=PAIR_KERNELS)
def test_exact_kernels_leave_a_finite_program(kernel):
    assert invariance_error(kernel(), *on_pairs()) < TOLERANCE


# The estimates at each point, equally likely; their means are the likelihood.
ESTIMATES = np.array([[0.5, 1.5], [0.0, 0.8], [2.0, 3.0], [0.2, 0.2001]])


def estimate(key, x):
    return jnp.log(jnp.asarray(ESTIMATES))[x, jax.random.randint(key, (), 0, 2)]


def estimated_start():
    """Returns the law of point and estimate: prior, estimate and the estimate's probability."""
    log_prior = jnp.asarray(LINE)
    points = jnp.repeat(jnp.arange(4), 2)
    log_estimates = jnp.log(jnp.asarray(ESTIMATES)).ravel()
    support = mcmc.Estimated(points, log_estimates)
    # The point with estimate 0 has no mass and would be drawn for none.
    start = Enumerated(support, log_prior[points] + log_estimates)
    return target(lambda x: log_prior[x]), start


def test_exact_pseudo_marginal_leaves_points_and_estimates():
    kernel = mcmc.PseudoMarginal(LOPSIDED, estimate)
    assert invariance_error(kernel, *estimated_start()) < TOLERANCE
    assert invariance_error(mcmc.repeat(kernel, 2), *estimated_start()) < TOLERANCE


class _Broken:
    """A kernel with one fault, for which the check must not pass."""

    def __init__(self, step):
        self.step = step

    def init(self, given, position):
        return LOPSIDED.init(given, position)


def _no_hastings(key, given, state):
    return mcmc.Metropolis(draw_row, lambda y, x: 0.0).step(key, given, state)


def _flipped(key, given, state):
    propose_key, accept_key = jax.random.split(key)
    y = around(propose_key, state.position)
    parts = given.parts(y)
    log_ratio = given.combine(parts) - given.combine(state.parts)
    accepted = jnp.log(jax.random.uniform(accept_key)) > log_ratio
    new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), State(y, parts), state)
    return new, Info(jnp.ones(()), jnp.zeros((), bool))


def _stale(key, given, state):
    """Moves, and keeps the log terms of where it was."""
    new, info = EVEN.step(key, given, state)
    return State(new.position, state.parts), info


def _looks(key, given, state):
    """Chooses one of two kernels by the position, which is no mixture."""
    one_key, two_key = jax.random.split(key)
    one, info = LOPSIDED.step(one_key, given, state)
    two, _ = mcmc.DiscreteGibbs(np.arange(4)).step(two_key, given, state)
    even = state.position % 2 == 0
    return jax.tree.map(lambda a, b: jnp.where(even, a, b), one, two), info


def _same_key(key, given, state):
    """Proposes and accepts by one key."""
    y = around(key, state.position)
    return accept(key, given, State(y, given.parts(y)), state)


@pytest.mark.parametrize("fault", [_no_hastings, _flipped, _stale, _looks])
def test_exact_faults_are_found(fault):
    assert invariance_error(_Broken(fault), *on_line(LINE)) > 1e-3


def test_exact_a_key_used_twice_is_found():
    with pytest.raises(KeyReuse):
        invariance_error(_Broken(_same_key), *on_line(LINE))


def test_exact_a_proposal_that_forgets_the_other_way_is_found():
    wrong = mcmc.trace_mh({"b": mcmc.SiteProposal(propose_b, lambda b, choices: jnp.zeros(()))})
    assert invariance_error(wrong, *on_pairs()) > 1e-3


def test_exact_a_wrong_conditional_is_found():
    wrong = mcmc.blocks({"a": mcmc.Gibbs(lambda key, rest: jax.random.randint(key, (), 0, 2))})
    assert invariance_error(wrong, *on_pairs()) > 1e-3


def test_exact_a_wrong_involutive_density_is_found():
    wrong = mcmc.Involutive(draw_row, lambda u, x: jnp.zeros(()), swap_involution)
    assert invariance_error(wrong, *on_line(LINE)) > 1e-3


def test_exact_an_estimate_drawn_anew_is_found():
    """Monte Carlo within Metropolis: the estimate at the current point is drawn again."""

    class Anew:
        def init(self, given, position):
            return kernel.init(given, position)

        def step(self, key, given, state):
            anew_key, step_key = jax.random.split(key)
            fresh = kernel.start(anew_key, state.position.value)
            return kernel.step(step_key, given, kernel.init(given, fresh))

    kernel = mcmc.PseudoMarginal(LOPSIDED, estimate)
    assert invariance_error(Anew(), *estimated_start()) > 1e-3
