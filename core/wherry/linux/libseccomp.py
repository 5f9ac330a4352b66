"""libseccomp by ctypes (seccomp_init(3) and its kin): rules by system-call name, exported as BPF.

The library is loaded at the first use; OSError with ENOENT when the host has none. It runs in the engine, never in the shim, which
only loads what was exported.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from functools import cache
from typing import Any

#: struct scmp_arg_cmp's operators, by the names of the OCI runtime-spec (config-linux.md, "Seccomp").
OPERATORS: dict[str, int] = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_ACTIONS: dict[str, int] = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_ATTR_OPTIMIZE = 8


class ArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class Version(ctypes.Structure):
    """struct scmp_version."""

    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


@cache
def library() -> Any:
    """The shared library with its types declared."""
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), "libseccomp.so.2") from None
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint32
    for name, restype, *argtypes in (
        ("seccomp_init", pointer, unsigned),
        ("seccomp_release", None, pointer),
        ("seccomp_arch_add", ctypes.c_int, pointer, unsigned),
        ("seccomp_arch_resolve_name", unsigned, ctypes.c_char_p),
        ("seccomp_arch_native", unsigned),
        ("seccomp_syscall_resolve_name", ctypes.c_int, ctypes.c_char_p),
        (
            "seccomp_rule_add_array",
            ctypes.c_int,
            pointer,
            unsigned,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(ArgCmp),
        ),
        ("seccomp_attr_set", ctypes.c_int, pointer, ctypes.c_int, unsigned),
        ("seccomp_export_bpf", ctypes.c_int, pointer, ctypes.c_int),
        ("seccomp_version", ctypes.POINTER(Version)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
    return lib


def version() -> str:
    """As text, "2.6.0"."""
    found = library().seccomp_version().contents
    return f"{found.major}.{found.minor}.{found.micro}"


def action(name: str, errno_ret: int | None = None) -> int:
    """SCMP_ACT_* as a number; errno_ret belongs to ERRNO and TRACE (default EPERM). KeyError for an unknown one."""
    value = _ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (errno.EPERM if errno_ret is None else errno_ret) & 0xFFFF
    return value


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)


class SeccompFilter:
    """A filter under construction; a context manager, since the library owns memory for it."""

    def __init__(self, default: int) -> None:
        self._context = library().seccomp_init(default)
        if not self._context:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "seccomp_init")

    def __enter__(self) -> SeccompFilter:
        return self

    def __exit__(self, *_exc: object) -> None:
        library().seccomp_release(self._context)

    def add_architecture(self, name: str) -> None:
        """Adds one by its libseccomp name ("x86", "x32", "arm"); one that is there already is fine."""
        token = library().seccomp_arch_resolve_name(name.encode())
        if not token:
            raise OSError(errno.EINVAL, "unknown architecture", name)
        result = library().seccomp_arch_add(self._context, token)
        if result != -errno.EEXIST:
            _check(result, name)

    def optimize(self) -> None:
        """Asks for a binary tree instead of a list, where the library can (2.5 and later)."""
        library().seccomp_attr_set(self._context, _ATTR_OPTIMIZE, 2)

    def add_rule(self, action: int, name: str, args: tuple[tuple[int, int, int, int], ...] = ()) -> bool:
        """One rule: (index, operator, value, second value) for each argument. False for a call that the library does not know."""
        number = library().seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            return False
        array = (ArgCmp * max(1, len(args)))(*(ArgCmp(*arg) for arg in args))
        result = library().seccomp_rule_add_array(self._context, action, number, len(args), array)
        # EEXIST: the same rule twice, the caller has refused two that contradict;
        # EACCES: it says what the default says; EDOM: no such call on one of the architectures
        if -result not in (errno.EEXIST, errno.EACCES, errno.EDOM):
            _check(result, name)
        return True

    def export(self) -> bytes:
        """The BPF program, 8 bytes an instruction."""
        lib = library()
        memory = getattr(lib, "seccomp_export_bpf_mem", None)
        if memory is not None:
            memory.restype = ctypes.c_int
            memory.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))
            size = ctypes.c_size_t(0)
            _check(memory(self._context, None, ctypes.byref(size)), "seccomp_export_bpf_mem")
            buffer = ctypes.create_string_buffer(size.value)
            _check(memory(self._context, buffer, ctypes.byref(size)), "seccomp_export_bpf_mem")
            return buffer.raw[: size.value]
        fd = os.memfd_create("bpf")
        try:
            _check(lib.seccomp_export_bpf(self._context, fd), "seccomp_export_bpf")
            os.lseek(fd, 0, os.SEEK_SET)
            with os.fdopen(os.dup(fd), "rb") as file:
                return file.read()
        finally:
            os.close(fd)
