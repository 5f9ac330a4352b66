"""Debian's docker-registry, filled by skopeo: what an honest registry has arrives whole, by every way to log in, and runs."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineDirs, Wherry
from support.layers import member, tar
from support.registry import (
    DebianRegistry,
    certificate,
    debian,
    image,
    index_of,
    layout,
    pull,
    push,
    transport,
)
from wherry.api import Denied, Engine, NotFound
from wherry_plugins.transport.registry import HostConfig


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DebianRegistry]:
    with debian(tmp_path / "registry") as running:
        yield running


def ref(registry: DebianRegistry, busybox_image: Path, name: str = "box:1") -> str:
    push(f"oci:{busybox_image / 'oci'}", registry.host, name)
    return f"{registry.host}/{name}"


def test_pull_and_run(registry: DebianRegistry, busybox_image: Path, wherry: Wherry) -> None:
    name = ref(registry, busybox_image)
    lines = wherry("pull", name).stdout.splitlines()
    assert lines[-1] == name
    assert all(re.fullmatch(r"[0-9a-f]{12}: (Done|Already exists)", line) for line in lines[:-2])
    again = wherry("pull", name).stdout.splitlines()
    assert all(line.endswith(": Already exists") for line in again[:-2])
    assert wherry("pull", "-q", name).stdout == f"{name}\n"
    assert wherry("run", "--rm", name, "echo", "hello").stdout == "hello\n"
    assert f"{registry.host}/box" in wherry("images").stdout


def test_run_fetches_what_is_not_here(registry: DebianRegistry, busybox_image: Path, wherry: Wherry) -> None:
    name = ref(registry, busybox_image)
    for options in ((), ("-q",)):
        done = wherry("run", "--rm", *options, name, "echo", "hello")
        assert done.stdout == "hello\n"
        assert done.stderr.count(": Done\n") == (0 if options else 3), (
            "manifest, config and layer are shown on their way"
        )
        assert wherry("run", "--rm", name, "true").stderr == "", "and what is here is not"
        wherry("rmi", name)
    missing = wherry("run", "--rm", f"{registry.host}/box:2", "true", code=125).stderr
    assert f'image "{registry.host}/box:2"' in missing
    assert "manifest unknown" in missing


def test_by_digest(registry: DebianRegistry, busybox_image: Path, engine: Engine) -> None:
    name = ref(registry, busybox_image)
    *_, _last = engine.pull(name)
    (found,) = engine.images()
    by_digest = f"{registry.host}/box@{found.target.digest}"
    *_, last = engine.pull(by_digest)
    assert last.id == by_digest
    assert {info.id for info in engine.images()} == {found.id}
    with pytest.raises(NotFound):
        list(engine.pull(f"{registry.host}/box@sha256:{'0' * 64}"))


def test_platforms(registry: DebianRegistry, tmp_path: Path, engine: Engine) -> None:
    platforms = {
        "linux/amd64": image(tar(member("amd64")), architecture="amd64"),
        "linux/arm64/v8": image(tar(member("arm64")), architecture="arm64"),
    }
    content = index_of(platforms)
    push(f"oci:{layout(tmp_path / 'layout', content)}:1", registry.host, "many:1", "--all")
    name = f"{registry.host}/many:1"
    layers = {platform: content.layers[0].digest for platform, content in platforms.items()}
    fetched = {step.id for step in engine.pull(name, platform="linux/arm64") if step.status == "fetching"}
    assert layers["linux/arm64/v8"] in fetched
    assert layers["linux/amd64"] not in fetched, "only what was asked for"
    with pytest.raises(NotFound, match="linux/s390x"):
        list(engine.pull(name, platform="linux/s390x"))
    assert layers["linux/amd64"] in {step.id for step in engine.pull(name)}
    assert engine.image(name).target.digest == content.target.digest, "the name stands for all platforms"


def test_many_layers(registry: DebianRegistry, tmp_path: Path, engine: Engine) -> None:
    layers = [tar(member(f"file{number}", data=os.urandom(5000))) for number in range(40)]
    push(f"oci:{layout(tmp_path / 'layout', image(*layers))}:1", registry.host, "deep:1")
    seen = list(engine.pull(f"{registry.host}/deep:1"))
    fetched = {step.id for step in seen if step.status == "fetching"}
    assert len(fetched) >= 41
    assert seen[-1].status == "done"


class TestLogins:
    def login(self, directory: Path, host: str, user: str = "me", password: str = "s3cret") -> None:
        directory.mkdir(exist_ok=True)
        entry = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
        (directory / "config.json").write_text(json.dumps({"auths": {host: entry}}))

    def test_dockers_config(self, tmp_path: Path, busybox_image: Path, wherry: Wherry, engine_dirs: EngineDirs) -> None:
        with debian(tmp_path / "registry", user="me", password="s3cret") as registry:
            push(f"oci:{busybox_image / 'oci'}", registry.host, "box:1", "--dest-creds", "me:s3cret")
            name = f"{registry.host}/box:1"
            assert "there are none for it" in wherry("pull", name, code=1).stderr
            self.login(engine_dirs.root.parent / ".docker", registry.host, password="wrong")
            assert "need other credentials" in wherry("pull", name, code=1).stderr
            self.login(engine_dirs.root.parent / ".docker", registry.host)
            assert wherry("pull", "-q", name).stdout == f"{name}\n"
            assert "s3cret" not in (engine_dirs.run / "engine.log").read_text()

    def test_over_tls(self, tmp_path: Path, busybox_image: Path) -> None:
        pair = certificate(tmp_path)
        with debian(tmp_path / "registry", user="me", password="s3cret", tls=pair) as registry:
            push(f"oci:{busybox_image / 'oci'}", registry.host, "box:1", "--dest-creds", "me:s3cret")
            hosts = {registry.host: HostConfig(ca=str(pair[0]))}
            assert pull(transport({registry.host: ("me", "s3cret")}, hosts=hosts), f"{registry.host}/box:1")
            with pytest.raises(Denied):
                transport(hosts=hosts).resolve(f"{registry.host}/box:1", "")


def test_bars_on_a_terminal(registry: DebianRegistry, tmp_path: Path, wherry: Wherry) -> None:
    """A bar for each layer, redrawn in place; the last that is seen is all of them done, and the name."""
    layers = [tar(member(f"file{number}", data=os.urandom(300_000))) for number in range(3)]
    content = image(*layers)
    push(f"oci:{layout(tmp_path / 'layout', content)}:1", registry.host, "big:1")
    master, slave = pty.openpty()
    process = wherry.popen("pull", f"{registry.host}/big:1", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                shown.append(data)
        except OSError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(60) == 0
    reader.join(10)
    os.close(master)
    text = b"".join(shown).decode()
    assert text.rstrip().endswith(f"{registry.host}/big:1")
    assert "\x1b[?25h" in text, "the cursor is back"
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text[text.rindex("\x1b[?25l") :])
    for layer in content.layers:
        short = layer.digest.removeprefix("sha256:")[:12]
        assert re.search(rf"{short}.*Done", last), last
