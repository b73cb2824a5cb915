"""Few-shot regression on line-sine and sinusoid tasks: a mixture of NIWs against its rivals.

Every method learns from 64 tasks of 16 rows, with early stopping on 64 other tasks, and predicts 54
rows of 256 test tasks given 1 to 10 others. The same validation tasks choose among its four
settings, with a family's first seed; the choice is kept for its other seeds. The floor is the true
generative model. A unit of work (family, method, seed) is kept in `--out` and not done again.

Run: ./run python experiments/line_sine/run.py [--out DIR] [--families ...] [--methods ...]
"""

import argparse
import json
import time
from pathlib import Path

import ceiling
import equinox as eqx
import jax
import numpy as np
import ours
import report
import rivals
import tasks
from learn import Setting, held_out, learn, scores
from tqdm import tqdm

from bayesinf.meta_niw import Episode

SEEDS = (0, 1, 2)
NUM_TRAIN, TRAIN_ROWS, NUM_VALIDATION, VALIDATION_ROWS = 64, 16, 64, 26
NUM_TEST, TEST_ROWS = 256, 64
NUTS_TASKS, NUTS_SHOTS = 16, (1, 2, 3, 5, 10)
PRIOR_DFS = (41.0, 82.0, 164.0, 328.0)  # from the fewest that is proper


def _process(width, rate, decay):
    return Setting(lambda key: rivals.NeuralProcess(key, width), rate, decay)


def _maml(inner_rate, num_steps, relu, varies, rate):
    return Setting(
        lambda key: rivals.Maml(key, 40, inner_rate, num_steps, relu, varies), rate, 1e-3
    )


def _last_layer(rescale, rate, decay):
    return Setting(lambda key: rivals.LastLayer(key, 40, rescale), rate, decay)


def _niw(rescale, rate, decay, num_clusters=2):
    return Setting(lambda key: ours.head(key, 40, rescale, num_clusters), rate, decay)


HEAD = ((1.0, 5e-3, 1e-2), (1.0, 2e-3, 1e-3), (3.0, 5e-3, 1e-2), (3.0, 2e-3, 1e-3))
SETTINGS = {
    "neural_process": [
        _process(64, 1e-3, 1e-2),
        _process(64, 1e-3, 0.3),
        _process(64, 1e-3, 1.0),
        _process(32, 2e-3, 0.1),
    ],
    "maml": [
        _maml(0.1, 5, True, True, 5e-3),
        _maml(0.1, 1, True, True, 5e-3),
        _maml(0.1, 5, True, False, 2e-3),
        _maml(0.03, 5, False, True, 5e-3),
    ],
    "last_layer": [_last_layer(*each) for each in HEAD],
    "niw_mixture": [_niw(*each) for each in HEAD],
    "niw": [_niw(*each, num_clusters=1) for each in HEAD],  # the choice of the mixture is taken
}
SEARCHED = {"niw": "niw_mixture"}  # whose choice a method takes that has no search of its own


def data(family, seed):
    """Returns the tasks to learn from and those to validate on."""
    key = jax.random.fold_in(jax.random.key(seed), list(tasks.SHARE_OF_LINES).index(family))
    train_key, validation_key, learn_key = jax.random.split(key, 3)
    train = tasks.draw(train_key, family, NUM_TRAIN, TRAIN_ROWS)
    return train, tasks.draw(validation_key, family, NUM_VALIDATION, VALIDATION_ROWS), learn_key


def test_tasks(family):
    """Returns the test tasks, the same for every seed."""
    key = jax.random.fold_in(jax.random.key(2_000), list(tasks.SHARE_OF_LINES).index(family))
    return tasks.draw(key, family, NUM_TEST, TEST_ROWS)


def choice_file(family, method, out):
    """Returns where the choice among a method's settings is kept."""
    return out / f"choice-{family}-{SEARCHED.get(method, method)}.json"


def fit_one(family, method, seed, setting):
    """Returns the trained predictor, its validation loss and its number of chunks."""
    train, validation, key = data(family, seed)
    if not method.startswith("niw"):
        return learn(key, setting, train, validation)

    losses = (ours.evidence_loss, ours.held_out_evidence)
    network, _, chunks = learn(key, setting, train, validation, *losses)
    # How much the closed step's prior is worth is the last thing that validation chooses.
    closed = [ours.closed_step(network, train, df) for df in PRIOR_DFS]
    found = [ours.Predictor(each) for each in closed]
    losses = [float(LOSS(each, validation)) for each in found]
    best = int(np.argmin(losses))
    return found[best], losses[best], chunks


LOSS = eqx.filter_jit(held_out)


