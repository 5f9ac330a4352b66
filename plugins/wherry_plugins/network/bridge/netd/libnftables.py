"""libnftables by ctypes (libnftables(3)): commands as text, in the network namespace in which the context was made.

The library is loaded at the first use; OSError with ENOENT when the host has none. Not safe for two threads at once.
"""

from __future__ import annotations

import ctypes
import errno
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIBRARY = "libnftables.so.1"
_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON


@cache
def library() -> Any:
    """The shared library with its types declared."""
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), LIBRARY) from None
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, restype, *argtypes in (
        ("nft_ctx_new", pointer, ctypes.c_uint32),
        ("nft_ctx_free", None, pointer),
        ("nft_ctx_buffer_output", number, pointer),
        ("nft_ctx_buffer_error", number, pointer),
        ("nft_ctx_get_output_buffer", text, pointer),
        ("nft_ctx_get_error_buffer", text, pointer),
        ("nft_ctx_output_set_flags", None, pointer, ctypes.c_uint),
        ("nft_run_cmd_from_buffer", number, pointer, text),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
    return lib


class NftError(Exception):
    """What the library says of a command that it, or the kernel, did not take: its own words."""


class Nft:
    """A context of the library. ``close`` gives its memory back."""

    def __init__(self) -> None:
        lib = library()
        self._context = lib.nft_ctx_new(0)
        if not self._context:
            raise OSError(errno.ENOMEM, "no context", LIBRARY)
        lib.nft_ctx_buffer_output(self._context)
        lib.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Runs commands in one transaction: all or nothing. Answers what they print; NftError."""
        lib = library()
        status = lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        # both buffers are taken each time: reading one empties it for the next command
        output = lib.nft_ctx_get_output_buffer(self._context) or b""
        complaint = lib.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            raise NftError(complaint.decode(errors="replace").strip() or f"status {status}")
        return str(output.decode(errors="replace"))

    def json(self, command: str) -> str:
        """As ``run``, with the output as JSON (libnftables-json(5))."""
        library().nft_ctx_output_set_flags(self._context, _JSON)
        try:
            return self.run(command)
        finally:
            library().nft_ctx_output_set_flags(self._context, 0)

    def close(self) -> None:
        context, self._context = self._context, None
        if context:
            library().nft_ctx_free(context)
