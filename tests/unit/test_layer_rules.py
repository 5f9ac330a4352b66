"""The four layer rules hold, and each is shown to break on a violation planted in a copy."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).parent / "lint-imports"

#: contract id -> (file, a line that breaks it), more than one way each where there is more than one.
VIOLATIONS = [
    ("kernel-names-no-driver", "core/wherry/kernel/planted.py", "import wherry_plugins.store"),
    ("kernel-names-no-driver", "core/wherry/engine/planted.py", "from wherry_plugins.snapshotter import planted"),
    ("plugins-use-the-contract", "plugins/wherry_plugins/store/planted.py", "import wherry.kernel"),
    (
        "plugins-use-the-contract",
        "plugins/wherry_plugins/store/planted.py",
        "def late():\n    from wherry.engine import planted",
    ),
    ("plugins-use-the-contract", "plugins/wherry_plugins/store/planted.py", "import wherry.shim"),
    ("plugins-apart", "plugins/wherry_plugins/store/planted.py", "import wherry_plugins.network.planted"),
    ("plugins-apart", "plugins/wherry_plugins/store/planted.py", "import wherry_plugins.store.planted2"),
    ("shim-stays-small", "core/wherry/shim/planted.py", "import wherry.errors"),
    ("shim-stays-small", "core/wherry/linux/planted.py", "from wherry.interfaces import common"),
    ("shim-stays-small", "core/wherry/oci/planted.py", "import attrs"),
    ("shim-stays-small", "core/wherry/oci/planted.py", "def late():\n    import pyroute2"),
]
#: What the planted lines name exists, so that the import graph has it.
OTHERS = (
    "core/wherry/engine/planted.py",
    "plugins/wherry_plugins/network/planted.py",
    "plugins/wherry_plugins/snapshotter/planted.py",
    "plugins/wherry_plugins/store/planted2.py",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two source roots and the configuration, by themselves."""
    top = tmp_path_factory.mktemp("layers")
    for root in ("core", "plugins"):
        shutil.copytree(TOP / root, top / root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", top)
    return top


def lint(top: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": f"{top / 'core'}:{top / 'plugins'}", "COLUMNS": "200"}
    command = [LINT, "--no-cache", "--no-logo", *options]
    return subprocess.run(command, cwd=top, env=environ, capture_output=True, text=True, check=False)


def test_the_rules_hold(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "file", "line"), VIOLATIONS)
def test_a_violation_is_found(copy: Path, contract: str, file: str, line: str) -> None:
    made = []
    for path in (file, *OTHERS):
        if not (copy / path).exists():
            (copy / path).write_text(line + "\n" if path == file else "")
            made.append(copy / path)
    try:
        done = lint(copy, "--contract", contract)
    finally:
        for path in made:
            path.unlink()
    assert done.returncode == 1, done.stdout
    assert "0 kept, 1 broken" in done.stdout
    assert "planted" in done.stdout.partition("Broken contracts")[2]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, in functions too, less those under TYPE_CHECKING."""
    tree = ast.parse(file.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names]
            if (node.module, names) != ("wherry", ["__version__"]):  # a string, all that the package itself holds
                yield node.lineno, node.module


@pytest.mark.parametrize("package", ["linux", "oci", "shim"])
def test_the_shim_side_needs_nothing_but_the_standard_library(package: str) -> None:
    allowed = ("wherry.linux", "wherry.oci", "wherry.shim")
    found = [
        f"{file.relative_to(TOP)}:{line}: {name}"
        for file in (TOP / "core/wherry" / package).rglob("*.py")
        for line, name in imports(file)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not f"{name}.".startswith(tuple(f"{a}." for a in allowed))
    ]
    assert found == []


def test_the_contract_names_every_dependency() -> None:
    """A dependency added to the project is added to what the shim side must not import."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    dependencies = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in project["project"]["dependencies"]}
    modules = {
        "attrs": {"attr", "attrs"},
        "backports.zstd": {"backports"},
        "cattrs": {"cattr", "cattrs"},
        "pyelftools": {"elftools"},
    }
    needed = set().union(*(modules.get(name, {name.replace("-", "_")}) for name in dependencies))
    (shim,) = [
        contract for contract in project["tool"]["importlinter"]["contracts"] if contract["id"] == "shim-stays-small"
    ]
    assert needed <= set(shim["forbidden_modules"]), "add it to the contract shim-stays-small in pyproject.toml"
