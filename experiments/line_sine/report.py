"""Tables and figures from what the units of `run.py` have kept."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tasks import MAX_SHOTS

from bayesinf.plots.meta import Shots, shots_figure

LABELS = {
    "exact": "true model",
    "niw_mixture": "mixture of two NIWs",
    "niw": "one NIW",
    "last_layer": "last-layer Bayes",
    "neural_process": "neural process",
    "maml": "MAML",
}
COLOURS = ("#222222", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00")
SHOTS = range(1, MAX_SHOTS + 1)


def read(out, family, method):
    """Returns the scores over seeds, (seeds, shots, tasks, queries), with how they came about."""
    files = sorted(out.glob(f"{family}-{method}.npz")) or sorted(
        out.glob(f"{family}-{method}-*.npz")
    )
    loaded = [dict(np.load(file)) for file in files]
    return {name: np.stack([one[name] for one in loaded]) for name in loaded[0]} if loaded else {}


def interval(per_task):
    """Returns mean and 95 % half-width over tasks, (shots, tasks), clustered by task."""
    half = 1.96 * per_task.std(axis=1, ddof=1) / np.sqrt(per_task.shape[1])
    return np.stack([per_task.mean(axis=1), half], axis=1)


def row(scores):
    """Returns a method's scores at every number of shots."""
    inside = np.abs(scores["pit"] - 0.5) < 0.45
    return {
        "log_prob": interval(scores["log_prob"].mean(axis=(0, 3))).tolist(),
        "by_seed": scores["log_prob"].mean(axis=(1, 2, 3)).tolist(),
        "rmse": np.sqrt((scores["error"] ** 2).mean(axis=(0, 2, 3))).tolist(),
        "coverage90": interval(inside.mean(axis=(0, 3))).tolist(),
        "seeds": len(scores["log_prob"]),
        "seconds": scores["seconds"].tolist(),
    }


def summary(out, family):
    """Returns every method's row, and what the mixture is above each, paired by task.

    Seeds that not all methods have are left out of a difference.
    """
    found = {method: read(out, family, method) for method in LABELS}
    found = {method: scores for method, scores in found.items() if scores}
    above = {}
    if "niw_mixture" in found:
        ours = found["niw_mixture"]["log_prob"]
        for method, scores in found.items():
            num = min(len(ours), len(scores["log_prob"]))
            seeds = num if method != "exact" else len(ours)
            gap = ours[:seeds].mean(axis=0) - scores["log_prob"][:num].mean(axis=0)
            if method != "niw_mixture":
                above[method] = interval(gap.mean(axis=2)).tolist()
    rows = {name: row(scores) for name, scores in found.items()}
    result = {"methods": rows, "above": above}
    if (out / f"{family}-nuts.npz").exists():
        nuts = np.load(out / f"{family}-nuts.npz")
        result["above_nuts"] = interval((nuts["closed"] - nuts["nuts"]).mean(axis=2)).tolist()
    return result


def show(family, result):
    """Prints the table of a family."""
    for name in ("log_prob", "rmse", "coverage90"):
        print(f"\n{family}, {name:24}" + "".join(f"{shots:>8}" for shots in SHOTS))
        for method, scores in result["methods"].items():
            values = [value[0] if name != "rmse" else value for value in scores[name]]
            print(f"{LABELS[method]:36}" + "".join(f"{value:8.3f}" for value in values))
    print("\nmixture of two NIWs minus, nats a row, paired by task, with 95 % intervals")
    for method, gaps in result["above"].items():
        print(f"{LABELS[method]:20}" + "".join(f"{mean:8.3f}+-{half:5.3f}" for mean, half in gaps))

    if "above_nuts" in result:
        gaps = "".join(f"{mean:8.3f}+-{half:5.3f}" for mean, half in result["above_nuts"])
        print(f"NUTS, same network  {gaps}  (at 1, 2, 3, 5 and 10 shots, 16 tasks)")


def curve_figure(results):
    """Returns log density and coverage over shots for every family."""
    figure = Figure(figsize=(5.2 * len(results), 6.2), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False, sharex=True, height_ratios=[2, 1])
    for (above, below), (family, result) in zip(grid.T, results.items(), strict=True):
        for (method, label), color in zip(LABELS.items(), COLOURS, strict=True):
            if method not in result["methods"]:
                continue
            scores = result["methods"][method]
            mean, half = np.array(scores["log_prob"]).T
            above.plot(SHOTS, mean, "o-", color=color, markersize=3, linewidth=1.2, label=label)
            above.fill_between(SHOTS, mean - half, mean + half, color=color, alpha=0.2, lw=0)
            below.plot(SHOTS, np.array(scores["coverage90"])[:, 0], color=color, linewidth=1.2)
        below.axhline(0.9, color="#222222", linewidth=0.8, linestyle=":")
        above.set_title(family.replace("_", "-"))
        below.set(xlabel="shots", xticks=SHOTS)
    grid[0, 0].set_ylabel("log density of a row [nats]")
    grid[1, 0].set_ylabel("inside the 90 % interval")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


def band_figure(predictors, task, truth, shots=(1, 2, 3, 5, 10)):
    """Returns predictive bands of one task after some numbers of shots."""
    grid = np.linspace(-5, 5, 81)
    rows = {}
    for name, predictor in predictors.items():
        panels = []
        for num in shots:
            support = task._replace(mask=np.arange(MAX_SHOTS) < num)
            prediction = predictor(jax.tree.map(jnp.asarray, support), jnp.asarray(grid))
            draws = sample(np.random.default_rng(0), jax.tree.map(np.asarray, prediction), 800)
            panels.append(Shots(np.asarray(task.x[:num]), np.asarray(task.y[:num]), draws))
        rows[LABELS[name]] = panels
    return shots_figure(grid, rows, truth(grid))


def sample(rng, prediction, num):
    """Returns draws of y, each input's by itself."""
    log_weights, mean, sd = prediction
    which = np.argmax(log_weights + rng.gumbel(size=(num, *log_weights.shape)), axis=-1)
    at = np.arange(len(mean))
    return mean[at, which] + sd[at, which] * rng.normal(size=which.shape)
