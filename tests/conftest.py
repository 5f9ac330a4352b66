"""Every test runs isolated, is checked for leaks, and finds here an engine of its own and images to run.

Fixtures: ``engine_dirs`` (root and run, short paths), ``engine`` (``wherry.Engine`` in this process), ``wherry`` (the command
line), ``busybox_archive``, ``debian_archive`` (made once), ``images_cache``. A module whose engine lives longer than one test
says ``pytestmark = pytest.mark.shared``: it is then checked for leaks as a whole.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import images, isolation, leaks, rootless
from support.engines import EngineDirs, Wherry, stop_all
from wherry.engine.workers import zygote

if TYPE_CHECKING:
    from wherry.api import Engine

TOP = Path(__file__).resolve().parent.parent
_refused = pytest.StashKey[str]()
_before = pytest.StashKey[leaks.Snapshot]()
_passed = pytest.StashKey[bool]()


# -- isolation -------------------------------------------------------------------------------------------------------------


def _distributed(config: pytest.Config) -> bool:
    return bool(getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A run in one process goes on inside namespaces of its own: the same command line again, by exec."""
    option = config.option
    if isolation.isolated() or _distributed(config) or option.collectonly or option.help or option.version:
        return
    if (reason := isolation.refused()) or Path(sys.argv[0]).name not in ("pytest", "py.test", "__main__.py"):
        config.stash[_refused] = reason or f"started by {sys.argv[0]}"
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    sys.stdout.flush()
    sys.stderr.flush()
    again = [*isolation.wrapper(), sys.executable, "-m", "pytest", *config.invocation_params.args]
    os.execvp(again[0], again)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Each worker is started in namespaces of its own."""
    if reason := isolation.refused():
        config.stash[_refused] = reason
        return
    for spec in specs:
        spec.python = " ".join([*isolation.wrapper(), sys.executable])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "twice: runs as root and as an ordinary user made for it (support.rootless)")
    config.addinivalue_line(
        "markers", "shared: an engine outlives single tests here; leaks are looked for at the module's end"
    )
    if isolation.isolated():
        isolation.raise_loopback()
    zygote._LINGER = (
        0.2  # of an engine in this process: else each test that unpacked waits ten seconds for who forked its workers
    )
    if not hasattr(config, "workerinput"):
        config.stash[_before] = leaks.look(leaks.SHARED)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked ``twice`` run with an engine of root's and with one of an ordinary user's."""
    if metafunc.definition.get_closest_marker("twice") and "who" in metafunc.fixturenames:
        metafunc.parametrize("who", ["root", "user"], indirect=True, scope="function")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Containers are made by root, until there is a rootless driver."""
    if os.geteuid() != 0:
        for item in items:
            if item.path.parent != TOP / "tests/unit":
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [f"kernel: {os.uname().release}, uid {os.geteuid()}"]
    if reason := config.stash.get(_refused, ""):
        lines.append(f"not isolated: {reason}")
    return lines


_LATE = "the time for this run is over"


# -- bounds of a run -------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """$WHERRY_TESTS_UNTIL, in seconds since the epoch: what has not begun by then is listed as not run, and the run has failed."""
    until = os.environ.get("WHERRY_TESTS_UNTIL")
    if until and time.time() > float(until):
        pytest.skip(_LATE)


# -- leaks -----------------------------------------------------------------------------------------------------------------


def _check(before: leaks.Snapshot) -> None:
    found = leaks.settled(before)
    if found:
        leaks.sweep(before)
        pytest.fail("left behind, or taken away:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def _module_leaks_nothing() -> Iterator[None]:
    before = leaks.look(leaks.OWN)
    yield
    if isolation.isolated():
        _check(before)


@pytest.fixture(autouse=True)
def _leaks_nothing(request: pytest.FixtureRequest, _module_leaks_nothing: None) -> Iterator[None]:
    if not isolation.isolated() or request.node.get_closest_marker("shared"):
        yield
        return
    before = leaks.look(leaks.OWN)
    yield
    _check(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fixtures want to know how the test went."""
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Cgroups and loop devices belong to the machine, so they are looked at when all test processes are done."""
    before = session.config.stash.get(_before, None)
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if before is not None and reporter and any(_LATE in str(one.longrepr) for one in reporter.stats.get("skipped", [])):
        session.exitstatus = max(int(exitstatus), int(pytest.ExitCode.TESTS_FAILED))
    if before is None or isolation.refused():
        return
    found = leaks.settled(before, leaks.SHARED)
    if found and os.environ.get("CI"):
        session.exitstatus = max(int(exitstatus), int(pytest.ExitCode.TESTS_FAILED))
    session.config.stash[_shared_leaks] = found


_shared_leaks = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What did not run, by name and with its reason; and what the whole session left on the machine."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if not hasattr(report, "wasxfail")]
    if skipped:
        terminalreporter.section("not run")
        for report in sorted(skipped, key=lambda report: str(report.nodeid)):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            terminalreporter.line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
    if os.environ.get("WHERRY_TESTS_AGAIN") and (passed := terminalreporter.stats.get("passed")):
        terminalreporter.section("flaky: failed before, and passed now")
        for report in passed:
            terminalreporter.line(report.nodeid)
    if found := config.stash.get(_shared_leaks, []):
        terminalreporter.section("left on the machine")
        for line in found:
            terminalreporter.line(line)


# -- engines ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def who(request: pytest.FixtureRequest) -> str:
    """ "root", or "user" for an engine of an ordinary user's."""
    return str(getattr(request, "param", "root"))


