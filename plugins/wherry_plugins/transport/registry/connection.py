"""Connections: pools of urllib3 whose sockets are judged by address and watched, and the answers that come over them."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from attrs import frozen

from wherry.api import Error, Invalid
from wherry_plugins.transport.registry.url import Url
from wherry_plugins.transport.registry.watchdog import Watchdog

_DRAINED = 1 << 16
_PER_HOST = 8
_LATE = "{} did not answer in time"

Judge = Callable[[str], None]
"""Told the address that a socket is connected to, before a byte is sent; raises what speaks against it."""


class TransferError(Exception):
    """The exchange failed in a way that may pass. cause and hint are those of the error that it becomes in the end.

    hopeless: another attempt would fail alike, unless it was well a moment ago.
    """

    def __init__(self, cause: str, hint: str = "", *, hopeless: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint
        self.hopeless = hopeless


@frozen
class ConnectionDeadline:
    """What every socket of one pool hangs on."""

    watchdog: Watchdog
    judge: Judge
    timeout: float


class Response:
    """One response. Its body is read piece by piece; whoever has it closes it."""

    def __init__(self, url: Url, response: Any, tether: ConnectionDeadline) -> None:
        self.url = url
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._tether = tether
        self._handle: socket.socket = response.tethered

    def read(self, size: int) -> bytes:
        """Some of the body, at most size bytes, b"" at its end. Broken."""
        if not size:
            return b""
        alarm = self._tether.watchdog.set(self._handle, self._tether.timeout)
        data, failed = b"", None
        try:
            data = self._response.read1(size, decode_content=False) or b""
        except Exception as error:
            failed = error
        finally:
            fired = self._tether.watchdog.clear(alarm)
        if fired:  # what a reader takes for an end is the shutdown then
            raise TransferError(_LATE.format(self.url.netloc))
        if failed is not None:
            raise _broken(failed, self.url) from None
        return data

    def document(self, limit: int, what: str, seconds: float) -> bytes:
        """The whole body. Invalid when it is larger than limit bytes, Broken when it takes longer than so many seconds."""
        announced = self.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise Invalid(what, f"is announced with {announced[:20]} bytes, more than {limit}")
        until = time.monotonic() + seconds
        data = bytearray()
        while piece := self.read(limit + 1 - len(data)):
            data += piece
            if len(data) > limit:
                raise Invalid(what, f"is larger than {limit} bytes")
            if time.monotonic() > until:
                raise TransferError(f"{self.url.netloc} sends {len(data)} bytes in {seconds:g} s, and not all")
        return bytes(data)

    def discard(self) -> None:
        """Gives the connection back where little is left of the body, else closes it."""
        announced = self.headers.get("Content-Length", "")
        try:
            if announced.isdecimal() and int(announced[:20]) <= _DRAINED:
                while self.read(_DRAINED):
                    pass
        except TransferError:
            pass
        self.close()

    def close(self) -> None:
        with suppress(Exception):
            self._response.close()  # does nothing to a connection that is back in its pool
        self._handle.close()


class Pools:
    """Connections by server, kept alive. Thread-safe."""

    def __init__(self, watchdog: Watchdog, timeout: float, context: Callable[[str], ssl.SSLContext]) -> None:
        self._watchdog = watchdog
        self._timeout = timeout
        self._context = context
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str, int], tuple[Any, ConnectionDeadline]] = {}

    def exchange(self, method: str, url: Url, headers: Mapping[str, str], body: bytes | None, judge: Judge) -> Response:
        """One request and the head of its answer; nothing is repeated or followed. Broken, or what judge raises."""
        import urllib3

        pool, tether = self._pool(url, judge)
        try:
            response = pool.urlopen(
                method, url.target, body=body, headers=dict(headers), retries=False, redirect=False,
                assert_same_host=False, preload_content=False, decode_content=False,
                timeout=urllib3.Timeout(connect=self._timeout, read=self._timeout),
            )  # fmt: skip
        except Error:
            raise
        except Exception as error:
            raise _broken(error, url) from None
        return Response(url, response, tether)

    def _pool(self, url: Url, judge: Judge) -> tuple[Any, ConnectionDeadline]:
        with self._lock:
            if url.origin not in self._pools:
                plain, secure = _classes()
                tether = ConnectionDeadline(self._watchdog, judge, self._timeout)
                common = {"maxsize": _PER_HOST, "block": False, "tether": tether}
                if url.scheme == "https":
                    pool = secure(url.host, url.port, ssl_context=self._context(url.netloc), **common)
                else:
                    pool = plain(url.host, url.port, **common)
                self._pools[url.origin] = (pool, tether)
            return self._pools[url.origin]


@cache
def _classes() -> tuple[Any, Any]:
    """The two kinds of pool; urllib3 is loaded with the first request."""
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection

    def tethered(base: Any) -> Any:
        class DeadlineConnection(base):  # type: ignore[misc]
            """A connection that ends when connecting, or the head of an answer, takes too long as a whole."""

            def __init__(self, *args: Any, tether: ConnectionDeadline, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self._tether = tether
                self._handle: socket.socket | None = None
                self._alarm = 0

            def _new_conn(self) -> socket.socket:
                sock: socket.socket = super()._new_conn()
                try:
                    self._tether.judge(str(sock.getpeername()[0]))
                    self._handle = sock.dup()
                except BaseException:
                    sock.close()
                    raise
                self._alarm = self._tether.watchdog.set(self._handle, self._tether.timeout)
                return sock

            def connect(self) -> None:
                try:
                    super().connect()
                finally:
                    self._tether.watchdog.clear(self._alarm)

            def getresponse(self) -> Any:
                if self._handle is None:
                    raise ConnectionError("the connection is closed")
                handle = self._handle.dup()
                alarm = self._tether.watchdog.set(handle, self._tether.timeout)
                try:
                    response = super().getresponse()
                except BaseException:
                    handle.close()
                    if self._tether.watchdog.clear(alarm):
                        raise TimeoutError from None
                    raise
                if self._tether.watchdog.clear(alarm):  # the head was cut by the shutdown, and looks like a whole one
                    response.close()
                    handle.close()
                    raise TimeoutError
                response.tethered = handle
                return response

            def close(self) -> None:
                if self._handle is not None:
                    self._handle.close()
                    self._handle = None
                super().close()

        return DeadlineConnection

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = tethered(HTTPConnection)

    class TlsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = tethered(HTTPSConnection)

        def _validate_conn(self, conn: Any) -> None:
            """Without the warning for each connection that is not verified: whoever set insecure = true knows."""
            if conn.is_closed:
                conn.connect()

    return PlainPool, TlsPool


def _broken(error: Exception, url: Url) -> TransferError:
    """What a failed exchange is called; the libraries' own words are for their developers."""
    import urllib3.exceptions as http

    where = url.netloc
    inner: BaseException | None = error
    chain = []
    while inner is not None and inner not in chain:
        chain.append(inner)
        reason = getattr(inner, "reason", None)
        inner = inner.__cause__ or (reason if isinstance(reason, BaseException) else None) or inner.__context__
    for cause in chain:
        if isinstance(cause, Error):
            raise cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TransferError(
                f"the certificate of {where} is not trusted: {cause.verify_message}",
                f'name its authority: [plugin.transport.registry.hosts."{where}"] ca = FILE',
                hopeless=True,
            )
        if isinstance(cause, ssl.SSLError) and "VERSION" in str(cause.reason):
            hint = f'if it is meant to talk http: [plugin.transport.registry.hosts."{where}"] plain_http = true'
            return TransferError(f"{where} does not talk TLS", hint, hopeless=True)
        if isinstance(cause, socket.gaierror):
            return TransferError(
                f'the name "{url.host}" has no address', hopeless=True
            )  # the C library has tried it some times
        if isinstance(cause, ConnectionRefusedError):
            return TransferError(f"{where} refuses the connection", hopeless=True)
    if any(isinstance(cause, TimeoutError | http.TimeoutError) for cause in chain):
        return TransferError(_LATE.format(where))
    if isinstance(error, http.IncompleteRead) or any(isinstance(cause, http.IncompleteRead) for cause in chain):
        return TransferError(f"{where} broke off in the middle of an answer")
    if isinstance(error, http.HTTPError | OSError):
        return TransferError(f"the connection to {where} broke")
    return TransferError(f"{where} does not talk http as it should")
