"""The namespaces isolation keeps the contract."""

from __future__ import annotations

from wherry.testing import IsolationContract


class TestNamespaces(IsolationContract):
    plugin = "wherry_plugins.isolation.namespaces"
    must_run = True
