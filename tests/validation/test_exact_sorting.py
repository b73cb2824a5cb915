"""Sorts of independent uniforms beside numbers: any order that may come, and no more is known."""

import itertools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from bayesinf.validation import Refused, exact

pytestmark = pytest.mark.usefixtures("x64")

MARKS = np.array([0.2, 0.7])


def law(program, key):
    return {tuple(np.ravel(atom).tolist()): mass for atom, mass in exact(program, key).table()}


def same(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=1e-14)


def test_exact_orders_are_equally_likely(key):
    found = law(lambda k: jnp.argsort(jr.uniform(k, (3,))), key)
    same(found, dict.fromkeys(itertools.permutations(range(3)), 1 / 6))


def test_exact_draws_among_marks(key):
    """Cells by their widths; within a cell the order is even, and independent of other cells'."""

    def program(k):
        return jnp.argsort(jnp.concatenate([MARKS, jr.uniform(k, (2,))]))

    expected = {}
    for cells in itertools.product(range(3), repeat=2):
        mass = math.prod(np.diff([0, *MARKS, 1])[list(cells)])
        places = [(c - 0.5, 2 + i) for i, c in enumerate(cells)]
        orders = [places, [(p + 1e-3 * (1 - i), n) for i, (p, n) in enumerate(places)]]
        for order in orders:
            atom = tuple(n for _, n in sorted([(0.0, 0), (1.0, 1), *order]))
            expected[atom] = expected.get(atom, 0.0) + mass / 2
    same(law(program, key), expected)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_exact_strata_that_overlap(key, shift):
    """Ranges [0, 1] and [shift, 1 + shift]: their common part is decided evenly."""

    def program(k):
        x, y = jr.uniform(k, (2,))
        return jnp.argsort(jnp.stack([jnp.log(x + 1), jnp.log(y + 1 + shift)]))[0]

    later = (1 - shift) ** 2 / 2  # that y + shift is below x
    same(law(program, key), {(0,): 1 - later, (1,): later})


def test_exact_rows_of_their_own(key):
    """Two rows at once, of which each has its order."""
    found = law(lambda k: jnp.argsort(jr.uniform(k, (2, 2)), axis=-1), key)
    orders = [(0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0)]
    same(found, dict.fromkeys(orders, 0.25))


def order_then_value(k):
    """Whether the first is the smallest says something of how small it is."""
    u = jr.uniform(k, (2,))
    return jnp.argsort(u), u[0] < 0.5


def smallest_value(k):
    return jnp.sort(jr.uniform(k, (2,)))[0] < 0.5


def of_two_laws(k):
    """On the same range one is uniform, the other not."""
    x, y = jr.uniform(k, (2,))
    return jnp.argsort(jnp.stack([x, 1 + jnp.log(x * 0 + y)]))


def of_one_noise(k):
    x, y = jr.uniform(k, (2,))
    return jnp.argsort(jnp.stack([x, x, y]))


def order_twice(k):
    u = jr.uniform(k, (2,))
    return jnp.argsort(u), jnp.argsort(-u)


@pytest.mark.parametrize(
    "program", [order_then_value, smallest_value, of_two_laws, of_one_noise, order_twice]
)
def test_what_would_need_more_than_an_order_is_refused(key, program):
    with pytest.raises(Refused):
        exact(program, key)


def test_exact_value_then_order(key):
    """What was known before is kept: uniforms on both sides of a half are in order."""

    def program(k):
        u = jr.uniform(k, (2,))
        return u < 0.5, jnp.argsort(u)

    found = law_of_pairs(program, key)
    same(
        found,
        {
            (1, 0, 0, 1): 0.25,
            (0, 1, 1, 0): 0.25,
            **dict.fromkeys([(1, 1, 0, 1), (1, 1, 1, 0), (0, 0, 0, 1), (0, 0, 1, 0)], 0.125),
        },
    )


def law_of_pairs(program, key):
    return law(lambda k: jax.tree.reduce(lambda a, b: jnp.append(1 * a, b), program(k)), key)
