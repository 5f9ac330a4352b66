"""What an import costs, counted in modules: times vary, these don't."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.shim import launch
from wherry.shim.boot import BOOT

TOP = Path(__file__).resolve().parents[2]
HEAVY = {
    "asyncio",
    "cattrs",
    "click",
    "loguru",
    "pyroute2",
    "rich",
    "urllib3",
    "apsw",
    "isal",
    "elftools",
    "ssl",
    "http",
    "email",
}
STDLIB_ONLY = HEAVY | {
    "attr",
    "attrs",
    "pluggy",
    "typing_extensions",
    "wherry_plugins",
    "dataclasses",
    "inspect",
    "logging",
}
MODULES = sorted(path.stem for path in (TOP / "core/wherry/shim").glob("*.py") if path.stem != "__init__")


def loaded(statement: str) -> set[str]:
    """The modules that a statement adds to a bare interpreter's."""
    code = f"import sys, json; bare = set(sys.modules); {statement}; json.dump(sorted(set(sys.modules) - bare), sys.stdout)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_wherry_costs_next_to_nothing() -> None:
    found = loaded("import wherry")
    assert {module for module in found if "wherry" in module} == {"wherry"}
    assert found - loaded("import __future__, typing") == {"wherry"}


def test_the_contract_is_light() -> None:
    found = loaded("import wherry.api")
    assert {module.partition(".")[0] for module in found} & HEAVY == set()
    assert {module for module in found if module.startswith("wherry.")} <= {
        "wherry.api", "wherry.errors", "wherry.hookspecs", "wherry.interfaces",
        *(f"wherry.interfaces.{path.stem}" for path in (TOP / "core/wherry/interfaces").glob("[a-z]*.py")),
    }  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_the_shim_loads_little(module: str) -> None:
    found = loaded(f"import wherry.shim.{module}")
    assert {name.partition(".")[0] for name in found} & STDLIB_ONLY == set()
    assert {name for name in found if name.startswith("wherry.")} <= {
        name for name in found if re.match(r"wherry\.(shim|oci|linux)\b", name)
    }


def test_the_process_of_the_shim_loads_no_more_than_it_uses() -> None:
    """As boot does it: by itself, ctypes of Python 3.14 would bring sysconfig and threading along, and json brings re."""
    code = BOOT.rpartition("; ")[0].replace("from wherry.shim.main import main", "import wherry.shim.main")
    code += "; print(*sorted(sys.modules))"
    argv = [sys.executable, "-I", "-S", "-c", code, str(TOP / "core"), "0"]
    found = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert "wherry.shim.server" in found
    assert (
        found & {"typing", "re", "threading", "json.encoder", "subprocess", "importlib", "weakref", *STDLIB_ONLY}
        == set()
    )


def test_bytecode_is_written_before_the_shim_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("linux", "oci", "shim"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "part.py").write_text("x = 1\n")
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "shim/launch.py"))
    launch.compile_ahead()
    made = sorted(tmp_path.glob("*/__pycache__/part.*.pyc"))
    assert len(made) == 3
    before = [path.stat().st_ino for path in made]
    launch.compile_ahead()
    assert [path.stat().st_ino for path in made] == before


def test_the_client_needs_the_standard_library_only() -> None:
    tree = ast.parse((TOP / "core/wherry/client/wherry").read_text())
    found = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert found <= sys.stdlib_module_names
    assert found & STDLIB_ONLY == set()


PLUGINS = sorted(
    path for path in (TOP / "plugins/wherry_plugins").glob("*/*") if path.suffix == ".py" and path.stem != "__init__"
)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_plugin_module_is_cheap(path: Path) -> None:
    found = loaded(f"import wherry_plugins.{path.parent.name}.{path.stem}")
    heavy = {"asyncio", "cattrs", "loguru", "pyroute2", "rich", "urllib3", "elftools", "apsw"}
    assert {name.partition(".")[0] for name in found} & heavy == set()
