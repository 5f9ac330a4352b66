"""Containers that the shim clones from a plan: what the drivers ``namespaces`` and ``userns`` have in common.

No plugin: it has no entry point.
"""
