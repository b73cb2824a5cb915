"""The table of peers' blocks, with a package that does not exist and blocks of our own."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bayesinf import smc
from bayesinf.types import consistent, preserves

FOLDER = Path(__file__).parents[1] / "experiments" / "peers_validated"


@pytest.fixture
def peers(monkeypatch):
    """The experiment's modules, which switch double precision on."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before, loaded = jax.config.jax_enable_x64, set(sys.modules)
    import rows
    import run

    yield rows, run
    jax.config.update("jax_enable_x64", before)
    for name in set(sys.modules) - loaded:
        if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_the_table_says_what_holds_what_does_not_and_what_is_missing(peers):
    rows, run = peers

    def first(key, log_weights, num):
        return jnp.zeros(num, int)

    problems = rows.POPULATIONS[:1]
    found = [
        rows.row("ours", "1", rows.Block("systematic", preserves, smc.systematic, problems)),
        rows.row("ours", "1", rows.Block("first", preserves, first, problems)),
        *run.rows_of("no-such-package"),
    ]
    assert [row["verdict"] for row in found] == ["holds", "refuted", "skipped"]
    assert found[0]["exact_error"] < 1e-10 < found[1]["exact_error"]
    assert {frozenset(row) for row in found} == {frozenset(found[0])}
    text = run.table(found)
    assert "systematic" in text
    assert "no_such_package" in text


def test_what_is_only_consistent_is_measured(peers):
    rows, _ = peers

    def levelled(key, program):
        return smc.normalise(smc.importance(key, program, rows.NUM))

    row = rows.row("ours", "1", rows.Block("normalise", consistent, levelled, rows.PROGRAMS))
    assert row["verdict"] == "measured"
    assert row["law"] == "consistent"
    assert abs(row["evidence_bias_percent"]) > 1e-6
