"""The worker: one process for one job on one tree, forked by ``wherry.layers.zygote``.

fd 0 carries the request (JSON), fd 1 takes the answer (JSON), fd 3 is the stream of the job, fd 4 the feed of a stream that still
grows, or what the job writes to. It goes into a mount namespace of its own whose root becomes the tree, and forgets how to import
before it reads a byte of the image: from then on any file found by name is the image's. It dies with the engine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.errors import Error, Invalid, encode_error
from wherry.layers import mounts
from wherry.linux import userns

REQUEST, ANSWER, STREAM, FEED = 0, 1, 3, 4
SINK = FEED
_MEMORY = 1 << 30  # of address space; a job that needs more is an attack or a bug
Range = tuple[int, int, int]


def main() -> None:
    """Does what fd 0 asks for and leaves."""
    try:
        with open(REQUEST, "rb") as file:
            request = json.load(file)
        answer: dict[str, Any] = {"ok": _run(request)}
    except (Error, OSError) as error:
        answer = {"error": encode_error(error)}
    except RecursionError:
        answer = {"error": encode_error(Invalid("tree", "is nested too deeply"))}
    except MemoryError:
        answer = {"error": encode_error(Invalid("layer", f"needs more than {_MEMORY >> 20} MiB of memory"))}
    answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(ANSWER, "wb") as file:
        file.write(json.dumps(answer).encode())
    os._exit(0)


def load() -> None:
    """Imports what any job needs, and what the libraries need only when they are used."""
    from wherry.layers import apply, compression, copying, copyup, describe, diff, listing, usage  # noqa: F401

    compression.preload()


def _run(request: Mapping[str, Any]) -> object:
    os.nice(request["nice"])
    os.umask(0)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a diff holds two descriptors for each level
    sys.setrecursionlimit(20_000)
    job = _JOBS[request["job"]](request)  # opens what it needs
    mounts.enter(request["point"])
    roots, write = request["roots"], request["job"] == "unpack"
    if len(roots) == 1:
        mounts.make(roots[0], request["point"], write=write)
        mounts.become_root(request["point"])
        names = ["/"]
    else:
        mounts.make([("tmpfs", "tmpfs", "", ("mode=700",))], request["point"])
        names = [f"/{number}" for number in range(len(roots))]
        for name, root in zip(names, roots, strict=True):
            os.mkdir(request["point"] + name)
            if root:  # without mounts it stays the empty directory that it is
                mounts.make(root, request["point"] + name, write=write)
        mounts.become_root(request["point"])
    sys.path.clear()
    sys.meta_path.clear()
    # not before: a program that serves a root has need of its own
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    return job([os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for name in names])


Job = Callable[[Sequence[int]], object]


def _unpack(request: Mapping[str, Any]) -> Job:
    from wherry.layers.apply import apply
    from wherry.layers.growing import GrowingBlob
    from wherry.linux.path import syncfs

    grows = request["grows"]
    stream: Any = GrowingBlob(STREAM, FEED) if grows else open(STREAM, "rb", buffering=1 << 20)  # noqa: SIM115 - for life
    uids, gids = _mapper(request["uids"], "uid_map"), _mapper(request["gids"], "gid_map")  # while /proc is there

    def job(roots: Sequence[int]) -> object:
        marks = request["marks"].encode()
        try:
            # Bytes that still come are digested by whoever writes them.
            done = apply(
                roots[0], stream, uids=uids, gids=gids, devices=request["devices"], marks=marks, digested=not grows
            )
        except Error as error:
            if error.what == "layer" and request["digest"]:
                error.what = f'layer "{request["digest"]}"'  # an image has several
            raise
        if not grows and done.digest != request["digest"]:
            raise Invalid(f'layer "{request["digest"]}"', f"the bytes have the digest {done.digest}")
        if request["sync"]:
            syncfs(roots[0])
        return {"diff_id": done.diff_id, "root": done.root, "removals": [os.fsdecode(path) for path in done.removals]}

    return job


def _diff(request: Mapping[str, Any]) -> Job:
    from wherry.layers.compression import LayerWriter
    from wherry.layers.diff import diff

    sink = open(STREAM, "wb", buffering=1 << 20)  # noqa: SIM115 - a descriptor, for the life of the process
    layer = LayerWriter(sink.write, request["media_type"])

    def job(roots: Sequence[int]) -> object:
        diff(roots[0], roots[1], layer.write)
        layer.finish()
        sink.flush()
        return {"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size}

    return job


def _describe(_request: Mapping[str, Any]) -> Job:
    from wherry.layers.describe import describe

    stream = open(STREAM, "rb", buffering=1 << 20)  # noqa: SIM115 - a descriptor, for the life of the process
    return lambda _roots: describe(stream)


def _list(_request: Mapping[str, Any]) -> Job:
    from wherry.layers.listing import listing

    stream = open(STREAM, "rb", buffering=1 << 20)  # noqa: SIM115 - descriptors, for the life of the process
    sink = open(SINK, "wb", buffering=1 << 20)  # noqa: SIM115

    def job(_roots: Sequence[int]) -> object:
        entries = listing(stream, sink.write)
        sink.flush()
        return entries

    return job


def _usage(_request: Mapping[str, Any]) -> Job:
    from wherry.layers.usage import usage

    return lambda roots: usage(roots[0])


def _populate(request: Mapping[str, Any]) -> Job:
    """What an image has at a path, into a volume: written as a layer to the stream, a file, and unpacked from there."""
    from wherry.layers.copyup import copy_up

    path, devices = request["path"], request["devices"]
    stream = open(STREAM, "r+b", buffering=1 << 20)  # noqa: SIM115 - a descriptor, for the life of the process
    return lambda roots: copy_up(roots[0], path, roots[1], roots[2], stream, devices=devices)


def _copy(request: Mapping[str, Any]) -> Job:
    """One directory of the root onto another one, which is empty: in one mount, since some kernels share no data between two."""
    from wherry.layers.copying import TreeCopy

    copy = TreeCopy(reflink=request["reflink"], uids=request["uids"], gids=request["gids"])

    def job(_roots: Sequence[int]) -> object:
        copy.run(f"/{request['source']}", f"/{request['target']}")
        return {}

    return job


def _mapper(ranges: Sequence[Range], name: str) -> Callable[[int], int]:
    """Container id to host id; no ranges: as they are. Invalid for an id that no range holds. name: "uid_map" or "gid_map".

    Where there is one id only, as for a user without subordinate ones, everything is its own.
    """
    own = [(inside, inside, size) for inside, _outside, size in userns.id_map(name)]
    if sum(size for _inside, _outside, size in own) == 1:
        return lambda _id: 0
    where = "the id map" if ranges else "this user's namespace"
    ranges = ranges or own

    def translate(id: int) -> int:
        for inside, outside, size in ranges:
            if inside <= id < inside + size:
                return outside + id - inside
        raise Invalid("layer", f"has the owner {id}, which {where} does not hold", "see /etc/subuid and /etc/subgid")

    return translate


_JOBS: dict[str, Callable[[Mapping[str, Any]], Job]] = {
    "unpack": _unpack,
    "diff": _diff,
    "describe": _describe,
    "list": _list,
    "usage": _usage,
    "populate": _populate,
    "copy": _copy,
}
