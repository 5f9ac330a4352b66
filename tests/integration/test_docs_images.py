"""docs/images.md, done as it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support import docs
from support.engines import EngineDirs, Wherry
from support.images import BUSYBOX

PAGE = Path(__file__).resolve().parents[2] / "docs/images.md"


def test_the_page_works(wherry: Wherry, engine_dirs: EngineDirs, tmp_path: Path) -> None:
    if not BUSYBOX.exists():
        import pytest

        pytest.skip("busybox is not installed: contrib/setup test")
    environ = {**engine_dirs.environ}
    environ["PATH"] = f"{Path(wherry.program).parent}:{environ['PATH']}"
    for block in docs.blocks(PAGE):
        for command, shown in docs.commands(block):
            done = subprocess.run(
                command, shell=True, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert docs.matches(shown, done.stdout), f"{command}\nshown:\n{shown}\nprinted:\n{done.stdout}"
