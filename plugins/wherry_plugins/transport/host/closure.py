"""What a program needs besides itself: its interpreter and shared libraries, found as ld.so(8) finds them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from wherry.api import Invalid, NotFound

_CACHE = "/etc/ld.so.cache"
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = 48
_ITEM = struct.Struct("<iIIIQ")
_SCRIPT_DEPTH = 5
_LINE = 256  # the kernel reads as much of a script's first line


@frozen
class ElfObject:
    """What an ELF file asks for. machine is (class, e_machine); rpath and runpath are the raw lists."""

    path: str
    machine: tuple[int, str]
    interpreter: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    soname: str


class Closure:
    """Collects files. ``files`` are absolute paths as they were asked for; links in them are not resolved here."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.needs_cache = False
        self._objects: dict[str, ElfObject | None] = {}
        self._cache: dict[str, list[str]] | None = None

    def add_program(self, path: str, depth: int = 0) -> None:
        """A program with all it needs. NotFound, or Invalid for what is neither ELF nor a script with an interpreter."""
        if not os.path.isabs(path):
            raise Invalid(f'program "{path}"', "is not an absolute path", "write it as host:/bin/sh")
        real = Path(path)
        if not real.is_file():
            raise NotFound(f'program "{path}"', "does not exist on this host" if not real.exists() else "is no file")
        if not os.access(path, os.X_OK):
            raise Invalid(f'program "{path}"', "is not executable")
        with real.open("rb") as file:
            head = file.read(_LINE)
        self.files[path] = None
        if head.startswith(b"\x7fELF"):
            self._add_object(path, (), None)
            return
        if not head.startswith(b"#!") or depth >= _SCRIPT_DEPTH:
            raise Invalid(f'program "{path}"', "is neither an ELF program nor a script")
        words = os.fsdecode(head[2:].partition(b"\n")[0]).split()
        if not words:
            raise Invalid(f'program "{path}"', "its first line names no interpreter")
        self.add_program(words[0], depth + 1)
        if words[0].endswith("/env"):
            name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
            found = next((found for found in _in_path(name)), "") if name else ""
            if not found:
                raise NotFound(f'program "{path}"', f'its interpreter "{name}" is not in PATH')
            self.add_program(found, depth + 1)

    def _add_object(self, path: str, inherited: tuple[str, ...], machine: tuple[int, str] | None) -> None:
        todo = [(path, inherited, machine)]
        while todo:
            path, inherited, machine = todo.pop()
            known = self._read(path)
            if known is None:
                raise Invalid(f'file "{path}"', "is no ELF file that can be read")
            machine = machine or known.machine
            if known.interpreter and known.interpreter not in self.files:
                self.files[known.interpreter] = None
                todo.append((known.interpreter, (), machine))
            origin = str(Path(path).resolve().parent)
            # DT_RPATH counts for what is loaded below as well, and not at all beside DT_RUNPATH (ld.so(8)).
            rpath = () if known.runpath else _expand(known.rpath, origin)
            for name in known.needed:
                found = self._find(name, (*rpath, *inherited), _expand(known.runpath, origin), machine)
                if found is None:
                    raise NotFound(f'library "{name}"', f'needed by "{path}", is not on this host')
                if found not in self.files:
                    self.files[found] = None
                    todo.append((found, (*rpath, *inherited), machine))

    def _find(
        self, name: str, rpath: tuple[str, ...], runpath: tuple[str, ...], machine: tuple[int, str]
    ) -> str | None:
        if "/" in name:
            return name if self._fits(name, machine) else None
        for directory in (*rpath, *runpath):
            if self._fits(candidate := f"{directory}/{name}", machine):
                return candidate
        default = [f"{directory}/{name}" for directory in _default_directories(machine)]
        for candidate in self._cached(name):
            if self._fits(candidate, machine):
                self.needs_cache |= candidate not in default
                return candidate
        return next((candidate for candidate in default if self._fits(candidate, machine)), None)

    def _fits(self, path: str, machine: tuple[int, str]) -> bool:
        known = self._read(path)
        return known is not None and known.machine == machine

    def _cached(self, name: str) -> list[str]:
        if self._cache is None:
            self._cache = {}
            for soname, path in read_cache(Path(_CACHE)):
                self._cache.setdefault(soname, []).append(path)
        return self._cache.get(name, [])

    def _read(self, path: str) -> ElfObject | None:
        if path not in self._objects:
            self._objects[path] = read_object(path)
        return self._objects[path]


