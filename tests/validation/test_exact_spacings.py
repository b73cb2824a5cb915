"""Sorted uniforms from exponential spacings, sorts of uniforms, and code by platform."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.validation import Refused, exact

pytestmark = pytest.mark.usefixtures("x64")

WEIGHTS = np.array([0.5, 0.2, 0.3])


def sums(key, num, log=lambda u: jnp.log(u)):
    return jnp.cumsum(-log(jax.random.uniform(key, (num + 1,))))


def in_order(key, num, **how):
    z = sums(key, num, **how)
    return z[:-1] / z[-1]


def masses(measure):
    return {tuple(np.asarray(atom).tolist()): mass for atom, mass in measure.table()}


def ordered_draws(num):
    """The law of independent draws, put in order."""
    out = {}
    for draw in itertools.product(range(3), repeat=num):
        atom = tuple(sorted(draw))
        out[atom] = out.get(atom, 0.0) + float(np.prod(WEIGHTS[list(draw)]))
    return out


@pytest.mark.parametrize("method", ["scan", "sort", "compare_all"])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_sorted_uniforms_are_multinomial(method, num):
    def draw(key):
        return jnp.searchsorted(jnp.cumsum(WEIGHTS), in_order(key, num), method=method)

    assert masses(exact(draw, jax.random.key(0))) == pytest.approx(ordered_draws(num), abs=1e-14)


def test_other_exponentials_and_guards_of_rounding():
    def draw(key):
        z = sums(key, 2, log=lambda u: jnp.log1p(-u))
        z = jax.lax.associative_scan(jnp.maximum, z)
        u = jnp.minimum(z[:-1] / jnp.maximum(z[-1], 1e-30), 1 - 1e-16)
        return jnp.searchsorted(jnp.cumsum(WEIGHTS), u, side="right")

    assert masses(exact(draw, jax.random.key(0))) == pytest.approx(ordered_draws(2), abs=1e-14)


def test_what_is_not_a_number_is_above_all():
    """As in a search among weights of which none is left."""

    def draw(key):
        return jnp.searchsorted(jnp.array([0.4, jnp.nan, jnp.nan]), in_order(key, 1))

    found = masses(exact(draw, jax.random.key(0)))
    assert found == pytest.approx({(0,): 0.4, (1,): 0.6}, abs=1e-14)


def test_questions_about_one_sorted_uniform_agree():
    """Both are decided by the same two uniforms: P(u_0 < .3) and P(u_0 < .3, u_1 < .6)."""

    def ask(key):
        u = in_order(key, 2)
        return jnp.stack([u[0] < 0.3, u[1] < 0.6, u[0] <= u[1], u[0] == u[1], u[1] < 0.6])

    found = masses(exact(ask, jax.random.key(0)))
    both = 0.6**2 - 0.3**2
    expected = {
        (True, True, True, False, True): both,
        (True, False, True, False, False): 1 - 0.7**2 - both,
        (False, True, True, False, True): 0.3**2,
        (False, False, True, False, False): 0.7**2 - 0.3**2,
    }
    assert found == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    "program",
    [
        lambda key: sums(key, 2)[0] < 1.0,
        lambda key: (lambda z: z[:2] / z[1] < 0.5)(sums(key, 2)),
        lambda key: (lambda z: (z[0] / z[1] < 0.5, z[0] / z[2] < 0.5))(sums(key, 2)),
        lambda key: (lambda z: (z[:2] / z[2] < 0.5, z[:2] / z[2] < 0.6))(sums(key, 2)),
        lambda key: (lambda z: z[2] / z[1] < 1.5)(sums(key, 2)),
        lambda key: in_order(key, 2) ** 2 < 0.5,
        lambda key: (lambda u: (u[0] < 0.5, (jnp.cumsum(-jnp.log(u)) / 2) < 0.5))(
            jax.random.uniform(key, (3,))
        ),
        lambda key: jnp.cumsum(jax.random.uniform(key, (3,))) < 1.0,
    ],
)
def test_what_has_no_rule_is_refused(program):
    with pytest.raises(Refused):
        exact(program, jax.random.key(0))


def test_a_used_uniform_makes_no_spacings():
    def program(key):
        u = jax.random.uniform(key, (3,))
        asked = u[0] < 0.5
        z = jnp.cumsum(-jnp.log(u))
        return asked, z[0] / z[-1] < 0.3

    with pytest.raises(Refused):
        exact(program, jax.random.key(0))


def test_sort_of_one_uniform_among_numbers():
    """A systematic grid among two edges, with ties between numbers kept in order."""

    def draw(key):
        grid = (jnp.arange(2) + jax.random.uniform(key)) / 2
        return jnp.argsort(jnp.concatenate([jnp.array([0.4, 0.4, 0.7]), grid]))

    expected = {(3, 0, 1, 4, 2): 0.4, (3, 0, 1, 2, 4): 0.4, (0, 1, 3, 2, 4): 0.2}
    assert masses(exact(draw, jax.random.key(0))) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("shape", [(), (3,)], ids=["systematic", "stratified"])
def test_sort_of_a_logarithmic_grid(shape):
    """Points that share one uniform, or whose ranges only touch, are in order by themselves."""

    def draw(key, log):
        u = jax.random.uniform(key, shape, maxval=1 / 3)
        grid = jnp.linspace(0.0, 1 - 1 / 3, 3) + u
        edges = jnp.cumsum(WEIGHTS)[:2]
        return jnp.argsort(jnp.concatenate([log(edges), log(grid)]))

    plain, logarithmic = (
        masses(exact(lambda key: draw(key, log), jax.random.key(0)))  # noqa: B023
        for log in (lambda x: x, jnp.log)
    )
    assert plain == pytest.approx(logarithmic, abs=1e-14)
    assert sum(plain.values()) == pytest.approx(1, abs=1e-14)


def test_code_by_platform_is_that_of_all_others():
    def draw(key):
        def default(u):
            return u < 0.25

        def own(u):
            return jax.pure_callback(lambda u: u < 0.25, jax.ShapeDtypeStruct((), bool), u)

        return jax.lax.platform_dependent(jax.random.uniform(key), cpu=own, default=default)

    measure = exact(draw, jax.random.key(0))
    assert measure.expectation(lambda x: 1.0 * x) == pytest.approx(0.25, abs=1e-14)
