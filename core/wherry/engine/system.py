"""info, plugins, config, gc, doctor and reset: what concerns the whole root."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from attrs import evolve

import wherry
from wherry.api import (
    BlobInfo,
    DiskUsage,
    Error,
    Finding,
    GcReport,
    Info,
    Mount,
    NotFound,
    Origin,
    PluginInfo,
    Process,
    Snapshotter,
    Store,
    Volume,
    VolumeUse,
)
from wherry.engine.containers import idmaps
from wherry.engine.containers.containers import Containers
from wherry.engine.recovery import Recovery, busy
from wherry.engine.state.database import boot_id
from wherry.engine.state.pacing import paced
from wherry.engine.state.state import State
from wherry.engine.state.undo import attempt
from wherry.kernel.log import logger as log


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat in clock ticks (proc_pid_stat(5)); 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def _damage(store: Store, blob: BlobInfo) -> str:
    """What a look at a blob's length tells, "" for nothing; reading all bytes of all images would take minutes."""
    try:
        with store.open(blob.digest) as stream:
            if not stream.seekable():
                return ""
            size = stream.seek(0, os.SEEK_END)
    except NotFound:
        return ""  # deleted just now
    except Error as error:
        if type(error) is not Error:  # Unavailable, PluginFault ...: of the driver, not of the blob
            raise
        return error.cause
    return "" if size == blob.size else f"has {size} bytes, not {blob.size}"


