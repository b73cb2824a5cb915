"""Figures hold what they were given."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from bayesinf import validation
from bayesinf.plots import chains
from bayesinf.plots import validation as plots
from bayesinf.validation.report import Disagreement

WRONG = validation.Report(
    *("mine", "invariant", "exact", "refuted", 0.1),
    evidence_bias_percent=-3.0,
    worst=(Disagreement(np.asarray(2), 0.5, 0.25), Disagreement("elsewhere", 0.0, 0.2)),
)


def test_masses_stand_beside_those_expected():
    right = WRONG._replace(verdict="holds", worst=(), exact_error=1e-17)
    figure = plots.masses_figure(WRONG, right)
    panels = figure.axes
    assert [bar.get_height() for bar in panels[0].patches] == [0.5, 0.0, 0.25, 0.2]
    assert panels[0].get_title() == "mine: refuted\nevidence -3 %"
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["at 2", "at elsewhere"]
    assert "holds" in panels[1].get_title()
    assert not panels[1].patches


def test_no_report_is_told():
    with pytest.raises(ValueError, match="reports"):
        plots.masses_figure()


def test_ranks_of_the_prior_fill_every_bar():
    ranks = validation.Ranks(np.arange(100)[:, None] % np.array([10, 5]), 9)
    even, low = plots.ranks_figure(ranks, ("even", "low"), num_bins=5).axes
    # The first patch is the band of what uniform ranks give.
    assert [bar.get_height() for bar in even.patches[1:]] == [1] * 5
    assert [bar.get_height() for bar in low.patches[1:]] == [2, 2, 1, 0, 0]


def test_names_must_match():
    ranks = validation.Ranks(np.zeros((4, 2), int), 9)
    with pytest.raises(ValueError, match="names"):
        plots.ranks_figure(ranks, ("one",))
    with pytest.raises(ValueError, match="names"):
        chains.chains_figure({"a": jnp.zeros((2, 5, 3))}, ("one",))


def test_chains_have_a_row_an_element():
    draws = {"a": np.random.default_rng(0).normal(size=(3, 40, 2)), "b": np.zeros((3, 40))}
    figure = chains.chains_figure(draws, num_bins=4)
    assert len(figure.axes) == 6
    time, ranks = figure.axes[:2]
    assert np.array_equal(time.lines[1].get_ydata(), draws["a"][1, :, 0])
    counts = sum(patch.get_data().values for patch in ranks.patches)
    assert np.array_equal(counts, [30] * 4)


def test_oracle_quantiles_by_weight():
    paths = np.array([[3.0], [1.0], [2.0]])
    even = np.ones((3, 1))
    assert [float(chains.quantiles(paths, even, p)[0]) for p in (0.0, 0.3, 0.5, 1.0)] == [
        1,
        1,
        2,
        3,
    ]
    heavy = np.array([[0.9], [0.05], [0.05]])
    assert chains.quantiles(paths, heavy, 0.5)[0] == 3


def test_bands_hold_the_paths():
    axes = Figure().subplots()
    paths = np.random.default_rng(0).normal(size=(101, 7))
    chains.draw_bands(axes, np.arange(7), paths, label="paths")
    assert np.allclose(axes.lines[0].get_ydata(), np.median(paths, axis=0))
    assert axes.get_legend_handles_labels()[1] == ["paths"]
    wide, narrow = (each.get_paths()[0].vertices for each in axes.collections)
    assert np.ptp(wide[:, 1]) > np.ptp(narrow[:, 1])
