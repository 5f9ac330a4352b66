"""Commands of the machine's ordinary user, in a session that the user's own service manager makes."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

from support.running import until

NAME = "boat"  # made by contrib/vm
_PATH = f"{Path(__file__).resolve().parents[2]}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def refused() -> str:
    """Why there are none, or ""."""
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        return f'there is no user "{NAME}"'
    return "" if os.access(sys.executable, os.X_OK) else "the interpreter can't be reached by others"


def as_user(command: str, code: int | None = 0) -> str:
    """What a command of the shell says, by systemd-run(1). code: the one that is asserted, None for any."""
    entry = pwd.getpwnam(NAME)
    until(lambda: Path(f"/run/user/{entry.pw_uid}/bus").exists(), 120)
    argv = [
        "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "systemd-run", "--user", "--wait", "--pipe",
        "--quiet", "--collect", "-p", "Delegate=yes", "-E", f"PATH={_PATH}", "-E", "PYTHONDONTWRITEBYTECODE=1",
        "--", "sh", "-c", command,
    ]  # fmt: skip
    environ = {
        "PATH": _PATH,
        "HOME": entry.pw_dir,
        "XDG_RUNTIME_DIR": f"/run/user/{entry.pw_uid}",
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path=/run/user/{entry.pw_uid}/bus",
    }
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=1500, check=False, cwd="/")
    if code is not None:
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if code is None else "")
