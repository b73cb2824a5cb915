"""How an experiment is written down: rows, a result file and a table, one form for all."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Shaped

OURS = "distribution_transformer"

_LONG = 0.5  # seconds after which no run is repeated


class Row(NamedTuple):
    """One figure of one method.

    Attributes:
        method: `distribution_transformer` for ours.
        setting: of the experiment.
        metric: what `value` is, lower is better.
        value: the mean over test problems.
        ci95: half-width of its 95 % interval over test problems.
        floor: what no method of this form can be below, None where that is not known.
        paper: what the paper prints for this method, None where it prints nothing.
        seconds: for a thousand problems, compiled and synchronised, None where it was not timed.
    """

    method: str
    setting: str
    metric: str
    value: float
    ci95: float
    floor: float | None = None
    paper: float | None = None
    seconds: float | None = None


def mean_and_interval(values: Shaped[np.ndarray, "n *rest"]) -> tuple[float, float]:
    """Returns the mean of independent values and the half-width of its 95 % interval.

    Further axes, as of training seeds, are averaged first: the interval is by problem.
    """
    values = np.asarray(values, float)
    per_problem = values.reshape(len(values), -1).mean(axis=1)
    half = 1.96 * per_problem.std(ddof=1) / np.sqrt(len(per_problem))
    return float(per_problem.mean()), float(half)


def timed(function: Callable[..., Any], *inputs: Any) -> tuple[Any, float]:
    """Returns what a function gives and the seconds that it takes once it is compiled, the best of
    several runs where they are short."""
    compiled = eqx.filter_jit(function).lower(*inputs).compile()
    best, begin = np.inf, time.perf_counter()
    while True:
        started = time.perf_counter()
        found = jax.block_until_ready(compiled(*inputs))
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended - begin > _LONG:
            return found, best


def write(
    out: Path, experiment: str, command: str, seed: int, rows: Sequence[Row], **more: Any
) -> dict[str, Any]:
    """Writes `result.json` to the folder and returns what it holds.

    Raises:
        ValueError: a row holds a number that is not finite.
    """
    for row in rows:
        numbers = {name: v for name, v in row._asdict().items() if isinstance(v, float)}
        for name, number in numbers.items():
            if not np.isfinite(number):
                raise ValueError(
                    f"rows: {row.method}, {row.setting}, {row.metric}: {name} {number} came, "
                    "a finite number was expected"
                )
    result = {
        "experiment": experiment,
        "command": command,
        "seed": seed,
        **more,
        "rows": [row._asdict() for row in rows],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, a line each."""

    def told(number: float | None) -> str:
        return "-" if number is None else f"{number:.3g}"

    columns = ("value", "+-", "floor", "paper", "seconds")
    lines = [f"{'setting':14}{'metric':12}{'method':34}" + "".join(f"{c:>11}" for c in columns)]
    for row in rows:
        numbers = (row.value, row.ci95, row.floor, row.paper, row.seconds)
        cells = "".join(f"{told(number):>11}" for number in numbers)
        lines.append(f"{row.setting:14}{row.metric:12}{row.method:34}{cells}")
    return "\n".join(lines)
