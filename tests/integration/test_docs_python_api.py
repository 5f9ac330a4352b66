"""docs/python-api.md, run from top to bottom: its examples work and print what the page shows."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import docs
from support.engines import stop_all

PAGE = Path(__file__).resolve().parents[2] / "docs/python-api.md"


def test_the_examples_print_what_the_page_shows() -> None:
    space: dict[str, Any] = {"__name__": "python_api"}
    printed = ""
    try:
        for block in docs.blocks(PAGE):
            if block.note == "run":
                assert printed == "", f"printed and not shown: {printed}"
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(block.text, str(PAGE), "exec"), space)
                printed = out.getvalue()
            elif block.note == "prints":
                assert printed == block.text
                printed = ""
    finally:
        with contextlib.suppress(Exception):
            space["engine"].close()
        top = space.get("top")
        if top is not None:
            for run in ("run", "run2"):
                command = [Path(sys.executable).parent / "wherry", "--run", top / run, "engine", "stop"]
                if (top / run).exists():
                    subprocess.run(command, capture_output=True, check=False)
                    stop_all(top / run)
            shutil.rmtree(top, ignore_errors=True)
