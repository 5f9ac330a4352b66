"""How often, and for how long, a thing is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable

from wherry.api import Unavailable
from wherry_plugins.transport.registry import RegistryConfig
from wherry_plugins.transport.registry.connection import TransferError

_FIRST, _LONGEST = 0.25, 4.0


class RetryPolicy:
    """For one request, or one stream. Every wait is longer than the one before; a registry may ask for another (Retry-After)."""

    def __init__(
        self, config: RegistryConfig, what: str, checkpoint: Callable[[], None], *, streaming: bool = False
    ) -> None:
        self._config = config
        self._what = what
        self._checkpoint = checkpoint
        # While a stream is read somebody waits for each piece: a registry can't ask for minutes there. And it was there a moment
        # ago, so that a refused connection may be that of one that starts again.
        self._most = config.patience if streaming else config.retry_after
        self._stubborn = streaming
        self._since = 0.0 if streaming else time.monotonic()
        self._failed = 0

    def progress(self) -> None:
        """What came since shows that it is worth going on; time counts from the next failure."""
        self._since = 0.0
        self._failed = 0

    def after(self, broken: TransferError, wait: float | None = None) -> None:
        """Waits before the next attempt. Unavailable where that was the last. wait: seconds that the registry asked for."""
        self._failed += 1
        self._since = self._since or time.monotonic()
        spent = time.monotonic() - self._since
        times = f", tried {self._failed} times" if self._failed > 1 else ""
        hopeless = broken.hopeless and not self._stubborn
        if hopeless or self._failed > self._config.retries or spent > self._config.patience:
            raise self._over(broken, times)
        if wait is None:
            # Not all clients that lost a registry at the same moment should come back at the same moment.
            spread = 0.75 + (time.monotonic_ns() // 1000 % 1024) / 2048
            delay = min(_FIRST * 2 ** (self._failed - 1), _LONGEST) * spread
            if spent + delay > self._config.patience:
                raise self._over(broken, times)
        else:
            delay = wait
            if delay > self._most:
                raise Unavailable(
                    self._what, f"{broken.cause}, and asks to come back in {delay:.0f} s", "try again later"
                )
            self._since += delay
        until = time.monotonic() + delay
        while (left := until - time.monotonic()) > 0:
            self._checkpoint()
            time.sleep(min(left, 0.5))

    def _over(self, broken: TransferError, times: str) -> Unavailable:
        return Unavailable(self._what, broken.cause + times, broken.hint)


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); None for none, or for what is no such header."""
    value = value.strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    if not value or len(value) > 64:
        return None
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
