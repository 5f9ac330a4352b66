"""The wire: any Protocol of the contract over a socket. ``serve`` answers, ``Proxy`` asks; see codec.py for the values.

Frames are those of ``wherry.linux.framing``. A request is {"i": id, "m": method, "a": arguments by name}, with "o" (an object other
than the first) and "x" (what goes along) where needed; the answer has "r" (result), "h" (an object that stays there), "e" (error:
class and four strings) or "s" (a stream: then "v" items as far as the reader's credit goes, and "q" at its end). {"n": credit}
and {"z": 1} of the reader steer a stream. Errors keep their class; OSError keeps errno and file name.
"""

from __future__ import annotations

from wherry.rpc.client import ConnectionLost, Proxy, RpcChannel, make_proxy
from wherry.rpc.server import serve

__all__ = ["ConnectionLost", "Proxy", "RpcChannel", "make_proxy", "serve"]
