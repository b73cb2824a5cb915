"""Schools, sleepers and pupils: what is learned from many small regressions, and what it predicts.

For each data set: -2 log L by EM on all groups; how well methods predict groups that were held out
(a third, drawn once with seed 0) after K of their rows; how far the bound of variational inference
lies below the evidence; and for the largest the learning curve of its stream.

Run: ./run --group experiments python experiments/multilevel/run.py [--out DIR]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from data import SOURCES, hold_out, load
from learners import (
    EXACT,
    batch,
    learner,
    maximum_likelihood,
    method,
    standardised,
    streamed,
    units,
)
from scores import interval, no_pooling, pooled, score, split, within_noise
from tqdm import tqdm

from bayesinf import meta_niw
from bayesinf.meta_niw import task_prior
from bayesinf.plots.meta import Curve, covariance_figure, stream_figure

SHOTS, STREAM, STREAM_SHOTS = (2, 5, 10), "Chem97", 5


def methods(learned):
    """Returns every method by its name, learned from groups; `stream` is what it went through."""
    scale, states, three = streamed(learned)
    em_scale, em_state, fitted, _ = maximum_likelihood(learned)
    plug_in = task_prior.point(fitted.loc, fitted.cov)
    found = {
        "pooled": pooled(learned),
        "no pooling": no_pooling(learned, within_noise(learned)),
        "EM plug-in": method(em_state, plug_in, em_scale),
        "NIW, one pass": method(states[-1], scale=scale),
        "NIW, three passes": method(three, scale=scale),
    }
    return found, (scale, states)


def predictions(held, found):
    """Returns the scores of every method by the number of shots, and differences to EM, paired by
    group."""
    rows = []
    for num_shots in SHOTS:
        if not any(len(group.y) >= num_shots + 5 for group in held):
            continue
        episodes = split(held, num_shots)
        scores = {name: score(each, episodes) for name, each in found.items()}
        for name, values in scores.items():
            gap = values["nll"] - scores["EM plug-in"]["nll"]
            rows.append(
                {"shots": num_shots, "method": name, "groups": len(gap)}
                | {key: interval(value) for key, value in values.items()}
                | {"nll_minus_em": interval(gap)}
            )
    return rows


def evidence(key, groups):
    """Returns the log evidence of all groups, the bound below it and their gap, in nats: with the
    noise known, in units of one standard deviation."""
    groups = standardised(groups, units(groups))
    state, episodes = learner(within_noise(groups)), batch(groups)
    best, _ = meta_niw.cavi(state, episodes, 200, EXACT)
    bound = float(meta_niw.elbo(best, episodes, EXACT))
    draws = meta_niw.gibbs(
        key, state, episodes, num_warmup=50, num_samples=200, local=EXACT, progress=False
    )
    exact = meta_niw.chib(state, episodes, draws, EXACT)
    return {
        "log_evidence": exact.log_evidence,
        "standard_error": exact.standard_error,
        "elbo": bound,
        "gap": exact.log_evidence - bound,
    }


def learning_curve(held, stream):
    """Returns held-out scores after ever more groups, each seen once."""
    scale, states = stream
    episodes = split(held, STREAM_SHOTS)
    at = np.unique(np.geomspace(1, len(states) - 1, 12).astype(int))
    rows = [interval(score(method(states[i], scale=scale), episodes)["nll"]) for i in tqdm(at)]
    return [{"groups": int(states[i].count), **row} for i, row in zip(at, rows, strict=True)]


def study(name, key):
    """Returns the results of one data set, and the covariance of its tasks by EM."""
    begin, groups = time.perf_counter(), load(name)
    scale, _, fitted, minus_two = maximum_likelihood(groups)
    learned, held = hold_out(groups)
    found, stream = methods(learned)
    result = {
        "groups": len(groups),
        "rows": sum(len(group.y) for group in groups),
        "minus_two_log_likelihood": minus_two,
        "predictions": predictions(held, found),
        "evidence": evidence(key, groups),
    }
    if name == STREAM:
        result["learning_curve"] = learning_curve(held, stream)
    result["seconds"] = time.perf_counter() - begin
    return result, scale.y_sd**2 * np.asarray(fitted.cov.dense())


def table(name, result):
    lines = [
        f"\n{name}: {result['groups']} groups, {result['rows']} rows, "
        f"-2 log L {result['minus_two_log_likelihood']:,.2f}",
        f"  log evidence {result['evidence']['log_evidence']:.3f} "
        f"+- {result['evidence']['standard_error']:.3f}, bound {result['evidence']['gap']:.3f} "
        "nats below",
        f"  {'K':>2} {'method':18}{'NLL':>8}{'MSE':>10}{'cover 90':>10}{'NLL - EM':>10} +-",
    ]
    for row in result["predictions"]:
        gap = row["nll_minus_em"]
        lines.append(
            f"  {row['shots']:2} {row['method']:18}{row['nll']['mean']:8.3f}"
            f"{row['mse']['mean']:10.4g}{row['cover90']['mean']:10.3f}"
            f"{gap['mean']:10.4f} {gap['ci95']:.4f}"
        )
    return "\n".join(lines)


def figures(results, covs, out):
    rows = results[STREAM]["learning_curve"]
    num, mean = (np.array([row[key] for row in rows]) for key in ("groups", "mean"))
    levels = {
        row["method"]: row["nll"]["mean"]
        for row in results[STREAM]["predictions"]
        if row["shots"] == STREAM_SHOTS and row["method"] in ("pooled", "EM plug-in")
    }
    label = f"NLL after {STREAM_SHOTS} rows of a new school"
    stream_figure({"NIW, one pass": Curve(num, mean)}, levels, label).savefig(out / "stream.png")
    names = ("level", "slope per sd")
    for name, cov in covs.items():
        covariance_figure(cov, names, name).savefig(out / f"covariance_{name}.png")


def main():
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/multilevel"))
    parser.add_argument("--only", choices=SOURCES, nargs="*", default=list(SOURCES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, covs = {}, {}
    for key, name in zip(jax.random.split(jax.random.key(0), 4), SOURCES, strict=True):
        if name in arguments.only:
            results[name], covs[name] = study(name, key)
            print(table(name, results[name]), flush=True)
            (arguments.out / "result.json").write_text(json.dumps(results, indent=1) + "\n")
    if STREAM in results:
        figures(results, covs, arguments.out)


if __name__ == "__main__":
    main()