def unit(family, method, seed, out):
    """Trains and scores one method, or takes what an earlier run has kept."""
    file = out / f"{family}-{method}-{seed}.npz"
    if file.exists():
        return
    begin = time.perf_counter()
    settings = SETTINGS[method]
    chosen = choice_file(family, method, out)
    if chosen.exists():
        best = json.loads(chosen.read_text())["best"]
        predictor, loss, chunks = fit_one(family, method, seed, settings[best])
    else:
        runs = [fit_one(family, method, seed, each) for each in tqdm(settings, desc=method)]
        losses = [loss for _, loss, _ in runs]
        best = int(np.nanargmin(losses))
        chosen.write_text(json.dumps({"best": best, "losses": losses}) + "\n")
        predictor, loss, chunks = runs[best]
    found = jax.tree.map(np.asarray, scores(predictor, test_tasks(family)))
    np.savez(file, **found, loss=loss, chunks=chunks, seconds=time.perf_counter() - begin)
    eqx.tree_serialise_leaves(file.with_suffix(".eqx"), predictor)
    print(f"{file.stem}: {loss:.3f} after {chunks} chunks", flush=True)


def floor(family, out):
    """Scores the true generative model."""
    file = out / f"{family}-exact.npz"
    if file.exists():
        return
    begin, test = time.perf_counter(), jax.tree.map(np.asarray, test_tasks(family))
    rows = []
    for shots in tqdm(range(1, tasks.MAX_SHOTS + 1), desc=f"{family}, exact"):
        both = tasks.at_shots(test, shots)
        each = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), both) for i in range(NUM_TEST)]
        rng = np.random.default_rng(shots)
        rows.append([tasks.exact(rng, family, *one) for one in each])
    stacked = {
        name: np.array([[one[name] for one in row] for row in rows])
        for name in ("log_prob", "error", "pit")
    }
    np.savez(file, **stacked, seconds=time.perf_counter() - begin)


def load(family, method, seed, out):
    """Returns a trained predictor that an earlier unit has kept."""
    choice = json.loads(choice_file(family, method, out).read_text())
    train, _, key = data(family, seed)

    def make():
        network = SETTINGS[method][choice["best"]].make(key)
        if not method.startswith("niw"):
            return network
        return ours.Predictor(ours.closed_step(network, train, PRIOR_DFS[0]))

    file = out / f"{family}-{method}-{seed}.eqx"
    return eqx.tree_deserialise_leaves(file, eqx.filter_eval_shape(make))


def nuts(family, out):
    """Compares the mixture of NIWs with NUTS on the same network and prior, on a few tasks."""
    file = out / f"{family}-nuts.npz"
    if file.exists():
        return
    begin, predictor = time.perf_counter(), load(family, "niw_mixture", 0, out)
    few = jax.tree.map(lambda rows: rows[:NUTS_TASKS], test_tasks(family))
    keys = jax.random.split(jax.random.key(3_000), NUTS_TASKS)

    @jax.jit
    def both(num_shots):
        support, query = tasks.at_shots(few, num_shots)
        sampled = jax.vmap(ceiling.predict, (0, None, 0, 0))
        found, acceptance = sampled(keys, predictor.state, support, query.x)
        closed = jax.vmap(predictor)(support, query.x)
        return found.log_prob(query.y), closed.log_prob(query.y), acceptance

    found, closed, acceptance = (
        np.stack(each) for each in zip(*map(both, NUTS_SHOTS), strict=True)
    )
    seconds = time.perf_counter() - begin
    np.savez(file, nuts=found, closed=closed, acceptance=acceptance, seconds=seconds)


def figures(family, out):
    """Draws the predictive bands of a sine."""
    rng = np.random.default_rng(4)
    x = rng.uniform(-tasks.REACH, tasks.REACH, tasks.MAX_SHOTS).astype(np.float32)

    def truth(x):
        return 3 * np.sin(x + 1)

    y = (truth(x) + tasks.NOISE * rng.normal(size=x.shape)).astype(np.float32)
    names = [each for each in SETTINGS if (out / f"{family}-{each}-0.eqx").exists()]
    predictors = {name: load(family, name, 0, out) for name in reversed(names)}
    task = Episode(x, y, np.ones(x.shape, bool))
    report.band_figure(predictors, task, truth).savefig(out / f"{family}_bands.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/line_sine"))
    parser.add_argument("--families", nargs="+", default=list(tasks.SHARE_OF_LINES))
    parser.add_argument("--methods", nargs="*", default=[*SETTINGS, "exact", "nuts"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for family in arguments.families:
        if "exact" in arguments.methods:
            floor(family, out)
        for seed in arguments.seeds:
            for method in SETTINGS:
                if method in arguments.methods:
                    unit(family, method, seed, out)
        if "nuts" in arguments.methods:
            nuts(family, out)
        results[family] = report.summary(out, family)
        report.show(family, results[family])
    choices = {
        family: {
            method: json.loads(choice_file(family, method, out).read_text())
            for method in SETTINGS
            if method not in SEARCHED and choice_file(family, method, out).exists()
        }
        for family in results
    }
    kept = [np.load(file) for family in results for file in out.glob(f"{family}-*.npz")]
    result = {
        "seeds": list(SEEDS),
        "train": [NUM_TRAIN, TRAIN_ROWS],
        "validation": [NUM_VALIDATION, VALIDATION_ROWS],
        "test": [NUM_TEST, TEST_ROWS],
        "minutes": float(sum(unit["seconds"] for unit in kept)) / 60,
        "choices": choices,
        **results,
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    report.curve_figure(results).savefig(out / "log_density.png", dpi=110)
    for family in results:
        figures(family, out)


if __name__ == "__main__":
    main()
