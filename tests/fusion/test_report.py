"""The report: scores against values found by hand or by SciPy, and what the files say."""

import csv
import json
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesinf.fusion import report
from bayesinf.fusion.log import Log, truth_at
from bayesinf.fusion.track import Track
from bayesinf.plots.fusion import track_figure

NETWORK = "distribution_transformer"
TRUTH_SCORES = ("rmse_m", "position_nll", "nees")
KEYS = [*TRUTH_SCORES, "log_score_per_range", "us_per_update", "converged_s"]


def straight(range_t, dist=None, truth=True) -> Log:
    """A robot that drives along the x axis, a metre a second by its truth."""
    range_t = np.asarray(range_t, float)
    steps = math.ceil(range_t[-1]) + 1
    return Log(
        name="straight",
        odom_t=np.arange(1.0, steps + 1),
        odom_dist=np.ones(steps) if dist is None else np.asarray(dist, float),
        odom_dheading=np.zeros(steps),
        range_t=range_t,
        range_beacon=np.zeros(len(range_t), int),
        range_m=np.ones(len(range_t)),
        beacon_id=np.array([4, 7]),
        beacon_xy=np.array([[0.0, 9.0], [12.0, -3.0]]),
        start_t=0.0,
        truth_t=np.array([0.0, 1000.0]) if truth else None,
        truth_xy=np.array([[0.0, 0.0], [1000.0, 0.0]]) if truth else None,
        truth_heading=np.zeros(2) if truth else None,
        warnings=(),
    )


def off_by(log: Log, gap, chol=None, log_scores=None) -> Track:
    """One Gaussian that is off the truth by `gap` after every range."""
    t = len(log.range_t)
    at = np.stack([log.range_t, np.zeros(t)], axis=-1)
    chol = np.eye(2) if chol is None else chol
    return Track(
        np.zeros((t, 1)),
        (at + gap)[:, None],
        np.broadcast_to(chol, (t, 1, 2, 2)),
        np.full(t, -1.0) if log_scores is None else np.asarray(log_scores, float),
        12.5,
    )


def random_track(log: Log, k: int, seed: int = 0) -> Track:
    """A mixture about the truth, in single precision, with weights from 1 to below 1e-6."""
    rng, t = np.random.default_rng(seed), len(log.range_t)
    log_weights = rng.normal(scale=6, size=(t, k))
    log_weights[:, 1:][:, -1:] = -np.inf  # the last, unless it is the only one
    log_weights = log_weights - logsumexp(log_weights, axis=1, keepdims=True)
    means = np.stack([log.range_t, np.zeros(t)], axis=-1)[:, None] + rng.normal(size=(t, k, 2))
    chols = np.tril(rng.normal(scale=0.3, size=(t, k, 2, 2)))
    chols[..., [0, 1], [0, 1]] = np.exp(rng.normal(scale=0.3, size=(t, k, 2)))
    scores = np.where(np.isnan(log.range_m), np.nan, rng.normal(size=t))
    leaves = (leaf.astype(np.float32) for leaf in (log_weights, means, chols, scores))
    return Track(*leaves, 3.0)


# Scores


def test_oracle_scores_of_one_gaussian():
    log = straight([1, 2, 3, 4, 5])
    # The first range of five does not count: what is wrong with it must not show.
    gap = np.array([[99, 99], [3, 4], [0, 1], [0, 0], [2, 0]], float)
    track = off_by(log, gap, np.diag([2.0, 1.0]), [-99, -1, -2, -3, -4])
    scores = report.score(log, track, start_unknown=False)
    assert list(scores) == KEYS
    assert scores["rmse_m"] == pytest.approx(math.sqrt((25 + 1 + 0 + 4) / 4))
    nees = (9 / 4 + 16 + 1 + 0 + 1) / 4
    assert scores["nees"] == pytest.approx(nees)
    assert scores["position_nll"] == pytest.approx(math.log(2 * math.pi) + math.log(2) + nees / 2)
    assert scores["log_score_per_range"] == pytest.approx(-2.5)
    assert scores["us_per_update"] == 12.5
    assert scores["converged_s"] is None


