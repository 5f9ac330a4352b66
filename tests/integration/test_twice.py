"""Suites that are root's above, once more as an ordinary user: in that user's namespaces, with Wherry as a wheel.

Life cycle, exec, logs and streams; volumes; images; bridges in the user's hub. The command line's suites do so by themselves (mark
"twice"). Not here: tests/integration/test_bridge_services.py, whose world outside is a link of root's (test_rootless_network.py has the
user's), and images from other programs' stores, which root made.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from support import rootless
from support.drivers import uplink


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "least"),
    [("engine_run", 40), ("volumes", 15), ("images_verbs", 40), ("bridge", 20)],
    ids=["life-cycle", "volumes", "images", "networks"],
)
def test_as_an_ordinary_user(name: str, least: int) -> None:
    """least: tests that pass; what is skipped says why."""
    if reason := rootless.refused():
        pytest.skip(reason)
    for program in ("pasta", "nft") if name == "bridge" else ():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with (
        uplink() if name == "bridge" else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="wh", dir="/tmp") as top,
    ):
        shutil.copytree(rootless.TOP / "tests", f"{top}/tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(rootless.TOP / "pyproject.toml", top)
        with rootless.made(Path(top), rootless.installed()) as user:
            done = rootless.inside(
                user, "-m", "pytest", "-q", "-rs", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={top}/inside/t",
                f"{top}/tests/integration/test_{name}.py",
                timeout=380, WHERRY_TESTS_ISOLATED="1", WHERRY_TEST_IMAGES=f"{top}/inside/images",
                CI="",  # what others leave on this machine is not for it to judge
            )  # fmt: skip
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= least, done.stdout[-4000:]
    print(done.stdout[-3000:])
