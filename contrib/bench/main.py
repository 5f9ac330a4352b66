"""Measures ours and the peers in turn and prints the table of docs/benchmarks.md, with the rows of the speed goals."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calls
import many
import ours
import peers as others
import pulls
import rootless
from rows import ROWS, WANTED, WHOLE, Line, Plan
from world import AbsentError, World

SHORT = Plan(rounds=3, idle_rounds=2, slow=2, containers=5, peer_containers=3, burst=4, bursts=1, streams=1, seconds=1, pulls=2,
             records=30, many_images=5, restarts=1,
             images=(pulls.Image(2, 60, 3, "gzip"), pulls.Image(2, 60, 1, "zstd")))  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contrib/bench/run", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few rounds of everything: does it work at all?")
    parser.add_argument(
        "--rows", default=",".join(map(str, ROWS)), help="comma-separated row numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--row5", choices=("small", "whole"), default="small",
        help="images of 300 MB, at most 6 minutes, or of 1.4 GB in 88,000 files, at most 15 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--without", default="", help="comma-separated peers to leave out, e.g. docker,podman")
    parser.add_argument(
        "--syncs", type=int, default=0, help="durable writes in one life of the floor (default: %(default)s)"
    )
    parser.add_argument("--hierarchies", default="", help="cgroup hierarchies of the floor (default: those of ours)")
    parser.add_argument(
        "--calls", action="store_true", help="also print the system calls of one life, ours and the floor's"
    )
    parser.add_argument("--json", type=Path, help="write every sample there, in seconds")
    return parser.parse_args()


def hierarchies_of(api: Any) -> list[str]:
    """The hierarchies whose cgroup a container of ours is in, as directories: the floor joins the same."""
    api.hold()
    pid = api.engine.container(api.held).pid
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if api.held not in path:
            continue
        for _, target, kind, options, *_ in mounts:
            if (
                kind == "cgroup"
                and names
                and set(names.removeprefix("name=").split(",")) & {*options.split(","), Path(target).name}
            ):
                found.append(target)
                break
    api.drop()
    return found


def end_once(*_: object) -> None:
    """At SIGTERM: the daemons are stopped. timeout(1) sends it to the process and then to its group, and the second one would be the
    end of what the first one began."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def set_up(world: World, wanted: set[str], options: argparse.Namespace, found: dict[str, Any]) -> dict[str, str]:
    """Puts the peers that run into found, for whoever ends them to know each from the start; the reason of each that does not."""
    absent: dict[str, str] = {}
    hierarchies = options.hierarchies.split(",") if options.hierarchies else None

    def floor() -> others.Floor:
        chosen = hierarchies
        if chosen is None:
            api = found.get("wherry api")
            chosen = (
                hierarchies_of(api)
                if api
                else [f"/sys/fs/cgroup/{name}" for name in ("memory", "cpu", "pids", "devices")]
            )
        return others.Floor(world, chosen, options.syncs)

    makers: dict[str, Callable[[], Any]] = {
        "wherry api": lambda: ours.WherryApi(world, "wherry-api", local=False),
        "wherry in process": lambda: ours.WherryApi(world, "wherry-local", local=True),
        "wherry": lambda: ours.WherryCli(world, found["wherry api"]),
        "floor": floor,
        "crun": lambda: others.Bundled(world, "crun"),
        "runc": lambda: others.Bundled(world, "runc"),
        "podman": lambda: others.Podman(world),
        "docker": lambda: others.Docker(world),
        "user": lambda: rootless.User(world),
        "wherry rootless": lambda: rootless.RootlessWherry(world, found["user"]),
        "wherry rootless api": lambda: rootless.RootlessApi(found["user"]),
        "wherry rootless fuse-overlayfs": lambda: rootless.RootlessWherry(world, found["user"], rootless.FUSE),
        "podman rootless": lambda: rootless.RootlessPodman(world, found["user"]),
        "podman rootless fuse-overlayfs": lambda: rootless.RootlessPodman(world, found["user"], rootless.FUSE),
        "wherry crowd": lambda: many.Crowd(world),
        "registry": lambda: pulls.Registry(world),
        "wherry overlayfs": lambda: pulls.Wherry(world, "overlayfs"),
        "wherry vfs": lambda: pulls.Wherry(world, "vfs"),
        "containerd": lambda: pulls.Containerd(world),
    }
    for name, make in makers.items():
        if name not in wanted:
            continue
        try:
            found[name] = make()
        except AbsentError as reason:
            absent[name] = str(reason)
        except Exception as error:
            absent[name] = f"there is no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
    return absent


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} CPUs ({model}), kernel {platform.release()}, Python {platform.python_version()}, load {load}"
    )