def read_object(path: str) -> ElfObject | None:
    """None for what does not exist or is no ELF file."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    try:
        with Path(path).open("rb") as file:
            elf = ELFFile(file)
            interpreter, soname = "", ""
            needed: list[str] = []
            rpath: list[str] = []
            runpath: list[str] = []
            for segment in elf.iter_segments():
                if isinstance(segment, InterpSegment):
                    interpreter = segment.get_interp_name()
                elif isinstance(segment, DynamicSegment):
                    tag: Any  # its attributes depend on its kind
                    for tag in segment.iter_tags():
                        if tag.entry.d_tag == "DT_NEEDED":
                            needed.append(tag.needed)
                        elif tag.entry.d_tag == "DT_RPATH":
                            rpath += tag.rpath.split(":")
                        elif tag.entry.d_tag == "DT_RUNPATH":
                            runpath += tag.runpath.split(":")
                        elif tag.entry.d_tag == "DT_SONAME":
                            soname = tag.soname
            machine = (int(elf.elfclass), str(elf.header["e_machine"]))
            return ElfObject(path, machine, interpreter, tuple(needed), tuple(rpath), tuple(runpath), soname)
    except (OSError, ELFError, UnicodeDecodeError, ValueError):
        return None


def read_cache(path: Path) -> Iterator[tuple[str, str]]:
    """(soname, path) of ldconfig's cache, glibc 2.2 and later (glibc, sysdeps/generic/dl-cache.h); hwcap variants are left out,
    for the loader in the image may run on another machine's processor."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    start = data.find(_CACHE_MAGIC)
    if start < 0 or len(data) < start + _HEADER:
        return
    (count,) = struct.unpack_from("<I", data, start + len(_CACHE_MAGIC))
    for number in range(count):
        at = start + _HEADER + number * _ITEM.size
        if at + _ITEM.size > len(data):
            return
        _flags, key, value, _version, hwcap = _ITEM.unpack_from(data, at)
        if not hwcap:
            yield _string(data, start + key), _string(data, start + value)


def _string(data: bytes, at: int) -> str:
    return os.fsdecode(data[at : data.find(b"\0", at)])


def _default_directories(machine: tuple[int, str]) -> tuple[str, ...]:
    """The loader's own, with the multiarch ones of Debian first."""
    triplet = {"EM_X86_64": "x86_64-linux-gnu", "EM_AARCH64": "aarch64-linux-gnu", "EM_386": "i386-linux-gnu"}.get(
        machine[1]
    )
    multiarch = (f"/lib/{triplet}", f"/usr/lib/{triplet}") if triplet else ()
    wide = ("/lib64", "/usr/lib64") if machine[0] == 64 else ()
    return (*multiarch, *wide, "/lib", "/usr/lib")


def _expand(directories: Iterable[str], origin: str) -> tuple[str, ...]:
    result = []
    for directory in directories:
        text = directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
        for lib in ("lib64", "lib") if "$LIB" in text or "${LIB}" in text else ("",):
            expanded = text.replace("${LIB}", lib).replace("$LIB", lib)
            if expanded.startswith("/"):
                result.append(os.path.normpath(expanded))
    return tuple(result)


def _in_path(name: str) -> Iterator[str]:
    if "/" in name:
        yield name
        return
    for directory in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"):
        if os.access(f"{directory}/{name}", os.X_OK):
            yield f"{directory}/{name}"
