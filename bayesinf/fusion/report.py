"""How well each method did: its scores against the true path, and the files that hold them."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bayesinf.fusion.log import Log, truth_at
from bayesinf.fusion.track import Track

FILES = ("track.csv", "summary.json", "track.png")
_COLUMNS = "index,time,method,component,weight,x,y,var_x,cov_xy,var_y,log_score"
# Below this, a component is neither scored nor written, so that the file says what was scored.
_SMALLEST_WEIGHT = 1e-6
_FIRST_SCORED = 0.25
_CONVERGED_M, _CONVERGED_FOR_S = 1.0, 30.0
_HEADINGS = {
    "rmse_m": ("RMSE m", ".3f"),
    "position_nll": ("NLL", ".3f"),
    "nees": ("NEES", ".2f"),
    "log_score_per_range": ("log score", ".3f"),
    "us_per_update": ("us/update", ".0f"),
    "converged_s": ("converged s", ".1f"),
}


def score(log: Log, track: Track, start_unknown: bool) -> dict[str, float | None]:
    """Returns the scores of a track, on the last three quarters of the log's ranges.

    Each compares what the track says after a range, missing ones included, with the interpolated
    truth at its time; ranges at which the truth is unknown do not count.

        rmse_m                root of the mean squared error of the mixture's mean, m
        position_nll          minus the mean log density of the mixture at the truth, nats
        nees                  mean squared error in units of the mixture's covariance; 2 is honest
        log_score_per_range   mean log density of each range that is there, given the past, nats
        us_per_update         as the track has it
        converged_s           with an unknown start, of the whole log: seconds from the robot's
                              first metre of travel (0 before it) to the first range from which on
                              the error is below 1 m at every range for 30 s, all within the log

    A score is None where it has no meaning: without truth, for a known start, or never converged. A
    filter that broke down has scores that are not finite.
    """
    track = pruned(track)
    mean, cov = moments(track)
    truth = _true_positions(log)
    gap = truth - mean
    scored = np.arange(len(truth)) >= int(_FIRST_SCORED * len(truth))
    true = scored & ~np.isnan(truth[:, 0])
    there = scored & ~np.isnan(log.range_m)
    mean_square = _mean(np.sum(gap**2, axis=-1)[true])
    log_density = _mean(_log_density(track, truth)[true])
    return {
        "rmse_m": None if mean_square is None else math.sqrt(mean_square),
        "position_nll": None if log_density is None else -log_density,
        "nees": _mean(_mahalanobis(gap, cov)[true]),
        "log_score_per_range": _mean(track.log_scores[there]),
        "us_per_update": float(track.us_per_update),
        "converged_s": _converged(log, np.linalg.norm(gap, axis=-1)) if start_unknown else None,
    }


def summary(log: Log, start: str, tracks: dict[str, Track]) -> dict[str, Any]:
    """Returns the scores of every method; `start` is "known" or "unknown".

    `scored_from_s` is the time of the first range that is scored, in seconds from the log's start.
    """
    if start not in ("known", "unknown"):
        raise ValueError(f"start: {start!r}; expected 'known' or 'unknown'")
    first = int(_FIRST_SCORED * len(log.range_t))
    return {
        "log": log.name,
        "start": start,
        "scored_from_s": float(log.range_t[first] - log.start_t),
        "methods": {name: score(log, track, start == "unknown") for name, track in tracks.items()},
    }


def table(summary: dict[str, Any]) -> str:
    """Returns a summary as lines of aligned text, with a dash for what does not apply."""
    keys = [key for key in _HEADINGS if key != "converged_s" or summary["start"] == "unknown"]
    rows = [["method", *(_HEADINGS[key][0] for key in keys)]]
    for name, scores in summary["methods"].items():
        cells = [
            "-" if scores[key] is None else f"{scores[key]:{_HEADINGS[key][1]}}" for key in keys
        ]
        rows.append([name.replace("_", " "), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    title = f"{summary['log']}, start {summary['start']}"
    return "\n".join([f"{title}, scored from {summary['scored_from_s']:.0f} s on", "", *lines])


def write(
    out: Path, log: Log, tracks: dict[str, Track], summary: dict[str, Any], figure: Any
) -> None:
    """Writes track.csv, summary.json and track.png into the folder `out`, all of them or none.

    track.csv has a row for every range, method and component of its position mixture: `index` of
    the range in the log, in time order, its `time` (s), `method`, `component`, `weight`, mean `x`,
    `y` (m), covariance `var_x`, `cov_xy`, `var_y` (m^2) after the range, and the `log_score` of the
    range before its update, empty where the range is missing. Components of a weight below 1e-6 are
    left out, there as in the scores, and the other weights sum to one. summary.json is `summary`
    with null for what is None or not finite. track.png is `figure`, a Matplotlib figure (see
    `bayesinf.plots.fusion.track_figure`).

    Raises OSError where the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Inside `out`, so on its file system: what follows the last write is renaming alone.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=out) as folder:
        fresh = Path(folder)
        with (fresh / "track.csv").open("w", encoding="utf-8", newline="") as stream:
            stream.write(_COLUMNS + "\n")
            for name, track in tracks.items():
                stream.writelines(_rows(log, name, pruned(track)))
        text = json.dumps(_without_nan(summary), indent=2, allow_nan=False)
        (fresh / "summary.json").write_text(text + "\n", encoding="utf-8")
        figure.savefig(fresh / "track.png", dpi=150)
        for name in FILES:
            os.replace(fresh / name, out / name)


