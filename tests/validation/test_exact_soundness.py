"""Probes: each is answered right, or refused, or reported as key reuse; never answered wrong."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions
import pytest

from bayesinf.validation import KeyReuse, Refused, exact
from bayesinf.validation.exact import register

pytestmark = pytest.mark.usefixtures("x64")


def law(fn, *args, **options) -> dict:
    """Returns the exact law of a program as a dictionary from outcomes, as tuples, to masses."""
    measure = exact(fn, *args, **options)
    return {
        tuple(np.concatenate([np.ravel(x) for x in jax.tree.leaves(atom)]).tolist()): mass
        for atom, mass in measure.table()
    }


def same(found: dict, expected: dict):
    expected = {k if isinstance(k, tuple) else (k,): v for k, v in expected.items()}
    assert found.keys() == expected.keys()
    for outcome, mass in expected.items():
        assert found[outcome] == pytest.approx(mass, abs=1e-12)


def one_uniform_three_times(key):
    u = jr.uniform(key)
    return jnp.array([u < 0.3, u < 0.5, 1 - u < 0.6])


def constants_among_uniforms(key):
    mixed = jnp.where(jnp.array([True, False]), jr.uniform(key, (2,)), 0.0)
    return mixed == 0.0


def same_uniform_is_equal(key):
    u = jr.uniform(key)
    return jnp.array([u, u]) == jnp.array([u, 1 - u])


def largest_with_a_constant(key):
    return jnp.maximum(jr.uniform(key), 0.25) < 0.5


def clipped(key):
    u = jnp.clip(jr.uniform(key), 0.2, 0.6)
    return jnp.array([u <= 0.2, u < 0.6])


def distance(key):
    return jnp.abs(jr.uniform(key) - 0.25) < 0.125


def shared_noise(key):
    u = jax.vmap(lambda high: jr.uniform(key, (), maxval=high))(jnp.array([1.0, 2.0]))
    return u < 0.5


def shared_bernoulli(key):
    return jax.vmap(lambda p: jr.bernoulli(key, p))(jnp.array([0.2, 0.7]))


def nested_vmap(key):
    draw = jax.vmap(jax.vmap(lambda k, p: jr.bernoulli(k, p)))
    return draw(jr.split(key, (1, 2)), jnp.array([[0.25, 0.5]]))


def across_branches(key):
    coin, key = jr.split(key)
    return jax.lax.cond(
        jr.bernoulli(coin, 0.25), lambda: jr.bernoulli(key, 0.5), lambda: jr.bernoulli(key, 0.25)
    )


def branch_then_branch(key):
    """Which worlds are asked first must not matter to what the uniform is in each."""
    first, second = jr.split(key)
    u = jr.uniform(first)
    low = jax.lax.cond(u < 0.5, lambda: u < 0.25, lambda: u < 0.75)
    return low, u < 0.6, jr.bernoulli(second, jnp.where(low, 0.5, 1.0))


def folded(key):
    draws = [jr.bernoulli(jr.fold_in(key, i), 0.5) for i in range(2)]
    return jnp.stack([*draws, jr.bernoulli(key, 0.25)])


def stratified_order(key):
    u = jr.uniform(key, (2,))
    return u[0] < 1 + u[1], jnp.floor(2 * u[0])


def integers_by_lane(key):
    draw = jax.vmap(lambda k, n: jr.randint(k, (2,), 0, n), in_axes=(0, 1))
    return draw(jr.split(key), jnp.array([[1, 2], [2, 3]]))


def binomials(key):
    draw = jax.vmap(lambda k, p: numpyro.distributions.Binomial(1, p).sample(k))
    return draw(jr.split(key), jnp.array([0.5, 0.25]))


def kept_key(key):
    """A loop that may stop early leaves keys that differ; nothing reads them."""

    def body(state):
        key, count, _ = state
        key, coin = jr.split(key)
        return key, count + 1, jr.bernoulli(coin, 0.5)

    start = (key, 0, False)
    return jax.lax.while_loop(lambda s: ~s[2] & (s[1] < 3), body, start)[1]


def tries(key, most=2):
    """Returns how many tries a coin took to fall on its head."""

    def body(state):
        key, count, _ = state
        key, coin = jr.split(key)
        return key, count + 1, jr.bernoulli(coin, 0.25)

    return jax.lax.while_loop(lambda s: (s[1] < most) & ~s[2], body, (key, 0, False))


def tries_by_lane(key):
    """Lanes end at random, and one of them later than the other could."""
    return jax.vmap(lambda key, most: tries(key, most)[1])(jr.split(key), jnp.array([1, 2]))


def tries_by_lane_of_lanes(key):
    """The key of each try is folded with its number."""

    def one(key):
        def body(state):
            count, _ = state
            return count + 1, jr.bernoulli(jr.fold_in(key, count), 0.25)

        return jax.lax.while_loop(lambda s: (s[0] < 2) & ~s[1], body, (0, False))

    return jax.vmap(jax.vmap(one))(jr.split(key, (1, 2)))


def held_by_lane(key):
    """What a lane ended with stays, though the body would go on to change it."""

    def one(key, start):
        def body(state):
            x, count = state
            return x + jr.bernoulli(jr.fold_in(key, count), 0.5), count + 1

        return jax.lax.while_loop(lambda s: (s[0] < 1) & (s[1] < 2), body, (start, 0))[0]

    return jax.vmap(one)(jr.split(key), jnp.array([5, 0]))


def lanes_in_one_branch(key):
    """Lanes end apart in one branch; the other branch may use the key that they may have used."""

    def one(key, most):
        def body(state):
            count, hit = state
            return count + 1, hit | jr.bernoulli(jr.fold_in(key, count), 0.25)

        return jax.lax.while_loop(lambda s: s[0] < most, body, (0, False))[1]

    coin, lanes = jr.split(key)
    keys = jr.split(lanes)
    return jax.lax.cond(
        jr.bernoulli(coin),
        lambda: jr.bernoulli(jr.fold_in(keys[0], 1), 0.25),
        lambda: jax.vmap(one)(keys, jnp.array([1, 2])).any(),
    )


def old_style(seed):
    def program():
        first, second = jr.split(jr.PRNGKey(seed))
        return jr.bernoulli(jr.fold_in(first, 1), 0.25), jr.randint(second, (), 0, 2)

    return program


HALF = {(False,): 0.5, (True,): 0.5}
RIGHT = {
    "one uniform, three questions": (
        one_uniform_three_times,
        {(0, 0, 1): 0.5, (0, 1, 0): 0.1, (0, 1, 1): 0.1, (1, 1, 0): 0.3},
    ),
    "constants among uniforms": (constants_among_uniforms, {(0, 1): 1}),
    "a uniform equals itself": (same_uniform_is_equal, {(1, 0): 1}),
    "a uniform is a number": (lambda k: jnp.isnan(jr.uniform(k)), {0: 1}),
    "the larger of a uniform and a constant": (largest_with_a_constant, {0: 0.5, 1: 0.5}),
    "clipped": (clipped, {(1, 1): 0.2, (0, 1): 0.4, (0, 0): 0.4}),
    "distance": (distance, {1: 0.25, 0: 0.75}),
    "round": (lambda k: jnp.round(2 * jr.uniform(k)), {0: 0.25, 1: 0.5, 2: 0.25}),
    "floor": (lambda k: jnp.floor(-2 * jr.uniform(k)), {-1: 0.5, -2: 0.5}),
    "ceil": (lambda k: jnp.ceil(2 * jr.uniform(k)), {1: 0.5, 2: 0.5}),
    "cast": (lambda k: (4 * jr.uniform(k) - 2).astype(int), {-1: 0.25, 0: 0.5, 1: 0.25}),
    "sign": (lambda k: jnp.sign(jr.uniform(k) - 0.25), {-1: 0.25, 1: 0.75}),
    "logarithm": (
        lambda k: 2 * jnp.log(jr.uniform(k)) + 1 < 0,
        {1: math.exp(-0.5), 0: 1 - math.exp(-0.5)},
    ),
    "exponential draw": (lambda k: jr.exponential(k) > 2, {1: math.exp(-2), 0: 1 - math.exp(-2)}),
    "exponential of a logarithm": (
        lambda k: jnp.exp(jnp.log(jr.uniform(k))) < 0.3,
        {1: 0.3, 0: 0.7},
    ),
    "sign of a normal": (lambda k: jr.normal(k) > 0, {0: 0.5, 1: 0.5}),
    "gumbel against a number": (lambda k: jr.gumbel(k) < 0, {1: math.exp(-1), 0: 1 - math.exp(-1)}),
    "one uniform at two scales": (shared_noise, {(1, 1): 0.25, (1, 0): 0.25, (0, 0): 0.5}),
    "one uniform, two chances": (shared_bernoulli, {(1, 1): 0.2, (0, 1): 0.5, (0, 0): 0.3}),
    "nested vmap": (
        nested_vmap,
        {(0, 0): 0.375, (0, 1): 0.375, (1, 0): 0.125, (1, 1): 0.125},
    ),
    "a key in two branches": (across_branches, {1: 0.25 * 0.5 + 0.75 * 0.25, 0: 0.6875}),
    "a uniform asked in branches": (
        branch_then_branch,
        {
            (1, 1, 0): 0.25 / 2 + 0.1 / 2,
            (1, 1, 1): 0.25 / 2 + 0.1 / 2,
            (0, 1, 1): 0.25,
            (1, 0, 0): 0.15 / 2,
            (1, 0, 1): 0.15 / 2,
            (0, 0, 1): 0.25,
        },
    ),
    "folded keys beside their parent": (
        folded,
        {(a, b, c): 0.25 * (0.25 if c else 0.75) for a in (0, 1) for b in (0, 1) for c in (0, 1)},
    ),
    "uniforms in strata": (stratified_order, {(1, 0): 0.5, (1, 1): 0.5}),
    "integers of bounds by lane": (
        integers_by_lane,
        {(0, a, b, c): 1 / 12 for a in (0, 1) for b in (0, 1) for c in (0, 1, 2)},
    ),
    "binomial draws by lane": (
        binomials,
        {(0, 0): 0.375, (0, 1): 0.125, (1, 0): 0.375, (1, 1): 0.125},
    ),
    "a loop that may stop early": (kept_key, {1: 0.5, 2: 0.25, 3: 0.25}),
    "a loop that ends by lane": (tries_by_lane, {(1, 1): 0.25, (1, 2): 0.75}),
    "what a lane ended with": (held_by_lane, {(5, 0): 0.25, (5, 1): 0.75}),
    "lanes that end apart in one branch": (
        lanes_in_one_branch,
        {0: (0.75**3 + 0.75) / 2, 1: 1 - (0.75**3 + 0.75) / 2},
    ),
    "a loop that ends by lane of lanes": (
        tries_by_lane_of_lanes,
        {
            (1, 1, 1, 1): 1 / 16,
            **{(1, 2, 1, hit): 0.25 * 0.75 * (0.25 if hit else 0.75) for hit in (0, 1)},
            **{(2, 1, hit, 1): 0.25 * 0.75 * (0.25 if hit else 0.75) for hit in (0, 1)},
            **{
                (2, 2, a, b): 0.75**2 * (0.25 if a else 0.75) * (0.25 if b else 0.75)
                for a in (0, 1)
                for b in (0, 1)
            },
        },
    ),
    "chance zero": (lambda k: jr.bernoulli(k, 0.0), {0: 1}),
    "chance one": (lambda k: jr.bernoulli(k, 1.0), {1: 1}),
    "a chance that is not a number": (lambda k: jr.bernoulli(k, jnp.nan), {0: 1}),
    "a tiny chance is kept": (lambda k: jr.bernoulli(k, 1e-30), {0: 1 - 1e-30, 1: 1e-30}),
    "impossible outcomes": (
        lambda k: jr.categorical(k, jnp.array([-jnp.inf, 0.0, -jnp.inf])),
        {1: 1},
    ),
    "categorical along the first axis": (
        lambda k: jr.categorical(k, jnp.log(jnp.array([[0.2], [0.8]])), axis=0),
        {0: 0.2, 1: 0.8},
    ),
    "rademacher": (lambda k: jr.rademacher(k), {-1: 0.5, 1: 0.5}),
    "a constant key": (lambda k: jr.bernoulli(jr.key(3), 0.25), {0: 0.75, 1: 0.25}),
}


def noise_at_infinity(key):
    """An impossible outcome of a categorical draw, asked what it is."""
    noisy = jr.gumbel(key, (2,)) + jnp.array([-jnp.inf, 0.0])
    low = jnp.full(2, -jnp.inf)
    return noisy == low, noisy <= low, noisy > low, noisy < 0, jnp.isfinite(noisy)


def test_noise_at_infinity(key):
    hit = math.exp(-1)
    same(
        law(noise_at_infinity, key),
        {(1, 0, 1, 0, 0, 1, 1, 1, 0, 1): hit, (1, 0, 1, 0, 0, 1, 1, 0, 0, 1): 1 - hit},
    )


@pytest.mark.parametrize(
    "name", [name for name in RIGHT if name not in ("a constant key", "binomial draws by lane")]
)
def test_answered_as_jax_draws(key, name):
    """The frequencies of real draws are those of the exact law."""
    program, _ = RIGHT[name]
    num = 4096
    draws = jax.vmap(program)(jr.split(key, num))
    rows = np.concatenate([np.reshape(x, (num, -1)) for x in jax.tree.leaves(draws)], axis=1)
    exactly = law(program, key)
    found = dict.fromkeys(exactly, 0)
    for row in rows.tolist():
        found[tuple(row)] += 1
    for outcome, mass in exactly.items():
        assert abs(found[outcome] / num - mass) <= 5 * math.sqrt(mass * (1 - mass) / num)


@pytest.mark.parametrize("name", RIGHT)
def test_answered_right(key, name):
    program, expected = RIGHT[name]
    same(law(program, key), expected)


def test_a_tiny_chance_has_its_mass(key):
    measure = exact(lambda k: jr.bernoulli(k, 1e-30), key)
    weighted = measure.expectation(lambda hit: jnp.where(hit, 1e30, 0.0))
    assert weighted == pytest.approx(1, rel=1e-12)


def test_old_style_keys(key):
    expected = {(0, 0): 0.375, (0, 1): 0.375, (1, 0): 0.125, (1, 1): 0.125}
    same(law(old_style(0)), expected)
    same(law(lambda k: jr.bernoulli(k, 0.25), jr.PRNGKey(0)), {0: 0.75, 1: 0.25})
    closed_over = jr.PRNGKey(1)
    same(law(lambda: jr.bernoulli(closed_over, 0.25)), {0: 0.75, 1: 0.25})
    with pytest.raises(KeyReuse):
        exact(lambda k: (jr.bernoulli(k), jr.uniform(k) < 0.5), jr.PRNGKey(0))


def two_argmax(key):
    noise = jr.gumbel(key, (3,))
    return jnp.argmax(noise), jnp.argmax(noise + jnp.arange(3.0))


def argmax_of_shared_noise(key):
    noise = jr.gumbel(key, (2,))
    return jnp.argmax(noise + jnp.zeros((2, 2)), axis=-1)


def asked_before_argmax(key):
    noise = jr.gumbel(key, (2,))
    return noise[0] < 0, jnp.argmax(noise)


def asked_after_argmax(key):
    noise = jr.gumbel(key, (2,))
    best = jnp.argmax(noise)
    return best, noise[0] < 0


def in_many_tries(key):
    def body(state):
        key, done = state
        key, coin = jr.split(key)
        return key, done | jr.bernoulli(coin, 0.5)

    return jax.lax.while_loop(lambda s: ~s[1], body, (key, False))[1]


def key_by_lane(key):
    """Under vmap, lanes that are done keep their key, so that keys depend on outcomes."""
    return jax.vmap(lambda key: jr.bernoulli(tries(key)[0]))(jr.split(key))


def key_of_an_ended_lane(key):
    """Here each lane's last key is used once; but a loop under vmap runs on with it."""

    def one(key, most):
        state = (jr.fold_in(key, 0), 0)
        key = jax.lax.while_loop(
            lambda s: s[1] < most, lambda s: (jr.split(s[0])[0], s[1] + 1), state
        )[0]
        return jr.bernoulli(key)

    return jax.vmap(one)(jr.split(key), jnp.array([1, 2]))


