"""Seccomp profiles, in the OCI runtime-spec's form or in Docker's, compiled to BPF for the capabilities at hand.

Docker's form (its default.json) differs by "archMap", and by "includes" and "excludes" of each rule: "caps", "arches" (Go names) and
"minKernel". ``seccomp_default.json`` is Docker's default profile, but for families of sockets above 63: the kernel looks at 32 bits of
what a filter sees all 64 of, so that any of these could be AF_ALG or AF_VSOCK. What a profile compiles to is cached by its text, the
capabilities, the machine and the version of libseccomp, in memory and as files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from wherry.linux import libseccomp, syscall
from wherry.linux.caps import NUMBER
from wherry.linux.seccomp import FLAGS
from wherry.oci import bpf
from wherry.oci.errors import SpecError

DEFAULT = Path(__file__).with_name("seccomp_default.json")

_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_OCI_ARCH = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "arm64": "SCMP_ARCH_AARCH64"}
#: AUDIT_ARCH_* (linux/audit.h) of a machine and of its 32-bit programs; x32 is told from x86_64 by the number.
_AUDIT_ARCH = {
    "x86_64": (0xC000003E, 0x40000003),
    "aarch64": (0xC00000B7, 0x40000028),
    "arm64": (0xC00000B7, 0x40000028),
}
_KERNEL = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
_FORMAT = "4"  # of the cache: how rules become a filter


def default_profile() -> str:
    """The text of Docker's default profile."""
    return DEFAULT.read_text()


class Filters:
    """Compiled filters. directory: where the files go (0700, the caller's), None for memory only. Thread-safe."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._memory: dict[bytes, bytes] = {}
        self._default = ""

    def compiled(self, profile: str, capabilities: int) -> bytes:
        """The BPF program of a profile's JSON text ("" for the default) with these capabilities (a mask) in the bounding set.

        Raises SpecError for a profile that is none, OSError when libseccomp is missing.
        """
        if not profile:
            profile = self._default or default_profile()
            self._default = profile
        key = hashlib.sha256(
            b"\0".join(
                (_FORMAT.encode(), profile.encode(), b"%x" % capabilities, syscall.MACHINE.encode(), self._version())
            )
        ).digest()
        code = self._memory.get(key)
        if code is None:
            code = self._load(key) or self._compile(key, profile, capabilities)
            self._memory[key] = code
        return code

    def _version(self) -> bytes:
        return libseccomp.version().encode()

    def _path(self, key: bytes) -> Path | None:
        return None if self._directory is None else self._directory / f"{key.hex()}.bpf"

    def _load(self, key: bytes) -> bytes | None:
        path = self._path(key)
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, code = data[:32], data[32:]
        return code if code and len(code) % 8 == 0 and hashlib.sha256(code).digest() == digest else None

    def _compile(self, key: bytes, profile: str, capabilities: int) -> bytes:
        try:
            document = json.loads(profile)
        except (ValueError, RecursionError) as error:
            raise SpecError("seccomp profile", f"not JSON: {error}") from None
        code = compile_profile(document, capabilities)
        path = self._path(key)
        if path is not None:
            temporary = path.with_suffix(f".{os.getpid()}.{id(code):x}")
            try:
                temporary.write_bytes(hashlib.sha256(code).digest() + code)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)  # a full disk costs only the time to compile again
        return code


def compile_profile(document: Mapping[str, Any], capabilities: int) -> bytes:
    """BPF of a profile. Raises SpecError with the place in it that is wrong."""
    if not isinstance(document, Mapping):
        raise SpecError("seccomp profile", "not an object")
    default = _action(document.get("defaultAction"), document.get("defaultErrnoRet"), "defaultAction")
    with libseccomp.SeccompFilter(default) as result:
        for name in _architectures(document):
            result.add_architecture(name)
        result.optimize()
        said: dict[tuple[str, tuple[tuple[int, int, int, int], ...]], int] = {}
        for index, rule in enumerate(_list(document, "syscalls")):
            where = f"syscalls/{index}"
            if not isinstance(rule, Mapping):
                raise SpecError("seccomp profile", f"{where} is not an object")
            if not _applies(rule, capabilities):
                continue
            value = _action(rule.get("action"), rule.get("errnoRet"), where)
            if value == default:
                continue
            args = _arguments(rule, where)
            for name in _names(rule, where):
                if said.setdefault((name, args), value) != value:
                    raise SpecError(
                        "seccomp profile", f"{where}: another rule says otherwise of {name}", "leave one of the two out"
                    )
                _add(result, value, name, args)
        return bpf.compressed(result.export(), _AUDIT_ARCH.get(syscall.MACHINE, ()))


def _add(result: libseccomp.SeccompFilter, value: int, name: str, args: tuple[tuple[int, int, int, int], ...]) -> None:
    """Conditions on one argument more than once are alternatives (as Docker's and runc's readers take them), else all must hold."""
    if len({arg[0] for arg in args}) < len(args):
        for arg in args:
            result.add_rule(value, name, (arg,))
    else:
        result.add_rule(value, name, args)


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise SpecError("seccomp profile", f"{key} is not a list")
    return value


def _action(name: object, errno_ret: object, where: str) -> int:
    if errno_ret is not None and (not isinstance(errno_ret, int) or not 0 <= errno_ret <= 4095):
        raise SpecError("seccomp profile", f"{where}: errno {errno_ret!r} is not between 0 and 4095")
    try:
        return libseccomp.action(str(name), errno_ret)
    except KeyError:
        raise SpecError("seccomp profile", f"{where}: no such action {name!r}") from None


def _names(rule: Mapping[str, Any], where: str) -> list[str]:
    names = list(_list(rule, "names"))
    if isinstance(rule.get("name"), str) and rule["name"]:
        names.append(rule["name"])
    if not all(isinstance(name, str) for name in names):
        raise SpecError("seccomp profile", f"{where}: names is not a list of strings")
    return names


def _arguments(rule: Mapping[str, Any], where: str) -> tuple[tuple[int, int, int, int], ...]:
    result = []
    for arg in _list(rule, "args"):
        try:
            index, op = int(arg["index"]), libseccomp.OPERATORS[arg["op"]]
            first, second = int(arg["value"]), int(arg.get("valueTwo") or 0)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SpecError("seccomp profile", f"{where}: bad argument {arg!r}") from None
        if not 0 <= index <= 5 or not 0 <= first < 1 << 64 or not 0 <= second < 1 << 64:
            raise SpecError("seccomp profile", f"{where}: argument {arg!r} is out of range")
        result.append((index, op, first, second))
    return tuple(result)


def _architectures(document: Mapping[str, Any]) -> Iterable[str]:
    """libseccomp names of those beside the native one: of the OCI list, or of Docker's map for this machine."""
    wanted: list[str] = [str(name) for name in _list(document, "architectures")]
    for entry in _list(document, "archMap"):
        if isinstance(entry, Mapping) and entry.get("architecture") == _OCI_ARCH.get(syscall.MACHINE):
            wanted.extend(str(name) for name in entry.get("subArchitectures") or [])
    return [name.removeprefix("SCMP_ARCH_").lower() for name in wanted if name != "SCMP_ARCH_NATIVE"]


