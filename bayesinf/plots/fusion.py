"""A robot's tracks on a map, and how far off they are over time."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogLocator, NullFormatter

from bayesinf.fusion.log import Log, segments, truth_at
from bayesinf.fusion.report import errors, moments, pruned
from bayesinf.fusion.track import Track

NETWORK = "distribution_transformer"
# Colours of Okabe and Ito, which the colour-blind can tell apart; dashes for print in grey.
_STYLE: dict[str, dict[str, Any]] = {
    NETWORK: {"color": "#0072B2", "linewidth": 1.4, "zorder": 5},
    "ekf": {"color": "#D55E00", "linewidth": 1.1, "linestyle": (0, (5, 1.5)), "zorder": 4},
    "gaussian_sum": {"color": "#009E73", "linewidth": 1.1, "linestyle": (0, (2, 1)), "zorder": 3},
    "particle_filter": {
        "color": "#CC79A7", "linewidth": 1.1, "linestyle": (0, (5, 1, 1, 1)), "zorder": 2
    },
    "dead_reckoning": {"color": "#999999", "linewidth": 0.9, "zorder": 1},
}  # fmt: skip
_LABELS = {
    NETWORK: "Distribution Transformer",
    "ekf": "extended Kalman filter",
    "gaussian_sum": "Gaussian-sum filter",
    "particle_filter": "particle filter",
    "dead_reckoning": "dead reckoning",
}
_ELLIPSE_EVERY_M, _ELLIPSE_SDS = 50.0, 3.0
_TRUTH, _ELLIPSE, _BAND = "truth", f"its covariance, {_ELLIPSE_SDS:.0f} sd", "its claimed sd"
# Between ranges that lie apart by both, nothing is known of a track, and its line is broken.
_GAP_S, _GAP_MEDIANS = 10.0, 20.0


def track_figure(log: Log, tracks: dict[str, Track], summary: dict[str, Any]) -> Figure:
    """Returns a figure with the tracks on a map and, beside it, the error over time.

    The map shows the true path, where it is known, every method's track, the beacons, and the
    network's covariance about every 50 m of path. The error is a running root mean square on a log
    axis, with the standard deviation that the network itself claims as a band; without truth it is
    the claim of every method.
    """
    tracks = {name: pruned(track) for name, track in tracks.items()}
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    place, time = figure.subplots(1, 2, width_ratios=[1, 1.15])
    _map(place, log, tracks)
    _errors(time, log, tracks, summary)
    figure.suptitle(f"{summary['log']}: start {summary['start']}", fontsize=12)
    handles = {}
    for axes in (place, time):
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    first = [label for label in (_TRUTH, _LABELS[NETWORK], _ELLIPSE, _BAND) if label in handles]
    labels = first + [label for label in handles if label not in first]
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside lower center", ncols=5,
        fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def _map(axes: Axes, log: Log, tracks: dict[str, Track]) -> None:
    frame = [log.beacon_xy]
    if log.truth_xy is not None:
        axes.plot(*log.truth_xy.T, color="black", linewidth=3, alpha=0.25, label=_TRUTH, zorder=0)
        frame.append(log.truth_xy)
    for name, track in tracks.items():
        mean, cov = moments(track)
        line = axes.plot(*_broken(log, mean).T, label=_label(name), **_style(name))[0]
        line.set_linewidth(0.75 * line.get_linewidth())
        if name == NETWORK:
            # A start from anywhere lies far from the path, and would shrink the map.
            frame.append(mean[len(mean) // 4 :])
            _ellipses(axes, log, mean, cov)
    for beacon, (x, y) in zip(log.beacon_id, log.beacon_xy, strict=True):
        axes.annotate(str(beacon), (x, y), (6, 5), textcoords="offset points", zorder=7)
    axes.plot(
        *log.beacon_xy.T, "^", color="black", markersize=9, markerfacecolor="#F0E442",
        label="beacon", zorder=7,
    )  # fmt: skip
    axes.set_aspect("equal", adjustable="box")
    points = np.concatenate(frame)
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    margin = 0.05 * max(*(high - low), 1.0)
    axes.set(
        xlim=(low[0] - margin, high[0] + margin),
        ylim=(low[1] - margin, high[1] + margin),
        xlabel="x (m)",
        ylabel="y (m)",
    )
    _plain(axes)


def _ellipses(
    axes: Axes, log: Log, mean: Float[np.ndarray, "t 2"], cov: Float[np.ndarray, "t 2 2"]
) -> None:
    path = np.cumsum(segments(log).path)
    every = min(_ELLIPSE_EVERY_M, path[-1] / 5)
    at = np.unique(np.searchsorted(path, np.arange(every, path[-1], every))) if every else []
    at = [i for i in at if np.isfinite(mean[i]).all() and np.isfinite(cov[i]).all()]
    if not at:
        return
    variances, directions = np.linalg.eigh(cov[at])
    small, large = 2 * _ELLIPSE_SDS * np.sqrt(np.maximum(variances, 0)).T
    angles = np.degrees(np.arctan2(directions[:, 1, 1], directions[:, 0, 1]))
    color = _STYLE[NETWORK]["color"]
    for i, place in enumerate(mean[at]):
        axes.add_patch(
            Ellipse(
                place, large[i], small[i], angle=angles[i], facecolor=to_rgba(color, 0.12),
                edgecolor=color, linewidth=1.2, zorder=6,
                label=None if i else _ELLIPSE,
            )
        )  # fmt: skip


def _errors(axes: Axes, log: Log, tracks: dict[str, Track], summary: dict[str, Any]) -> None:
    t = log.range_t - log.start_t
    window = max(float(f"{(t[-1] - t[0]) / 100:.1g}"), 1e-9)
    known, lows = False, []
    if log.truth_t is not None:
        known = bool(np.isfinite(truth_at(log, log.range_t)[1]).any())
    for name, track in tracks.items():
        claim = np.sqrt(np.trace(moments(track)[1], axis1=1, axis2=2))
        values = errors(log, track) if known else claim
        values = _running(t, values, window)
        axes.plot(*_broken(log, np.stack([t, values], axis=-1)).T, **_style(name))
        # Dead reckoning from a known start is exact at first.
        if name != "dead_reckoning" and np.any(values > 0):
            lows.append(0.5 * np.quantile(values[values > 0], 0.005))
    if lows:
        axes.set_ylim(bottom=min(lows))
    else:  # no error at all, of which a log axis would complain
        axes.set_ylim(0.01, 10)
    axes.set_yscale("log")
    if known and NETWORK in tracks:
        claim = np.sqrt(np.trace(moments(tracks[NETWORK])[1], axis1=1, axis2=2))
        low, high = axes.get_ylim()
        t_claim, claim = _broken(log, np.stack([t, _running(t, claim, window)], axis=-1)).T
        axes.fill_between(
            t_claim, low, claim, color=_STYLE[NETWORK]["color"], alpha=0.15,
            linewidth=0, zorder=0, label=_BAND,
        )  # fmt: skip
        axes.set_ylim(low, 1.5 * np.max(claim, where=np.isfinite(claim), initial=high))
    first = summary["scored_from_s"]
    axes.axvline(first, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        "scored from here", (first, 1), (4, -12), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=9,
    )  # fmt: skip
    what = "error" if known else "claimed standard deviation"
    axes.set(
        xlabel="time since the start (s)",
        ylabel=f"{what} of the position (m), RMS over {window:g} s",
        xlim=(0, max(t[-1], 1e-9)),
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    _plain(axes)


def _running(
    t: Float[np.ndarray, " t"], values: Float[np.ndarray, " t"], window: float
) -> Float[np.ndarray, " t"]:
    """Returns the root mean square of the values that are there within half a window."""
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0) ** 2)])
    counts = np.concatenate([[0], np.cumsum(there)])
    low = np.searchsorted(t, t - window / 2)
    high = np.searchsorted(t, t + window / 2, side="right")
    count = counts[high] - counts[low]
    mean = np.divide(
        np.maximum(sums[high] - sums[low], 0), count, out=np.full(len(t), np.nan), where=count > 0
    )
    return np.sqrt(np.where(there, mean, np.nan))


def _broken(log: Log, values: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, "s 2"]:
    """Returns a line through the values with a break wherever no range came for long."""
    apart = np.diff(log.range_t)
    gap = max(_GAP_S, _GAP_MEDIANS * np.median(apart)) if len(apart) else _GAP_S
    return np.insert(values, np.flatnonzero(apart > gap) + 1, np.nan, axis=0)


def _style(name: str) -> dict[str, Any]:
    return _STYLE.get(name, {})


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))


def _plain(axes: Axes) -> None:
    axes.grid(color="black", alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