def key_after_an_ended_lane(key):
    """A key that no lane needs, yet the loop has used it where a lane had ended."""

    def one(key, most):
        def body(state):
            count, hit = state
            return count + 1, hit | jr.bernoulli(jr.fold_in(key, count))

        return jax.lax.while_loop(lambda s: s[0] < most, body, (0, False))[1]

    keys = jr.split(key)
    return jax.vmap(one)(keys, jnp.array([1, 2])), jr.bernoulli(jr.fold_in(keys[0], 1))


@jax.jit
def _gumbel(key):
    """A function of the name of JAX's, with another law."""
    return 2 * jr.gumbel(key, (2,))


@jax.jit
def _randint(key):
    return jnp.floor(2 * jr.uniform(key))


REFUSED = {
    "two argmax on one noise": two_argmax,
    "one noise for two rows": argmax_of_shared_noise,
    "noise asked before the argmax": asked_before_argmax,
    "noise asked after the argmax": asked_after_argmax,
    "argmax of scaled noise": lambda k: jnp.argmax(2 * jr.gumbel(k, (2,))),
    "argmax of another's _gumbel": lambda k: jnp.argmax(_gumbel(k)),
    "argmax of uniforms": lambda k: jnp.argmax(jr.uniform(k, (2,))),
    "argmin of noisy logits": lambda k: jnp.argmin(jr.gumbel(k, (2,))),
    "the largest of noisy logits": lambda k: jnp.max(jr.gumbel(k, (2,))) > 0,
    "two uniforms compared": lambda k: jnp.less(*jr.uniform(k, (2,))),
    "a sum of uniforms": lambda k: jr.uniform(k, (2,)).sum() < 1,
    "two uniforms added": lambda k: jnp.add(*jr.uniform(k, (2,))) < 1,
    "the larger of two uniforms": lambda k: jnp.maximum(*jr.uniform(k, (2,))) < 0.5,
    "a uniform squared": lambda k: jr.uniform(k) ** 2 < 0.5,
    "a uniform times itself": lambda k: (lambda u: u * u)(jr.uniform(k)) < 0.5,
    "one over a uniform": lambda k: 1 / jr.uniform(k) < 2,
    "u and log u added": lambda k: (lambda u: u + jnp.log(u))(jr.uniform(k)) < 0,
    "sorted uniforms": lambda k: jnp.sort(jr.uniform(k, (2,)))[0] < 0.5,
    "a uniform returned": lambda k: jr.uniform(k),
    "a uniform in a carry returned": lambda k: jax.lax.fori_loop(
        0, 2, lambda i, x: 0.5 * x, jr.uniform(k)
    ),
    "an index from a uniform's value": lambda k: jnp.sin(jr.uniform(k)) < 0.5,
    "a normal returned": lambda k: jr.normal(k),
    "gamma": lambda k: jr.gamma(k, 2.0) < 1,
    "beta": lambda k: jr.beta(k, 1.0, 1.0) < 0.5,
    "raw bits": lambda k: jr.bits(k) % 2,
    "bits as a number": lambda k: jr.bits(k) > 7,
    "key data as a number": lambda k: jr.key_data(k)[0] % 2,
    "key data returned": lambda k: jr.key_data(k),
    "a key returned": lambda k: jr.split(k),
    "a key folded with an outcome": lambda k: jr.bernoulli(
        jr.fold_in(k, jr.bernoulli(jr.fold_in(k, 9)).astype(int))
    ),
    "a key seeded by an outcome": lambda k: jr.bernoulli(jr.key(jr.randint(k, (), 0, 3))),
    "a key chosen by an outcome": lambda k: jr.bernoulli(
        jr.split(jr.fold_in(k, 0))[jr.bernoulli(jr.fold_in(k, 1)).astype(int)]
    ),
    "keys that differ by lane": key_by_lane,
    "a key of a lane that has ended": key_of_an_ended_lane,
    "a key after a lane that has ended": key_after_an_ended_lane,
    "no outcome is possible": lambda k: jr.categorical(k, jnp.full(3, -jnp.inf)),
    "logits that are not numbers": lambda k: jr.categorical(k, jnp.array([0.0, jnp.nan])),
    "an infinite logit": lambda k: jr.categorical(k, jnp.array([0.0, jnp.inf])),
    "poisson without a truncation": lambda k: jr.poisson(k, 1.0),
    "integers of one key for all lanes": lambda k: jax.vmap(lambda n: jr.randint(k, (), 0, n))(
        jnp.array([2, 3])
    ),
    "geometric draws of one key for all lanes": lambda k: jax.vmap(lambda p: jr.geometric(k, p))(
        jnp.array([0.5, 0.25])
    ),
    "binomial draws of one key for all lanes": lambda k: jax.vmap(
        lambda p: numpyro.distributions.Binomial(1, p).sample(k)
    )(jnp.array([0.5, 0.25])),
    "parameters laid out along lanes or draws": lambda k: jax.vmap(
        lambda k: jr.geometric(k, jnp.array([0.5, 0.25]))
    )(jr.split(k)),
    "an integer of many bits": lambda k: jr.randint(k, (), 0, 10**9),
    "the host's randomness": lambda k: jax.experimental.io_callback(
        lambda: np.float64(0), jax.ShapeDtypeStruct((), float)
    ),
    "words mixed by hand": lambda k: jax.extend.random.threefry_2x32(
        jnp.zeros(2, jnp.uint32) + 0, jnp.arange(2, dtype=jnp.uint32)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(key, name):
    with pytest.raises(Refused):
        exact(REFUSED[name], key, truncation=0.0 if "without" in name else 0.1)


def test_another_s_name_is_read_as_its_code(key):
    same(law(_randint, key), {0: 0.5, 1: 0.5})


def reuse_in_a_loop(key):
    return jax.lax.scan(lambda c, _: (c, jr.bernoulli(key, 0.5)), 0, length=2)[1]


def reuse_by_lane(key):
    """Every try of a lane uses the lane's key."""

    def one(key):
        def body(state):
            return state[0] + 1, jr.bernoulli(key)

        return jax.lax.while_loop(lambda s: (s[0] < 3) & ~s[1], body, (0, False))[0]

    return jax.vmap(one)(jr.split(key))


def reuse_in_a_branch(key):
    return jax.lax.cond(
        jr.bernoulli(jr.fold_in(key, 0)),
        lambda: jr.bernoulli(key) & jr.bernoulli(key),
        lambda: True,
    )


def reuse_after_branches(key):
    return across_branches(key), jr.bernoulli(jr.split(key)[1])


def after_a_branch(key):
    coin, key = jr.split(key)
    used = jax.lax.cond(jr.bernoulli(coin), lambda: jr.bernoulli(key), lambda: True)
    return used, jr.bernoulli(key)


REUSED = {
    "used twice": lambda k: (jr.bernoulli(k), jr.uniform(k) < 0.5),
    "used by two kinds of draw": lambda k: (jr.categorical(k, jnp.zeros(2)), jr.bernoulli(k)),
    "split and used": lambda k: (jr.bernoulli(jr.split(k)[0]), jr.bernoulli(k)),
    "used and split": lambda k: (jr.bernoulli(k), jr.bernoulli(jr.split(k)[0])),
    "split twice": lambda k: (jr.bernoulli(jr.split(k)[0]), jr.bernoulli(jr.split(k)[1])),
    "folded twice with one number": lambda k: [jr.bernoulli(jr.fold_in(k, 1)) for _ in range(2)],
    "a child that two parents' rules share": lambda k: (
        jr.bernoulli(jr.fold_in(k, 0)),
        jr.bernoulli(jr.split(k)[0]),
    ),
    "the same for every lane": lambda k: jax.vmap(jr.bernoulli)(jnp.stack([k, k])),
    "in a loop": reuse_in_a_loop,
    "in a loop that ends by lane": reuse_by_lane,
    "in one branch": reuse_in_a_branch,
    "after a branch": after_a_branch,
    "after both branches": reuse_after_branches,
    "through jit": lambda k: (jax.jit(jr.bernoulli)(k), jr.bernoulli(k)),
}


@pytest.mark.parametrize("name", REUSED)
def test_key_reuse(key, name):
    with pytest.raises(KeyReuse, match="test_exact_soundness"):
        exact(REUSED[name], key)


def test_the_message_names_the_line(key):
    with pytest.raises(Refused, match=r"two uniforms, at .*test_exact_soundness.py:\d+") as caught:
        exact(REFUSED["two uniforms compared"], key)
    assert caught.value.line


def test_limits(key):
    with pytest.raises(Refused, match="max_worlds"):
        exact(lambda k: jr.permutation(k, 12), key)
    with pytest.raises(Refused, match="out of bounds"):
        exact(lambda k: jr.uniform(k, (2,)).at[5].get(mode="fill", fill_value=0.0) < 0.5, key)
    with pytest.raises(Refused, match="max_worlds=10"):
        exact(lambda k: jr.randint(k, (4,), 0, 2), key, max_worlds=10)
    with pytest.raises(Refused, match="max_iterations=20"):
        exact(in_many_tries, key, max_iterations=20)
    with pytest.raises(ValueError, match="normal"):
        exact(lambda k: jr.normal(k), key, normal=((0.0, 1.0), (0.5, 0.6)))


def test_truncation_says_what_is_missing(key):
    measure = exact(lambda k: jr.poisson(k, 0.5), key, truncation=1e-9)
    assert 0 < measure.missing_mass < 1e-9
    assert measure.total() + measure.missing_mass == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(measure.expectation(), 0.5, atol=1e-7)
    tries = exact(in_many_tries, key, truncation=1e-6)
    assert tries.missing_mass == 2.0**-20


def test_a_lattice_stands_in_for_normal_noise(key):
    def walk(key):
        return 1.0 + 0.5 * jr.normal(key, (2,)).sum()

    found = law(walk, key, normal=((-1.0, 0.0, 1.0), (0.25, 0.5, 0.25)))
    same(found, {0.0: 1 / 16, 0.5: 1 / 4, 1.0: 3 / 8, 1.5: 1 / 4, 2.0: 1 / 16})


@jax.jit
def _pair(key, chance):
    return jr.beta(key, 1.0, 1.0, (2,)) * chance


def test_a_sampler_of_one_s_own(key):
    def program(key):
        coin, key = jr.split(key)
        return _pair(key, jnp.where(jr.bernoulli(coin, 0.25), 0.5, 1.0))

    with pytest.raises(Refused):
        exact(program, key)
    register("_pair", lambda chance: ([chance, 1 - chance], [[1.0, 0.0], [0.0, 1.0]]))
    same(law(program, key), {(1, 0): 0.875, (0, 1): 0.125})
    with pytest.raises(ValueError, match="_pair"):
        register("_pair", lambda chance: None)
    with pytest.raises(Refused, match="one key"):
        exact(jax.vmap(lambda k: _pair(k, 0.5)), jr.split(key))


def test_without_double_precision(key):
    with jax.enable_x64(False):
        measure = exact(lambda k: jr.choice(k, 3, (2,), p=jnp.array([0.2, 0.3, 0.5])), key)
    assert len(measure.masses) == 9
    np.testing.assert_allclose(measure.total(), 1, atol=1e-12)
    mean = measure.expectation(lambda x: x[0] + 0.0)
    np.testing.assert_allclose(mean, 1.3, atol=1e-6)
