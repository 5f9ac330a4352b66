"""README.md: its tour is run, and prints what it shows; its two set-up commands are the promised ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import docs
from support.engines import EngineDirs

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "README.md"


def test_the_tour_prints_what_it_shows(engine_dirs: EngineDirs, tmp_path: Path) -> None:
    environ = {**engine_dirs.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    places = {str(engine_dirs.root): "/var/lib/wherry", str(engine_dirs.run): "/run/wherry"}
    try:
        for block in docs.blocks(PAGE):
            if block.note.startswith("file: "):
                (tmp_path / block.note.removeprefix("file: ")).write_text(block.text)
            for command, shown in docs.commands(block) if block.note == "run" else ():
                done = subprocess.run(
                    command, shell=True, env=environ, cwd=tmp_path, text=True, check=False, timeout=60,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                assert docs.alike(shown, done.stdout, places), f"{command}\nshown:\n{shown}\nprinted:\n{done.stdout}"
                assert done.returncode == 0, command
        assert (tmp_path / "start.json").stat().st_size > 0
    finally:
        leave = "wherry rm -f clock mole; wherry network rm -f harbour; wherry engine stop"
        subprocess.run(leave, shell=True, env=environ, check=False, capture_output=True, timeout=60)


def test_the_two_commands() -> None:
    text = PAGE.read_text()
    assert "\ncontrib/setup && .venv/bin/wherry run --rm host:/bin/sh sh -c 'echo hello from PID $$'\n" in text
    assert "\ncontrib/setup test && .venv/bin/python -m pytest\n" in text
    assert text.count("\n```sh\n") == 2, "two set-up commands, no more"
    ci = (TOP / ".ci/run").read_text()
    assert "contrib/setup test\n" in ci
    assert "python -m pytest" in ci


def test_links_lead_somewhere() -> None:
    pages = [PAGE, *(TOP / "docs").rglob("*.md")]
    for page in pages:
        for target in docs.links(page):
            path, _, fragment = target.partition("#")
            linked = page if not path else (page.parent / path)
            assert linked.exists(), f"{page.name}: {target}"
            if fragment and linked.suffix == ".md":
                assert fragment in docs.anchors(linked), f"{page.name}: {target}"
