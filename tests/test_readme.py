"""The README tells the truth: its example runs, and the files it names are there."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import bayesinf

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_example_runs():
    assert len(BLOCKS) == 1
    names = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    beliefs, baseline = names["beliefs"], names["baseline"]
    # The last two ranges cross at (1.625, 1.483), and only the first guess leads there; 0.3 m is
    # two standard deviations of the posterior.
    for filtered in (beliefs, baseline):
        assert filtered.means.shape == (3, 2, 2)
        assert jnp.exp(filtered.log_weights[-1, 0]) > 0.99
        assert jnp.linalg.norm(filtered.means[-1, 0] - jnp.array([1.625, 1.483])) < 0.3
    # Untrained or not, the network says something else than the linearised update.
    assert np.abs(beliefs.means - baseline.means).max() > 1e-3


def test_the_example_is_fifteen_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) == 15


def missing(text: str) -> list[str]:
    """Returns the relative links and the files in backquotes or in the map that are not there."""
    links = [path for path in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in path]
    files = re.findall(r"`((?:bayesinf|tests|docs)/[\w/.]+)`", text)
    folders = re.findall(r"^((?:bayesinf|tests|docs)/[\w/.]*)", text, re.MULTILINE)
    return sorted({path for path in (*links, *files, *folders) if not (ROOT / path).exists()})


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_named_files_are_there(name):
    assert missing((ROOT / name).read_text(encoding="utf-8")) == []


def test_the_look_for_files_sees_one_that_is_not_there():
    # Negative control.
    text = "[a](docs/none.md) `bayesinf/none.py`\nbayesinf/nowhere/   what it holds\n"
    assert missing(text) == ["bayesinf/none.py", "bayesinf/nowhere/", "docs/none.md"]


def test_the_version_is_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{bayesinf.__version__}]" in changelog