class System:
    def __init__(self, state: State, lifecycle: Containers, recovery: Recovery) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._recovery = recovery

    def info(self) -> Info:
        state = self._state
        pid, shim = os.getpid(), state.shim
        return Info(
            engine=Process(pid, start_time(pid), wherry.__version__),
            shim=Process(shim.pid, shim.start_time, shim.version),
            root=str(state.root),
            run=str(state.run),
            config=state.loaded.file,
            features=tuple(sorted(state.kernel.features())),
            chosen=state.kernel.chosen(),
            passed_over=state.kernel.passed_over(),
            ids=idmaps.words(str(state.run), state.kernel.features()),
            limits=idmaps.limits(),
        )

    def plugins(self) -> tuple[PluginInfo, ...]:
        return self._state.kernel.plugins()

    def config(self) -> tuple[Origin, ...]:
        return self._state.kernel.config()

    def disk_usage(self, *, images_only: bool) -> DiskUsage:
        state = self._state
        usage = state.images.disk_usage(list(state.registry), images_only=images_only)
        if images_only:
            return usage
        volumes = [
            VolumeUse(volume.name, volume.driver, self._size(volume), len(state.volumes.users(volume.name)))
            for volume in state.volumes.every()
        ]
        return evolve(usage, volumes=tuple(volumes))

    def _size(self, volume: Volume) -> int:
        """Bytes, as a worker counts them; -1 where that can't be told."""
        if not volume.mountpoint:
            return -1
        try:
            return self._state.kernel.workers.usage((Mount("bind", volume.mountpoint, "", ("rbind", "ro")),))[0]
        except (Error, OSError) as error:
            log.warning("volume {}: {}", volume.name, error)
            return -1

    # gc

    def live(self) -> set[str]:
        """What containers, leases and plugins hold, written as in ``Context.hold``."""
        state = self._state
        held = set(state.leases.resources())
        for record in paced(state.registry):
            driver = record.drivers.get("snapshotter", "")
            held.add(f"snapshot/{driver}/{record.id}")
            if record.chain_id:
                held.add(f"snapshot/{driver}/{record.chain_id}")
            if record.image_digest:
                held.add(f"blob/{record.image_digest}")
        held.update(state.kernel.gc_roots())
        return held

    def gc(self) -> GcReport:
        return self._state.images.gc()

    # doctor

    def doctor(self, repair: bool) -> tuple[Finding, ...]:
        """Looks for what a crash may have left; with repair it is taken away. A second run then finds nothing."""
        state = self._state
        findings = [Finding("database", problem) for problem in state.database.check()]
        if state.database.get("boot") != boot_id():
            findings.append(Finding("database", "belongs to another boot"))
        tasks, sandboxes, bundles = self._recovery.orphans()
        found = [f"process of container {task.id[:12]}" for task in tasks]
        found += [f"sandbox {id[:12]}" for id in sandboxes]
        found += [f"bundle {path.name[:12]}" for path in bundles]
        found += [f"cgroup {path}" for path in self._recovery.cgroups()]
        done = set(self._recovery.sweep()) if repair else set()
        repaired = "taken down" if repair else ""
        findings += [Finding(what, "belongs to no running container", repaired) for what in found]
        findings += [
            Finding(what, "belongs to no running container", repaired)
            for what in sorted(done.difference(found))
            if "attachments" in what
        ]
        findings += self._networks()
        findings += self._blobs(repair)
        findings += self._snapshots(repair)
        findings += self._leftover_removals(repair)
        return tuple(findings)

    def _networks(self) -> list[Finding]:
        """Places of running containers that are not as their drivers made them: others have changed the host's links, rules or
        switches. Drivers make rules anew when asked; a link comes back with the next start."""
        state = self._state
        findings = []
        for record in list(state.registry):
            if not record.lock.acquire(blocking=False):  # it starts, ends, or is being connected
                continue
            try:
                for place in state.attached.get(record.id, ()) if record.live else ():
                    try:
                        state.network(place.driver, record).check(record.id, place.network)
                    except (Error, OSError) as error:
                        if any(task.status != "stopped" and not task.exec_id for task in state.shim.list(record.id)):
                            findings.append(
                                Finding(f"network {place.network} of container {record.id[:12]}", str(error))
                            )
            finally:
                record.lock.release()
        return findings

    def _blobs(self, repair: bool) -> list[Finding]:
        """Blobs whose bytes are gone or of another length. Forgotten, they are fetched again with the image's next load or pull."""
        state = self._state
        findings = []
        for id in state.kernel.usable("store"):
            failures: list[tuple[str, Exception]] = []
            try:
                store: Store = state.kernel.driver("store", id)
                for blob in list(store.walk()):
                    if problem := _damage(store, blob):
                        gone = repair and attempt(failures, "delete", partial(store.delete, blob.digest))
                        findings.append(Finding(f"blob {blob.digest}", problem, "forgotten" if gone else ""))
            except (Error, OSError) as error:
                findings.append(Finding(f"store {id}", str(error)))
            state.report(failures, f"doctor: store {id}")
        return findings

    def _snapshots(self, repair: bool) -> list[Finding]:
        """Active snapshots named like a container that is not there."""
        state = self._state
        findings = []
        for id in state.kernel.usable("snapshotter"):
            try:
                driver: Snapshotter = state.kernel.driver("snapshotter", id)
                names = [
                    info.name for info in driver.walk() if info.kind != "committed" and _is_container_id(info.name)
                ]
                # Asked after the list was made: a create holds the name of its snapshot before it prepares it.
                held = self.live()
                stray = [name for name in names if f"snapshot/{id}/{name}" not in held]
            except (Error, OSError) as error:
                findings.append(Finding(f"snapshotter {id}", str(error)))
                continue
            failures: list[tuple[str, Exception]] = []
            for name in stray:
                what = f"snapshot {id}/{name[:12]}"
                gone = repair and attempt(failures, "remove", partial(driver.remove, name))
                findings.append(Finding(what, "belongs to no container", "removed" if gone else ""))
            if repair and stray:
                attempt(failures, "cleanup", driver.cleanup)
            state.report(failures, f"doctor: snapshotter {id}")
        return findings

    def _leftover_removals(self, repair: bool) -> list[Finding]:
        """Containers that should have gone with their end."""
        findings = []
        for record in list(self._state.registry):
            if record.remove and record.status == "stopped" and not busy(record):
                repaired = ""
                if repair:
                    try:
                        self._lifecycle.remove(record.id, force=False)
                        repaired = "removed"
                    except (Error, OSError) as error:
                        log.warning("doctor: container {}: {}", record.id[:12], error)
                findings.append(Finding(f"container {record.id[:12]}", "should have removed itself", repaired))
        return findings

    # reset

    def reset(self) -> None:
        """Every container, image and snapshot goes. What can't be removed is said by the error of the first."""
        state = self._state
        problem: Error | OSError | None = None
        for record in list(state.registry):
            try:
                self._lifecycle.remove(record.id, force=True)
            except (Error, OSError) as error:
                problem = problem or error
        try:
            state.volumes.prune(all=True)
        except (Error, OSError) as error:
            problem = problem or error
        for image in state.images.list():
            for name in image.names or (image.id,):
                try:
                    state.images.remove(name, force=True)
                except (Error, OSError) as error:
                    problem = problem or error
        self._recovery.sweep()
        state.images.gc()
        for finding in self._snapshots(repair=True):
            log.info("reset: {}: {}", finding.what, finding.repair)
        if problem is not None:
            raise problem


def _is_container_id(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)