def test_oracle_scores_of_a_mixture():
    log = straight(np.linspace(0.5, 20, 40))
    track = random_track(log, 5)
    scores = report.score(log, track, start_unknown=False)
    nll, nees = [], []
    for t in range(10, 40):
        at = np.array([log.range_t[t], 0.0])
        weights = np.exp(track.log_weights[t].astype(float))
        weights = np.where(weights < 1e-6, 0, weights) / weights[weights >= 1e-6].sum()
        means, chols = track.means[t].astype(float), track.chols[t].astype(float)
        covs = chols @ chols.swapaxes(1, 2)
        laws = [multivariate_normal(m, c) for m, c in zip(means, covs, strict=True)]
        nll.append(-logsumexp([law.logpdf(at) for law in laws], b=weights))
        mean = weights @ means
        cov = np.einsum("k,kij->ij", weights, covs) + np.cov(means.T, aweights=weights, bias=True)
        nees.append((at - mean) @ np.linalg.solve(cov, at - mean))
    assert scores["position_nll"] == pytest.approx(np.mean(nll), abs=1e-9)
    assert scores["nees"] == pytest.approx(np.mean(nees), abs=1e-9)
    # Controls: neither the Gaussian's density nor the components' own spread is what is scored.
    wrong = report.score(log, track._replace(means=track.means[:, :1]), start_unknown=False)
    assert abs(wrong["position_nll"] - np.mean(nll)) > 0.01
    assert abs(wrong["nees"] - np.mean(nees)) > 0.01


def test_missing_ranges_count_for_the_position_but_not_for_the_log_score():
    log = straight([1, 2, 3, 4])
    log = log._replace(range_m=np.array([1, 1, np.nan, 1]))
    gap = np.array([[0, 0], [0, 1], [0, 2], [0, 1]], float)
    scores = report.score(log, off_by(log, gap, None, [-9, -1, np.nan, -3]), start_unknown=False)
    assert scores["log_score_per_range"] == pytest.approx(-2)
    assert scores["rmse_m"] == pytest.approx(math.sqrt(2))
    alone = log._replace(range_m=np.array([1, np.nan, np.nan, np.nan]))
    assert report.score(alone, off_by(log, gap), False)["log_score_per_range"] is None


def test_ranges_without_truth_are_left_out_of_the_scores_against_it():
    log = straight([1, 2, 3, 4])
    log = log._replace(truth_t=np.array([0.0, 3.5]), truth_xy=np.array([[0, 0], [3.5, 0.0]]))
    gap = np.array([[0, 0], [0, 3], [0, 4], [0, 99]], float)
    scores = report.score(log, off_by(log, gap, None, [-9, -1, -2, -3]), start_unknown=False)
    assert scores["rmse_m"] == pytest.approx(math.sqrt(12.5))
    assert scores["nees"] == pytest.approx(12.5)
    assert scores["log_score_per_range"] == pytest.approx(-2)


@pytest.mark.parametrize("start_unknown", [False, True])
def test_without_truth_its_scores_are_none(start_unknown):
    log = straight([1, 2, 3, 4], truth=False)
    scores = report.score(log, off_by(log, np.zeros(2)), start_unknown)
    assert [scores[key] for key in (*TRUTH_SCORES, "converged_s")] == [None] * 4
    assert (scores["log_score_per_range"], scores["us_per_update"]) == (-1, 12.5)


def test_a_filter_that_broke_down_has_no_finite_score():
    log = straight([1, 2, 3, 4])
    broken = off_by(log, np.array([[0, 0], [0, 0], [np.nan, 0], [0, 0]]))
    assert all(math.isnan(report.score(log, broken, False)[key]) for key in TRUTH_SCORES)
    weightless = broken._replace(log_weights=np.full((4, 1), -np.inf))
    assert all(math.isnan(report.score(log, weightless, False)[key]) for key in TRUTH_SCORES)
    certain = off_by(log, np.ones(2), np.zeros((2, 2)))
    assert math.isfinite(report.score(log, certain, False)["rmse_m"])
    assert not math.isfinite(report.score(log, certain, False)["nees"])


@pytest.mark.parametrize(
    ("good", "converged"),
    [
        (lambda t: t >= 40, 28.5),
        # A relapse within 30 s takes it back, one at 30 s as well, a later one does not.
        (lambda t: (t >= 40) & (t != 65), 66 - 11.5),
        (lambda t: (t >= 40) & (t != 70), 71 - 11.5),
        (lambda t: (t >= 40) & (t != 71), 28.5),
        # Before the first metre of travel, and never, and too late to tell.
        (lambda t: t >= 5, 0.0),
        (lambda t: t < 0, None),
        (lambda t: t >= 110, 98.5),
        (lambda t: t >= 111, None),
    ],
)
def test_converged(good, converged):
    t = np.arange(1.0, 141.0)
    # Still for ten seconds; then half a metre, and the second half of the first in half a second.
    dist = np.concatenate([np.zeros(10), [-0.5, 1.0], np.ones(129)])
    log = straight(t, dist)
    gap = np.stack([np.zeros(140), np.where(good(t), -0.999, 1.0)], axis=-1)
    assert report.score(log, off_by(log, gap), True)["converged_s"] == converged
    assert report.score(log, off_by(log, gap), False)["converged_s"] is None


