"""The bundled store keeps the contract."""

from __future__ import annotations

from wherry.testing import StoreContract


class TestStoreLocal(StoreContract):
    plugin = "wherry_plugins.store.local"
    must_run = True
