"""Blocks of other packages, as they ship them, under the exact check that our own blocks pass.

Each package has a file here that puts its documented calls into the form that `validation.check`
takes. A package that is not installed is skipped, and the table says so.

Run: see README.md; ./run python experiments/peers_validated/run.py [PACKAGE ...] [--out DIR]
"""

import argparse
import importlib
import json
from importlib.metadata import version
from pathlib import Path

from rows import missing, row
from tqdm import tqdm

PACKAGES = (
    "blackjax",
    "coix",
    "cuthbert",
    "smcjax",
    "smcx",
    "tfp-nightly",
    "distrax",
    "dynamax",
    "numpyro",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    parser.add_argument("--out", type=Path, default=Path("out/peers_validated"))
    arguments = parser.parse_args()
    rows = []
    for package in tqdm(arguments.packages, desc="packages"):
        rows += rows_of(package)
    print(table(rows))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(rows, indent=2) + "\n")


def rows_of(package: str) -> list[dict]:
    """Returns the rows of a package's blocks, or the one that says why there are none."""
    try:
        module = importlib.import_module(f"{package.replace('-', '_')}_blocks")
    except ImportError as error:
        return [missing(package, str(error))]
    blocks = tqdm(module.blocks(), desc=package, leave=False)
    return [row(package, version(package), block) for block in blocks]


def table(rows: list[dict]) -> str:
    """Returns the rows as text, and the reasons of what was refused or skipped."""
    head = f"{'package':<20} {'block':<34} {'law':<10} {'error':>8} {'evidence':>10}  verdict"
    return "\n".join([head, *map(_line, rows)])


def _line(row: dict) -> str:
    name = f"{row['package']} {row['version'] or ''}"
    error, bias = row["exact_error"], row["evidence_bias_percent"]
    error = f"{error:8.1e}" if error is not None else f"{'':8}"
    bias = f"{bias:+8.2g} %" if bias is not None else f"{'':10}"
    line = f"{name:<20.20} {row['block'] or '':<34} {row['law'] or '':<10} {error} {bias}"
    return f"{line}  {row['verdict']:<8} {row['seconds']:5.1f} s  {row['reason']}".rstrip()


if __name__ == "__main__":
    main()