def test_a_robot_that_never_moves_converges_at_once():
    log = straight(np.arange(1.0, 61.0), np.zeros(61))
    assert report.score(log, off_by(log, np.zeros(2)), True)["converged_s"] == 0


# Summary, table, files


def a_log_with_everything() -> Log:
    """Equal times, missing ranges, truth that ends early, and an epoch far from zero."""
    rng = np.random.default_rng(0)
    log = straight(np.sort(np.repeat(rng.uniform(1, 60, 40), 2)))
    missing = np.where(rng.random(80) < 0.2, np.nan, 1.0)
    truth_t, truth_xy = np.array([0.0, 55.0]), np.array([[0.0, 0.0], [55.0, 0.0]])
    return log._replace(range_m=missing, truth_t=truth_t, truth_xy=truth_xy)


def shifted(log: Log, by: float) -> Log:
    times = {name: getattr(log, name) + by for name in ("odom_t", "range_t", "start_t", "truth_t")}
    return log._replace(**times)


def written(folder: Path, log: Log, tracks, start="known"):
    summary = report.summary(log, start, tracks)
    report.write(folder, log, tracks, summary, track_figure(log, tracks, summary))
    return json.loads((folder / "summary.json").read_text())


def test_summary_has_the_scores_of_every_method():
    log = shifted(straight(np.arange(1.0, 9.0)), 1e9)
    tracks = {"ekf": off_by(straight(np.arange(1.0, 9.0)), np.ones(2))}
    summary = report.summary(log, "known", tracks)
    assert list(summary) == ["log", "start", "scored_from_s", "methods"]
    assert (summary["log"], summary["start"], summary["scored_from_s"]) == ("straight", "known", 3)
    assert summary["methods"] == {"ekf": report.score(log, tracks["ekf"], False)}
    with pytest.raises(ValueError, match="start: 'here'; expected 'known' or 'unknown'"):
        report.summary(log, "here", tracks)


def test_table_is_aligned_and_has_dashes():
    log = straight(np.arange(1.0, 9.0))
    tracks = {NETWORK: off_by(log, np.array([3.0, 4.0])), "ekf": off_by(log, np.zeros(2))}
    lines = report.table(report.summary(log, "unknown", tracks)).splitlines()
    assert lines[0] == "straight, start unknown, scored from 3 s on"
    assert lines[2].split()[0] == "method"
    assert lines[2].endswith("converged s")
    assert len({len(line) for line in lines[2:]}) == 1
    assert " ".join(lines[3].split()) == ("distribution transformer 5.000 14.338 25.00 -1.000 12 -")
    known = report.table(report.summary(log, "known", tracks))
    assert "converged" not in known
    blind = straight(np.arange(1.0, 9.0), truth=False)
    assert report.table(report.summary(blind, "known", tracks)).splitlines()[3].count(" - ") == 3


@pytest.mark.parametrize("epoch", [0.0, 1.7e9])
def test_every_score_follows_from_the_track_file(tmp_path, epoch):
    log = a_log_with_everything()
    tracks = {NETWORK: random_track(log, 8), "ekf": random_track(log, 2, 1)}
    log = shifted(log, epoch)
    summary = written(tmp_path, log, tracks)
    with (tmp_path / "track.csv").open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert ",".join(reader.fieldnames or []) == (
        "index,time,method,component,weight,x,y,var_x,cov_xy,var_y,log_score"
    )
    for name, scores in summary["methods"].items():
        ranges = defaultdict(list)
        for row in rows:
            if row["method"] == name:
                ranges[int(row["index"])].append(row)
        assert sorted(ranges) == list(range(80))
        square, nll, nees, log_scores = [], [], [], []
        for i in range(20, 80):
            column = {
                key: np.array([float(row[key]) for row in ranges[i]])
                for key in ("time", "weight", "x", "y", "var_x", "cov_xy", "var_y")
            }
            assert set(column["time"]) == {log.range_t[i]}
            assert column["weight"].min() >= 1e-6
            assert column["weight"].sum() == pytest.approx(1, abs=1e-8)
            (said,) = {row["log_score"] for row in ranges[i]}
            assert (said == "") == np.isnan(log.range_m[i])
            if said:
                log_scores.append(float(said))
            at = truth_at(log, column["time"][:1])[0][0]
            if np.isnan(at).any():
                continue
            means = np.stack([column["x"], column["y"]], axis=-1)
            parts = (column["var_x"], column["cov_xy"], column["cov_xy"], column["var_y"])
            covs = np.stack(parts, axis=-1).reshape(-1, 2, 2)
            laws = [multivariate_normal(m, c) for m, c in zip(means, covs, strict=True)]
            nll.append(-logsumexp([law.logpdf(at) for law in laws], b=column["weight"]))
            mean = column["weight"] @ means
            gaps = means - mean
            cov = np.einsum("k,kij->ij", column["weight"], covs + gaps[:, :, None] * gaps[:, None])
            square.append(np.sum((at - mean) ** 2))
            nees.append((at - mean) @ np.linalg.solve(cov, at - mean))
        assert 0 < len(square) < 60
        # The file's nine digits.
        assert scores["rmse_m"] == pytest.approx(np.sqrt(np.mean(square)), rel=1e-6)
        assert scores["position_nll"] == pytest.approx(np.mean(nll), abs=1e-6)
        assert scores["nees"] == pytest.approx(np.mean(nees), rel=1e-6)
        assert scores["log_score_per_range"] == pytest.approx(np.mean(log_scores), abs=1e-6)


