"""The Context that a driver gets: kernel services, one object a driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from wherry.interfaces.common import Event
from wherry.interfaces.kernel import Workers
from wherry.interfaces.process import Shim
from wherry.interfaces.tracing import span
from wherry.kernel.calls import CURRENT, HOLD, checkpoint


class DriverContext:
    """``wherry.api.Context`` in the engine's process."""

    variant: str

    def __init__(
        self,
        id: str,
        *,
        uid: int,
        root: Path,
        run: Path,
        features: frozenset[str],
        shim: Shim,
        workers: Workers,
        publish: Callable[[Event], None],
        credentials: Callable[[str], tuple[str, str] | None] = lambda host: None,
        default_variant: str = "",
    ) -> None:
        self.id = id
        self.uid = uid
        self.root = root
        self.run = run
        self.features = features
        self.shim = shim
        self.workers = workers
        self._publish = publish
        self._credentials = credentials
        self._default_variant = default_variant

    def __getattr__(self, name: str) -> str:
        """``variant``: that of the current call, since drivers are shared by all variants that name them."""
        if name != "variant":
            raise AttributeError(name)
        call = CURRENT.get()
        return (call.variant if call is not None else "") or self._default_variant

    def publish(self, event: Event) -> None:
        """Hands an event to the kernel, which numbers it."""
        self._publish(event)

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[None]:
        """A span below that of the current driver call."""
        return span(name, self.id, **attributes)  # type: ignore[return-value]

    def checkpoint(self) -> None:
        """Raises DeadlineExceeded once the current call's deadline has passed."""
        checkpoint()

    def hold(self, resource: str) -> None:
        """Adds the resource to the current lease; outside of one there is nothing to add to."""
        hold = HOLD.get()
        if hold is not None:
            hold(resource)

    def credentials(self, host: str) -> tuple[str, str] | None:
        """(user, secret) for a registry host, or None."""
        return self._credentials(host)

    def __repr__(self) -> str:
        return f"<Context {self.id}>"


def make_directories(*paths: Path) -> None:
    """A driver's own directories: 0700, parents included."""
    for path in paths:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
