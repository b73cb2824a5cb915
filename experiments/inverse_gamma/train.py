"""Trains our networks and the rival ones, all on the `wide` meta-prior.

Each of a batch of problems gives two densities, its prior and its posterior; the loss is the mean
log of their KL from the answer, by quadrature. A flow would learn to peak at the nodes: it is
trained by the KL itself, on nodes that are shifted at random. A checkpoint a network lets a killed
run go on.

Run: ./run --group experiments python experiments/inverse_gamma/train.py
     [--networks NAME ...] [--seeds N ...] [--out DIR]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from problem import HIGH, LOW, META_PRIORS, by_quadrature, draw

from bayesinf.reproduce import line, weights
from bayesinf.reproduce.rivals import FlowNetwork, HistogramNetwork
from bayesinf.reproduce.weights import STEPS_PER_CHUNK, Recipe
from bayesinf.transformers_gmm.jets import JetNetwork, jet

TRAINED_ON = "wide"
WEIGHTS = Path(__file__).parent / "weights"
BATCH = 256
# Below this a KL counts little more as it falls: about what the best mixture leaves.
RESOLUTION = 1e-5
# A bucket about each of so many nodes.
BUCKETS = 1000
HALF = 0.5 * (HIGH - LOW) / (BUCKETS - 1)
RECIPES = {
    "ours_5": Recipe(lambda key: JetNetwork(key, 5), 30, 3e-3),
    "ours_8": Recipe(lambda key: JetNetwork(key, 8), 30, 3e-3),
    "histogram": Recipe(
        lambda key: HistogramNetwork(key, 2, LOW - HALF, HIGH + HALF, BUCKETS, 64), 30, 3e-3
    ),
    "flow": Recipe(lambda key: FlowNetwork(key, 2, 8.0, 32, 2), 60, 3e-3),
}


def log_prob(network, log_density, basis, x):
    """Returns the log density of a network's answer at `x`, whatever network that is."""
    if isinstance(network, JetNetwork):
        return line.mixture_log_prob(network(log_density, basis), x)
    scale = basis.chol[0, 0]
    shape = jet(log_density, basis, 4)[2:]
    return network.log_prob(shape, (x - basis.loc[0]) / scale) - jnp.log(scale)


def losses(network, problem, num_nodes: int = 256, shift=0.0):
    """Returns the KL from the posterior and from the prior to the network's answers."""

    def loss(log_density, basis):
        density = by_quadrature(log_density, basis, num_nodes, shift)
        return density.kl(log_prob(network, log_density, basis, density.nodes))

    return jnp.stack(
        [
            loss(problem.log_target, problem.basis()),
            loss(problem.prior.log_density, problem.prior_basis()),
        ]
    )


def train(name: str, seed: int, checkpoint: Path | None = None, num_chunks: int | None = None):
    """Returns a trained network and what happened."""
    # A histogram is trained where its buckets are, a flow with fewer nodes, for it is slow.
    nodes = {"histogram": BUCKETS, "flow": 128}.get(name, 256)
    batch = 32 if name == "flow" else BATCH

    def pool(key, _):
        keys = jax.random.split(key, STEPS_PER_CHUNK * batch)
        problems = jax.vmap(lambda key: draw(key, META_PRIORS[TRAINED_ON]))(keys)
        shifts = jax.random.uniform(jax.random.fold_in(key, 1), keys.shape)
        return problems, shifts

    def loss(network, batch):
        if name == "flow":
            return jnp.mean(
                jax.vmap(lambda each, shift: losses(network, each, nodes, shift))(*batch)
            )
        kl = jax.vmap(lambda problem: losses(network, problem, nodes))(batch[0])
        return jnp.mean(jnp.log(jnp.maximum(kl, 0) + RESOLUTION))

    return weights.fit(RECIPES[name], seed, pool, loss, batch, checkpoint, num_chunks)


def train_all(names, seeds, out: Path, num_chunks: int | None = None) -> None:
    """Trains each network with each seed, a rival one with the first alone, into `out`."""
    units = [(n, seed) for n in names for seed in (seeds if n.startswith("ours") else seeds[:1])]
    weights.train_all(lambda *unit: train(*unit, num_chunks=num_chunks), units, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--chunks", type=int, help="of training (default: each network's own)")
    parser.add_argument("--out", type=Path, default=Path("out/inverse_gamma/weights"))
    arguments = parser.parse_args()
    train_all(arguments.networks, arguments.seeds, arguments.out, arguments.chunks)
