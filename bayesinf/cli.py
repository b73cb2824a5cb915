"""The command line: `bayesinf fuse` localises a robot, `validate` checks laws, `train` makes a
shipped network, `reproduce` reruns a paper's experiment."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bayesinf.fusion.log import Log, first_ranges, truth_at
from bayesinf.fusion.read import SHIPPED, LogError, read_log

QUICK_RANGES = 800
TRAINED_ON = {
    "robot": (
        "simulated logs of a wheeled robot among beacons, with random layouts, noises, biases, "
        "gaps, outliers, speeds and pauses"
    ),
    "range-bearing-4d": "simulated series of the range-bearing tracking problem, 100 steps each",
}
# Experiments by name, in folders of the repository that are no part of the installed package.
EXPERIMENTS = {"inverse-gamma": "inverse_gamma", "quantum": "quantum"}
FOLDER = Path(__file__).parents[1] / "experiments"


class CommandError(ValueError):
    """A command that cannot be carried out; one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the command line `argv`: 2 for bad input, after one line."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except (LogError, CommandError) as error:
        print(f"bayesinf: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bayesinf", description="Approximate Bayesian inference.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fuse = commands.add_parser(
        "fuse",
        help="localise a robot from its odometry and ranges",
        description="Localises a robot from its odometry and ranges, and compares the methods.",
    )
    fuse.set_defaults(command=_fuse)
    fuse.add_argument(
        "log",
        metavar="LOG",
        nargs="?",
        help="an .npz archive, or a folder with odometry.csv, ranges.csv, beacons.csv and "
        "optionally truth.csv (default: the log of a robot mower that ships)",
    )
    fuse.add_argument(
        "--start",
        choices=["unknown", "known"],
        help="whether the first pose is told (default: known if the truth covers it)",
    )
    fuse.add_argument(
        "--out",
        metavar="DIR",
        help="where track.csv, summary.json and track.png go (default: out/ and the log's name)",
    )
    fuse.add_argument("--quick", action="store_true", help=f"only the first {QUICK_RANGES} ranges")

    validate = commands.add_parser(
        "validate",
        help="check that a block keeps its law",
        description="Checks a law exactly, on finite problems, and statistically. The exit status "
        "is 0 if it holds, 1 if it is refuted, 2 if it cannot be decided.",
    )
    validate.set_defaults(command=_validate)
    validate.add_argument(
        "block",
        metavar="FILE.py:NAME",
        nargs="?",
        help="a kernel (init, step), or a factory make(log_probs) -> step(key, x)",
    )
    validate.add_argument("--law", default="invariant", help="(default: invariant)")
    validate.add_argument("--states", metavar="K", type=int, help="(default: 2 and 3)")
    validate.add_argument("--json", metavar="OUT", help="where the table goes as JSON")
    validate.add_argument("--all", action="store_true", help="the package's own blocks")
    validate.add_argument("--full", action="store_true", help="on the whole grid of sizes")

    train = commands.add_parser(
        "train",
        help="train a shipped network again",
        description="Trains a shipped network again from a seed, on simulated data.",
    )
    train.set_defaults(command=_train)
    train.add_argument("network", choices=list(TRAINED_ON))
    train.add_argument(
        "--out", metavar="FILE", help="where the network goes (default: out/ and its name)"
    )
    train.add_argument("--seed", metavar="N", type=_seed, default=0, help="(default: 0)")
    train.add_argument(
        "--checkpoint", metavar="FILE", help="written as it trains; a killed run goes on from it"
    )

    reproduce = commands.add_parser(
        "reproduce",
        help="rerun an experiment of the Distribution Transformer paper",
        description="Reruns an experiment of the Distribution Transformer paper, from training on, "
        "and prints the network beside its rivals, the paper's figures and the exact floor.",
    )
    reproduce.set_defaults(command=_reproduce)
    reproduce.add_argument("experiment", choices=list(EXPERIMENTS))
    reproduce.add_argument(
        "--quick", action="store_true", help="with the weights of the repository: two minutes"
    )
    reproduce.add_argument(
        "--out",
        metavar="DIR",
        help="where result.json and the figures go (default: out/ and the experiment's name)",
    )
    return parser


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{seed}; expected 0 to {2**32 - 1}")
    return seed


def _fuse(arguments: argparse.Namespace) -> None:
    log = read_log(arguments.log)
    for warning in log.warnings:
        print(f"bayesinf: warning: {warning}", file=sys.stderr)
    if arguments.quick:
        log = first_ranges(log, QUICK_RANGES)
    pose = None if arguments.start == "unknown" else _true_start(log)
    if arguments.start == "known" and pose is None:
        raise CommandError(
            f"{arguments.log or SHIPPED}: --start known: no truth at the start, "
            f"{log.start_t:.10g} s; expected truth that covers it, or --start unknown"
        )
    out = Path("out", log.name) if arguments.out is None else Path(arguments.out)

    from bayesinf.fusion import methods, report
    from bayesinf.plots.fusion import track_figure

    _check_writable(out, report.FILES, "--out")
    _keep_compiled_programs()
    tracks = methods.run_methods(log, pose)
    summary = report.summary(log, "unknown" if pose is None else "known", tracks)
    print(report.table(summary))
    try:
        report.write(out, log, tracks, summary, track_figure(log, tracks, summary))
    except OSError as error:
        came = error.strerror or error
        raise CommandError(f"{out}: --out: {came}; expected a writable folder") from error
    print("\n" + "\n".join(str(out / name) for name in report.FILES))


