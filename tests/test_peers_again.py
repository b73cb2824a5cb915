"""The second check of a refuted block agrees with the table, and with the truth where repaired."""

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "experiments" / "peers_validated"


def test_oracle_the_enumeration_agrees_with_the_table():
    table = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    (row,) = (row for row in table if row["block"] == "partial_posteriors_smc")
    tempering = runpy.run_path(str(FOLDER / "again.py"))["data_tempering"]
    bias, error = tempering(moves_under_next=True)
    assert abs(bias - row["evidence_bias_percent"]) < 1e-8
    assert abs(error - row["exact_error"]) < 1e-8
    bias, error = tempering(moves_under_next=False)
    assert abs(bias) < 1e-8
    assert error < 1e-10
