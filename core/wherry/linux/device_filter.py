"""Device access on cgroup v2: an eBPF program of type CGROUP_DEVICE, made from OCI rules (bpf(2), linux/bpf.h).

Each device access runs it with (access << 16 | type, major, minor); it answers 1 to allow. The last rule that matches decides, as
in the v1 controller, and what no rule matches is denied.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from wherry.linux.syscall import Int, Pointer, Uint, call, check

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI = 15, 6, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KIND = {"b": 1, "c": 2, "u": 2}
_LDX_W, _MOV_X, _MOV_K, _AND_K, _RSH_K, _JNE_K, _JEQ_K, _EXIT = 0x61, 0xBF, 0xB7, 0x54, 0x74, 0x55, 0x15, 0x95

_bpf = call("bpf", Int, Pointer, Uint)


def _instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, off, imm)


def program(rules: Iterable[Mapping[str, Any]]) -> bytes:
    """The instructions for OCI device rules."""
    code = [
        _instruction(_LDX_W, 2, 1, 0),  # r2 = access << 16 | type
        _instruction(_MOV_X, 3, 2),
        _instruction(_AND_K, 2, imm=0xFFFF),  # r2 = type
        _instruction(_RSH_K, 3, imm=16),  # r3 = access
        _instruction(_LDX_W, 4, 1, 4),  # r4 = major
        _instruction(_LDX_W, 5, 1, 8),  # r5 = minor
    ]
    for rule in reversed(list(rules)):
        allow = bool(rule.get("allow"))
        tests: list[tuple[int, int, int]] = []  # (jump past the block, register, immediate)
        setup: list[bytes] = []
        kind = str(rule.get("type") or "a")
        mask = sum(_ACCESS.get(letter, 0) for letter in set(str(rule.get("access") or "rwm")))
        if kind != "a":
            tests.append((_JNE_K, 2, _KIND[kind]))
            if mask != 7:
                # allowed when it asks for nothing else, denied when it asks for any of it
                setup = [_instruction(_MOV_X, 6, 3), _instruction(_AND_K, 6, imm=(~mask & 7) if allow else mask)]
                tests.append((_JNE_K if allow else _JEQ_K, 6, 0))
            for key, register in (("major", 4), ("minor", 5)):
                number = rule.get(key)
                if number is not None and number >= 0:
                    tests.append((_JNE_K, register, int(number)))
        length = len(setup) + len(tests) + 2
        block: list[bytes] = list(setup)
        for jump, register, immediate in tests:
            block.append(_instruction(jump, register, off=length - len(block) - 1, imm=immediate))
        code += [*block, _instruction(_MOV_K, 0, imm=int(allow)), _instruction(_EXIT)]
        if kind == "a":  # what came before it says nothing any more, and the verifier refuses what is never reached
            return b"".join(code)
    return b"".join([*code, _instruction(_MOV_K, 0, imm=0), _instruction(_EXIT)])


def _call(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return check(_bpf(command, buffer, 128), "bpf")


def load(code: bytes) -> int:
    """BPF_PROG_LOAD: a descriptor of the program."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII",
        _TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license),
        0,
        0,
        0,
        0,
        0,
    )
    return _call(_PROG_LOAD, attributes)


def attached(directory_fd: int) -> list[int]:
    """The ids of the device programs of a group itself, not of those above it."""
    ids = (ctypes.c_uint32 * 64)()
    buffer = ctypes.create_string_buffer(
        struct.pack("=IIIIQI", directory_fd, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), 64).ljust(128, b"\0"),
        128,
    )
    check(_bpf(_PROG_QUERY, buffer, 128), "bpf")
    (count,) = struct.unpack_from("=I", buffer.raw, 24)
    return list(ids[:count])


def attach(path: str, rules: Iterable[Mapping[str, Any]]) -> None:
    """Puts the rules in force for a group, in place of those it had: the new ones first, so that none are missing meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = attached(fd)
        made = load(program(rules))
        try:
            _call(_PROG_ATTACH, struct.pack("=IIII", fd, made, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(made)
        for id in old:
            previous = _call(_PROG_GET_FD_BY_ID, struct.pack("=III", id, 0, 0))
            try:
                _call(_PROG_DETACH, struct.pack("=III", fd, previous, _ATTACH_CGROUP_DEVICE))
            finally:
                os.close(previous)
    finally:
        os.close(fd)
