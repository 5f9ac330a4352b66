"""The steps of a plan that a driver writes by hand (``wherry.api.Plan``): most have theirs from ``wherry.kit.isolation``."""

from __future__ import annotations

from wherry.oci.steps import Created, Execute, Join, Signals

__all__ = ["Created", "Execute", "Join", "Signals"]
