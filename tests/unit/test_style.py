"""House rules that no linter knows."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry import errors

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(TOP / "core").rglob("*.py"), *(TOP / "plugins").rglob("*.py"), TOP / "core/wherry/client/wherry"])
SHELL = [TOP / "contrib/setup", TOP / ".ci/run"]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(TOP))


def test_nothing_is_left_unfinished() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    lines = [(name(path), line) for path in SOURCES for line in path.read_text().splitlines()]
    assert [f"{path}: {line}" for path, line in lines if marks.search(line)] == []


def test_a_file_is_about_one_noun() -> None:
    long = {name(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in long.items() if lines > 500} == {}, "split by noun"


def test_a_module_says_what_it_is() -> None:
    modules = {name(path): parsed(path) for path in SOURCES if path.suffix == ".py"}
    assert [path for path, tree in modules.items() if tree.body and not ast.get_docstring(tree)] == []


#: Names of the fields of an image's config, which an error quotes as they are (OCI image-spec, config.md).
FIELDS = ("Cmd ", "Entrypoint ", "Env ", "Labels ", "User ", "WorkingDir ")


def texts(call: ast.Call) -> Iterator[str]:
    """The literal beginnings and ends of what, cause and hint."""
    for argument in call.args[:3]:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value
        elif isinstance(argument, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in argument.values]
            yield "".join(str(part) for part in parts)


def test_error_texts_are_lower_case_without_a_full_stop() -> None:
    bad = []
    for path in SOURCES:
        if path.suffix != ".py":
            continue
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called not in errors.CLASSES:
                continue
            bad += [
                f"{name(path)}:{node.lineno}: {text}"
                for text in texts(node)
                if (text.endswith(".") and not text.endswith("..."))
                or (re.match(r"[A-Z][a-z]+ ", text) and not text.startswith(FIELDS))
            ]
    assert bad == []


#: What is quoted here was sent by somebody else or may be of any type: repr shows what it is, and escapes it.
FOREIGN = {
    "core/wherry/spec/image.py", "core/wherry/spec/document.py", "core/wherry/spec/runtime.py", "core/wherry/oci/filters.py",
    "plugins/wherry_plugins/transport/registry/challenge.py", "plugins/wherry_plugins/transport/registry/url.py",
}  # fmt: skip
#: Of any type, as the document that holds them has it.
VALUES = {"config", "entry", "handle", "number", "registration.api", "timeout", "value"}


def test_error_texts_quote_with_double_quotes() -> None:
    bad = []
    for path in SOURCES:
        if path.suffix != ".py" or name(path) in FOREIGN:
            continue
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called not in errors.CLASSES and called != "SpecError":
                continue
            for argument in node.args[:3]:
                for part in argument.values if isinstance(argument, ast.JoinedStr) else ():
                    if not isinstance(part, ast.FormattedValue) or part.conversion != ord("r"):
                        continue
                    inner = {ast.unparse(found) for found in ast.walk(part.value) if isinstance(found, ast.expr)}
                    if not inner & VALUES:
                        bad.append(f"{name(path)}:{node.lineno}: {ast.unparse(part.value)}")
    assert bad == []


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_scripts_parse_and_can_be_run(path: Path) -> None:
    assert os.access(path, os.X_OK)
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", path], check=True)
