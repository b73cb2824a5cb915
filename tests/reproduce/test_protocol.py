"""How experiments are written down, drawn and called."""

import json

import numpy as np
import pytest

from bayesinf import cli
from bayesinf.plots.reproduce import rows_figure
from bayesinf.reproduce import OURS, Row, mean_and_interval, table, write

ROWS = [
    Row(OURS, "wide", "kl", 1e-4, 1e-5, floor=6e-5, paper=3e-4, seconds=0.01),
    Row("histogram", "wide", "kl", 1e-2, 1e-3),
    Row(OURS, "narrow", "kl", 2e-4, 1e-5),
]


def test_intervals_are_by_problem():
    """Copies of every problem, as of training seeds that agree, make the interval no narrower."""
    values = np.random.default_rng(0).normal(size=200)
    mean, half = mean_and_interval(values)
    np.testing.assert_allclose(half, 1.96 * values.std(ddof=1) / np.sqrt(200))
    same_mean, same = mean_and_interval(np.stack([values, values, values], axis=1))
    np.testing.assert_allclose((same_mean, same), (mean, half))


def test_a_result_is_json_and_a_table(tmp_path):
    found = write(tmp_path / "out", "inverse-gamma", "a command", 0, ROWS, minutes=1.5)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == found
    assert found["rows"][1]["floor"] is None
    lines = table(ROWS).splitlines()
    assert len(lines) == 4
    assert "0.0003" in lines[1]
    bad = ROWS[0]._replace(value=float("nan"))
    with pytest.raises(ValueError, match=f"rows: {OURS}, wide, kl: value nan came"):
        write(tmp_path / "bad", "inverse-gamma", "a command", 0, [bad])
    assert not (tmp_path / "bad").exists()


def test_a_figure_has_a_panel_a_setting():
    figure = rows_figure(ROWS, "kl", log=True)
    assert [axes.get_title() for axes in figure.axes] == ["wide", "narrow"]
    with pytest.raises(ValueError, match="metric: 'nll' came"):
        rows_figure(ROWS, "nll")


def test_the_command_runs_an_experiment_s_script(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cli, "FOLDER", tmp_path)
    arguments = ["reproduce", "inverse-gamma", "--quick", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) != 0
    assert "experiments are in the repository" in capfd.readouterr().err
    (tmp_path / "inverse_gamma").mkdir()
    script = tmp_path / "inverse_gamma" / "run.py"
    script.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    assert cli.main(arguments) == 3
    assert str(["--out", str(tmp_path / "out"), "--quick"]) in capfd.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "nothing"])
