"""A user's own function, from a file to a report."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from bayesinf.types import Kernel, Law, calibrated, invariant, preserves, proper
from bayesinf.validation.calibration import finite_inferences
from bayesinf.validation.check import check
from bayesinf.validation.problems import (
    STATES,
    finite_programs,
    finite_targets,
    weighted_particles,
)
from bayesinf.validation.report import Report

PROBLEMS = {
    invariant: finite_targets,
    preserves: weighted_particles,
    proper: finite_programs,
    calibrated: finite_inferences,
}
LAWS = {law.name: law for law in PROBLEMS}


def load_block(spec: str) -> Any:
    """Returns what `FILE.py:NAME` names.

    Raises:
        ValueError: no such file or name, or the file does not run.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise ValueError(f"{spec!r} came, FILE.py:NAME was expected")
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file; FILE.py:NAME was expected")
    loader = importlib.util.spec_from_file_location(Path(file).stem, file)
    if loader is None or loader.loader is None:
        raise ValueError(f"{file}: a file of Python was expected")
    module = importlib.util.module_from_spec(loader)
    # The file's own neighbours are found, as when it is run.
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}: does not run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        known = ", ".join(each for each in vars(module) if not each.startswith("_"))
        raise ValueError(f"{file}: no {name!r} in it; it has {known}")
    return getattr(module, name)


def check_user(block: Any, law: Law, name: str, num_states: int | None = None) -> Report:
    """Returns the report of a user's block, on targets with `num_states` states, or 2 and 3.

    Raises:
        ValueError: the block is not what the law is about.
    """
    if inspect.isclass(block):
        raise ValueError(f"{name}: a class came, an object of it or a function was expected")
    if not isinstance(block, Kernel) and not callable(block):
        raise ValueError(f"{name}: {type(block).__name__} came, a kernel or function was expected")
    if isinstance(block, Kernel) and len(inspect.signature(block.step).parameters) != 3:
        raise ValueError(
            f"{name}.step: step(key, target, state) was expected, so that its target can be "
            "chosen; for another signature give a factory make(log_probs) -> step(key, x)"
        )
    states = STATES if num_states is None else (num_states,)
    return check(block, law, PROBLEMS[law](states), name=name)