def pruned(track: Track) -> Track:
    """Returns a track in double precision without the components of a weight below 1e-6.

    Their log weight becomes -inf, and the other weights sum to one.
    """
    log_weights = track.log_weights.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.exp(log_weights - np.logaddexp.reduce(log_weights, axis=1, keepdims=True))
        weights = np.where(weights < _SMALLEST_WEIGHT, 0.0, weights)
        log_weights = np.log(weights / weights.sum(axis=1, keepdims=True))
    means, chols, scores = (
        np.asarray(a, float) for a in (track.means, track.chols, track.log_scores)
    )
    return Track(log_weights, means, chols, scores, track.us_per_update)


def moments(track: Track) -> tuple[Float[np.ndarray, "t 2"], Float[np.ndarray, "t 2 2"]]:
    """Returns the means (m) and covariances (m^2) of a track's mixtures."""
    weights = np.exp(track.log_weights)
    mean = np.einsum("tk,tki->ti", weights, track.means)
    gaps = track.means - mean[:, None]
    covs = track.chols @ np.swapaxes(track.chols, -1, -2) + gaps[..., :, None] * gaps[..., None, :]
    return mean, np.einsum("tk,tkij->tij", weights, covs)


def errors(log: Log, track: Track) -> Float[np.ndarray, " t"]:
    """Returns the distance (m) of the mixture's mean from the truth after every range.

    It is NaN where the truth is unknown.
    """
    return np.linalg.norm(_true_positions(log) - moments(track)[0], axis=-1)


def _true_positions(log: Log) -> Float[np.ndarray, "t 2"]:
    if log.truth_t is None:
        return np.full((len(log.range_t), 2), np.nan)
    return truth_at(log, log.range_t)[0]


def _log_density(track: Track, at: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, " t"]:
    """Returns the log density of a track's mixtures at a position after each range."""
    gap, chol = at[:, None] - track.means, track.chols
    with np.errstate(divide="ignore", invalid="ignore"):
        first = gap[..., 0] / chol[..., 0, 0]
        second = (gap[..., 1] - chol[..., 1, 0] * first) / chol[..., 1, 1]
        log_det = np.log(chol[..., 0, 0]) + np.log(chol[..., 1, 1])
        terms = track.log_weights - np.log(2 * np.pi) - log_det - (first**2 + second**2) / 2
        terms = np.where(np.isneginf(track.log_weights), -np.inf, terms)
        return np.logaddexp.reduce(terms, axis=1)


def _mahalanobis(
    gap: Float[np.ndarray, "t 2"], cov: Float[np.ndarray, "t 2 2"]
) -> Float[np.ndarray, " t"]:
    """Returns the squared length of each gap in units of its covariance."""
    (x, y), a, b, c = gap.T, cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (c * x**2 - 2 * b * x * y + a * y**2) / (a * c - b**2)


def _converged(log: Log, error: Float[np.ndarray, " t"]) -> float | None:
    known = ~np.isnan(_true_positions(log)[:, 0])
    t, good = log.range_t[known], error[known] < _CONVERGED_M
    after = np.searchsorted(t, t + _CONVERGED_FOR_S, side="right")
    bad = np.concatenate([[0], np.cumsum(~good)])
    lasting = (bad[after] == bad[:-1]) & (t + _CONVERGED_FOR_S <= t[-1:])
    if not lasting.any():
        return None
    return max(0.0, float(t[np.argmax(lasting)] - _first_metre(log)))


def _first_metre(log: Log) -> float:
    """The time at which the odometry has gone one metre; infinite if it never has."""
    path = np.concatenate([[0.0], np.cumsum(np.abs(log.odom_dist))])
    edges = np.concatenate([[log.start_t], log.odom_t])
    i = int(np.searchsorted(path, 1.0))
    if i == len(path):
        return math.inf
    part = (1.0 - path[i - 1]) / (path[i] - path[i - 1])
    return float(edges[i - 1] + part * (edges[i] - edges[i - 1]))


def _rows(log: Log, name: str, track: Track):
    weights = np.exp(track.log_weights)
    covs = track.chols @ np.swapaxes(track.chols, -1, -2)
    for t, time in enumerate(log.range_t.tolist()):
        log_score = "" if np.isnan(track.log_scores[t]) else f"{track.log_scores[t]:.9g}"
        for k in np.flatnonzero(weights[t] != 0):
            (x, y), ((var_x, cov_xy), (_, var_y)) = track.means[t, k], covs[t, k]
            yield (
                f"{t},{time!r},{name},{k},{weights[t, k]:.9g},{x:.12g},{y:.12g},"
                f"{var_x:.9g},{cov_xy:.9g},{var_y:.9g},{log_score}\n"
            )


def _mean(values: Float[np.ndarray, " n"]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
