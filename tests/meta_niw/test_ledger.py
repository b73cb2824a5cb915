"""Episodes that are added to a learner one by one, and taken away again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import meta_niw
from bayesinf.distributions import Blocks, Diagonal, NormalInverseWishart, full, low_rank
from bayesinf.meta_niw.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT = meta_niw.Laplace(1)


def linear(weights, x):
    return x @ weights


def learner(scale, dim=3):
    prior = NormalInverseWishart(np.ones(dim), 0.5, dim + 2.0, scale)
    return meta_niw.init(prior, linear, jnp.zeros(dim), Gaussian(0.5))


def episodes(num=4, rows=3, dim=3):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(num, rows, dim)), rng.normal(size=(num, rows))
    return meta_niw.Episode(jnp.asarray(x), jnp.asarray(y), jnp.ones((num, rows), bool))


def pick(many, index):
    return jax.tree.map(lambda rows: rows[index], many)


def close(a, b, tolerance=1e-10):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


SCALES = {
    "full": lambda: full(np.eye(3)),
    "diagonal": lambda: Diagonal(np.ones(3)),
    "blocks": lambda: Blocks((full(np.eye(2)), Diagonal(np.ones(1)))),
}


@pytest.mark.parametrize("kind", SCALES)
def test_oracle_what_is_added_is_an_update_and_can_be_removed(x64, kind):
    state, many = learner(SCALES[kind]()), episodes()
    book, states = meta_niw.ledger(state), [state]
    for index in range(4):
        book = book.add(index, pick(many, index), EXACT)
        states.append(meta_niw.update(states[-1], pick(many, index), local=EXACT)[0])
        close(book.state.posterior, states[-1].posterior)
        assert int(book.state.count) == index + 1
    # The last ones out again, and then all.
    for index in (3, 2):
        book = book.remove(index)
        close(book.state.posterior, states[index].posterior)
    # The control: the episode that is left in.
    assert np.abs(np.asarray(book.state.posterior.loc - states[1].posterior.loc)).max() > 1e-3
    close(book.remove(0).remove(1).state.posterior, state.posterior, 1e-14)


def test_oracle_an_early_episode_leaves_no_trace_after_coordinate_ascent(x64):
    state, many = learner(full(np.eye(3))), episodes()
    book = meta_niw.ledger(state)
    for index in range(4):
        book = book.add(index, pick(many, index), EXACT)
    without = book.remove(0).state
    rest = pick(many, slice(1, 4))
    never, _ = meta_niw.update(state, rest, local=EXACT)
    # Others were fitted with it in the prior, and keep a trace.
    assert np.abs(np.asarray(without.posterior.loc - never.posterior.loc)).max() > 1e-4
    left, _ = meta_niw.cavi(without, rest, 400, EXACT)
    fresh, _ = meta_niw.cavi(state, rest, 400, EXACT)
    close(left.posterior, fresh.posterior, 1e-8)


def test_single_precision_loses_nothing_over_many_moves():
    state, many = learner(full(np.eye(3))), episodes(8)
    book = meta_niw.ledger(state)
    for index in range(8):
        book = book.add(index, pick(many, index), EXACT)
    for index in range(1, 8):
        book = book.remove(index)
    close(
        book.state.posterior,
        meta_niw.ledger(state).add(0, pick(many, 0), EXACT).state.posterior,
        1e-5,
    )


def test_what_cannot_be_is_named():
    many = episodes()
    book = meta_niw.ledger(learner(full(np.eye(3)))).add("a", pick(many, 0), EXACT)
    gone = book.remove("a")
    with pytest.raises(ValueError, match="'a' is not in the ledger; it was never added, or has"):
        gone.remove("a")
    with pytest.raises(ValueError, match="'b' is not in the ledger"):
        book.remove("b")
    with pytest.raises(ValueError, match="'a' is in the ledger"):
        book.add("a", pick(many, 1))
    with pytest.raises(ValueError, match="one episode with data"):
        book.add("c", many)
    with pytest.raises(ValueError, match="one episode with data"):
        book.add("c", pick(many, 1)._replace(mask=jnp.zeros(3, bool)))
    with pytest.raises(ValueError, match="LowRank"):
        meta_niw.ledger(learner(low_rank(np.ones(3), 1)))
    with pytest.raises(ValueError, match="that has seen 1 episodes"):
        meta_niw.ledger(book.state)
