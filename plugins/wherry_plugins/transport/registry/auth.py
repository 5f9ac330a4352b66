"""Credentials and tokens: who is shown what (RFC 7617; the distribution project's token authentication specification).

Credentials are for the server that has the registry's name. A token server elsewhere is asked without them, unless it is trusted
by the config or by convention; it is asked at all only where the registry could send us (see ``reach``). A token is for the
registry that asked for it.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from urllib.parse import quote, urlencode

from attrs import frozen

from wherry.api import Denied, Invalid
from wherry.spec.document import Fields, parse
from wherry_plugins.transport.registry.challenge import Challenge
from wherry_plugins.transport.registry.endpoint import RegistryEndpoint
from wherry_plugins.transport.registry.url import Url, parse_url

TOKEN_MAX = 1 << 20
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SHORTEST, _LONGEST = 60, 600
#: The user name that marks a secret as an identity token, as docker's own credential helpers have it.
IDENTITY = "<token>"

Ask = Callable[[Url, dict[str, str], "bytes | None"], bytes]
"""Asks a token server: GET, or POST with a body; the document. Denied where it refuses."""


@frozen
class _Header:
    text: str
    until: float


class Authorizer:
    """What to show to one registry, by scope. Thread-safe."""

    def __init__(
        self, endpoint: RegistryEndpoint, credentials: Callable[[str], tuple[str, str] | None], ask: Ask,
        allow: Callable[[Url], None],
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._credentials = credentials
        self._ask = ask
        self._allow = allow
        self._lock = threading.Lock()
        self._headers: dict[str, _Header] = {}

    def header(self, scope: str) -> str:
        """The Authorization header that is good for the scope as far as is known, "" for none."""
        found = self._headers.get(scope)
        return found.text if found is not None and found.until > time.monotonic() else ""

    def renew(self, challenges: tuple[Challenge, ...], scope: str, used: str, what: str) -> str:
        """The header after the registry refused the one used. Denied where there is none."""
        with self._lock:
            if (known := self.header(scope)) and known != used:
                return known  # another request was quicker
            self._headers.pop(scope, None)
            by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
            if "bearer" in by_scheme:
                made = self._bearer(by_scheme["bearer"], scope, what)
            elif "basic" in by_scheme:
                made = self._basic(what)
            else:
                offered = ", ".join(sorted(by_scheme)) or "nothing"
                raise Denied(
                    what, f"{self._endpoint.host} wants an authentication that is not known here: {offered[:100]}"
                )
            if len(self._headers) > 256:
                self._headers.clear()
            self._headers[scope] = made
            return made.text

    def _basic(self, what: str) -> _Header:
        found = self._credentials(self._endpoint.host)
        if found is None or found[0] == IDENTITY:
            raise Denied(what, f"{self._endpoint.host} wants a user name and a password", "there are none for it")
        return _Header(basic(*found), time.monotonic() + _LONGEST)

    def _bearer(self, challenge: Challenge, scope: str, what: str) -> _Header:
        where = f'token server of "{self._endpoint.host}"'
        realm = parse_url(challenge.parameters.get("realm", ""), where)
        trusted = realm.origin == self._endpoint.base.origin or (
            realm.netloc in self._endpoint.realms and (realm.scheme == "https" or self._endpoint.base.scheme == "http")
        )
        if realm.origin != self._endpoint.base.origin:
            self._allow(realm)
        found = self._credentials(self._endpoint.host)
        fields = {"service": challenge.parameters.get("service", ""), "scope": scope}
        fields = {name: value for name, value in fields.items() if value}
        headers: dict[str, str] = {}
        try:
            if found is not None and trusted and found[0] == IDENTITY:
                form = {**fields, "grant_type": "refresh_token", "refresh_token": found[1], "client_id": "wherry"}
                headers["Content-Type"] = "application/x-www-form-urlencoded"
                text = self._ask(realm, headers, urlencode(form).encode())
            else:
                if found is not None and trusted:
                    fields["account"] = found[0]
                    headers["Authorization"] = basic(*found)
                query = urlencode(fields, quote_via=quote, safe=":/,")
                text = self._ask(realm.at(f"{realm.target}{'&' if '?' in realm.target else '?'}{query}"), headers, None)
        except Denied as error:
            raise Denied(what, error.cause, self._advice(found is not None, trusted, realm)) from None
        return _token(text, where)

    def _advice(self, known: bool, trusted: bool, realm: Url) -> str:
        if known and not trusted:
            return (
                f"the credentials for {self._endpoint.host} were not sent to {realm.netloc}, which it names as its token "
                f'server; to trust it: [plugin.transport.registry.hosts."{self._endpoint.host}"] realms = ["{realm.netloc}"]'
            )
        return "" if known else "it may need credentials, and there are none for it"

    def refused(self, used: str) -> str:
        """A hint for a request that was refused with all there is to show."""
        return "it may not exist, or need other credentials" if used else "it may not exist, or need credentials"


def basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def _token(text: bytes, where: str) -> _Header:
    fields = Fields(parse(text, where), where)
    token = fields.text("token", "") or fields.text("access_token", "")
    if not _TOKEN.fullmatch(token):
        raise Invalid(where, "what it answers has no token in it")
    try:
        seconds = fields.number("expires_in", _SHORTEST)
    except Invalid:
        seconds = _SHORTEST
    # A fifth off for the way and for clocks; a long one is asked for again, since its rights may have been taken away.
    return _Header(f"Bearer {token}", time.monotonic() + min(max(seconds, 5), _LONGEST) * 0.8)
