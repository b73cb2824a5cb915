"""The command line: what it writes and prints, and how it refuses. No network runs here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from test_log import GOOD, REQUIRED, edited, write_csv, write_npz
from test_report import random_track

from bayesinf.cli import main
from bayesinf.fusion import methods, report, train
from bayesinf.fusion.log import first_ranges, segments, truth_at
from bayesinf.fusion.read import read_log
from bayesinf.training import History
from bayesinf.transformers_gmm import DistributionTransformer, zoo

NAMES = ["distribution_transformer", "ekf", "gaussian_sum", "particle_filter", "dead_reckoning"]


@pytest.fixture
def starts(monkeypatch) -> list:
    """Replaces the methods by made-up tracks; returns what they were called with."""
    calls = []

    def run_methods(log, start_pose, progress=True):
        calls.append((log, start_pose))
        return {name: random_track(log, 3, seed) for seed, name in enumerate(NAMES)}

    monkeypatch.setattr(methods, "run_methods", run_methods)
    return calls


def fuse(capsys, *arguments) -> tuple[int, str, list[str]]:
    status = main(["fuse", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.splitlines()


def refused(capsys, *arguments) -> str:
    """Returns the one line with which a command is refused."""
    status, out, lines = fuse(capsys, *arguments)
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("bayesinf: error: ")
    assert "expected" in lines[0]
    return lines[0].removeprefix("bayesinf: error: ")


# Fusing


def test_fuse_writes_the_files_and_prints_the_table(tmp_path, capsys, starts):
    log, out = write_npz(tmp_path), tmp_path / "new" / "out"
    status, printed, warnings = fuse(capsys, log, "--out", out)
    assert (status, warnings) == (0, [])
    assert sorted(os.listdir(out)) == sorted(report.FILES)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == NAMES
    lines = printed.splitlines()
    assert lines[0] == "log, start known, scored from 2 s on"
    assert lines[-3:] == [str(out / name) for name in report.FILES]
    assert "\n".join(lines[:-4]) == report.table(summary)


def test_default_log_and_folder(tmp_path, capsys, starts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, _ = fuse(capsys, "--quick")
    assert status == 0
    assert sorted(os.listdir(Path("out", "plaza1"))) == sorted(report.FILES)
    assert len(starts[0][0].range_t) == 800
    assert printed.splitlines()[-1] == str(Path("out", "plaza1", "track.png"))


def test_start_follows_the_truth_unless_told(tmp_path, capsys, starts):
    def start(path, *options):
        status, _, _ = fuse(capsys, path, "--out", tmp_path / "out", *options)
        assert status == 0
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["start"] == ("unknown" if starts[-1][1] is None else "known")
        return starts[-1][1]

    path = write_npz(tmp_path)
    np.testing.assert_allclose(start(path), [0, 0, 3.1])
    np.testing.assert_allclose(start(path, "--start", "known"), [0, 0, 3.1])
    assert start(path, "--start", "unknown") is None
    late = write_npz(tmp_path, **edited("truth_t", 0, 1.5))
    assert start(late) is None
    blind = write_npz(tmp_path, {name: GOOD[name] for name in REQUIRED})
    assert start(blind) is None
    assert start(blind, "--start", "unknown") is None
    # Without truth: nulls, and the rest as ever.
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["methods"]["ekf"]
    for key in ("rmse_m", "position_nll", "nees", "converged_s"):
        assert scores[key] is None
    assert scores["log_score_per_range"] is not None
    assert sorted(os.listdir(tmp_path / "out")) == sorted(report.FILES)


@pytest.mark.parametrize("n", [1, 3, 100, 3529, 9999])
def test_the_first_ranges_are_those_of_the_whole_log(n):
    log = read_log()
    part = first_ranges(log, n)
    assert len(part.range_t) == len(part.range_m) == len(part.range_beacon) == min(n, 3529)
    for whole, cut in zip(segments(log), segments(part), strict=True):
        np.testing.assert_array_equal(whole[:n], cut)
    for whole, cut in zip(truth_at(log, log.range_t), truth_at(part, part.range_t), strict=True):
        np.testing.assert_array_equal(whole[:n], cut)
    # One step beyond the last range at most.
    assert len(part.odom_t) == len(part.odom_dist) == len(part.odom_dheading)
    assert np.sum(part.odom_t > part.range_t[-1]) <= 1
    assert part.truth_t is not None
    assert np.sum(part.truth_t > part.range_t[-1]) <= 1


def test_the_first_ranges_keep_steps_that_end_with_the_last(tmp_path):
    times = {**edited("odom_t", 2, 2.0), **edited("range_t", 3, 3.5)}
    log = read_log(write_npz(tmp_path, **times))
    for whole, cut in zip(segments(log), segments(first_ranges(log, 3)), strict=True):
        np.testing.assert_array_equal(whole[:3], cut)


# Refusals


TEXT = np.array(["a", "b", "c", "d"])
BAD_ARRAYS = {
    "missing array": ({"range_m": None}, "range_m"),
    "missing beacons": ({"beacon_xy": None}, "beacon_xy"),
    "wrong shape": ({"odom_dist": GOOD["odom_dist"][:, None]}, "odom_dist"),
    "wrong length": ({"odom_dheading": GOOD["odom_dheading"][:-1]}, "odom_dheading"),
    "wrong width": ({"beacon_xy": np.zeros((2, 3))}, "beacon_xy"),
    "text": ({"range_m": TEXT}, "range_m"),
    "objects": ({"range_m": TEXT.astype(object)}, "range_m"),
    "nan": (edited("odom_dist", 2, np.nan), "odom_dist"),
    "nan time": (edited("range_t", 1, np.nan), "range_t"),
    "infinite range": (edited("range_m", 1, np.inf), "range_m"),
    "infinite beacon": (edited("beacon_xy", 1, -np.inf), "beacon_xy"),
    "infinite truth": (edited("truth_xy", 1, np.inf), "truth_xy"),
    "unknown beacon": (edited("range_beacon", 2, 5), "range_beacon"),
    "negative range": (edited("range_m", 3, -0.5), "range_m"),
    "nothing but missing ranges": (edited("range_m", slice(None), np.nan), "range_m"),
    "no odometry": (
        {name: GOOD[name][:0] for name in ("odom_t", "odom_dist", "odom_dheading")},
        "odom_t",
    ),
    "no ranges": (
        {name: GOOD[name][:0] for name in ("range_t", "range_beacon", "range_m")},
        "range_t",
    ),
    "no beacons": ({name: GOOD[name][:0] for name in ("beacon_id", "beacon_xy")}, "beacon_id"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_array_is_refused(tmp_path, capsys, starts, kind):
    changes, field = BAD_ARRAYS[kind]
    path = write_npz(tmp_path, **changes)
    line = refused(capsys, path, "--out", tmp_path / "out")
    assert line.startswith(f"{path}: {field}")
    assert starts == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "text", "field"),
    [
        ("odometry", "t,dist,dheading\n1,fast,0\n", "dist, line 2: 'fast'"),
        ("odometry", "t,dist,dheading\n1,nan,0\n", "dist, line 2: nan"),
        ("odometry", "t,dist,dheading\n", "t: empty"),
        ("odometry", "", "t: no such column"),
        ("odometry", "t,dist\n1,2\n", "dheading: no such column"),
        ("odometry", "t,dist,dheading\n1,2\n", "t, line 2: 2 cells"),
        ("ranges", "t,beacon,range\n1,9,3\n", "beacon, line 2: 9"),
        ("ranges", "t,beacon,range\n1,7,-3\n", "range, line 2: -3"),
        ("ranges", "t,beacon,range\ninf,7,3\n", "t, line 2: inf"),
        ("beacons", "id,x,y\none,2,3\n", "id, line 2: 'one'"),
        ("truth", "t,x,y,heading\n1,2,,0\n", "y, line 2: ''"),
    ],
)
def test_bad_table_is_refused(tmp_path, capsys, starts, table, text, field):
    path = write_csv(tmp_path) / f"{table}.csv"
    path.write_text(text)
    assert refused(capsys, tmp_path, "--out", tmp_path / "out").startswith(f"{path}: {field}")
    assert starts == []
    assert not (tmp_path / "out").exists()


def test_missing_damaged_or_foreign_log_is_refused(tmp_path, capsys, starts):
    out = tmp_path / "out"
    nowhere = tmp_path / "nowhere.npz"
    assert refused(capsys, nowhere, "--out", out).startswith(f"{nowhere}: No such file")
    log = write_npz(tmp_path)
    log.write_bytes(log.read_bytes()[:-100])
    assert refused(capsys, log, "--out", out).startswith(f"{log}: not an .npz archive")
    log.write_bytes(b"")
    assert refused(capsys, log, "--out", out).startswith(f"{log}: not an .npz archive")
    folder = tmp_path / "folder"
    folder.mkdir()
    table = folder / "odometry.csv"
    assert refused(capsys, folder, "--out", out).startswith(f"{table}: No such file")
    table.mkdir()
    assert refused(capsys, folder, "--out", out).startswith(f"{table}: Is a directory")
    assert starts == []
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_permissions_are_respected(tmp_path, capsys, starts):
    log, locked = write_npz(tmp_path), tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for out in (locked, locked / "out"):
        assert refused(capsys, log, "--out", out).startswith(f"{out}: --out: Permission denied")
    log.chmod(0)
    line = refused(capsys, log, "--out", tmp_path / "out")
    assert line.startswith(f"{log}: Permission denied")
    assert starts == []


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, starts):
    log, file = write_npz(tmp_path), tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "out", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        assert refused(capsys, log, "--out", out).startswith(f"{out}: --out: ")
    out = tmp_path / "out"
    (out / "track.csv").mkdir(parents=True)
    line = refused(capsys, log, "--out", out)
    assert line.startswith(f"{out / 'track.csv'}: --out: Is a directory")
    assert os.listdir(out) == ["track.csv"]
    assert file.read_text() == "mine"
    assert starts == []


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, capsys, starts, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    log, out = write_npz(tmp_path), tmp_path / "out"
    monkeypatch.setattr(Path, "write_text", full)
    status, _, lines = fuse(capsys, log, "--out", out)
    assert status == 2
    assert lines == [
        f"bayesinf: error: {out}: --out: No space left on device; expected a writable folder"
    ]
    assert os.listdir(out) == []


def test_a_known_start_needs_truth_that_covers_it(tmp_path, capsys, starts):
    blind = {name: GOOD[name] for name in REQUIRED}
    late = GOOD | edited("truth_t", 0, 1.5) | edited("range_t", 0, 1.5)
    for arrays in (blind, late):
        path = write_npz(tmp_path, arrays)
        line = refused(capsys, path, "--start", "known", "--out", tmp_path / "out")
        assert line.startswith(f"{path}: --start known: no truth at the start, 0 s; expected")
    assert starts == []
    assert not (tmp_path / "out").exists()


def test_what_was_repaired_is_a_warning(tmp_path, capsys, starts):
    order = [2, 0, 3, 1]
    shuffled = {name: GOOD[name][order] for name in ("odom_t", "odom_dist", "odom_dheading")}
    path = write_npz(tmp_path, **shuffled, **edited("range_m", 1, np.nan))
    status, _, lines = fuse(capsys, path, "--out", tmp_path / "out")
    assert status == 0
    assert [line.split(": ")[:4] for line in lines] == [
        ["bayesinf", "warning", str(path), field] for field in ("odom_t", "range_m")
    ]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(report.FILES)


# Training


def trainer(calls: list, error: Exception | None = None, network=None):
    def run(key, *, checkpoint=None):
        calls.append((key, checkpoint))
        if error is not None:
            raise error
        scores = np.array([np.nan, 2.0, 1.5, 1.75])
        return network, History(scores, scores, np.array([0, 1, 0, 2]))

    return run


def test_train_saves_the_network_with_what_made_it(tmp_path, capsys, monkeypatch):
    calls, out, checkpoint = [], tmp_path / "new" / "net", tmp_path / "check" / "point"
    network = DistributionTransformer(
        jax.random.key(0), 6, ("range",), width=4, num_blocks=1, num_heads=1
    )
    monkeypatch.setattr(train, "train_robot", trainer(calls, None, network))
    options = ["--out", str(out), "--seed", "3", "--checkpoint", str(checkpoint)]
    assert main(["train", "robot", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    ((key, given),) = calls
    assert jax.random.key_data(key).tolist() == [0, 3]
    assert Path(given) == checkpoint
    header = zoo.describe(out)
    assert header["command"] == "bayesinf train robot --seed 3"
    assert "simulated" in header["trained_on"]
    assert header["figures"]["validation_loss"] == 1.5
    assert header["figures"]["skipped_steps"] == 3
    assert eqx.tree_equal(zoo.load(out), network)


def test_train_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    calls, file = [], tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setattr(train, "train_range_bearing", trainer(calls))
    for option in ("--out", "--checkpoint"):
        out = [] if option == "--out" else ["--out", str(tmp_path / "net")]
        for path in (file / "net", tmp_path):
            assert main(["train", "range-bearing-4d", *out, option, str(path)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("bayesinf: error: ")
            assert f": {option}: " in line
    for arguments in (["nonsense"], [], ["robot", "--seed", "-1"], ["robot", "--seed", "one"]):
        with pytest.raises(SystemExit) as caught:
            main(["train", *arguments])
        assert caught.value.code == 2
    assert calls == []
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.mark.parametrize(
    "error",
    [ValueError("checkpoint: damaged"), FloatingPointError("no finite loss"), OSError("full")],
)
def test_training_that_fails_is_one_line(tmp_path, capsys, monkeypatch, error):
    monkeypatch.setattr(train, "train_robot", trainer([], error))
    out = tmp_path / "net"
    assert main(["train", "robot", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"bayesinf: error: train robot: {error}\n"
    assert not out.exists()


# The door


def test_help_loads_neither_jax_nor_matplotlib():
    script = """
import sys
from bayesinf.cli import main
try:
    main(["fuse", "--help"])
except SystemExit as end:
    print(end.code, [name for name in ("jax", "matplotlib", "numpyro") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "--start" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
