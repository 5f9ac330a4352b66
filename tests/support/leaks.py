"""What a test must leave as it found it: mounts, links, addresses, packet filter rules, namespaces, cgroups, processes, loops."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from support.isolation import isolated

SETTLE = float(os.environ.get("WHERRY_TESTS_SETTLE", "20"))  # seconds that asynchronous tear-down may take

Snapshot = Mapping[str, frozenset[str]]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def mounts() -> Iterable[str]:
    """Mount points of this process (proc_pid_mountinfo(5)), each with its type."""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, source = line.partition(" - ")
        yield f"{fields.split()[4]} ({source.split()[0]})"


def links() -> Iterable[str]:
    return (name for _, name in socket.if_nameindex())


def addresses() -> Iterable[str]:
    """Addresses of this network namespace (proc_pid_net(5)): local ones of IPv4, and those of IPv6 but link-local ones."""
    last = ""
    for line in _read("/proc/thread-self/net/fib_trie").splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            yield last
    for line in _read("/proc/thread-self/net/if_inet6").splitlines():
        address, _index, _prefix, scope, _flags, name = line.split()
        if scope != "20":  # a link's own comes by itself, some time after the link
            yield f"{address} at {name}"


def rules() -> Iterable[str]:
    """Tables of nftables. Looked at only inside a network namespace of our own: the host's belong to others."""
    if not isolated() or shutil.which("nft") is None:
        return ()
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return listed.stdout.splitlines()


def descriptors() -> Iterable[str]:
    """Namespaces and processes that this process holds by descriptor."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.endswith("[pidfd]") or (":[" in target and target.split(":")[0] in _NAMESPACES):
            yield f"{fd} -> {target}"


_NAMESPACES = frozenset({"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"})


def processes(runs: Iterable[Path] = ()) -> Iterable[str]:
    """Isolated, all processes but the test's own and its init; else those that name one of the run directories."""
    own = {1, os.getpid(), os.getppid()}
    needles = [os.fsencode(run) for run in runs]
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        stat = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if not stat:
            continue
        command = _read(f"/proc/{name}/cmdline").replace("\0", " ").strip() or _read(f"/proc/{name}/comm").strip()
        if isolated() or any(needle in os.fsencode(command) for needle in needles):
            yield f"{name} {stat[0]} since {stat[19]}: {command[:160]}"


def loops() -> Iterable[str]:
    """Loop devices with a file behind them."""
    for device in Path("/sys/block").glob("loop*"):
        backing = _read(str(device / "loop/backing_file")).strip()
        if backing:
            yield f"{device.name}: {backing}"


def cgroups() -> Iterable[str]:
    """Cgroups that an engine made, in every hierarchy."""
    root = Path("/sys/fs/cgroup")
    for pattern in ("*wherry*", "*/*wherry*", "*/*/*wherry*"):
        yield from (str(path) for path in root.glob(pattern))


#: What one test process can judge alone: the namespaces of its own see to it that nobody else changes these.
OWN: dict[str, Callable[[], Iterable[str]]] = {
    "mount": mounts,
    "link": links,
    "address": addresses,
    "table": rules,
    "descriptor": descriptors,
    "process": processes,
}
#: What all processes of the machine share; judged at the end of the session.
SHARED: dict[str, Callable[[], Iterable[str]]] = {"cgroup": cgroups, "loop device": loops}


def look(what: Mapping[str, Callable[[], Iterable[str]]]) -> Snapshot:
    return {name: frozenset(find()) for name, find in what.items()}


def _pid(entry: str) -> str:
    return entry.split(" ", 1)[0] + entry.split(" since ", 1)[-1].split(":", 1)[0]


def compare(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each thing that is there now and was not before, or the other way round for mounts and links."""
    found = []
    for kind, now in after.items():
        then = before[kind]
        if kind == "process":
            known = {_pid(entry) for entry in then}
            found += [f"left {kind} {entry}" for entry in sorted(now) if _pid(entry) not in known]
            continue
        found += [f"left {kind} {entry}" for entry in sorted(now - then)]
        if kind == "mount":  # somebody else's goes with its mount point, in every namespace
            then = {entry for entry in then if os.path.lexists(entry.rpartition(" (")[0])}
        if kind in ("mount", "link"):
            found += [f"lost {kind} {entry}" for entry in sorted(then - now)]
    return found


def settled(
    before: Snapshot, what: Mapping[str, Callable[[], Iterable[str]]] = OWN, seconds: float = SETTLE
) -> list[str]:
    """Waits, up to ``seconds``, for things to be as before; what is not."""
    deadline = time.monotonic() + seconds
    pause = 0.002
    while found := compare(before, look(what)):
        if time.monotonic() > deadline:
            return found
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    return []


def sweep(before: Snapshot) -> None:
    """Ends and unmounts what a test left, so that the next one starts clean."""
    for entry in processes():
        if _pid(entry) not in {_pid(known) for known in before["process"]}:
            kill(int(entry.split(" ", 1)[0]))
    for entry in sorted(frozenset(mounts()) - before["mount"], reverse=True):
        subprocess.run(["umount", "-l", entry.rpartition(" (")[0]], capture_output=True, check=False)


def kill(pid: int) -> None:
    """SIGKILL; nothing happens when it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
