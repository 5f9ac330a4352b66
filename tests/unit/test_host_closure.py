"""transport.host: the closure is what ld.so(8) finds, the image runs, and the same files give the same digest."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from support.tools import need
from wherry.api import Descriptor, Invalid, NotFound
from wherry_plugins.transport.host.closure import Closure, read_cache, read_object
from wherry_plugins.transport.host.layer import LayerPlan, PieceStream
from wherry_plugins.transport.host.transport import HostTransport


def files_of(*programs: str) -> set[str]:
    closure = Closure()
    for program in programs:
        closure.add_program(program)
    return set(closure.files)


def layer_of(reference: str) -> tuple[bytes, dict[str, Any]]:
    transport = HostTransport(1 << 30)
    (image,) = transport.resolve(reference, "")
    with transport.fetch(reference, image.target, 0) as stream:
        manifest = json.load(stream)
    (layer,) = manifest["layers"]
    with transport.fetch(reference, Descriptor(layer["mediaType"], layer["digest"], layer["size"]), 0) as stream:
        data = stream.read()
    config = Descriptor("", manifest["config"]["digest"], 0)
    with transport.fetch(reference, config, 0) as stream:
        return data, json.load(stream)


@pytest.mark.parametrize("program", ["/bin/sh", "/bin/ls", "/usr/bin/skopeo", "/usr/bin/tar"])
def test_the_closure_is_that_of_the_loader(program: str) -> None:
    need(program)
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    wanted = {Path(word).resolve() for line in listed.splitlines() for word in line.split() if word.startswith("/")}
    found = {Path(path).resolve() for path in files_of(program)}
    assert found == wanted | {Path(program).resolve()}


def test_a_static_program_needs_nothing() -> None:
    assert files_of("/bin/busybox") == {"/bin/busybox"}


def test_scripts_bring_their_interpreters(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env -S tar --version\n")
    script.chmod(0o755)
    found = files_of(str(script))
    assert {str(script), "/usr/bin/env", "/usr/bin/tar"} <= found
    second = tmp_path / "second"
    second.write_text(f"#! {script} -x\n")
    second.chmod(0o755)
    assert found | {str(second)} == files_of(str(second))


@pytest.fixture
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("no C compiler here")
    return found


@pytest.mark.parametrize("flags", [["-Wl,-rpath,$ORIGIN/../lib"], ["-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib"]])
def test_rpath_and_origin(tmp_path: Path, compiler: str, flags: list[str]) -> None:
    for name in ("bin", "lib"):
        (tmp_path / name).mkdir()
    (tmp_path / "two.c").write_text("int two(void) { return 2; }")
    (tmp_path / "one.c").write_text("int two(void); int one(void) { return two(); }")
    (tmp_path / "main.c").write_text("int one(void); int main(void) { return one(); }")
    lib = tmp_path / "lib"

    def cc(*argv: str) -> None:
        subprocess.run([compiler, *argv], cwd=tmp_path, check=True)

    cc("-shared", "-fPIC", "-o", "lib/libtwo.so", "two.c")
    own = (
        ["-Wl,-rpath,$ORIGIN"] if "--disable-new-dtags" not in flags[0] else []
    )  # DT_RPATH is inherited, DT_RUNPATH is not
    cc("-shared", "-fPIC", "-o", "lib/libone.so", "one.c", "-Llib", "-ltwo", *own)
    cc("-o", "bin/main", "main.c", "-Llib", "-lone", "-Wl,-rpath-link,lib", *flags)
    assert subprocess.run([str(tmp_path / "bin/main")], check=False).returncode == 2
    found = {Path(path).resolve() for path in files_of(str(tmp_path / "bin/main"))}
    assert {lib / "libone.so", lib / "libtwo.so"} <= found


def test_the_cache_is_read_as_ldconfig_prints_it() -> None:
    printed = subprocess.run(["/sbin/ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    wanted = set()
    for line in printed.splitlines()[1:]:
        if " => " in line and "hwcap" not in line:
            name, _, path = line.strip().partition(" => ")
            wanted.add((name.split()[0], path))
    assert wanted <= set(read_cache(Path("/etc/ld.so.cache")))
    assert list(read_cache(Path("/etc/passwd"))) == []


def test_what_is_no_program(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    for path, error in (("/nowhere", NotFound), ("/etc", NotFound), (str(plain), Invalid), ("bin/sh", Invalid)):
        with pytest.raises(error):
            files_of(path)
    plain.chmod(0o755)
    with pytest.raises(Invalid, match="neither"):
        files_of(str(plain))
    loop = tmp_path / "loop"
    loop.write_text(f"#!{loop}\n")
    loop.chmod(0o755)
    with pytest.raises(Invalid):
        files_of(str(loop))
    assert read_object(str(plain)) is None


def test_links_on_the_way_and_a_minimal_etc() -> None:
    data, config = layer_of("/bin/sh,/bin/ls")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {info.name: info for info in archive}
        assert archive.extractfile("etc/passwd").read().startswith(b"root:x:0:0:")  # type: ignore[union-attr]
    if Path("/bin").is_symlink():
        assert members["bin"].linkname == os.readlink("/bin")
        assert "bin/sh" not in members
    assert members["tmp"].mode == 0o1777
    assert members["usr/bin/sh"].issym() == Path("/usr/bin/sh").is_symlink()
    assert {info.mtime for info in members.values()} == {0}
    assert config["config"]["Cmd"] == ["/bin/sh"]
    assert config["config"]["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert [info.name for info in members.values()] == sorted(members), "the order is fixed"


def test_the_same_files_give_the_same_digest() -> None:
    (one,) = HostTransport(1 << 30).resolve("/bin/sh,/bin/ls", "")
    (two,) = HostTransport(1 << 30).resolve(
        " /bin/sh, /bin/ls,/bin/sh", "linux/amd64" if os.uname().machine == "x86_64" else ""
    )
    assert one.target == two.target
    (three,) = HostTransport(1 << 30).resolve("/bin/ls", "")
    assert three.target != one.target


def test_it_runs_in_a_root_of_its_own(tmp_path: Path) -> None:
    data, _ = layer_of("/bin/sh,/bin/ls,/usr/bin/env")
    subprocess.run(["tar", "-C", str(tmp_path), "-x"], input=data, check=True)
    done = subprocess.run(
        ["chroot", str(tmp_path), "/bin/sh", "-c", "ls /usr/bin && env -i /bin/ls -d /tmp && echo $((6*7))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["dash", "env", "ls", "sh", "/tmp", "42"] or "42" in done.stdout


def test_a_path_outside_the_usual_ones_comes_first_in_path(tmp_path: Path) -> None:
    program = tmp_path / "prog"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    _, config = layer_of(str(program))
    assert config["config"]["Env"][0].startswith(f"PATH={tmp_path}:")


def test_a_stream_begins_where_it_is_asked_to() -> None:
    pieces = [b"abc", b"", b"defg", b"h"]
    whole = b"".join(pieces)
    for offset in range(len(whole) + 2):
        assert io.BufferedReader(PieceStream(iter(pieces), offset)).read() == whole[offset:]


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    plan = LayerPlan(1 << 20)
    plan.add(str(path))
    path.write_bytes(b"x")
    with pytest.raises(Invalid, match="changed"):
        list(plan.pieces())
    with pytest.raises(Invalid, match="larger than"):
        LayerPlan(10).add("/bin/busybox")


def test_another_platform_is_not_here() -> None:
    with pytest.raises(NotFound, match="platform"):
        HostTransport(1 << 30).resolve("/bin/sh", "linux/s390x")
    for reference in ("", ",", ",".join(f"/x{n}" for n in range(300))):
        with pytest.raises(Invalid):
            HostTransport(1 << 30).resolve(reference, "")
