"""Images made on the spot from what Debian's packages hold, with other people's tools: nothing is downloaded.

Each is made once and kept below the given cache directory, under a name that changes with its ingredients.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BUSYBOX = Path("/bin/busybox")


class CannotMake(Exception):
    """A tool is missing, so an image can't be made here."""


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise CannotMake(f"{name} is not installed: contrib/setup test")
    return found


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _made_once(cache: Path, name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """``cache/name-<hash of the recipe>``, made by ``make(directory)`` if it isn't there."""
    final = cache / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if final.exists():
        return final
    with _locked(cache, name):
        if final.exists():
            return final
        work = cache / f"{final.name}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            make(work)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


def _static_busybox() -> Path:
    if not BUSYBOX.exists():
        raise CannotMake("busybox is not installed: contrib/setup test")
    head = BUSYBOX.read_bytes()[:64]
    if head[:4] != b"\x7fELF" or b"statically" not in _file_kind(BUSYBOX):
        raise CannotMake(f"{BUSYBOX} is not static: contrib/setup test installs busybox-static")
    return BUSYBOX


def _file_kind(path: Path) -> bytes:
    """``statically`` where an ELF file asks for no interpreter (elf(5), PT_INTERP)."""
    data = path.read_bytes()
    offset, size, count = (
        int.from_bytes(data[32:40], "little"),
        int.from_bytes(data[54:56], "little"),
        int.from_bytes(data[56:58], "little"),
    )
    kinds = {int.from_bytes(data[offset + i * size : offset + i * size + 4], "little") for i in range(count)}
    return b"dynamically linked" if 3 in kinds else b"statically linked"


def _busybox_tree(root: Path) -> None:
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr/bin", "var"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(_static_busybox(), root / "bin/busybox")
    for applet in _run(str(BUSYBOX), "--list").split():
        link = root / "bin" / applet
        if not link.exists():
            link.symlink_to("busybox")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nalice:x:1000:1000::/home/alice:/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nwheel:x:10:root,alice\n")
    (root / "home/alice").mkdir(parents=True)
    os.chown(root / "home/alice", 1000, 1000)
    (root / "etc/os-release").write_text('NAME="Busybox for tests"\nID=busybox\n')


def _image(work: Path, tag: str, fill: Callable[[Path], None], *config: str) -> None:
    """An OCI layout ``work/oci`` with one image of one layer, and two archives of it, all by umoci and skopeo."""
    umoci, skopeo = _tool("umoci"), _tool("skopeo")
    layout, bundle = work / "oci", work / "bundle"
    _run(umoci, "init", "--layout", str(layout))
    _run(umoci, "new", "--image", f"{layout}:{tag}")
    _run(umoci, "unpack", "--image", f"{layout}:{tag}", str(bundle))
    fill(bundle / "rootfs")
    _run(umoci, "repack", "--image", f"{layout}:{tag}", str(bundle))
    _run(umoci, "config", "--image", f"{layout}:{tag}", *config)
    _run(umoci, "gc", "--layout", str(layout))
    shutil.rmtree(bundle)
    name = tag.partition("-")[0]
    for transport in ("docker-archive", "oci-archive"):
        target = work / f"{transport}.tar"
        _run(skopeo, "--insecure-policy", "--tmpdir", str(work), "copy", "--quiet", f"oci:{layout}:{tag}",
             f"{transport}:{target}:{name}:latest" if transport == "docker-archive" else f"{transport}:{target}:latest",
        )  # fmt: skip


def busybox(cache: Path) -> Path:
    """A directory with ``docker-archive.tar`` (as docker save writes it), ``oci-archive.tar`` and the layout ``oci``.

    The image has every applet, the users root, nobody and alice (1000, also in wheel), PATH and the command sh.
    """
    stat = _static_busybox().stat()

    def make(work: Path) -> None:
        _image(
            work, "busybox", _busybox_tree,
            "--config.env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--config.cmd", "sh",
        )  # fmt: skip

    return _made_once(cache, "busybox", f"2 {stat.st_size} {stat.st_mtime_ns}", make)


def _essential(*more: str) -> list[str]:
    """Debian's essential packages as they are installed here, more of them, and what they all depend on."""
    form = "${Package}\t${Essential}\t${db:Status-Status}\t${Provides}\t${Pre-Depends}, ${Depends}\n"
    depends: dict[str, list[str]] = {}
    provided: dict[str, str] = {}
    wanted: list[str] = []
    for line in _run(_tool("dpkg-query"), "-W", "-f", form).splitlines():
        package, essential, status, provides, needs = line.split("\t")
        if status != "installed":
            continue
        depends[package] = [need.split("|")[0].split("(")[0].split(":")[0].strip() for need in needs.split(",")]
        for name in provides.split(","):
            provided.setdefault(name.split("(")[0].strip(), package)
        if essential == "yes" or package in more:
            wanted.append(package)
    found: list[str] = []
    while wanted:
        package = wanted.pop()
        package = package if package in depends else provided.get(package, "")
        if package and package not in found:
            found.append(package)
            wanted += depends[package]
    return sorted(found)


def _debian_tree(root: Path, *more: str) -> None:
    """Copies the files of the packages, with their links, modes and owners; documentation is left out."""
    skip = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/", "/.")
    for link in ("bin", "sbin", "lib", "lib64"):
        if (Path("/") / link).is_symlink():
            (root / link).symlink_to(os.readlink(f"/{link}"))
    for path in sorted(set(_run(_tool("dpkg-query"), "-L", *_essential(*more)).splitlines())):
        if not path.startswith("/") or path.startswith(skip):
            continue
        source, target = Path(path), root / path.lstrip("/")
        if not os.path.lexists(source) or os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            continue
        stat = source.stat()
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target)
        else:
            continue
        os.chown(target, stat.st_uid, stat.st_gid)
        target.chmod(stat.st_mode & 0o7777)
    for name in ("dev", "proc", "sys", "tmp", "root", "run", "etc"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name in ("passwd", "group"):
        shutil.copyfile(f"/usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "etc/debian_version").write_bytes(Path("/etc/debian_version").read_bytes())
    _run(_tool("ldconfig"), "-r", str(root))


def debian(cache: Path) -> Path:
    """As ``busybox``, of the essential packages of the Debian that runs here: bash, coreutils, perl-base, dpkg."""
    if not Path("/var/lib/dpkg/status").exists():
        raise CannotMake("this is no Debian")
    recipe = "3 " + " ".join(_essential()) + Path("/etc/debian_version").read_text()

    def make(work: Path) -> None:
        _image(
            work, "debian", _debian_tree, "--config.env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--config.cmd", "bash"
        )

    return _made_once(cache, "debian", recipe, make)


def _apt_tree(root: Path) -> None:
    """The same with apt, and with what dpkg knows of all these packages, so that both work in there."""
    _debian_tree(root, "apt")
    dpkg = root / "var/lib/dpkg"
    for directory in ("info", "updates", "triggers", "alternatives"):
        (dpkg / directory).mkdir(parents=True, exist_ok=True)
    for directory in (
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
        "var/log/apt",
        "etc/apt/apt.conf.d",
    ):
        (root / directory).mkdir(parents=True, exist_ok=True)
    packages = _essential("apt")
    status = _run(_tool("dpkg-query"), "-s", *packages)
    (dpkg / "status").write_text(status.replace("\n---\n", "\n"))
    for package in packages:
        for path in Path("/var/lib/dpkg/info").glob(f"{package}*"):
            if path.name.split(".")[0].split(":")[0] == package:
                shutil.copyfile(path, dpkg / "info" / path.name)
    for path in Path("/var/lib/dpkg/info").glob("format"):
        shutil.copyfile(path, dpkg / "info/format")


def debian_with_apt(cache: Path) -> Path:
    """As ``debian``, with apt-get."""
    if not Path("/usr/bin/apt-get").exists() or not Path("/var/lib/dpkg/status").exists():
        raise CannotMake("this is no Debian")
    recipe = "1 " + " ".join(_essential("apt")) + Path("/etc/debian_version").read_text()

    def make(work: Path) -> None:
        _image(work, "apt", _apt_tree, "--config.env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--config.cmd", "bash")

    return _made_once(cache, "apt", recipe, make)


def docker_names(archive: Path) -> list[str]:
    """The names in an archive of docker save (manifest.json, RepoTags)."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        return [name for image in json.load(member) for name in image["RepoTags"] or ()]


if __name__ == "__main__":
    begun = time.monotonic()
    for made in (busybox(Path("/tmp/wherry-images")), debian(Path("/tmp/wherry-images"))):
        print(made, f"{time.monotonic() - begun:.1f} s", docker_names(made / "docker-archive.tar"))
