"""Imports go one way: the package's source is parsed and held against the table of the design."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import bayesinf

PACKAGE = Path(bayesinf.__file__).parent

_LINE = ("types", "linalg", "distributions", "programs")
_CHECKED = (*_LINE, "kalman", "diagnostics")
_BELOW_TRUST = (
    *(*_CHECKED, "validation", "mcmc", "smc", "training"),
    *("transformers_gmm", "meta_niw"),
)
_NETWORK = (*_LINE, "kalman", "training")

# What each part of the package may import, beside itself; docs/design.md says it in words.
MAY_IMPORT = {
    "types": (),
    "linalg": (),
    "distributions": ("types", "linalg"),
    "programs": ("types", "linalg", "distributions"),
    "kalman": _LINE,
    "diagnostics": _LINE,
    "validation": _CHECKED,
    "mcmc": (*_CHECKED, "validation"),
    "smc": (*_CHECKED, "validation", "mcmc"),
    "laws": _BELOW_TRUST,
    "training": ("types",),
    "transformers_gmm": _NETWORK,
    "meta_niw": (*_NETWORK, "mcmc"),
    "trust": _BELOW_TRUST,
    "fusion": (*_BELOW_TRUST, "trust"),
    "reproduce": (*_BELOW_TRUST, "trust"),
    "plots": (*_BELOW_TRUST, "trust", "fusion", "reproduce"),
    "cli": (*_BELOW_TRUST, "trust", "fusion", "plots", "laws", "reproduce"),
}

# The parts that may load a slow library when they are themselves loaded; `import bayesinf` loads
# none of them.
MAY_LOAD = {"numpyro": ("fusion", "plots", "cli"), "matplotlib": ("plots", "cli")}
PICKLES = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve")


class Import(NamedTuple):
    """One imported name: its full path, its line, and whether loading the file imports it."""

    path: str
    line: int
    at_load: bool


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Yields every name that a file imports, also inside functions; relative ones made absolute."""

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                keep = len(module.split(".")) - node.level + is_package
                base = ".".join([*module.split(".")[:keep], *filter(None, [node.module])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, at_load)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_load = False
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, at_load)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load)

    yield from visit(tree, True)


