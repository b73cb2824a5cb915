"""The qubit of `experiments/quantum`: its likelihood, and that the weights reach the floor."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from bayesinf.reproduce import line
from bayesinf.reproduce.weights import load

FOLDER = Path(__file__).parents[2] / "experiments" / "quantum"


@pytest.fixture(scope="module")
def quantum():
    """The experiment's modules, which find each other beside their script."""
    names = ("problem", "train")
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def averaged(problem, d):
    """Returns the probabilities by matrix exponentials and Gauss-Hermite nodes of the noises."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    hamiltonian = d * np.array([[0, 1], [1, 0]]) + (1 - d) * np.diag([1, -1])
    found = []
    for (x, z), time in zip(problem.STARTS, problem.TIMES, strict=True):
        angle = 0.5 * np.arctan2(x, z)
        both = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
        starts = np.array([np.cos(angle), np.sin(angle)]) + problem.START_NOISE * both
        starts /= np.linalg.norm(starts, axis=1, keepdims=True)
        times = time + problem.TIME_NOISE * nodes
        ways = np.stack([expm(-1j * t * hamiltonian)[0] for t in times])
        ones = np.abs(ways @ starts.T) ** 2
        found.append(weights @ ones @ np.outer(weights, weights).ravel())
    return np.array(found)


def test_oracle_the_noises_average_in_closed_form(quantum, x64):
    for d in (0.0, 0.2, 0.7, 1.0):
        found = quantum.problem.probabilities(jnp.array(d))
        np.testing.assert_allclose(found, averaged(quantum.problem, d), atol=1e-9)
    # Negative control: without them the outcomes are more certain than they are.
    quantum.problem.TIME_NOISE, kept = 0.0, quantum.problem.TIME_NOISE
    try:
        sure = quantum.problem.probabilities(jnp.array(0.2))
    finally:
        quantum.problem.TIME_NOISE = kept
    assert np.max(np.abs(sure - averaged(quantum.problem, 0.2))) > 1e-4


@pytest.mark.parametrize("setting", ["text", "code"])
def test_oracle_the_weights_answer_near_the_exact_posterior(quantum, quick_compilation, setting):
    problems = quantum.problem.draw_many(jax.random.key(0), setting, 100)
    network = load(quantum.train.WEIGHTS, quantum.train.RECIPES, "ours", quantum.train.SEED)

    def excess(problem, asked):
        basis, low, high = problem.prior.basis(), quantum.problem.LOW, quantum.problem.HIGH
        exact = line.on_nodes(problem.log_target, basis, low, high, 400)
        return exact.kl(quantum.train.log_prob(network, asked, exact.nodes))

    mean = jax.jit(lambda *given: jnp.mean(jax.vmap(excess)(*given)))
    assert 0 < mean(problems, problems) < 0.02
    # Negative control: what it answers to other outcomes is not near.
    other = problems._replace(outcomes=~problems.outcomes)
    assert mean(problems, other) > 0.1
