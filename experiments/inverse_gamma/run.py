"""An unknown variance: how near a network's mixture is to the exact posterior.

Sec. 4.1 and appendix C.2 of the Distribution Transformer paper: 1,000 test problems a setting, all
networks trained on `wide`, KL(exact || answer) by quadrature in double precision.

Run: ./run --group experiments bayesinf reproduce inverse-gamma [--quick] [--out DIR]
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from problem import HIGH, LOW, META_PRIORS, Posterior, by_quadrature, draw_many
from train import BUCKETS, HALF, RECIPES, WEIGHTS, log_prob, train_all

from bayesinf.plots.reproduce import rows_figure
from bayesinf.reproduce import OURS, Row, line, mean_and_interval, table, timed, write
from bayesinf.reproduce.rivals import mixture_vi
from bayesinf.reproduce.weights import load, reports
from bayesinf.transformers_gmm.jets import Basis

SEED, NUM_PROBLEMS, SEEDS = 0, 1000, (0, 1, 2, 3, 4)
METRICS = {5: "kl", 8: "kl_k8"}
# Nodes of the scores, all within buckets of the histogram, and shapes at which the floor is found.
NODES, SHAPES = 2 * BUCKETS, 12
# What the paper prints: tables 1 and 5. Its SVI fits one Gaussian, its PFN is not told the prior.
PAPER = {
    OURS: {"narrow": 4e-4, "wide": 3e-4, "shifted": 5.4e-3},
    "gaussian_vi": {"narrow": 0.0425, "wide": 0.0558},
    "histogram": {"narrow": 0.0038, "wide": 0.2935},
}


def density(problem):
    """Returns the exact posterior on the nodes of the scores; its log evidence should be 0."""
    half = HALF * (1 - BUCKETS / NODES)
    basis, exact = problem.basis(), problem.exact()
    return line.on_nodes(exact.log_prob, basis, LOW - half, HIGH + half, NODES)


# An answer is a function of (what gives it, problem, points) to log densities there.


def by_network(network, problem, u):
    return log_prob(network, problem.log_target, problem.basis(), u)


def by_mixture(mixture, problem, u):
    del problem
    return line.mixture_log_prob(mixture, u)


def by_nodes(_, problem, u):
    log_evidence = by_quadrature(problem.log_target, problem.basis()).log_evidence
    return jax.vmap(problem.log_target)(u) - log_evidence


@eqx.filter_jit
def scores(answer, given, problems, each=False):
    """Returns KL(exact || answer) of all problems; `each` has something given of its own."""

    def one(inputs):
        problem, own = inputs
        exact = density(problem)
        return exact.kl(answer(own if each else given, problem, exact.nodes))

    return jax.lax.map(one, (problems, given if each else None), batch_size=50)


@eqx.filter_jit
def prior_scores(network, problems):
    """Returns KL(prior || answer) of all problems."""

    def one(problem):
        basis = problem.prior_basis()
        exact = line.on_nodes(problem.prior.log_prob, basis, LOW, HIGH, NODES)
        answer = log_prob(network, problem.prior.log_density, basis, exact.nodes)
        return exact.kl(answer)

    return jax.lax.map(one, problems, batch_size=50)


@eqx.filter_jit
def errors_of_quadrature(problems):
    return jax.lax.map(lambda problem: jnp.abs(density(problem).log_evidence), problems)


def asked(answer, given, problems):
    """Returns every posterior's log density at its mode, which is what gets timed."""
    return jax.vmap(lambda problem: answer(given, problem, problem.basis().loc))(problems)


def fitted(keys, problems, num_components):
    """Returns the mixtures of variational inference."""

    def one(key, problem):
        return mixture_vi(key, problem.log_target, problem.basis(), num_components)

    return jax.vmap(one)(keys, problems)


@eqx.filter_jit
def brought_down(network, shapes):
    """Returns, at each of some shapes, the least KL to which a network's answer can be brought."""

    def one(shape):
        posterior = Posterior(shape, shape)
        basis = Basis(jnp.zeros(1, shape.dtype), (1 / jnp.sqrt(shape))[None, None])
        start = network(posterior.log_density, basis)
        exact = by_quadrature(posterior.log_density, basis, 400)
        return line.best_mixture(exact, start)[1]

    return jax.vmap(one)(shapes)


