"""Registries: Debian's, as a process on loopback; and one that follows a script, for everything that no honest one does."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from support import tools
from support.layers import member, tar
from wherry.api import Descriptor, Digest
from wherry.spec.distribution import CONFIG, INDEX, LAYER, MANIFEST
from wherry_plugins.transport.registry import HostConfig, RegistryConfig
from wherry_plugins.transport.registry.transport import RegistryTransport


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


class Content(NamedTuple):
    """One image: its documents and its layers by digest; tags point at manifests."""

    blobs: dict[str, bytes]
    manifests: dict[str, tuple[str, bytes]]
    tags: dict[str, str]
    target: Descriptor
    layers: list[Descriptor]


def image(
    *layers: bytes, architecture: str = "amd64", tag: str = "1", layer_type: str = f"{LAYER}+gzip", **more: Any
) -> Content:
    """An image of these layers (tars, which are compressed here); more goes into every layer's descriptor."""
    tars = layers or (tar(member("file", data=b"hello")),)
    packed = [gzip.compress(layer, 1, mtime=0) for layer in tars]
    config = json.dumps(
        {
            "os": "linux", "architecture": architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in tars]},
        }
    ).encode()  # fmt: skip
    manifest = json.dumps(
        {
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config),
            "layers": [descriptor(layer_type, layer, **more) for layer in packed],
        }
    ).encode()  # fmt: skip
    found = [Descriptor(layer_type, Digest(digest(layer)), len(layer)) for layer in packed]
    return Content(
        {digest(data): data for data in (config, *packed)},
        {digest(manifest): (MANIFEST, manifest)},
        {tag: digest(manifest)},
        Descriptor(MANIFEST, Digest(digest(manifest)), len(manifest)),
        found,
    )


def index_of(images: Mapping[str, Content], tag: str = "1") -> Content:
    """Several platforms under one tag."""
    entries = []
    for platform, content in images.items():
        system, _, rest = platform.partition("/")
        architecture, _, variant = rest.partition("/")
        spoken = {"os": system, "architecture": architecture, **({"variant": variant} if variant else {})}
        _type, manifest = content.manifests[content.target.digest]
        entries.append(descriptor(MANIFEST, manifest, platform=spoken))
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    blobs = {key: data for content in images.values() for key, data in content.blobs.items()}
    manifests = {key: data for content in images.values() for key, data in content.manifests.items()}
    manifests[digest(index)] = (INDEX, index)
    return Content(blobs, manifests, {tag: digest(index)}, Descriptor(INDEX, Digest(digest(index)), len(index)), [])


