"""docs/tutorial.md, done as it says: its files written, its commands run, their output as shown."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import docs, venv
from support.engines import EngineDirs

PAGE = Path(__file__).resolve().parents[2] / "docs/tutorial.md"


@pytest.fixture
def reader(engine_dirs: EngineDirs, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory with the files of the page, and the environment of a reader who follows it."""
    for block in docs.blocks(PAGE):
        if block.note.startswith("file: "):
            path = tmp_path / block.note.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    programs = venv.above(tmp_path / "venv")
    environ = {**engine_dirs.environ, **venv.environ(programs)}
    environ |= {name: value for name, value in engine_dirs.environ.items() if name.startswith("WHERRY_")}
    yield tmp_path, environ
    subprocess.run("wherry engine stop", shell=True, env=environ, cwd=tmp_path, check=False, capture_output=True)


def test_the_tutorial_works(reader: tuple[Path, dict[str, str]]) -> None:
    directory, environ = reader
    for block in docs.blocks(PAGE):
        if block.note != "run":
            continue
        for command, shown in docs.commands(block):
            done = subprocess.run(
                command,
                shell=True,
                env=environ,
                cwd=directory,
                capture_output=True,
                text=True,
                check=False,
                timeout=100,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            if shown:
                assert docs.matches(shown, done.stdout), f"{command}\nshown:\n{shown}\nprinted:\n{done.stdout}"
