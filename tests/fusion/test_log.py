"""A robot's log: what is repaired, what is refused, and the odometry between ranges."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bayesinf.fusion.log import Log, dead_reckoning, segments, truth_at
from bayesinf.fusion.read import SHIPPED, LogError, read_log

GOOD = {
    "odom_t": np.array([1.0, 2.0, 3.0, 4.0]),
    "odom_dist": np.array([0.5, 0.5, 0.0, 1.0]),
    "odom_dheading": np.array([0.1, 0.0, -0.1, 0.2]),
    "range_t": np.array([0.5, 2.0, 2.0, 3.5]),
    "range_beacon": np.array([7, 3, 7, 3]),
    "range_m": np.array([5.0, 4.0, 5.5, 3.0]),
    "beacon_id": np.array([7, 3]),
    "beacon_xy": np.array([[5.0, 0.0], [0.0, 4.0]]),
    "truth_t": np.array([0.0, 2.0, 4.0]),
    "truth_xy": np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.4]]),
    "truth_heading": np.array([3.1, -3.1, -3.0]),
}
CSV_COLUMNS = {
    "odometry": {"t": "odom_t", "dist": "odom_dist", "dheading": "odom_dheading"},
    "ranges": {"t": "range_t", "beacon": "range_beacon", "range": "range_m"},
    "beacons": {"id": "beacon_id", "x": "beacon_x", "y": "beacon_y"},
    "truth": {"t": "truth_t", "x": "truth_x", "y": "truth_y", "heading": "truth_heading"},
}
REQUIRED = [name for name in GOOD if not name.startswith("truth")]


def write_npz(folder: Path, arrays=GOOD, **changes) -> Path:
    kept = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    np.savez(folder / "log.npz", **kept)
    return folder / "log.npz"


def write_csv(folder: Path, arrays=GOOD) -> Path:
    columns = dict(arrays)
    for kind in ("beacon", "truth"):
        columns[f"{kind}_x"], columns[f"{kind}_y"] = columns[f"{kind}_xy"].T
    for name, names in CSV_COLUMNS.items():
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(names)
            writer.writerows(zip(*(columns[k].tolist() for k in names.values()), strict=True))
    return folder


def edited(name: str, index, value) -> dict[str, np.ndarray]:
    array = GOOD[name].astype(float)
    array[index] = value
    return {name: array}


def refused(path) -> str:
    with pytest.raises(LogError) as caught:
        read_log(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    assert message.startswith(str(path))
    return message


def assert_same(a: Log, b: Log, skip=("name",)):
    for field in Log._fields:
        if field not in skip:
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


# Reading


def test_plaza1_is_shipped():
    log = read_log(None)
    assert log.name == "plaza1"
    assert log.warnings == ()
    assert (len(log.odom_t), len(log.range_t), len(log.beacon_id)) == (9657, 3529, 4)
    assert log.truth_t is not None
    assert log.start_t == log.truth_t[0]
    raw = np.load(SHIPPED, allow_pickle=False)
    np.testing.assert_array_equal(log.beacon_id[log.range_beacon], raw["range_beacon"])
    assert SHIPPED.stat().st_size < 1_000_000


def test_importing_the_reader_does_not_import_jax():
    # Of its own: importing the package itself may.
    source = (Path(sys.modules[read_log.__module__].__file__ or "")).resolve()
    code = f"import sys, runpy; runpy.run_path({str(source)!r}); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_csv_folder_equals_npz_on_the_first_200_ranges_of_plaza1(tmp_path):
    raw = dict(np.load(SHIPPED, allow_pickle=False))
    for name in ("range_t", "range_beacon", "range_m"):
        raw[name] = raw[name][:200]
    from_npz = read_log(write_npz(tmp_path, raw))
    folder = tmp_path / "csv.folder"
    folder.mkdir()
    from_csv = read_log(write_csv(folder, raw))
    assert from_csv.name == "csv.folder"
    assert len(from_csv.range_t) == 200
    assert_same(from_npz, from_csv)
    assert_same(read_log(None), from_csv, ("name", "range_t", "range_beacon", "range_m"))


def test_csv_columns_are_found_by_name(tmp_path):
    write_csv(tmp_path)
    expected = read_log(write_npz(tmp_path))
    # Another order, one column too many, spaces, blank lines, a byte-order mark.
    text = "\ufeff y, note ,x,id\n0.0,a,5.0, 7\n\n 4.0 ,b,0.0,3.0\n,,,\n"
    (tmp_path / "beacons.csv").write_text(text, encoding="utf-8")
    assert_same(expected, read_log(tmp_path))


def test_truth_is_optional(tmp_path):
    log = read_log(write_npz(tmp_path, {name: GOOD[name] for name in REQUIRED}))
    assert log.truth_t is log.truth_xy is log.truth_heading is None
    assert log.start_t == 0.0  # the median interval before the first row
    with pytest.raises(ValueError, match="no truth"):
        truth_at(log, log.range_t)
    write_csv(tmp_path)
    (tmp_path / "truth.csv").unlink()
    assert_same(log, read_log(tmp_path))


@pytest.mark.parametrize(
    ("truth_start", "start"), [(0.3, 0.3), (1.0, 1.0), (-0.5, 0.0), (1.5, 0.0)]
)
def test_truth_says_when_the_first_step_starts_only_if_it_begins_within_it(
    tmp_path, truth_start, start
):
    ranges = {name: GOOD[name][1:] for name in ("range_t", "range_beacon", "range_m")}
    log = read_log(write_npz(tmp_path, **ranges, **edited("truth_t", 0, truth_start)))
    assert log.start_t == start


def test_nan_range_counts_as_missing(tmp_path):
    log = read_log(write_npz(tmp_path, **edited("range_m", 1, np.nan)))
    np.testing.assert_array_equal(np.isnan(log.range_m), [False, True, False, False])
    assert len(log.warnings) == 1
    assert "range_m: 1 of 4 ranges nan" in log.warnings[0]
    write_csv(tmp_path)
    for cell in ("", "nan"):
        (tmp_path / "ranges.csv").write_text(
            f"t,beacon,range\n.5,7,5\n2,3,{cell}\n2,7,5.5\n3.5,3,3\n"
        )
        assert_same(log, read_log(tmp_path), ("name", "warnings"))


def test_unsorted_times_are_sorted_stably_with_a_warning(tmp_path):
    odometry, ranges, truth = [2, 0, 3, 1], [3, 1, 0, 2], [1, 2, 0]
    shuffled = {
        **{k: GOOD[k][odometry] for k in ("odom_t", "odom_dist", "odom_dheading")},
        **{k: GOOD[k][ranges] for k in ("range_t", "range_beacon", "range_m")},
        **{k: GOOD[k][truth] for k in ("truth_t", "truth_xy", "truth_heading")},
    }
    path = write_npz(tmp_path, **shuffled)
    log = read_log(path)
    assert_same(read_log(write_npz(tmp_path)), log, ("name", "warnings"))
    assert [w.split(": ")[1] for w in log.warnings] == ["odom_t", "range_t", "truth_t"]
    assert all(str(path) in w and "sorted" in w for w in log.warnings)


def test_equal_times_are_fine(tmp_path):
    times = {**edited("odom_t", [1, 3], [1.0, 3.0]), **edited("range_t", 3, 3.0)}
    log = read_log(write_npz(tmp_path, **times))
    assert log.warnings == ()
    motion = segments(log)
    assert all(np.isfinite(column).all() for column in motion)
    # The steps end at 1, 1, 3, 3 s, and the first starts at 0, where the truth does: the range at
    # 2 s lies behind both that end at 1 s, the one at 3 s behind all.
    np.testing.assert_allclose(np.cumsum(motion.steps), [0.5, 2.5, 2.5, 4.0])
    assert dead_reckoning(log, np.zeros(3), np.array([3.0]))[0, 2] == pytest.approx(0.2)


def test_ranges_outside_the_odometry_are_left_out_with_a_warning(tmp_path):
    log = read_log(write_npz(tmp_path, **edited("range_t", [0, 3], [-0.1, 4.1])))
    np.testing.assert_array_equal(log.range_m, [4.0, 5.5])
    np.testing.assert_array_equal(log.range_beacon, [1, 0])
    assert len(log.warnings) == 1
    assert "range_t: 2 of 4 ranges outside the odometry, from 0 to 4 s" in log.warnings[0]


def test_truth_may_cover_the_ranges_in_part(tmp_path):
    log = read_log(write_npz(tmp_path, **edited("truth_t", slice(None), [0.0, 1.0, 2.0])))
    assert "truth_t: from 0 to 2 s, covers 3 of 4 ranges" in log.warnings[0]
    xy, heading = truth_at(log, log.range_t)
    np.testing.assert_array_equal(np.isnan(heading), [False, False, False, True])
    np.testing.assert_array_equal(np.isnan(xy).any(axis=1), np.isnan(heading))


# Refusals


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_array_is_refused(tmp_path, name):
    assert f": {name}: no such array" in refused(write_npz(tmp_path, **{name: None}))


@pytest.mark.parametrize("name", ["truth_t", "truth_xy", "truth_heading"])
def test_truth_with_only_some_of_its_arrays_is_refused(tmp_path, name):
    assert f": {name}: no such array" in refused(write_npz(tmp_path, **{name: None}))
    only = {k: None for k in GOOD if k.startswith("truth") and k != name}
    assert ": truth_" in refused(write_npz(tmp_path, **only))


@pytest.mark.parametrize("name", GOOD)
def test_wrong_array_is_refused(tmp_path, name):
    array = GOOD[name]
    rows, flat = ("(n, 2)", array[:, 0]) if array.ndim == 2 else ("(n,)", array)
    for wrong in (np.float64(1.0), flat[:, None], np.stack([flat] * 3, axis=-1), array[None]):
        message = refused(write_npz(tmp_path, **{name: wrong}))
        assert f": {name}: shape {wrong.shape}; expected {rows}" in message
    for wrong in (array.astype(str), array.astype(bool), array.astype(complex), array.astype("S9")):
        message = refused(write_npz(tmp_path, **{name: wrong}))
        assert f": {name}: dtype {wrong.dtype}; expected numbers" in message
    message = refused(write_npz(tmp_path, **{name: array.astype(object)}))
    assert f": {name}: damaged, or Python objects; expected an array of numbers" in message


@pytest.mark.parametrize("name", GOOD)
def test_unequal_lengths_are_refused(tmp_path, name):
    message = refused(write_npz(tmp_path, **{name: GOOD[name][:-1]}))
    table = name.split("_")[0]
    assert f": {table}_" in message
    assert "rows; expected" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", GOOD)
def test_nan_or_infinite_value_is_refused(tmp_path, name, bad):
    path = write_npz(tmp_path, **edited(name, 1, bad))
    if name == "range_m" and np.isnan(bad):
        assert np.isnan(read_log(path).range_m[1])
    else:
        assert f": {name}, index 1: {bad}; expected a finite number" in refused(path)


@pytest.mark.parametrize("table", CSV_COLUMNS)
def test_nan_infinite_or_text_cell_is_refused(tmp_path, table):
    for j, name in enumerate(CSV_COLUMNS[table]):
        path = write_csv(tmp_path) / f"{table}.csv"
        lines = path.read_text().splitlines()
        for bad in ("inf", "nan", "", "fast", "1;2", "1e999"):
            if name == "range" and bad in ("nan", ""):
                continue
            cells = lines[2].split(",")
            cells[j] = bad
            path.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]))
            came = {"1e999": "inf"}.get(bad, bad if bad in ("inf", "nan") else repr(bad))
            message = refused(tmp_path)
            assert message.startswith(f"{path}: {name}, line 3: {came}; expected a")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            edited("range_beacon", 2, 5),
            "range_beacon, index 2: 5; expected one of the beacon ids 7, 3",
        ),
        (edited("beacon_id", 1, 7), "beacon_id, index 1: 7; expected each beacon id only once"),
        (edited("beacon_id", 1, 3.5), "beacon_id, index 1: 3.5; expected a whole number"),
        (
            edited("beacon_id", 1, 1e300),
            "index 1: 1.0000000000000001e+300; expected a whole number",
        ),
        (edited("range_m", 3, -0.5), "range_m, index 3: -0.5; expected a range of at least 0 m"),
        (edited("range_m", slice(None), np.nan), "range_m: no range during the odometry"),
        (
            edited("range_t", slice(None), 9.0),
            "range_m: no range during the odometry, from 0 to 4 s",
        ),
        (
            edited("truth_t", slice(None), [8.0, 9.0, 9.5]),
            "truth_t: from 8 to 9.5 s, covers no range",
        ),
    ],
)
def test_inconsistent_value_is_refused(tmp_path, changes, expected):
    assert expected in refused(write_npz(tmp_path, **changes))


@pytest.mark.parametrize("table", ["odom", "range", "beacon", "truth"])
def test_empty_table_is_refused(tmp_path, table):
    names = [name for name in GOOD if name.startswith(table)]
    message = refused(write_npz(tmp_path, **{name: GOOD[name][:0] for name in names}))
    assert f": {names[0]}: empty; expected at least one row" in message


@pytest.mark.parametrize("table", CSV_COLUMNS)
def test_incomplete_csv_is_refused(tmp_path, table):
    path = write_csv(tmp_path) / f"{table}.csv"
    text = path.read_text()
    header, body = text.split("\n", 1)
    first, second = list(CSV_COLUMNS[table])[:2]
    columns = ", ".join(CSV_COLUMNS[table])

    def message(content: str | bytes) -> str:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return refused(tmp_path).removeprefix(f"{path}: ")

    missing = f"{first}: no such column; expected a header row with {columns}, found "
    assert message("").startswith(missing)
    assert message(body).startswith(missing)
    assert message(text.replace(",", ";")).startswith(missing)
    assert message(text.replace(first, "other", 1)).startswith(missing)
    assert message(b"\x00\x01\x02" * 1000).startswith(missing)
    assert message(text.replace(second, first, 1)).startswith(f"{first}: more than one such column")
    assert message(header + "\n").startswith(f"{first}: empty; expected at least one row")
    assert message(text + "1\n").startswith(f"{first}, line {len(text.splitlines()) + 1}: 1 cells")
    assert message(b"\xff\xfe\x00" * 1000).startswith("not text; expected a CSV file in UTF-8")
    assert message("x" * 200_000).startswith("not text; expected a CSV file in UTF-8")
    path.unlink()
    if table == "truth":
        assert read_log(tmp_path).truth_t is None
        path.mkdir()
    else:
        assert refused(tmp_path).startswith(f"{path}: No such file or directory; expected")
        path.mkdir()
    assert refused(tmp_path).startswith(f"{path}: Is a directory; expected")


def test_what_is_no_log_is_refused(tmp_path):
    layout = "expected an .npz archive, or a folder with odometry.csv, ranges.csv, beacons.csv"

    def message(content: bytes) -> str:
        (tmp_path / "log.npz").write_bytes(content)
        return refused(tmp_path / "log.npz")

    assert f"No such file or directory; {layout}" in refused(tmp_path / "nowhere.npz")
    assert layout in refused(tmp_path / ("x" * 300))
    assert "not an .npz archive" in refused(tmp_path / "nul\0.npz")
    for content in (b"", b"t,dist,dheading\n1,2,3\n", b"\x80\x04K\x01.", bytes(range(256))):
        assert f"not an .npz archive; {layout}" in message(content)
    np.save(tmp_path / "log.npy", np.zeros(3))
    assert "a single array" in refused(tmp_path / "log.npy")
    np.savez(tmp_path / "log.npz")
    assert "odom_t: no such array" in refused(tmp_path / "log.npz")
    (tmp_path / "empty").mkdir()
    assert "odometry.csv: No such file or directory" in refused(tmp_path / "empty")


def test_damaged_archive_gives_a_log_or_one_line(tmp_path):
    whole = write_npz(tmp_path).read_bytes()
    path = tmp_path / "damaged.npz"
    rng = np.random.default_rng(0)
    damaged = [whole[:size] for size in rng.integers(0, len(whole), 60)]
    for _ in range(240):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        damaged.append(content.tobytes())
    messages = []
    for content in damaged:
        path.write_bytes(content)
        try:
            read_log(path)
        except LogError as error:
            messages.append(str(error))
    assert len(messages) > 60  # all the truncated ones, and some others
    assert all(m.startswith(str(path)) and "\n" not in m for m in messages)


# Motion


def test_truth_is_interpolated_through_the_wrap_of_the_heading(tmp_path):
    log = read_log(write_npz(tmp_path))
    xy, heading = truth_at(log, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(xy, [[0.5, 0.0], [1.0, 0.0], [1.5, 0.2]])
    # 3.1 to -3.1 is a turn of 2 pi - 6.2 to the left, not of 6.2 to the right.
    np.testing.assert_allclose(heading, [np.pi, 2 * np.pi - 3.1, 2 * np.pi - 3.05])


def compose(log: Log, start: np.ndarray) -> np.ndarray:
    """The pose after every segment, one after the other."""
    motion, pose, poses = segments(log), start, []
    for forward, left, turn in zip(motion.forward, motion.left, motion.turn, strict=True):
        x, y, heading = pose
        c, s = np.cos(heading), np.sin(heading)
        pose = np.array([x + c * forward - s * left, y + s * forward + c * left, heading + turn])
        poses.append(pose)
    return np.array(poses)


def test_exact_segments_compose_to_dead_reckoning():
    log, start = read_log(None), np.array([3.0, -2.0, 2.5])
    poses = dead_reckoning(log, start, log.range_t)
    np.testing.assert_allclose(compose(log, start), poses, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(dead_reckoning(log, start, np.array([log.start_t])), [start])
    broken = compose(log._replace(odom_dheading=log.odom_dheading * 1.001), start)
    assert np.abs(broken - poses).max() > 1e-3
    motion = segments(log)
    assert motion.elapsed.sum() == pytest.approx(log.range_t[-1] - log.start_t, abs=1e-9)
    assert motion.elapsed.min() == 0  # equal times are an empty segment


def test_oracle_segments_split_steps_linearly_in_time(tmp_path):
    log = read_log(write_npz(tmp_path))
    motion = segments(log)
    np.testing.assert_allclose(motion.elapsed, [0.5, 1.5, 0.0, 1.5])
    np.testing.assert_allclose(motion.steps, [0.5, 1.5, 0.0, 1.5])
    np.testing.assert_allclose(motion.path, [0.25, 0.75, 0.0, 0.5])
    np.testing.assert_allclose(motion.turn, [0.05, 0.05, 0.0, 0.0], atol=1e-15)
    # The first range: half a step of .5 m along half of half the turn. The last: a turn of -.1 on
    # the spot, then half a step of 1 m in which the robot turns by .1.
    np.testing.assert_allclose(motion.forward[[0, 3]], [0.25 * np.cos(0.025), 0.5 * np.cos(0.05)])
    np.testing.assert_allclose(motion.left[[0, 3]], [0.25 * np.sin(0.025), -0.5 * np.sin(0.05)])


def test_path_counts_reversing(tmp_path):
    log = read_log(write_npz(tmp_path, **edited("odom_dist", slice(None), [1, -1, 0, 0])))
    motion = segments(log._replace(odom_dheading=np.zeros(4)))
    assert motion.path.sum() == pytest.approx(2.0)
    assert motion.forward.sum() == pytest.approx(0.0, abs=1e-12)


def circle(steps: int) -> Log:
    """Once around a circle of radius 10 m to the left, each step its chord, at uneven times."""
    rng = np.random.default_rng(0)
    t = np.cumsum(rng.uniform(0.1, 0.3, steps))
    turn = np.full(steps, 2 * np.pi / steps)
    at = t[4::7]
    return Log(
        name="circle",
        odom_t=t,
        odom_dist=2 * 10.0 * np.sin(turn / 2),
        odom_dheading=turn,
        range_t=at,
        range_beacon=np.zeros(len(at), int),
        range_m=np.ones(len(at)),
        beacon_id=np.array([0]),
        beacon_xy=np.zeros((1, 2)),
        start_t=0.0,
        truth_t=None,
        truth_xy=None,
        truth_heading=None,
        warnings=(),
    )


def test_oracle_circle():
    log = circle(700)
    # The midpoint rule is exact on a circle whose steps are chords.
    angle = 2 * np.pi * np.arange(1, 701) / 700
    expected = np.stack([10 * np.sin(angle), 10 - 10 * np.cos(angle), angle], axis=-1)
    poses = dead_reckoning(log, np.zeros(3), log.odom_t)
    np.testing.assert_allclose(poses, expected, rtol=0, atol=1e-9)
    # So every full segment, of 7 steps, is the same arc seen from its own start.
    motion, turn = segments(log), 2 * np.pi / 100
    np.testing.assert_allclose(motion.turn[1:], turn, rtol=0, atol=1e-12)
    np.testing.assert_allclose(motion.forward[1:], 10 * np.sin(turn), rtol=0, atol=1e-9)
    np.testing.assert_allclose(motion.left[1:], 10 - 10 * np.cos(turn), rtol=0, atol=1e-9)
    np.testing.assert_allclose(motion.steps[1:], 7, rtol=0, atol=1e-9)
    # Negative control: moving before the turn puts the robot off the circle by about half a step.
    before = np.concatenate([[0.0], np.cumsum(log.odom_dheading)[:-1]])
    x = np.cumsum(log.odom_dist * np.cos(before))
    assert np.abs(x - expected[:, 0]).max() > 0.01


def test_circle_between_steps():
    log = circle(700)
    t = np.linspace(0.0, log.odom_t[-1], 3001)
    poses = dead_reckoning(log, np.zeros(3), t)
    radius = np.hypot(poses[:, 0], poses[:, 1] - 10)
    # A part of a step moves along a chord parallel to no other; its sagitta bounds the departure.
    np.testing.assert_allclose(radius, 10, rtol=0, atol=10 * (1 - np.cos(np.pi / 700)))


def test_dead_reckoning_on_plaza1_drifts_as_documented():
    log = read_log(None)
    start_xy, start_heading = truth_at(log, np.array([log.start_t]))
    start = np.append(start_xy[0], start_heading)
    poses, (xy, _) = dead_reckoning(log, start, log.range_t), truth_at(log, log.range_t)
    error = np.hypot(*(poses[:, :2] - xy).T)
    assert np.sqrt(np.mean(error[-2647:] ** 2)) == pytest.approx(2.270, abs=0.005)
    assert error[-1] == pytest.approx(4.449, abs=0.005)


@pytest.mark.parametrize("t", [-0.1, 4.1, np.nan])
def test_dead_reckoning_refuses_times_outside_the_odometry(tmp_path, t):
    log = read_log(write_npz(tmp_path))
    with pytest.raises(ValueError, match=r"t: .*expected 0.0 to 4.0 s"):
        dead_reckoning(log, np.zeros(3), np.array([1.0, t]))
