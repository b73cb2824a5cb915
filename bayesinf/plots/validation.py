"""What a check found: masses side by side, and ranks of simulation-based calibration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesinf.validation import Ranks, Report

_EXPECTED, _CAME, _BAND = "#BBBBBB", "#0072B2", "#DDDDDD"


def masses_figure(*reports: Report) -> Figure:
    """Returns a panel a report: the masses that were expected and those that came, at the points
    that disagree most, and the error of the evidence in percent.

    A report whose law holds has no such points, and its panel says so.

    Raises:
        ValueError: no report came.
    """
    _some("reports", reports)
    figure = Figure(figsize=(3.4 * len(reports), 3.2), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for axes, report in zip(panels, reports, strict=True):
        _masses(axes, report)
    panels[0].set_ylabel("mass")
    return figure


def ranks_figure(
    ranks: Ranks, names: Sequence[str] | None = None, num_bins: int = 20, level: float = 0.99
) -> Figure:
    """Returns a histogram a statistic, with the band in which a bar of uniform ranks lies.

    A slope is a shift of the posterior, a valley one that is too narrow, a hill one too wide.

    Args:
        ranks: from `validation.sbc`.
        names: of the statistics.
        num_bins: at most the number of ranks.
        level: the probability with which a bar lies in the band.

    Raises:
        ValueError: the names do not match the statistics.
    """
    from scipy.stats import binom  # slow to load

    num_runs, num = ranks.ranks.shape
    names = [f"statistic {index}" for index in range(num)] if names is None else list(names)
    if len(names) != num:
        raise ValueError(f"names: {len(names)} came, {num} were expected, one a statistic")
    values = ranks.num_draws + 1
    num_bins = min(num_bins, values)
    bins = np.arange(values) * num_bins // values
    # Bins of unequal size where the ranks do not divide: bars are relative to what each should hold
    share = np.bincount(bins, minlength=num_bins) / values
    low, high = (binom.ppf(p, num_runs, share) for p in ((1 - level) / 2, (1 + level) / 2))
    edges = np.arange(num_bins + 1) / num_bins
    figure = Figure(figsize=(3.4 * num, 2.8), layout="constrained")
    panels = figure.subplots(1, num, squeeze=False, sharey=True)[0]
    for axes, name, column in zip(panels, names, ranks.ranks.T, strict=True):
        counts = np.bincount(bins[column], minlength=num_bins)
        expected = num_runs * share
        axes.stairs(high / expected, edges, baseline=low / expected, fill=True, color=_BAND)
        axes.bar(edges[:-1], counts / expected, 0.9 / num_bins, align="edge", color=_CAME)
        axes.axhline(1, color="k", linewidth=0.8)
        axes.set(title=name, xlabel="rank of the truth / number of draws", xlim=(0, 1))
    panels[0].set_ylabel("share of runs, 1 is uniform")
    return figure


def _masses(axes: Axes, report: Report) -> None:
    bias = report.evidence_bias_percent
    evidence = "" if bias is None else f"\nevidence {bias:+.3g} %"
    axes.set_title(f"{report.block}: {report.verdict}{evidence}", fontsize=10)
    if not report.worst:
        reason = report.reason if report.mode == "exact" and report.reason else ""
        text = reason or f"nothing above {report.exact_error or 0:.1g}"
        axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True, fontsize=8)
        axes.set(xticks=[], yticks=[])
        return
    places = np.arange(len(report.worst))
    axes.bar(places - 0.2, [each.expected for each in report.worst], 0.36, color=_EXPECTED)
    axes.bar(places + 0.2, [each.came for each in report.worst], 0.36, color=_CAME)
    axes.set_xticks(places, [f"at {each.atom}" for each in report.worst], fontsize=8)
    axes.legend(["expected", "came"], fontsize=8)


def _some(name: str, values: Sequence) -> None:
    if len(values) == 0:
        raise ValueError(f"{name}: none came, at least one was expected")
