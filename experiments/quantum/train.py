"""Trains our network and the rival ones, on the meta-prior and both readings of the model at once.

A problem gives two densities, its prior and its posterior. Ours is trained by the KL of both from
its two mixtures (the second is the paper's prior loss), by quadrature; the rivals by that of the
posterior. A flow would learn to peak at the nodes: its nodes are shifted at random.

Run: ./run --group experiments python experiments/quantum/train.py [--networks NAME ...] [--out DIR]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from problem import HIGH, LOW, TIMES, draw

from bayesinf.reproduce import line, weights
from bayesinf.reproduce.rivals import FlowNetwork, HistogramNetwork
from bayesinf.reproduce.weights import STEPS_PER_CHUNK, Recipe
from bayesinf.transformers_gmm import ParametricTransformer

WEIGHTS = Path(__file__).parent / "weights"
SEED, BATCH, NUM_COMPONENTS = 0, 256, 5
# A bucket about each of so many nodes.
BUCKETS = 800
HALF = 0.5 * (HIGH - LOW) / (BUCKETS - 1)
NUM_FEATURES = 3 + len(TIMES)
RECIPES = {
    "ours": Recipe(lambda key: ParametricTransformer(key, 1, 2, 5, NUM_COMPONENTS), 60, 2e-3),
    "histogram": Recipe(
        lambda key: HistogramNetwork(key, NUM_FEATURES, LOW - HALF, HIGH + HALF, BUCKETS, 64),
        60,
        2e-3,
    ),
    "flow": Recipe(lambda key: FlowNetwork(key, NUM_FEATURES, 8.0, 32, 2), 60, 2e-3),
}


def mixtures(network: ParametricTransformer, problem):
    """Returns our network's mixtures of the prior and of the posterior."""
    basis, mask = problem.prior.basis(), jnp.ones(len(TIMES), bool)
    return network(*problem.told(), mask, basis, basis)


def log_prob(network, problem, u):
    """Returns the log density of a network's posterior at `u`, whatever network that is."""
    if isinstance(network, ParametricTransformer):
        return line.mixture_log_prob(mixtures(network, problem)[1], u)
    basis, (parameters, readings) = problem.prior.basis(), problem.told()
    features = jnp.concatenate([parameters, readings[:1, -1], readings[:, 0]])
    scale = basis.chol[0, 0]
    return network.log_prob(features, (u - basis.loc[0]) / scale) - jnp.log(scale)


def loss(network, problem, num_nodes: int, shift=0.0):
    """Returns the KL from the posterior to a network's answer, for ours with that of the prior."""
    basis = problem.prior.basis()
    posterior = line.on_nodes(problem.log_target, basis, LOW, HIGH, num_nodes, shift)
    kl = posterior.kl(log_prob(network, problem, posterior.nodes))
    if not isinstance(network, ParametricTransformer):
        return kl
    prior = line.on_nodes(problem.prior.log_density, basis, LOW, HIGH, num_nodes, shift)
    return kl + prior.kl(line.mixture_log_prob(mixtures(network, problem)[0], prior.nodes))


def train(name: str, seed: int, checkpoint: Path | None = None, num_chunks: int | None = None):
    """Returns a trained network and what happened."""
    nodes = {"histogram": BUCKETS, "flow": 200}.get(name, 400)
    batch = 32 if name == "flow" else BATCH

    def pool(key, _):
        draw_key, setting_key, shift_key = jax.random.split(key, 3)
        keys = jax.random.split(draw_key, STEPS_PER_CHUNK * batch)
        second = jax.random.bernoulli(setting_key, shape=keys.shape)
        return jax.vmap(draw)(keys, second), jax.random.uniform(shift_key, keys.shape)

    def mean_loss(network, batch):
        problems, shifts = batch
        if name == "histogram":
            return jnp.mean(jax.vmap(lambda each: loss(network, each, nodes))(problems))
        return jnp.mean(jax.vmap(lambda each, s: loss(network, each, nodes, s))(problems, shifts))

    return weights.fit(RECIPES[name], seed, pool, mean_loss, batch, checkpoint, num_chunks)


def train_all(names, out: Path, num_chunks: int | None = None) -> None:
    """Trains each network into `out`."""
    units = [(name, SEED) for name in names]
    weights.train_all(lambda *unit: train(*unit, num_chunks=num_chunks), units, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--chunks", type=int, help="of training (default: each network's own)")
    parser.add_argument("--out", type=Path, default=Path("out/quantum/weights"))
    arguments = parser.parse_args()
    train_all(arguments.networks, arguments.out, arguments.chunks)