def read(root: Path) -> tuple[dict[str, ast.Module], dict[str, list[Import]], dict[str, str]]:
    """Returns, by dotted name, the trees, the imports and the relative paths of a package."""
    trees, found, paths = {}, {}, {}
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root.parent)
        is_package = file.name == "__init__.py"
        parts = relative.parent.parts if is_package else relative.with_suffix("").parts
        name = ".".join(parts)
        trees[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
        found[name] = list(imports(trees[name], name, is_package))
        paths[name] = relative.as_posix()
    return trees, found, paths


def target(path: str, modules) -> str | None:
    """Returns the module of the package that an imported path names or lies in."""
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path or None


def part(module: str) -> str:
    """Returns the subpackage or top-level module that a dotted name belongs to, '' for the root."""
    return [*module.split("."), ""][1]


def violations(root: Path) -> list[str]:
    """Returns one line for every breach of the rules in the package at `root`."""
    trees, found, paths = read(root)
    return sorted(
        [
            *wrong_directions(root.name, found, paths),
            *cycles(found),
            *slow_loads(found, paths),
            *pickles(trees, found, paths),
        ]
    )


def wrong_directions(name, found, paths) -> Iterator[str]:
    for module, names in found.items():
        mine = part(module)
        if not mine:
            # The root loads nothing of its own, so that importing a part loads only that part.
            for each in names:
                if each.at_load and each.path.split(".")[0] == name:
                    yield f"{paths[module]}:{each.line}: the root loads {each.path}"
            continue
        if mine not in MAY_IMPORT:
            yield f"{paths[module]}: {mine} has no place in the table"
            continue
        for each in names:
            if each.path.split(".")[0] != name:
                continue
            theirs = part(each.path)
            if theirs not in (mine, *MAY_IMPORT[mine]):
                yield f"{paths[module]}:{each.line}: {mine} imports {theirs or 'the root'}"


def cycles(found) -> Iterator[str]:
    """Yields each circle of modules that load each other; lazy imports close none."""
    edges = {
        module: sorted({target(each.path, found) for each in names if each.at_load} - {None})
        for module, names in found.items()
    }
    done: set[str] = set()

    def visit(module, trail) -> Iterator[str]:
        if module in trail:
            circle = trail[trail.index(module) :]
            yield "cycle: " + " -> ".join([*circle, module])
        elif module not in done:
            for other in edges[module]:
                yield from visit(other, [*trail, module])
            done.add(module)

    for module in edges:
        yield from visit(module, [])


def slow_loads(found, paths) -> Iterator[str]:
    """Yields the modules that load a slow library, on their own or through others, and may not."""
    for library, loaders in MAY_LOAD.items():
        memo: dict[str, bool] = {}

        def loads(module, library=library, memo=memo) -> bool:
            if module not in memo:
                memo[module] = False  # a cycle, reported elsewhere, ends here
                names = [each.path for each in found[module] if each.at_load]
                others = {target(path, found) for path in names} - {None}
                # To load a module is to load the packages around it, but not one's own.
                around = {parent for other in others for parent in packages(other)}
                around -= {module, *packages(module)}
                memo[module] = any(path.split(".")[0] == library for path in names) or any(
                    loads(other) for other in (others | around) if other in found
                )
            return memo[module]

        for module in found:
            bridge = library == "numpyro" and module.endswith(".numpyro")
            if part(module) not in loaders and not bridge and loads(module):
                yield f"{paths[module]}: loads {library}"
    for module, names in found.items():
        for each in names:
            if each.path.split(".")[0] == "matplotlib" and part(module) != "plots":
                yield f"{paths[module]}:{each.line}: matplotlib outside plots/"


def packages(module: str) -> list[str]:
    steps = module.split(".")
    return [".".join(steps[:i]) for i in range(1, len(steps))]


def pickles(trees, found, paths) -> Iterator[str]:
    for module, tree in trees.items():
        for each in found[module]:
            if each.path.split(".")[0] in PICKLES:
                yield f"{paths[module]}:{each.line}: imports {each.path.split('.')[0]}"
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                value = node.value
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{paths[module]}:{value.lineno}: allow_pickle={ast.unparse(value)}"


def quiet_modules() -> list[str]:
    """Returns the modules of the package that load neither NumPyro nor Matplotlib."""
    _, found, _ = read(PACKAGE)
    loud = {*MAY_LOAD["numpyro"], *MAY_LOAD["matplotlib"]}
    return [m for m in found if part(m) not in loud and not m.endswith(".numpyro")]


def test_the_package_obeys_the_table():
    assert violations(PACKAGE) == []


def test_import_loads_no_slow_library():
    # In a process of its own: here NumPyro may long be loaded. The second half sees what parsing
    # cannot, a lazy attribute asked for at module level.
    script = f"""
import sys
def heavy():
    wanted = ("numpyro", "matplotlib", "bayesinf.fusion", "bayesinf.plots")
    return [name for name in wanted if name in sys.modules]
import bayesinf
print(heavy())
import importlib
for name in {quiet_modules()!r}:
    importlib.import_module(name)
print(heavy())
bayesinf.distributions.wrap
print(heavy())
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # The last line is the control: the look at sys.modules sees NumPyro once it is there.
    assert result.stdout.splitlines() == ["[]", "[]", "['numpyro']"]


def test_every_listed_name_is_there():
    for name in bayesinf.__all__:
        assert getattr(bayesinf, name).__name__ == f"bayesinf.{name}"
        assert name in dir(bayesinf)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bayesinf.nonsense  # noqa: B018
    assert bayesinf.__version__


def write(root: Path, files: dict[str, str]) -> Path:
    """Writes a small package `p` whose parts obey the table, changed by `files`."""
    clean = {
        "__init__.py": "",
        "types.py": "import jax\n",
        "linalg.py": "",
        "distributions/__init__.py": "from p.distributions.gmm import Mixture\n",
        "distributions/gmm.py": (
            "from p.types import Key\n\n"
            "class Mixture:\n"
            "    def to_numpyro(self):\n"
            "        from p.distributions.numpyro import convert\n"
        ),
        "distributions/numpyro.py": "import numpyro\nfrom p.distributions.gmm import Mixture\n",
        "programs/__init__.py": "",
        "programs/model.py": "from ..distributions import gmm\nfrom .numpy import x\n",
        "programs/numpy.py": "import numpy as np\nnp.load('f', allow_pickle=False)\n",
        "fusion/__init__.py": "import numpyro.distributions as dist\n",
        "plots/__init__.py": "import matplotlib.pyplot as plt\n",
    }
    for name, text in (clean | files).items():
        path = root / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "p"


def test_the_checker_passes_a_package_that_obeys(tmp_path):
    assert violations(write(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            {"types.py": "from p.programs import numpy\n"},
            ["p/types.py:1: types imports programs"],
        ),
        # A lazy import goes the wrong way as well.
        (
            {"linalg.py": "def f():\n    import p.distributions.gmm\n"},
            ["p/linalg.py:2: linalg imports distributions"],
        ),
        (
            {"distributions/gmm.py": "from ..programs.numpy import x\n"},
            ["p/distributions/gmm.py:1: distributions imports programs"],
        ),
        ({"linalg.py": "import p\n"}, ["p/linalg.py:1: linalg imports the root"]),
        (
            {"transformers_gmm/a.py": "import p.meta_niw.b\n", "meta_niw/b.py": "\n"},
            ["p/transformers_gmm/a.py:1: transformers_gmm imports meta_niw"],
        ),
        (
            {"meta_niw/b.py": "import p.transformers_gmm.a\n", "transformers_gmm/a.py": "\n"},
            ["p/meta_niw/b.py:1: meta_niw imports transformers_gmm"],
        ),
        ({"odd.py": ""}, ["p/odd.py: odd has no place in the table"]),
        ({"__init__.py": "from p import types\n"}, ["p/__init__.py:1: the root loads p.types"]),
        (
            {"programs/numpy.py": "import p.programs.model\n"},
            ["cycle: p.programs.model -> p.programs.numpy -> p.programs.model"],
        ),
        # Through the package's own face.
        (
            {"distributions/gmm.py": "from p.distributions import Mixture\n"},
            ["cycle: p.distributions -> p.distributions.gmm -> p.distributions"],
        ),
        (
            {"programs/numpy.py": "import numpyro\n"},
            ["p/programs/model.py: loads numpyro", "p/programs/numpy.py: loads numpyro"],
        ),
        (
            {"programs/numpy.py": "from p.distributions.numpyro import convert\n"},
            ["p/programs/model.py: loads numpyro", "p/programs/numpy.py: loads numpyro"],
        ),
        (
            {"programs/numpy.py": "class A:\n    try:\n        import numpyro\n    finally: 1\n"},
            ["p/programs/model.py: loads numpyro", "p/programs/numpy.py: loads numpyro"],
        ),
        (
            {"programs/numpy.py": "def f():\n    from matplotlib import pyplot\n"},
            ["p/programs/numpy.py:2: matplotlib outside plots/"],
        ),
        (
            {"fusion/__init__.py": "import matplotlib\n"},
            [
                "p/fusion/__init__.py: loads matplotlib",
                "p/fusion/__init__.py:1: matplotlib outside plots/",
            ],
        ),
        ({"linalg.py": "def f():\n    import pickle\n"}, ["p/linalg.py:2: imports pickle"]),
        (
            {"linalg.py": "import numpy as np\nnp.load('f', allow_pickle=True)\n"},
            ["p/linalg.py:2: allow_pickle=True"],
        ),
        (
            {"linalg.py": "import numpy as np\nnp.load('f', allow_pickle=flag)\n"},
            ["p/linalg.py:2: allow_pickle=flag"],
        ),
    ],
)  # fmt: skip
def test_the_checker_sees_a_breach(tmp_path, files, lines):
    assert violations(write(tmp_path, files)) == lines
