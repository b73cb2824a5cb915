"""A parameter of a qubit's Hamiltonian: how near a network's mixture is to the exact posterior.

Sec. 4.2.2 of the Distribution Transformer paper: five sets of 1,000 test problems a setting (250 of
one for variational inference), negative log density of x by quadrature in double precision, beside
the exact posterior's, which is the floor.

Run: ./run --group experiments bayesinf reproduce quantum [--quick] [--out DIR]
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
from problem import HIGH, LOW, SETTINGS, draw_many
from train import BUCKETS, HALF, RECIPES, SEED, WEIGHTS, log_prob, mixtures, train_all

from bayesinf.plots.reproduce import rows_figure
from bayesinf.reproduce import OURS, Row, line, mean_and_interval, table, timed, write
from bayesinf.reproduce.rivals import mixture_vi
from bayesinf.reproduce.weights import load, reports

NUM_PROBLEMS, TEST_SEEDS = 1000, (0, 1, 2, 3, 4)
# Nodes of the scores, all within buckets of the histogram.
NODES = 2 * BUCKETS
# Problems on which variational inference is run, for it is slow.
NUM_VI = 250


def on_nodes(log_density, problem, num: int = NODES) -> line.Density:
    """Returns a density on nodes that are spread evenly over the histogram's buckets."""
    half = HALF * (1 - BUCKETS / num)
    return line.on_nodes(log_density, problem.prior.basis(), LOW - half, HIGH + half, num)


# An answer is a function of (what gives it, problem, points) to log densities there.


def by_mixture(mixture, problem, u):
    del problem
    return line.mixture_log_prob(mixture, u)


def by_prior(_, problem, u):
    return jax.vmap(problem.prior.log_density)(u)


def by_nodes(_, problem, u):
    log_evidence = on_nodes(problem.log_target, problem, 400).log_evidence
    return jax.vmap(problem.log_target)(u) - log_evidence


@eqx.filter_jit
def scores(answer, given, problems, each=False):
    """Returns KL(exact || answer) of all problems; `each` has something given of its own."""

    def one(inputs):
        problem, own = inputs
        exact = on_nodes(problem.log_target, problem)
        return exact.kl(answer(own if each else given, problem, exact.nodes))

    return jax.lax.map(one, (problems, given if each else None), batch_size=50)


@eqx.filter_jit
def exact_scores(problems):
    """Returns the entropy of x under every posterior: no answer has less negative log density."""

    def one(problem):
        exact = on_nodes(problem.log_target, problem)
        # The log of du / dx at x = sigmoid(u).
        log_slope = jax.nn.softplus(exact.nodes) + jax.nn.softplus(-exact.nodes)
        return exact.entropy() - exact.expect(log_slope)

    return jax.lax.map(one, problems, batch_size=50)


@eqx.filter_jit
def prior_scores(network, problems):
    """Returns KL(prior || our network's mixture of it) of all problems."""

    def one(problem):
        exact = on_nodes(problem.prior.log_density, problem)
        return exact.kl(line.mixture_log_prob(mixtures(network, problem)[0], exact.nodes))

    return jax.lax.map(one, problems, batch_size=50)


def asked(answer, given, problems):
    """Returns every posterior's log density at the prior's mode, which is what gets timed."""
    return jax.vmap(lambda each: answer(given, each, each.prior.basis().loc))(problems)


def fitted(keys, problems, num_components):
    """Returns the mixtures of variational inference."""

    def one(key, problem):
        return mixture_vi(key, problem.log_target, problem.prior.basis(), num_components)

    return jax.vmap(one)(keys, problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/quantum"))
    parser.add_argument("--quick", action="store_true", help="with the weights of the repository")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    weights = WEIGHTS if arguments.quick else arguments.out / "weights"
    names = [name for name in RECIPES if name != "flow" or find_spec("flowjax") is not None]
    if "flow" not in names:
        print("the flow is left out, for flowjax is not installed", file=sys.stderr)
    if not arguments.quick:
        train_all(names, weights)
    networks = {name: load(weights, RECIPES, name, SEED) for name in names}

    rows, by_seed, error = [], {}, 0.0
    for setting in SETTINGS:
        # Folded, so that no key of a training from the same seed is met again.
        keys = [jax.random.fold_in(jax.random.key(seed), 422) for seed in TEST_SEEDS]
        sets = [draw_many(key, setting, NUM_PROBLEMS) for key in keys]
        with jax.enable_x64(True):
            double = [jax.tree.map(_double, problems) for problems in sets]
            floors = np.stack([exact_scores(problems) for problems in double])

            def add(method, kls, seconds=None, setting=setting, floors=floors):
                """Adds what holds over the first problems, for which the method was scored."""
                kls = np.concatenate(kls)
                least = floors.ravel()[: len(kls)]
                for metric, values, floor in (
                    ("nll", least + kls, float(least.mean())),
                    ("excess", kls, 0.0),
                ):
                    mean, half = mean_and_interval(values)
                    rows.append(Row(method, setting, metric, mean, half, floor, None, seconds))

            for name, network in networks.items():
                kls = [scores(log_prob, network, problems) for problems in double]
                _, seconds = timed(asked, log_prob, network, sets[0])
                add(OURS if name == "ours" else name, kls, seconds)
                by_seed[f"{setting}, {name}"] = [float(each.mean()) for each in kls]
            mean, half = mean_and_interval(prior_scores(networks["ours"], double[0]))
            rows.append(Row(OURS, setting, "prior_kl", mean, half, 0.0))
            vi_keys = jax.random.split(jax.random.fold_in(keys[0], 1), NUM_VI)
            few = [jax.tree.map(lambda leaf: leaf[:NUM_VI], each[0]) for each in (sets, double)]
            for name, k in (("gaussian_vi", 1), ("mixture_vi", 5)):
                found, seconds = timed(fitted, vi_keys, few[0], k)
                found = jax.tree.map(_double, found)
                seconds *= NUM_PROBLEMS / NUM_VI
                add(name, [scores(by_mixture, found, few[1], each=True)], seconds)
            add("prior", [scores(by_prior, None, problems) for problems in double])
            _, seconds = timed(asked, by_nodes, None, sets[0])
            kls = [jnp.abs(scores(by_nodes, None, problems)) for problems in double]
            error = max(error, *(float(each.max()) for each in kls))
            add("quadrature", kls, seconds)

    write(
        arguments.out,
        "quantum",
        "bayesinf reproduce quantum" + (" --quick" if arguments.quick else ""),
        SEED,
        rows,
        problems=NUM_PROBLEMS,
        test_seeds=list(TEST_SEEDS),
        excess_by_test_seed=by_seed,
        largest_error_of_quadrature=error,
        training=reports(weights),
        device=jax.devices()[0].device_kind,
        minutes=round((time.perf_counter() - begin) / 60, 1),
    )
    print(table(rows))
    rows_figure(rows, "excess", log=True).savefig(arguments.out / "excess.png", dpi=150)


def _double(leaf):
    return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


if __name__ == "__main__":
    main()
