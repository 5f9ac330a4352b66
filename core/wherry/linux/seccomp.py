"""Loading a seccomp filter: seccomp(2) with a compiled BPF program (struct sock_filter, 8 bytes an instruction)."""

from __future__ import annotations

import ctypes

from wherry.linux.syscall import Pointer, Uint, call, check

SET_MODE_FILTER = 1
FLAG_TSYNC, FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_NEW_LISTENER = 1, 2, 4, 8
FLAGS: dict[str, int] = {
    "SECCOMP_FILTER_FLAG_TSYNC": FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FLAG_SPEC_ALLOW,
}
MAX_INSTRUCTIONS = 4096


class Program(ctypes.Structure):
    """struct sock_fprog; keeps the bytes it points to."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    def __init__(self, code: bytes) -> None:
        """code: whole instructions. ValueError when empty, cut short or longer than the kernel takes."""
        count, rest = divmod(len(code), 8)
        if rest or not 0 < count <= MAX_INSTRUCTIONS:
            raise ValueError(f"{len(code)} bytes are no BPF program")
        self.code = ctypes.create_string_buffer(code, len(code))
        super().__init__(count, ctypes.addressof(self.code))


_seccomp = call("seccomp", Uint, Uint, Pointer)


def load(program: Program, flags: int = 0) -> None:
    """Adds the filter to this thread for good; it needs CAP_SYS_ADMIN or no_new_privs."""
    check(_seccomp(SET_MODE_FILTER, flags, ctypes.byref(program)), "seccomp")
