"""Reading a robot's log, and checking it.

This is the door where values are checked: what `read_log` returns is finite (but for missing
ranges), in time order, and consistent. Times stay float64, since seconds since 1970 do not fit
into float32.
"""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bayesinf.fusion.log import Log

SHIPPED = Path(__file__).parent / "data" / "plaza1.npz"

# The columns of each table: its arrays in an .npz, and its header in a folder of CSV files.
_ARRAYS = {
    "odometry": ("odom_t", "odom_dist", "odom_dheading"),
    "ranges": ("range_t", "range_beacon", "range_m"),
    "beacons": ("beacon_id", "beacon_xy"),
    "truth": ("truth_t", "truth_xy", "truth_heading"),
}
_COLUMNS = {
    "odometry": ("t", "dist", "dheading"),
    "ranges": ("t", "beacon", "range"),
    "beacons": ("id", "x", "y"),
    "truth": ("t", "x", "y", "heading"),
}
_LAYOUT = (
    "expected an .npz archive, or a folder with odometry.csv, ranges.csv, beacons.csv "
    "and optionally truth.csv"
)


class LogError(ValueError):
    """A log that cannot be used; one line: the file, the field, what came, what was expected."""


def read_log(path: str | Path | None = None) -> Log:
    """Returns the log at `path`, checked and in time order; None is the shipped Plaza1 log.

    `path` is an `.npz` archive with the arrays odom_t, odom_dist, odom_dheading, range_t,
    range_beacon, range_m, beacon_id, beacon_xy and optionally truth_t, truth_xy, truth_heading, or
    a folder with odometry.csv (t, dist, dheading), ranges.csv (t, beacon, range), beacons.csv
    (id, x, y) and optionally truth.csv (t, x, y, heading), each with a header row. Beacons are
    named by whole numbers. A range that is NaN, or an empty cell, is a missing reading.

    Unsorted times are sorted, and ranges outside the time of the odometry left out, each with a
    line in `warnings`. Without truth from the time of the first step, that step is taken to last as
    long as the median one. Raises `LogError`, in one line, for anything else that is wrong.
    """
    path = SHIPPED if path is None else Path(path)
    if os.path.isdir(path):  # False for a malformed path, where Path.is_dir may raise
        return _assemble(_read_folder(path), path.resolve().name)
    return _assemble(_read_npz(path), path.stem)


class _Table(NamedTuple):
    """Columns of numbers from one file, with what an error needs to point into it."""

    file: Path
    names: Sequence[str]
    values: Float[np.ndarray, "n c"]
    row_name: str
    rows: Sequence[int]

    def require(self, column: int, good: Bool[np.ndarray, " n"], expected: str) -> None:
        if not good.all():
            row = int(np.argmin(good))
            where = f"{self.file}: {self.names[column]}, {self.row_name} {self.rows[row]}"
            raise LogError(f"{where}: {self.values[row, column]:.17g}; expected {expected}")

    def in_time_order(self) -> np.ndarray:
        """The columns, as rows, sorted stably by the first."""
        return np.ascontiguousarray(self.values[np.argsort(self.values[:, 0], kind="stable")].T)


class _Tables(NamedTuple):
    odometry: _Table
    ranges: _Table
    beacons: _Table
    truth: _Table | None = None


def _assemble(tables: _Tables, name: str) -> Log:
    odometry, ranges, beacons, truth = tables
    present = [table for table in tables if table is not None]
    for table in present:
        if not len(table.values):
            raise LogError(f"{table.file}: {table.names[0]}: empty; expected at least one row")
        for column, values in enumerate(table.values.T):
            missing = np.isnan(values) if table is ranges and column == 2 else False
            table.require(column, np.isfinite(values) | missing, "a finite number")
    ranges.require(2, ~(ranges.values[:, 2] < 0), "a range of at least 0 m")
    ids = beacons.values[:, 0]
    # Beyond 2^53 neighbouring whole numbers are one float64.
    beacons.require(0, (ids == np.rint(ids)) & (np.abs(ids) < 2**53), "a whole number")
    first = np.unique(ids, return_index=True)[1]
    beacons.require(0, np.isin(np.arange(len(ids)), first), "each beacon id only once")
    known = ", ".join(f"{i:.0f}" for i in ids[:20]) + (", ..." if len(ids) > 20 else "")
    ranges.require(1, np.isin(ranges.values[:, 1], ids), f"one of the beacon ids {known}")

    warnings = [
        f"{table.file}: {table.names[0]}: times not in order; sorted"
        for table in present
        if table is not beacons and np.any(np.diff(table.values[:, 0]) < 0)
    ]
    odom_t, odom_dist, odom_dheading = odometry.in_time_order()
    truth_t = truth_xy = truth_heading = None
    if truth is not None:
        truth_t, x, y, truth_heading = truth.in_time_order()
        truth_xy = np.stack([x, y], axis=-1)
    start_t = _start(odom_t, truth_t)

    (range_t, range_id, range_m), span = ranges.in_time_order(), (start_t, odom_t[-1])
    inside = (span[0] <= range_t) & (range_t <= span[1])
    odometry_span = f"the odometry, {_interval(span)}"
    if not np.any(inside & ~np.isnan(range_m)):
        raise LogError(
            f"{ranges.file}: {ranges.names[2]}: no range during {odometry_span}, times being "
            f"{_interval(range_t)}; expected at least one that is not nan"
        )
    if left_out := np.sum(~inside):
        warnings.append(
            f"{ranges.file}: {ranges.names[0]}: {left_out} of {len(inside)} ranges outside "
            f"{odometry_span}; left out"
        )
    range_t, range_id, range_m = range_t[inside], range_id[inside], range_m[inside]
    if absent := np.sum(np.isnan(range_m)):
        warnings.append(
            f"{ranges.file}: {ranges.names[2]}: {absent} of {len(range_m)} ranges nan; "
            "counted as missing"
        )
    if truth is not None and truth_t is not None:
        covered = np.sum((truth_t[0] <= range_t) & (range_t <= truth_t[-1]))
        came = f"{truth.file}: {truth.names[0]}: {_interval(truth_t)}, covers"
        if not covered:
            raise LogError(f"{came} no range; expected to cover {_interval(range_t)}")
        if covered < len(range_t):
            warnings.append(f"{came} {covered} of {len(range_t)} ranges")

    by_id = np.argsort(ids)
    return Log(
        name=name,
        odom_t=odom_t,
        odom_dist=odom_dist,
        odom_dheading=odom_dheading,
        range_t=range_t,
        range_beacon=by_id[np.searchsorted(ids, range_id, sorter=by_id)],
        range_m=range_m,
        beacon_id=ids.astype(int),
        beacon_xy=beacons.values[:, 1:].copy(),
        start_t=start_t,
        truth_t=truth_t,
        truth_xy=truth_xy,
        truth_heading=truth_heading,
        warnings=tuple(warnings),
    )


