"""Resolves names and fetches manifests and blobs (distribution-spec, "Pull")."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO, cast

from wherry.api import Descriptor, Digest, Invalid, NamedImage, NotFound
from wherry.spec.distribution import ACCEPT, DOCKER, FOREIGN, INDEXES, MANIFESTS, media_type_of, parse_target
from wherry.spec.document import DOCUMENT_MAX, check_digest
from wherry.spec.reference import Reference, familiar, parse_reference
from wherry_plugins.transport.registry import RegistryConfig
from wherry_plugins.transport.registry.client import Client
from wherry_plugins.transport.registry.connection import Response, TransferError
from wherry_plugins.transport.registry.endpoint import endpoint_of
from wherry_plugins.transport.registry.retry import RetryPolicy
from wherry_plugins.transport.registry.stream import BlobStream
from wherry_plugins.transport.registry.watchdog import Watchdog

_KEPT, _KEPT_BYTES = 8, 8 << 20
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_OLD = f"{DOCKER}.distribution.manifest.v1"


class RegistryTransport:
    """Implements ``wherry.api.Transport``. Manifests are remembered between resolve and fetch; connections are kept."""

    def __init__(
        self,
        config: RegistryConfig,
        credentials: Callable[[str], tuple[str, str] | None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._checkpoint = checkpoint
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._manifests: OrderedDict[str, bytes] = OrderedDict()

    def resolve(self, reference: str, platform: str) -> tuple[NamedImage, ...]:
        """One image. An index stays one: which of its entries is meant is for whoever asked to say."""
        parts = parse_reference(reference)
        what = f'image "{familiar(parts.name)}"'
        data, declared, answered = self._manifest(parts, parts.digest or parts.tag, what)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if parts.digest and digest != parts.digest:
            raise Invalid(what, f"{parts.domain} sends something else: its digest is {digest}")
        if answered.startswith("sha256:") and answered != digest:
            raise Invalid(what, f"{parts.domain} says that its digest is {answered[:80]}, and it is {digest}")
        if declared.startswith(_OLD):
            hint = "push it again with a present-day tool"
            raise Invalid(what, "is of Docker's image format of 2014, which can't be verified", hint)
        target = Descriptor(media_type_of(data, declared, what), Digest(digest), len(data))
        parse_target(data, target)
        self._keep(digest, data)
        return (NamedImage(parts.name, target),)

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        parts = parse_reference(reference)
        digest = check_digest(descriptor.digest, f'image "{familiar(parts.name)}"')
        if descriptor.media_type in MANIFESTS | INDEXES:
            return io.BytesIO(self._document(parts, descriptor)[offset:])
        return cast(BinaryIO, self._blob(parts, descriptor, digest, offset))

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        raise Invalid(f'image "{reference}"', "can't be pushed: this transport only pulls")

    # manifests

    def _document(self, parts: Reference, descriptor: Descriptor) -> bytes:
        with self._lock:
            known = self._manifests.get(descriptor.digest)
        what = f'manifest "{descriptor.digest}"'
        data = known if known is not None else self._manifest(parts, descriptor.digest, what)[0]
        if len(data) != descriptor.size:
            raise Invalid(what, f"is announced with {descriptor.size} bytes, {parts.domain} sends {len(data)}")
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
            raise Invalid(what, f"{parts.domain} sends something else")
        self._keep(descriptor.digest, data)
        return data

    def _manifest(self, parts: Reference, which: str, what: str) -> tuple[bytes, str, str]:
        """(text, Content-Type, Docker-Content-Digest)."""
        client = self._client(parts.domain)
        patience = client.patience(what)
        while True:
            answer = client.get(
                f"{parts.path}/manifests/{which}", {"Accept": ACCEPT}, scope=_scope(parts), what=what, patience=patience
            )
            try:
                data = answer.document(DOCUMENT_MAX, what, self._config.patience)
            except TransferError as broken:
                answer.close()
                patience.after(broken)
                continue
            except BaseException:
                answer.close()
                raise
            answer.discard()
            headers = answer.headers
            return data, headers.get("Content-Type", ""), headers.get("Docker-Content-Digest", "")

    def _keep(self, digest: str, data: bytes) -> None:
        with self._lock:
            self._manifests[digest] = data
            self._manifests.move_to_end(digest)
            while len(self._manifests) > _KEPT or (
                len(self._manifests) > 1 and sum(map(len, self._manifests.values())) > _KEPT_BYTES
            ):
                self._manifests.popitem(last=False)

    # blobs

    def _blob(self, parts: Reference, descriptor: Descriptor, digest: str, offset: int) -> BlobStream:
        client, config = self._client(parts.domain), self._config
        what = f'blob "{digest}"'
        first = _open(client, parts, descriptor, offset, client.patience(what), config)
        patience = client.patience(what, streaming=True)

        def connect(at: int) -> Response:
            return _open(client, parts, descriptor, at, patience, config)

        return BlobStream(first, connect, offset, descriptor.size, config, patience, self._checkpoint)

    def _client(self, host: str) -> Client:
        with self._lock:
            if host not in self._clients:
                endpoint = endpoint_of(host, self._config)
                self._clients[host] = Client(
                    endpoint, self._config, self._credentials, self._checkpoint, self._watchdog
                )
            return self._clients[host]


def _open(
    client: Client, parts: Reference, descriptor: Descriptor, at: int, patience: RetryPolicy, config: RegistryConfig
) -> Response:
    """An answer whose body is the blob from at on, whatever the registry thinks of ranges (RFC 9110, section 14)."""
    what = f'blob "{descriptor.digest}"'
    ranged = at > 0
    while True:
        headers = {"Range": f"bytes={at}-"} if ranged else {}
        try:
            answer = client.get(
                f"{parts.path}/blobs/{descriptor.digest}", headers, scope=_scope(parts), what=what, patience=patience
            )
        except NotFound as error:
            if descriptor.media_type in FOREIGN:
                raise NotFound(what, error.cause, "it is a foreign layer, whose URLs are not followed") from None
            raise
        except Invalid:
            if not ranged:
                raise
            ranged = False  # 416 and the like: it has another idea of the blob, which its whole will show
            continue
        try:
            if answer.status == 206 and not _is_rest(answer.headers.get("Content-Range", ""), at, descriptor.size):
                if not ranged:
                    raise Invalid(what, f"{answer.url.netloc} sends a part that nobody asked for")
                answer.close()
                ranged = False
                continue
            start = at if answer.status == 206 else 0
            announced = answer.headers.get("Content-Length", "")
            if announced.isdecimal() and int(announced[:20]) != descriptor.size - start:
                raise Invalid(
                    what,
                    f"is {descriptor.size} bytes by the manifest, {answer.url.netloc} sends {start + int(announced[:20])}",
                )
            _skip(answer, at - start, config)
        except TransferError as broken:
            answer.close()
            patience.after(broken)
        except BaseException:
            answer.close()
            raise
        else:
            return answer


def _is_rest(header: str, at: int, size: int) -> bool:
    match = _RANGE.fullmatch(header.strip())
    return match is not None and int(match[1]) == at and int(match[2]) == size - 1 and match[3] in ("*", str(size))


def _skip(answer: Response, count: int, config: RegistryConfig) -> None:
    """Passes over what is here already; never slower than a stream may be."""
    began, skipped = time.monotonic(), 0
    while skipped < count:
        piece = answer.read(min(count - skipped, 1 << 20))
        if not piece:
            raise TransferError(f"{answer.url.netloc} broke off in the middle of an answer")
        skipped += len(piece)
        passed = time.monotonic() - began
        if passed > config.timeout and skipped < config.min_speed * passed:
            raise TransferError(f"{answer.url.netloc} sent {skipped} bytes in {passed:.0f} s")


def _scope(parts: Reference) -> str:
    """What is asked of a token server, whatever the registry says is needed: no right that a pull has no use for."""
    return f"repository:{parts.path}:pull"
