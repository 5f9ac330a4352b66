"""contrib/setup: which packages it asks for, how, and what it leaves alone. apt-get and dpkg-query are stand-ins that take notes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support import isolation

TOP = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not isolation.isolated(), reason=f"needs a mount namespace of its own: {isolation.refused()}"),
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no /usr/bin/python3"),
]

APT = """#!/bin/sh
[ -x /usr/sbin/policy-rc.d ] && policy=$(/usr/sbin/policy-rc.d >/dev/null; echo $?) || policy=absent
echo "$DEBIAN_FRONTEND $policy $*" >>"$NOTES"
[ ! -e "$NOTES.fail" ] || { echo 'E: no such luck' >&2; exit 100; }
"""
DPKG = """#!/bin/sh
shift 3
for name; do
    case " $LACKING " in *" $name "*) echo "dpkg-query: no packages found matching $name" >&2 ;; *) echo "installed $name" ;; esac
done
"""


class Checkout:
    """A checkout that is set up, with a /usr/sbin of its own."""

    def __init__(self, top: Path) -> None:
        self.top, self.notes, self.sbin = top, top / "notes", top / "sbin"
        for name in ("contrib/setup", "pyproject.toml", "core/wherry/client/wherry"):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, top / name)
        self.sbin.mkdir()
        (top / "stubs").mkdir()
        for name, text in (("apt-get", APT), ("dpkg-query", DPKG)):
            (top / "stubs" / name).write_text(text)
            (top / "stubs" / name).chmod(0o755)
        subprocess.run(["/usr/bin/python3", "-I", "-m", "venv", "--without-pip", top / ".venv"], check=True)
        (packages,) = (top / ".venv/lib").glob("python*/site-packages")
        (packages / "pip.py").write_text("")  # it only has to be importable
        files = ["pyproject.toml", "core/wherry/client/wherry", "contrib/setup"]
        sums = subprocess.run(["cksum", *files], cwd=top, capture_output=True, text=True, check=True).stdout
        (top / ".venv/.wherry-setup").write_text(f"groups: dev\n{sums}")

    def setup(self, *arguments: str, lacking: str = "") -> subprocess.CompletedProcess[str]:
        script = 'mount --bind "$0" /usr/sbin && exec contrib/setup "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, self.sbin, *arguments],
            cwd=self.top, capture_output=True, text=True, check=False,
            env={"PATH": f"{self.top / 'stubs'}:/usr/bin:/bin", "NOTES": str(self.notes), "LACKING": lacking, "PIP_RETRIES": "0"},
        )  # fmt: skip

    def calls(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        ((), "setup: done; next: .venv/bin/wherry run --rm host:/bin/sh sh -c 'echo hello from PID $$'"),
        (("test",), "setup: done; next: .venv/bin/python -m pytest"),
    ],
)
def test_nothing_missing_is_nothing_done(checkout: Checkout, arguments: tuple[str, ...], last: str) -> None:
    done = checkout.setup(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [last]
    assert checkout.calls() == []


def test_only_what_is_missing_is_installed_and_no_daemon_starts(checkout: Checkout) -> None:
    done = checkout.setup("test", lacking="tini redis-server")
    assert done.returncode == 0, done.stderr
    update, install = checkout.calls()
    assert update.startswith("noninteractive 101 ")
    assert update.endswith(" update")
    assert install.startswith("noninteractive 101 ")
    assert install.endswith("install -y --no-install-recommends --no-remove tini redis-server")
    assert list(checkout.sbin.iterdir()) == [], "the policy is gone again"


def test_a_policy_of_somebody_else_stays(checkout: Checkout) -> None:
    policy = checkout.sbin / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 104\n")
    policy.chmod(0o755)
    assert checkout.setup(lacking="tini").returncode == 0
    assert [call.split()[1] for call in checkout.calls()] == ["104", "104"]
    assert policy.read_text() == "#!/bin/sh\nexit 104\n"


def test_a_failure_of_apt_is_shown_and_the_policy_goes(checkout: Checkout) -> None:
    (checkout.top / "notes.fail").touch()
    done = checkout.setup(lacking="tini")
    assert done.returncode == 1
    assert "E: no such luck" in done.stderr
    assert list(checkout.sbin.iterdir()) == []


def test_an_unusable_environment_is_made_afresh(checkout: Checkout) -> None:
    """Here it is one that was made elsewhere; with no network the install that follows can't succeed, so only its word counts."""
    settings = checkout.top / ".venv/pyvenv.cfg"
    settings.write_text(settings.read_text().replace(str(checkout.top), "/somewhere/else"))
    (checkout.top / ".venv/old").touch()
    done = checkout.setup()
    assert "making .venv afresh" in done.stdout
    assert not (checkout.top / ".venv/old").exists()


def test_a_changed_client_is_installed_again(checkout: Checkout) -> None:
    with open(checkout.top / "core/wherry/client/wherry", "a") as client:
        client.write("# changed\n")
    assert "installing Wherry" in checkout.setup().stdout


def test_an_unknown_word_is_refused(checkout: Checkout) -> None:
    done = checkout.setup("everything")
    assert done.returncode == 1
    assert done.stderr == "setup: usage: contrib/setup [test|bench]\n"


def test_without_root_it_says_what_is_needed(checkout: Checkout) -> None:
    for directory in (checkout.top, *checkout.top.parents):
        if directory == Path(tempfile.gettempdir()):
            break
        directory.chmod(0o755)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "contrib/setup"],
        cwd=checkout.top, capture_output=True, text=True, check=False,
        env={"PATH": f"{checkout.top / 'stubs'}:/usr/bin:/bin", "NOTES": "/dev/null", "LACKING": "tini"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("as root: apt-get update && apt-get install --no-install-recommends tini \n")
