"""The optimisation loop: where it converges, what it skips, and that a killed run goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

from bayesinf import training
from bayesinf.training import fit

WEIGHT = np.array([1.5, -0.5, 2.0], np.float32)


class Line(eqx.Module):
    weight: Array
    link: Callable = jax.nn.relu  # what is no array must survive


def regression_pool(key, line):
    del line
    inputs = jax.random.normal(key, (64, 3))
    return inputs, inputs @ WEIGHT


def squared_error(line, batch):
    inputs, outputs = batch
    return jnp.mean((inputs @ line.weight - outputs) ** 2)


def train(checkpoint=None, num_chunks=6, seed=0, **others):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))
    sizes = {"num_chunks": num_chunks, "steps_per_chunk": 50, "batch_size": 16, **others}
    line = Line(jnp.zeros(3))
    return fit(
        jax.random.key(seed), line, regression_pool, squared_error, optimizer,
        checkpoint=checkpoint, progress=False, **sizes,
    )  # fmt: skip


def die_in_chunk_three(checkpoint):
    """Kills this process as it puts the third checkpoint in place of the second."""
    replace, calls = os.replace, []

    def replace_twice(fresh, path):
        calls.append(path)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(fresh, path)

    training.os.replace = replace_twice
    train(checkpoint)


@pytest.fixture(scope="module")
def uninterrupted():
    return train()


def test_it_converges_to_the_least_squares_solution(uninterrupted):
    line, history = uninterrupted
    np.testing.assert_allclose(line.weight, WEIGHT, atol=1e-3)
    assert line.link is jax.nn.relu
    assert history.loss.shape == history.score.shape == history.skipped.shape == (6,)
    assert history.loss[-1] < 1e-4 * history.loss[0]
    assert np.isnan(history.score).all()
    assert not history.skipped.any()


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, uninterrupted):
    path = tmp_path / "run"  # without a suffix: none may be added to it
    code = f"import test_training; test_training.die_in_chunk_three({str(path)!r})"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert path.exists()

    line, history = train(path)
    np.testing.assert_array_equal(line.weight, uninterrupted[0].weight)
    for resumed, whole in zip(history, uninterrupted[1], strict=True):
        np.testing.assert_array_equal(resumed, whole)
    # Another seed from the same checkpoint must lead elsewhere, or the comparison sees nothing.
    path.unlink()
    other, _ = train(seed=1)
    assert (other.weight != uninterrupted[0].weight).any()


def test_a_finished_run_is_read_back_from_its_checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"
    line, history = train(path, num_chunks=2)
    again, same = train(path, num_chunks=2)
    np.testing.assert_array_equal(again.weight, line.weight)
    np.testing.assert_array_equal(same.loss, history.loss)
    assert [file.name for file in tmp_path.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "other"])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, damage):
    path = tmp_path / "run.ckpt"
    train(path, num_chunks=1)
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[:-40], "foreign": b"x" * 99, "empty": b""}.get(damage, content)
    )
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.ckpt came, .* was expected"):
        train(path, num_chunks=2 if damage == "other" else 1)


# A weight that falls by the rate in every step that is taken, so that it counts them.

RATE = 0.125


def fall(line, batch):
    """Returns a loss with slope 1 whose value (flag 1) or gradient (flag 2) may not be finite."""
    flag = batch[0]
    kink = jnp.sqrt(jnp.where(flag == 2, 0 * line.weight[0], 1 + 0 * line.weight[0]))
    return line.weight[0] + jnp.where(flag == 1, jnp.nan, 0) + 0 * kink


@pytest.fixture
def newest(monkeypatch):
    """Makes the running average the newest network, whose weight is a plain count."""
    monkeypatch.setattr(training, "AVERAGE", 0.0)


def fit_fall(flags, **others):
    sizes = {"num_chunks": 4, "steps_per_chunk": 16, "batch_size": 1, **others}
    return fit(
        jax.random.key(0), Line(jnp.zeros(1)), lambda key, line: jnp.array(flags), fall,
        optax.sgd(RATE), progress=False, **sizes,
    )  # fmt: skip


def test_steps_that_are_not_finite_are_skipped_and_counted(newest):
    line, history = fit_fall([0, 0, 0, 0, 0, 0, 1, 2])
    skipped = int(history.skipped.sum())
    assert 0 < skipped < 32
    assert line.weight[0] == -RATE * (64 - skipped)
    assert np.isfinite(history.loss).all()


def test_what_is_returned_is_the_running_average():
    line, _ = fit_fall([0], num_chunks=1, steps_per_chunk=40)
    average = 0.0
    for step in range(1, 41):
        average += max(1 - training.AVERAGE, 9 / (9 + step)) * (-RATE * step - average)
    np.testing.assert_allclose(line.weight[0], average, rtol=1e-5)
    assert average > -RATE * 39  # and not the newest


@pytest.mark.parametrize("flag", [1, 2], ids=["loss", "gradient"])
def test_it_stops_when_they_persist(flag):
    with pytest.raises(
        FloatingPointError, match="loss: not finite in 16 of the 16 steps of chunk 0"
    ):
        fit_fall([flag])


def test_early_stopping_returns_the_best_network(newest):
    # After chunk c the weight is -2 (c + 1): chunk 2 is the best, two more are waited for.
    line, history = fit_fall(
        [0], num_chunks=20, patience=2, validate=lambda line: jnp.abs(line.weight[0] + 6.5)
    )
    assert line.weight[0] == -6
    np.testing.assert_allclose(history.score, [4.5, 2.5, 0.5, 1.5, 3.5])


def test_a_validation_loss_that_is_never_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="validate: not finite after any of 4 chunks"):
        fit_fall([0], validate=lambda line: jnp.nan * line.weight[0])


def test_all_chunks_share_one_compilation():
    traces = []

    def pool(key, line):
        traces.append(key)
        return regression_pool(key, line)

    fit(
        jax.random.key(0), Line(jnp.zeros(3)), pool, squared_error, optax.adam(0.1),
        num_chunks=4, steps_per_chunk=2, batch_size=4, progress=False,
    )  # fmt: skip
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["num_chunks", "steps_per_chunk", "batch_size", "patience"])
def test_counts_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name}: 0 came, at least 1 was expected"):
        train(**{name: 0})
