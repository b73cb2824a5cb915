"""Figures of meta-learning hold what they were given."""

import numpy as np
import pytest

from bayesinf.plots import meta


def test_a_panel_a_number_of_shots():
    x, rng = np.linspace(-1, 1, 9), np.random.default_rng(0)
    draws = rng.normal(size=(3, 201, 9))
    support = rng.normal(size=(2, 3))
    panels = [meta.Shots(*support[:, :k], each) for k, each in zip((0, 1, 3), draws, strict=True)]
    figure = meta.shots_figure(x, {"ours": panels, "theirs": panels}, truth=x**2)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["0 shots", "1 shot", "3 shots"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["ours", "theirs"]
    median, truth, shots = figure.axes[2].lines
    assert np.allclose(median.get_ydata(), np.median(draws[2], axis=0))
    assert np.array_equal(truth.get_ydata(), x**2)
    assert np.array_equal(shots.get_xydata(), support.T)


def test_rows_of_unequal_length_are_told():
    panel = meta.Shots(np.zeros(0), np.zeros(0), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="rows"):
        meta.shots_figure(np.arange(3), {"a": [panel], "b": [panel, panel]})
    with pytest.raises(ValueError, match="rows"):
        meta.shots_figure(np.arange(3), {})


def test_oracle_reliability_by_hand():
    # Four predictions, sure to .5, .6, .6 and 1, of which the second and the last are right.
    table = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    labels = np.array([1, 1, 1, 2])
    confidence, accuracy, share = meta.reliability(table, labels, 5)
    assert np.allclose(confidence, [0, 0, 0.5, 0.6, 1])
    assert np.allclose(accuracy, [0, 0, 0, 0.5, 1])
    assert np.allclose(share, [0, 0, 0.25, 0.5, 0.25])
    figure = meta.reliability_figure({"mine": table}, labels, 5)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["mine: error 0.175"]
    line = figure.axes[0].lines[1]
    assert np.allclose(line.get_xydata(), [[0.5, 0], [0.6, 0.5], [1, 1]])


def test_labels_must_match():
    with pytest.raises(ValueError, match="probabilities: mine"):
        meta.reliability_figure({"mine": np.ones((3, 2)) / 2}, np.zeros(4, int))
    with pytest.raises(ValueError, match="none came"):
        meta.reliability_figure({}, np.zeros(4, int))


def test_coverage_counts_central_intervals():
    even = (np.arange(1000) + 0.5) / 1000  # what a calibrated predictive gives
    narrow = np.r_[np.zeros(500), np.ones(500)]  # all outcomes are in the tails
    axes = meta.coverage_figure({"even": even, "narrow": narrow}, levels=(0.5, 0.9)).axes[0]
    assert np.allclose(axes.lines[1].get_ydata(), [0.5, 0.9])
    assert np.allclose(axes.lines[2].get_ydata(), [0, 0])


def test_covariance_as_correlations_and_spreads():
    cov = np.array([[4.0, 1.0], [1.0, 1.0]])
    figure = meta.covariance_figure(cov, ("intercept", "slope"), title="schools")
    left, right = figure.axes[:2]
    assert np.allclose(left.images[0].get_array(), [[1, 0.5], [0.5, 1]])
    assert [bar.get_width() for bar in right.patches] == [2, 1]
    assert [label.get_text() for label in right.get_yticklabels()] == ["intercept", "slope"]
    with pytest.raises(ValueError, match="names"):
        meta.covariance_figure(cov, ("intercept",))
    with pytest.raises(ValueError, match="cov"):
        meta.covariance_figure(np.diag([1.0, 0.0]))


def test_a_stream_stands_beside_levels():
    curve = meta.Curve(np.array([1, 10, 100]), np.array([3.0, 2.0, 1.5]), np.full(3, 0.1))
    axes = meta.stream_figure({"streamed": curve}, {"EM": 1.4}, label="NLL").axes[0]
    assert axes.get_legend_handles_labels()[1] == ["streamed", "EM"]
    assert np.array_equal(axes.lines[0].get_ydata(), [3, 2, 1.5])
    assert list(axes.lines[1].get_ydata()) == [1.4, 1.4]
    assert axes.get_xscale() == "log"
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(edges.max(), 3.1)
    with pytest.raises(ValueError, match="curves"):
        meta.stream_figure({})