def layout(directory: Path, content: Content) -> Path:
    """The same as an OCI image layout."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    for key, data in {**content.blobs, **{key: data for key, (_type, data) in content.manifests.items()}}.items():
        (blobs / key.partition(":")[2]).write_bytes(data)
    entries = []
    for tag, key in content.tags.items():
        media_type, data = content.manifests[key]
        entries.append(descriptor(media_type, data, annotations={"org.opencontainers.image.ref.name": tag}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return directory


# -- one that follows a script ---------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """A request, and what a script answers it with. Header names in ``headers`` are in lower case."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        seen = Seen(self.command, self.path, {key.lower(): value for key, value in self.headers.items()}, body)
        self.seen = seen
        self.server.owner.requests.append(seen)
        try:
            if not self.server.owner.script(self):
                self.honest()
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    do_POST = do_HEAD = do_GET

    def reply(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """A whole answer; in names of headers _ stands for -. Content-Length is the body's unless it is given ("" for none)."""
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        length = given.pop("Content-Length", str(len(body)))
        self.send_response(status)
        for key, value in given.items():
            self.send_header(key, value)
        if length:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)
        return True

    def hang_up(self) -> bool:
        """The connection ends here and now."""
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        return True

    def drip(self, data: bytes, pause: float) -> bool:
        """Byte by byte, until nobody listens or the test is over."""
        for number in range(len(data)):
            if self.server.owner.over.is_set():
                break
            self.connection.sendall(data[number : number + 1])
            time.sleep(pause)
        return True

    def honest(self) -> bool:
        """What a registry should answer (distribution-spec, "Pull")."""
        content: Content = self.server.owner.content
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/v2/[a-z0-9/]+/manifests/([^/]+)", path):
            media_type, data = content.manifests.get(content.tags.get(match[1], match[1]), ("", b""))
            if media_type:
                return self.reply(200, data, Content_Type=media_type, Docker_Content_Digest=digest(data))
        if match := re.fullmatch(r"/v2/[a-z0-9/]+/blobs/([^/]+)", path):
            data = content.blobs.get(match[1], b"")
            if data:
                return self.blob(data)
        return self.reply(404, b'{"errors":[{"code":"UNKNOWN","message":"nothing here"}]}')

    def blob(self, data: bytes) -> bool:
        wanted = self.headers.get("Range", "")
        if wanted:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            rest = data[start:]
            return self.reply(206, rest, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        return self.reply(200, data)

    @property
    def is_blob(self) -> bool:
        return "/blobs/" in self.path

    @property
    def is_layer(self) -> bool:
        return any(self.path.endswith(layer.digest) for layer in self.server.owner.content.layers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: Scripted

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a client that went away


class Scripted:
    """A registry on a thread. script answers a request and says True, or leaves it to the honest answer."""

    def __init__(
        self, content: Content, script: Callable[[Handler], bool] = lambda handler: False, *,
        address: str = "127.0.0.1", tls: tuple[Path, Path] | None = None,
    ) -> None:  # fmt: skip
        self.content = content
        self.script = script
        self.requests: list[Seen] = []
        self.over = threading.Event()
        self._server = _Server((address, 0), Handler)
        self._server.owner = self
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        self.host = f"{address}:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, part: str) -> list[Seen]:
        """The requests whose path has this part."""
        return [seen for seen in self.requests if part in seen.path]


def transport(
    credentials: Mapping[str, tuple[str, str]] | None = None,
    *,
    hosts: Mapping[str, HostConfig] | None = None,
    **options: Any,
) -> RegistryTransport:
    """The transport by itself, with little patience."""
    given = {"timeout": 2.0, "patience": 3.0, "retries": 3, "certs": (), **options}
    config = RegistryConfig(**given, hosts=hosts or {})
    return RegistryTransport(config, (credentials or {}).get, lambda: None)


def pull(source: RegistryTransport, reference: str, platform: str = "linux/amd64") -> dict[str, bytes]:
    """What an engine fetches of an image, each checked as a store checks it: blobs by digest."""
    (named,) = source.resolve(reference, platform)
    found = {named.target.digest: fetch(source, reference, named.target)}
    document = json.loads(found[named.target.digest])
    for part in (document["config"], *document["layers"]):
        wanted = Descriptor(part["mediaType"], Digest(part["digest"]), part["size"])
        found[wanted.digest] = fetch(source, reference, wanted)
    return found


def fetch(source: RegistryTransport, reference: str, wanted: Descriptor, offset: int = 0) -> bytes:
    with source.fetch(reference, wanted, offset) as stream:
        data = b""
        while piece := stream.read(1 << 20):
            data += piece
    if not offset:
        assert digest(data) == wanted.digest, "not the bytes that the digest promises"
    return data


def certificate(directory: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """(certificate, key) for an address, signed by itself."""
    cert, key = directory / "tls.crt", directory / "tls.key"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{name}",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


# -- Debian's --------------------------------------------------------------------------------------------------------------


class DebianRegistry(NamedTuple):
    host: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def debian(
    directory: Path, *, user: str = "", password: str = "", tls: tuple[Path, Path] | None = None
) -> Iterator[DebianRegistry]:
    """Debian's docker-registry on a free port of loopback, its files below directory; with a user, basic authentication."""
    directory.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": host},
    }
    if user:
        (directory / "htpasswd").write_text(f"{user}:{_bcrypt(password)}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    if tls:
        config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    (directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    tools.need("docker-registry")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", directory / "config.yml"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        _ready(host, process, directory / "log", secure=tls is not None)
        yield DebianRegistry(host, process)
    finally:
        process.kill()
        process.wait()


def _ready(host: str, process: subprocess.Popen[bytes], log: Path, *, secure: bool) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if secure:
                with socket.create_connection(host.split(":"), 1):  # type: ignore[arg-type]
                    return
            urllib.request.urlopen(f"http://{host}/v2/", timeout=1).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"docker-registry does not answer: {log.read_text()}")


def push(source: str, host: str, name: str, *options: str) -> None:
    """By skopeo: source is "oci:DIR:TAG" and the like."""
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", *options, source, f"docker://{host}/{name}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip


def _bcrypt(password: str) -> str:
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    made: bytes = library.crypt(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu")
    return made.decode()
