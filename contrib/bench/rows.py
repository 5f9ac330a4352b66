"""The rows of the table: what is measured, how often, and which ratio is the goal."""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numbers_of import interval, percentile, ratios
from pulls import PULLERS, Image, Other, copies_too_much, once
from streams import Neighbours, address_of, filtered, gigabits, settled, unfiltered
from world import need

IDLE = 0.15
DISK_SPARE = 5e9  # bytes that row 5 leaves free


@dataclass
class Line:
    """One line of the table. median and p99 in the row's unit; ratio: ours to this peer, with its 95 % interval."""

    row: int
    what: str
    regime: str
    subject: str
    median: float
    p99: float
    count: int
    unit: str = "ms"
    ratio: float | None = None
    low: float = 0.0
    high: float = 0.0
    goal: float | None = None
    note: str = ""
    more: bool = False  # whether more is better

    @property
    def verdict(self) -> str:
        if self.ratio is None or self.goal is None:
            return ""
        if self.more:
            return "reached" if self.ratio >= self.goal else f"missed by {1 - self.ratio / self.goal:.0%}"
        return "reached" if self.ratio <= self.goal else f"missed by {self.ratio / self.goal - 1:.0%}"


SMALL = (
    Image(300, 3000, 1, "gzip"), Image(300, 3000, 1, "zstd"), Image(300, 3000, 20, "gzip"), Image(300, 3000, 100, "gzip"),
)  # fmt: skip
WHOLE = (
    Image(1400, 88_000, 1, "gzip"), Image(1400, 88_000, 1, "zstd"), Image(1400, 88_000, 20, "gzip"),
    Image(1400, 88_000, 100, "gzip"),
)  # fmt: skip


@dataclass
class Plan:
    """How much to measure. rounds for quick things, slow for those that take a tenth of a second."""

    rounds: int = 100
    idle_rounds: int = 40
    slow: int = 25
    containers: int = 300
    peer_containers: int = 100
    burst: int = 100
    bursts: int = 3
    streams: int = 7
    seconds: int = 3
    pulls: int = 3
    pull_seconds: float = 270  # after which row 5 begins with no other image
    records: int = 10_000
    many_images: int = 1000
    restarts: int = 5
    images: tuple[Image, ...] = SMALL
    absent: list[str] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)


def interleaved(subjects: Mapping[str, Callable[[], float]], rounds: int, gap: float) -> dict[str, list[float]]:
    """Every subject once a round, in random order; gap seconds of rest before each."""
    chance = random.Random(7)
    names = list(subjects)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        chance.shuffle(names)
        for name in names:
            if gap:
                time.sleep(gap)
            elapsed = subjects[name]()
            if turn:  # the first round only warms up
                found[name].append(elapsed)
    return found


def lines_of(
    row: int,
    what: str,
    regime: str,
    found: Mapping[str, Sequence[float]],
    ours: str,
    goals: Mapping[str, float],
) -> list[Line]:
    lines = []
    for name, values in found.items():
        line = Line(
            row, what, regime, name, statistics.median(values) * 1e3, percentile(values, 0.99) * 1e3, len(values)
        )
        if name != ours and ours in found:
            each = ratios(found[ours], values)
            line.ratio = statistics.median(each)
            line.low, line.high = interval(each)
            line.goal = goals.get(name)
        lines.append(line)
    return lines


def timed(
    row: int,
    what: str,
    subjects: Mapping[str, Callable[[], float]],
    ours: str,
    goals: Mapping[str, Mapping[str, float]],
    plan: Plan,
    *,
    slow: bool = False,
) -> list[Line]:
    """Both regimes of one workload."""
    lines = []
    for regime, gap, rounds in (
        ("back to back", 0.0, plan.slow if slow else plan.rounds),
        ("150 ms idle", IDLE, plan.slow if slow else plan.idle_rounds),
    ):
        found = interleaved(subjects, rounds, gap)
        for name, values in found.items():
            plan.samples[f"{row} {what} / {regime} / {name}"] = values
        lines += lines_of(row, what, regime, found, ours, goals[regime])
    return lines


