"""A virtual environment above this one: what is installed into it is seen there only, what is installed here is seen too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def above(directory: Path) -> Path:
    """Makes it and answers its ``bin``, with python, pip (offline) and the wherry client of this checkout."""
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = (directory / "lib").glob("python*/site-packages")
    below = [sysconfig.get_path("purelib"), TOP / "core", TOP / "plugins"]
    (packages / "below.pth").write_text("".join(f"{path}\n" for path in below))
    programs = directory / "bin"
    shutil.copy(TOP / "core/wherry/client/wherry", programs / "wherry")
    (programs / "wherry").chmod(0o755)
    (programs / "pip").write_text('#!/bin/sh\nexec "${0%/*}/python" -m pip "$@"\n')
    (programs / "pip").chmod(0o755)
    return programs


def environ(programs: Path) -> dict[str, str]:
    """The environment of somebody who has activated it, and has no network."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("WHERRY_", "XDG_", "PYTHON", "PIP_"))
    }
    return {
        **kept,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(programs.parent),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