def shown(lines: list[Line]) -> str:
    text = [
        "| # | workload | regime | runtime | median | p99 | ours / it (95 %) | goal | |",
        "|---|---|---|---|---:|---:|---|---|---|",
    ]
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.3f} ({line.low:.3f} to {line.high:.3f})"
        goal = "" if line.goal is None else f"{'≥' if line.more else '≤'} {line.goal:.3f}"
        unit = "ms" if line.unit == "ms" else line.unit
        remark = "; ".join(part for part in (line.verdict, line.note) if part)
        text.append(
            f"| {line.row} | {line.what} | {line.regime} | {line.subject} | {line.median:.2f} {unit} | {line.p99:.2f} "
            f"| {ratio} | {goal} | {remark} |"
        )
    return "\n".join(text)


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print("contrib/bench/run: needs root: it makes namespaces, mounts and cgroups", file=sys.stderr)
        return 2
    chosen = [int(number) for number in options.rows.split(",")]
    if unknown := set(chosen) - set(ROWS):
        print(f"contrib/bench/run: no row {sorted(unknown)}; there are {sorted(ROWS)}", file=sys.stderr)
        return 2
    wanted = {name for number in chosen for name in WANTED[number]} - set(filter(None, options.without.split(",")))
    if wanted & {"wherry", "floor"} or options.calls:
        wanted.add("wherry api")
    plan = SHORT if options.short else Plan()
    if options.row5 == "whole" and not options.short:
        plan.images, plan.pulls, plan.pull_seconds = WHOLE, 2, 660
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGTERM, end_once)
    world = World()
    failed = False
    found: dict[str, Any] = {}
    began = time.monotonic()
    lines: list[Line] = []
    try:
        absent = set_up(world, wanted, options, found)
        print(machine(), flush=True)
        for name, reason in absent.items():
            print(f"not run: {name}: {reason}")
            failed |= name in ("wherry", "wherry api", "wherry crowd")
        for number in chosen:
            try:
                lines += ROWS[number](found, plan)
                print(f"row {number}: measured after {time.monotonic() - began:.0f} s", file=sys.stderr)
            except AbsentError as reason:
                print(f"not run: row {number}: {reason}")
            except Exception as error:
                print(f"not run: row {number}: {type(error).__name__}: {error}")
                failed = True
        for reason in plan.absent:
            print(f"not run: {reason}")
        print(shown(lines))
        if options.calls and {"wherry api", "floor"} <= set(found):
            api, floor = found["wherry api"], found["floor"]
            mine = calls.counted(api.own_processes(), api.once, world.run / "calls")
            theirs = calls.counted([floor.process.pid], floor.once, world.run / "calls")
            print("\n" + calls.table(mine, theirs))
        if options.json:
            options.json.write_text(json.dumps(plan.samples, indent=1))
        print(f"\n{time.monotonic() - began:.0f} s; load {' '.join(f'{value:.2f}' for value in os.getloadavg())}")
    finally:
        for peer in list(found.values())[::-1]:
            try:
                peer.close()
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"left behind: {error}", file=sys.stderr)
                failed = True
        world.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
