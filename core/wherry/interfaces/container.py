"""Containers and their processes, as front ends see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from wherry.interfaces.common import Kind, Labels
from wherry.interfaces.network import Port


@frozen
class Container:
    """A container as ``ps`` shows it. Times are ns since the epoch, 0 for not yet. drivers: which driver of each kind made
    it; exit_code None: not exited, or unknown (status tells)."""

    id: str
    name: str
    image: str
    image_digest: str
    command: tuple[str, ...]
    created: int
    status: Literal["creating", "created", "running", "paused", "stopped"]
    pid: int
    started: int
    finished: int
    exit_code: int | None
    oom_killed: bool
    labels: Labels
    ports: tuple[Port, ...]
    networks: tuple[str, ...]
    addresses: tuple[str, ...]
    variant: str
    drivers: Mapping[Kind, str]
    sandbox_id: str
    remove: bool = False
    tty: bool = False
    error: str = ""


@frozen
class ContainerProcess:
    """A process of a container as the host sees it, by the host's numbers. started: ns since the epoch; cpu: ns; virtual and
    resident: bytes of memory; state: the letter of proc_pid_stat(5); terminal: its name below /dev, "" for none."""

    pid: int
    parent: int
    uid: int
    gid: int
    state: str
    terminal: str
    started: int
    cpu: int
    threads: int
    virtual: int
    resident: int
    name: str
    command: tuple[str, ...]
