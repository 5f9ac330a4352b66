"""The command line without an engine: a fake one, and a client at the other end of a socket pair."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wherry.api import Connection, Container, Descriptor, Digest, Exit, ImageInfo, NotFound
from wherry.linux import framing
from wherry_plugins.frontend.cli.server import CliConfig, CliFrontend


def container(**changes: Any) -> Container:
    """A running container."""
    fields: dict[str, Any] = {
        "id": "c0ffee" * 10 + "beef",
        "name": "tidy_tug",
        "image": "docker.io/library/busybox:latest",
        "image_digest": "sha256:" + "a" * 64,
        "command": ("sh", "-c", "sleep 1000"),
        "created": 1_700_000_000 * 10**9,
        "status": "running",
        "pid": 4242,
        "started": 1_700_000_001 * 10**9,
        "finished": 0,
        "exit_code": None,
        "oom_killed": False,
        "labels": {"tier": "db"},
        "ports": (),
        "networks": ("none",),
        "addresses": (),
        "variant": "standard",
        "drivers": {"snapshotter": "overlayfs", "isolation": "namespaces"},
        "sandbox_id": "c0ffee",
    }
    return Container(**{**fields, **changes})


def image(**changes: Any) -> ImageInfo:
    """An image with one name."""
    target = Descriptor("application/vnd.oci.image.manifest.v1+json", Digest("sha256:" + "b" * 64), 500)
    fields: dict[str, Any] = {
        "id": "sha256:" + "a" * 64,
        "names": ("docker.io/library/busybox:latest",),
        "target": target,
        "created": 1_700_000_000 * 10**9,
        "size": 4_261_550,
        "labels": {},
        "platform": "linux/amd64",
    }
    return ImageInfo(**{**fields, **changes})


class FakeEngine:
    """Records its calls; answers and effects are set by the test: ``answers["name"] = value or function``."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "run": container(),
            "create": container(),
            "container": container(),
            "wait": Exit(0, 0),
            "exec": "e1",
            "attach": "token-1",
            "containers": (container(),),
            "images": (image(),),
            **answers,
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer(*args, **kwargs) if callable(answer) else answer

        return call

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a method."""
        return [args for called, args, _kwargs in self.calls if called == name]


class Client:
    """One command: its streams are pipes, its socket is ours to speak on."""

    def __init__(
        self,
        engine: Any,
        argv: tuple[str, ...],
        *,
        cwd: str = "/",
        environ: Mapping[str, str] | None = None,
        given: Mapping[str, str] | None = None,
        tty: tuple[bool, bool, bool] = (False, False, False),
        stdin: bytes = b"",
        cli: CliFrontend | None = None,
        blocking: bool = True,
        stdout: str = "",
    ) -> None:
        self.cli = cli or CliFrontend(CliConfig(), None)
        self.cli.engine = engine
        if cli is None:
            threading.Thread(target=self.cli.hub.run, daemon=True).start()
        self.near, far = socket.socketpair()
        self.near.settimeout(20)
        self.reader = framing.Reader(self.near)
        inner, write_end = os.pipe()
        os.write(write_end, stdin)
        os.close(write_end)
        self.out_end, out = os.pipe()
        self.err_end, err = os.pipe()
        os.set_blocking(out, blocking)
        if stdout:  # a file in the place of the pipe
            os.close(out)
            out = os.open(stdout, os.O_WRONLY)
        hello = {
            "wherry": 1,
            "version": "0.1.0",
            "frontend": "cli",
            "argv": list(argv),
            "cwd": cwd,
            "environ": dict(environ or {}),
            "given": dict(given or {}),
            "tty": list(tty),
            "size": [24, 80] if any(tty) else [0, 0],
            "umask": 0o22,
        }
        connection = Connection(far, hello, (inner, out, err))
        self.thread = threading.Thread(target=self.cli.handle, args=(connection,), daemon=True)
        self.thread.start()

    def frames(self) -> Iterator[dict[str, Any]]:
        """What the engine sends, to the end."""
        while (frame := self.reader.next()) is not None:
            yield frame[0]

    def finish(self) -> tuple[int | None, str, str]:
        """(exit code, stdout, stderr), after the end."""
        code = None
        self.seen = list(self.frames())
        for frame in self.seen:
            code = frame.get("exit", code)
        self.thread.join(20)
        texts = []
        for end in (self.out_end, self.err_end):
            with os.fdopen(end, "rb") as stream:
                texts.append(stream.read().decode("utf-8", "surrogateescape"))
        self.near.close()
        return code, texts[0], texts[1]


def call(engine: Any, *argv: str, **options: Any) -> tuple[int | None, str, str]:
    """Runs one command to its end: (exit code, stdout, stderr)."""
    return Client(engine, argv, **options).finish()


def absent(name: str) -> NotFound:
    """What an engine raises for a name that it does not know."""
    return NotFound(f'container "{name}"', "there is none of that name or id")