def _applies(rule: Mapping[str, Any], capabilities: int) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not isinstance(includes, Mapping) or not isinstance(excludes, Mapping):
        raise SpecError("seccomp profile", "includes or excludes is not an object")
    machine = _GO_ARCH.get(syscall.MACHINE, syscall.MACHINE)
    if any(_has(capabilities, name) for name in excludes.get("caps") or ()) or machine in (
        excludes.get("arches") or ()
    ):
        return False
    if excludes.get("minKernel") and _kernel_at_least(excludes["minKernel"]):
        return False
    if includes.get("arches") and machine not in includes["arches"]:
        return False
    if includes.get("minKernel") and not _kernel_at_least(includes["minKernel"]):
        return False
    names: Collection[str] = includes.get("caps") or ()
    return all(_has(capabilities, name) for name in names)


def _has(capabilities: int, name: str) -> bool:
    return name in NUMBER and bool(capabilities >> NUMBER[name] & 1)


def _kernel_at_least(wanted: object) -> bool:
    parts = re.findall(r"\d+", str(wanted))[:2]
    if len(parts) != 2:
        raise SpecError("seccomp profile", f"minKernel {wanted!r} is not MAJOR.MINOR")
    return tuple(int(part) for part in parts) <= _KERNEL


def flags(document: Mapping[str, Any]) -> int:
    """seccomp(2) flags of an OCI profile's "flags"."""
    result = 0
    for name in _list(document, "flags"):
        if name not in FLAGS:
            raise SpecError("seccomp profile", f"no such flag {name!r}")
        result |= FLAGS[name]
    return result