def _start(odom_t: np.ndarray, truth_t: np.ndarray | None) -> float:
    """The time at which the first odometry step starts."""
    intervals = np.diff(odom_t) if len(odom_t) > 1 else np.zeros(1)
    # Truth that begins after the first step, or longer before it than any step lasts, does not say.
    if truth_t is not None and 0 <= odom_t[0] - truth_t[0] <= intervals.max():
        return float(truth_t[0])
    return float(odom_t[0] - np.median(intervals))


def _interval(times: Sequence[float] | np.ndarray) -> str:
    return f"from {times[0]:.10g} to {times[-1]:.10g} s"


def _read_npz(path: Path) -> _Tables:
    arrays = {}
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or 'cannot be read'}; {_LAYOUT}") from error
    except Exception as error:  # zipfile and numpy raise a dozen types at damaged or foreign files
        raise LogError(f"{path}: not an .npz archive; {_LAYOUT}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise LogError(f"{path}: a single array; {_LAYOUT}")
    with archive:
        for name in (name for names in _ARRAYS.values() for name in names if name in archive.files):
            try:
                arrays[name] = np.asarray(archive[name])
            except Exception as error:  # as above; objects, which only a pickle can hold, are one
                raise LogError(
                    f"{path}: {name}: damaged, or Python objects; expected an array of numbers"
                ) from error

    tables = {}
    for kind, names in _ARRAYS.items():
        missing = [name for name in names if name not in arrays]
        if kind == "truth" and len(missing) == len(names):
            continue
        if missing:
            found = ", ".join(arrays) or "none of them"
            raise LogError(
                f"{path}: {missing[0]}: no such array; expected {', '.join(names)}, found {found}"
            )
        tables[kind] = _npz_table(path, {name: arrays[name] for name in names})
    return _Tables(**tables)


def _npz_table(path: Path, arrays: dict[str, np.ndarray]) -> _Table:
    columns, labels = [], []
    first, rows = next((name, array.shape[:1]) for name, array in arrays.items())
    for name, array in arrays.items():
        width = 2 if name.endswith("_xy") else 1
        if array.dtype.kind not in "iuf":
            raise LogError(f"{path}: {name}: dtype {array.dtype}; expected numbers")
        if array.shape[1:] != (2,) * (width - 1) or array.ndim == 0:
            shape = "(n, 2)" if width == 2 else "(n,)"
            raise LogError(f"{path}: {name}: shape {array.shape}; expected {shape}")
        if array.shape[:1] != rows:
            raise LogError(f"{path}: {name}: {len(array)} rows; expected {rows[0]}, as in {first}")
        columns += list(array.T) if width == 2 else [array]
        labels += [name] * width
    with np.errstate(over="ignore"):  # an infinity from extended precision is reported as such
        values = np.stack(columns, axis=-1).astype(float)
    return _Table(path, labels, values, "index", range(len(values)))


def _read_folder(path: Path) -> _Tables:
    return _Tables(
        **{
            kind: _csv_table(path / f"{kind}.csv", names)
            for kind, names in _COLUMNS.items()
            if kind != "truth" or (path / "truth.csv").exists()
        }
    )


def _csv_table(path: Path, names: Sequence[str]) -> _Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            lines = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or 'cannot be read'}; {_LAYOUT}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise LogError(
            f"{path}: not text; expected a CSV file in UTF-8 with the columns {', '.join(names)}"
        ) from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    for name in names:
        if header.count(name) != 1:
            came = "more than one such column" if name in header else "no such column"
            found = ascii(",".join(header))[:80]
            raise LogError(
                f"{path}: {name}: {came}; expected a header row with {', '.join(names)}, "
                f"found {found}"
            )
    places = [header.index(name) for name in names]
    values = np.empty((len(lines) - 1, len(names)))
    for i, (line, row) in enumerate(lines[1:]):
        if len(row) != len(header):
            raise LogError(
                f"{path}: {names[0]}, line {line}: {len(row)} cells; expected {len(header)}, "
                "as in the header"
            )
        for j, place in enumerate(places):
            cell = row[place].strip()
            try:
                values[i, j] = float("nan" if names[j] == "range" and not cell else cell)
            except ValueError as error:
                raise LogError(
                    f"{path}: {names[j]}, line {line}: {ascii(cell)[:60]}; expected a number"
                ) from error
    return _Table(path, names, values, "line", [line for line, _ in lines[1:]])