def both(goals: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    return {"back to back": goals, "150 ms idle": goals}


def row_1(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    """create, start, exit and delete of ``true`` by API; the bundle runtimes by command line, as they have no other way."""
    names = [name for name in ("wherry api", "wherry in process", "floor", "crun", "runc") if name in peers]
    goals = {
        "back to back": {"floor": 1.5, "crun": 0.7, "runc": 1 / 6},
        "150 ms idle": {"floor": 1.5, "crun": 0.5, "runc": 1 / 6},
    }
    lines = []
    if names:
        lines += timed(1, "run true, API", {name: peers[name].once for name in names}, "wherry api", goals, plan)
    for what, api, shell, other in (
        ("rootless run true", "wherry rootless api", "wherry rootless", "podman rootless"),
        ("rootless run true, fuse-overlayfs", "", "wherry rootless fuse-overlayfs", "podman rootless fuse-overlayfs"),
    ):
        subjects = {name: peers[name].once for name in (api, shell, other) if name in peers}
        if shell in subjects:
            lines += timed(1, what, subjects, shell, both({}), plan, slow=True)
    return lines


def row_2(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    names = [name for name in ("wherry", "docker", "podman", "runc", "crun") if name in peers]
    goals = both({"docker": 1 / 10, "podman": 1 / 7, "runc": 1 / 2})
    return timed(
        2, "run --rm true, command line", {name: peers[name].once for name in names}, "wherry", goals, plan, slow=True
    )


def row_3(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    names = [name for name in ("wherry", "docker", "podman") if name in peers]
    goals = both({"docker": 1 / 15, "podman": 1 / 11})
    subjects = {name: peers[name].published for name in names}
    return timed(3, "run --rm -p PORT:80 true, bridge, command line", subjects, "wherry", goals, plan, slow=True)


def row_4(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    lines = []
    holders = [peers[name] for name in ("wherry api", "wherry", "floor", "crun", "docker", "podman") if name in peers]
    for peer in holders:
        peer.hold()
    try:
        api = {name: peers[name].execute for name in ("wherry api", "floor", "crun") if name in peers}
        lines += timed(4, "exec true, API", api, "wherry api", both({"crun": 1 / 3}), plan)
        shell = {name: peers[name].execute for name in ("wherry", "docker", "podman") if name in peers}
        goals = both({"docker": 1 / 5, "podman": 1 / 9})
        lines += timed(4, "exec true, command line", shell, "wherry", goals, plan, slow=True)
    finally:
        for peer in holders:
            peer.drop()
    return lines


def row_5(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    """Pull and unpack, another image each time. Goals: half of what each other one takes, and 1.2 times the slowest stage alone.

    What time and disk do not suffice for is said in ``plan.absent``.
    """
    registry = peers.get("registry")
    if registry is None:
        return []
    pullers = {
        name: Other(peers[name]) if name in ("docker", "podman") else peers[name] for name in PULLERS if name in peers
    }
    plan.absent.append("row 5: erofs: there is no such snapshotter yet")
    warm = registry.push(Image(2, 60, 1, "gzip"), 0)
    for puller in pullers.values():
        once(puller, warm)
    found: dict[Image, dict[str, list[float]]] = {}
    alone: dict[Image, dict[str, float]] = {}
    chance = random.Random(7)
    until, longest = time.monotonic() + plan.pull_seconds, 0.0
    for turn in range(plan.pulls):
        for image in plan.images:
            names = [name for name in pullers if not copies_too_much(name, image)]
            if turn == 0:
                plan.absent += [
                    f"row 5: {name}: {image.title}: it copies too much" for name in sorted(pullers.keys() - set(names))
                ]
            began = time.monotonic()
            if began + longest > until:
                plan.absent.append(f"row 5: {image.title}: round {turn + 1}: no time is left")
                continue
            if shutil.disk_usage(registry.base).free < DISK_SPARE + image.megabytes * 1e6 * (1 + 1.6 * len(names)):
                plan.absent.append(f"row 5: {image.title}: round {turn + 1}: the disk is too small")
                continue
            reference = registry.push(image, turn)
            times = found.setdefault(image, {name: [] for name in names})
            chance.shuffle(names)
            for name in names:
                times[name].append(once(pullers[name], reference))
            if image not in alone:
                alone[image] = registry.stages(image, turn)
            registry.forget(image, turn)
            longest = max(longest, time.monotonic() - began)
            print(f"row 5: {image.title}: round {turn + 1}: {times}", file=sys.stderr)
    lines: list[Line] = []
    goals = dict.fromkeys(("containerd", "docker", "podman"), 0.5)
    for image, times in found.items():
        for name, values in times.items():
            plan.samples[f"5 {image.title} / {name}"] = values
        lines += lines_of(5, image.title, "another image each round", times, "wherry overlayfs", goals)
        stages = alone[image]
        slowest = max(stages, key=lambda name: stages[name])
        for name, seconds in stages.items():
            line = Line(5, image.title, "", name, seconds * 1e3, seconds * 1e3, 1)
            if ours := times.get("wherry overlayfs"):
                line.ratio = line.low = line.high = statistics.median(ours) / seconds
                line.goal = 1.2 if name == slowest else None
            lines.append(line)
    return lines


def used_memory() -> int:
    """Bytes of the machine that are neither free nor page cache, kernel memory included (proc_meminfo(5))."""
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024
    return fields["MemTotal"] - fields["MemFree"] - fields["Buffers"] - fields["Cached"] - fields["SwapCached"]


def row_7(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    """Memory of the runtime's own processes, for each idle container; and the whole machine's, beyond the floor's."""
    lines = []
    machine: dict[str, float] = {}
    for name in ("floor", "wherry api", "podman", "docker"):
        if name not in peers:
            continue
        peer = peers[name]
        if hasattr(peer, "once"):
            peer.once()
        before, count_before = peer.helpers()
        whole_before = used_memory()
        count = plan.peer_containers if name in ("podman", "docker") else plan.containers
        peer.idle(count)
        time.sleep(1.0)
        after, count_after = peer.helpers()
        machine[name] = (used_memory() - whole_before) / count / 1024
        own = (after - before) / count / 1024
        beyond = machine[name] - machine.get("floor", 0.0)
        helpers = (count_after - count_before) / count
        note = f"{helpers:.2f} helper processes each; whole machine {machine[name]:.0f} KiB each, {beyond:+.0f} beyond the floor"
        line = Line(
            7,
            "idle containers, own memory",
            f"{count} of them",
            name,
            own,
            own,
            plan.containers,
            "KiB each",
            note=note,
        )
        if name == "wherry api":
            line.ratio, line.low, line.high, line.goal = own / 100, own / 100, own / 100, 1.0
        lines.append(line)
        if hasattr(peer, "drop_idle"):
            peer.drop_idle()
    return lines


def row_8(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    lines = []
    names = [name for name in ("wherry api", "wherry", "podman", "docker") if name in peers]
    walls: dict[str, list[float]] = {name: [] for name in names}
    eachs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(plan.bursts):
        for name in random.Random(len(walls[names[0]])).sample(names, len(names)):
            wall, each = peers[name].together(plan.burst)
            walls[name].append(wall)
            eachs[name] += each
    for name in names:
        plan.samples[f"8 burst / {name}"] = walls[name]
        middle, late = statistics.median(eachs[name]) * 1e3, percentile(eachs[name], 0.99) * 1e3
        wall = [seconds * 1e3 for seconds in walls[name]]
        line = Line(8, f"{plan.burst} starts at once", "", name, statistics.median(wall), max(wall), plan.bursts)
        line.note = f"each: p50 {middle:.0f} ms, p99 {late:.0f} ms, {late / middle:.1f} times"
        if name in ("podman", "docker") and "wherry" in names:
            each_ratio = ratios(walls["wherry"], walls[name])
            line.ratio, (line.low, line.high) = statistics.median(each_ratio), interval(each_ratio)
            line.goal = 1 / 15
            if "wherry api" in names:
                line.note += f"; ours by API / it {statistics.median(ratios(walls['wherry api'], walls[name])):.3f}"
        lines.append(line)
    return lines


def row_9(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    """Throughput of one TCP connection, Gbit/s: between two containers, and from a machine outside to a published port."""
    names = [name for name in ("wherry", "docker", "podman") if name in peers]
    users = [name for name in ("wherry rootless", "podman rootless") if name in peers]
    need("iperf3")
    inner = 5201
    hand = Neighbours()
    held = []
    try:
        between: dict[str, Callable[[], float]] = {
            "veth pair": partial(gigabits, hand.left, hand.right, address_of(hand.right), inner, inner, plan.seconds)
        }
        outside: dict[str, Callable[[], float]] = {}
        for name in names:
            held.append(peers[name])
            left, right = peers[name].neighbours(inner)
            address, port = address_of(right), peers[name].port
            between[name] = partial(gigabits, left, right, address, inner, inner, plan.seconds)
            outside[name] = partial(gigabits, hand.outside, right, hand.host, port, inner, plan.seconds)
        lines = _streams("between two containers", between, "wherry", {"veth pair": 0.98}, plan)
        if filtered():
            with unfiltered():
                lines += _streams(
                    "between two containers, br_netfilter off", between, "wherry", {"veth pair": 0.98}, plan
                )
        lines += _streams("to a published port", outside, "wherry", {"docker": 1.0}, plan)
        between, outside = {}, {}
        for name in users:
            held.append(peers[name])
            left, right, web = peers[name].rootless_neighbours(inner)
            between[name] = partial(gigabits, left, right, address_of(right), inner, inner, plan.seconds)
            outside[name] = partial(gigabits, hand.outside, web, hand.host, peers[name].port, inner, plan.seconds)
        goals = {"podman rootless": 1.0}
        lines += _streams("rootless, between two containers", between, "wherry rootless", goals, plan)
        return lines + _streams("rootless, to a published port", outside, "wherry rootless", goals, plan)
    finally:
        for peer in held:
            peer.part()
        hand.close()


def _streams(
    what: str, subjects: Mapping[str, Callable[[], float]], ours: str, goals: Mapping[str, float], plan: Plan
) -> list[Line]:
    for measure in subjects.values():
        settled(measure)
    found = interleaved(subjects, plan.streams, 0.0)
    lines = []
    for name, values in found.items():
        plan.samples[f"9 {what} / {name}"] = values
        line = Line(9, what, "", name, statistics.median(values), min(values), len(values), "Gbit/s", more=True)
        if name != ours and ours in found:
            each = ratios(found[ours], values)
            line.ratio, (line.low, line.high) = statistics.median(each), interval(each)
            line.goal = goals.get(name)
        line.note = "the least in place of p99"
        lines.append(line)
    return lines


def row_10(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    """What a crowd of containers and images costs. Ours alone: to fill the others takes them a quarter of an hour."""
    crowd = peers["wherry crowd"]
    crowd.fill(plan.records, plan.many_images)
    what = f"{plan.records} containers, {plan.many_images} images"
    samples: dict[str, list[float]] = {
        "ps -a": [crowd.listed("ps", "-a") for _ in range(plan.slow)],
        "images": [crowd.listed("images") for _ in range(plan.slow)],
        "engine restart": [crowd.restart() for _ in range(plan.restarts)],
    }
    goals = {"ps -a": 50.0, "images": 50.0, "engine restart": 1000.0}
    alone = crowd.creates(plan.rounds)
    with crowd.collecting() as collections:
        beside = crowd.creates(plan.rounds)
    samples |= {"create": alone, "create beside gc": beside, "gc": collections}
    lines = []
    for name, values in samples.items():
        plan.samples[f"10 {name}"] = values
        middle = statistics.median(values) * 1e3
        line = Line(10, f"{name}; {what}", "", "wherry", middle, percentile(values, 0.99) * 1e3, len(values))
        if name in goals:
            line.ratio = line.low = line.high = middle / goals[name]
            line.goal, line.note = 1.0, f"of {goals[name]:.0f} ms"
        if name == "create beside gc":
            held = max(beside) - max(alone)
            line.ratio = line.low = line.high = max(0.0, held) * 1e3 / 10
            line.goal, line.note = (
                1.0,
                f"of 10 ms: the longest took {max(beside) * 1e3:.1f} ms, without gc {max(alone) * 1e3:.1f}",
            )
        lines.append(line)
    return lines


def row_11(peers: Mapping[str, Any], plan: Plan) -> list[Line]:
    lines = []
    names = [name for name in ("wherry", "docker", "podman") if name in peers]
    for verb in ("version", "ps"):
        subjects = {name: getattr(peers[name], verb) for name in names}
        lines += timed(11, verb, subjects, "wherry", both({"docker": 1.0, "podman": 0.5}), plan, slow=True)
    return lines


ROOTLESS = ("user", "wherry rootless", "podman rootless")
FUSE = ("wherry rootless fuse-overlayfs", "podman rootless fuse-overlayfs")
ROWS: dict[int, Callable[[Mapping[str, Any], Plan], list[Line]]] = {
    1: row_1, 2: row_2, 3: row_3, 4: row_4, 5: row_5, 7: row_7, 8: row_8, 9: row_9, 10: row_10, 11: row_11,
}  # fmt: skip
#: Who takes part in which row; a row runs with those that are there.
WANTED: dict[int, tuple[str, ...]] = {
    1: ("wherry api", "wherry in process", "floor", "crun", "runc", *ROOTLESS, "wherry rootless api", *FUSE),
    2: ("wherry", "docker", "podman", "runc", "crun"),
    3: ("wherry", "docker", "podman"),
    4: ("wherry api", "wherry", "floor", "crun", "docker", "podman"),
    5: ("registry", "wherry overlayfs", "wherry vfs", "containerd", "docker", "podman"),
    7: ("floor", "wherry api", "podman", "docker"),
    8: ("wherry api", "wherry", "podman", "docker"),
    9: ("wherry", "docker", "podman", *ROOTLESS),
    10: ("wherry crowd",),
    11: ("wherry", "docker", "podman"),
}
