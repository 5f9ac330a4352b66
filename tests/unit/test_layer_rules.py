"""The four layer rules hold, and each is shown to break on a violation planted in a copy."""

from __future__ import annotations

import ast
import importlib
import importlib.util
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


# the kit's surface


def _kit_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module of the kit, name) of all that a file takes from it, by an import or by an attribute of an imported module."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wherry.kit"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if importlib.util.find_spec(whole.rpartition(".")[0]) and _is_module(whole):
                    modules[alias.asname or alias.name] = whole
                else:
                    yield str(node.module), alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


def _is_module(name: str) -> bool:
    path = TOP / "core" / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def _beyond_the_surface(source: str) -> list[str]:
    return [
        f"{module}.{name}"
        for module, name in _kit_names(ast.parse(source))
        if name not in importlib.import_module(module).__all__
    ]


def _protected(classes: dict[str, ast.ClassDef], name: str) -> set[str]:
    """The underscored members of a class of the kit and of those that it is made from."""
    node = classes.get(name)
    if node is None:
        return set()
    own = {child.name for child in node.body if isinstance(child, ast.FunctionDef)} | _members(node)
    return {member for member in own if re.match(r"_[a-z]", member)}.union(
        *(_protected(classes, ast.unparse(base)) for base in node.bases)
    )


def _members(node: ast.ClassDef) -> set[str]:
    return {
        child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Attribute) and ast.unparse(child.value) in ("self", "super()")
    }


def _protected_of_the_kit(source: str) -> list[str]:
    """Underscored members of a class of the kit that a class made from it overrides or uses."""
    classes = {
        node.name: node
        for path in (TOP / "core/wherry/kit").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    return [
        f"{node.name}.{member}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        for member in _protected(classes, ast.unparse(base))
        if member in _members(node) | {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
    ]


def test_plugins_use_what_the_kit_exports() -> None:
    for path in (TOP / "plugins").rglob("*.py"):
        assert _beyond_the_surface(path.read_text()) == [], path
        assert _protected_of_the_kit(path.read_text()) == [], path


def test_what_the_kit_keeps_to_itself_is_found() -> None:
    assert _beyond_the_surface("from wherry.kit.networks.ports import _bound") == ["wherry.kit.networks.ports._bound"]
    assert _beyond_the_surface("from wherry.kit import fuse\nfuse.os") == ["wherry.kit.fuse.os"]
    used = "class Mine(StackedSnapshotter):\n    def f(self):\n        self._trash.empty()"
    assert _protected_of_the_kit(used) == ["Mine._trash"]


def test_every_module_of_the_kit_says_what_it_exports() -> None:
    for path in (TOP / "core/wherry/kit").rglob("*.py"):
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(TOP / "core").with_suffix("").parts)
            assert importlib.import_module(name).__all__, name
