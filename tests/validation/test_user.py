"""`bayesinf validate` on a user's own file."""

import json

import jax
import pytest

from bayesinf.cli import main

FILE = """
import jax, jax.numpy as jnp

def right(log_probs):
    num = log_probs.shape[0]
    def step(key, x):
        a, b = jax.random.split(key)
        y = jax.random.randint(a, (), 0, num)
        return jnp.where(jnp.log(jax.random.uniform(b)) < log_probs[y] - log_probs[x], y, x)
    return step

def wrong(log_probs):
    num = log_probs.shape[0]
    def step(key, x):
        a, b = jax.random.split(key)
        y = (x + jax.random.bernoulli(a, 0.7)) % num
        return jnp.where(jnp.log(jax.random.uniform(b)) < log_probs[y] - log_probs[x], y, x)
    return step

def twice(log_probs):
    num = log_probs.shape[0]
    def step(key, x):
        y = jax.random.randint(key, (), 0, num)
        return jnp.where(jnp.log(jax.random.uniform(key)) < log_probs[y] - log_probs[x], y, x)
    return step

def soft(log_probs):
    return lambda key, x: (x + jax.random.uniform(key) ** 2).astype(int)

def off(key, log_weights, num):
    return jnp.zeros(num, int)

class Kernel:
    def init(self, target, position):
        return State(position)
    def step(self, key, target, state):
        a, b = jax.random.split(key)
        y = 1 - state.position
        ratio = target.log_density(y) - target.log_density(state.position)
        return State(jnp.where(jnp.log(jax.random.uniform(b)) < ratio, y, state.position)), None

import typing
class State(typing.NamedTuple):
    position: object

kernel = Kernel()
number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def validate(capsys):
    """Returns the function from arguments to exit status, output and errors."""

    def run(*arguments):
        status = main(["validate", *map(str, arguments)])
        return status, *capsys.readouterr()

    yield run
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("right", 0, "HOLDS"),
        ("wrong", 1, "REFUTED"),
        ("twice", 1, "key"),
        ("soft", 2, "REFUSED"),
        ("number", 2, "number"),
        ("missing", 2, "no 'missing'"),
    ],
)
def test_exact_status_of_a_users_function(validate, file, tmp_path, name, status, word):
    """0 holds, 1 refuted (a key used twice too), 2 refused."""
    out = tmp_path / "table.json"
    came, output, errors = validate(f"{file}:{name}", "--states", 3, "--json", out)
    assert came == status, output + errors
    assert word in output + errors
    if not errors:
        (row,) = json.loads(out.read_text())
        assert row["block"] == name
        assert row["verdict"] == {0: "holds", 1: "refuted", 2: "refused"}[status]
        assert set(row) >= {"law", "mode", "exact_error", "evidence_bias_percent", "seconds"}


def test_exact_a_kernel_and_a_resampler(validate, file):
    """An object with init and step; another law."""
    assert validate(f"{file}:kernel", "--states", 2)[0] == 0
    assert validate(f"{file}:off", "--law", "preserves")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "FILE.py:NAME or --all"),
        (("nowhere.py:x",), "no such file"),
        (("mine",), "FILE.py:NAME"),
        (("{file}:Kernel",), "a class came"),
        (("{file}:right", "--law", "mine"), "invariant, preserves, proper"),
        (("{file}:right", "--states", "1"), "2 to 6"),
        (("{file}:right", "--json", "/proc/x/y.json"), "--json"),
    ],
)
def test_bad_input_is_one_line(validate, file, arguments, message):
    """One clear line, exit status 2."""
    status, _, errors = validate(*(argument.format(file=file) for argument in arguments))
    assert status == 2
    assert message in errors
    assert errors.count("\n") == 1