@pytest.fixture
def engine_dirs(request: pytest.FixtureRequest, who: str) -> Iterator[EngineDirs]:
    """Root and run below a directory that is removed afterwards, and whose they are.

    Processes and cgroups that are still there in the end are a fault of the test that passed, and are ended in any case.
    """
    top = Path(tempfile.mkdtemp(prefix="wh", dir="/tmp"))
    dirs = EngineDirs(top / "root", top / "run")
    with ExitStack() as stack:
        if who != "root":
            if reason := rootless.refused():
                pytest.skip(reason)
            dirs = dirs._replace(
                user=stack.enter_context(rootless.made(top, rootless.installed(), "" if who == "single" else None))
            )
        yield from _engine_dirs(request, top, dirs)


def _engine_dirs(request: pytest.FixtureRequest, top: Path, dirs: EngineDirs) -> Iterator[EngineDirs]:
    try:
        yield dirs
    finally:
        passed = request.node.stash.get(_passed, False)
        left = stop_all(dirs.run, patience=leaks.SETTLE if passed else 0)
        for line in Path("/proc/self/mountinfo").read_text().splitlines()[::-1]:
            point = line.split()[4]
            if point.startswith(f"{top}/"):
                subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        shutil.rmtree(top, ignore_errors=True)
    if left and passed:
        pytest.fail("left of the engine:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def place(engine_dirs: EngineDirs, tmp_path: Path) -> Path:
    """A directory of whoever runs the command line."""
    if engine_dirs.user is None:
        return tmp_path
    directory = engine_dirs.root.parent / "place"
    directory.mkdir()
    os.chown(directory, engine_dirs.user.uid, engine_dirs.user.gid)
    return directory


@pytest.fixture
def engine(engine_dirs: EngineDirs) -> Iterator[Engine]:
    """An engine in this process, with the default config and a shim of its own."""
    import wherry

    with_engine = wherry.Engine(root=engine_dirs.root, run=engine_dirs.run)
    try:
        yield with_engine
        for container in with_engine.containers(all=True):
            with_engine.remove(container.id, force=True)
    finally:
        with_engine.close()


@pytest.fixture
def wherry(engine_dirs: EngineDirs) -> Iterator[Wherry]:
    """The command line on directories of its own; its engine is started by the first command that needs it."""
    program = Wherry(engine_dirs)
    yield program
    if engine_dirs.run.exists():
        program.stop()


# -- images ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def images_cache() -> Path:
    """Where images are kept between runs: $WHERRY_TEST_IMAGES or a directory of the user's in /var/tmp."""
    return Path(os.environ.get("WHERRY_TEST_IMAGES") or f"/var/tmp/wherry-test-images-{os.getuid()}")


def _made(make: Callable[[Path], Path], cache: Path) -> Path:
    try:
        return make(cache)
    except images.CannotMake as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def busybox_image(images_cache: Path) -> Path:
    """A directory with docker-archive.tar, oci-archive.tar and the OCI layout oci/ of one busybox image."""
    return _made(images.busybox, images_cache)


@pytest.fixture(scope="session")
def busybox_archive(busybox_image: Path) -> Path:
    """busybox as ``docker save`` would write it."""
    return busybox_image / "docker-archive.tar"


@pytest.fixture(scope="session")
def debian_image(images_cache: Path) -> Path:
    """The same three of Debian's essential packages."""
    return _made(images.debian, images_cache)


@pytest.fixture(scope="session")
def debian_archive(debian_image: Path) -> Path:
    return debian_image / "docker-archive.tar"


@pytest.fixture(scope="session")
def apt_image(images_cache: Path) -> Path:
    """The same with apt-get."""
    return _made(images.debian_with_apt, images_cache)


# -- odds and ends ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """No test leaves a signal handler, a working directory or a umask of its own behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE)}
    directory, umask = os.getcwd(), os.umask(0o022)
    os.umask(umask)
    yield
    os.chdir(directory)
    os.umask(umask)
    assert {number: signal.getsignal(number) for number in handlers} == handlers, "a signal handler was left behind"