def floors(networks, problems):
    """Returns the mean over problems of the floor of mixtures with as many components.

    Up to shifts there is one posterior for each shape, so the floor is a function of it alone; it
    is found on a grid, from the answer of every network.
    """
    tested = {name: np.log(each.exact().shape) for name, each in problems.items()}
    low, high = (f([f(logs) for logs in tested.values()]) for f in (np.min, np.max))
    grid = np.linspace(low, high, SHAPES)
    found = [brought_down(network, jnp.exp(jnp.asarray(grid))) for network in networks]
    least = np.log(np.min(np.asarray(found), axis=0))
    return {name: float(np.exp(np.interp(x, grid, least)).mean()) for name, x in tested.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/inverse_gamma"))
    parser.add_argument("--quick", action="store_true", help="with the weights of the repository")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    weights = WEIGHTS if arguments.quick else arguments.out / "weights"
    names = [name for name in RECIPES if name != "flow" or find_spec("flowjax") is not None]
    if "flow" not in names:
        print("the flow is left out, for flowjax is not installed", file=sys.stderr)
    if not arguments.quick:
        train_all(names, SEEDS, weights)
    ours = {k: [load(weights, RECIPES, f"ours_{k}", seed) for seed in SEEDS] for k in METRICS}
    rivals = {
        name: load(weights, RECIPES, name, SEEDS[0])
        for name in ("histogram", "flow")
        if name in names
    }

    # Folded, so that no key of a training from the same seed is met again.
    draw_key, vi_key = jax.random.split(jax.random.fold_in(jax.random.key(SEED), 431))
    draw_keys = jax.random.split(draw_key, len(META_PRIORS))
    single = {
        setting: draw_many(key, setting, NUM_PROBLEMS)
        for setting, key in zip(META_PRIORS, draw_keys, strict=True)
    }
    vi_keys = jax.random.split(vi_key, NUM_PROBLEMS)
    rows, by_seed, quadrature_error = [], {}, 0.0
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: leaf.astype(float), single)
        floor = {k: floors(networks, double) for k, networks in ours.items()}
        for setting, problems in double.items():

            def add(method, metric, values, floor=None, seconds=None, setting=setting):
                paper = PAPER.get(method, {}).get(setting) if metric == "kl" else None
                mean, half = mean_and_interval(values)
                rows.append(Row(method, setting, metric, mean, half, floor, paper, seconds))

            quadrature_error = max(quadrature_error, float(errors_of_quadrature(problems).max()))
            for k, metric in METRICS.items():
                kls = [scores(by_network, network, problems) for network in ours[k]]
                kls = np.stack(kls, axis=1)
                by_seed[f"{setting}, {metric}"] = kls.mean(axis=0).tolist()
                _, seconds = timed(asked, by_network, ours[k][0], single[setting])
                add(OURS, metric, kls, floor[k][setting], seconds)
            kls = [prior_scores(network, problems) for network in ours[5]]
            add(OURS, "prior_kl", np.stack(kls, axis=1))
            for name, network in rivals.items():
                _, seconds = timed(asked, by_network, network, single[setting])
                add(name, "kl", scores(by_network, network, problems), None, seconds)
            for name, k, metric in (
                ("gaussian_vi", 1, "kl"),
                ("mixture_vi", 5, "kl"),
                ("mixture_vi", 8, "kl_k8"),
            ):
                mixtures, seconds = timed(fitted, vi_keys, single[setting], k)
                mixtures = jax.tree.map(lambda leaf: leaf.astype(float), mixtures)
                kls = scores(by_mixture, mixtures, problems, each=True)
                add(name, metric, kls, floor[k][setting] if k > 1 else None, seconds)
            _, seconds = timed(asked, by_nodes, None, single[setting])
            add("quadrature", "kl", jnp.abs(scores(by_nodes, None, problems)), 0.0, seconds)

    command = "bayesinf reproduce inverse-gamma" + (" --quick" if arguments.quick else "")
    write(
        arguments.out,
        "inverse-gamma",
        command,
        SEED,
        rows,
        problems=NUM_PROBLEMS,
        training_seeds=by_seed,
        largest_error_of_quadrature=quadrature_error,
        training=reports(weights),
        device=jax.devices()[0].device_kind,
        minutes=round((time.perf_counter() - begin) / 60, 1),
    )
    print(table(rows))
    for metric in METRICS.values():
        rows_figure(rows, metric, log=True).savefig(arguments.out / f"{metric}.png", dpi=150)


if __name__ == "__main__":
    main()