def test_json_has_null_for_what_is_missing_or_not_finite(tmp_path):
    log = straight([1, 2, 3, 4])
    broken = off_by(log, np.array([np.nan, 0.0]), None, [-1, -1, -np.inf, -1])
    scores = written(tmp_path, log, {NETWORK: broken, "ekf": broken})["methods"]["ekf"]
    expected = dict.fromkeys(KEYS) | {"us_per_update": 12.5}
    assert scores == expected
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    assert "Infinity" not in (tmp_path / "summary.json").read_text()


def test_files_are_written_all_or_none(tmp_path):
    log = straight(np.arange(1.0, 9.0))
    tracks = {NETWORK: off_by(log, np.zeros(2))}
    summary = report.summary(log, "known", tracks)
    figure = track_figure(log, tracks, summary)
    out = tmp_path / "a" / "b"
    report.write(out, log, tracks, summary, figure)
    assert sorted(os.listdir(out)) == sorted(report.FILES)
    assert (out / "track.png").read_bytes().startswith(b"\x89PNG")
    before = {name: (out / name).read_bytes() for name in report.FILES}

    class FullDisk:
        def savefig(self, file, **_):
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    for folder in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="No space"):
            report.write(folder, log, {}, {"log": "other"}, FullDisk())
    assert {name: (out / name).read_bytes() for name in os.listdir(out)} == before
    assert os.listdir(tmp_path / "new") == []


# The figure


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("truth", [True, False])
def test_figure_shows_the_map_and_the_error(truth):
    log = straight(np.arange(1.0, 400.0), truth=truth)
    tracks = {NETWORK: random_track(log, 4), "ekf": random_track(log, 1, 1)}
    tracks["ekf"] = off_by(log, np.array([0.3, 0.4]))
    figure = track_figure(log, tracks, report.summary(log, "unknown", tracks))
    place, time = figure.axes
    assert (place.get_xlabel(), place.get_ylabel()) == ("x (m)", "y (m)")
    assert place.get_aspect() == 1
    assert time.get_yscale() == "log"
    assert time.get_xlabel() == "time since the start (s)"
    assert time.get_ylabel().startswith("error" if truth else "claimed standard deviation")
    assert ("truth" in labels(figure)) == truth
    assert ("its claimed sd" in labels(figure)) == truth
    assert {"Distribution Transformer", "extended Kalman filter", "beacon"} < set(labels(figure))
    assert len(place.patches) == 7  # every 50 m of 399
    assert {text.get_text() for text in place.texts} == {"4", "7"}
    if truth:
        np.testing.assert_allclose(time.lines[1].get_ydata(), 0.5, rtol=1e-9)


def test_figure_of_short_still_broken_and_gappy_logs_can_be_drawn(tmp_path):
    one = straight([1.0])
    still = straight([1.0, 2.0, 3.0], np.zeros(4))
    gappy = straight([*np.arange(1.0, 60.0), *np.arange(200.0, 260.0)])
    for log in (one, still, gappy):
        for gap in (0.0, 1.0, np.nan):
            written(tmp_path, log, {NETWORK: off_by(log, np.full(2, gap))}, "unknown")
            assert (tmp_path / "track.png").stat().st_size > 10_000
    tracks = {NETWORK: off_by(gappy, np.ones(2))}
    figure = track_figure(gappy, tracks, report.summary(gappy, "known", tracks))
    assert np.isnan(figure.axes[1].lines[0].get_ydata()).sum() == 1  # the line is broken once