def _keep_compiled_programs() -> None:
    """Keeps what JAX compiles in the user's cache folder, so that a second run need not again."""
    import jax

    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(home, "bayesinf")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _true_start(log: Log) -> np.ndarray | None:
    """Returns the true pose (x m, y m, heading rad) at the log's start, None if it is unknown."""
    if log.truth_t is None:
        return None
    xy, heading = truth_at(log, np.array([log.start_t]))
    pose = np.array([*xy[0], heading[0]])
    return None if np.isnan(pose).any() else pose


def _validate(arguments: argparse.Namespace) -> int:
    if arguments.all == (arguments.block is not None):
        raise CommandError("validate: either FILE.py:NAME or --all was expected")
    if arguments.states is not None and not 2 <= arguments.states <= 6:
        raise CommandError(f"--states: {arguments.states} came, 2 to 6 was expected")
    if arguments.json is not None:
        _check_writable(Path(arguments.json).parent, (Path(arguments.json).name,), "--json")

    import jax

    jax.config.update("jax_enable_x64", True)
    reports = _check_all(arguments.full) if arguments.all else [_check_one(arguments)]
    if arguments.json is not None:
        table = json.dumps([report.row() for report in reports], indent=2)
        Path(arguments.json).write_text(table + "\n", encoding="utf-8")
    verdicts = {report.verdict for report in reports}
    return 1 if "refuted" in verdicts else 2 if "refused" in verdicts else 0


def _check_one(arguments: argparse.Namespace):
    from bayesinf.validation.user import LAWS, check_user, load_block

    if arguments.law not in LAWS:
        known = ", ".join(LAWS)
        raise CommandError(f"--law: {arguments.law!r} came, one of {known} was expected")
    try:
        block = load_block(arguments.block)
        name = arguments.block.rpartition(":")[2]
        report = check_user(block, LAWS[arguments.law], name, arguments.states)
    except ValueError as error:
        raise CommandError(str(error)) from error
    print(report)
    return report


def _check_all(full: bool):
    from tqdm import tqdm

    from bayesinf import laws

    rows = laws.rows(laws.FULL if full else laws.QUICK)
    reports = [row.run(len(rows)) for row in tqdm(rows, unit="block")]
    head = f"{'error':>9}{'evidence':>11}{'|z|':>7}{'finds':>9}  verdict"
    print(f"{'block':42}{'law':12}{'mode':13}{head}")
    for report in reports:
        numbers = (report.exact_error, report.statistical_z, report.detectable)
        error, z, finds = ("-" if number is None else f"{number:.2g}" for number in numbers)
        bias = report.evidence_bias_percent
        # A kernel moves a state and has no evidence to lose.
        moves = bias is None or report.law == "invariant"
        evidence = "-" if moves else f"{bias:+.2g} %"
        line = f"{report.block:42}{report.law:12}{report.mode:13}{error:>9}{evidence:>11}{z:>7}"
        print(f"{line}{finds:>9}  {report.verdict}  {report.reason}".rstrip())
    return reports


def _train(arguments: argparse.Namespace) -> None:
    name = arguments.network
    out = Path("out", f"{name}.npz") if arguments.out is None else Path(arguments.out)
    _check_writable(out.parent, (out.name,), "--out")
    if arguments.checkpoint is not None:
        checkpoint = Path(arguments.checkpoint)
        _check_writable(checkpoint.parent, (checkpoint.name,), "--checkpoint")

    import jax

    from bayesinf.fusion.train import train_range_bearing, train_robot
    from bayesinf.transformers_gmm import zoo

    run = {"robot": train_robot, "range-bearing-4d": train_range_bearing}[name]
    start = time.perf_counter()
    try:
        network, history = run(jax.random.key(arguments.seed), checkpoint=arguments.checkpoint)
        figures = {
            "validation_loss": float(np.nanmin(history.score)),
            "chunks": len(history.score),
            "skipped_steps": int(np.sum(history.skipped)),
            "minutes": round((time.perf_counter() - start) / 60, 1),
        }
        command = f"bayesinf train {name} --seed {arguments.seed}"
        trained_on = TRAINED_ON[name]
        zoo.save(out, network, trained_on=trained_on, command=command, figures=figures)
    except (OSError, ValueError, FloatingPointError) as error:
        raise CommandError(f"train {name}: {error}") from error
    print(", ".join(f"{figure.replace('_', ' ')} {value:g}" for figure, value in figures.items()))
    print(out)


def _reproduce(arguments: argparse.Namespace) -> int:
    folder = EXPERIMENTS[arguments.experiment]
    script = FOLDER / folder / "run.py"
    if not script.exists():
        raise CommandError(
            f"reproduce: {script} came, a file was expected; experiments are in the repository, "
            "not in the installed package"
        )
    out = Path("out", folder) if arguments.out is None else Path(arguments.out)
    _check_writable(out, ("result.json",), "--out")
    options = ["--quick"] if arguments.quick else []
    # A process of its own: an experiment's modules are found beside its script.
    command = [sys.executable, str(script), "--out", str(out), *options]
    return subprocess.run(command, check=False).returncode


def _check_writable(folder: Path, files: Sequence[str], option: str) -> None:
    """Makes the folder and checks that the files can be written, before the work that fills it."""
    where = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for where in (folder / name for name in files):
            if where.is_dir():
                raise IsADirectoryError(0, "Is a directory")
    except (OSError, ValueError) as error:  # ValueError at a null byte in the name
        came = getattr(error, "strerror", None) or str(error)
        raise CommandError(f"{where}: {option}: {came}; expected a path to write to") from error
