"""docs/reference says what the sources say: each hook, Protocol method, config key, command and option, with its arguments."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import wherry.api
from wherry.hookspecs import FAMILY_HOOK, Hooks

TOP = Path(__file__).resolve().parents[2]
REFERENCE = TOP / "docs/reference"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """contrib/reference as a module."""
    loader = importlib.machinery.SourceFileLoader("reference", str(TOP / "contrib/reference"))
    spec = importlib.util.spec_from_loader("reference", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


@pytest.mark.parametrize("page", ["hooks", "kit", "protocols", "config", "commands", "events", "errors"])
def test_a_page_is_what_the_sources_say(page: str, generator: ModuleType) -> None:
    assert set(generator.PAGE) == {path.stem for path in REFERENCE.glob("*.md")}
    if sys.version_info[:2] != (3, 13):
        pytest.skip("the pages are written by the syntax tree of Python 3.13")
    assert (REFERENCE / f"{page}.md").read_text() == generator.render(page), "run .venv/bin/python contrib/reference"


# The generator might leave something out, so the same is asked once more without it.


def test_every_hook_is_there_with_its_exact_arguments() -> None:
    text = (REFERENCE / "hooks.md").read_text()
    hooks = {name: hook for name, hook in vars(Hooks).items() if name.startswith("wherry_")}
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == set(hooks) == set(FAMILY_HOOK.values())
    for name, hook in hooks.items():
        (shown,) = re.findall(rf"^{name}\((.*)\) -> ", text, re.MULTILINE)
        names = re.findall(r"(\w+): ", re.sub(r"\[[^]]*\]", "", shown))
        assert names == list(inspect.signature(hook).parameters)[1:], name


def protocols() -> dict[str, type]:
    found = {name: getattr(wherry.api, name) for name in wherry.api.__all__}
    return {name: kind for name, kind in found.items() if getattr(kind, "_is_protocol", False)}


@pytest.mark.parametrize("name", sorted(protocols()))
def test_every_method_of_a_protocol_is_there(name: str) -> None:
    text = (REFERENCE / "protocols.md").read_text()
    kind = protocols()[name]
    for method, function in vars(kind).items():
        if method.startswith("_") or not inspect.isfunction(function):
            continue
        (shown,) = re.findall(
            rf"^#### {name}\.{method}\n\n```python\n{method}\((.*)\)(?: -> .*)?\n", text, re.MULTILINE
        )
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            assert re.search(rf"\b{parameter.name}\b", shown), f"{name}.{method}: {parameter.name}"
    for field in typing.get_type_hints(kind, include_extras=True) if name in ("Context", "Ingest") else ():
        assert re.search(rf"^{field}: ", text, re.MULTILINE), f"{name}.{field}"


def test_every_record_of_the_contract_is_there() -> None:
    text = (REFERENCE / "protocols.md").read_text()
    for name in wherry.api.__all__:
        kind: Any = getattr(wherry.api, name)
        if isinstance(kind, type) and attrs.has(kind):
            section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
            assert section, name
            for field in attrs.fields(kind):
                assert re.search(rf"^{field.name}: ", section, re.MULTILINE), f"{name}.{field.name}"


@pytest.mark.parametrize("record", [wherry.api.Config, wherry.api.EngineConfig, wherry.api.Variant])
def test_every_config_key_is_there(record: type) -> None:
    text = (REFERENCE / "config.md").read_text()
    for field in attrs.fields(record):
        assert f"| `{field.name}` |" in text, f"{record.__name__}.{field.name}"


def test_every_key_of_a_plugin_is_there(generator: ModuleType) -> None:
    text = (REFERENCE / "config.md").read_text()
    for family, plugin, _, record in generator.registrations():
        if record is None:
            continue
        section = text.partition(f"### [plugin.{family}.{plugin}]\n")[2].partition("\n### ")[0]
        assert section, f"{family}.{plugin}"
        for field in attrs.fields(record.config):
            assert f"| `{field.name}` |" in section, f"{family}.{plugin}: {field.name}"


def test_every_command_and_option_is_there() -> None:
    import click

    from wherry_plugins.frontend.cli.main import ROOT

    text = (REFERENCE / "commands.md").read_text()
    todo: list[tuple[str, Any]] = [("wherry", ROOT)]
    seen = set()
    while todo:
        path, command = todo.pop()
        if isinstance(command, click.Group):
            todo += [(f"{path} {name}", command.get_command(None, name)) for name in command.list_commands(None)]
            continue
        if f"`{path}` is [" in text or id(command) in seen:
            continue
        assert f" {path}\n" in text, path
        seen.add(id(command))
        section = re.split(rf"^#+ {path}$", text, flags=re.MULTILINE)[-1].partition("\n## ")[0]
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert all(name in section for name in param.opts), f"{path} {param.opts}"
