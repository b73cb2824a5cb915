"""A robot's log: reading it, checking it, and its odometry as motion between ranges.

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
from jaxtyping import Bool, Float, Int

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


class Log(NamedTuple):
    """One drive of a robot: n odometry steps, m ranges to B beacons, and its true path if known.

    Times are in seconds, lengths in metres, angles in radians, headings counter-clockwise from the
    x axis. `odom_t` is the time at the end of a step, and the first step starts at `start_t`.
    `range_beacon` is a row of `beacon_xy`. A NaN in `range_m` is a missing reading. Every range
    lies between `start_t` and the end of the odometry; the truth need not reach that far.
    `warnings` says in one line each what was repaired or left out.
    """

    name: str
    odom_t: Float[np.ndarray, " n"]
    odom_dist: Float[np.ndarray, " n"]
    odom_dheading: Float[np.ndarray, " n"]
    range_t: Float[np.ndarray, " m"]
    range_beacon: Int[np.ndarray, " m"]
    range_m: Float[np.ndarray, " m"]
    beacon_id: Int[np.ndarray, " B"]
    beacon_xy: Float[np.ndarray, "B 2"]
    start_t: float
    truth_t: Float[np.ndarray, " k"] | None
    truth_xy: Float[np.ndarray, "k 2"] | None
    truth_heading: Float[np.ndarray, " k"] | None
    warnings: tuple[str, ...]


class Segments(NamedTuple):
    """The odometry between each range and the one before it (for the first, the start).

    Seconds `elapsed`; the displacement `forward` and `left` in metres, in the body frame at the
    beginning of the segment; the `turn` in radians, not wrapped; the length of the `path` in
    metres; and how many odometry `steps` it took, in fractions.
    """

    elapsed: Float[np.ndarray, " m"]
    forward: Float[np.ndarray, " m"]
    left: Float[np.ndarray, " m"]
    turn: Float[np.ndarray, " m"]
    path: Float[np.ndarray, " m"]
    steps: Float[np.ndarray, " m"]


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


def truth_at(
    log: Log, t: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, " m"]]:
    """Returns the true positions (m) and headings (rad, unwrapped) at times `t`, interpolated.

    Both are NaN outside the time that the truth covers. ValueError if the log has no truth.
    """
    if log.truth_t is None or log.truth_xy is None or log.truth_heading is None:
        raise ValueError(f"log: {log.name} has no truth; expected truth_t, truth_xy, truth_heading")
    x, y, heading = (
        np.interp(t, log.truth_t, values, left=np.nan, right=np.nan)
        for values in (*log.truth_xy.T, np.unwrap(log.truth_heading))
    )
    return np.stack([x, y], axis=-1), heading


def first_ranges(log: Log, n: int) -> Log:
    """Returns the log up to its n-th range; the odometry and the truth to the steps around it."""
    end = log.range_t[:n][-1]
    steps = int(np.searchsorted(log.odom_t, end, side="right")) + 1
    log = log._replace(
        odom_t=log.odom_t[:steps],
        odom_dist=log.odom_dist[:steps],
        odom_dheading=log.odom_dheading[:steps],
        range_t=log.range_t[:n],
        range_beacon=log.range_beacon[:n],
        range_m=log.range_m[:n],
    )
    if log.truth_t is None or log.truth_xy is None or log.truth_heading is None:
        return log
    rows = int(np.searchsorted(log.truth_t, end, side="right")) + 1
    return log._replace(
        truth_t=log.truth_t[:rows],
        truth_xy=log.truth_xy[:rows],
        truth_heading=log.truth_heading[:rows],
    )


def segments(log: Log) -> Segments:
    """Returns the motion between successive ranges, missing ones included, in time order.

    The steps are composed in SE(2). Within a step the motion follows the midpoint rule: the robot
    moves `dist` along its heading plus half of `dheading`, then has turned by `dheading`. A step
    that a segment covers in part is split linearly in time.
    """
    t = np.concatenate([[log.start_t], log.range_t])
    poses, path, steps = _odometry_at(log, t)
    dx, dy, turn = np.diff(poses, axis=0).T
    cos, sin = np.cos(poses[:-1, 2]), np.sin(poses[:-1, 2])
    forward, left = cos * dx + sin * dy, cos * dy - sin * dx
    return Segments(np.diff(t), forward, left, turn, np.diff(path), np.diff(steps))


def dead_reckoning(
    log: Log, start_pose: Float[np.ndarray, " 3"], t: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "m 3"]:
    """Returns the poses (x m, y m, heading rad, unwrapped) at times `t` by odometry alone.

    `start_pose` is the pose at `log.start_t`; the rule within a step is that of `segments`.
    ValueError for a time outside the odometry.
    """
    start, end = log.start_t, log.odom_t[-1]
    if not np.all((start <= t) & (t <= end)):
        raise ValueError(f"t: from {np.min(t)} to {np.max(t)} s; expected {start} to {end} s")
    (x, y, turn), (x0, y0, heading) = _odometry_at(log, t)[0].T, start_pose
    cos, sin = np.cos(heading), np.sin(heading)
    return np.stack([x0 + cos * x - sin * y, y0 + sin * x + cos * y, heading + turn], axis=-1)


def _odometry_at(log: Log, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pose in the frame of the start, the path length and the number of steps at times t."""
    edges = np.concatenate([[log.start_t], log.odom_t])
    heading = _cumulative(log.odom_dheading)
    along = heading[:-1] + log.odom_dheading / 2
    x = _cumulative(log.odom_dist * np.cos(along))
    y = _cumulative(log.odom_dist * np.sin(along))
    path = _cumulative(np.abs(log.odom_dist))

    # The step under way at t. Only the last can be empty: side="right" passes all others that are.
    i = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, len(log.odom_t) - 1)
    length = edges[i + 1] - edges[i]
    part = np.divide(t - edges[i], length, out=np.ones_like(length), where=length > 0)
    dist, turn = part * log.odom_dist[i], part * log.odom_dheading[i]
    along = heading[i] + turn / 2
    poses = [x[i] + dist * np.cos(along), y[i] + dist * np.sin(along), heading[i] + turn]
    return np.stack(poses, axis=-1), path[i] + np.abs(dist), i + part


def _cumulative(increments: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(increments)])


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
