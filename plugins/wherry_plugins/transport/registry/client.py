"""Requests to one registry: authentication, redirects and repetition, and what its refusals are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from wherry import __version__
from wherry.api import Denied, Error, Invalid, NotFound
from wherry.spec.document import parse
from wherry_plugins.transport.registry import HostConfig, RegistryConfig
from wherry_plugins.transport.registry.address_policy import AddressPolicy, may_lead, nearest, reach_of
from wherry_plugins.transport.registry.auth import TOKEN_MAX, Authorizer
from wherry_plugins.transport.registry.challenge import parse_challenges
from wherry_plugins.transport.registry.connection import Judge, Pools, Response, TransferError
from wherry_plugins.transport.registry.endpoint import RegistryEndpoint, plain, tls
from wherry_plugins.transport.registry.retry import RetryPolicy, retry_after
from wherry_plugins.transport.registry.url import Url
from wherry_plugins.transport.registry.watchdog import Watchdog

_REDIRECTS = 5
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_ERROR_MAX = 1 << 16
_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


class Client:
    """One registry. Thread-safe."""

    def __init__(
        self, endpoint: RegistryEndpoint, config: RegistryConfig, credentials: Callable[[str], tuple[str, str] | None],
        checkpoint: Callable[[], None], watchdog: Watchdog,
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self._config = config
        self._checkpoint = checkpoint
        self._pools = Pools(watchdog, config.timeout, lambda netloc: tls(self._settings(netloc), config))
        self._authorizer = Authorizer(endpoint, credentials, self._token, self._allow)
        self._reach: AddressPolicy | None = None

    def patience(self, what: str, *, streaming: bool = False) -> RetryPolicy:
        return RetryPolicy(self._config, what, self._checkpoint, streaming=streaming)

    def get(
        self, path: str, headers: Mapping[str, str], *, scope: str, what: str, patience: RetryPolicy,
    ) -> Response:  # fmt: skip
        """The answer to a GET below /v2/, with a status of 200 to 299. path is of checked text alone.

        NotFound, Denied, Invalid; Unavailable when it does not come about.
        """
        url = self.endpoint.url(path)
        renewed = ""
        while True:
            used = renewed or self._authorizer.header(scope)
            try:
                answer = self._follow(url, headers, used, what)
                if answer.status in _PASSING:
                    wait = retry_after(answer.headers.get("Retry-After", ""))
                    text = self._said(answer)
                    answer.discard()
                    patience.after(TransferError(f"{answer.url.netloc} answers {answer.status}{text}"), wait)
                    continue
            except TransferError as broken:
                patience.after(broken)
                continue
            if answer.status < 300:
                return answer
            challenges = answer.headers.get("WWW-Authenticate", "")
            own = answer.url.origin == self.endpoint.base.origin
            if answer.status == 401 and own and challenges and not renewed:
                answer.discard()
                renewed = self._authorizer.renew(
                    parse_challenges(challenges, f'registry "{self.endpoint.host}"'), scope, used, what
                )
                continue
            self._refused(answer, what, used)

    def _follow(self, url: Url, headers: Mapping[str, str], authorization: str, what: str) -> Response:
        """One request and where it leads. Authorization goes with it as long as it stays with the registry itself."""
        base = self.endpoint.base.origin
        for _hop in range(_REDIRECTS + 1):
            sent = {"User-Agent": f"wherry/{__version__}", "Accept-Encoding": "identity", **headers}
            if authorization and url.origin == base:
                sent["Authorization"] = authorization
            answer = self._pools.exchange("GET", url, sent, None, self._judge(url))
            if answer.status not in _REDIRECT:
                return answer
            location = answer.headers.get("Location", "")
            answer.discard()
            following = url.joined(location, f'redirect of "{url.netloc}"')
            if url.scheme == "https" and following.scheme == "http":
                raise Denied(what, f"{url.netloc} leads from https to http: {following.site}")
            if following.origin != base:
                self._allow(following)
            url = following
        raise Invalid(what, f"{self.endpoint.host} leads from one place to another without end")

    def _token(self, url: Url, headers: dict[str, str], body: bytes | None) -> bytes:
        """Asks a token server. It is not followed elsewhere: what it is shown is for it alone."""
        where = f'token server "{url.netloc}"'
        patience = self.patience(where)
        sent = {"User-Agent": f"wherry/{__version__}", "Accept-Encoding": "identity", **headers}
        while True:
            try:
                answer = self._pools.exchange("GET" if body is None else "POST", url, sent, body, self._judge(url))
                if answer.status in _PASSING:
                    wait = retry_after(answer.headers.get("Retry-After", ""))
                    answer.discard()
                    patience.after(TransferError(f"answers {answer.status}"), wait)
                    continue
                if answer.status == 200:
                    try:
                        return answer.document(TOKEN_MAX, where, self._config.patience)
                    finally:
                        answer.discard()
            except TransferError as broken:
                patience.after(broken)
                continue
            text = self._said(answer)
            answer.discard()
            if answer.status in (400, 401, 403, 404):
                raise Denied(where, f"{url.netloc} gives no token: {answer.status}{text}")
            raise Invalid(where, f"answers {answer.status} to a request for a token{text}")

    # who may be asked

    def _allow(self, url: Url) -> None:
        """Whether the registry may send us to this server. Denied."""
        what = f'registry "{self.endpoint.host}"'
        if url.netloc in self.endpoint.realms:
            if url.scheme == "http" and not plain(url.netloc, self._config):
                raise Denied(what, f"leads to {url.site}, by plain http")
            return
        if url.scheme == "http" and (self.endpoint.base.scheme == "https" or not plain(url.netloc, self._config)):
            raise Denied(what, f"leads to {url.site}, by plain http")
        try:
            target = nearest(url.host, url.port)
            own = self._own_reach()
        except OSError:
            return  # connecting says so in its own words, and the address is judged there too
        self._refuse_near(own, target, url)

    def _refuse_near(self, own: AddressPolicy, target: AddressPolicy, url: Url) -> None:
        if not may_lead(own, target):
            raise Denied(
                f'registry "{self.endpoint.host}"', f"leads to {url.site}, a {target} address",
                f'if it is meant to: [plugin.transport.registry.hosts."{self.endpoint.host}"] realms = ["{url.netloc}"]',
            )  # fmt: skip

    def _own_reach(self) -> AddressPolicy:
        if self._reach is None:
            self._reach = nearest(self.endpoint.base.host, self.endpoint.base.port)
        return self._reach

    def _judge(self, url: Url) -> Judge:
        """Looks at the address of each new connection: a name may have another one by now than when it was looked up."""
        own = url.origin == self.endpoint.base.origin
        free = url.netloc in self.endpoint.realms
        named_plain = self._config.hosts.get(self._settings(url.netloc), HostConfig()).plain_http is True

        def judge(address: str) -> None:
            target = reach_of(address)
            if url.scheme == "http" and not named_plain and target != AddressPolicy.LOOPBACK:
                raise Denied(f'registry "{self.endpoint.host}"', f"{url.netloc} is not this machine, and talks http")
            if own:
                self._reach = target
            elif not free:
                self._refuse_near(self._reach if self._reach is not None else AddressPolicy.PUBLIC, target, url)

        return judge

    def _settings(self, netloc: str) -> str:
        """Under which name the config speaks of a server: the registry's own where it is that."""
        return self.endpoint.host if netloc == self.endpoint.base.netloc else netloc

    # what refusals are called

    def _refused(self, answer: Response, what: str, used: str) -> NoReturn:
        text, status = self._said(answer), answer.status
        answer.discard()
        if status in (404, 410):
            raise NotFound(what, f"{answer.url.netloc} has no such thing{text}")
        if status in (401, 403):
            raise Denied(what, f"{answer.url.netloc} refuses: {status}{text}", self._authorizer.refused(used))
        hint = ""
        if status == 400 and answer.url.scheme == "http" and "HTTPS" in text:
            hint = f'[plugin.transport.registry.hosts."{self.endpoint.host}"] plain_http = false'
        raise Invalid(what, f"{answer.url.netloc} answers {status}{text}", hint)

    def _said(self, answer: Response) -> str:
        """The registry's own words for an error, ``: text``, made harmless; "" for none (distribution-spec, "Error Codes")."""
        try:
            data = answer.document(_ERROR_MAX, "answer", self._config.timeout)
        except (Error, TransferError):
            return ""
        try:
            errors = parse(data, "answer").get("errors")
            first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
            text = str(first.get("message") or first.get("code") or "")
        except Invalid:
            text = (
                data[:200].decode("utf-8", "replace")
                if answer.headers.get("Content-Type", "").startswith("text/plain")
                else ""
            )
        text = " ".join(_PRINTABLE.sub(" ", text).split())[:200].rstrip(". ")
        return f": {text}" if text else ""
